"""Timed messages: sends of them a second, and how late they come when a hundred thousand are due every second.

    python -m bench.timers [count] [slots] [kind]

Sends `count` messages for each of `slots` seconds that follow one another, then waits until all are in their topic and
reads when each was stored there. Late is what lies between the time asked for and that. Meanwhile, from before the
first is due until the last has come, a message of delay level 1 is sent every 20 ms: how late are those?
`kind`: only this broker ("apache", "aerobee").
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aerobee.broker.records import Stored, parse_records
from bench.servers import KINDS, Server, server
from bench.wire import Request, Wire, cpu_s

SEND, PULL, MAX_OFFSET = 310, 11, 30
TOPIC, LEVELS = "timers", "levels"
LEVEL_MS = 1000
LEVEL_EVERY_S = 0.02
PIPELINE = 500
PATIENT = {"waitTimeMillsInSendQueue": 60_000}
"""Apache's broker refuses what waits 200 ms; a shared machine makes it wait."""


@dataclass
class Timers:
    """Sends a second, broker CPU µs a message (sent and delivered), lateness in ms, own MiB while all wait; how late
    how many of level 1 were."""

    rate: float
    cpu_us: float
    late_p50_ms: float
    late_max_ms: float
    early: int
    own_mib: float
    level_count: int
    level_late_p50_ms: float
    level_late_max_ms: float


class _Levels(threading.Thread):
    """Sends of level 1, one after the other, until it is told to stop."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.wire = Wire(address)
        self.sent = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.wait(LEVEL_EVERY_S):
            properties = f"UNIQ_KEY\x01{self.sent:032X}\x02DELAY\x011\x02"
            self.wire.do_all([(SEND, send_fields(LEVELS, properties), b"level")])
            self.sent += 1


def send_fields(topic: str, properties: str) -> dict[str, str]:
    """A SEND_MESSAGE_V2 to queue 0."""
    fields = {"a": "bench", "b": topic, "c": "TBW102", "d": "1", "e": "0", "f": "0", "h": "0", "j": "0"}
    return fields | {"g": str(time.time_ns() // 1_000_000), "k": "false", "l": "16", "m": "false", "i": properties}


def lateness(wire: Wire, topic: str, total: int, due_ms: Callable[[Stored], int], patience_s: float) -> list[int]:
    """By how many ms each message of queue 0 was late, ascending; waits for so many messages there."""
    place = {"topic": topic, "queueId": "0"}
    deadline = time.monotonic() + patience_s
    while int(wire.ask(MAX_OFFSET, place).fields["offset"]) < total:
        if time.monotonic() > deadline:
            raise RuntimeError("not all were delivered")
        time.sleep(0.5)
    found: list[int] = []
    while len(found) < total:
        fields = {"consumerGroup": "bench", **place, "queueOffset": str(len(found)), "subVersion": "0"}
        fields |= {"maxMsgNums": "32", "sysFlag": "4", "commitOffset": "0", "suspendTimeoutMillis": "0"}
        records = parse_records(wire.ask(PULL, {**fields, "subscription": "*"}).body)
        found += [record.store_timestamp - due_ms(record) for record in records]
    return sorted(found)


def measure(broker: Server, count: int, slots: int) -> Timers:
    """One run; the first second is due when all should be sent."""
    wire = Wire(broker.address)
    total = count * slots
    lead_s = max(10, total // 9000)
    first_ms = (int(time.time()) + lead_s) * 1000
    body = b"x" * 256
    cpu = cpu_s(broker.pid)
    began = time.monotonic()
    for start in range(0, total, PIPELINE):
        sends: list[Request] = []
        for number in range(start, start + PIPELINE):
            due_ms = first_ms + number % slots * 1000
            properties = f"UNIQ_KEY\x01{number:032X}\x02TIMER_DELIVER_MS\x01{due_ms}\x02"
            sends.append((SEND, send_fields(TOPIC, properties), body))
        wire.do_all(sends)
    rate = total / (time.monotonic() - began)
    if time.time() * 1000 > first_ms:
        raise RuntimeError("sending took too long, the first were due meanwhile")
    own_mib = broker.own_mib()
    time.sleep(max(0.0, first_ms / 1000 - 2 - time.time()))
    wire.close()  # may have been silent for longer than a broker waits
    wire = Wire(broker.address)
    levels = _Levels(broker.address)
    levels.start()
    place = {"topic": TOPIC, "queueId": "0"}
    deadline = time.monotonic() + slots + 180
    while int(wire.ask(MAX_OFFSET, place).fields["offset"]) < total and time.monotonic() < deadline:
        time.sleep(0.1)
    levels.stopping.set()
    levels.join()
    cpu_us = (cpu_s(broker.pid) - cpu) * 1e6 / total
    late = lateness(wire, TOPIC, total, lambda record: int(record.properties["TIMER_DELIVER_MS"]), 1)
    level_late = lateness(wire, LEVELS, levels.sent, lambda record: record.born_timestamp + LEVEL_MS, 10)
    early = sum(ms < 0 for ms in late + level_late)
    return Timers(
        rate, cpu_us, late[total // 2], late[-1], early, own_mib, len(level_late), level_late[len(level_late) // 2],
        level_late[-1],
    )  # fmt: skip


def main() -> None:
    """Both brokers, one after the other."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    slots = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    for kind in sys.argv[3:] or reversed(KINDS):
        with (
            tempfile.TemporaryDirectory(prefix="timers-") as directory,
            server(kind, Path(directory) / kind, PATIENT) as broker,
        ):
            print(kind, measure(broker, count, slots), flush=True)


if __name__ == "__main__":
    main()
