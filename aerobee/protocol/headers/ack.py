"""Headers of acknowledging popped messages: 200051, 200053, 200151."""

from __future__ import annotations

from aerobee.protocol.headers import Header, Int32, Int64, Milliseconds


class AckMessage(Header, frozen=True):
    """ACK_MESSAGE: one popped message is done. `extra_info` is the handle the pop gave."""

    consumer_group: str
    topic: str
    queue_id: Int32
    extra_info: str
    offset: Int64
    lite_topic: str | None = None


class ChangeInvisibleTime(Header, frozen=True):
    """CHANGE_MESSAGE_INVISIBLETIME: hide a popped message for `invisible_time` ms from now."""

    consumer_group: str
    topic: str
    queue_id: Int32
    extra_info: str
    offset: Int64
    invisible_time: Milliseconds
    lite_topic: str | None = None
    suspend: bool = False


class ChangeInvisibleTimeReply(Header, frozen=True):
    """The new handle's parts."""

    pop_time: Int64
    invisible_time: Int64
    revive_qid: Int32
