"""Lite topics (5.5)."""

from __future__ import annotations

from aerobee.protocol.bodies import Body
from aerobee.protocol.bodies.offsets import OffsetWrapper
from aerobee.protocol.bodies.topics import TopicOffset


class ClientGroup(Body):
    """A client and its group."""

    client_id: str | None = None
    group: str | None = None


class LiteLagInfo(Body):
    """How far a group is behind in one lite topic."""

    lite_topic: str | None = None
    lag_count: int = 0
    earliest_unconsumed_timestamp: int = -1


class GetBrokerLiteInfoResponseBody(Body):
    """GET_BROKER_LITE_INFO's answer."""

    store_type: str | None = None
    max_lmq_num: int = 0
    current_lmq_num: int = 0
    lite_subscription_count: int = 0
    order_info_count: int = 0
    cq_table_size: int = 0
    offset_table_size: int = 0
    event_map_size: int = 0
    topic_meta: dict[str, int] | None = None
    group_meta: dict[str, list[str]] | None = None


class GetParentTopicInfoResponseBody(Body):
    """GET_PARENT_TOPIC_INFO's answer."""

    topic: str | None = None
    ttl: int = 0
    groups: list[str] | None = None
    lmq_num: int = 0
    lite_topic_count: int = 0


class GetLiteTopicInfoResponseBody(Body):
    """GET_LITE_TOPIC_INFO's answer."""

    parent_topic: str | None = None
    lite_topic: str | None = None
    subscriber: list[ClientGroup] | None = None
    topic_offset: TopicOffset | None = None
    sharding_to_broker: bool = False


class GetLiteClientInfoResponseBody(Body):
    """GET_LITE_CLIENT_INFO's answer."""

    parent_topic: str | None = None
    group: str | None = None
    client_id: str | None = None
    last_access_time: int = 0
    last_consume_time: int = 0
    lite_topic_count: int = 0
    lite_topic_set: list[str] | None = None


class GetLiteGroupInfoResponseBody(Body):
    """GET_LITE_GROUP_INFO's answer."""

    group: str | None = None
    parent_topic: str | None = None
    lite_topic: str | None = None
    earliest_unconsumed_timestamp: int = -1
    total_lag_count: int = 0
    lite_topic_offset_wrapper: OffsetWrapper | None = None
    lag_count_top_k: list[LiteLagInfo] | None = None
    lag_timestamp_top_k: list[LiteLagInfo] | None = None


class OffsetOption(Body):
    """Where a lite subscription starts. `type`: POLICY, OFFSET, TAIL_N or TIMESTAMP."""

    type: str | None = None
    value: int = 0


class LiteSubscriptionDTO(Body):
    """What a client adds to or takes from its lite subscriptions."""

    action: str | None = None
    client_id: str | None = None
    group: str | None = None
    topic: str | None = None
    lite_topic_set: list[str] | None = None
    offset_option: OffsetOption | None = None
    version: int = 0


class LiteSubscriptionCtlRequestBody(Body):
    """LITE_SUBSCRIPTION_CTL's body."""

    subscription_set: list[LiteSubscriptionDTO] | None = None
