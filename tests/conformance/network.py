"""A private network for tests: only a loopback device, every port free, nobody outside can reach it.

Apache's broker listens on all addresses with its HA port, and its fixed ports could be taken. Inside a network
namespace of its own neither matters. The calling thread moves into the namespace; every process and thread it starts
from there on lives in it too, so official clients, both brokers and Python code in the test all see each other.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def unavailable() -> str | None:
    """Why a private network cannot be made here, or None when it can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if shutil.which("ip") is None:
        return "the `ip` command (iproute2) is missing"
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        return "no permission to make a network namespace (run as root, or inside `unshare -rn`)"
    return None


@contextmanager
def private_network() -> Iterator[None]:
    """Moves the calling thread into a new network namespace with `lo` up, and back at the end."""
    before = os.open(f"/proc/self/task/{_gettid()}/ns/net", os.O_RDONLY)
    try:
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            _check(_libc.setns(before, CLONE_NEWNET), "setns")
    finally:
        os.close(before)


def _gettid() -> int:
    import threading

    return threading.get_native_id()


def _check(result: int, call: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
