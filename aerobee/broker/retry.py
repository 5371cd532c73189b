"""Retries: a message that could not be consumed comes again to its group, later each time, then to the dead letters.

send back (36)      reconsumeTimes ≥ max or delayLevel < 0 → %DLQ%group, else %RETRY%group at delay level 3 + times
send (310) to       reconsumeTimes > max, or the group consumes in order (it holds a lock) → %DLQ%group,
  %RETRY%group      else as the sender says
max                 the group's retryMaxTimes, or what the client asks (since 3.4.9)
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Final

from aerobee.broker.records import parse_record
from aerobee.broker.topics import DLQ_PREFIX, PERM_WRITE, RETRY_PREFIX, SEE_FAQ, is_compacted, possible_queues
from aerobee.broker.transactions import UNIQUE_KEY
from aerobee.errors import ServerError
from aerobee.protocol.codes import ResponseCode
from aerobee.protocol.headers.send import ConsumerSendMsgBack, SendMessage, SendMessageV2
from aerobee.protocol.message import PROPERTY_WAIT

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

_log = logging.getLogger("aerobee.broker.retry")

DLQ_QUEUES: Final = 1
FIRST_DELAY_LEVEL: Final = 3
VERSION_3_4_9: Final = 121
"""Clients from here on may say how often they want a message retried."""

RETRY_TOPIC: Final = "RETRY_TOPIC"
ORIGIN_MESSAGE_ID: Final = "ORIGIN_MESSAGE_ID"


async def send_back(broker: Broker, version: int, header: ConsumerSendMsgBack) -> None:
    """Stores the message at `header.offset` again for its group. Raises ServerError with Apache's remarks."""
    group = broker.groups.find(header.group)
    if group is None:
        raise ServerError(
            ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"subscription group not exist, {header.group} {SEE_FAQ}"
        )
    if not broker.options.broker_permission & PERM_WRITE:
        raise ServerError(ResponseCode.NO_PERMISSION, f"the broker[{broker.host}] sending message is forbidden")
    if group.retry_queue_nums <= 0:
        return  # the group is set up not to retry: the message is dropped, as the operator wants
    topic = RETRY_PREFIX + header.group
    config = await broker.topics.create_for_group(topic, group.retry_queue_nums, sys_flag=2 if header.unit_mode else 0)
    if not config.perm & PERM_WRITE:
        raise ServerError(ResponseCode.NO_PERMISSION, f"the topic[{topic}] sending message is forbidden")
    data = broker.store.record(header.offset)
    try:
        message = parse_record(data) if data is not None else None
    except ValueError:
        message = None
    origin = broker.topics.get(header.origin_topic or "")
    if message is not None and origin is not None and is_compacted(origin):
        # Its log file may have gone: then the place it names is that of its copy, and here another message's.
        if header.origin_msg_id not in (message.properties.get(UNIQUE_KEY), message.offset_id):
            message = None
    if message is None:
        raise ServerError(ResponseCode.SYSTEM_ERROR, f"look message by offset failed, {header.offset}")

    properties = dict(message.properties)
    properties.setdefault(RETRY_TOPIC, message.topic)
    properties.setdefault(ORIGIN_MESSAGE_ID, message.offset_id)
    properties[PROPERTY_WAIT] = "false"
    queue_id, tags_code = random.randrange(possible_queues(group.retry_queue_nums)), None
    if (
        message.reconsume_times >= _max_times(group.retry_max_times, version, header.max_reconsume_times)
        or header.delay_level < 0
    ):
        topic, queue_id = await dead_letter(broker, header.group), random.randrange(DLQ_QUEUES)
        properties["DELAY"] = "0"
        _log.info("message %s of topic %s goes to %s", message.offset_id, properties[RETRY_TOPIC], topic)
    else:
        level = header.delay_level or FIRST_DELAY_LEVEL + message.reconsume_times
        topic, queue_id, tags_code = broker.delay.place(topic, queue_id, properties, level)
    broker.stats.sent_back(header.group, properties[RETRY_TOPIC])
    record = message.to_record(
        topic, queue_id, properties=properties, reconsume_times=message.reconsume_times + 1, tags_code=tags_code
    )
    receipt = broker.store.append([record])[0]
    if tags_code is not None:
        broker.store.when_flushed(receipt, broker.delay.scheduled)
    await broker.store.flushed(receipt)


async def place_retry(
    broker: Broker, version: int, header: SendMessage | SendMessageV2, queue_id: int, properties: dict[str, str]
) -> tuple[str, int]:
    """Where a message sent to a retry topic belongs: (topic, queue). ServerError SUBSCRIPTION_GROUP_NOT_EXIST."""
    name = group_of(header.topic)
    group = broker.groups.find(name)
    if group is None:
        raise ServerError(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"subscription group not exist, {name} {SEE_FAQ}")
    times_max = _max_times(group.retry_max_times, version, header.max_reconsume_times)
    if header.reconsume_times <= times_max and not broker.order.any_held(name):
        return header.topic, queue_id
    properties["DELAY"] = "-1"
    return await dead_letter(broker, name), random.randrange(DLQ_QUEUES)


async def dead_letter(broker: Broker, group: str) -> str:
    """The group's dead-letter topic, made now if need be."""
    config = await broker.topics.create_for_group(DLQ_PREFIX + group, DLQ_QUEUES)
    broker.stats.dead_lettered(group)
    return config.topic_name


def group_of(retry_topic: str) -> str:
    """`%RETRY%group` → `group`; of a pop retry topic (`%RETRY%group+topic`) too."""
    return retry_topic.removeprefix(RETRY_PREFIX).partition("+")[0]


def _max_times(configured: int, version: int, asked: int | None) -> int:
    return asked if asked is not None and version >= VERSION_3_4_9 else configured
