"""Replies of request-reply: pushed to whom they are for, then stored."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aerobee.broker import request_reply
from aerobee.broker.handlers.send import (
    check_body,
    choose_queue,
    send_header,
    sendable_topic,
    stored_properties,
)
from aerobee.broker.records import parse_properties
from aerobee.broker.store import Record
from aerobee.errors import AerobeeError, FlushDiskTimeout
from aerobee.log import Complaints
from aerobee.net.connection import Connection
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.send import SendMessageReply

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

_complaints = Complaints(logging.getLogger("aerobee.broker.request_reply"))


async def send_reply(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """SEND_REPLY_MESSAGE, SEND_REPLY_MESSAGE_V2. Succeeds when the push did, stored or not; what is pushed and stored
    has the sender's properties, and of the broker's only region and trace switch."""
    header = send_header(command)
    config = await sendable_topic(broker, header)
    queue_id = choose_queue(broker, connection, header, config)
    properties = parse_properties(header.properties)
    properties["MSG_REGION"] = broker.options.region_id
    properties["TRACE_ON"] = "true" if broker.options.trace_on else "false"
    failure = await request_reply.push(broker, connection, header, properties, command.body)
    message_id, queue_offset = "0", 0
    if broker.options.store_reply_message_enable:
        try:
            check_body(broker, command.body)  # behind the push: what is too large to be stored has arrived
            record = Record(
                header.topic,
                queue_id,
                command.body,
                stored_properties(broker, properties),
                flag=header.flag,
                sys_flag=header.sys_flag,
                born_timestamp=header.born_timestamp,
                born_host=connection.peer,
                reconsume_times=header.reconsume_times,
            )
            receipt = broker.store.append([record])[0]
            message_id, queue_offset = receipt.message_id, receipt.queue_offset
            await broker.store.flushed(receipt)
        except FlushDiskTimeout:
            pass  # it is stored, and the answer's code is about the push
        except AerobeeError as error:
            _complaints.warn("not stored", "a reply could not be stored: %s", error)
    reply = command.reply(
        ResponseCode.SUCCESS if failure is None else ResponseCode.SYSTEM_ERROR,
        SendMessageReply(msg_id=message_id, queue_id=queue_id, queue_offset=queue_offset),
        remark=failure,
    )
    reply.ext_fields["MSG_REGION"] = broker.options.region_id
    reply.ext_fields["TRACE_ON"] = "true" if broker.options.trace_on else "false"
    return reply


HANDLERS = {
    RequestCode.SEND_REPLY_MESSAGE: send_reply,
    RequestCode.SEND_REPLY_MESSAGE_V2: send_reply,
}
