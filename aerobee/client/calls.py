"""The requests a client makes of brokers, one function each: arguments in, values out, errors raised.

Headers are written here as the plain string fields they are on the wire; `aerobee.protocol.headers` documents them.
Sending and pulling are the hot ones: they build one dict and no object besides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from aerobee.client.client import DEFAULT_TOPIC, DEFAULT_TOPIC_QUEUES, MASTER_ID, Client
from aerobee.client.results import PULL_STATUS_BY_CODE, SEND_STATUS_BY_CODE, PullResult, PullStatus, SendResult
from aerobee.errors import ServerError, error_for
from aerobee.protocol.bodies.client import (
    GetConsumerListByGroupResponseBody,
    LockBatchRequestBody,
    LockBatchResponseBody,
)
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.message import MessageExt, MessageQueue, any_compressed, decode_records

PULL_COMMIT: Final = 1
PULL_SUSPEND: Final = 2
PULL_SUBSCRIPTION: Final = 4


def request(code: int, fields: dict[str, str], body: bytes = b"") -> RemotingCommand:
    """A request with these header fields."""
    command = RemotingCommand.request(code, body=body)
    command.ext_fields = fields
    return command


# Sending.


def sending_request(
    group: str, queue: MessageQueue, body: bytes, properties: str, *, flag: int = 0, sys_flag: int = 0, batch: bool =
    False, reconsume_times: str = "0", max_reconsume_times: str | None = None, host: str = "",
) -> RemotingCommand:  # fmt: skip
    """SEND_MESSAGE_V2, or SEND_BATCH_MESSAGE; the letters are explained in `protocol.headers.send`. `host`: name of the
    broker where the queue is, if it is not the queue's own."""
    fields = {
        "a": group,
        "b": queue.topic,
        "c": DEFAULT_TOPIC,
        "d": str(DEFAULT_TOPIC_QUEUES),
        "e": str(queue.queue_id),
        "f": str(sys_flag),
        "g": str(time.time_ns() // 1_000_000),
        "h": str(flag),
        "i": properties,
        "j": reconsume_times,
        "k": "false",
        "m": "true" if batch else "false",
        "n": host or queue.broker_name,
    }
    if max_reconsume_times is not None:
        fields["l"] = max_reconsume_times
    return request(RequestCode.SEND_BATCH_MESSAGE if batch else RequestCode.SEND_MESSAGE_V2, fields, body)


def sent(reply: RemotingCommand, queue: MessageQueue, message_id: str) -> SendResult:
    """The broker's word on a sent message; raises its refusal."""
    status = SEND_STATUS_BY_CODE.get(reply.code)
    if status is None:
        raise error_for(reply.code, reply.remark)
    fields = reply.ext_fields
    queue_id = int(fields["queueId"])
    if queue_id != queue.queue_id:
        queue = MessageQueue(queue.topic, queue.broker_name, queue_id)
    return SendResult(
        status, message_id, fields["msgId"], queue, int(fields["queueOffset"]), fields.get("transactionId") or ""
    )


# Pulling.


async def pull(
    client: Client, group: str, queue: MessageQueue, offset: int, *, count: int, hold_ms: int, broker_id: int = 0,
    commit_offset: int = -1, subscription: str | None = None, expression_type: str = "TAG", sub_version: int = 0,
    tags: Collection[str] = (),
) -> PullResult:  # fmt: skip
    """Up to `count` messages from `offset` on; waits up to `hold_ms` at the broker for the first one.

    `commit_offset` ≥ 0 is committed on the way. `subscription` None: the broker uses what the group's heartbeat said.
    `tags`: what the tags must be exactly (the broker compares hashes only). `broker_id`: whom of the queue's brokers to
    ask if it is there. Raises ServerError for refusals.
    """
    sys_flag = (PULL_COMMIT if commit_offset >= 0 else 0) | (PULL_SUSPEND if hold_ms else 0)
    fields = {
        "consumerGroup": group,
        "topic": queue.topic,
        "queueId": str(queue.queue_id),
        "queueOffset": str(offset),
        "maxMsgNums": str(count),
        "commitOffset": str(max(0, commit_offset)),
        "suspendTimeoutMillis": str(hold_ms),
        "subVersion": str(sub_version),
        "expressionType": expression_type,
        "bname": queue.broker_name,
    }
    if subscription is not None:
        sys_flag |= PULL_SUBSCRIPTION
        fields["subscription"] = subscription
    fields["sysFlag"] = str(sys_flag)
    command = request(RequestCode.PULL_MESSAGE, fields)
    timeout_s = hold_ms / 1000 + max(client.timeout_s, 10.0)
    reply = await client.ask_host(queue, lambda _: command, timeout_s, broker_id=broker_id)
    status = PULL_STATUS_BY_CODE.get(reply.code)
    if status is None:
        raise error_for(reply.code, reply.remark)
    answer = reply.ext_fields
    messages: Sequence[MessageExt] = ()
    if status is PullStatus.FOUND:
        data = reply.body
        if any_compressed(data):  # a few bytes may unfold to megabytes
            messages = await asyncio.to_thread(decode_records, data, broker_name=queue.broker_name)
        else:
            messages = decode_records(data, broker_name=queue.broker_name)
        delta = answer.get("offsetDelta")
        if delta is not None:  # a static topic's: the records have the numbers of where they lie
            for message in messages:
                message.queue_id = queue.queue_id
                message.queue_offset += int(delta)
        if tags:
            messages = [message for message in messages if message.tags in tags]
    return PullResult(
        status, int(answer["nextBeginOffset"]), int(answer["minOffset"]), int(answer["maxOffset"]), messages,
        int(answer.get("suggestWhichBrokerId") or 0),
    )  # fmt: skip


# Offsets.


async def _ask(
    client: Client, code: int, queue: MessageQueue, *, broker_id: int | None = None, **fields: str
) -> dict[str, str]:
    """The fields that the queue's broker answers; raises its refusal."""
    named = {"topic": queue.topic, "queueId": str(queue.queue_id), "bname": queue.broker_name, **fields}
    command = request(code, named)
    reply = await client.ask_host(queue, lambda _: command, broker_id=broker_id)
    if reply.code != ResponseCode.SUCCESS:
        raise error_for(reply.code, reply.remark)
    return reply.ext_fields


async def query_offset(client: Client, group: str, queue: MessageQueue) -> int | None:
    """The group's committed offset in a queue; None if there is none."""
    try:
        answer = await _ask(client, RequestCode.QUERY_CONSUMER_OFFSET, queue, broker_id=MASTER_ID, consumerGroup=group)
    except ServerError as error:
        if error.code == ResponseCode.QUERY_NOT_FOUND:
            return None
        raise
    return int(answer["offset"])


async def update_offset(client: Client, group: str, queue: MessageQueue, offset: int) -> None:
    """Commits: the group continues at `offset`."""
    await _ask(
        client, RequestCode.UPDATE_CONSUMER_OFFSET, queue, broker_id=MASTER_ID, consumerGroup=group,
        commitOffset=str(offset),
    )  # fmt: skip


async def max_offset(client: Client, queue: MessageQueue) -> int:
    """The offset the next message of the queue will get."""
    return int((await _ask(client, RequestCode.GET_MAX_OFFSET, queue))["offset"])


async def min_offset(client: Client, queue: MessageQueue) -> int:
    """The first offset still kept."""
    return int((await _ask(client, RequestCode.GET_MIN_OFFSET, queue))["offset"])


async def offset_by_time(client: Client, queue: MessageQueue, timestamp_ms: int) -> int:
    """Offset of the first message stored at or after `timestamp_ms`."""
    answer = await _ask(client, RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, queue, timestamp=str(timestamp_ms))
    return int(answer["offset"])


# Groups.


async def consumer_ids(client: Client, address: str, group: str) -> list[str]:
    """Client ids of a group's members that are connected to that broker."""
    reply = await client.invoke(address, request(RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": group}))
    return GetConsumerListByGroupResponseBody.from_json(reply.body).consumer_id_list


async def send_back(
    client: Client,
    address: str,
    group: str,
    message: MessageExt,
    delay_level: int,
    max_reconsume_times: int,
    broker_name: str,
) -> None:
    """Hands a message back: the broker delivers it to the group again later, or moves it to the dead letter queue."""
    fields = {
        "offset": str(message.commit_log_offset),
        "group": group,
        "delayLevel": str(delay_level),
        "originMsgId": message.message_id,
        "originTopic": message.topic,
        "unitMode": "false",
        "maxReconsumeTimes": str(max_reconsume_times),
        "bname": broker_name,
    }
    await client.invoke(address, request(RequestCode.CONSUMER_SEND_MSG_BACK, fields))


async def lock(client: Client, broker_name: str, group: str, queues: Iterable[MessageQueue]) -> set[MessageQueue]:
    """Locks queues of one broker for ordered consumption; returns those that are ours for the next 60 s."""
    body = LockBatchRequestBody(consumer_group=group, client_id=client.client_id, mq_set=list(queues))
    reply = await client.invoke(client.master(broker_name), request(RequestCode.LOCK_BATCH_MQ, {}, body.to_json()))
    return set(LockBatchResponseBody.from_json(reply.body).lock_ok_mq_set)


async def unlock(client: Client, broker_name: str, group: str, queues: Iterable[MessageQueue]) -> None:
    """Gives locked queues back."""
    body = LockBatchRequestBody(consumer_group=group, client_id=client.client_id, mq_set=list(queues))
    await client.invoke(client.master(broker_name), request(RequestCode.UNLOCK_BATCH_MQ, {}, body.to_json()))


async def unregister(client: Client, address: str, *, producer_group: str = "", consumer_group: str = "") -> None:
    """Leaves: the broker forgets this client as a member of the group at once."""
    fields = {"clientID": client.client_id}
    if producer_group:
        fields["producerGroup"] = producer_group
    if consumer_group:
        fields["consumerGroup"] = consumer_group
    await client.invoke(address, request(RequestCode.UNREGISTER_CLIENT, fields))
