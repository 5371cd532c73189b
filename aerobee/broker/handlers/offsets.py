"""Offsets: what a group consumed, where queues begin and end, where a time is; resetting and copying them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from aerobee.broker.clients import CPP, PULL, ConsumerGroup
from aerobee.broker.topics import validate_group
from aerobee.errors import ServerError
from aerobee.net.connection import Connection
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.client import MessageQueueForC, ResetOffsetBody, ResetOffsetBodyForC
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.fastjson import MessageQueue
from aerobee.protocol.headers.offsets import (
    CloneGroupOffset,
    GetEarliestMsgStoretime,
    GetEarliestMsgStoretimeReply,
    GetMaxOffset,
    GetMaxOffsetReply,
    GetMinOffset,
    GetMinOffsetReply,
    QueryConsumerOffset,
    QueryConsumerOffsetReply,
    QueryCorrectionOffset,
    ResetOffset,
    SearchOffset,
    SearchOffsetReply,
    UpdateConsumerOffset,
)

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

_log = logging.getLogger("aerobee.broker.offsets")

JAVA_LONG_MAX: Final = (1 << 63) - 1
VERSION_3_0_7: Final = 28
"""Consumers from here on can be told to reset their offsets."""


def query_consumer_offset(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """QUERY_CONSUMER_OFFSET. A group without an offset decides for itself where to begin (QUERY_NOT_FOUND), unless the
    queue still has its first message: then it begins there, so that a new topic's first messages are not missed."""
    header = command.header(QueryConsumerOffset)
    members = broker.clients.consumers.get(header.consumer_group)
    if members is not None and connection.id in members.members:
        broker.offsets.taken_up(header.consumer_group, header.topic, header.queue_id)
    offset = broker.offsets.query(header.consumer_group, header.topic, header.queue_id)
    if offset >= 0:
        return command.reply(header=QueryConsumerOffsetReply(offset=offset))
    if header.set_zero_if_not_found is False:
        raise ServerError(ResponseCode.QUERY_NOT_FOUND, "Not found, do not set to zero, maybe this group boot first")
    low, _high = broker.store.bounds(header.topic, header.queue_id)
    if low <= 0 and broker.store.is_recent(header.topic, header.queue_id, 0):
        return command.reply(header=QueryConsumerOffsetReply(offset=0))
    raise ServerError(ResponseCode.QUERY_NOT_FOUND, "Not found, V3_0_6_SNAPSHOT maybe this group consumer boot first")


