"""`mqbroker` and `aerobee broker`: the broker as a process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

from aerobee.broker.options import BrokerOptions
from aerobee.broker.store import look_ahead
from aerobee.cli import daemon
from aerobee.options import Options

if TYPE_CHECKING:
    from aerobee.broker.server import Broker


def mqbroker(arguments: list[str] | None = None, program: str = "mqbroker") -> int:
    """Runs until a signal; returns the exit code."""

    def make(options: Options) -> daemon.Server:
        settings = cast(BrokerOptions, options)
        # With many queues a start is mostly looking at their files: the engine begins while we import the rest.
        look = look_ahead(settings.store_path_root_dir, settings.queue_file_units)
        from aerobee.broker.server import Broker

        return Broker(settings, look=look)

    def describe(server: daemon.Server, options: Options) -> str:
        settings, addresses = cast(BrokerOptions, options), cast("Broker", server).addresses
        return (
            f"broker {settings.broker_name} boot success, listening on {', '.join(addresses)}, "
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
