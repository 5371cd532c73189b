"""`mqbroker` and `aerobee broker`: the broker as a process."""

from __future__ import annotations

import sys
from typing import cast

from aerobee.broker.options import BrokerOptions
from aerobee.broker.server import Broker
from aerobee.cli import daemon
from aerobee.options import Options


def mqbroker(arguments: list[str] | None = None, program: str = "mqbroker") -> int:
    """Runs until a signal; returns the exit code."""

    def make(options: Options) -> daemon.Server:
        return Broker(cast(BrokerOptions, options))

    def describe(server: daemon.Server, options: Options) -> str:
        settings = cast(BrokerOptions, options)
        return (
            f"broker {settings.broker_name} boot success, listening on {', '.join(cast(Broker, server).addresses)}, "
            f"name server {settings.namesrv_addr or 'none'}"
        )

    return daemon.run(
        program,
        "Takes, keeps and hands out messages.",
        BrokerOptions,
        make,
        describe,
        sys.argv[1:] if arguments is None else arguments,
    )
