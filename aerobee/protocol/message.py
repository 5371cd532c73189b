"""Messages: what a producer makes, what a consumer gets, and the bytes of both.

    Message        made by the application: topic, body, tag, keys, properties
    MessageExt     one record of the log: the message and where, when and by whom it was stored
    MessageQueue   one queue of a topic on one broker

A record is big-endian: size, magic, body CRC, queue id, flag, queue offset, log position, system flag, born time and
host, store time and host, reconsume times, prepared offset, then body, topic and properties, each with its length
(4, 1 and 2 bytes; version 2 records have 2 bytes for topics longer than 127). Hosts are 4 or 16 address bytes and a
4-byte port, as the system flag says. Properties are `name \\x01 value \\x02`, repeated.
"""

from __future__ import annotations

import binascii
import ipaddress
import itertools
import logging
import os
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import lz4.frame  # type: ignore[import-untyped]
import zstandard

from aerobee.log import Complaints
from aerobee.protocol.fastjson import MessageQueue as MessageQueue

_complaints: Final = Complaints(logging.getLogger("aerobee.protocol.message"))

NAME_END: Final = "\x01"
VALUE_END: Final = "\x02"

PROPERTY_KEYS: Final = "KEYS"
PROPERTY_TAGS: Final = "TAGS"
PROPERTY_WAIT: Final = "WAIT"
PROPERTY_DELAY_TIME_LEVEL: Final = "DELAY"
PROPERTY_TIMER_DELAY_SEC: Final = "TIMER_DELAY_SEC"
PROPERTY_TIMER_DELAY_MS: Final = "TIMER_DELAY_MS"
PROPERTY_TIMER_DELIVER_MS: Final = "TIMER_DELIVER_MS"
PROPERTY_UNIQUE_ID: Final = "UNIQ_KEY"
PROPERTY_RETRY_TOPIC: Final = "RETRY_TOPIC"
PROPERTY_REAL_TOPIC: Final = "REAL_TOPIC"
PROPERTY_REAL_QUEUE_ID: Final = "REAL_QID"
PROPERTY_ORIGIN_MESSAGE_ID: Final = "ORIGIN_MESSAGE_ID"
PROPERTY_RECONSUME_TIME: Final = "RECONSUME_TIME"
PROPERTY_MAX_RECONSUME_TIMES: Final = "MAX_RECONSUME_TIMES"
PROPERTY_TRANSACTION_PREPARED: Final = "TRAN_MSG"
PROPERTY_PRODUCER_GROUP: Final = "PGROUP"
PROPERTY_SHARDING_KEY: Final = "__SHARDINGKEY"
PROPERTY_MIN_OFFSET: Final = "MIN_OFFSET"
PROPERTY_MAX_OFFSET: Final = "MAX_OFFSET"
PROPERTY_POP_CK: Final = "POP_CK"
PROPERTY_CORRELATION_ID: Final = "CORRELATION_ID"
PROPERTY_REPLY_TO_CLIENT: Final = "REPLY_TO_CLIENT"
PROPERTY_TTL: Final = "TTL"

RETRY_TOPIC_PREFIX: Final = "%RETRY%"
DLQ_TOPIC_PREFIX: Final = "%DLQ%"

SYS_FLAG_COMPRESSED: Final = 1
SYS_FLAG_MULTI_TAGS: Final = 2
SYS_FLAG_PREPARED: Final = 4
SYS_FLAG_COMMIT: Final = 8
SYS_FLAG_ROLLBACK: Final = 12
SYS_FLAG_BORN_HOST_V6: Final = 16
SYS_FLAG_STORE_HOST_V6: Final = 32
SYS_FLAG_COMPRESSION_TYPE: Final = 0x700
SYS_FLAG_LZ4: Final = 0x100
SYS_FLAG_ZSTD: Final = 0x200
SYS_FLAG_ZLIB: Final = 0x300
SYS_FLAG_COMPRESSED_ZLIB: Final = SYS_FLAG_COMPRESSED | SYS_FLAG_ZLIB

