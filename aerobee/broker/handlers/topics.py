"""Topics for tools: making, changing, deleting, looking."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from aerobee.broker import attributes
from aerobee.broker.topics import RETRY_PREFIX
from aerobee.errors import ServerError
from aerobee.net.connection import Connection
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.topics import (
    CreateTopicListRequestBody,
    TopicConfig,
    TopicConfigAndQueueMapping,
    TopicOffset,
    TopicStatsTable,
)
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.fastjson import MessageQueue
from aerobee.protocol.headers.topics import (
    CreateTopic,
    DeleteTopic,
    GetAllTopicConfig,
    GetAllTopicConfigReply,
    GetTopicConfig,
    GetTopicStatsInfo,
)

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

_log = logging.getLogger("aerobee.broker.topics")

PAGE = 2000


async def update_topic(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """UPDATE_AND_CREATE_TOPIC."""
    header = command.header(CreateTopic)
    _log.info("%s creates or changes topic %s", connection.peer, header.topic)
    config = TopicConfig(
        topic_name=header.topic,
        read_queue_nums=header.read_queue_nums,
        write_queue_nums=header.write_queue_nums,
        perm=header.perm,
        topic_filter_type=header.topic_filter_type or "SINGLE_TAG",
        topic_sys_flag=header.topic_sys_flag or 0,
        order=header.order,
        attributes=parse_attributes(header.attributes),
    )
    await broker.topics.update([config])
    await broker.registration.told()
    return command.reply()


async def update_topic_list(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """UPDATE_AND_CREATE_TOPIC_LIST."""
    configs = CreateTopicListRequestBody.from_json(command.body).topic_config_list
    _log.info("%s creates or changes %d topics", connection.peer, len(configs))
    await broker.topics.update(configs)
    await broker.registration.told()
    return command.reply()


async def delete_topic(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """DELETE_TOPIC_IN_BROKER: the topic, its queues, its groups' offsets, and pop retry topics that belong to it."""
    topic = command.header(DeleteTopic).topic
    if not topic.strip():
        raise ServerError(ResponseCode.INVALID_PARAMETER, "The specified topic is blank.")
    if broker.options.validate_system_topic_when_update_topic and broker.topics.is_system(topic):
        raise ServerError(ResponseCode.INVALID_PARAMETER, f"The topic[{topic}] is conflict with system topic.")
    _log.warning("%s deletes topic %s", connection.peer, topic)
    doomed = [topic]
    for group in broker.offsets.groups_of(topic):
        doomed += [
            name
            for name in (f"{RETRY_PREFIX}{group}+{topic}", f"{RETRY_PREFIX}{group}_{topic}")
            if broker.topics.get(name)
        ]
    for name in doomed:
        await broker.topics.delete(name)
        await broker.static_topics.delete(name)
        broker.offsets.forget_topic(name)
        broker.pop.forget_topic(name)
        broker.compaction.forget_topic(name)
        broker.store.delete_topic(name)
    await broker.save_offsets()  # a topic of the same name must not begin at these, not even after a kill
    return command.reply()


def get_all_topic_config(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_ALL_TOPIC_CONFIG: everything for tools that send no fields, else a page."""
    header = command.header(GetAllTopicConfig)
    names = None
    if header.topic_seq is not None or header.data_version is not None or header.max_topic_num is not None:
        names = page(
            sorted(broker.topics.table),
            header.topic_seq,
            header.max_topic_num,
            header.data_version,
            broker.topics.version,
        )
    body = {
        **broker.topics.to_dict(names),
        "mappingDataVersion": broker.static_topics.version.to_json(),
        "topicQueueMappingDetailMap": broker.static_topics.to_dict(names),
    }
    return command.reply(
        header=GetAllTopicConfigReply(total_topic_num=len(broker.topics.table)), body=fastjson.dumps_table(body)
    )


def page(names: list[str], first: int | None, count: int | None, version: str | None, current: Any) -> list[str]:
    """The names of one page. A reader whose pages are of another version begins again at the front."""
    begin = max(0, first or 0)
    if begin:
        told = fastjson.loads(version) if version else None
        if told != current.to_json():
            begin = 0
    return names[begin : begin + min(PAGE, count if count is not None and count > 0 else PAGE)]


def get_topic_config(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_TOPIC_CONFIG; with `lo` also a static topic's mapping."""
    topic = command.header(GetTopicConfig).topic
    config = broker.topics.get(topic)
    if config is None:
        raise ServerError(ResponseCode.TOPIC_NOT_EXIST, f"No topic in this broker. topic: {topic}")
    answer = TopicConfigAndQueueMapping.from_dict(config.to_dict())
    answer.mapping_detail = broker.static_topics.get(topic) if wants_mapping(command) else None
    return command.reply(body=answer.to_json())


def wants_mapping(command: RemotingCommand) -> bool:
    """Tools that know static topics say so."""
    return command.ext_fields.get("lo", "").lower() == "true"


def get_topic_stats(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_TOPIC_STATS_INFO: smallest and next offset and time of the last message, by queue."""
    topic = command.header(GetTopicStatsInfo).topic
    config = broker.topics.get(topic)
    if config is None:
        raise ServerError(ResponseCode.TOPIC_NOT_EXIST, f"topic[{topic}] not exist")
    table: dict[MessageQueue, TopicOffset] = {}
    for queue_id in range(max(config.read_queue_nums, config.write_queue_nums)):
        low, high = broker.store.bounds(topic, queue_id)
        last_ms = broker.store.store_time(topic, queue_id, high - 1) if high > 0 else 0
        key = MessageQueue(topic=topic, broker_name=broker.options.broker_name, queue_id=queue_id)
        table[key] = TopicOffset(min_offset=low, max_offset=high, last_update_timestamp=max(0, last_ms))
    return command.reply(body=TopicStatsTable(topic_put_tps=broker.stats.put_tps(topic), offset_table=table).to_json())


def get_system_topics(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_SYSTEM_TOPIC_LIST_FROM_BROKER."""
    return command.reply(body=fastjson.dumps({"topicList": broker.topics.system_topics()}))


def parse_attributes(text: str | None) -> dict[str, str]:
    """`attributes.parse`, but ServerError SYSTEM_ERROR as tools expect it."""
    try:
        return attributes.parse(text)
    except ValueError as error:
        raise ServerError(ResponseCode.SYSTEM_ERROR, str(error)) from None


HANDLERS = {
    RequestCode.UPDATE_AND_CREATE_TOPIC: update_topic,
    RequestCode.UPDATE_AND_CREATE_TOPIC_LIST: update_topic_list,
    RequestCode.DELETE_TOPIC_IN_BROKER: delete_topic,
    RequestCode.GET_ALL_TOPIC_CONFIG: get_all_topic_config,
    RequestCode.GET_TOPIC_CONFIG: get_topic_config,
    RequestCode.GET_TOPIC_STATS_INFO: get_topic_stats,
    RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER: get_system_topics,
}
