"""`mqnamesrv` and `aerobee nameserver`: the name server as a process."""

from __future__ import annotations

import sys
from typing import cast

from aerobee.cli import daemon
from aerobee.nameserver.options import NameServerOptions
from aerobee.nameserver.server import NameServer
from aerobee.options import Options


def mqnamesrv(arguments: list[str] | None = None, program: str = "mqnamesrv") -> int:
    """Runs until a signal; returns the exit code."""

    def make(options: Options) -> daemon.Server:
        return NameServer(cast(NameServerOptions, options))

    def describe(server: daemon.Server, options: Options) -> str:
        return f"name server boot success, listening on {cast(NameServer, server).address}"

    return daemon.run(
        program,
        "Tells clients which brokers serve a topic.",
        NameServerOptions,
        make,
        describe,
        sys.argv[1:] if arguments is None else arguments,
    )