def update_consumer_offset(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """UPDATE_CONSUMER_OFFSET."""
    header = command.header(UpdateConsumerOffset)
    if broker.groups.get(header.consumer_group) is None:
        raise ServerError(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"Group {header.consumer_group} not exist!")
    if broker.topics.get(header.topic) is None:
        raise ServerError(ResponseCode.TOPIC_NOT_EXIST, f"Topic {header.topic} not exist!")
    if header.queue_id < 0:
        raise ServerError(ResponseCode.INVALID_PARAMETER, f"queueId[{header.queue_id}] is illegal")
    if broker.offsets.has_reset(header.consumer_group, header.topic, header.queue_id):
        return command.reply(remark="Offset has been previously reset")
    broker.offsets.commit(
        header.consumer_group,
        header.topic,
        header.queue_id,
        header.commit_offset,
        peer=connection.peer,
        may_go_back=lambda stored: _may_go_back(broker, connection, command, header, stored),
    )
    group = broker.clients.consumers.get(header.consumer_group)
    if command.is_oneway and (group is None or connection.id not in group.members):  # who waits for an answer is a tool
        broker.order.consumed(header.consumer_group, (header.topic, broker.options.broker_name, header.queue_id))
    if group is not None and group.consume_type == PULL:
        group.committers[header.topic, header.queue_id] = connection.id
    return command.reply()


def _may_go_back(
    broker: Broker, connection: Connection, command: RemotingCommand, header: UpdateConsumerOffset, stored: int
) -> bool:
    """Whether a commit behind the stored offset means it.

    A member that pushes never does: it is a stale copy that lost a race. An application that pulls may have sought
    backwards, unless another one that is still here has committed since; its first heartbeat may come later than its
    first commit. Who waits for the answer and is no member is a tool: members commit oneway. An offset beyond the
    queue's end is worth nothing: what it counted is lost.
    """
    group = broker.clients.consumers.get(header.consumer_group)
    if group is None:
        return True
    if group.consume_type == PULL:
        last = group.committers.get((header.topic, header.queue_id))
        meant = last is None or last == connection.id or last not in group.members
    else:
        meant = connection.id not in group.members and not command.is_oneway
    return meant or stored > broker.store.bounds(header.topic, header.queue_id)[1]


def search_offset(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """SEARCH_OFFSET_BY_TIMESTAMP."""
    header = command.header(SearchOffset)
    if not header.topic.strip():
        raise ServerError(ResponseCode.INVALID_PARAMETER, "The specified topic is blank.")
    upper = (header.boundary_type or "").upper() == "UPPER"
    offset = broker.store.offset_by_time(header.topic, header.queue_id, header.timestamp, upper=upper)
    return command.reply(header=SearchOffsetReply(offset=offset))


def get_max_offset(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_MAX_OFFSET."""
    header = command.header(GetMaxOffset)
    return command.reply(header=GetMaxOffsetReply(offset=broker.store.bounds(header.topic, header.queue_id)[1]))


def get_min_offset(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_MIN_OFFSET."""
    header = command.header(GetMinOffset)
    return command.reply(header=GetMinOffsetReply(offset=broker.store.bounds(header.topic, header.queue_id)[0]))


def get_earliest_store_time(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_EARLIEST_MSG_STORETIME; -1 for an empty queue."""
    header = command.header(GetEarliestMsgStoretime)
    return command.reply(
        header=GetEarliestMsgStoretimeReply(timestamp=broker.store.earliest_time(header.topic, header.queue_id))
    )


async def reset_offset(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """INVOKE_BROKER_TO_RESET_OFFSET: on the broker, or by the clients (`useServerSideResetOffset=false`)."""
    header = command.header(ResetOffset)
    if broker.options.use_server_side_reset_offset:
        targets = _reset_here(broker, header)
        await broker.save_offsets()
    else:
        targets = _reset_by_clients(broker, header)
    _log.warning("%s reset the offsets of %s in %s to %s", connection.peer, header.group, header.topic, targets)
    return command.reply(body=ResetOffsetBody(offset_table=_by_queue(broker, header.topic, targets)).to_json())


def _reset_here(broker: Broker, header: ResetOffset) -> dict[int, int]:
    """Sets the offsets; the group hears of it with its next pull. The new offsets by queue."""
    config = broker.topics.get(header.topic)
    if config is None:
        raise ServerError(ResponseCode.TOPIC_NOT_EXIST, f"Topic {header.topic} does not exist")
    if broker.groups.get(header.group) is None:
        raise ServerError(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"Group {header.group} does not exist")
    targets = {queue: _target(broker, header, queue) for queue in _asked_queues(header, config.read_queue_nums)}
    if not targets:
        raise ServerError(ResponseCode.SYSTEM_ERROR, "No queues to reset.")
    for queue_id, offset in targets.items():
        broker.offsets.reset(header.group, header.topic, queue_id, offset)
    return targets


def _reset_by_clients(broker: Broker, header: ResetOffset) -> dict[int, int]:
    """Tells the members (RESET_CONSUMER_CLIENT_OFFSET), who commit the new offsets. Those by queue."""
    config = broker.topics.get(header.topic)
    if config is None:
        raise ServerError(
            ResponseCode.TOPIC_NOT_EXIST,
            f"[reset-offset] reset offset failed, no topic in this broker. topic={header.topic}",
        )
    targets = {}
    for queue_id in _asked_queues(header, config.write_queue_nums):
        consumed = broker.offsets.query(header.group, header.topic, queue_id)
        if consumed < 0:
            raise ServerError(ResponseCode.SYSTEM_ERROR, f"THe consumer group <{header.group}> not exist")
        target = max(0, _target(broker, header, queue_id))
        targets[queue_id] = target if header.is_force else min(target, consumed)
    group = broker.clients.consumers.get(header.group)
    if group is None:
        raise ServerError(
            ResponseCode.CONSUMER_NOT_ONLINE,
            "Consumer not online, so can not reset offset, "
            f"Group: {header.group} Topic: {header.topic} Timestamp: {header.timestamp}",
        )
    for member in group.members.values():
        if member.version < VERSION_3_0_7:
            raise ServerError(
                ResponseCode.SYSTEM_ERROR, f"the client does not support this feature. version={member.version}"
            )
    for queue_id, offset in targets.items():
        broker.offsets.told_to_reset(header.group, header.topic, queue_id, offset)
    _tell_to_reset(broker, group, header, targets)
    return targets


def _tell_to_reset(broker: Broker, group: ConsumerGroup, header: ResetOffset, targets: dict[int, int]) -> None:
    table = _by_queue(broker, header.topic, targets)
    body = ResetOffsetBody(offset_table=table).to_json()
    for_c = ResetOffsetBodyForC(
        offset_table=[
            MessageQueueForC(topic=queue.topic, broker_name=queue.broker_name, queue_id=queue.queue_id, offset=offset)
            for queue, offset in table.items()
        ]
    ).to_json()
    asked = ResetOffset(group=header.group, topic=header.topic, timestamp=header.timestamp, is_force=header.is_force)
    for member in group.members.values():
        member.connection.send(
            RemotingCommand.request(
                RequestCode.RESET_CONSUMER_CLIENT_OFFSET, asked, for_c if member.language == CPP else body, oneway=True
            )
        )


def _asked_queues(header: ResetOffset, count: int) -> Iterable[int]:
    return range(count) if header.queue_id < 0 else (header.queue_id,)


def _target(broker: Broker, header: ResetOffset, queue_id: int) -> int:
    """The offset asked for one queue: as such, by time, or the end. Raises ServerError when it is not in the queue."""
    if header.queue_id >= 0 and header.offset is not None and header.offset != -1:
        low, high = broker.store.bounds(header.topic, queue_id)
        if not low <= header.offset <= high + 1:
            raise ServerError(
                ResponseCode.SYSTEM_ERROR, f"Target offset {header.offset} not in consume queue range [{low}-{high}]"
            )
        return header.offset
    if header.timestamp < 0:
        return broker.store.bounds(header.topic, queue_id)[1]
    return broker.store.offset_by_time(header.topic, queue_id, header.timestamp)


def _by_queue(broker: Broker, topic: str, offsets: dict[int, int]) -> dict[MessageQueue, int]:
    name = broker.options.broker_name
    return {MessageQueue(topic=topic, broker_name=name, queue_id=queue): offset for queue, offset in offsets.items()}


def clone_group_offset(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """CLONE_GROUP_OFFSET."""
    header = command.header(CloneGroupOffset)
    if (problem := validate_group(header.dest_group)) is not None:
        raise ServerError(ResponseCode.INVALID_PARAMETER, problem)
    for topic in [header.topic] if header.topic else broker.offsets.topics_of(header.src_group):
        if broker.topics.get(topic) is None:
            continue
        members = broker.clients.consumers.get(header.src_group)
        if not header.offline and members is not None and members.subscriptions and topic not in members.subscriptions:
            continue
        broker.offsets.clone(header.src_group, header.dest_group, topic)
    return command.reply()


def query_correction_offset(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """QUERY_CORRECTION_OFFSET: the smallest offset among other groups, by queue."""
    header = command.header(QueryCorrectionOffset)
    left_out = {group for group in (header.filter_groups or "").split(",") if group}
    smallest: dict[int, int] = {}
    for group in broker.offsets.groups_of(header.topic):
        if group in left_out:
            continue
        for queue_id, offset in broker.offsets.table[f"{header.topic}@{group}"].items():
            if offset >= broker.store.bounds(header.topic, queue_id)[0]:
                smallest[queue_id] = min(offset, smallest.get(queue_id, offset))
    for queue_id, offset in broker.offsets.table.get(f"{header.topic}@{header.compare_group}", {}).items():
        if smallest.get(queue_id, 0) > offset:
            smallest[queue_id] = JAVA_LONG_MAX
    return command.reply(body=fastjson.dumps({"correctionOffsets": smallest}, bare_keys=True))


def get_all_consumer_offset(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_ALL_CONSUMER_OFFSET: what a replica copies."""
    return command.reply(body=fastjson.dumps_table(broker.offsets.to_dict(), bare_keys=True))


def get_all_delay_offset(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_ALL_DELAY_OFFSET: what a replica copies."""
    return command.reply(body=fastjson.dumps(broker.delay.to_dict(), bare_keys=True))


HANDLERS = {
    RequestCode.QUERY_CONSUMER_OFFSET: query_consumer_offset,
    RequestCode.UPDATE_CONSUMER_OFFSET: update_consumer_offset,
    RequestCode.SEARCH_OFFSET_BY_TIMESTAMP: search_offset,
    RequestCode.GET_MAX_OFFSET: get_max_offset,
    RequestCode.GET_MIN_OFFSET: get_min_offset,
    RequestCode.GET_EARLIEST_MSG_STORETIME: get_earliest_store_time,
    RequestCode.INVOKE_BROKER_TO_RESET_OFFSET: reset_offset,
    RequestCode.CLONE_GROUP_OFFSET: clone_group_offset,
    RequestCode.QUERY_CORRECTION_OFFSET: query_correction_offset,
    RequestCode.GET_ALL_CONSUMER_OFFSET: get_all_consumer_offset,
    RequestCode.GET_ALL_DELAY_OFFSET: get_all_delay_offset,
}
