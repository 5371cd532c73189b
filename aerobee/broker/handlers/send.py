"""Sends that the engine leaves to policy: a topic that does not exist yet, retries, delays, transactions, refusals.

One send, read aloud: where to, may it be stored there, is it a retry that has had its chances, which properties does it
get, does it wait (delay), is it half (transaction) — append, answer.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from aerobee.broker import message_types, retry
from aerobee.broker.compaction import check_key
from aerobee.broker.records import PREPARED, format_properties, parse_properties
from aerobee.broker.store import Receipt, Record
from aerobee.broker.timer import recall_handle
from aerobee.broker.topics import (
    NOT_SENDABLE,
    PERM_WRITE,
    RETRY_PREFIX,
    SEE_FAQ,
    TIMER_TOPIC,
    has_batch_queues,
    is_compacted,
    validate_name,
)
from aerobee.broker.transactions import PREPARED_PROPERTY, PRODUCER_GROUP
from aerobee.errors import FlushDiskTimeout, ServerError
from aerobee.net.connection import Connection
from aerobee.options import JAVA_INT_MAX
from aerobee.protocol.bodies.topics import TopicConfig
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.send import ConsumerSendMsgBack, SendMessage, SendMessageReply, SendMessageV2
from aerobee.protocol.message import PROPERTIES_BYTES_MAX, new_unique_id

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

DELAY: Final = "DELAY"
INT_DIGITS_MAX: Final = 10
"""`int` itself refuses thousands of them."""
PRIORITY: Final = "_SYS_MSG_PRIORITY_"
UNIQUE_KEY: Final = "UNIQ_KEY"
OF_THE_BROKER: Final = frozenset({"INNER_NUM", "INNER_BASE", "INNER_MULTI_QUEUE_OFFSET"})
"""What queues are rebuilt from: the broker's word. The properties of a message in a batch are stored as they came."""
MULTI_TAGS: Final = 1 << 1
NEED_UNWRAP: Final = 1 << 6
INNER_BATCH: Final = 1 << 7
BATCH_MESSAGES_MAX: Final = 1 << 18
"""A batch's reply names each of its messages, and with more it fits no frame; see the engine's `send.rs`."""
V2_CODES: Final = frozenset(
    {RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE, RequestCode.SEND_REPLY_MESSAGE_V2}
)

_INNER: Final = struct.Struct(">iiiii")
"""Of a message in a batch: size, magic, CRC, flag, body length."""


def send_header(command: RemotingCommand) -> SendMessage | SendMessageV2:
    """The header in whichever spelling the code has; the attributes are the same."""
    if command.code in V2_CODES:
        return command.header(SendMessageV2)
    return command.header(SendMessage)


