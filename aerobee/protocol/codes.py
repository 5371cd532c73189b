"""Every request and response code of RocketMQ 5.5, by the names its users know, and one row a request in `ROWS`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

from aerobee.protocol.headers import (
    Header,
    ack,
    admin,
    auth,
    groups,
    lite,
    offsets,
    pop,
    pull,
    query,
    route,
    send,
    topics,
    transactions,
)


class RequestCode(IntEnum):
    """What is asked. Codes above 32767 exist in JSON headers only: the binary header has 16 bits for them."""

    SEND_MESSAGE = 10
    PULL_MESSAGE = 11
    QUERY_MESSAGE = 12
    QUERY_BROKER_OFFSET = 13
    QUERY_CONSUMER_OFFSET = 14
    UPDATE_CONSUMER_OFFSET = 15
    UPDATE_AND_CREATE_TOPIC = 17
    UPDATE_AND_CREATE_TOPIC_LIST = 18
    GET_ALL_TOPIC_CONFIG = 21
    GET_TOPIC_CONFIG_LIST = 22
    GET_TOPIC_NAME_LIST = 23
    UPDATE_BROKER_CONFIG = 25
    GET_BROKER_CONFIG = 26
    TRIGGER_DELETE_FILES = 27
    GET_BROKER_RUNTIME_INFO = 28
    SEARCH_OFFSET_BY_TIMESTAMP = 29
    GET_MAX_OFFSET = 30
    GET_MIN_OFFSET = 31
    GET_EARLIEST_MSG_STORETIME = 32
    VIEW_MESSAGE_BY_ID = 33
    HEART_BEAT = 34
    UNREGISTER_CLIENT = 35
    CONSUMER_SEND_MSG_BACK = 36
    END_TRANSACTION = 37
    GET_CONSUMER_LIST_BY_GROUP = 38
    CHECK_TRANSACTION_STATE = 39
    NOTIFY_CONSUMER_IDS_CHANGED = 40
    LOCK_BATCH_MQ = 41
    UNLOCK_BATCH_MQ = 42
    GET_ALL_CONSUMER_OFFSET = 43
    GET_ALL_DELAY_OFFSET = 45
    CHECK_CLIENT_CONFIG = 46
    GET_CLIENT_CONFIG = 47
    GET_TIMER_CHECK_POINT = 60
    GET_TIMER_METRICS = 61
    PUT_KV_CONFIG = 100
    GET_KV_CONFIG = 101
    DELETE_KV_CONFIG = 102
    REGISTER_BROKER = 103
    UNREGISTER_BROKER = 104
    GET_ROUTEINFO_BY_TOPIC = 105
    GET_BROKER_CLUSTER_INFO = 106
    UPDATE_AND_CREATE_SUBSCRIPTIONGROUP = 200
    GET_ALL_SUBSCRIPTIONGROUP_CONFIG = 201
    GET_TOPIC_STATS_INFO = 202
    GET_CONSUMER_CONNECTION_LIST = 203
    GET_PRODUCER_CONNECTION_LIST = 204
    WIPE_WRITE_PERM_OF_BROKER = 205
    GET_ALL_TOPIC_LIST_FROM_NAMESERVER = 206
    DELETE_SUBSCRIPTIONGROUP = 207
    GET_CONSUME_STATS = 208
    SUSPEND_CONSUMER = 209
    RESUME_CONSUMER = 210
    RESET_CONSUMER_OFFSET_IN_CONSUMER = 211
    RESET_CONSUMER_OFFSET_IN_BROKER = 212
    ADJUST_CONSUMER_THREAD_POOL = 213
    WHO_CONSUME_THE_MESSAGE = 214
    DELETE_TOPIC_IN_BROKER = 215
    DELETE_TOPIC_IN_NAMESRV = 216
    REGISTER_TOPIC_IN_NAMESRV = 217
    GET_KVLIST_BY_NAMESPACE = 219
    RESET_CONSUMER_CLIENT_OFFSET = 220
    GET_CONSUMER_STATUS_FROM_CLIENT = 221
    INVOKE_BROKER_TO_RESET_OFFSET = 222
    INVOKE_BROKER_TO_GET_CONSUMER_STATUS = 223
    GET_TOPICS_BY_CLUSTER = 224
    UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST = 225
    QUERY_TOPIC_CONSUME_BY_WHO = 300
    REGISTER_FILTER_SERVER = 301
    REGISTER_MESSAGE_FILTER_CLASS = 302
    QUERY_CONSUME_TIME_SPAN = 303
    GET_SYSTEM_TOPIC_LIST_FROM_NS = 304
    GET_SYSTEM_TOPIC_LIST_FROM_BROKER = 305
    CLEAN_EXPIRED_CONSUMEQUEUE = 306
    GET_CONSUMER_RUNNING_INFO = 307
    QUERY_CORRECTION_OFFSET = 308
    CONSUME_MESSAGE_DIRECTLY = 309
    SEND_MESSAGE_V2 = 310
    GET_UNIT_TOPIC_LIST = 311
    GET_HAS_UNIT_SUB_TOPIC_LIST = 312
    GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST = 313
    CLONE_GROUP_OFFSET = 314
    VIEW_BROKER_STATS_DATA = 315
    CLEAN_UNUSED_TOPIC = 316
    GET_BROKER_CONSUME_STATS = 317
    UPDATE_NAMESRV_CONFIG = 318
    GET_NAMESRV_CONFIG = 319
    SEND_BATCH_MESSAGE = 320
    QUERY_CONSUME_QUEUE = 321
    QUERY_DATA_VERSION = 322
    RESUME_CHECK_HALF_MESSAGE = 323
    SEND_REPLY_MESSAGE = 324
    SEND_REPLY_MESSAGE_V2 = 325
    PUSH_REPLY_MESSAGE_TO_CLIENT = 326
    ADD_WRITE_PERM_OF_BROKER = 327
    GET_ALL_PRODUCER_INFO = 328
    DELETE_EXPIRED_COMMITLOG = 329
    QUERY_TOPICS_BY_CONSUMER = 343
    QUERY_SUBSCRIPTION_BY_CONSUMER = 345
    GET_TOPIC_CONFIG = 351
    GET_SUBSCRIPTIONGROUP_CONFIG = 352
    UPDATE_AND_GET_GROUP_FORBIDDEN = 353
    CHECK_ROCKSDB_CQ_WRITE_PROGRESS = 354
    EXPORT_ROCKSDB_CONFIG_TO_JSON = 355
    LITE_PULL_MESSAGE = 361
    RECALL_MESSAGE = 370
    QUERY_ASSIGNMENT = 400
    SET_MESSAGE_REQUEST_MODE = 401
    GET_ALL_MESSAGE_REQUEST_MODE = 402
    UPDATE_AND_CREATE_STATIC_TOPIC = 513
    GET_BROKER_MEMBER_GROUP = 901
    ADD_BROKER = 902
    REMOVE_BROKER = 903
    BROKER_HEARTBEAT = 904
    NOTIFY_MIN_BROKER_ID_CHANGE = 905
    EXCHANGE_BROKER_HA_INFO = 906
    GET_BROKER_HA_STATUS = 907
    RESET_MASTER_FLUSH_OFFSET = 908
    CONTROLLER_ALTER_SYNC_STATE_SET = 1001
    CONTROLLER_ELECT_MASTER = 1002
    CONTROLLER_REGISTER_BROKER = 1003
    CONTROLLER_GET_REPLICA_INFO = 1004
    CONTROLLER_GET_METADATA_INFO = 1005
    CONTROLLER_GET_SYNC_STATE_DATA = 1006
    GET_BROKER_EPOCH_CACHE = 1007
    NOTIFY_BROKER_ROLE_CHANGED = 1008
    UPDATE_CONTROLLER_CONFIG = 1009
    GET_CONTROLLER_CONFIG = 1010
    CLEAN_BROKER_DATA = 1011
    CONTROLLER_GET_NEXT_BROKER_ID = 1012
    CONTROLLER_APPLY_BROKER_ID = 1013
    BROKER_CLOSE_CHANNEL = 1014
    CHECK_NOT_ACTIVE_BROKER = 1015
    GET_BROKER_LIVE_INFO = 1016
    GET_SYNC_STATE_DATA = 1017
    RAFT_BROKER_HEART_BEAT_EVENT = 1018
    UPDATE_COLD_DATA_FLOW_CTR_CONFIG = 2001
    REMOVE_COLD_DATA_FLOW_CTR_CONFIG = 2002
    GET_COLD_DATA_FLOW_CTR_INFO = 2003
    SET_COMMITLOG_READ_MODE = 2004
    AUTH_CREATE_USER = 3001
    AUTH_UPDATE_USER = 3002
    AUTH_DELETE_USER = 3003
    AUTH_GET_USER = 3004
    AUTH_LIST_USER = 3005
    AUTH_CREATE_ACL = 3006
    AUTH_UPDATE_ACL = 3007
    AUTH_DELETE_ACL = 3008
    AUTH_GET_ACL = 3009
    AUTH_LIST_ACL = 3010
    SWITCH_TIMER_ENGINE = 5001
    POP_MESSAGE = 200050
    ACK_MESSAGE = 200051
    PEEK_MESSAGE = 200052
    CHANGE_MESSAGE_INVISIBLETIME = 200053
    NOTIFICATION = 200054
    POLLING_INFO = 200055
    POP_ROLLBACK = 200056
    POP_LITE_MESSAGE = 200070
    LITE_SUBSCRIPTION_CTL = 200071
    ACK_LITE_MESSAGE = 200072
    NOTIFY_UNSUBSCRIBE_LITE = 200073
    GET_BROKER_LITE_INFO = 200074
    GET_PARENT_TOPIC_INFO = 200075
    GET_LITE_TOPIC_INFO = 200076
    GET_LITE_CLIENT_INFO = 200077
    GET_LITE_GROUP_INFO = 200078
    TRIGGER_LITE_DISPATCH = 200079
    BATCH_ACK_MESSAGE = 200151


class ResponseCode(IntEnum):
    """What is answered. 10, 11 and 12 answer a send that was stored all the same."""

    RPC_TIME_OUT = -1006
    RPC_SEND_TO_CHANNEL_FAILED = -1004
    RPC_ADDR_IS_NULL = -1002
    RPC_UNKNOWN = -1000
    SUCCESS = 0
    SYSTEM_ERROR = 1
    SYSTEM_BUSY = 2
    REQUEST_CODE_NOT_SUPPORTED = 3
    TRANSACTION_FAILED = 4
    FLUSH_DISK_TIMEOUT = 10
    SLAVE_NOT_AVAILABLE = 11
    FLUSH_SLAVE_TIMEOUT = 12
    MESSAGE_ILLEGAL = 13
    SERVICE_NOT_AVAILABLE = 14
    VERSION_NOT_SUPPORTED = 15
    NO_PERMISSION = 16
    TOPIC_NOT_EXIST = 17
    TOPIC_EXIST_ALREADY = 18
    PULL_NOT_FOUND = 19
    PULL_RETRY_IMMEDIATELY = 20
    PULL_OFFSET_MOVED = 21
    QUERY_NOT_FOUND = 22
    SUBSCRIPTION_PARSE_FAILED = 23
    SUBSCRIPTION_NOT_EXIST = 24
    SUBSCRIPTION_NOT_LATEST = 25
    SUBSCRIPTION_GROUP_NOT_EXIST = 26
    FILTER_DATA_NOT_EXIST = 27
    FILTER_DATA_NOT_LATEST = 28
    INVALID_PARAMETER = 29
    TRANSACTION_SHOULD_COMMIT = 200
    TRANSACTION_SHOULD_ROLLBACK = 201
    TRANSACTION_STATE_UNKNOW = 202
    TRANSACTION_STATE_GROUP_WRONG = 203
    NO_BUYER_ID = 204
    NOT_IN_CURRENT_UNIT = 205
    CONSUMER_NOT_ONLINE = 206
    CONSUME_MSG_TIMEOUT = 207
    NO_MESSAGE = 208
    POLLING_FULL = 209
    POLLING_TIMEOUT = 210
    BROKER_NOT_EXIST = 211
    BROKER_DISPATCH_NOT_COMPLETE = 212
    BROADCAST_CONSUMPTION = 213
    FLOW_CONTROL = 215
    NOT_LEADER_FOR_QUEUE = 501
    ILLEGAL_OPERATION = 604
    GO_AWAY = 1500
    CONTROLLER_FENCED_MASTER_EPOCH = 2000
    CONTROLLER_FENCED_SYNC_STATE_SET_EPOCH = 2001
    CONTROLLER_INVALID_MASTER = 2002
    CONTROLLER_INVALID_REPLICAS = 2003
    CONTROLLER_MASTER_NOT_AVAILABLE = 2004
    CONTROLLER_INVALID_REQUEST = 2005
    CONTROLLER_BROKER_NOT_ALIVE = 2006
    CONTROLLER_NOT_LEADER = 2007
    CONTROLLER_BROKER_METADATA_NOT_EXIST = 2008
    CONTROLLER_INVALID_CLEAN_BROKER_METADATA = 2009
    CONTROLLER_BROKER_NEED_TO_BE_REGISTERED = 2010
    CONTROLLER_MASTER_STILL_EXIST = 2011
    CONTROLLER_ELECT_MASTER_FAILED = 2012
    CONTROLLER_ALTER_SYNC_STATE_SET_FAILED = 2013
    CONTROLLER_BROKER_ID_INVALID = 2014
    CONTROLLER_JRAFT_INTERNAL_ERROR = 2015
    CONTROLLER_BROKER_LIVE_INFO_NOT_EXISTS = 2016
    LMQ_QUOTA_EXCEEDED = 2017
    LITE_SUBSCRIPTION_QUOTA_EXCEEDED = 2018
    USER_NOT_EXIST = 3001
    POLICY_NOT_EXIST = 3002


class Server(StrEnum):
    """Who answers a request."""

    BROKER = "broker"
    NAME_SERVER = "name server"
    CONTROLLER = "controller"
    CONTAINER = "broker container"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Right:
    """What a caller must be allowed: `actions` (any of them) on a resource of kind `TOPIC`, `GROUP` or `CLUSTER`.

    `field` is the header's field that names the resource; `*`: what is shown depends on what the caller may see;
    `body`: the body names it (or them); None: the cluster.
    """

    kind: str
    actions: tuple[str, ...]
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A request: who answers it, its header and the answer's header, and all the rights it needs.

    Without servers it is a number that nobody uses any more, or nobody ever did; it stays taken.
    """

    code: RequestCode
    servers: tuple[Server, ...] = ()
    header: type[Header] | None = None
    reply_header: type[Header] | None = None
    rights: tuple[Right, ...] = ()

    @property
    def name(self) -> str:
        """As RocketMQ calls it."""
        return self.code.name


