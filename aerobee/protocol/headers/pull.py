"""Headers of pulling: PULL_MESSAGE and LITE_PULL_MESSAGE."""

from __future__ import annotations

from aerobee.protocol.headers import Header, Int32, Int64


class PullMessage(Header, frozen=True):
    """Messages of one queue from `queue_offset` on.

    `sys_flag`: bits 1 commit `commit_offset`, 2 wait up to `suspend_timeout_millis`, 4 `subscription` is given, 8
    class filter, 16 lite pull.
    """

    consumer_group: str
    topic: str
    queue_id: Int32
    queue_offset: Int64
    max_msg_nums: Int32
    sys_flag: Int32
    commit_offset: Int64
    suspend_timeout_millis: Int64
    sub_version: Int64
    subscription: str | None = None
    expression_type: str | None = None
    max_msg_bytes: Int32 | None = None
    request_source: Int32 | None = None
    proxy_froward_client_id: str | None = None
    lite_topic: str | None = None


class PullMessageReply(Header, frozen=True):
    """The answer to PullMessage."""

    suggest_which_broker_id: Int64
    next_begin_offset: Int64
    min_offset: Int64
    max_offset: Int64
    offset_delta: Int64 | None = None
    topic_sys_flag: Int32 | None = None
    group_sys_flag: Int32 | None = None
    forbidden_type: Int32 | None = None
