# ruff: noqa: RUF012 - msgspec gives each object its own copy of an empty default
"""Consumer groups: their settings and what they read."""

from __future__ import annotations

from typing import Final

from msgspec import field

from aerobee.protocol.bodies import Body
from aerobee.protocol.bodies.client import SubscriptionData
from aerobee.protocol.bodies.topics import DataVersion
from aerobee.protocol.headers import Int32, Int64

RETRY_DELAYS_MS: Final = (
    1_000, 5_000, 10_000, 30_000, 60_000, 120_000, 180_000, 240_000, 300_000, 360_000, 420_000,
    480_000, 540_000, 600_000, 1_200_000, 1_800_000, 3_600_000, 7_200_000,
)  # fmt: skip
"""How long a message waits before its first, second … repetition, unless the group says otherwise."""


class ExponentialRetryPolicy(Body):
    """Waits `initial` ms, then `multiplier` times longer each time, up to `max` ms."""

    initial: Int64 = 5_000
    max: Int64 = 7_200_000
    multiplier: Int64 = 2


class CustomizedRetryPolicy(Body):
    """Waits these times in ms, the last one again and again."""

    next: list[Int64] = field(default_factory=lambda: list(RETRY_DELAYS_MS))


class GroupRetryPolicy(Body):
    """How long a message waits before it is delivered again. `type`: CUSTOMIZED or EXPONENTIAL."""

    type: str = "CUSTOMIZED"
    exponential_retry_policy: ExponentialRetryPolicy | None = None
    customized_retry_policy: CustomizedRetryPolicy | None = None


class SimpleSubscriptionData(Body):
    """A subscription an operator fixed for a group."""

    topic: str = ""
    expression_type: str | None = None
    expression: str | None = None
    version: Int64 = 0


class SubscriptionGroupConfig(Body):
    """A consumer group's settings."""

    group_name: str = ""
    consume_enable: bool = True
    consume_from_min_enable: bool = True
    consume_broadcast_enable: bool = True
    consume_message_orderly: bool = False
    retry_queue_nums: Int32 = 1
    retry_max_times: Int32 = 16
    group_retry_policy: GroupRetryPolicy = field(default_factory=GroupRetryPolicy)
    broker_id: Int64 = 0
    which_broker_when_consume_slowly: Int64 = 1
    notify_consumer_ids_changed_enable: bool = True
    group_sys_flag: Int32 = 0
    consume_timeout_minute: Int32 = 15
    subscription_data_set: list[SimpleSubscriptionData] | None = None
    attributes: dict[str, str] = {}


class SubscriptionGroupWrapper(Body):
    """A broker's groups: the file `subscriptionGroup.json`, and GET_ALL_SUBSCRIPTIONGROUP_CONFIG's answer."""

    subscription_group_table: dict[str, SubscriptionGroupConfig] = {}
    forbidden_table: dict[str, dict[str, int]] = {}
    data_version: DataVersion = field(default_factory=DataVersion)


class SubscriptionGroupList(Body):
    """UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST's body."""

    group_config_list: list[SubscriptionGroupConfig]


class GroupForbidden(Body):
    """UPDATE_AND_GET_GROUP_FORBIDDEN's answer."""

    topic: str | None = None
    group: str | None = None
    readable: bool | None = None


class GroupList(Body):
    """QUERY_TOPIC_CONSUME_BY_WHO's answer."""

    group_list: list[str] = []


class QuerySubscriptionResponseBody(Body):
    """QUERY_SUBSCRIPTION_BY_CONSUMER's answer."""

    subscription_data: SubscriptionData | None = None
    group: str | None = None
    topic: str | None = None
