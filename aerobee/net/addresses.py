"""Addresses as settings spell them: `10.0.0.5:10911`, `[::1]:10911`, and named ones, `inside://10.0.0.5:20911`."""

from __future__ import annotations

import re
from typing import Final

MAIN: Final = "main"
"""The listener of `bindAddress` and `listenPort`."""

_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\]|[^\s:;,/\[\]]+):(?P<port>\d{1,5})")
_LOOPBACK: Final = re.compile(r"127(\.\d{1,3}){3}")
_NAMED: Final = re.compile(rf"(?P<name>[A-Za-z][A-Za-z0-9_-]*)://(?P<address>{_ADDRESS.pattern})")


def is_address(text: str) -> bool:
    """Whether it is `host:port`, whatever the host may be."""
    found = _ADDRESS.fullmatch(text)
    return found is not None and int(found["port"]) <= 65535


def is_loopback(host: str) -> bool:
    """Whether only this machine itself reaches it."""
    return host == "localhost" or host.strip("[]") == "::1" or _LOOPBACK.fullmatch(host) is not None


def split_list(text: str) -> list[str]:
    """The parts of a list, separated by `;` (Apache's way) or `,`."""
    return [part.strip() for part in re.split("[;,]", text) if part.strip()]


def named_addresses(text: str) -> dict[str, str]:
    """`inside://10.0.0.5:20911;outside://0.0.0.0:30911` → name → address. ValueError says what cannot be read."""
    found: dict[str, str] = {}
    for part in split_list(text):
        match = _NAMED.fullmatch(part)
        if match is None or not is_address(match["address"]):
            raise ValueError(f"must be NAME://HOST:PORT, several joined by ';', not {part!r}")
        if match["name"] in found:
            raise ValueError(f"names {match['name']!r} twice")
        found[match["name"]] = match["address"]
    return found


def check_listeners(listeners: str) -> list[str]:
    """What is wrong with a daemon's `listeners`, one sentence each."""
    try:
        named = named_addresses(listeners)
    except ValueError as error:
        return [f"listeners {error}"]
    return [f"listeners may not use the name {MAIN!r}: that is the one of listenPort"] if MAIN in named else []
