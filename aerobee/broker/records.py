"""Stored records as policy sees them: parsed from the log's bytes, changed, and turned into new ones.

Bodies stay as they are stored (compressed or not), properties become a dictionary. Only mechanisms that move messages
from one topic to another (delay, retry, transactions) need this; clients get the log's bytes untouched.
"""

from __future__ import annotations

import ipaddress
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from aerobee.broker.store import Record
from aerobee.errors import error_for
from aerobee.protocol.codes import ResponseCode
from aerobee.protocol.message import PROPERTIES_BYTES_MAX

NAME_SEPARATOR: Final = "\x01"
PROPERTY_SEPARATOR: Final = "\x02"

MAGIC_V1: Final = -626843481
MAGIC_V2: Final = -626843477

BORN_HOST_V6: Final = 1 << 4
STORE_HOST_V6: Final = 1 << 5
TRANSACTION_BITS: Final = 3 << 2
PREPARED: Final = 1 << 2
COMMIT: Final = 2 << 2
ROLLBACK: Final = 3 << 2

_HEAD: Final = struct.Struct(">iiiiiqqiq")
"""Size, magic, body CRC, queue id, flag, queue offset, position, sysFlag, born timestamp."""
_TAIL: Final = struct.Struct(">iq")
"""Reconsume times, prepared transaction offset."""


def parse_properties(text: str) -> dict[str, str]:
    """`name \\x01 value \\x02` repeated → a dictionary, in order. What has no value is no property, as for Apache."""
    properties: dict[str, str] = {}
    for pair in text.split(PROPERTY_SEPARATOR):
        name, _, value = pair.partition(NAME_SEPARATOR)
        if name and value:
            properties[name] = value
    return properties


def format_properties(properties: dict[str, str]) -> bytes:
    """The dictionary as it is stored."""
    text = "".join(f"{name}{NAME_SEPARATOR}{value}{PROPERTY_SEPARATOR}" for name, value in properties.items())
    return text.encode("utf-8", "surrogateescape")


@dataclass(slots=True)
class Stored:
    """One record of the log. Hosts are `ip:port`; `offset_id` is what tools call the (offset) message id."""

    topic: str
    queue_id: int
    queue_offset: int
    position: int
    size: int
    flag: int
    sys_flag: int
    born_timestamp: int
    born_host: str
    store_timestamp: int
    store_host: str
    reconsume_times: int
    prepared_offset: int
    body: bytes
    properties: dict[str, str] = field(default_factory=dict)
    offset_id: str = ""

    def to_record(
        self,
        topic: str,
        queue_id: int,
        *,
        properties: dict[str, str] | None = None,
        sys_flag: int | None = None,
        reconsume_times: int | None = None,
        prepared_offset: int = 0,
        tags_code: int | None = None,
        body: bytes | None = None,
    ) -> Record:
        """The same message for another place; what is not named stays as it was."""
        return Record(
            topic,
            queue_id,
            self.body if body is None else body,
            format_properties(self.properties if properties is None else properties),
            flag=self.flag,
            sys_flag=self.sys_flag if sys_flag is None else sys_flag,
            born_timestamp=self.born_timestamp,
            born_host=self.born_host,
            reconsume_times=self.reconsume_times if reconsume_times is None else reconsume_times,
            prepared_offset=prepared_offset,
            tags_code=tags_code,
        )


