"""Headers of what name servers are asked: brokers come and go, routes, topics, the KV configuration."""

from __future__ import annotations

from aerobee.protocol.headers import Header, Int32, Int64


class PutKVConfig(Header, frozen=True):
    """PUT_KV_CONFIG."""

    namespace: str
    key: str
    value: str


class GetKVConfig(Header, frozen=True):
    """GET_KV_CONFIG."""

    namespace: str
    key: str


class GetKVConfigReply(Header, frozen=True):
    """The answer to GetKVConfig."""

    value: str | None = None


class DeleteKVConfig(Header, frozen=True):
    """DELETE_KV_CONFIG."""

    namespace: str
    key: str


class GetKVListByNamespace(Header, frozen=True):
    """GET_KVLIST_BY_NAMESPACE."""

    namespace: str


class RegisterBroker(Header, frozen=True):
    """REGISTER_BROKER: a broker announces itself and its topics (body: RegisterBrokerBody)."""

    broker_name: str
    broker_addr: str
    cluster_name: str
    broker_id: Int64
    ha_server_addr: str | None = None
    heartbeat_timeout_millis: Int64 | None = None
    enable_acting_master: bool | None = None
    compressed: bool = False
    body_crc32: Int32 = 0


class RegisterBrokerReply(Header, frozen=True):
    """Where the master of a replica is."""

    ha_server_addr: str | None = None
    master_addr: str | None = None


class UnRegisterBroker(Header, frozen=True):
    """UNREGISTER_BROKER."""

    broker_name: str
    broker_addr: str
    cluster_name: str
    broker_id: Int64


class GetRouteInfo(Header, frozen=True):
    """GET_ROUTEINFO_BY_TOPIC."""

    topic: str
    accept_standard_json_only: bool | None = None


class DeleteTopicFromNamesrv(Header, frozen=True):
    """DELETE_TOPIC_IN_NAMESRV."""

    topic: str
    cluster_name: str | None = None


class RegisterTopic(Header, frozen=True):
    """REGISTER_TOPIC_IN_NAMESRV (body: TopicRouteData)."""

    topic: str


class GetTopicsByCluster(Header, frozen=True):
    """GET_TOPICS_BY_CLUSTER."""

    cluster: str


class QueryDataVersion(Header, frozen=True):
    """QUERY_DATA_VERSION (body: DataVersion): has a broker to register again?"""

    broker_name: str
    broker_addr: str
    cluster_name: str
    broker_id: Int64


class QueryDataVersionReply(Header, frozen=True):
    """The answer to QueryDataVersion."""

    changed: bool


class WipeWritePermOfBroker(Header, frozen=True):
    """WIPE_WRITE_PERM_OF_BROKER."""

    broker_name: str


class WipeWritePermOfBrokerReply(Header, frozen=True):
    """The answer to WipeWritePermOfBroker."""

    wipe_topic_count: Int32


class AddWritePermOfBroker(Header, frozen=True):
    """ADD_WRITE_PERM_OF_BROKER."""

    broker_name: str


class AddWritePermOfBrokerReply(Header, frozen=True):
    """The answer to AddWritePermOfBroker."""

    add_topic_count: Int32


class GetBrokerMemberGroup(Header, frozen=True):
    """GET_BROKER_MEMBER_GROUP."""

    cluster_name: str
    broker_name: str


class BrokerHeartbeat(Header, frozen=True):
    """BROKER_HEARTBEAT: a sign of life without topics."""

    cluster_name: str
    broker_addr: str
    broker_name: str
    broker_id: Int64 | None = None
    epoch: Int32 | None = None
    max_offset: Int64 | None = None
    confirm_offset: Int64 | None = None
    heartbeat_timeout_mills: Int64 | None = None
    election_priority: Int32 | None = None