MAGIC_V1: Final = -626843481
MAGIC_V2: Final = -626843477

TOPIC_LENGTH_MAX: Final = 127
GROUP_LENGTH_MAX: Final = 255
PROPERTIES_BYTES_MAX: Final = 32767
"""The record's length field of the properties has 16 bits, signed in Java."""
BODY_BYTES_MAX: Final = 4 * 1024 * 1024
_LEGAL: Final = re.compile(r"[%|a-zA-Z0-9_-]+")


def java_hash(text: str) -> int:
    """Java's `String.hashCode()`: a signed 32-bit number over the UTF-16 units."""
    value = 0
    if text.isascii():
        for unit in text.encode("ascii"):
            value = (value * 31 + unit) & 0xFFFFFFFF
    else:
        encoded = text.encode("utf-16-be", "surrogatepass")
        for (unit,) in struct.iter_unpack(">H", encoded):
            value = (value * 31 + unit) & 0xFFFFFFFF
    return value - 0x100000000 if value & 0x80000000 else value


def check_topic(topic: str) -> None:
    """ValueError when a name cannot be a topic's."""
    if not topic.strip():
        raise ValueError("the topic is blank")
    if len(topic) > (255 if topic.startswith((RETRY_TOPIC_PREFIX, DLQ_TOPIC_PREFIX)) else TOPIC_LENGTH_MAX):
        raise ValueError(f"the topic {topic!r} is longer than {TOPIC_LENGTH_MAX} characters")
    if not _LEGAL.fullmatch(topic):
        raise ValueError(f"the topic {topic!r} has characters other than {_LEGAL.pattern}")


def check_group(group: str) -> None:
    """ValueError when a name cannot be a group's."""
    if not group.strip():
        raise ValueError("the group is blank")
    if len(group) > GROUP_LENGTH_MAX:
        raise ValueError(f"the group {group!r} is longer than {GROUP_LENGTH_MAX} characters")
    if not _LEGAL.fullmatch(group):
        raise ValueError(f"the group {group!r} has characters other than {_LEGAL.pattern}")


def parse_properties(text: str) -> dict[str, str]:
    """Property text → a dictionary, in order; of a name that comes twice the last value counts."""
    properties = {}
    for pair in text.split(VALUE_END):
        name, separator, value = pair.partition(NAME_END)
        if separator:
            properties[name] = value
    return properties


def format_properties(properties: dict[str, str]) -> str:
    """A dictionary → property text. ValueError for names and values that hold a separator."""
    text = "".join([f"{name}{NAME_END}{value}{VALUE_END}" for name, value in properties.items()])
    if text.count(NAME_END) != len(properties) or text.count(VALUE_END) != len(properties):
        raise ValueError("property names and values must not hold the characters \\x01 and \\x02")
    return text


