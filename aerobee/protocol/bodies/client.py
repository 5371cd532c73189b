# ruff: noqa: RUF012 - msgspec gives each object its own copy of an empty default
"""What clients say about themselves, and what they are asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import field

from aerobee.protocol.bodies import Body
from aerobee.protocol.fastjson import MessageQueue

if TYPE_CHECKING:
    Named = str
else:
    Named = str | int
"""A constant of a Java enum: its name, or, as the C++ client writes it, its number."""

CONSUME_TYPES: Final = ("CONSUME_ACTIVELY", "CONSUME_PASSIVELY", "CONSUME_POP")
MESSAGE_MODELS: Final = ("BROADCASTING", "CLUSTERING", "LITE_SELECTIVE")
CONSUME_FROM: Final = (
    "CONSUME_FROM_LAST_OFFSET",
    "CONSUME_FROM_LAST_OFFSET_AND_FROM_MIN_WHEN_BOOT_FIRST",
    "CONSUME_FROM_MIN_OFFSET",
    "CONSUME_FROM_MAX_OFFSET",
    "CONSUME_FROM_FIRST_OFFSET",
    "CONSUME_FROM_TIMESTAMP",
)


def _name(value: str | int, names: tuple[str, ...]) -> str:
    if isinstance(value, str):
        return value
    if not 0 <= value < len(names):
        raise ValueError(f"{value} is none of the numbers of {', '.join(names)}")
    return names[value]


class SubscriptionData(Body):
    """What a group wants of a topic. `code_set`: Java's hashes of the tags; `sub_version` in ms, the newest counts."""

    topic: str = ""
    sub_string: str = ""
    expression_type: str = "TAG"
    tags_set: list[str] = []
    code_set: list[int] = []
    sub_version: int = 0
    class_filter_mode: bool = False
    filter_class_source: str | None = None


class ProducerData(Body):
    """A producer group of a client."""

    group_name: str = ""


class ConsumerData(Body):
    """A consumer group of a client."""

    group_name: str = ""
    consume_type: Named = "CONSUME_PASSIVELY"
    message_model: Named = "CLUSTERING"
    consume_from_where: Named = "CONSUME_FROM_LAST_OFFSET"
    subscription_data_set: list[SubscriptionData] = []
    unit_mode: bool = False

    def __post_init__(self) -> None:
        self.consume_type = _name(self.consume_type, CONSUME_TYPES)
        self.message_model = _name(self.message_model, MESSAGE_MODELS)
        self.consume_from_where = _name(self.consume_from_where, CONSUME_FROM)


class HeartbeatData(Body):
    """HEART_BEAT's body. A fingerprint other than 0 is version 2: without subscriptions when nothing changed."""

    client_id: str = field(name="clientID", default="")
    producer_data_set: list[ProducerData] = []
    consumer_data_set: list[ConsumerData] = []
    heartbeat_fingerprint: int = 0
    is_without_sub: bool = field(name="withoutSub", default=False)


class CheckClientRequestBody(Body):
    """CHECK_CLIENT_CONFIG's body: can the broker understand this subscription?"""

    client_id: str | None = None
    group: str | None = None
    subscription_data: SubscriptionData | None = None
    namespace: str | None = None


class GetConsumerListByGroupResponseBody(Body):
    """GET_CONSUMER_LIST_BY_GROUP's answer."""

    consumer_id_list: list[str] = []


class LockBatchRequestBody(Body):
    """LOCK_BATCH_MQ's body."""

    consumer_group: str = ""
    client_id: str = ""
    only_this_broker: bool = False
    mq_set: list[MessageQueue] = []


class UnlockBatchRequestBody(LockBatchRequestBody):
    """UNLOCK_BATCH_MQ's body."""

    consumer_group: str


class LockBatchResponseBody(Body):
    """LOCK_BATCH_MQ's answer: what was locked."""

    lock_ok_mq_set: list[MessageQueue] = field(name="lockOKMQSet", default_factory=list)


