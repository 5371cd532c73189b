"""Headers of consumer groups: settings, members, subscriptions."""

from __future__ import annotations

from msgspec import field

from aerobee.protocol.headers import Header, Int32


class UnregisterClient(Header, frozen=True):
    """UNREGISTER_CLIENT: a member leaves."""

    client_id: str = field(name="clientID")
    producer_group: str | None = None
    consumer_group: str | None = None


class GetConsumerListByGroup(Header, frozen=True):
    """GET_CONSUMER_LIST_BY_GROUP: ids of the members."""

    consumer_group: str


class GetConsumerConnectionList(Header, frozen=True):
    """GET_CONSUMER_CONNECTION_LIST."""

    consumer_group: str


class GetProducerConnectionList(Header, frozen=True):
    """GET_PRODUCER_CONNECTION_LIST."""

    producer_group: str


class NotifyConsumerIdsChanged(Header, frozen=True):
    """NOTIFY_CONSUMER_IDS_CHANGED: a broker tells members to share the queues anew."""

    consumer_group: str


class GetAllSubscriptionGroup(Header, frozen=True):
    """GET_ALL_SUBSCRIPTIONGROUP_CONFIG. Old tools send no fields at all and get everything at once."""

    group_seq: Int32 | None = None
    data_version: str | None = None
    max_group_num: Int32 | None = None


class GetAllSubscriptionGroupReply(Header, frozen=True):
    """The answer to GetAllSubscriptionGroup."""

    total_group_num: Int32


class GetSubscriptionGroupConfig(Header, frozen=True):
    """GET_SUBSCRIPTIONGROUP_CONFIG."""

    group: str


class DeleteSubscriptionGroup(Header, frozen=True):
    """DELETE_SUBSCRIPTIONGROUP."""

    group_name: str
    clean_offset: bool = False


class UpdateGroupForbidden(Header, frozen=True):
    """UPDATE_AND_GET_GROUP_FORBIDDEN: may the group read the topic? None only asks."""

    group: str
    topic: str
    readable: bool | None = None


class QueryTopicsByConsumer(Header, frozen=True):
    """QUERY_TOPICS_BY_CONSUMER."""

    group: str


class QuerySubscriptionByConsumer(Header, frozen=True):
    """QUERY_SUBSCRIPTION_BY_CONSUMER."""

    group: str
    topic: str


class QueryTopicConsumeByWho(Header, frozen=True):
    """QUERY_TOPIC_CONSUME_BY_WHO: groups of a topic."""

    topic: str


class GetConsumeStats(Header, frozen=True):
    """GET_CONSUME_STATS: how far a group is behind. `topic_list` is joined by `;`."""

    consumer_group: str
    topic: str | None = None
    topic_list: str | None = None


class QueryConsumeTimeSpan(Header, frozen=True):
    """QUERY_CONSUME_TIME_SPAN."""

    topic: str
    group: str
