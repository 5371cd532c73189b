"""Where topics live, which there are, and topics written by hand: 105, 206, 216, 217, 224, 304, 311, 312, 313."""

from __future__ import annotations

from typing import Final

from aerobee.errors import ServerSystemError, TopicNotExist
from aerobee.nameserver.handlers import Parts, check_name
from aerobee.nameserver.kv import ORDER_TOPIC_CONFIG
from aerobee.nameserver.routes import UNIT_FLAG, UNIT_SUB_FLAG
from aerobee.net.listener import Connection
from aerobee.protocol.bodies.route import TopicList, TopicRouteData
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.route import (
    DeleteTopicFromNamesrv,
    GetRouteInfo,
    GetTopicsByCluster,
    RegisterTopic,
)

V4_9_4 = 401
"""First version of the Java client that reads standard JSON; older ones, and Go's (317), want bare numbers as keys."""

ZONE_MODE = "__ZONE_MODE"
ZONE_NAME = "__ZONE_NAME"

SEE_FAQ: Final = "\nSee https://rocketmq.apache.org/docs/bestPractice/06FAQ for further details."
"""Without it the official client adds a pointer of its own to the remark."""


def route(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """GET_ROUTEINFO_BY_TOPIC: the question every client repeats every 30 s, so its answers are kept while they hold."""
    options = parts.options
    if (
        options.need_wait_for_service
        and parts.clock.now_ms() - parts.started_ms < options.wait_seconds_for_service * 1000
    ):
        raise ServerSystemError("name server not ready")
    header = request.header(GetRouteInfo)
    topic = header.topic
    standard = request.version >= V4_9_4 or bool(header.accept_standard_json_only)
    zone = None
    if request.ext_fields.get(ZONE_MODE, "").lower() == "true":
        zone = request.ext_fields.get(ZONE_NAME, "").strip() or None
    if zone is not None:
        return request.reply(body=_encode(parts, topic, standard, zone, connection.listener))

    generation = (parts.routes.generation, parts.kv.generation)
    if parts.generation != generation:
        parts.route_replies.clear()
        parts.generation = generation
    key = topic, standard, connection.listener
    body = parts.route_replies.get(key)
    if body is None:
        body = parts.route_replies[key] = _encode(parts, topic, standard, None, connection.listener)
    return request.reply(body=body)


def _encode(parts: Parts, topic: str, standard: bool, zone: str | None, listener: str) -> bytes:
    data = parts.routes.route(topic, parts.rules, zone, listener)
    if data is None:
        raise TopicNotExist(f"No topic route info in name server for the topic: {topic}{SEE_FAQ}")
    if parts.options.order_message_enable:
        data.order_topic_conf = parts.kv.get(ORDER_TOPIC_CONFIG, topic)
    return data.to_json(standard=standard)


def all_topics(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """GET_ALL_TOPIC_LIST_FROM_NAMESERVER."""
    if not parts.options.enable_all_topic_list:
        raise ServerSystemError("disable")
    return request.reply(body=TopicList(topic_list=list(parts.routes.topics)).to_json())


def topics_by_cluster(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """GET_TOPICS_BY_CLUSTER."""
    header = request.header(GetTopicsByCluster)
    return _list(parts, request, parts.routes.topics_of_cluster(header.cluster))


def unit_topics(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """GET_UNIT_TOPIC_LIST."""
    return _list(parts, request, parts.routes.topics_with_flags(UNIT_FLAG))


def unit_sub_topics(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """GET_HAS_UNIT_SUB_TOPIC_LIST."""
    return _list(parts, request, parts.routes.topics_with_flags(UNIT_SUB_FLAG))


def unit_sub_ununit_topics(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST."""
    return _list(parts, request, parts.routes.topics_with_flags(UNIT_SUB_FLAG, UNIT_FLAG))


def _list(parts: Parts, request: RemotingCommand, topics: list[str]) -> RemotingCommand:
    if not parts.options.enable_topic_list:
        raise ServerSystemError("disable")
    return request.reply(body=TopicList(topic_list=topics).to_json())


def system_topics(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """GET_SYSTEM_TOPIC_LIST_FROM_NS."""
    names, address = parts.routes.system_names()
    return request.reply(body=TopicList(topic_list=names, broker_addr=address).to_json())


def register_topic(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """REGISTER_TOPIC_IN_NAMESRV."""
    header = request.header(RegisterTopic)
    if request.body and header.topic:
        check_name("topic", header.topic)
        parts.routes.register_topic(header.topic, TopicRouteData.from_json(request.body).queue_datas)
    return request.reply()


def delete_topic(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """DELETE_TOPIC_IN_NAMESRV."""
    header = request.header(DeleteTopicFromNamesrv)
    parts.routes.delete_topic(header.topic, header.cluster_name)
    return request.reply()