def parse_record(data: bytes | memoryview, start: int = 0) -> Stored:
    """The record that begins at `start`. ValueError when there is none."""
    view = memoryview(data)
    try:
        size, magic, _, queue_id, flag, queue_offset, position, sys_flag, born_ms = _HEAD.unpack_from(view, start)
        if magic not in (MAGIC_V1, MAGIC_V2):
            raise ValueError(f"no record at {start}: magic {magic}")
        at = start + _HEAD.size
        born_host, _, at = _host(view, at, sys_flag & BORN_HOST_V6)
        (store_ms,) = struct.unpack_from(">q", view, at)
        store_host, store_raw, at = _host(view, at + 8, sys_flag & STORE_HOST_V6)
        reconsume, prepared = _TAIL.unpack_from(view, at)
        at += _TAIL.size
        (length,) = struct.unpack_from(">i", view, at)
        body = bytes(view[at + 4 : at + 4 + length])
        at += 4 + length
        if magic == MAGIC_V1:
            length, at = view[at], at + 1
        else:
            (length,), at = struct.unpack_from(">h", view, at), at + 2
        topic = bytes(view[at : at + length]).decode()
        at += length
        (length,) = struct.unpack_from(">h", view, at)
        properties = bytes(view[at + 2 : at + 2 + length]).decode("utf-8", "surrogateescape")
    except (struct.error, IndexError) as error:
        raise ValueError(f"no record at {start}: {error}") from None
    return Stored(
        topic,
        queue_id,
        queue_offset,
        position,
        size,
        flag,
        sys_flag,
        born_ms,
        born_host,
        store_ms,
        store_host,
        reconsume,
        prepared,
        body,
        parse_properties(properties),
        (store_raw + position.to_bytes(8, "big")).hex().upper(),
    )


def parse_records(data: bytes) -> Iterator[Stored]:
    """All records of a run, in order."""
    view, at = memoryview(data), 0
    while at < len(view):
        record = parse_record(view, at)
        yield record
        at += record.size


def _host(view: memoryview, at: int, is_v6: int) -> tuple[str, bytes, int]:
    """(`ip:port`, the bytes as they are in an offset id, where the next field begins)."""
    length = 20 if is_v6 else 8
    raw = bytes(view[at : at + length])
    if len(raw) < length:
        raise ValueError("the record ends within a host")
    port = int.from_bytes(raw[-4:], "big")
    ip = ipaddress.ip_address(raw[:-4])
    return (f"[{ip}]:{port}" if is_v6 else f"{ip}:{port}"), raw, at + length


def encode_record(record: Stored, *, topic: str, queue_id: int) -> bytes:
    """A record's bytes with another topic and queue in it, for clients that are shown a message that lies elsewhere.
    Raises MessageIllegal when its properties have become too long."""
    properties = format_properties(record.properties)
    if len(properties) > PROPERTIES_BYTES_MAX:
        raise error_for(ResponseCode.MESSAGE_ILLEGAL, f"properties of {len(properties)} bytes")
    name = topic.encode()
    tail = b"".join(
        (
            struct.pack(">q", record.born_timestamp),
            _pack_host(record.born_host),
            struct.pack(">q", record.store_timestamp),
            _pack_host(record.store_host),
            _TAIL.pack(record.reconsume_times, record.prepared_offset),
            struct.pack(">i", len(record.body)),
            record.body,
            bytes([len(name)]) if len(name) <= 127 else struct.pack(">h", len(name)),
            name,
            struct.pack(">h", len(properties)),
            properties,
        )
    )
    sys_flag = record.sys_flag & ~(BORN_HOST_V6 | STORE_HOST_V6)
    sys_flag |= (BORN_HOST_V6 if record.born_host.startswith("[") else 0) | (
        STORE_HOST_V6 if record.store_host.startswith("[") else 0
    )
    head = _HEAD.pack(
        _HEAD.size - 8 + len(tail),
        MAGIC_V1 if len(name) <= 127 else MAGIC_V2,
        zlib.crc32(record.body) & 0x7FFFFFFF,
        queue_id,
        record.flag,
        record.queue_offset,
        record.position,
        sys_flag,
        record.born_timestamp,
    )
    return head[:-8] + tail


def _pack_host(host: str) -> bytes:
    ip, _, port = host.rpartition(":")
    return ipaddress.ip_address(ip.strip("[]")).packed + struct.pack(">i", int(port))
