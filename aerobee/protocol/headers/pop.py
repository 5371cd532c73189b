"""Headers of popping: the broker chooses the queue and hides what it gave. Times in ms."""

from __future__ import annotations

from aerobee.protocol.headers import Header, Int32, Int64, Milliseconds


class PopMessage(Header, frozen=True):
    """POP_MESSAGE. `init_mode` 0: a new group starts at the beginning, 1: at the end."""

    consumer_group: str
    topic: str
    queue_id: Int32
    max_msg_nums: Int32
    invisible_time: Milliseconds
    poll_time: Int64
    born_time: Int64
    init_mode: Int32
    exp_type: str | None = None
    exp: str | None = None
    order: bool = False
    attempt_id: str | None = None


class PopMessageReply(Header, frozen=True):
    """The answer to PopMessage."""

    pop_time: Int64
    invisible_time: Int64
    revive_qid: Int32
    rest_num: Int64
    start_offset_info: str | None = None
    msg_offset_info: str | None = None
    order_count_info: str | None = None


class PeekMessage(Header, frozen=True):
    """PEEK_MESSAGE: look without taking."""

    topic: str
    queue_id: Int32
    max_msg_nums: Int32
    consumer_group: str


class Notification(Header, frozen=True):
    """NOTIFICATION: waits until there is a message."""

    consumer_group: str
    topic: str
    queue_id: Int32
    poll_time: Int64
    born_time: Int64
    order: bool = False
    attempt_id: str | None = None
    exp_type: str | None = None
    exp: str | None = None


class NotificationReply(Header, frozen=True):
    """The answer to Notification."""

    has_msg: bool = False
    polling_full: bool = False


class PollingInfo(Header, frozen=True):
    """POLLING_INFO: how many wait."""

    consumer_group: str
    topic: str
    queue_id: Int32


class PollingInfoReply(Header, frozen=True):
    """The answer to PollingInfo."""

    polling_num: Int32
