# ruff: noqa: RUF012 - msgspec gives each object its own copy of an empty default
"""Administration: tables, statistics, replication, controllers."""

from __future__ import annotations

from msgspec import field

from aerobee.protocol.bodies import Body
from aerobee.protocol.bodies.client import SubscriptionData
from aerobee.protocol.bodies.route import BrokerMemberGroup


class KVTable(Body):
    """Names and values: a namespace of the KV configuration, or a broker's run-time numbers."""

    table: dict[str, str] = {}


class BrokerStatsItem(Body):
    """A statistic over a time: sum, rate a second, average a call."""

    sum: int = 0
    tps: float = 0.0
    avgpt: float = 0.0


class BrokerStatsData(Body):
    """VIEW_BROKER_STATS_DATA's answer."""

    stats_minute: BrokerStatsItem = field(default_factory=BrokerStatsItem)
    stats_hour: BrokerStatsItem = field(default_factory=BrokerStatsItem)
    stats_day: BrokerStatsItem = field(default_factory=BrokerStatsItem)


class ConsumeQueueData(Body):
    """One entry of a queue. `eval`: the group's filter lets it through; `physic_offset`: position in the log."""

    physic_offset: int = 0
    physic_size: int = 0
    tags_code: int = 0
    extend_data_json: str | None = None
    bit_map: str | None = None
    eval: bool = False
    msg: str | None = None


class QueryConsumeQueueResponseBody(Body):
    """QUERY_CONSUME_QUEUE's answer."""

    subscription_data: SubscriptionData | None = None
    filter_data: str | None = None
    queue_data: list[ConsumeQueueData] = []
    max_queue_index: int = 0
    min_queue_index: int = 0


class HAConnectionRuntimeInfo(Body):
    """A replica, as its master sees it."""

    addr: str | None = None
    slave_ack_offset: int = 0
    diff: int = 0
    in_sync: bool = False
    transferred_byte_in_second: int = 0
    transfer_from_where: int = 0


class HAClientRuntimeInfo(Body):
    """A replica, as it sees itself."""

    master_addr: str | None = None
    transferred_byte_in_second: int = 0
    max_offset: int = 0
    last_read_timestamp: int = 0
    last_write_timestamp: int = 0
    master_flush_offset: int = 0


class HARuntimeInfo(Body):
    """GET_BROKER_HA_STATUS's answer."""

    master: bool = False
    master_commit_log_max_offset: int = 0
    in_sync_slave_nums: int = 0
    ha_connection_info: list[HAConnectionRuntimeInfo] = []
    ha_client_runtime_info: HAClientRuntimeInfo = field(default_factory=HAClientRuntimeInfo)


class EpochEntry(Body):
    """A master's term: from which position of the log to which."""

    epoch: int = 0
    start_offset: int = 0
    end_offset: int = 9223372036854775807


class EpochEntryCache(Body):
    """GET_BROKER_EPOCH_CACHE's answer."""

    cluster_name: str | None = None
    broker_name: str | None = None
    broker_id: int = 0
    epoch_list: list[EpochEntry] = []
    max_offset: int = 0


class SyncStateSet(Body):
    """Ids of the members that have everything."""

    sync_state_set: list[int] = []
    sync_state_set_epoch: int = 0


class ReplicaIdentity(Body):
    """A member of a broker set, as a controller knows it."""

    broker_name: str | None = None
    broker_id: int = 0
    broker_address: str | None = None
    alive: bool = False


class ReplicasInfo(Body):
    """A broker set, as a controller knows it."""

    master_broker_id: int | None = None
    master_address: str | None = None
    master_epoch: int | None = None
    sync_state_set_epoch: int = 0
    in_sync_replicas: list[ReplicaIdentity] = []
    not_in_sync_replicas: list[ReplicaIdentity] = []


class BrokerReplicasInfo(Body):
    """CONTROLLER_GET_SYNC_STATE_DATA's answer."""

    replicas_info_table: dict[str, ReplicasInfo] = {}


class ElectMasterResponseBody(Body):
    """CONTROLLER_ELECT_MASTER's answer."""

    broker_member_group: BrokerMemberGroup | None = None
    sync_state_set: list[int] = []


class CheckRocksdbCqWriteResult(Body):
    """CHECK_ROCKSDB_CQ_WRITE_PROGRESS's answer."""

    check_result: str | None = None
    check_status: int = 0
