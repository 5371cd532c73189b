"""Popping: 32 messages at a time from all queues and one batch acknowledgement for them, as Apache's proxy does it.

The generator is Python and shares the cores with the broker; where the broker is quick, the figure is the generator's.
What the broker itself costs is its CPU time for a message.
"""

from __future__ import annotations

import base64
import json
import statistics
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench import extras
from bench.servers import KINDS, Server, server
from bench.wire import Request, Wire, cpu_s

POP, BATCH_ACK, ACK = 200050, 200151, 200051
QUEUES = 8


@dataclass
class Popping:
    """Messages a second that were popped and acknowledged, broker CPU µs a message, pop latencies in µs."""

    rate: float
    cpu_us: float
    p50_us: float
    p99_us: float


@dataclass
class _Worker:
    address: str
    topic: str
    single: bool
    until: float = 0.0
    messages: int = 0
    pops: list[float] = field(default_factory=list)

    def run(self) -> None:
        wire = Wire(self.address)
        while time.monotonic() < self.until:
            started = time.perf_counter()
            popped = wire.ask(POP, self._pop())
            self.pops.append(time.perf_counter() - started)
            if popped.code != 0:
                continue
            ext = popped.fields
            places = _places(ext)
            requests: list[Request]
            if self.single:
                requests = [
                    (ACK, self._ack(ext, flag, queue, start, offset), b"")
                    for flag, queue, start, offsets in places
                    for offset in offsets
                ]
            else:
                requests = [(BATCH_ACK, {}, self._batch(ext, places))]
            wire.do_all(requests)
            self.messages += sum(len(offsets) for *_, offsets in places)
        wire.close()

    def _pop(self) -> dict[str, str]:
        return {
            "consumerGroup": "poppers",
            "topic": self.topic,
            "queueId": "-1",
            "maxMsgNums": "32",
            "invisibleTime": "60000",
            "pollTime": "0",
            "bornTime": str(time.time_ns() // 1_000_000),
            "initMode": "0",
        }

    def _ack(self, ext: dict[str, str], flag: str, queue: str, start: str, offset: int) -> dict[str, str]:
        handle = f"{start} {ext['popTime']} {ext['invisibleTime']} {ext['reviveQid']} {flag} broker-a {queue} {offset}"
        return {
            "consumerGroup": "poppers",
            "topic": self.topic,
            "queueId": queue,
            "extraInfo": handle,
            "offset": str(offset),
        }

    def _batch(self, ext: dict[str, str], places: list[tuple[str, str, str, list[int]]]) -> bytes:
        acks = []
        for flag, queue, start, offsets in places:
            bits = sum(1 << (offset - int(start)) for offset in offsets)
            data = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
            acks.append(
                {
                    "c": "poppers",
                    "t": self.topic,
                    "r": flag,
                    "so": int(start),
                    "q": int(queue),
                    "rq": int(ext["reviveQid"]),
                    "pt": int(ext["popTime"]),
                    "it": int(ext["invisibleTime"]),
                    "b": base64.b64encode(data).decode(),
                }
            )
        return json.dumps({"brokerName": "broker-a", "acks": acks}).encode()


def _places(ext: dict[str, str]) -> list[tuple[str, str, str, list[int]]]:
    starts = dict(part.rsplit(" ", 1) for part in ext["startOffsetInfo"].split(";"))
    places = []
    for part in ext["msgOffsetInfo"].split(";"):
        flag, queue, offsets = part.split(" ")
        places.append((flag, queue, starts[f"{flag} {queue}"], [int(offset) for offset in offsets.split(",")]))
    return places


def measure(one: Server, topic: str, seconds: float, *, single: bool = False, connections: int = 4) -> Popping:
    """Pops and acknowledges for a while, in one request or one by one (pipelined); the topic must hold enough."""
    workers = [_Worker(one.address, topic, single) for _ in range(connections)]
    cpu = cpu_s(one.pid)
    started = time.monotonic()
    for worker in workers:
        worker.until = started + seconds
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - started
    total = sum(worker.messages for worker in workers)
    pops = sorted(latency for worker in workers for latency in worker.pops)
    cuts = statistics.quantiles(pops, n=100)
    return Popping(total / elapsed, 1e6 * (cpu_s(one.pid) - cpu) / max(1, total), 1e6 * cuts[49], 1e6 * cuts[98])


def fill(one: Server, topic: str, messages: int, body_bytes: int = 1024) -> None:
    """Puts messages into all queues of a topic, in batches."""
    inner = struct.pack(">iiiii", 22 + body_bytes, 0, 0, 0, body_bytes) + b"x" * body_bytes + struct.pack(">h", 0)
    batch = inner * 64
    wire = Wire(one.address)
    for number in range(messages // 64):
        ext = {"a": "p", "b": topic, "c": "TBW102", "d": str(QUEUES), "e": str(number % QUEUES), "f": "0", "g": "0"}
        ext |= {"h": "0", "i": "", "j": "0", "k": "false", "m": "true"}
        wire.do_all([(320, ext, batch)])
    wire.close()


def rows(directory: Path, seconds: int) -> list[extras.Row]:
    """Pops with batch acknowledgements and with single ones."""
    found: dict[tuple[str, bool], Popping] = {}
    for kind in KINDS:
        with server(kind, directory / kind) as one:
            fill(one, "Pops", 200_000 * (seconds + 4))
            measure(one, "Pops", 6 if kind == "apache" else 1)  # a JVM compiles what is hot
            for single in (False, True):
                found[kind, single] = measure(one, "Pops", seconds / 2, single=single)
    table: list[extras.Row] = []
    for single, how in ((False, "one ack for a pop"), (True, "an ack for each message")):
        theirs, mine = found["apache", single], found["aerobee", single]
        what, held = f"pop in 32s, {how}", extras.verdict(mine.cpu_us <= theirs.cpu_us)
        table += [
            (f"{what}: messages a second", f"{theirs.rate:,.0f}", f"{mine.rate:,.0f}", "", ""),
            (f"{what}: CPU a message, µs", f"{theirs.cpu_us:.2f}", f"{mine.cpu_us:.2f}", "≤ Apache's", held),
            (f"{what}: p99 of a pop, µs", f"{theirs.p99_us:,.0f}", f"{mine.p99_us:,.0f}", "", ""),
        ]
    return table