class Labels:
    """What the properties of a message say about it, before it was sent and after."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def properties(self) -> dict[str, str]:
            """All properties by name."""

    @property
    def tag(self) -> str:
        """The tag; empty when there is none."""
        return self.properties.get(PROPERTY_TAGS, "")

    tags = tag

    @property
    def keys(self) -> list[str]:
        """The keys under which the message is indexed."""
        return self.properties.get(PROPERTY_KEYS, "").split()

    @property
    def unique_id(self) -> str:
        """The id its producer gave it (32 hex digits); else ""."""
        return self.properties.get(PROPERTY_UNIQUE_ID, "")


class Message(Labels):
    """What a producer sends.

    `keys` are indexed: `mqadmin queryMsgByKey` finds the message by each. `delay_level`: 1 to 18 (1 s to 2 h).
    `deliver_at_ms`: a point in time, milliseconds since 1970. `flag` is the application's own number.
    """

    __slots__ = ("batch_ids", "body", "flag", "properties", "topic")

    def __init__(
        self,
        topic: str,
        body: bytes | str = b"",
        *,
        tag: str = "",
        keys: str | Iterable[str] = (),
        properties: dict[str, str] | None = None,
        flag: int = 0,
        delay_level: int = 0,
        deliver_at_ms: int = 0,
        sharding_key: str = "",
    ) -> None:
        if isinstance(body, str):
            body = body.encode()
        elif not isinstance(body, bytes | bytearray | memoryview):
            raise TypeError(f"the body must be bytes or str, not {type(body).__name__}")
        self.topic = topic
        self.body = bytes(body)
        self.properties: dict[str, str] = dict(properties) if properties else {}
        self.flag = flag
        self.batch_ids: tuple[str, ...] = ()
        """The ids of the messages that this one carries, if it is a batch."""
        if tag:
            self.properties[PROPERTY_TAGS] = tag
        joined = keys if isinstance(keys, str) else " ".join(keys)
        if joined:
            self.properties[PROPERTY_KEYS] = joined
        if delay_level:
            self.properties[PROPERTY_DELAY_TIME_LEVEL] = str(delay_level)
        if deliver_at_ms:
            self.properties[PROPERTY_TIMER_DELIVER_MS] = str(deliver_at_ms)
        if sharding_key:
            self.properties[PROPERTY_SHARDING_KEY] = sharding_key

    @property
    def is_delayed(self) -> bool:
        """It is to be delivered later."""
        properties = self.properties
        return (
            properties.get(PROPERTY_DELAY_TIME_LEVEL, "0") != "0"
            or PROPERTY_TIMER_DELAY_SEC in properties
            or PROPERTY_TIMER_DELAY_MS in properties
            or PROPERTY_TIMER_DELIVER_MS in properties
        )

    def give_unique_id(self) -> str:
        """Gives it an id if it has none, and returns it."""
        unique_id = self.properties.get(PROPERTY_UNIQUE_ID)
        if not unique_id:
            unique_id = self.properties[PROPERTY_UNIQUE_ID] = new_unique_id()
        return unique_id

    def check(self, body_bytes_max: int = BODY_BYTES_MAX) -> None:
        """ValueError when no broker would take it: topic, body, properties."""
        check_topic(self.topic)
        if not self.body:
            raise ValueError("the message has no body")
        if len(self.body) > body_bytes_max:
            raise ValueError(f"the body has {len(self.body)} bytes, more than the {body_bytes_max} allowed")

    def encode_properties(self) -> str:
        """Property text, with WAIT as every official client sends it. ValueError when it cannot be stored."""
        self.properties.setdefault(PROPERTY_WAIT, "true")
        text = format_properties(self.properties)
        if len(text) * 4 > PROPERTIES_BYTES_MAX and len(text.encode()) > PROPERTIES_BYTES_MAX:
            raise ValueError(f"the properties have more than {PROPERTIES_BYTES_MAX} bytes")
        return text

    def __repr__(self) -> str:
        return f"<Message {self.topic} {len(self.body)} bytes {self.properties!r}>"


class MessageExt(Labels):
    """A message as it was stored. `body` is what the producer gave (decompressed, if it can be); hosts are `ip:port`.

    `topic` and `reconsume_times` are what the consumer sees: of a retried message the original topic.
    `broker_name` is where it was pulled from.
    """

    __slots__ = (
        "_properties",
        "_text",
        "body",
        "body_crc",
        "born_host",
        "born_timestamp",
        "broker_name",
        "commit_log_offset",
        "flag",
        "prepared_transaction_offset",
        "queue_id",
        "queue_offset",
        "reconsume_times",
        "store_host",
        "store_size",
        "store_timestamp",
        "sys_flag",
        "topic",
    )

    body: bytes
    body_crc: int
    born_host: str
    born_timestamp: int
    broker_name: str
    commit_log_offset: int
    flag: int
    prepared_transaction_offset: int
    queue_id: int
    queue_offset: int
    reconsume_times: int
    store_host: str
    store_size: int
    store_timestamp: int
    sys_flag: int
    topic: str
    _text: str
    _properties: dict[str, str] | None

    @property
    def properties(self) -> dict[str, str]:
        """All properties; parsed at the first use."""
        properties = self._properties
        if properties is None:
            properties = self._properties = parse_properties(self._text)
        return properties

    @property
    def offset_message_id(self) -> str:
        """Where it lies: hex of the broker's address and the log position. `mqadmin queryMsgById` takes it."""
        return offset_message_id(self.store_host, self.commit_log_offset)

    @property
    def message_id(self) -> str:
        """The producer's id, or the offset id for a message without one: what other clients call msgId."""
        return self.unique_id or self.offset_message_id

    def __repr__(self) -> str:
        return (
            f"<MessageExt {self.topic} queue={self.queue_id} offset={self.queue_offset} {len(self.body)} bytes"
            f" {self.properties!r}>"
        )


