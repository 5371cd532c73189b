# ruff: noqa: RUF012 - msgspec gives each object its own copy of an empty default
"""Popping: acknowledging many at once, and who pops what."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType, field

from aerobee.errors import MalformedRequest
from aerobee.protocol.bodies import Body
from aerobee.protocol.fastjson import MessageQueue

BITS_MAX: Final = 1024
"""Messages in one `BatchAck`; a pop gives 32 at most."""
BIT_SET_LENGTH_MAX: Final = 1 << 16
"""Characters of its bit set; with a filter, the messages of a pop may lie far apart."""


class BatchAck(Body):
    """Acknowledges messages of one pop: bit n of `bit_set` stands for offset `start_offset` + n. Times in ms."""

    consumer_group: str | None = field(name="c", default=None)
    topic: str | None = field(name="t", default=None)
    retry: str | None = field(name="r", default=None)
    start_offset: int = field(name="so", default=0)
    queue_id: int = field(name="q", default=0)
    revive_queue_id: int = field(name="rq", default=0)
    pop_time: int = field(name="pt", default=0)
    invisible_time: int = field(name="it", default=0)
    bit_set: str | None = field(name="b", default=None)
    """Base64 of the bits, the lowest one first."""

    def offsets(self) -> list[int]:
        """The acknowledged offsets. Raises MalformedRequest."""
        text = self.bit_set or ""
        if len(text) > BIT_SET_LENGTH_MAX:
            raise MalformedRequest(f"BatchAck: field b is longer than {BIT_SET_LENGTH_MAX}")
        try:
            bits = int.from_bytes(base64.b64decode(text, validate=True), "little")
        except ValueError:
            raise MalformedRequest("BatchAck: field b is not base64") from None
        if bits.bit_count() > BITS_MAX:
            raise MalformedRequest(f"BatchAck: field b names more than {BITS_MAX} messages")
        out = []
        while bits:
            lowest = bits & -bits
            out.append(self.start_offset + lowest.bit_length() - 1)
            bits ^= lowest
        return out

    def set_offsets(self, offsets: Iterable[int]) -> None:
        """Sets the bits of these offsets; none may be smaller than `start_offset`."""
        bits = 0
        for offset in offsets:
            bits |= 1 << (offset - self.start_offset)
        self.bit_set = base64.b64encode(bits.to_bytes((bits.bit_length() + 7) // 8, "little")).decode()


class BatchAckMessageRequestBody(Body):
    """BATCH_ACK_MESSAGE's body."""

    broker_name: str | None = None
    acks: list[BatchAck] = []


class QueryAssignmentRequestBody(Body):
    """QUERY_ASSIGNMENT's body: which queues are mine?"""

    topic: str
    consumer_group: str
    message_model: str
    client_id: str = ""
    strategy_name: str | None = None


class MessageQueueAssignment(Body):
    """A queue, and whether to pull or to pop it."""

    message_queue: MessageQueue | None = None
    mode: str = "PULL"
    attachments: dict[str, str] | None = None


class QueryAssignmentResponseBody(Body):
    """QUERY_ASSIGNMENT's answer."""

    message_queue_assignments: list[MessageQueueAssignment] | None = None


class SetMessageRequestModeRequestBody(Body):
    """SET_MESSAGE_REQUEST_MODE's body. `mode`: PULL or POP."""

    topic: str = ""
    consumer_group: str = ""
    mode: str = "PULL"
    pop_share_queue_num: int = 0


class MessageRequestModeSerializeWrapper(Body):
    """The file `messageRequestMode.json`: topic → group → mode."""

    message_request_mode_map: dict[str, dict[str, SetMessageRequestModeRequestBody]] = {}


# What the revive log holds. Names are those in Apache's JSON, in the order in which Fastjson writes them.


class PopCheckPoint(msgspec.Struct, gc=False):
    """Tag `ck`: messages of one queue were given out. Message n is at offset `so` + `d[n]`; times in ms."""

    bm: int
    bn: str | None
    c: str
    d: list[int]
    it: int
    n: int
    pt: int
    q: int
    ro: int
    so: int
    sp: bool
    t: str
    rp: str | UnsetType | None = UNSET


class StoredPopCheckPoint(msgspec.Struct, gc=False):
    """A check point as somebody else may have written it: what is missing is nothing."""

    c: str | None = None
    t: str | None = None
    bm: int = 0
    bn: str | None = None
    d: list[int] | None = None
    it: int = 0
    n: int = 0
    pt: int = 0
    q: int = 0
    ro: int = 0
    so: int = 0
    sp: bool = False
    rp: str | None = None


class PopAck(msgspec.Struct, gc=False):
    """Tag `ack`: one message of a check point is done; tag `bAck`: those in `aol` are, `ao` is -1 then."""

    ao: int = -1
    aol: list[int] | UnsetType = UNSET
    bn: str | None = None
    c: str | None = None
    pt: int = 0
    q: int = 0
    so: int = 0
    t: str | None = None
