"""Every request code the name server serves, and the one place that turns a handler's end into a reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aerobee.errors import RequestCodeNotSupported
from aerobee.nameserver.handlers import Parts, brokers, config, kv, topics
from aerobee.net.listener import Connection
from aerobee.protocol.body_limits import check_body
from aerobee.protocol.codes import RequestCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.reply import error_reply

Reply = RemotingCommand | Awaitable[RemotingCommand]
Handler = Callable[[Parts, Connection, RemotingCommand], Reply]

HANDLERS: Final[dict[int, Handler]] = {
    RequestCode.PUT_KV_CONFIG: kv.put,
    RequestCode.GET_KV_CONFIG: kv.get,
    RequestCode.DELETE_KV_CONFIG: kv.delete,
    RequestCode.GET_KVLIST_BY_NAMESPACE: kv.namespace,
    RequestCode.REGISTER_BROKER: brokers.register,
    RequestCode.UNREGISTER_BROKER: brokers.unregister,
    RequestCode.BROKER_HEARTBEAT: brokers.heartbeat,
    RequestCode.QUERY_DATA_VERSION: brokers.query_data_version,
    RequestCode.GET_BROKER_CLUSTER_INFO: brokers.cluster_info,
    RequestCode.GET_BROKER_MEMBER_GROUP: brokers.member_group,
    RequestCode.WIPE_WRITE_PERM_OF_BROKER: brokers.wipe_write_permission,
    RequestCode.ADD_WRITE_PERM_OF_BROKER: brokers.add_write_permission,
    RequestCode.GET_ROUTEINFO_BY_TOPIC: topics.route,
    RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER: topics.all_topics,
    RequestCode.DELETE_TOPIC_IN_NAMESRV: topics.delete_topic,
    RequestCode.REGISTER_TOPIC_IN_NAMESRV: topics.register_topic,
    RequestCode.GET_TOPICS_BY_CLUSTER: topics.topics_by_cluster,
    RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NS: topics.system_topics,
    RequestCode.GET_UNIT_TOPIC_LIST: topics.unit_topics,
    RequestCode.GET_HAS_UNIT_SUB_TOPIC_LIST: topics.unit_sub_topics,
    RequestCode.GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST: topics.unit_sub_ununit_topics,
    RequestCode.UPDATE_NAMESRV_CONFIG: config.update,
    RequestCode.GET_NAMESRV_CONFIG: config.get,
}


class Dispatch:
    """Serves requests in the order they arrive; only those that wait for the disk may be overtaken."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._waiting: set[asyncio.Task[None]] = set()

    def serve(self, connection: Connection, request: RemotingCommand) -> None:
        """Answers a request, now or when its file is written; a oneway request gets no answer."""
        try:
            handler = HANDLERS.get(request.code)
            if handler is None:
                raise RequestCodeNotSupported(f"request type {request.code} not supported")
            check_body(request.code, request.body)
            reply = handler(self._parts, connection, request)
        except Exception as error:
            reply = error_reply(request, error)
        if not isinstance(reply, RemotingCommand):
            task = asyncio.ensure_future(self._finish(connection, request, reply))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
        elif not request.is_oneway:
            connection.send(reply)

    async def _finish(
        self, connection: Connection, request: RemotingCommand, reply: Awaitable[RemotingCommand]
    ) -> None:
        try:
            response = await reply
        except Exception as error:
            response = error_reply(request, error)
        if not request.is_oneway:
            connection.send(response)

    async def drain(self) -> None:
        """Returns when every accepted request has its answer."""
        if self._waiting:
            await asyncio.wait(self._waiting)