_HEAD: Final = struct.Struct(">iiiiiqqiq")
_REST: Final = struct.Struct(">iq")
_HOST_V4: Final = struct.Struct(">4BI")
_RECORD_V4: Final = struct.Struct(">iiiiiqqiq8sq8siqi")
"""All of a version 1 record with IPv4 hosts in front of the body: 88 bytes."""


def decode_records(
    data: bytes, *, broker_name: str = "", decompress: bool = True, check_crc: bool = False
) -> list[MessageExt]:
    """The records in `data`, one behind the other. A tail that is no whole record ends the list.

    A body that cannot be decompressed is handed out as it was stored, with a warning: one bad message must not keep the
    others from those who read them. ValueError when a record's lengths do not fit, or a body (`check_crc`) is not what
    was stored.
    """
    messages = []
    at, end = 0, len(data)
    hosts: dict[bytes, str] = {}
    while at + 88 <= end:
        message = MessageExt.__new__(MessageExt)
        size = int.from_bytes(data[at : at + 4], "big", signed=True)
        if size <= 0 or at + size > end:
            break
        (
            _, magic, crc, message.queue_id, message.flag, message.queue_offset, message.commit_log_offset, sys_flag,
            message.born_timestamp, born, message.store_timestamp, store, message.reconsume_times,
            message.prepared_transaction_offset, body_length,
        ) = _RECORD_V4.unpack_from(data, at)  # fmt: skip
        if magic not in (MAGIC_V1, MAGIC_V2):
            break
        long_hosts = (sys_flag & (SYS_FLAG_BORN_HOST_V6 | SYS_FLAG_STORE_HOST_V6)).bit_count()
        if size < 91 + 12 * long_hosts:
            raise ValueError(f"a record of {size} bytes is too short to be one")
        place = at + 88
        if long_hosts:
            place, born, store, body_length = _long_hosts(data, at, sys_flag, message)
        born_host = hosts.get(born)
        if born_host is None:
            born_host = hosts[born] = _host(born)
        store_host = hosts.get(store)
        if store_host is None:
            store_host = hosts[store] = _host(store)
        message.born_host, message.store_host = born_host, store_host
        message.store_size, message.body_crc, message.sys_flag = size, crc, sys_flag
        if body_length < 0 or place + body_length + 3 > at + size:
            raise ValueError("a record whose body is longer than the record")
        body = data[place : place + body_length]
        place += body_length
        if check_crc and crc and binascii.crc32(body) & 0x7FFFFFFF != crc:
            raise ValueError(f"the body at {message.commit_log_offset} is damaged: its checksum differs")
        if sys_flag & SYS_FLAG_COMPRESSED and decompress:
            try:
                body = decompress_body(body, sys_flag)
            except ValueError as error:
                _complaints.warn("decompress", "message at %d: %s", message.commit_log_offset, error)
        message.body = body
        if magic == MAGIC_V2:
            length = int.from_bytes(data[place : place + 2], "big")
            place += 2
        else:
            length = data[place]
            place += 1
        message.topic = data[place : place + length].decode("utf-8", "replace")
        place += length
        length = int.from_bytes(data[place : place + 2], "big")
        place += 2
        if place + length > at + size:
            raise ValueError("a record whose topic or properties are longer than the record")
        message._text = data[place : place + length].decode("utf-8", "replace")
        message._properties = None
        message.broker_name = broker_name
        messages.append(message)
        at += size
    return messages


