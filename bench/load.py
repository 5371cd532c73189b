"""Runs the load generator and reads what it prints."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
from dataclasses import astuple, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "build" / "load"

LINE = re.compile(
    r"(?P<mode>\w+) (?P<rate>\d+) msg/s \| broker (?P<cpu>[\d.]+) cpu-us/msg \| load (?P<own>[\d.]+) cpu-us/msg \| "
    r"p50 (?P<p50>\d+) p99 (?P<p99>\d+) p999 (?P<p999>\d+) max (?P<max>\d+) us "
    r"\| bad (?P<bad>\d+) \| rss (?P<rss>\d+) MiB"
)
PACED = re.compile(
    r"paced (?P<rate>\d+) msg/s answered \| broker (?P<cpu>[\d.]+) cpu-s/s \| p50 (?P<p50>\d+) p99 (?P<p99>\d+) "
    r"p999 (?P<p999>\d+) max (?P<max>\d+) us \(generator lateness p50 (?P<late50>\d+) p99 (?P<late99>\d+) us\) "
    r"\| bad (?P<bad>\d+)"
)


@dataclass(frozen=True)
class Figures:
    """What one run showed: messages a second, µs of the broker's CPU a message, latencies in µs."""

    rate: int
    cpu_us: float
    p50_us: int
    p99_us: int
    p999_us: int
    max_us: int
    refused: int
    resident_mib: int = 0
    why_refused: str = ""
    """The first refusal as the generator saw it."""


def build() -> None:
    """Builds the generator into build/load; quick when nothing has changed."""
    command = ["cargo", "build", "-q", "--release", "--manifest-path", str(ROOT / "bench" / "load" / "Cargo.toml")]
    subprocess.run(command, check=True, env={**os.environ, "CARGO_TARGET_DIR": str(TARGET)})


def command(mode: str, address: str, topic: str, connections: int, in_flight: int, size: int, *rest: int) -> list[str]:
    """The generator's command line; rest: seconds, queues, broker's pid."""
    words = [mode, address, topic, *map(str, (connections, in_flight, size, *rest))]
    return [str(TARGET / "release" / "mqload"), *words]


def run(words: list[str], *, batch: int = 1, rate: int = 0, warm_s: float | None = None) -> Figures:
    """One closed-loop run; `rate` limits it to so many requests a second, `warm_s` is not counted (None: 0.3 of it,
    at least 2 s). Raises RuntimeError with what it printed."""
    env = {**os.environ, "BATCH": str(batch)} | ({"RATE": str(rate)} if rate else {})
    if warm_s is not None:
        env["WARM"] = str(warm_s)
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    found = LINE.search(done.stdout)
    if found is None:
        raise RuntimeError(f"the load generator failed: {done.stdout}{done.stderr}")
    refusal = re.search(r"first bad: (.*)", done.stderr)
    figures = _figures(found, float(found["cpu"]), int(found["rss"]))
    return replace(figures, why_refused=refusal[1] if refusal else "")


def paced(
    address: str, topic: str, connections: int, rate: int, size: int, seconds: int, queues: int, pid: int
) -> Figures:
    """One open-loop run at a fixed rate; latency counts from the intended time of a send."""
    words = [str(TARGET / "release" / "pace"), address, topic]
    done = subprocess.run(
        [*words, *map(str, (connections, rate, size, seconds, queues, pid))], capture_output=True, text=True
    )
    found = PACED.search(done.stdout)
    if found is None:
        raise RuntimeError(f"the paced generator failed: {done.stdout}{done.stderr}")
    return _figures(found, float(found["cpu"]) * 1e6 / rate, 0)


def median(runs: list[Figures]) -> Figures:
    """Each figure's median; refused sends are added up, and the first reason is kept."""
    middle = [statistics.median_low(column) for column in zip(*map(astuple, runs), strict=True)]
    why = next((one.why_refused for one in runs if one.why_refused), "")
    return replace(Figures(*middle), refused=sum(one.refused for one in runs), why_refused=why)


def _figures(found: re.Match[str], cpu_us: float, resident_mib: int) -> Figures:
    p50, p99, p999, high = (int(found[name]) for name in ("p50", "p99", "p999", "max"))
    return Figures(int(found["rate"]), cpu_us, p50, p99, p999, high, int(found["bad"]), resident_mib)
