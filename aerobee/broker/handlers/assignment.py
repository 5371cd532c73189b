"""Queues for clients without a rebalance of their own, and how they consume them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aerobee.broker.assignment import POP, PULL
from aerobee.broker.topics import RETRY_PREFIX
from aerobee.errors import MalformedRequest, ServerError
from aerobee.net.connection import Connection
from aerobee.protocol.bodies.pop import (
    MessageQueueAssignment,
    QueryAssignmentRequestBody,
    QueryAssignmentResponseBody,
    SetMessageRequestModeRequestBody,
)  # fmt: skip
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand

if TYPE_CHECKING:
    from aerobee.broker.server import Broker


async def query_assignment(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """QUERY_ASSIGNMENT. No `messageQueueAssignments` in the answer: the client keeps what it has."""
    body = QueryAssignmentRequestBody.from_json(command.body)
    queues, mode = await broker.assignment.queues(
        body.topic, body.consumer_group, body.client_id, body.strategy_name, body.message_model
    )
    answer = QueryAssignmentResponseBody()
    if queues is not None:
        answer.message_queue_assignments = [MessageQueueAssignment(message_queue=queue, mode=mode) for queue in queues]
    return command.reply(body=answer.to_json())


async def set_mode(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """SET_MESSAGE_REQUEST_MODE; on the disk when it is answered."""
    body = SetMessageRequestModeRequestBody.from_json(command.body)
    if body.topic.startswith(RETRY_PREFIX):
        raise ServerError(ResponseCode.NO_PERMISSION, "retry topic is not allowed to set mode")
    if broker.topics.get(body.topic) is None:
        raise ServerError(ResponseCode.TOPIC_NOT_EXIST, f"topic[{body.topic}] not exist")
    if broker.groups.find(body.consumer_group) is None:
        raise ServerError(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, "subscription group does not exist")
    if body.mode not in (POP, PULL):
        raise MalformedRequest(f"mode must be PULL or POP, not {body.mode!r}")
    await broker.request_modes.set(body)
    return command.reply()


def all_modes(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_ALL_MESSAGE_REQUEST_MODE: the file's content."""
    return command.reply(body=broker.request_modes.to_json())


HANDLERS = {
    RequestCode.QUERY_ASSIGNMENT: query_assignment,
    RequestCode.SET_MESSAGE_REQUEST_MODE: set_mode,
    RequestCode.GET_ALL_MESSAGE_REQUEST_MODE: all_modes,
}
