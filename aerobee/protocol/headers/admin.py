"""Headers of administration: statistics, running clients, brokers, replication, controllers."""

from __future__ import annotations

from aerobee.protocol.headers import Header, Int32, Int64


class ViewBrokerStatsData(Header, frozen=True):
    """VIEW_BROKER_STATS_DATA: one statistic, such as TOPIC_PUT_NUMS of a topic."""

    stats_name: str
    stats_key: str


class GetBrokerConfigReply(Header, frozen=True):
    """GET_BROKER_CONFIG's answer; the configuration itself is the body."""

    version: str


class GetConsumerRunningInfo(Header, frozen=True):
    """GET_CONSUMER_RUNNING_INFO: what a member is doing. Brokers pass it on to the member."""

    consumer_group: str
    client_id: str
    jstack_enable: bool = False


class ConsumeMessageDirectly(Header, frozen=True):
    """CONSUME_MESSAGE_DIRECTLY: let one member consume one message now."""

    consumer_group: str
    client_id: str | None = None
    msg_id: str | None = None
    broker_name: str | None = None
    topic: str | None = None
    topic_sys_flag: Int32 | None = None
    group_sys_flag: Int32 | None = None


class GetConsumerStatus(Header, frozen=True):
    """GET_CONSUMER_STATUS_FROM_CLIENT and INVOKE_BROKER_TO_GET_CONSUMER_STATUS: the offsets members hold."""

    topic: str
    group: str
    client_addr: str | None = None


class QueryConsumeQueue(Header, frozen=True):
    """QUERY_CONSUME_QUEUE: entries of a queue, with what the group's filter thinks of them."""

    topic: str | None = None
    queue_id: Int32 = 0
    index: Int64 = 0
    count: Int32 = 0
    consumer_group: str | None = None


class GetBrokerConsumeStats(Header, frozen=True):
    """GET_BROKER_CONSUME_STATS: how far all groups are behind."""

    is_order: bool = False


class CheckRocksdbCqWriteProgress(Header, frozen=True):
    """CHECK_ROCKSDB_CQ_WRITE_PROGRESS."""

    topic: str
    check_store_time: Int64 = 0


class ExportRocksDBConfigToJson(Header, frozen=True):
    """EXPORT_ROCKSDB_CONFIG_TO_JSON."""

    config_type: str


class AddBroker(Header, frozen=True):
    """ADD_BROKER, to a broker container."""

    config_path: str | None = None


class RemoveBroker(Header, frozen=True):
    """REMOVE_BROKER, from a broker container."""

    broker_name: str
    broker_cluster_name: str
    broker_id: Int64


class ExchangeHAInfo(Header, frozen=True):
    """EXCHANGE_BROKER_HA_INFO, asked and answered with the same fields."""

    master_ha_address: str | None = None
    master_flush_offset: Int64 | None = None
    master_address: str | None = None


class NotifyMinBrokerIdChange(Header, frozen=True):
    """NOTIFY_MIN_BROKER_ID_CHANGE: a name server tells the members of a set who leads now."""

    min_broker_id: Int64 | None = None
    broker_name: str | None = None
    min_broker_addr: str | None = None
    offline_broker_addr: str | None = None
    ha_broker_addr: str | None = None


class ResetMasterFlushOffset(Header, frozen=True):
    """RESET_MASTER_FLUSH_OFFSET."""

    master_flush_offset: Int64


class NotifyBrokerRoleChanged(Header, frozen=True):
    """NOTIFY_BROKER_ROLE_CHANGED: a controller elected a master."""

    master_address: str | None = None
    master_epoch: Int32 | None = None
    sync_state_set_epoch: Int32 | None = None
    master_broker_id: Int64 | None = None


class AlterSyncStateSet(Header, frozen=True):
    """CONTROLLER_ALTER_SYNC_STATE_SET."""

    broker_name: str | None = None
    master_broker_id: Int64 | None = None
    master_epoch: Int32 | None = None
    invoke_time: Int64 = 0


class AlterSyncStateSetReply(Header, frozen=True):
    """The answer to AlterSyncStateSet."""

    new_sync_state_set_epoch: Int32 = 0


class ElectMaster(Header, frozen=True):
    """CONTROLLER_ELECT_MASTER."""

    cluster_name: str = ""
    broker_name: str = ""
    broker_id: Int64 = -1
    designate_elect: bool = False
    invoke_time: Int64 = 0


class ElectMasterReply(Header, frozen=True):
    """The answer to ElectMaster."""

    master_broker_id: Int64 | None = None
    master_address: str | None = None
    master_epoch: Int32 | None = None
    sync_state_set_epoch: Int32 | None = None


class RegisterBrokerToController(Header, frozen=True):
    """CONTROLLER_REGISTER_BROKER."""

    cluster_name: str | None = None
    broker_name: str | None = None
    broker_id: Int64 | None = None
    broker_address: str | None = None
    invoke_time: Int64 = 0


class RegisterBrokerToControllerReply(Header, frozen=True):
    """The answer to RegisterBrokerToController."""

    cluster_name: str | None = None
    broker_name: str | None = None
    master_broker_id: Int64 | None = None
    master_address: str | None = None
    master_epoch: Int32 | None = None
    sync_state_set_epoch: Int32 | None = None


class GetReplicaInfo(Header, frozen=True):
    """CONTROLLER_GET_REPLICA_INFO."""

    broker_name: str | None = None


class GetReplicaInfoReply(Header, frozen=True):
    """The answer to GetReplicaInfo."""

    master_broker_id: Int64 | None = None
    master_address: str | None = None
    master_epoch: Int32 | None = None


class GetMetaDataReply(Header, frozen=True):
    """CONTROLLER_GET_METADATA_INFO's answer."""

    group: str | None = None
    controller_leader_id: str | None = None
    controller_leader_address: str | None = None
    is_leader: bool = False
    peers: str | None = None


class CleanControllerBrokerData(Header, frozen=True):
    """CLEAN_BROKER_DATA."""

    broker_name: str
    cluster_name: str | None = None
    broker_controller_ids_to_clean: str | None = None
    is_clean_living_broker: bool = False
    invoke_time: Int64 = 0


class GetNextBrokerId(Header, frozen=True):
    """CONTROLLER_GET_NEXT_BROKER_ID."""

    cluster_name: str | None = None
    broker_name: str | None = None


class GetNextBrokerIdReply(Header, frozen=True):
    """The answer to GetNextBrokerId."""

    cluster_name: str | None = None
    broker_name: str | None = None
    next_broker_id: Int64 | None = None


class ApplyBrokerId(Header, frozen=True):
    """CONTROLLER_APPLY_BROKER_ID."""

    cluster_name: str | None = None
    broker_name: str | None = None
    applied_broker_id: Int64 | None = None
    register_check_code: str | None = None


class ApplyBrokerIdReply(Header, frozen=True):
    """The answer to ApplyBrokerId."""

    cluster_name: str | None = None
    broker_name: str | None = None
