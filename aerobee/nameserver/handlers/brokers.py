"""What brokers say about themselves and what is asked about them: 103, 104, 106, 205, 322, 327, 901, 904."""

from __future__ import annotations

import zlib

from aerobee.errors import MalformedRequest, ServerSystemError
from aerobee.nameserver.handlers import Parts, check_name
from aerobee.nameserver.kv import ORDER_TOPIC_CONFIG
from aerobee.nameserver.routes import Registration
from aerobee.net.addresses import is_address, named_addresses
from aerobee.net.listener import Connection
from aerobee.protocol.bodies.admin import KVTable
from aerobee.protocol.bodies.route import BrokerMemberGroup, ClusterInfo, GetBrokerMemberGroupResponseBody
from aerobee.protocol.bodies.topics import DataVersion, RegisterBrokerBody
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.route import (
    AddWritePermOfBroker,
    AddWritePermOfBrokerReply,
    BrokerHeartbeat,
    GetBrokerMemberGroup,
    QueryDataVersion,
    QueryDataVersionReply,
    RegisterBroker,
    RegisterBrokerReply,
    UnRegisterBroker,
    WipeWritePermOfBroker,
    WipeWritePermOfBrokerReply,
)

ZONE_NAME = "__ZONE_NAME"


def register(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """REGISTER_BROKER, with topics as JSON or deflated."""
    header = request.header(RegisterBroker)
    if header.body_crc32 and header.body_crc32 != zlib.crc32(request.body) & 0x7FFFFFFF:
        raise ServerSystemError("crc32 not match")
    check_name("brokerName", header.broker_name)
    check_name("clusterName", header.cluster_name)
    if not is_address(header.broker_addr):
        raise MalformedRequest(f"brokerAddr must be HOST:PORT, not {header.broker_addr[:100]!r}")
    body = RegisterBrokerBody.decode(request.body, compressed=header.compressed, version=request.version)
    wrapper = body.topic_config_serialize_wrapper
    said = Registration(
        cluster=header.cluster_name,
        name=header.broker_name,
        broker_id=header.broker_id,
        address=header.broker_addr,
        ha_address=header.ha_server_addr,
        zone=request.ext_fields.get(ZONE_NAME),
        timeout_ms=header.heartbeat_timeout_millis,
        acting_master=header.enable_acting_master,
        version=wrapper.data_version,
        topics=wrapper.topic_config_table,
        mappings=wrapper.topic_queue_mapping_info_map,
        filter_servers=body.filter_server_list,
        listeners=_listeners(request.ext_fields.get("advertisedListeners", "")),
        partial=request.ext_fields.get("changedTopicsOnly", "") == "true",
    )
    done = parts.routes.register(said, connection.id, parts.clock.now_ms(), parts.rules)
    for change in done.changes:
        parts.tell(change)
    order = None
    if parts.options.return_order_topic_config_to_broker:
        order = parts.kv.namespace(ORDER_TOPIC_CONFIG)
    return request.reply(
        header=RegisterBrokerReply(ha_server_addr=done.ha_address, master_addr=done.master_address),
        body=KVTable(table=dict(order)).to_json() if order is not None else b"",
    )


def _listeners(text: str) -> dict[str, str]:
    try:
        return named_addresses(text)
    except ValueError as error:
        raise ServerSystemError(f"advertisedListeners {error}") from None


def unregister(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """UNREGISTER_BROKER."""
    header = request.header(UnRegisterBroker)
    change = parts.routes.unregister(header.cluster_name, header.broker_name, header.broker_id, header.broker_addr)
    if change is not None:
        parts.tell(change)
    return request.reply()


def heartbeat(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """BROKER_HEARTBEAT, the light one that carries no topics."""
    header = request.header(BrokerHeartbeat)
    parts.routes.touch(header.cluster_name, header.broker_addr, parts.clock.now_ms())
    return request.reply()


def query_data_version(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """QUERY_DATA_VERSION: whether a broker has to register its topics again. It counts as a sign of life."""
    header = request.header(QueryDataVersion)
    theirs = DataVersion.from_json(request.body)
    cluster, address = header.cluster_name, header.broker_addr
    parts.routes.touch(cluster, address, parts.clock.now_ms())
    ours = parts.routes.version(cluster, address)
    return request.reply(
        header=QueryDataVersionReply(changed=ours != theirs), body=ours.to_json() if ours is not None else b""
    )


def cluster_info(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """GET_BROKER_CLUSTER_INFO."""
    clusters = {cluster: sorted(names) for cluster, names in parts.routes.clusters.items()}
    return request.reply(
        body=ClusterInfo(
            broker_addr_table=parts.routes.brokers_seen(connection.listener), cluster_addr_table=clusters
        ).to_json()
    )


def member_group(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """GET_BROKER_MEMBER_GROUP."""
    header = request.header(GetBrokerMemberGroup)
    data = parts.routes.brokers.get(header.broker_name)
    group = BrokerMemberGroup(
        cluster=header.cluster_name,
        broker_name=header.broker_name,
        broker_addrs=data.broker_addrs if data is not None else {},
    )
    return request.reply(body=GetBrokerMemberGroupResponseBody(broker_member_group=group).to_json())


def wipe_write_permission(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """WIPE_WRITE_PERM_OF_BROKER."""
    header = request.header(WipeWritePermOfBroker)
    count = parts.routes.set_write_permission(header.broker_name, allowed=False)
    return request.reply(header=WipeWritePermOfBrokerReply(wipe_topic_count=count))


def add_write_permission(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """ADD_WRITE_PERM_OF_BROKER."""
    header = request.header(AddWritePermOfBroker)
    count = parts.routes.set_write_permission(header.broker_name, allowed=True)
    return request.reply(header=AddWritePermOfBrokerReply(add_topic_count=count))