def any_compressed(data: bytes) -> bool:
    """Whether any of the records in `data` is compressed."""
    at, end = 0, len(data)
    while at + 88 <= end:
        size = int.from_bytes(data[at : at + 4], "big", signed=True)
        if size <= 0:
            break
        if data[at + 39] & SYS_FLAG_COMPRESSED:  # the last byte of the system flag
            return True
        at += size
    return False


def _long_hosts(data: bytes, at: int, sys_flag: int, message: MessageExt) -> tuple[int, bytes, bytes, int]:
    """The fields behind the born time when a host is IPv6: place of the body, both hosts, body length."""
    place = at + _HEAD.size
    born_bytes = 20 if sys_flag & SYS_FLAG_BORN_HOST_V6 else 8
    store_bytes = 20 if sys_flag & SYS_FLAG_STORE_HOST_V6 else 8
    born = data[place : place + born_bytes]
    place += born_bytes
    message.store_timestamp = int.from_bytes(data[place : place + 8], "big", signed=True)
    place += 8
    store = data[place : place + store_bytes]
    place += store_bytes
    message.reconsume_times, message.prepared_transaction_offset = _REST.unpack_from(data, place)
    place += _REST.size
    return place + 4, born, store, int.from_bytes(data[place : place + 4], "big")


def _host(data: bytes) -> str:
    if len(data) == 8:
        a, b, c, d, port = _HOST_V4.unpack(data)
        return f"{a}.{b}.{c}.{d}:{port}"
    return f"[{ipaddress.IPv6Address(data[:16])}]:{int.from_bytes(data[16:20], 'big')}"


def compress_body(body: bytes, kind: int = SYS_FLAG_ZLIB, level: int = 5) -> bytes:
    """Compresses as official clients do: `kind` is SYS_FLAG_ZLIB, SYS_FLAG_LZ4 (a frame) or SYS_FLAG_ZSTD."""
    if kind == SYS_FLAG_LZ4:
        return bytes(lz4.frame.compress(body))
    if kind == SYS_FLAG_ZSTD:
        return zstandard.ZstdCompressor(level).compress(body)
    return zlib.compress(body, level)


def decompress_body(body: bytes, sys_flag: int, bytes_max: int = 64 * 1024 * 1024) -> bytes:
    """What the producer gave. Without a type (clients before 4.9.4) it is zlib. ValueError when it cannot be read.

    `bytes_max` bounds what a few hostile bytes can unfold to.
    """
    kind = sys_flag & SYS_FLAG_COMPRESSION_TYPE
    try:
        if kind == SYS_FLAG_LZ4:
            out = lz4.frame.LZ4FrameDecompressor().decompress(body, bytes_max + 1)
        elif kind == SYS_FLAG_ZSTD:
            with zstandard.ZstdDecompressor().stream_reader(body) as reader:
                out = reader.read(bytes_max + 1)
        else:
            out = zlib.decompressobj().decompress(body, bytes_max + 1)
    except (RuntimeError, zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"the body cannot be decompressed: {error}") from None
    if len(out) > bytes_max:
        raise ValueError(f"the body unfolds to more than {bytes_max} bytes")
    return bytes(out)


# Batches: one request with several messages, each `size, magic, crc, flag, body, properties`.

_BATCH_HEAD: Final = struct.Struct(">iiiii")


def batch_of(messages: Sequence[Message]) -> Message:
    """One message that carries several; all of one topic, none delayed. Each gets its unique id. ValueError."""
    if not messages:
        raise ValueError("a batch has no messages")
    topic = messages[0].topic
    pieces = []
    for message in messages:
        if message.topic != topic:
            raise ValueError(f"a batch has one topic, not {topic!r} and {message.topic!r}")
        if message.is_delayed:
            raise ValueError("delayed messages cannot be sent in a batch")
        if topic.startswith(RETRY_TOPIC_PREFIX):
            raise ValueError("a batch cannot go to a retry topic")
        message.check()
        message.give_unique_id()
        properties = message.encode_properties().encode()
        size = _BATCH_HEAD.size + len(message.body) + 2 + len(properties)
        pieces += [
            _BATCH_HEAD.pack(size, 0, 0, message.flag, len(message.body)),
            message.body,
            len(properties).to_bytes(2, "big"),
            properties,
        ]
    batch = Message(topic, b"".join(pieces))
    batch.batch_ids = tuple(message.unique_id for message in messages)
    batch.give_unique_id()
    batch.properties[PROPERTY_WAIT] = messages[0].properties[PROPERTY_WAIT]
    return batch


