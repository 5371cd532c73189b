"""Headers of lite topics (5.5): 200070 to 200079."""

from __future__ import annotations

from aerobee.protocol.headers import Header, Int32, Int64


class PopLiteMessage(Header, frozen=True):
    """POP_LITE_MESSAGE. Times in ms."""

    client_id: str
    consumer_group: str
    topic: str
    max_msg_num: Int32
    invisible_time: Int64
    poll_time: Int64
    born_time: Int64
    attempt_id: str | None = None


class PopLiteMessageReply(Header, frozen=True):
    """The answer to PopLiteMessage."""

    pop_time: Int64
    invisible_time: Int64
    revive_qid: Int32
    start_offset_info: str | None = None
    msg_offset_info: str | None = None
    order_count_info: str | None = None


class NotifyUnsubscribeLite(Header, frozen=True):
    """NOTIFY_UNSUBSCRIBE_LITE: a broker took a subscription away."""

    lite_topic: str
    consumer_group: str
    client_id: str


class GetParentTopicInfo(Header, frozen=True):
    """GET_PARENT_TOPIC_INFO."""

    topic: str


class GetLiteTopicInfo(Header, frozen=True):
    """GET_LITE_TOPIC_INFO."""

    parent_topic: str | None = None
    lite_topic: str | None = None


class GetLiteClientInfo(Header, frozen=True):
    """GET_LITE_CLIENT_INFO."""

    parent_topic: str | None = None
    group: str | None = None
    client_id: str | None = None
    max_count: Int32 = 1000


class GetLiteGroupInfo(Header, frozen=True):
    """GET_LITE_GROUP_INFO."""

    group: str
    lite_topic: str | None = None
    top_k: Int32 = 0


class TriggerLiteDispatch(Header, frozen=True):
    """TRIGGER_LITE_DISPATCH."""

    group: str
    client_id: str | None = None