async def send(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """SEND_MESSAGE, SEND_MESSAGE_V2, SEND_BATCH_MESSAGE."""
    header = send_header(command)
    config = await sendable_topic(broker, header)
    queue_id = choose_queue(broker, connection, header, config)
    if header.batch or command.code == RequestCode.SEND_BATCH_MESSAGE:
        outer = parse_properties(header.properties)
        if has_batch_queues(config) and outer.get(UNIQUE_KEY):
            return await _send_whole_batch(broker, connection, command, header, config, queue_id, outer)
        return await _send_batch(broker, connection, command, header, config, queue_id)

    topic = header.topic
    check_body(broker, command.body)
    properties = sender_properties(broker, header)
    check_inner_batch(broker, config, header.sys_flag, properties)
    if broker.options.enable_topic_message_type_check:
        message_types.check(config, properties)
    if is_compacted(config):
        check_key(properties)
    reconsume_times = header.reconsume_times
    if topic.startswith(RETRY_PREFIX):
        topic, queue_id = await retry.place_retry(broker, command.version, header, queue_id, properties)
    queue_id = chosen = apply_priority(properties, config, queue_id)

    sys_flag = header.sys_flag | (MULTI_TAGS if config.topic_filter_type == "MULTI_TAG" else 0)
    tags_code: int | None = None
    level = delay_level(broker, properties)
    if properties.get(PREPARED_PROPERTY, "").lower() == "true" and not (reconsume_times > 0 and level > 0):
        if broker.options.reject_transaction_message:
            raise ServerError(
                ResponseCode.NO_PERMISSION, f"the broker[{broker.host}] sending transaction message is forbidden"
            )
        properties.setdefault(PRODUCER_GROUP, header.producer_group)
        topic, queue_id, sys_flag = broker.transactions.prepare(topic, queue_id, properties, sys_flag)
    elif level > 0:
        topic, queue_id, tags_code = broker.delay.place(topic, queue_id, properties, level)
    else:
        sys_flag &= ~PREPARED
        topic, queue_id, tags_code = place_timer(broker, topic, queue_id, properties)

    record = Record(
        topic,
        queue_id,
        command.body,
        stored_properties(broker, properties),
        flag=header.flag,
        sys_flag=sys_flag,
        born_timestamp=header.born_timestamp,
        born_host=connection.peer,
        reconsume_times=reconsume_times,
        tags_code=tags_code,
    )
    receipt = broker.store.append([record])[0]
    if topic == TIMER_TOPIC:
        broker.store.when_flushed(receipt, broker.timer.scheduled)
    elif tags_code is not None:
        broker.store.when_flushed(receipt, broker.delay.scheduled)
    # Where a message waits is not the sender's business: it hears the queue it will be in.
    reply = await _accepted(broker, command, [receipt], chosen, properties.get(UNIQUE_KEY))
    handle = recall_handle(topic, broker.options.broker_name, properties)
    if handle is not None:
        reply.ext_fields["recallHandle"] = handle
    return reply


async def _send_batch(
    broker: Broker,
    connection: Connection,
    command: RemotingCommand,
    header: SendMessage | SendMessageV2,
    config: TopicConfig,
    queue_id: int,
) -> RemotingCommand:
    if header.topic.startswith(RETRY_PREFIX):
        raise ServerError(ResponseCode.MESSAGE_ILLEGAL, f"batch request does not support retry group {header.topic}")
    check_body(broker, command.body)
    sys_flag = header.sys_flag | (MULTI_TAGS if config.topic_filter_type == "MULTI_TAG" else 0)
    check_inner_batch(broker, config, sys_flag, {})
    outer = parse_properties(header.properties)
    stored_properties(broker, outer)  # they are not stored, but the reply has the key that is among them
    records: list[Record] = []
    for flag, body, properties in unpack_batch(command.body, any_size=True):
        if len(records) == BATCH_MESSAGES_MAX:
            raise ServerError(
                ResponseCode.MESSAGE_ILLEGAL,
                f"a batch has at most {BATCH_MESSAGES_MAX} messages: the reply could not name more",
            )
        if broker.options.enable_topic_message_type_check:
            message_types.check(config, parse_properties(properties.decode("utf-8", "replace")))
        if is_compacted(config):
            check_key(parse_properties(properties.decode("utf-8", "replace")))
        if b"INNER_" in properties:
            _check_claims(properties)
        records.append(
            Record(
                header.topic,
                queue_id,
                body,
                properties,
                flag=flag,
                sys_flag=sys_flag,
                born_timestamp=header.born_timestamp,
                born_host=connection.peer,
                reconsume_times=header.reconsume_times,
                multi_dispatch=False,
            )
        )
    if not records:
        raise ServerError(ResponseCode.MESSAGE_ILLEGAL, "the batch is empty")
    receipts = broker.store.append(records)
    return await _accepted(broker, command, receipts, queue_id, outer.get(UNIQUE_KEY))


async def _send_whole_batch(
    broker: Broker,
    connection: Connection,
    command: RemotingCommand,
    header: SendMessage | SendMessageV2,
    config: TopicConfig,
    queue_id: int,
    properties: dict[str, str],
) -> RemotingCommand:
    """To a topic with batch queues: the batch is one record that the reader takes apart."""
    check_body(broker, command.body)
    count = 0
    for _, _, inner in unpack_batch(command.body):
        if broker.options.enable_topic_message_type_check:
            message_types.check(config, parse_properties(inner.decode("utf-8", "replace")))
        count += 1
    properties["CLUSTER"] = broker.options.broker_cluster_name
    properties["INNER_NUM"] = str(count)
    record = Record(
        header.topic,
        queue_id,
        command.body,
        stored_properties(broker, properties),
        flag=header.flag,
        sys_flag=header.sys_flag
        | NEED_UNWRAP
        | INNER_BATCH
        | (MULTI_TAGS if config.topic_filter_type == "MULTI_TAG" else 0),
        born_timestamp=header.born_timestamp,
        born_host=connection.peer,
        reconsume_times=header.reconsume_times,
    )
    receipts = broker.store.append([record])
    unique = properties[UNIQUE_KEY]
    reply = await _accepted(broker, command, receipts, queue_id, unique)
    reply.ext_fields["batchUniqId"] = unique
    return reply


async def send_back(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """CONSUMER_SEND_MSG_BACK: a consumer could not handle a message; it comes again later, or to the dead letters."""
    await retry.send_back(broker, command.version, command.header(ConsumerSendMsgBack))
    return command.reply()


# What every way of sending has in common.


async def sendable_topic(broker: Broker, header: SendMessage | SendMessageV2) -> TopicConfig:
    """The topic to send to, made now if it may be. Raises ServerError with the reason when it may not be sent to."""
    topic = header.topic
    if not broker.options.broker_permission & PERM_WRITE and broker.topics.is_order(topic):
        raise ServerError(ResponseCode.NO_PERMISSION, f"the broker[{broker.host}] sending message is forbidden")
    problem = validate_name(topic)
    if problem is not None:
        raise ServerError(ResponseCode.INVALID_PARAMETER, problem)
    if topic in NOT_SENDABLE:
        raise ServerError(ResponseCode.NO_PERMISSION, f"Sending message to topic[{topic}] is forbidden.")
    config = broker.topics.get(topic)
    if config is None:
        sys_flag = (2 if topic.startswith(RETRY_PREFIX) else 1) if header.unit_mode else 0
        config = await broker.topics.create_for_send(
            topic, header.default_topic, header.default_topic_queue_nums, sys_flag
        )
        if config is not None:
            await broker.topic_created(config)
        elif topic.startswith(RETRY_PREFIX):
            config = await broker.topics.create_for_group(topic, 1, sys_flag=sys_flag)
    if config is None:
        raise ServerError(ResponseCode.TOPIC_NOT_EXIST, f"topic[{topic}] not exist, apply first please!{SEE_FAQ}")
    if not config.perm & PERM_WRITE:
        raise ServerError(ResponseCode.NO_PERMISSION, f"the topic[{topic}] sending message is forbidden")
    return config


def choose_queue(
    broker: Broker, connection: Connection, header: SendMessage | SendMessageV2, config: TopicConfig
) -> int:
    """The queue asked for, or any if the client leaves it to us. Raises ServerError INVALID_PARAMETER."""
    if header.queue_id >= max(config.write_queue_nums, config.read_queue_nums):
        raise ServerError(
            ResponseCode.INVALID_PARAMETER,
            f"request queueId[{header.queue_id}] is illegal, topic [{config.topic_name}]"
            f" has {config.write_queue_nums} queues Producer: {connection.peer}",
        )
    if header.queue_id >= 0:
        return header.queue_id
    if config.write_queue_nums <= 0:
        raise ServerError(ResponseCode.NO_PERMISSION, f"the topic[{config.topic_name}] has no queue to write")
    return random.randrange(config.write_queue_nums)


def check_body(broker: Broker, body: bytes) -> None:
    """Raises ServerError MESSAGE_ILLEGAL for a body that is too large. An empty one is stored."""
    if len(body) > broker.options.max_message_size:
        raise ServerError(ResponseCode.MESSAGE_ILLEGAL, illegal_remark(broker))


def check_inner_batch(broker: Broker, config: TopicConfig, sys_flag: int, properties: dict[str, str]) -> None:
    """Raises ServerError MESSAGE_ILLEGAL for a batch in one message where none can be, or one that does not say so."""
    whole = bool(sys_flag & INNER_BATCH)
    if (whole and not has_batch_queues(config)) or ("INNER_NUM" in properties and not whole):
        raise ServerError(ResponseCode.MESSAGE_ILLEGAL, illegal_remark(broker))


def _check_claims(properties: bytes) -> None:
    """Raises ServerError MESSAGE_ILLEGAL for a message in a batch that says what only the broker may."""
    for name in OF_THE_BROKER.intersection(parse_properties(properties.decode("utf-8", "replace"))):
        raise ServerError(ResponseCode.MESSAGE_ILLEGAL, f"{name} is for the broker to say")


def illegal_remark(broker: Broker) -> str:
    """Apache's sentence about sizes."""
    return (
        "the message is illegal, maybe msg body or properties length not matched. "
        f"msg body length limit {broker.options.max_message_size}B, msg properties length limit 32KB."
    )


def sender_properties(broker: Broker, header: SendMessage | SendMessageV2) -> dict[str, str]:
    """The sender's properties with what the broker adds."""
    properties = parse_properties(header.properties)
    properties.pop("POP_CK", None)
    properties["MSG_REGION"] = broker.options.region_id
    properties["TRACE_ON"] = "true" if broker.options.trace_on else "false"
    if not properties.get(UNIQUE_KEY):
        properties[UNIQUE_KEY] = new_unique_id()
    properties["CLUSTER"] = broker.options.broker_cluster_name
    return properties


def stored_properties(broker: Broker, properties: dict[str, str]) -> bytes:
    """As they are stored. Raises ServerError MESSAGE_ILLEGAL when they are too long."""
    data = format_properties(properties)
    if len(data) > PROPERTIES_BYTES_MAX:
        raise ServerError(ResponseCode.MESSAGE_ILLEGAL, illegal_remark(broker))
    return data


def delay_level(broker: Broker, properties: dict[str, str]) -> int:
    """The delay level asked for; 0: none. Raises ServerError when it is no number."""
    text = properties.get(DELAY)
    if text is not None:
        try:
            level = int(text)
        except ValueError:
            raise ServerError(ResponseCode.MESSAGE_ILLEGAL, f"property DELAY must be a number, not {text!r}") from None
        if level > 0:
            return level
    return 0


def place_timer(broker: Broker, topic: str, queue_id: int, properties: dict[str, str]) -> tuple[str, int, int | None]:
    """Where a message stays until the exact time it names: (topic, queue, tags code). ServerError when it may not."""
    place = broker.timer.place(topic, queue_id, properties)
    if place[0] != TIMER_TOPIC:
        return place
    if not broker.options.timer_wheel_enable:
        raise ServerError(ResponseCode.SYSTEM_ERROR, "accurate timer message is not enabled, timerWheelEnable is false")
    limit = broker.options.timer_congest_num_each_slot
    if limit < 2**31 - 1:
        waiting = broker.timer.congestion(int(properties["TIMER_OUT_MS"]))
        if waiting > limit * (1 + random.random()):
            raise ServerError(
                ResponseCode.SYSTEM_ERROR,
                f"timer message is under flow control, max num limit is {limit * 2} or the current value is greater "
                f"than {limit} and less than {limit * 2}, trigger random flow control",
            )
    return place


def apply_priority(properties: dict[str, str], config: TopicConfig, queue_id: int) -> int:
    """The queue for a message with a priority; of a message that is more than that, the property is taken away."""
    value = properties.get(PRIORITY, "")
    if not value.isdecimal() or len(value) > INT_DIGITS_MAX or int(value) > JAVA_INT_MAX:
        return queue_id
    if message_types.type_of_message(properties) != "PRIORITY":
        del properties[PRIORITY]
        return queue_id
    return min(int(value), config.write_queue_nums - 1)


def unpack_batch(body: bytes, *, any_size: bool = False) -> Iterator[tuple[int, bytes, bytes]]:
    """(flag, body, properties) of each message in a batch. Raises ServerError MESSAGE_ILLEGAL.

    A message's size follows from the lengths behind it. Who takes a batch apart goes by these (`any_size`); a batch
    that stays whole is counted by the sizes, elsewhere too, so there they must be right.
    """
    at = 0
    try:
        while at < len(body):
            size, _, _, flag, length = _INNER.unpack_from(body, at)
            start = at + _INNER.size
            (properties_length,) = struct.unpack_from(">h", body, start + length)
            end = start + length + 2 + properties_length
            if length < 0 or properties_length < 0 or end > len(body) or not (any_size or end == at + size):
                raise ServerError(ResponseCode.MESSAGE_ILLEGAL, "the batch's lengths do not fit each other")
            yield flag, body[start : start + length], body[start + length + 2 : end]
            at = end
    except struct.error:
        raise ServerError(ResponseCode.MESSAGE_ILLEGAL, "the batch ends within a message") from None


async def _accepted(
    broker: Broker, command: RemotingCommand, receipts: list[Receipt], queue_id: int, unique: str | None
) -> RemotingCommand:
    """The answer when what was written is as safe as the options promise; FLUSH_DISK_TIMEOUT: it is stored, and where,
    but the disk has not said so in time."""
    code = ResponseCode.SUCCESS
    try:
        await broker.store.flushed(receipts[-1])
    except FlushDiskTimeout:
        code = ResponseCode.FLUSH_DISK_TIMEOUT
    ids = ",".join(receipt.message_id for receipt in receipts)
    offset = receipts[0].queue_offset
    reply = command.reply(
        code, SendMessageReply(msg_id=ids, queue_id=queue_id, queue_offset=offset, transaction_id=unique)
    )
    reply.ext_fields["MSG_REGION"] = broker.options.region_id
    reply.ext_fields["TRACE_ON"] = "true" if broker.options.trace_on else "false"
    return reply


HANDLERS = {
    RequestCode.SEND_MESSAGE: send,
    RequestCode.SEND_MESSAGE_V2: send,
    RequestCode.SEND_BATCH_MESSAGE: send,
    RequestCode.CONSUMER_SEND_MSG_BACK: send_back,
}