def decode_batch(data: bytes) -> list[tuple[int, bytes, str]]:
    """Flag, body and property text of each message in a batch. ValueError when it is cut."""
    messages = []
    at = 0
    while at < len(data):
        try:
            size, _, _, flag, length = _BATCH_HEAD.unpack_from(data, at)
        except struct.error:
            raise ValueError("a batch that ends inside of a message") from None
        place = at + _BATCH_HEAD.size
        properties_length = int.from_bytes(data[place + length : place + length + 2], "big")
        if length < 0 or size != _BATCH_HEAD.size + length + 2 + properties_length or at + size > len(data):
            raise ValueError("a batch whose lengths do not fit")
        text = data[place + length + 2 : at + size].decode("utf-8", "replace")
        messages.append((flag, data[place : place + length], text))
        at += size
    return messages


# Ids.


def offset_message_id(host: str, position: int) -> str:
    """Hex of address, port and log position: 32 digits for IPv4, 56 for IPv6."""
    name, _, port = host.rpartition(":")
    address = ipaddress.ip_address(name.strip("[]")).packed
    return (address + int(port).to_bytes(4, "big") + position.to_bytes(8, "big")).hex().upper()


def parse_offset_message_id(message_id: str) -> tuple[str, int]:
    """The host (`ip:port`) and log position in an offset message id. ValueError when it is none."""
    try:
        data = bytes.fromhex(message_id)
    except ValueError:
        raise ValueError(f"{message_id!r} is not an offset message id") from None
    if len(data) not in (16, 28):
        raise ValueError(f"{message_id!r} is not an offset message id: 32 or 56 hex digits")
    return _host(data[:-8]), int.from_bytes(data[-8:], "big")


class _UniqueIds:
    """Ids as official clients make them: address, process, a number of this process's start, time, counter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.renew()

    def renew(self) -> None:
        """Begins anew; the child of a fork must not continue its parent's numbers."""
        self._lock = threading.Lock()
        start = int.from_bytes(os.urandom(4), "big")
        process = (os.getpid() & 0xFFFF).to_bytes(2, "big")
        self._prefix = (_own_address() + process + start.to_bytes(4, "big")).hex().upper()
        self._counter = itertools.count(int.from_bytes(os.urandom(2), "big"))
        self._month_ends_s = 0.0
        self._month_began_s = 0.0

    def next(self) -> str:
        now = time.time()
        with self._lock:
            if not self._month_began_s <= now < self._month_ends_s:
                self._month(now)
            count = next(self._counter) & 0xFFFF
        since_ms = int((now - self._month_began_s) * 1000) & 0xFFFFFFFF
        return f"{self._prefix}{since_ms:08X}{count:04X}"

    def _month(self, now: float) -> None:
        local = time.localtime(now)
        year, month = local.tm_year, local.tm_mon
        self._month_began_s = time.mktime((year, month, 1, 0, 0, 0, 0, 0, -1))
        self._month_ends_s = time.mktime((year + month // 12, month % 12 + 1, 1, 0, 0, 0, 0, 0, -1))


def _own_address() -> bytes:
    """Four bytes that differ between hosts: the address that leads out, without sending anything."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            return socket.inet_aton(probe.getsockname()[0])
    except OSError:
        return socket.inet_aton("127.0.0.1")


_unique_ids = _UniqueIds()
os.register_at_fork(after_in_child=_unique_ids.renew)


def new_unique_id() -> str:
    """A new message id, 32 hex digits: unique over hosts, processes (forked ones too) and threads."""
    return _unique_ids.next()
