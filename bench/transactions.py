"""Open transactions: what a million half messages that nobody ends cost in memory, start time and disk, and a round of
questions about them all, beside other traffic.

    python -m bench.transactions [count]

Sends `count` half messages of a group that nobody is in, stops the broker, starts it again, and waits for the first
round, which puts every half at the tail. Meanwhile one connection sends plain messages, one at a time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.servers import KINDS, Server, server
from bench.wire import Request, Wire, cpu_s

SEND, MAX_OFFSET = 310, 30
HALF = {"topic": "RMQ_SYS_TRANS_HALF_TOPIC", "queueId": "0"}
PIPELINE = 500
ROUND_AFTER_S = 20
PATIENT = {"waitTimeMillsInSendQueue": 60_000}
"""Apache's broker refuses what waits 200 ms; a shared machine makes it wait."""


@dataclass
class Open:
    """A run. Memory is the broker's own; `lag` is the time of a plain send while the round goes on."""

    sends_a_second: float
    own_mib_empty: float
    own_mib_sent: float
    stop_s: float
    start_ms: float
    own_mib_started: float
    round_s: float
    cpu_us_a_half: float
    own_mib_round: float
    lag_p99_ms: float
    lag_max_ms: float
    disk_bytes_a_half: float


def measure(kind: str, directory: Path, count: int) -> Open:
    """One broker, twice: filled, and started again with a round to come."""
    with server(kind, directory, {**PATIENT, "transactionCheckInterval": 3_600_000}, keep=True) as broker:
        empty = broker.own_mib()
        wire = Wire(broker.address)
        began = time.monotonic()
        for start in range(0, count, PIPELINE):
            wire.do_all([half(number) for number in range(start, start + PIPELINE)])
        rate = count / (time.monotonic() - began)
        wire.close()
        sent = broker.own_mib()
        began = time.monotonic()
        broker.broker.stop(120)
        stop_s = time.monotonic() - began
    settings = {**PATIENT, "transactionCheckInterval": ROUND_AFTER_S * 1000}
    with server(kind, directory, settings) as broker:
        started = broker.own_mib()
        wire = Wire(broker.address)
        while first_of(broker, wire) == count:
            time.sleep(0.05)
        cpu, before = cpu_s(broker.pid), disk_bytes(broker)
        began, lags, own = time.monotonic(), [], started
        while True:
            at = time.monotonic()
            wire.do_all([plain()])
            lags.append(time.monotonic() - at)
            if len(lags) % 50 == 0:
                own = max(own, broker.own_mib())
                if first_of(broker, wire) >= 2 * count or time.monotonic() - began > 300:
                    break
        round_s = time.monotonic() - began
        moved = first_of(broker, wire) - count
        lags.sort()
        return Open(
            rate, empty, sent, stop_s, broker.start_ms, started, round_s,
            1e6 * (cpu_s(broker.pid) - cpu) / moved, own,
            1000 * lags[len(lags) * 99 // 100], 1000 * lags[-1], (disk_bytes(broker) - before) / moved,
        )  # fmt: skip


def first_of(broker: Server, wire: Wire) -> int:
    """How many halves there are, copies at the tail among them."""
    return int(wire.ask(MAX_OFFSET, HALF).fields["offset"])


def disk_bytes(broker: Server) -> int:
    """Blocks of the store's files in use."""
    return sum(path.stat().st_blocks * 512 for path in (broker.directory / "store").rglob("*") if path.is_file())


def half(number: int) -> Request:
    properties = f"UNIQ_KEY\x01{number:032X}\x02TRAN_MSG\x01true\x02PGROUP\x01gone\x02"
    return SEND, {**_fields("Open"), "f": "4", "i": properties}, b"x" * 256


def plain() -> Request:
    return SEND, {**_fields("Plain"), "f": "0", "i": ""}, b"x" * 256


def _fields(topic: str) -> dict[str, str]:
    fields = {"a": "gone", "b": topic, "c": "TBW102", "d": "1", "e": "0", "h": "0", "j": "0", "k": "false"}
    return {**fields, "g": str(time.time_ns() // 1_000_000), "l": "16", "m": "false"}


def main() -> None:
    """Both brokers, one after the other."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    for kind in reversed(KINDS):
        with tempfile.TemporaryDirectory(prefix="transactions-") as directory:
            print(kind, measure(kind, Path(directory) / kind, count), flush=True)


if __name__ == "__main__":
    main()
