"""What a consumer answers when a broker asks it: 307 running info, 309 consume this now, 220 reset, 221 offsets
held."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aerobee.client.results import Retry
from aerobee.protocol import message as wire
from aerobee.protocol.bodies.client import (
    ConsumeMessageDirectlyResult,
    ConsumerRunningInfo,
    ConsumeStatus,
    GetConsumerStatusBody,
    ProcessQueueInfo,
    ResetOffsetBody,
)
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.message import MessageQueue, decode_records

if TYPE_CHECKING:
    from aerobee.client.consumer import Consumer

LOOP_WAIT_S: Final = 10.0
"""How long a message that an operator sent waits for an `async for` to take and acknowledge it."""
CLIENT_VERSION: Final = "V5_5_0"


@dataclass(slots=True)
class Counts:
    """What happened to the messages of one topic; rates are those of the last commit interval."""

    pulled: int = 0
    ok: int = 0
    failed: int = 0
    spent_s: float = 0.0
    pulled_a_second: float = 0.0
    ok_a_second: float = 0.0
    failed_a_second: float = 0.0
    consume_ms: float = 0.0
    _before: tuple[int, int, int, float] = (0, 0, 0, 0.0)

    def tick(self, interval_s: float) -> None:
        """Called once an interval."""
        pulled, ok, failed, spent_s = self._before
        self._before = (self.pulled, self.ok, self.failed, self.spent_s)
        self.pulled_a_second = (self.pulled - pulled) / interval_s
        self.ok_a_second = (self.ok - ok) / interval_s
        self.failed_a_second = (self.failed - failed) / interval_s
        handled = self.ok - ok + self.failed - failed
        self.consume_ms = (self.spent_s - spent_s) * 1000 / handled if handled else 0.0


def answer(consumer: Consumer, command: RemotingCommand) -> Coroutine[Any, Any, RemotingCommand | None] | None:
    """The work that answers `command`; None when it is not for this consumer."""
    fields = command.ext_fields
    work = _WORK.get(command.code)
    if work is None or (fields.get("consumerGroup") or fields.get("group")) != consumer.group:
        return None
    return work(consumer, command)


async def _running_info(consumer: Consumer, command: RemotingCommand) -> RemotingCommand:
    queues: dict[MessageQueue, ProcessQueueInfo] = {}
    now = time.monotonic()
    for queue, held in sorted(
        consumer.queues.items(), key=lambda item: (item[0].topic, item[0].broker_name, item[0].queue_id)
    ):
        queues[queue] = ProcessQueueInfo(
            commit_offset=held.committable,
            cached_msg_min_offset=held.first_offset,
            cached_msg_max_offset=held.last_offset,
            cached_msg_count=held.count,
            cached_msg_size_in_mi_b=held.bytes >> 20,
            locked=consumer.orderly and held.locked_until > now,
            droped=held.dropped,
            last_pull_timestamp=held.last_pull_ms,
            last_consume_timestamp=held.last_consume_ms,
        )
    info = ConsumerRunningInfo(
        properties={
            "PROP_NAMESERVER_ADDR": ";".join(consumer.client.name_servers) + ";",
            "PROP_CONSUME_TYPE": "CONSUME_PASSIVELY",
            "PROP_CLIENT_VERSION": CLIENT_VERSION,
            "PROP_CONSUMER_START_TIMESTAMP": str(consumer.started_ms),
            "PROP_CONSUMEORDERLY": "true" if consumer.orderly else "false",
            "PROP_THREADPOOL_CORE_SIZE": str(consumer.concurrency),
            "consumerGroup": consumer.group,
            "messageModel": consumer.model.value,
            "consumeFromWhere": consumer.start_from.value,
        },
        subscription_set=sorted(consumer.subscriptions.values(), key=lambda data: data.topic),
        mq_table=queues,
        status_table={
            topic: ConsumeStatus(
                pull_tps=counts.pulled_a_second,
                consume_rt=counts.consume_ms,
                consume_ok_tps=counts.ok_a_second,
                consume_failed_tps=counts.failed_a_second,
                consume_failed_msgs=counts.failed,
            )
            for topic, counts in sorted(consumer.counts.items())
        },
    )
    if command.ext_fields.get("jstackEnable") == "true":
        info.jstack = "\n".join(repr(task) for task in asyncio.all_tasks())
    return command.reply(body=info.to_json())


async def _consume_directly(consumer: Consumer, command: RemotingCommand) -> RemotingCommand:
    """Consumes one message an operator chose, beside the group's offsets; says how it went."""
    began = time.perf_counter()
    outcome, remark = "CR_SUCCESS", None
    messages = decode_records(command.body, broker_name=command.ext_fields.get("brokerName") or "")
    if not messages:
        return command.reply(ResponseCode.SYSTEM_ERROR, remark="the message could not be decoded")
    message = messages[0]
    if message.topic == wire.RETRY_TOPIC_PREFIX + consumer.group:
        message.topic = message.properties.get(wire.PROPERTY_RETRY_TOPIC) or message.topic
    try:
        outcome = await consumer.consume_once(message, LOOP_WAIT_S)
    except Retry as retry:
        outcome, remark = "CR_LATER", str(retry) or None
    except Exception as error:
        outcome, remark = "CR_THROW_EXCEPTION", repr(error)
    result = ConsumeMessageDirectlyResult(
        order=consumer.orderly, auto_commit=True, consume_result=outcome, remark=remark,
        spent_time_mills=int((time.perf_counter() - began) * 1000),
    )  # fmt: skip
    return command.reply(body=result.to_json())


async def _reset(consumer: Consumer, command: RemotingCommand) -> RemotingCommand:
    consumer.reset(ResetOffsetBody.from_json(command.body).offset_table if command.body else {})
    return command.reply()


async def _status(consumer: Consumer, command: RemotingCommand) -> RemotingCommand:
    topic = command.ext_fields.get("topic")
    table = {queue: held.committable for queue, held in consumer.queues.items() if queue.topic == topic}
    return command.reply(body=GetConsumerStatusBody(message_queue_table=table).to_json())


_WORK: dict[int, Callable[[Consumer, RemotingCommand], Coroutine[Any, Any, RemotingCommand | None]]] = {
    RequestCode.GET_CONSUMER_RUNNING_INFO: _running_info,
    RequestCode.CONSUME_MESSAGE_DIRECTLY: _consume_directly,
    RequestCode.RESET_CONSUMER_CLIENT_OFFSET: _reset,
    RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT: _status,
}
