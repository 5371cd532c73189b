"""Headers of looking for messages: by key, by id."""

from __future__ import annotations

from aerobee.protocol.headers import Header, Int32, Int64


class QueryMessage(Header, frozen=True):
    """QUERY_MESSAGE.

    `index_type` None, K (key), U (unique key) or T (tag); `last_key` continues an earlier answer. Whether `key` is a
    unique key, old tools say in the ext field `_UNIQUE_KEY_QUERY`.
    """

    topic: str
    key: str
    max_num: Int32
    begin_timestamp: Int64
    end_timestamp: Int64
    index_type: str | None = None
    last_key: str | None = None


class QueryMessageReply(Header, frozen=True):
    """The answer to QueryMessage."""

    index_last_update_timestamp: Int64
    index_last_update_phyoffset: Int64


class ViewMessage(Header, frozen=True):
    """VIEW_MESSAGE_BY_ID: the record at a position of the log."""

    offset: Int64
    topic: str | None = None
