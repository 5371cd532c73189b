"""Consumer groups for tools: their settings, who is connected, how far they are behind."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from aerobee.broker.handlers.topics import page
from aerobee.broker.revive import SAVED_GROUP
from aerobee.errors import ServerError
from aerobee.net.connection import Connection
from aerobee.protocol import fastjson
from aerobee.protocol.bodies import Body
from aerobee.protocol.bodies import client as bodies
from aerobee.protocol.bodies.groups import (
    GroupForbidden,
    GroupList,
    QuerySubscriptionResponseBody,
    SubscriptionGroupConfig,
    SubscriptionGroupList,
)
from aerobee.protocol.bodies.offsets import (
    ConsumeStats,
    ConsumeStatsList,
    OffsetWrapper,
    QueryConsumeTimeSpanBody,
    QueueTimeSpan,
)
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import LANGUAGE_NAMES, RemotingCommand
from aerobee.protocol.fastjson import MessageQueue
from aerobee.protocol.headers.admin import GetBrokerConsumeStats
from aerobee.protocol.headers.groups import (
    DeleteSubscriptionGroup,
    GetAllSubscriptionGroup,
    GetAllSubscriptionGroupReply,
    GetConsumerConnectionList,
    GetConsumeStats,
    GetProducerConnectionList,
    GetSubscriptionGroupConfig,
    QueryConsumeTimeSpan,
    QuerySubscriptionByConsumer,
    QueryTopicConsumeByWho,
    QueryTopicsByConsumer,
    UpdateGroupForbidden,
)

if TYPE_CHECKING:
    from aerobee.broker.clients import Client
    from aerobee.broker.server import Broker

_log = logging.getLogger("aerobee.broker.groups")

QUEUES_A_TURN: Final = 512
"""Queues that are looked at between others' requests when tools ask how far groups are: about 5 ms."""


