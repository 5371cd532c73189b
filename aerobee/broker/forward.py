"""A stored message made ready for another place without decoding what stays.

Levels (delay.py) and exact times (timer.py) move messages this way, unless all they need is to go home: the engine does
that (`MovingStore.bring_home`, home.rs). The body and the properties are cut out of the record as they are; only the
place is looked up in the properties.

Who sent such a message has its acknowledgement, so what is too much of it by then costs as little of it as can be
(`append_waited`).
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import struct
from typing import Final, Protocol

from aerobee.broker.records import BORN_HOST_V6, MAGIC_V1, MAGIC_V2, STORE_HOST_V6
from aerobee.broker.store import Receipt, Record
from aerobee.errors import LmqQuotaExceeded, MessageIllegal
from aerobee.log import Complaints

_log = logging.getLogger("aerobee.broker.forward")
_complaints: Final = Complaints(_log)

_HEAD: Final = struct.Struct(">iiiiiqqiq")
_TAIL: Final = struct.Struct(">iqi")
"""Reconsume times, prepared offset, body length."""
_LIGHT_OFFSETS: Final = (b"INNER_MULTI_QUEUE_OFFSET",)
"""A record with these is found in light queues when they are made again from the log."""
_SHORT: Final = struct.Struct(">h")


class MovingStore(Protocol):
    """What moving waiting messages needs of the store."""

    def append(self, records: list[Record]) -> list[Receipt]:
        """Appends records."""

    def bring_home(self, moves: list[tuple[int, bytes]]) -> tuple[int, int]:
        """Does what `Moving.home` and `append` do, for the first of the records at these positions that are simple."""

    def bounds(self, topic: str, queue_id: int) -> tuple[int, int]:
        """Smallest and next offset."""

    def entries(self, topic: str, queue_id: int, offset: int, count: int) -> bytes:
        """Units of 20 bytes: position, size, tags code; a lost message's position is -1."""

    def record(self, position: int) -> bytes | None:
        """A record's bytes."""

    def log_bounds(self) -> tuple[int, int, int]:
        """Where the log begins, how far it is on the disk, where it ends."""


class Moving:
    """One record, cut up. ValueError when it is none."""

    __slots__ = (
        "body",
        "born_host",
        "born_ms",
        "flag",
        "properties",
        "queue_offset",
        "reconsume",
        "store_ms",
        "sys_flag",
    )

    def __init__(self, data: bytes) -> None:
        try:
            _, magic, _, _, self.flag, self.queue_offset, _, self.sys_flag, self.born_ms = _HEAD.unpack_from(data)
            if magic != MAGIC_V1 and magic != MAGIC_V2:
                raise ValueError(f"no record: magic {magic}")
            at = _HEAD.size
            end = at + (20 if self.sys_flag & BORN_HOST_V6 else 8)
            self.born_host = _host(data[at:end])
            self.store_ms = int.from_bytes(data[end : end + 8], "big")
            at = end + 8 + (20 if self.sys_flag & STORE_HOST_V6 else 8)
            self.reconsume, _, length = _TAIL.unpack_from(data, at)
            at += _TAIL.size
            self.body = data[at : at + length]
            at += length
            at += 1 + data[at] if magic == MAGIC_V1 else 2 + _SHORT.unpack_from(data, at)[0]
            (length,) = _SHORT.unpack_from(data, at)
            self.properties = data[at + 2 : at + 2 + length]
        except (struct.error, IndexError) as error:
            raise ValueError(f"no record: {error}") from None

    def get(self, name: bytes) -> bytes | None:
        """The value of a property."""
        mark, properties = name + b"\x01", self.properties
        if not properties.startswith(mark):
            at = properties.find(b"\x02" + mark)
            if at < 0:
                return None
            at += 1
        else:
            at = 0
        at += len(mark)
        end = properties.find(b"\x02", at)
        return properties[at:] if end < 0 else properties[at:end]

    def number(self, name: bytes) -> int:
        """The value of a property that must be a number. ValueError."""
        value = self.get(name)
        if value is None:
            raise ValueError(f"the property {name.decode()} is missing")
        return int(value)

    def drop(self, names: tuple[bytes, ...]) -> None:
        """Takes properties away."""
        self.properties = _without(self.properties, names)

    def to(self, topic: str, queue_id: int, added: bytes = b"", tags_code: int | None = None) -> Record:
        """The same message for another place, with more properties at the end. ValueError: there is no such number."""
        properties = self.properties
        if added:
            properties = properties + added if properties.endswith(b"\x02") else properties + b"\x02" + added
        try:
            return Record(
                topic,
                queue_id,
                self.body,
                properties,
                flag=self.flag,
                sys_flag=self.sys_flag,
                born_timestamp=self.born_ms,
                born_host=self.born_host,
                reconsume_times=self.reconsume,
                tags_code=tags_code,
            )
        except OverflowError:
            raise ValueError(f"its queue id or tags code is out of range: {queue_id}, {tags_code}") from None

    def home(self, added: bytes = b"") -> Record:
        """The same message for the topic and queue its sender named. ValueError: it does not say, or nonsense."""
        name = self.get(b"REAL_TOPIC")
        if name is None:
            raise ValueError("the property REAL_TOPIC is missing")
        return self.to(name.decode(), self.number(b"REAL_QID"), added)


def append_waited(store: MovingStore, records: list[Record]) -> list[Receipt]:
    """Appends messages that waited; receipts of those that are stored. Raises StoreError: none can be stored now.

    In one write, or one by one if there is one that cannot be stored as it is. That one is stored without its places in
    light queues: there may be no more of them, or it names impossible ones. Or not at all, when it fits no topic.
    """
    if not records:
        return []
    try:
        return store.append(records)
    except (LmqQuotaExceeded, MessageIllegal):
        return [receipt for record in records for receipt in _append_alone(store, record)]


def _append_alone(store: MovingStore, record: Record) -> list[Receipt]:
    try:
        return store.append([record])
    except (LmqQuotaExceeded, MessageIllegal) as error:
        reason = error
    try:
        record.multi_dispatch = False
        record.properties = _without(record.properties, _LIGHT_OFFSETS)
        receipts = store.append([record])
    except (LmqQuotaExceeded, MessageIllegal) as error:
        _log.error("a message for %s that waited cannot be stored, it is skipped: %s", record.topic, error)
        return []
    _complaints.warn(
        "light", "a message for %s that waited is in no light queue, its topic has it: %s", record.topic, reason
    )
    return receipts


def _without(properties: bytes, names: tuple[bytes, ...]) -> bytes:
    pairs = properties.split(b"\x02")
    return b"".join(pair + b"\x02" for pair in pairs if pair and pair.partition(b"\x01")[0] not in names)


@functools.lru_cache(maxsize=4096)
def _host(raw: bytes) -> str:
    address = ipaddress.ip_address(raw[:-4])
    port = int.from_bytes(raw[-4:], "big")
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
