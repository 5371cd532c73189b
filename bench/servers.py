"""The brokers that are measured: Apache's as its users run it, and ours, each with its own store on the same disk."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "conformance"))

import apache  # noqa: E402
import ours  # noqa: E402

# What Apache's users run: the default collector, a fixed heap. Small enough for the page cache of a small machine.
APACHE_JVM = ("-Xms2g", "-Xmx2g", "-XX:+UseG1GC", "-XX:MaxDirectMemorySize=1g")

# The file sizes that are Apache's defaults, instead of the small ones of the tests.
DEFAULT_SIZES: dict[str, object] = {
    "mappedFileSizeCommitLog": 1024 * 1024 * 1024,
    "mappedFileSizeConsumeQueue": 6_000_000,
    "maxHashSlotNum": 5_000_000,
    "maxIndexNum": 20_000_000,
}
APACHE_DEFAULTS: dict[str, object] = {"timerFlushIntervalMs": 1000, "transactionMetricFlushInterval": 10_000}
"""What the conformance tests set otherwise."""

PORTS = {"apache": (9876, 10911), "aerobee": (19876, 20911)}
KINDS = ("apache", "aerobee")

QUIET_CORES = 0.25
QUIET_S = 20


@dataclass
class Server:
    """A running broker with its name server."""

    kind: str
    address: str
    directory: Path
    broker: apache.Process
    namesrv: apache.Process
    start_ms: float
    """From the start of the process to the first send that was answered with success."""

    @property
    def pid(self) -> int:
        return self.broker.pid

    def resident_mib(self) -> float:
        """Resident memory, in MiB; mapped store files that are in the page cache count too."""
        return _status_kib(self.pid, "VmRSS") / 1024

    def quiet(self) -> None:
        """Waits until the broker has done what the last run left it to do, at most QUIET_S: Apache's burns one and
        a half cores for seconds after its last reply, and whoever is measured next would pay for it."""
        deadline = time.monotonic() + QUIET_S
        busy = 1.0
        while busy > QUIET_CORES and time.monotonic() < deadline:
            before = _cpu_s(self.pid)
            time.sleep(1)
            busy = _cpu_s(self.pid) - before

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Stopped, so that the other has the machine to itself: an idle Apache broker uses a seventh of a core."""
        self.quiet()
        processes = (self.pid, self.namesrv.pid)
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in processes:
                os.kill(pid, signal.SIGCONT)

    def own_mib(self) -> float:
        """The part of it that belongs to the process alone, in MiB: no files."""
        return _status_kib(self.pid, "RssAnon") / 1024


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status_kib(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/{pid}/status has no {name}")


@contextmanager
def server(
    kind: str, directory: Path, options: Mapping[str, object] | None = None, *, keep: bool = False
) -> Iterator[Server]:
    """Starts a name server and a broker of a kind ("apache", "aerobee"); ends both and removes their files."""
    namesrv_port, port = PORTS[kind]
    address = f"127.0.0.1:{port}"
    settings = {**DEFAULT_SIZES, **(APACHE_DEFAULTS if kind == "apache" else {}), **(options or {})}
    maker = apache if kind == "apache" else ours
    plain: dict[str, bool] = {"quick": False} if kind == "apache" else {}  # as its users start it
    namesrv = maker.start_namesrv(directory, namesrv_port, **plain)
    broker = None
    try:
        started = time.monotonic()
        # Not ready before it has served: a port that is open is not a broker that answers.
        ready = _Sends(address)
        if kind == "apache":
            broker = apache.start_broker(
                directory, f"127.0.0.1:{namesrv_port}", port, settings, jvm=APACHE_JVM, quick=False, ready=ready
            )
        else:
            broker = ours.start_broker(directory, f"127.0.0.1:{namesrv_port}", port, settings, ready=ready)
        yield Server(kind, address, directory, broker, namesrv, (time.monotonic() - started) * 1000)
    finally:
        if broker is not None:
            broker.kill()
        namesrv.kill()
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


class _Sends:
    """True once a send was answered with success."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __call__(self) -> bool:
        fields = {"a": "first", "b": "First", "c": "TBW102", "d": "8", "e": "0", "f": "0", "g": "0", "h": "0", "i": ""}
        fields |= {"j": "0", "k": "false", "m": "false"}
        return bool(apache.call(self._address, 310, fields, b"first")[0]["code"] == 0)
