"""Acknowledging popped messages, one or many, and hiding them for longer (or shorter)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aerobee.broker.pop_names import ORDER_QUEUE, Handle, topic_of_flag
from aerobee.broker.topics import REVIVE_QUEUES, SEE_FAQ
from aerobee.errors import MalformedRequest, ServerError
from aerobee.net.connection import Connection
from aerobee.protocol.bodies.pop import BatchAck, BatchAckMessageRequestBody
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.ack import AckMessage, ChangeInvisibleTime, ChangeInvisibleTimeReply

if TYPE_CHECKING:
    from aerobee.broker.server import Broker


async def acknowledge(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """ACK_MESSAGE. SUCCESS also for one that came too late: the message has come again, or was acknowledged before."""
    header = command.header(AckMessage)
    _check_place(broker, connection, header)
    low, high = broker.store.bounds(header.topic, header.queue_id)
    if not low <= header.offset <= high:
        raise ServerError(
            ResponseCode.NO_MESSAGE,
            f"offset is illegal, key:{header.topic}@{header.queue_id}, commit:{header.offset}, store:{low}~{high}",
        )
    handle = Handle.parse(header.extra_info)
    topic, group, queue_id = header.topic, header.consumer_group, header.queue_id
    if handle.revive_queue == ORDER_QUEUE:
        old = broker.offsets.query(group, topic, queue_id)
        if not await broker.pop.acknowledge_in_order(topic, group, queue_id, header.offset, handle.pop_time):
            raise ServerError(
                ResponseCode.MESSAGE_ILLEGAL,
                f"offset is illegal, key:{topic}@{group}@{queue_id}, old:{old}, commit:{header.offset}, next:-1,"
                f" {connection.peer}",
            )
        return command.reply()
    key = (topic, group, queue_id, handle.start_offset, handle.pop_time)
    await broker.pop.acknowledge(key, [header.offset], handle.broker_name)
    return command.reply()


async def acknowledge_batch(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """BATCH_ACK_MESSAGE: messages of several pops."""
    body = BatchAckMessageRequestBody.from_json(command.body) if command.body else None
    if body is None or not body.acks:
        return command.reply(ResponseCode.NO_MESSAGE, remark="nothing is acknowledged")
    for batch in body.acks:
        await _acknowledge_one_batch(broker, connection, batch, body.broker_name or broker.options.broker_name)
    return command.reply()


async def _acknowledge_one_batch(broker: Broker, connection: Connection, batch: BatchAck, broker_name: str) -> None:
    if batch.topic is None or batch.consumer_group is None:
        raise MalformedRequest("BatchAck: fields t and c must be there")
    group, queue_id = batch.consumer_group, batch.queue_id
    topic = topic_of_flag(batch.retry or "0", batch.topic, group)
    config = broker.topics.get(topic)
    if config is None or not 0 <= queue_id < config.read_queue_nums:
        return  # as Apache's broker does: the others of the request are done all the same
    low, high = broker.store.bounds(topic, queue_id)
    offsets = [offset for offset in batch.offsets() if low <= offset <= high]
    if batch.revive_queue_id != ORDER_QUEUE:
        if offsets:
            key = (topic, group, queue_id, batch.start_offset, batch.pop_time)
            await broker.pop.acknowledge(key, offsets, broker_name)
        return
    for offset in offsets:
        if not await broker.pop.acknowledge_in_order(topic, group, queue_id, offset, batch.pop_time):
            raise ServerError(
                ResponseCode.MESSAGE_ILLEGAL,
                f"offset is illegal, key:{topic}@{group}@{queue_id}, commit:{offset}, next:-1, {connection.peer}",
            )


async def change_invisible_time(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """CHANGE_MESSAGE_INVISIBLETIME: the message comes again so many ms from now. Answers the new handle."""
    header = command.header(ChangeInvisibleTime)
    _check_place(broker, connection, header)
    topic, group, queue_id = header.topic, header.consumer_group, header.queue_id
    low, high = broker.store.bounds(topic, queue_id)
    if not low <= header.offset < high:
        return command.reply(
            ResponseCode.NO_MESSAGE, remark=f"offset {header.offset} of {topic}@{queue_id} is not in {low}~{high}"
        )
    handle = Handle.parse(header.extra_info)
    if handle.revive_queue == ORDER_QUEUE:
        if header.offset < broker.offsets.query(group, topic, queue_id):
            return command.reply()
        visible_ms = broker.clock.now_ms() + header.invisible_time
        await broker.pop.hide_on_in_order(topic, group, queue_id, header.offset, handle.pop_time, visible_ms)
        pop_time, invisible_time = handle.pop_time, visible_ms - handle.pop_time
    else:
        if not 0 <= handle.revive_queue < REVIVE_QUEUES:
            raise MalformedRequest(f"extraInfo names revive queue {handle.revive_queue}, there are {REVIVE_QUEUES}")
        key = (topic, group, queue_id, handle.start_offset, handle.pop_time)
        invisible_time = header.invisible_time
        pop_time = await broker.pop.hide_on(
            key,
            header.offset,
            invisible_time,
            handle.revive_queue,
            suspend=header.suspend,
            broker_name=handle.broker_name,
        )
    reply = ChangeInvisibleTimeReply(pop_time=pop_time, invisible_time=invisible_time, revive_qid=handle.revive_queue)
    return command.reply(header=reply)


def _check_place(broker: Broker, connection: Connection, header: AckMessage | ChangeInvisibleTime) -> None:
    config = broker.topics.get(header.topic)
    if config is None:
        raise ServerError(
            ResponseCode.TOPIC_NOT_EXIST, f"topic[{header.topic}] not exist, apply first please! {SEE_FAQ}"
        )
    if not 0 <= header.queue_id < config.read_queue_nums:
        raise ServerError(
            ResponseCode.MESSAGE_ILLEGAL,
            f"queueId[{header.queue_id}] is illegal, topic:[{header.topic}]"
            f" topicConfig.readQueueNums:[{config.read_queue_nums}] consumer:[{connection.peer}]",
        )


HANDLERS = {
    RequestCode.ACK_MESSAGE: acknowledge,
    RequestCode.BATCH_ACK_MESSAGE: acknowledge_batch,
    RequestCode.CHANGE_MESSAGE_INVISIBLETIME: change_invisible_time,
}