async def update_group(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """UPDATE_AND_CREATE_SUBSCRIPTIONGROUP."""
    config = SubscriptionGroupConfig.from_json(command.body)
    _log.info("%s creates or changes group %s", connection.peer, config.group_name)
    await broker.groups.update([config])
    return command.reply()


async def update_group_list(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST."""
    configs = SubscriptionGroupList.from_json(command.body).group_config_list
    _log.info("%s creates or changes %d groups", connection.peer, len(configs))
    await broker.groups.update(configs)
    return command.reply()


def get_all_groups(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_ALL_SUBSCRIPTIONGROUP_CONFIG: everything for tools that send no fields, else a page."""
    header = command.header(GetAllSubscriptionGroup)
    names = None
    if header.group_seq is not None or header.data_version is not None or header.max_group_num is not None:
        names = page(
            sorted(broker.groups.table),
            header.group_seq,
            header.max_group_num,
            header.data_version,
            broker.groups.version,
        )
    return command.reply(
        header=GetAllSubscriptionGroupReply(total_group_num=len(broker.groups.table)),
        body=fastjson.dumps(broker.groups.to_dict(names)),
    )


def get_group(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_SUBSCRIPTIONGROUP_CONFIG: who asks for a group uses it. A proxy asks before it lets a consumer in."""
    name = command.header(GetSubscriptionGroupConfig).group
    config = broker.groups.find(name)
    if config is None:
        raise ServerError(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"No group in this broker. group: {name}")
    return command.reply(body=config.to_json())


async def delete_group(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """DELETE_SUBSCRIPTIONGROUP."""
    header = command.header(DeleteSubscriptionGroup)
    _log.warning("%s deletes group %s", connection.peer, header.group_name)
    await broker.groups.delete(header.group_name)
    broker.order.forget_group(header.group_name)
    broker.pop.forget_group(header.group_name)
    if header.clean_offset:
        broker.offsets.forget_group(header.group_name)
        await broker.save_offsets()
    return command.reply()


async def group_forbidden(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """UPDATE_AND_GET_GROUP_FORBIDDEN."""
    header = command.header(UpdateGroupForbidden)
    if header.readable is not None:
        _log.warning(
            "%s sets readable=%s for group %s on %s", connection.peer, header.readable, header.group, header.topic
        )
        await broker.groups.forbid(header.group, header.topic, readable=header.readable)
    readable = not broker.groups.is_forbidden(header.group, header.topic)
    return command.reply(body=GroupForbidden(topic=header.topic, group=header.group, readable=readable).to_json())


# Who is connected.


def consumer_connections(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_CONSUMER_CONNECTION_LIST."""
    name = command.header(GetConsumerConnectionList).consumer_group
    group = broker.clients.consumers.get(name)
    if group is None:
        raise ServerError(ResponseCode.CONSUMER_NOT_ONLINE, f"the consumer group[{name}] not online")
    body = bodies.ConsumerConnection(
        connection_set=[_connection(member) for member in group.members.values()],
        subscription_table=dict(group.subscriptions),
        consume_type=group.consume_type,
        message_model=group.message_model,
        consume_from_where=group.consume_from_where,
    )
    return command.reply(body=body.to_json())


def producer_connections(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_PRODUCER_CONNECTION_LIST."""
    name = command.header(GetProducerConnectionList).producer_group
    members = broker.clients.producers.get(name)
    if members is None:
        raise ServerError(ResponseCode.SYSTEM_ERROR, f"the producer group[{name}] not exist")
    body = bodies.ProducerConnection(connection_set=[_connection(member) for member in members.values()])
    return command.reply(body=body.to_json())


def all_producers(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_ALL_PRODUCER_INFO."""
    data = {
        group: [
            bodies.ProducerInfo(
                client_id=member.client_id,
                remote_ip=f"/{member.connection.peer}",
                language=_language(member),
                version=member.version,
                last_update_timestamp=member.last_ms,
            )
            for member in members.values()
        ]
        for group, members in broker.clients.producers.items()
    }
    return command.reply(body=bodies.ProducerTableInfo(data=data).to_json())


def groups_of_topic(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """QUERY_TOPIC_CONSUME_BY_WHO: groups that are connected or have offsets."""
    topic = command.header(QueryTopicConsumeByWho).topic
    groups = {*broker.clients.groups_of_topic(topic), *broker.offsets.groups_of(topic)} - {SAVED_GROUP}
    return command.reply(body=GroupList(group_list=sorted(groups)).to_json())


def topics_of_group(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """QUERY_TOPICS_BY_CONSUMER: topics for which the group has offsets."""
    topics = broker.offsets.topics_of(command.header(QueryTopicsByConsumer).group)
    return command.reply(body=fastjson.dumps({"brokerAddr": broker.address, "topicList": topics}))


def subscription_of_group(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """QUERY_SUBSCRIPTION_BY_CONSUMER."""
    header = command.header(QuerySubscriptionByConsumer)
    body = QuerySubscriptionResponseBody(
        group=header.group,
        topic=header.topic,
        subscription_data=broker.clients.subscription(header.group, header.topic),
    )
    return command.reply(body=body.to_json())


def _connection(member: Client) -> bodies.Connection:
    return bodies.Connection(
        client_id=member.client_id,
        client_addr=member.connection.peer,
        language=_language(member),
        version=member.version,
    )


def _language(member: Client) -> str:
    return LANGUAGE_NAMES[member.language] if 0 <= member.language < len(LANGUAGE_NAMES) else "OTHER"


# How far they are behind.


class _Turns:
    """Gives others their turn every `QUEUES_A_TURN` queues: ten thousand topics take seconds."""

    def __init__(self) -> None:
        self._looked_at = 0

    async def one_more(self) -> None:
        self._looked_at += 1
        if self._looked_at % QUEUES_A_TURN == 0:
            await asyncio.sleep(0)


async def _behind(
    broker: Broker, group: str, topic: str, queues: int, turns: _Turns
) -> dict[MessageQueue, OffsetWrapper]:
    table: dict[MessageQueue, OffsetWrapper] = {}
    for queue_id in range(queues):
        await turns.one_more()
        high = broker.store.bounds(topic, queue_id)[1]
        consumed = broker.offsets.query(group, topic, queue_id)
        if broker.static_topics.get(topic) is None:
            consumed = max(0, consumed)  # of a static topic -1 says: look for it in an older stretch
        last_ms = broker.store.store_time(topic, queue_id, consumed - 1) if consumed > 0 else 0
        key = MessageQueue(topic=topic, broker_name=broker.options.broker_name, queue_id=queue_id)
        table[key] = OffsetWrapper(
            broker_offset=high, consumer_offset=consumed, pull_offset=consumed, last_timestamp=max(0, last_ms)
        )
    return table


async def _spell(body: Body) -> bytes:
    """The body's JSON, which may be megabytes: written beside what others ask. Nobody else may change it."""
    return await asyncio.to_thread(body.to_json)


def _is_subscribed(broker: Broker, group: str, topic: str) -> bool:
    """False when the group is connected and does not subscribe to the topic any more."""
    members = broker.clients.consumers.get(group)
    return members is None or not members.subscriptions or topic in members.subscriptions


async def consume_stats(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_CONSUME_STATS."""
    header = command.header(GetConsumeStats)
    group = header.consumer_group
    topics = [topic for topic in (header.topic_list or "").split(";") if topic]
    if not topics:
        topics = [header.topic] if header.topic else broker.offsets.topics_of(group)
        topics = [topic for topic in topics if _is_subscribed(broker, group, topic)]
    stats, get_tps, turns = ConsumeStats(), broker.stats.get_tps_of_all(), _Turns()
    for topic in topics:
        config = broker.topics.get(topic)
        if config is not None:
            stats.offset_table.update(await _behind(broker, group, topic, config.read_queue_nums, turns))
            stats.consume_tps += get_tps(group, topic)
    return command.reply(body=await _spell(stats))


async def broker_consume_stats(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_BROKER_CONSUME_STATS: all groups on all their topics."""
    ordered_only = command.header(GetBrokerConsumeStats).is_order
    listed = ConsumeStatsList(broker_addr=broker.address)
    topics, get_tps, turns = broker.offsets.topics_by_group(), broker.stats.get_tps_of_all(), _Turns()
    for group in list(broker.groups.table):
        of_group: list[ConsumeStats] = []
        for topic in topics.get(group, ()):
            config = broker.topics.get(topic)
            if config is None or (ordered_only and not config.order) or not _is_subscribed(broker, group, topic):
                continue
            table = await _behind(broker, group, topic, config.write_queue_nums, turns)
            of_group.append(ConsumeStats(offset_table=table, consume_tps=get_tps(group, topic)))
            listed.total_diff += sum(entry.broker_offset - entry.consumer_offset for entry in table.values())
        listed.consume_stats_list.append({group: of_group})
    return command.reply(body=await _spell(listed))


def consume_time_span(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """QUERY_CONSUME_TIME_SPAN: first, last and consumed store time of each queue."""
    header = command.header(QueryConsumeTimeSpan)
    config = broker.topics.get(header.topic)
    if config is None:
        raise ServerError(ResponseCode.TOPIC_NOT_EXIST, f"topic[{header.topic}] not exist")
    spans = []
    for queue_id in range(config.write_queue_nums):
        high = broker.store.bounds(header.topic, queue_id)[1]
        earliest = broker.store.earliest_time(header.topic, queue_id)
        consumed = broker.offsets.query(header.group, header.topic, queue_id)
        span = QueueTimeSpan(
            message_queue=MessageQueue(topic=header.topic, broker_name=broker.options.broker_name, queue_id=queue_id),
            min_time_stamp=earliest,
            max_time_stamp=broker.store.store_time(header.topic, queue_id, high - 1),
            consume_time_stamp=broker.store.store_time(header.topic, queue_id, consumed - 1)
            if consumed > 0
            else earliest,
        )
        if consumed < high:
            span.delay_time = broker.clock.now_ms() - broker.store.store_time(header.topic, queue_id, max(0, consumed))
        spans.append(span)
    return command.reply(body=QueryConsumeTimeSpanBody(consume_time_span_set=spans).to_json())


HANDLERS = {
    RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP: update_group,
    RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST: update_group_list,
    RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG: get_all_groups,
    RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG: get_group,
    RequestCode.DELETE_SUBSCRIPTIONGROUP: delete_group,
    RequestCode.UPDATE_AND_GET_GROUP_FORBIDDEN: group_forbidden,
    RequestCode.GET_CONSUMER_CONNECTION_LIST: consumer_connections,
    RequestCode.GET_PRODUCER_CONNECTION_LIST: producer_connections,
    RequestCode.GET_ALL_PRODUCER_INFO: all_producers,
    RequestCode.QUERY_TOPIC_CONSUME_BY_WHO: groups_of_topic,
    RequestCode.QUERY_TOPICS_BY_CONSUMER: topics_of_group,
    RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER: subscription_of_group,
    RequestCode.GET_CONSUME_STATS: consume_stats,
    RequestCode.GET_BROKER_CONSUME_STATS: broker_consume_stats,
    RequestCode.QUERY_CONSUME_TIME_SPAN: consume_time_span,
}