def _topic(*actions: str, field: str = "topic") -> Right:
    return Right("TOPIC", actions, field)


def _group(*actions: str, field: str = "consumer_group") -> Right:
    return Right("GROUP", actions, field)


def _cluster(*actions: str) -> Right:
    return Right("CLUSTER", actions)


_B, _N, _T, _O, _C = Server.BROKER, Server.NAME_SERVER, Server.CONTROLLER, Server.CONTAINER, Server.CLIENT

_TABLE: Final = (
    Row(RequestCode.SEND_MESSAGE, (_B,), send.SendMessage, send.SendMessageReply, (_topic("PUB"),)),
    Row(RequestCode.PULL_MESSAGE, (_B,), pull.PullMessage, pull.PullMessageReply, (_topic("SUB"), _group("SUB"))),
    Row(RequestCode.QUERY_MESSAGE, (_B,), query.QueryMessage, query.QueryMessageReply, (_topic("SUB", "GET"),)),
    Row(RequestCode.QUERY_BROKER_OFFSET),
    Row(
        RequestCode.QUERY_CONSUMER_OFFSET,
        (_B,),
        offsets.QueryConsumerOffset,
        offsets.QueryConsumerOffsetReply,
        (_topic("SUB"), _group("SUB")),
    ),
    Row(RequestCode.UPDATE_CONSUMER_OFFSET, (_B,), offsets.UpdateConsumerOffset, None, (_topic("SUB"), _group("SUB"))),
    Row(RequestCode.UPDATE_AND_CREATE_TOPIC, (_B,), topics.CreateTopic, None, (_topic("CREATE"),)),
    Row(RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, (_B,), None, None, (_topic("CREATE", field="body"),)),
    Row(
        RequestCode.GET_ALL_TOPIC_CONFIG,
        (_B,),
        topics.GetAllTopicConfig,
        topics.GetAllTopicConfigReply,
        (_topic("LIST", field="*"),),
    ),
    Row(RequestCode.GET_TOPIC_CONFIG_LIST),
    Row(RequestCode.GET_TOPIC_NAME_LIST),
    Row(RequestCode.UPDATE_BROKER_CONFIG, (_B, _O), None, None, (_cluster("UPDATE"),)),
    Row(RequestCode.GET_BROKER_CONFIG, (_B, _O), None, admin.GetBrokerConfigReply, (_cluster("GET"),)),
    Row(RequestCode.TRIGGER_DELETE_FILES),
    Row(RequestCode.GET_BROKER_RUNTIME_INFO, (_B,), None, None, (_cluster("GET"),)),
    Row(
        RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, (_B,), offsets.SearchOffset, offsets.SearchOffsetReply, (_topic("GET"),)
    ),
    Row(RequestCode.GET_MAX_OFFSET, (_B,), offsets.GetMaxOffset, offsets.GetMaxOffsetReply, (_topic("GET"),)),
    Row(RequestCode.GET_MIN_OFFSET, (_B,), offsets.GetMinOffset, offsets.GetMinOffsetReply, (_topic("GET"),)),
    Row(
        RequestCode.GET_EARLIEST_MSG_STORETIME,
        (_B,),
        offsets.GetEarliestMsgStoretime,
        offsets.GetEarliestMsgStoretimeReply,
        (_topic("GET"),),
    ),
    Row(RequestCode.VIEW_MESSAGE_BY_ID, (_B,), query.ViewMessage, None, (_topic("GET"),)),
    Row(RequestCode.HEART_BEAT, (_B,), None, None, (_group("PUB", "SUB", field="body"),)),
    Row(RequestCode.UNREGISTER_CLIENT, (_B,), groups.UnregisterClient, None, (_group("PUB", "SUB"),)),
    Row(RequestCode.CONSUMER_SEND_MSG_BACK, (_B,), send.ConsumerSendMsgBack, None, (_group("SUB", field="group"),)),
    Row(RequestCode.END_TRANSACTION, (_B,), transactions.EndTransaction, None, (_topic("PUB"),)),
    Row(RequestCode.GET_CONSUMER_LIST_BY_GROUP, (_B,), groups.GetConsumerListByGroup, None, (_group("SUB"),)),
    Row(RequestCode.CHECK_TRANSACTION_STATE, (_C,), transactions.CheckTransactionState),
    Row(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, (_C,), groups.NotifyConsumerIdsChanged),
    Row(RequestCode.LOCK_BATCH_MQ, (_B,), None, None, (_group("SUB", field="body"),)),
    Row(RequestCode.UNLOCK_BATCH_MQ, (_B,), None, None, (_group("SUB", field="body"),)),
    Row(RequestCode.GET_ALL_CONSUMER_OFFSET, (_B,), None, None, (_cluster("GET"),)),
    Row(RequestCode.GET_ALL_DELAY_OFFSET, (_B,), None, None, (_cluster("GET"),)),
    Row(RequestCode.CHECK_CLIENT_CONFIG, (_B,), None, None, (_group("SUB", field="body"),)),
    Row(RequestCode.GET_CLIENT_CONFIG),
    Row(RequestCode.GET_TIMER_CHECK_POINT, (_B,), None, None, (_cluster("GET"),)),
    Row(RequestCode.GET_TIMER_METRICS, (_B,), None, None, (_cluster("GET"),)),
    Row(RequestCode.PUT_KV_CONFIG, (_N,), route.PutKVConfig, None, (_cluster("UPDATE"),)),
    Row(RequestCode.GET_KV_CONFIG, (_N,), route.GetKVConfig, route.GetKVConfigReply, (_cluster("GET"),)),
    Row(RequestCode.DELETE_KV_CONFIG, (_N,), route.DeleteKVConfig, None, (_cluster("UPDATE"),)),
    Row(RequestCode.REGISTER_BROKER, (_N,), route.RegisterBroker, route.RegisterBrokerReply, (_cluster("UPDATE"),)),
    Row(RequestCode.UNREGISTER_BROKER, (_N,), route.UnRegisterBroker, None, (_cluster("UPDATE"),)),
    Row(RequestCode.GET_ROUTEINFO_BY_TOPIC, (_N,), route.GetRouteInfo, None, (_cluster("GET"),)),
    Row(RequestCode.GET_BROKER_CLUSTER_INFO, (_N,), None, None, (_cluster("GET"),)),
    Row(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, (_B,), None, None, (_group("CREATE", field="body"),)),
    Row(
        RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG,
        (_B,),
        groups.GetAllSubscriptionGroup,
        groups.GetAllSubscriptionGroupReply,
        (_group("LIST", field="*"),),
    ),
    Row(RequestCode.GET_TOPIC_STATS_INFO, (_B,), topics.GetTopicStatsInfo, None, (_topic("GET"),)),
    Row(RequestCode.GET_CONSUMER_CONNECTION_LIST, (_B,), groups.GetConsumerConnectionList, None, (_group("GET"),)),
    Row(RequestCode.GET_PRODUCER_CONNECTION_LIST, (_B,), groups.GetProducerConnectionList, None, (_cluster("GET"),)),
    Row(
        RequestCode.WIPE_WRITE_PERM_OF_BROKER,
        (_N,),
        route.WipeWritePermOfBroker,
        route.WipeWritePermOfBrokerReply,
        (_cluster("UPDATE"),),
    ),
    Row(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER, (_N,), None, None, (_cluster("GET"),)),
    Row(
        RequestCode.DELETE_SUBSCRIPTIONGROUP,
        (_B,),
        groups.DeleteSubscriptionGroup,
        None,
        (_group("DELETE", field="group_name"),),
    ),
    Row(RequestCode.GET_CONSUME_STATS, (_B,), groups.GetConsumeStats, None, (_group("GET"), _topic("GET"))),
    Row(RequestCode.SUSPEND_CONSUMER),
    Row(RequestCode.RESUME_CONSUMER),
    Row(RequestCode.RESET_CONSUMER_OFFSET_IN_CONSUMER),
    Row(RequestCode.RESET_CONSUMER_OFFSET_IN_BROKER),
    Row(RequestCode.ADJUST_CONSUMER_THREAD_POOL),
    Row(RequestCode.WHO_CONSUME_THE_MESSAGE),
    Row(RequestCode.DELETE_TOPIC_IN_BROKER, (_B,), topics.DeleteTopic, None, (_topic("DELETE"),)),
    Row(RequestCode.DELETE_TOPIC_IN_NAMESRV, (_N,), route.DeleteTopicFromNamesrv, None, (_cluster("UPDATE"),)),
    Row(RequestCode.REGISTER_TOPIC_IN_NAMESRV, (_N,), route.RegisterTopic, None, (_cluster("UPDATE"),)),
    Row(RequestCode.GET_KVLIST_BY_NAMESPACE, (_N,), route.GetKVListByNamespace, None, (_cluster("GET"),)),
    Row(RequestCode.RESET_CONSUMER_CLIENT_OFFSET, (_C,), offsets.ResetOffset),
    Row(RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT, (_C,), admin.GetConsumerStatus),
    Row(
        RequestCode.INVOKE_BROKER_TO_RESET_OFFSET,
        (_B,),
        offsets.ResetOffset,
        None,
        (_topic("UPDATE"), _group("UPDATE", field="group")),
    ),
    Row(
        RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS,
        (_B,),
        admin.GetConsumerStatus,
        None,
        (_topic("GET"), _group("GET", field="group")),
    ),
    Row(RequestCode.GET_TOPICS_BY_CLUSTER, (_N,), route.GetTopicsByCluster, None, (_cluster("GET"),)),
    Row(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, (_B,), None, None, (_group("CREATE", field="body"),)),
    Row(RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, (_B,), groups.QueryTopicConsumeByWho, None, (_topic("GET"),)),
    Row(RequestCode.REGISTER_FILTER_SERVER),
    Row(RequestCode.REGISTER_MESSAGE_FILTER_CLASS),
    Row(
        RequestCode.QUERY_CONSUME_TIME_SPAN,
        (_B,),
        groups.QueryConsumeTimeSpan,
        None,
        (_topic("GET"), _group("GET", field="group")),
    ),
    Row(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NS, (_N,), None, None, (_cluster("GET"),)),
    Row(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER, (_B,), None, None, (_cluster("GET"),)),
    Row(RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE, (_B,), None, None, (_cluster("UPDATE"),)),
    Row(RequestCode.GET_CONSUMER_RUNNING_INFO, (_B, _C), admin.GetConsumerRunningInfo, None, (_group("GET"),)),
    Row(
        RequestCode.QUERY_CORRECTION_OFFSET,
        (_B,),
        offsets.QueryCorrectionOffset,
        None,
        (_topic("GET"), _group("GET", field="compare_group")),
    ),
    Row(
        RequestCode.CONSUME_MESSAGE_DIRECTLY,
        (_B, _C),
        admin.ConsumeMessageDirectly,
        None,
        (_group("SUB"), _topic("SUB")),
    ),
    Row(RequestCode.SEND_MESSAGE_V2, (_B,), send.SendMessageV2, send.SendMessageReply, (_topic("PUB"),)),
    Row(RequestCode.GET_UNIT_TOPIC_LIST, (_N,), None, None, (_cluster("GET"),)),
    Row(RequestCode.GET_HAS_UNIT_SUB_TOPIC_LIST, (_N,), None, None, (_cluster("GET"),)),
    Row(RequestCode.GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST, (_N,), None, None, (_cluster("GET"),)),
    Row(
        RequestCode.CLONE_GROUP_OFFSET,
        (_B,),
        offsets.CloneGroupOffset,
        None,
        (_group("UPDATE", field="dest_group"), _topic("UPDATE")),
    ),
    Row(RequestCode.VIEW_BROKER_STATS_DATA, (_B,), admin.ViewBrokerStatsData, None, (_cluster("GET"),)),
    Row(RequestCode.CLEAN_UNUSED_TOPIC, (_B,), None, None, (_cluster("UPDATE"),)),
    Row(RequestCode.GET_BROKER_CONSUME_STATS, (_B,), admin.GetBrokerConsumeStats, None, (_cluster("GET"),)),
    Row(RequestCode.UPDATE_NAMESRV_CONFIG, (_N,), None, None, (_cluster("UPDATE"),)),
    Row(RequestCode.GET_NAMESRV_CONFIG, (_N,), None, None, (_cluster("GET"),)),
    Row(RequestCode.SEND_BATCH_MESSAGE, (_B,), send.SendMessageV2, send.SendMessageReply, (_topic("PUB"),)),
    Row(RequestCode.QUERY_CONSUME_QUEUE, (_B,), admin.QueryConsumeQueue, None, (_topic("GET"), _group("GET"))),
    Row(RequestCode.QUERY_DATA_VERSION, (_N,), route.QueryDataVersion, route.QueryDataVersionReply, (_cluster("GET"),)),
    Row(RequestCode.RESUME_CHECK_HALF_MESSAGE, (_B,), transactions.ResumeCheckHalfMessage, None, (_topic("UPDATE"),)),
    Row(RequestCode.SEND_REPLY_MESSAGE, (_B,), send.SendMessage, send.SendMessageReply, (_topic("PUB"),)),
    Row(RequestCode.SEND_REPLY_MESSAGE_V2, (_B,), send.SendMessageV2, send.SendMessageReply, (_topic("PUB"),)),
    Row(RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT, (_C,), send.ReplyMessage),
    Row(
        RequestCode.ADD_WRITE_PERM_OF_BROKER,
        (_N,),
        route.AddWritePermOfBroker,
        route.AddWritePermOfBrokerReply,
        (_cluster("UPDATE"),),
    ),
    Row(RequestCode.GET_ALL_PRODUCER_INFO, (_B,), None, None, (_cluster("GET"),)),
    Row(RequestCode.DELETE_EXPIRED_COMMITLOG, (_B,), None, None, (_cluster("UPDATE"),)),
    Row(
        RequestCode.QUERY_TOPICS_BY_CONSUMER, (_B,), groups.QueryTopicsByConsumer, None, (_group("GET", field="group"),)
    ),
    Row(
        RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER,
        (_B,),
        groups.QuerySubscriptionByConsumer,
        None,
        (_group("GET", field="group"), _topic("GET")),
    ),
    Row(RequestCode.GET_TOPIC_CONFIG, (_B,), topics.GetTopicConfig, None, (_topic("GET"),)),
    Row(
        RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG,
        (_B,),
        groups.GetSubscriptionGroupConfig,
        None,
        (_group("GET", field="group"),),
    ),
    Row(
        RequestCode.UPDATE_AND_GET_GROUP_FORBIDDEN,
        (_B,),
        groups.UpdateGroupForbidden,
        None,
        (_group("UPDATE", field="group"), _topic("UPDATE")),
    ),
    Row(RequestCode.CHECK_ROCKSDB_CQ_WRITE_PROGRESS, (_B,), admin.CheckRocksdbCqWriteProgress, None, (_topic("GET"),)),
    Row(RequestCode.EXPORT_ROCKSDB_CONFIG_TO_JSON, (_B,), admin.ExportRocksDBConfigToJson, None, (_cluster("GET"),)),
    Row(RequestCode.LITE_PULL_MESSAGE, (_B,), pull.PullMessage, pull.PullMessageReply, (_topic("SUB"), _group("SUB"))),
    Row(RequestCode.RECALL_MESSAGE, (_B,), send.RecallMessage, send.RecallMessageReply, (_topic("PUB"),)),
    Row(RequestCode.QUERY_ASSIGNMENT, (_B,), None, None, (_group("SUB", field="body"),)),
    Row(RequestCode.SET_MESSAGE_REQUEST_MODE, (_B,), None, None, (_group("UPDATE", field="body"),)),
    Row(RequestCode.GET_ALL_MESSAGE_REQUEST_MODE, (_B,), None, None, (_cluster("GET"),)),
    Row(RequestCode.UPDATE_AND_CREATE_STATIC_TOPIC, (_B,), topics.CreateTopic, None, (_topic("CREATE"),)),
    Row(RequestCode.GET_BROKER_MEMBER_GROUP, (_N,), route.GetBrokerMemberGroup, None, (_cluster("GET"),)),
    Row(RequestCode.ADD_BROKER, (_O,), admin.AddBroker, None, (_cluster("UPDATE"),)),
    Row(RequestCode.REMOVE_BROKER, (_O,), admin.RemoveBroker, None, (_cluster("UPDATE"),)),
    Row(RequestCode.BROKER_HEARTBEAT, (_N, _T), route.BrokerHeartbeat, None, (_cluster("UPDATE"),)),
    Row(RequestCode.NOTIFY_MIN_BROKER_ID_CHANGE, (_B,), admin.NotifyMinBrokerIdChange, None, (_cluster("UPDATE"),)),
    Row(RequestCode.EXCHANGE_BROKER_HA_INFO, (_B,), admin.ExchangeHAInfo, admin.ExchangeHAInfo, (_cluster("UPDATE"),)),
    Row(RequestCode.GET_BROKER_HA_STATUS, (_B,), None, None, (_cluster("GET"),)),
    Row(RequestCode.RESET_MASTER_FLUSH_OFFSET, (_B,), admin.ResetMasterFlushOffset, None, (_cluster("UPDATE"),)),
    Row(
        RequestCode.CONTROLLER_ALTER_SYNC_STATE_SET,
        (_T,),
        admin.AlterSyncStateSet,
        admin.AlterSyncStateSetReply,
        (_cluster("UPDATE"),),
    ),
    Row(RequestCode.CONTROLLER_ELECT_MASTER, (_T,), admin.ElectMaster, admin.ElectMasterReply, (_cluster("UPDATE"),)),
    Row(
        RequestCode.CONTROLLER_REGISTER_BROKER,
        (_T,),
        admin.RegisterBrokerToController,
        admin.RegisterBrokerToControllerReply,
        (_cluster("UPDATE"),),
    ),
    Row(
        RequestCode.CONTROLLER_GET_REPLICA_INFO,
        (_T,),
        admin.GetReplicaInfo,
        admin.GetReplicaInfoReply,
        (_cluster("GET"),),
    ),
    Row(RequestCode.CONTROLLER_GET_METADATA_INFO, (_T,), None, admin.GetMetaDataReply, (_cluster("GET"),)),
    Row(RequestCode.CONTROLLER_GET_SYNC_STATE_DATA, (_T,), None, None, (_cluster("GET"),)),
    Row(RequestCode.GET_BROKER_EPOCH_CACHE, (_B,), None, None, (_cluster("GET"),)),
    Row(RequestCode.NOTIFY_BROKER_ROLE_CHANGED, (_B,), admin.NotifyBrokerRoleChanged, None, (_cluster("UPDATE"),)),
    Row(RequestCode.UPDATE_CONTROLLER_CONFIG, (_T,), None, None, (_cluster("UPDATE"),)),
    Row(RequestCode.GET_CONTROLLER_CONFIG, (_T,), None, None, (_cluster("GET"),)),
    Row(RequestCode.CLEAN_BROKER_DATA, (_T,), admin.CleanControllerBrokerData, None, (_cluster("UPDATE"),)),
    Row(
        RequestCode.CONTROLLER_GET_NEXT_BROKER_ID,
        (_T,),
        admin.GetNextBrokerId,
        admin.GetNextBrokerIdReply,
        (_cluster("GET"),),
    ),
    Row(
        RequestCode.CONTROLLER_APPLY_BROKER_ID,
        (_T,),
        admin.ApplyBrokerId,
        admin.ApplyBrokerIdReply,
        (_cluster("UPDATE"),),
    ),
    Row(RequestCode.BROKER_CLOSE_CHANNEL, (_T,), None, None, (_cluster("UPDATE"),)),
    Row(RequestCode.CHECK_NOT_ACTIVE_BROKER, (_T,), None, None, (_cluster("UPDATE"),)),
    Row(RequestCode.GET_BROKER_LIVE_INFO, (_T,), None, None, (_cluster("GET"),)),
    Row(RequestCode.GET_SYNC_STATE_DATA, (_T,), None, None, (_cluster("GET"),)),
    Row(RequestCode.RAFT_BROKER_HEART_BEAT_EVENT, (_T,), None, None, (_cluster("UPDATE"),)),
    Row(RequestCode.UPDATE_COLD_DATA_FLOW_CTR_CONFIG, (_B,), None, None, (_cluster("UPDATE"),)),
    Row(RequestCode.REMOVE_COLD_DATA_FLOW_CTR_CONFIG, (_B,), None, None, (_cluster("UPDATE"),)),
    Row(RequestCode.GET_COLD_DATA_FLOW_CTR_INFO, (_B,), None, None, (_cluster("GET"),)),
    Row(RequestCode.SET_COMMITLOG_READ_MODE, (_B,), None, None, (_cluster("UPDATE"),)),
    Row(RequestCode.AUTH_CREATE_USER, (_B,), auth.CreateUser, None, (_cluster("UPDATE"),)),
    Row(RequestCode.AUTH_UPDATE_USER, (_B,), auth.UpdateUser, None, (_cluster("UPDATE"),)),
    Row(RequestCode.AUTH_DELETE_USER, (_B,), auth.DeleteUser, None, (_cluster("UPDATE"),)),
    Row(RequestCode.AUTH_GET_USER, (_B,), auth.GetUser, None, (_cluster("GET"),)),
    Row(RequestCode.AUTH_LIST_USER, (_B,), auth.ListUsers, None, (_cluster("GET"),)),
    Row(RequestCode.AUTH_CREATE_ACL, (_B,), auth.CreateAcl, None, (_cluster("UPDATE"),)),
    Row(RequestCode.AUTH_UPDATE_ACL, (_B,), auth.UpdateAcl, None, (_cluster("UPDATE"),)),
    Row(RequestCode.AUTH_DELETE_ACL, (_B,), auth.DeleteAcl, None, (_cluster("UPDATE"),)),
    Row(RequestCode.AUTH_GET_ACL, (_B,), auth.GetAcl, None, (_cluster("GET"),)),
    Row(RequestCode.AUTH_LIST_ACL, (_B,), auth.ListAcls, None, (_cluster("GET"),)),
    Row(RequestCode.SWITCH_TIMER_ENGINE, (_B,), None, None, (_cluster("UPDATE"),)),
    Row(RequestCode.POP_MESSAGE, (_B,), pop.PopMessage, pop.PopMessageReply, (_topic("SUB"), _group("SUB"))),
    Row(RequestCode.ACK_MESSAGE, (_B,), ack.AckMessage, None, (_topic("SUB"), _group("SUB"))),
    Row(RequestCode.PEEK_MESSAGE, (_B,), pop.PeekMessage, None, (_topic("SUB"), _group("SUB"))),
    Row(
        RequestCode.CHANGE_MESSAGE_INVISIBLETIME,
        (_B,),
        ack.ChangeInvisibleTime,
        ack.ChangeInvisibleTimeReply,
        (_topic("SUB"), _group("SUB")),
    ),
    Row(RequestCode.NOTIFICATION, (_B,), pop.Notification, pop.NotificationReply, (_topic("SUB"), _group("SUB"))),
    Row(RequestCode.POLLING_INFO, (_B,), pop.PollingInfo, pop.PollingInfoReply, (_topic("GET"), _group("GET"))),
    Row(RequestCode.POP_ROLLBACK, (_B,), None, None, (_cluster("GET"),)),
    Row(
        RequestCode.POP_LITE_MESSAGE,
        (_B,),
        lite.PopLiteMessage,
        lite.PopLiteMessageReply,
        (_topic("SUB"), _group("SUB")),
    ),
    Row(RequestCode.LITE_SUBSCRIPTION_CTL, (_B,), None, None, (_group("SUB", field="body"),)),
    Row(RequestCode.ACK_LITE_MESSAGE),
    Row(RequestCode.NOTIFY_UNSUBSCRIBE_LITE, (_C,), lite.NotifyUnsubscribeLite),
    Row(RequestCode.GET_BROKER_LITE_INFO, (_B,), None, None, (_cluster("GET"),)),
    Row(RequestCode.GET_PARENT_TOPIC_INFO, (_B,), lite.GetParentTopicInfo, None, (_topic("GET"),)),
    Row(RequestCode.GET_LITE_TOPIC_INFO, (_B,), lite.GetLiteTopicInfo, None, (_topic("GET", field="parent_topic"),)),
    Row(
        RequestCode.GET_LITE_CLIENT_INFO,
        (_B,),
        lite.GetLiteClientInfo,
        None,
        (_topic("GET", field="parent_topic"), _group("GET", field="group")),
    ),
    Row(RequestCode.GET_LITE_GROUP_INFO, (_B,), lite.GetLiteGroupInfo, None, (_group("GET", field="group"),)),
    Row(RequestCode.TRIGGER_LITE_DISPATCH, (_B,), lite.TriggerLiteDispatch, None, (_group("UPDATE", field="group"),)),
    Row(RequestCode.BATCH_ACK_MESSAGE, (_B,), None, None, (_group("SUB", field="body"),)),
)

ROWS: Final[dict[int, Row]] = {int(row.code): row for row in _TABLE}
"""Every request by its number."""
