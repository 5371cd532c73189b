"""What the client hands back, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from aerobee.protocol.message import MessageExt, MessageQueue


class SendStatus(Enum):
    """How safe a sent message is. All of these mean: it is stored and will be delivered."""

    SEND_OK = 0
    FLUSH_DISK_TIMEOUT = 10
    """Stored, but the disk did not confirm in time (synchronous flush)."""
    SLAVE_NOT_AVAILABLE = 11
    """Stored on the master; no replica was in reach (synchronous replication)."""
    FLUSH_SLAVE_TIMEOUT = 12
    """Stored on the master; the replica did not confirm in time."""


SEND_STATUS_BY_CODE = {status.value: status for status in SendStatus}


@dataclass(slots=True, frozen=True)
class SendResult:
    """Where a message went."""

    status: SendStatus
    message_id: str
    """The unique id the client gave it (32 hex digits); of a batch: all of them, joined by commas."""
    offset_message_id: str
    """The id that names broker and position; of a batch: all of them, joined by commas."""
    queue: MessageQueue
    queue_offset: int
    """Offset in the queue; of a batch: that of its first message."""
    transaction_id: str = ""

    @property
    def message_ids(self) -> list[str]:
        """The unique ids, one a message."""
        return self.message_id.split(",")


class PullStatus(Enum):
    """What a pull brought."""

    FOUND = 0
    NO_NEW_MESSAGE = 19
    NO_MATCHED_MESSAGE = 20
    OFFSET_ILLEGAL = 21


PULL_STATUS_BY_CODE = {status.value: status for status in PullStatus}


@dataclass(slots=True, frozen=True)
class PullResult:
    """One answer to a pull. `messages` holds what the tag filter lets through; `next_offset` is where to go on."""

    status: PullStatus
    next_offset: int
    min_offset: int
    max_offset: int
    messages: Sequence[MessageExt] = ()
    suggested_broker_id: int = 0
    """The broker of the set that the broker would like to be asked next; 0 is the master."""


class ConsumeFrom(Enum):
    """Where a group starts in a queue for which the broker has no offset of it. Values are what heartbeats say."""

    LAST_OFFSET = "CONSUME_FROM_LAST_OFFSET"
    """With the next message that arrives."""
    FIRST_OFFSET = "CONSUME_FROM_FIRST_OFFSET"
    """With the oldest message still kept."""
    TIMESTAMP = "CONSUME_FROM_TIMESTAMP"
    """With the first message stored at or after a given time."""


class MessageModel(Enum):
    """Whether the members of a group share the messages or each gets all of them."""

    CLUSTERING = "CLUSTERING"
    BROADCASTING = "BROADCASTING"


class Retry(Exception):  # an instruction to the consumer, not a failure of it
    """Raised by a handler: deliver again later, without the error being logged.

    `delay_level` 0 lets the broker choose (10 s, 30 s, 1 min … with each attempt), 1 to 18 are RocketMQ's delay
    levels, below 0 goes to the dead letter queue at once. `messages` names the ones of a batch that failed (all when
    left out).
    """

    def __init__(self, reason: str = "", *, delay_level: int = 0, messages: Sequence[MessageExt] | None = None) -> None:
        super().__init__(reason)
        self.delay_level = delay_level
        self.messages = messages