class Connection(Body):
    """A connected client. `version`: an ordinal of Java's list."""

    client_id: str | None = None
    client_addr: str | None = None
    language: str | None = None
    version: int = 0


class ConsumerConnection(Body):
    """GET_CONSUMER_CONNECTION_LIST's answer."""

    connection_set: list[Connection] = []
    subscription_table: dict[str, SubscriptionData] = {}
    consume_type: str | None = None
    message_model: str | None = None
    consume_from_where: str | None = None


class ProducerConnection(Body):
    """GET_PRODUCER_CONNECTION_LIST's answer."""

    connection_set: list[Connection] = []


class ProducerInfo(Body):
    """A connected producer."""

    client_id: str | None = None
    remote_ip: str | None = field(name="remoteIP", default=None)
    language: str | None = None
    version: int = 0
    last_update_timestamp: int = 0


class ProducerTableInfo(Body):
    """GET_ALL_PRODUCER_INFO's answer: producers by group."""

    data: dict[str, list[ProducerInfo]] = {}


class ProcessQueueInfo(Body):
    """What a consumer holds of one queue. Times in ms; `droped` is Java's spelling."""

    commit_offset: int = 0
    cached_msg_min_offset: int = 0
    cached_msg_max_offset: int = 0
    cached_msg_count: int = 0
    cached_msg_size_in_mi_b: int = 0
    transaction_msg_min_offset: int = 0
    transaction_msg_max_offset: int = 0
    transaction_msg_count: int = 0
    locked: bool = False
    try_unlock_times: int = 0
    last_lock_timestamp: int = 0
    droped: bool = False
    last_pull_timestamp: int = 0
    last_consume_timestamp: int = 0


class PopProcessQueueInfo(Body):
    """The same of a queue that is popped."""

    wait_ack_count: int = 0
    droped: bool = False
    last_pop_timestamp: int = 0


class ConsumeStatus(Body):
    """How fast a consumer works on a topic: rates a second, times in ms."""

    pull_rt: float = field(name="pullRT", default=0.0)
    pull_tps: float = field(name="pullTPS", default=0.0)
    consume_rt: float = field(name="consumeRT", default=0.0)
    consume_ok_tps: float = field(name="consumeOKTPS", default=0.0)
    consume_failed_tps: float = field(name="consumeFailedTPS", default=0.0)
    consume_failed_msgs: int = 0


class ConsumerRunningInfo(Body):
    """GET_CONSUMER_RUNNING_INFO's answer."""

    properties: dict[str, str] = {}
    subscription_set: list[SubscriptionData] = []
    mq_table: dict[MessageQueue, ProcessQueueInfo] = {}
    mq_pop_table: dict[MessageQueue, PopProcessQueueInfo] = {}
    status_table: dict[str, ConsumeStatus] = {}
    user_consumer_info: dict[str, str] = {}
    jstack: str | None = None


class ConsumeMessageDirectlyResult(Body):
    """CONSUME_MESSAGE_DIRECTLY's answer. `consume_result`: CR_SUCCESS, CR_LATER, CR_THROW_EXCEPTION …"""

    order: bool = False
    auto_commit: bool = True
    consume_result: str | None = None
    remark: str | None = None
    spent_time_mills: int = 0


class GetConsumerStatusBody(Body):
    """The offsets that members hold: a member's own, or those of all by client id."""

    message_queue_table: dict[MessageQueue, int] = {}
    consumer_table: dict[str, dict[MessageQueue, int]] = {}


class ResetOffsetBody(Body):
    """Queues and the offsets they were or are to be set to."""

    offset_table: dict[MessageQueue, int] = {}


class MessageQueueForC(Body):
    """A queue and its offset, for C++."""

    topic: str = ""
    broker_name: str = ""
    queue_id: int = 0
    offset: int = 0


class ResetOffsetBodyForC(Body):
    """ResetOffsetBody as C++ reads it."""

    offset_table: list[MessageQueueForC] = []
