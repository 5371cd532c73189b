"""A store in memory for mechanisms: queues of records, no disk, no threads."""

from __future__ import annotations

import random
import struct
from collections import defaultdict
from dataclasses import dataclass

from aerobee._engine import Record
from aerobee.broker.forward import Moving
from aerobee.broker.records import Stored, encode_record, parse_properties
from aerobee.clock import ManualClock
from aerobee.errors import DiskFull, MessageIllegal

PROPERTIES_BYTES_MAX = 32767


@dataclass
class Receipt:
    """What the engine's receipt has."""

    queue_offset: int
    position: int
    size: int
    store_timestamp: int
    message_id: str


@dataclass
class Batch:
    """What the engine's batch has."""

    count: int
    next_offset: int
    records: bytes


class MemoryStore:
    """Appends and reads like `broker.store.Store`. `full`: refuses appends. `damaged`: positions that read as None."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.random = random.Random(0)
        self.queues: dict[tuple[str, int], list[tuple[Stored, bytes, int]]] = defaultdict(list)
        self.by_position: dict[int, bytes] = {}
        self.damaged: set[int] = set()
        self.full = False
        self.end = 0
        self.on_disk: int | None = None
        """How far the log is on the disk; None: all of it."""

    def append(self, records: list[Record]) -> list[Receipt]:
        if self.full:
            raise DiskFull("no room")
        if any(len(record.properties) > PROPERTIES_BYTES_MAX for record in records):
            raise MessageIllegal("its properties are too long")
        receipts = []
        for record in records:
            queue = self.queues[record.topic, record.queue_id]
            stored = Stored(
                record.topic,
                record.queue_id,
                len(queue),
                self.end,
                0,
                record.flag,
                record.sys_flag,
                record.born_timestamp,
                record.born_host,
                self.clock.now_ms(),
                "127.0.0.1:10911",
                record.reconsume_times,
                record.prepared_offset,
                bytes(record.body),
                parse_properties(bytes(record.properties).decode()),
            )
            data = encode_record(stored, topic=record.topic, queue_id=record.queue_id)
            queue.append((stored, data, record.tags_code or 0))
            self.by_position[self.end] = data
            receipts.append(Receipt(stored.queue_offset, self.end, len(data), self.clock.now_ms(), f"{self.end:032X}"))
            self.end += len(data)
        return receipts

    def bring_home(self, moves: list[tuple[int, bytes]]) -> tuple[int, int]:
        """Some of them, as the engine may: up to the first that is not simple, or any number."""
        if self.full:
            raise DiskFull("no room")
        count = 0
        for position, added in moves[: self.random.randrange(len(moves) + 1)]:
            data = self.record(position)
            try:
                moving = Moving(data or b"")
                if added and moving.get(b"TIMER_ENQUEUE_MS") is not None:
                    break
                self.append([moving.home(added)])
            except (ValueError, MessageIllegal):
                break
            count += 1
        return count, self.end

    async def flushed(self, receipt: Receipt) -> None:
        return None

    def bounds(self, topic: str, queue_id: int) -> tuple[int, int]:
        return 0, len(self.queues[topic, queue_id])

    def entries(self, topic: str, queue_id: int, offset: int, count: int) -> bytes:
        units = self.queues[topic, queue_id][offset : offset + count]
        return b"".join(struct.pack(">qiq", stored.position, len(data), code) for stored, data, code in units)

    def read(self, topic: str, queue_id: int, offset: int, count: int, bytes_max: int = 1 << 20) -> Batch:
        found = self.queues[topic, queue_id][offset : offset + count]
        good = [data for stored, data, _ in found if stored.position not in self.damaged]
        return Batch(len(good), offset + len(found), b"".join(good))

    def record(self, position: int) -> bytes | None:
        return None if position in self.damaged else self.by_position.get(position)

    def search_index(
        self, topic: str, key: str, kind: str, limit: int, begin_ms: int, end_ms: int
    ) -> tuple[list[bytes], int, int]:
        found = []
        for (name, _), queue in self.queues.items():
            for stored, data, _ in queue if name == topic else ():
                keys = [stored.properties.get("UNIQ_KEY", ""), *stored.properties.get("KEYS", "").split()]
                if key in keys and begin_ms <= stored.store_timestamp <= end_ms:
                    found.append((stored.position, data))
        return [data for _, data in sorted(found, reverse=True)[:limit]], 0, 0

    def log_bounds(self) -> tuple[int, int, int]:
        return 0, self.end if self.on_disk is None else self.on_disk, self.end

    def messages(self, topic: str, queue_id: int = 0) -> list[Stored]:
        return [stored for stored, _, _ in self.queues[topic, queue_id]]
