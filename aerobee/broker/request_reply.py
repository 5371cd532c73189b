"""Request-reply: a reply is pushed to the client that asked, on the connection on which it is a producer here.

The request carries CORRELATION_ID, REPLY_TO_CLIENT and TTL; the replier sends its answer to `<cluster>_REPLY_TOPIC` at
the broker the request came from. The push comes first; the reply is stored (if `storeReplyMessageEnable`) either way.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from aerobee.broker.records import format_properties
from aerobee.errors import AerobeeError
from aerobee.log import Complaints
from aerobee.net.connection import Connection
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.send import ReplyMessage, SendMessage, SendMessageV2

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

_complaints = Complaints(logging.getLogger("aerobee.broker.request_reply"))

REPLY_TO_CLIENT: Final = "REPLY_TO_CLIENT"
PUSH_REPLY_TIME: Final = "PUSH_REPLY_TIME"
PUSH_TIMEOUT_S: Final = 10.0


async def push(
    broker: Broker, connection: Connection, header: SendMessage | SendMessageV2, properties: dict[str, str], body: bytes
) -> str | None:
    """Pushes a reply to whom it is for; None when it arrived, else why not, in Apache's words."""
    client_id = properties.get(REPLY_TO_CLIENT)
    if client_id is None:
        return f"reply message properties[{REPLY_TO_CLIENT}] is null"
    client = broker.clients.producer_by_client_id(client_id)
    if client is None:
        return f"push reply message fail, channel of <{client_id}> not found."
    request = RemotingCommand.request(
        RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT,
        ReplyMessage(
            producer_group=header.producer_group,
            topic=header.topic,
            default_topic=header.default_topic,
            default_topic_queue_nums=header.default_topic_queue_nums,
            queue_id=header.queue_id,
            sys_flag=header.sys_flag,
            born_timestamp=header.born_timestamp,
            flag=header.flag,
            born_host=connection.peer,
            store_host=broker.listeners.store_host,
            store_timestamp=broker.clock.now_ms(),
            properties=format_properties({**properties, PUSH_REPLY_TIME: str(broker.clock.now_ms())}).decode(),
            reconsume_times=header.reconsume_times,
            unit_mode=header.unit_mode,
        ),
        body,
    )
    try:
        reply = await client.connection.invoke(request, PUSH_TIMEOUT_S)
    except AerobeeError as error:
        _complaints.warn("not pushed", "the reply for %s could not be pushed: %s", client_id, error)
        return f"push reply message to {client_id}fail."
    if reply.code != ResponseCode.SUCCESS:
        _complaints.warn("refused", "client %s refused a reply: %s", client_id, reply.remark)
        return f"push reply message to {client_id}fail."
    return None
