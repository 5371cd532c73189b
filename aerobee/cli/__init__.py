"""The command line. `aerobee nameserver` and `aerobee broker` go straight to the daemons, the rest through typer."""

from __future__ import annotations

import sys


def main() -> int:
    """The `aerobee` command; returns the exit code."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word == "nameserver":
        from aerobee.cli.nameserver import mqnamesrv

        return mqnamesrv(sys.argv[2:], "aerobee nameserver")
    if word == "broker":
        from aerobee.cli.broker import mqbroker

        return mqbroker(sys.argv[2:], "aerobee broker")
    from aerobee.cli.app import run

    return run()
