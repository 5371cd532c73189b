"""The KV configuration: 100, 101, 102, 219."""

from __future__ import annotations

from aerobee.errors import QueryNotFound
from aerobee.nameserver.handlers import Parts
from aerobee.net.listener import Connection
from aerobee.protocol.bodies.admin import KVTable
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.route import (
    DeleteKVConfig,
    GetKVConfig,
    GetKVConfigReply,
    GetKVListByNamespace,
    PutKVConfig,
)


async def put(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """PUT_KV_CONFIG."""
    header = request.header(PutKVConfig)
    await parts.kv.put(header.namespace, header.key, header.value)
    return request.reply()


def get(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """GET_KV_CONFIG."""
    header = request.header(GetKVConfig)
    value = parts.kv.get(header.namespace, header.key)
    if value is None:
        raise QueryNotFound(f"No config item, Namespace: {header.namespace} Key: {header.key}")
    return request.reply(header=GetKVConfigReply(value=value))


async def delete(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """DELETE_KV_CONFIG; what is not there is deleted already."""
    header = request.header(DeleteKVConfig)
    await parts.kv.delete(header.namespace, header.key)
    return request.reply()


def namespace(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """GET_KVLIST_BY_NAMESPACE."""
    header = request.header(GetKVListByNamespace)
    values = parts.kv.namespace(header.namespace)
    if values is None:
        raise QueryNotFound(f"No config item, Namespace: {header.namespace}")
    return request.reply(body=KVTable(table=dict(values)).to_json())
