"""Looking for messages: by key, by position, and the entries of a queue."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from aerobee.errors import ServerError
from aerobee.net.connection import Connection
from aerobee.protocol.bodies.admin import ConsumeQueueData, QueryConsumeQueueResponseBody
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.admin import QueryConsumeQueue
from aerobee.protocol.headers.query import QueryMessage, QueryMessageReply, ViewMessage

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

UNIQUE_KEY_QUERY: Final = "_UNIQUE_KEY_QUERY"
BY_KEY: Final = "K"
BY_UNIQUE_KEY: Final = "U"
ENTRIES_MAX: Final = 10_000

_UNIT: Final = struct.Struct(">qiq")


def query_message(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """QUERY_MESSAGE: by key, unique key or tag within a time."""
    header = command.header(QueryMessage)
    kind, count = header.index_type or BY_KEY, header.max_num
    if command.ext_fields.get(UNIQUE_KEY_QUERY, "").lower() == "true":
        kind, count = BY_UNIQUE_KEY, broker.options.default_query_max_num
    records, updated_ms, updated_position = broker.store.search_index(
        header.topic,
        header.key,
        kind,
        max(0, min(count, broker.options.max_msgs_num_batch)),
        header.begin_timestamp,
        header.end_timestamp,
    )
    reply_header = QueryMessageReply(
        index_last_update_timestamp=updated_ms, index_last_update_phyoffset=updated_position
    )
    if not records:
        return command.reply(
            ResponseCode.QUERY_NOT_FOUND, reply_header, remark="can not find message, maybe time range not correct"
        )
    return command.reply(header=reply_header, body=b"".join(records))


def view_message(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """VIEW_MESSAGE_BY_ID: the record at a position of the log."""
    offset = command.header(ViewMessage).offset
    record = broker.store.record(offset) if offset >= 0 else None
    if record is None:
        raise ServerError(ResponseCode.SYSTEM_ERROR, f"can not find message by the offset, {offset}")
    return command.reply(body=record)


def query_consume_queue(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """QUERY_CONSUME_QUEUE: entries from an index on, with the group's subscription."""
    header = command.header(QueryConsumeQueue)
    topic = header.topic or ""
    if header.queue_id not in broker.store.topics().get(topic, ()):
        raise ServerError(ResponseCode.SYSTEM_ERROR, f"{header.queue_id}@{topic} is not exist!")
    low, high = broker.store.bounds(topic, header.queue_id)
    body = QueryConsumeQueueResponseBody(min_queue_index=low, max_queue_index=high)
    if header.consumer_group is not None:
        body.subscription_data = broker.clients.subscription(header.consumer_group, topic)
        if body.subscription_data is None:
            body.filter_data = f"{header.consumer_group}@{topic} is not online!"
    if not low <= header.index < high:
        return command.reply(
            body=body.to_json(), remark=f"Index {header.index} of {header.queue_id}@{topic} is not exist!"
        )
    units = broker.store.entries(topic, header.queue_id, header.index, max(0, min(header.count, ENTRIES_MAX)))
    body.queue_data = [
        ConsumeQueueData(physic_offset=position, physic_size=size, tags_code=code)
        for position, size, code in _UNIT.iter_unpack(units)
    ]
    return command.reply(body=body.to_json())


HANDLERS = {
    RequestCode.QUERY_MESSAGE: query_message,
    RequestCode.VIEW_MESSAGE_BY_ID: view_message,
    RequestCode.QUERY_CONSUME_QUEUE: query_consume_queue,
}
