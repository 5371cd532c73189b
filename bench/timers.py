"""Timed messages: sends of them a second, and how late they come when a hundred thousand are due every second.

    python -m bench.timers [count] [slots]

Sends `count` messages for each of `slots` seconds that follow one another, then waits until all are in their topic and
reads when each was stored there. Late is what lies between the time asked for and that.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from aerobee.broker.records import parse_records
from bench.servers import KINDS, Server, server
from bench.wire import Request, Wire, cpu_s

SEND, PULL, MAX_OFFSET = 310, 11, 30
TOPIC = "timers"
PIPELINE = 500
PATIENT = {"waitTimeMillsInSendQueue": 60_000}
"""Apache's broker refuses what waits 200 ms; a shared machine makes it wait."""


@dataclass
class Timers:
    """Sends a second, broker CPU µs a message (sent and delivered), lateness in ms, own MiB while all wait."""

    rate: float
    cpu_us: float
    late_p50_ms: float
    late_max_ms: float
    early: int
    own_mib: float


def measure(broker: Server, count: int, slots: int) -> Timers:
    """One run; the first second is due when all should be sent."""
    wire = Wire(broker.address)
    total = count * slots
    lead_s = max(10, total // 4000)
    first_ms = (int(time.time()) + lead_s) * 1000
    body = b"x" * 256
    cpu = cpu_s(broker.pid)
    began = time.monotonic()
    for start in range(0, total, PIPELINE):
        sends: list[Request] = []
        for number in range(start, start + PIPELINE):
            due_ms = first_ms + number % slots * 1000
            fields = {"a": "bench", "b": TOPIC, "c": "TBW102", "d": "1", "e": "0", "f": "0", "h": "0", "j": "0"}
            fields |= {"g": str(time.time_ns() // 1_000_000), "k": "false", "l": "16", "m": "false"}
            fields["i"] = f"UNIQ_KEY\x01{number:032X}\x02TIMER_DELIVER_MS\x01{due_ms}\x02"
            sends.append((SEND, fields, body))
        wire.do_all(sends)
    rate = total / (time.monotonic() - began)
    if time.time() * 1000 > first_ms:
        raise RuntimeError("sending took too long, the first were due meanwhile")
    own_mib = broker.own_mib()
    place = {"topic": TOPIC, "queueId": "0"}
    deadline = time.monotonic() + lead_s + slots + 180
    while int(wire.ask(MAX_OFFSET, place).fields["offset"]) < total:
        if time.monotonic() > deadline:
            raise RuntimeError("not all were delivered")
        time.sleep(0.5)
    cpu_us = (cpu_s(broker.pid) - cpu) * 1e6 / total
    late: list[int] = []
    offset = 0
    while offset < total:
        fields = {
            "consumerGroup": "bench",
            "topic": TOPIC,
            "queueId": "0",
            "queueOffset": str(offset),
            "subVersion": "0",
        }
        fields |= {"maxMsgNums": "32", "sysFlag": "4", "commitOffset": "0", "suspendTimeoutMillis": "0"}
        reply = wire.ask(PULL, {**fields, "subscription": "*"})
        for record in parse_records(reply.body):
            late.append(record.store_timestamp - int(record.properties["TIMER_DELIVER_MS"]))
        offset = int(reply.fields["nextBeginOffset"])
    late.sort()
    early = sum(ms < 0 for ms in late)
    return Timers(rate, cpu_us, late[len(late) // 2], late[-1], early, own_mib)


def main() -> None:
    """Both brokers, one after the other."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    slots = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    for kind in reversed(KINDS):
        with (
            tempfile.TemporaryDirectory(prefix="timers-") as directory,
            server(kind, Path(directory) / kind, PATIENT) as broker,
        ):
            print(kind, measure(broker, count, slots), flush=True)


if __name__ == "__main__":
    main()
