"""Recall: a sender takes back a message that waits for its time; and what tools ask about timers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aerobee.broker.records import format_properties
from aerobee.broker.store import Record
from aerobee.broker.timer import DELIVER_MS, RECALL_KEY, read_handle
from aerobee.errors import ServerError
from aerobee.net.connection import Connection
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.send import RecallMessage, RecallMessageReply

if TYPE_CHECKING:
    from aerobee.broker.server import Broker


async def recall(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """RECALL_MESSAGE: stores a mark in the message's slot; what it names is not delivered."""
    if not broker.options.recall_message_enable:
        raise ServerError(ResponseCode.NO_PERMISSION, "recall failed, operation is forbidden")
    header = command.header(RecallMessage)
    if broker.topics.get(header.topic) is None:
        raise ServerError(ResponseCode.TOPIC_NOT_EXIST, f"recall failed, the topic[{header.topic}] not exist")
    try:
        topic, name, time_ms, unique = read_handle(header.recall_handle)
    except ValueError:
        raise ServerError(ResponseCode.ILLEGAL_OPERATION, "recall handle is invalid") from None
    if topic != header.topic:
        raise ServerError(ResponseCode.ILLEGAL_OPERATION, "recall failed, topic not match")
    if name != broker.options.broker_name:
        raise ServerError(ResponseCode.ILLEGAL_OPERATION, "recall failed, broker service not available")
    now_ms = broker.clock.now_ms()
    if not 0 < time_ms - now_ms < broker.options.timer_max_delay_sec * 1000:
        raise ServerError(ResponseCode.ILLEGAL_OPERATION, "recall failed, timestamp invalid")
    properties = {
        "TAGS": "_RECALL_TAG_",
        RECALL_KEY: unique,
        "UNIQ_KEY": unique,
        DELIVER_MS: str(time_ms),
        "BORN_TIMESTAMP": str(now_ms),
        "PGROUP": header.producer_group or "",
    }
    if not broker.options.timer_wheel_enable:
        raise ServerError(ResponseCode.SYSTEM_ERROR, "recall failed, execute error")
    place, queue_id, code = broker.timer.place(topic, 0, properties)
    record = Record(
        place,
        queue_id,
        b"0",
        format_properties(properties),
        born_timestamp=now_ms,
        born_host=connection.peer,
        tags_code=code,
    )
    receipt = broker.store.append([record])[0]
    broker.store.when_flushed(receipt, broker.timer.scheduled)
    await broker.store.flushed(receipt)
    reply = command.reply(header=RecallMessageReply(msg_id=unique))
    reply.ext_fields["MSG_REGION"] = broker.options.region_id
    return reply


def check_point(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_TIMER_CHECK_POINT: how far the timers are, as `config/timercheck` has it."""
    return command.reply(body=broker.timer.check_point())


HANDLERS = {
    RequestCode.RECALL_MESSAGE: recall,
    RequestCode.GET_TIMER_CHECK_POINT: check_point,
}
