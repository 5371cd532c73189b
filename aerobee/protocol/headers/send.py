"""Headers of sending: 10, 310, 320; sending back: 36; replies of request-reply: 324, 325, 326; recall: 370."""

from __future__ import annotations

from msgspec import field

from aerobee.protocol.headers import Header, Int32, Int64


class SendMessage(Header, frozen=True):
    """SEND_MESSAGE and SEND_REPLY_MESSAGE. `queue_id` -1 lets the broker choose; times in ms."""

    producer_group: str
    topic: str
    default_topic: str
    default_topic_queue_nums: Int32
    queue_id: Int32
    sys_flag: Int32
    born_timestamp: Int64
    flag: Int32
    properties: str = ""
    reconsume_times: Int32 = 0
    unit_mode: bool = False
    batch: bool = False
    max_reconsume_times: Int32 | None = None
    broker_name: str | None = field(name="bname", default=None)


class SendMessageV2(Header, frozen=True):
    """The same in letters: SEND_MESSAGE_V2, SEND_BATCH_MESSAGE, SEND_REPLY_MESSAGE_V2."""

    producer_group: str = field(name="a")
    topic: str = field(name="b")
    default_topic: str = field(name="c")
    default_topic_queue_nums: Int32 = field(name="d")
    queue_id: Int32 = field(name="e")
    sys_flag: Int32 = field(name="f")
    born_timestamp: Int64 = field(name="g")
    flag: Int32 = field(name="h")
    properties: str = field(name="i", default="")
    reconsume_times: Int32 = field(name="j", default=0)
    unit_mode: bool = field(name="k", default=False)
    batch: bool = field(name="m", default=False)
    max_reconsume_times: Int32 | None = field(name="l", default=None)
    broker_name: str | None = field(name="n", default=None)


class SendMessageReply(Header, frozen=True):
    """Where the message is. Of a batch: ids joined by commas, the first offset."""

    msg_id: str
    queue_id: Int32
    queue_offset: Int64
    transaction_id: str | None = None
    batch_uniq_id: str | None = None
    recall_handle: str | None = None


class ConsumerSendMsgBack(Header, frozen=True):
    """CONSUMER_SEND_MSG_BACK: not consumed, deliver again. `offset` is the record's position in the log."""

    offset: Int64
    group: str
    delay_level: Int32
    origin_msg_id: str | None = None
    origin_topic: str | None = None
    unit_mode: bool = False
    max_reconsume_times: Int32 | None = None


class ReplyMessage(Header, frozen=True):
    """PUSH_REPLY_MESSAGE_TO_CLIENT: a broker hands a reply to whom it is for."""

    producer_group: str
    topic: str
    default_topic: str
    default_topic_queue_nums: Int32
    queue_id: Int32
    sys_flag: Int32
    born_timestamp: Int64
    flag: Int32
    born_host: str
    store_host: str
    store_timestamp: Int64
    properties: str = ""
    reconsume_times: Int32 = 0
    unit_mode: bool = False


class RecallMessage(Header, frozen=True):
    """RECALL_MESSAGE: cancel a delayed message that is not due yet."""

    topic: str
    recall_handle: str
    producer_group: str | None = None


class RecallMessageReply(Header, frozen=True):
    """The answer to RecallMessage."""

    msg_id: str
