"""Headers of offsets: what a group consumed, where a queue begins and ends, where a time is."""

from __future__ import annotations

from aerobee.protocol.headers import Header, Int32, Int64


class QueryConsumerOffset(Header, frozen=True):
    """QUERY_CONSUMER_OFFSET."""

    consumer_group: str
    topic: str
    queue_id: Int32
    set_zero_if_not_found: bool | None = None


class QueryConsumerOffsetReply(Header, frozen=True):
    """The answer to QueryConsumerOffset."""

    offset: Int64


class UpdateConsumerOffset(Header, frozen=True):
    """UPDATE_CONSUMER_OFFSET: the group continues at `commit_offset`."""

    consumer_group: str
    topic: str
    queue_id: Int32
    commit_offset: Int64


class SearchOffset(Header, frozen=True):
    """SEARCH_OFFSET_BY_TIMESTAMP.

    `boundary_type` is LOWER (also None) or UPPER: which of several messages of that ms.
    """

    topic: str
    queue_id: Int32
    timestamp: Int64
    boundary_type: str | None = None
    lite_topic: str | None = None


class SearchOffsetReply(Header, frozen=True):
    """The answer to SearchOffset."""

    offset: Int64


class GetMaxOffset(Header, frozen=True):
    """GET_MAX_OFFSET: the offset that the next message will get."""

    topic: str
    queue_id: Int32
    committed: bool = True


class GetMaxOffsetReply(Header, frozen=True):
    """The answer to GetMaxOffset."""

    offset: Int64


class GetMinOffset(Header, frozen=True):
    """GET_MIN_OFFSET: the first offset still kept."""

    topic: str
    queue_id: Int32


class GetMinOffsetReply(Header, frozen=True):
    """The answer to GetMinOffset."""

    offset: Int64


class GetEarliestMsgStoretime(Header, frozen=True):
    """GET_EARLIEST_MSG_STORETIME: when the first message still kept was stored, ms."""

    topic: str
    queue_id: Int32


class GetEarliestMsgStoretimeReply(Header, frozen=True):
    """The answer to GetEarliestMsgStoretime."""

    timestamp: Int64


class ResetOffset(Header, frozen=True):
    """INVOKE_BROKER_TO_RESET_OFFSET and RESET_CONSUMER_CLIENT_OFFSET.

    `queue_id` -1: all; `timestamp` -1: to the end.
    """

    group: str
    topic: str
    timestamp: Int64
    is_force: bool = False
    queue_id: Int32 = -1
    offset: Int64 | None = None


class CloneGroupOffset(Header, frozen=True):
    """CLONE_GROUP_OFFSET: `dest_group` starts where `src_group` is."""

    src_group: str
    dest_group: str
    topic: str | None = None
    offline: bool = False


class QueryCorrectionOffset(Header, frozen=True):
    """QUERY_CORRECTION_OFFSET."""

    compare_group: str
    topic: str
    filter_groups: str | None = None
