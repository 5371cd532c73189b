"""Popping: messages for a group from whatever queue has some, looking without taking, and waiting for them."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from aerobee.broker.pop import MESSAGES_MAX, Filter, Popped, Wanted
from aerobee.broker.pop_names import retry_topic
from aerobee.broker.topics import PERM_READ, SEE_FAQ
from aerobee.errors import AerobeeError, ServerError
from aerobee.net.connection import Connection
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.pop import (
    Notification,
    NotificationReply,
    PeekMessage,
    PollingInfo,
    PollingInfoReply,
    PopMessage,
    PopMessageReply,
)  # fmt: skip
from aerobee.protocol.reply import error_reply

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

_log = logging.getLogger("aerobee.broker.pop")

LATE_MS: Final = 500
"""A pop that is older than its poll time and this is not worth serving: its client has given up."""
_NOTHING: Final = "NO_MESSAGE_IN_QUEUE"


async def pop(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand | None:
    """POP_MESSAGE. None: it waits, and is answered when a message comes or its poll time is over."""
    header = command.header(PopMessage)
    now_ms = broker.clock.now_ms()
    born_ms = header.born_time or now_ms
    if now_ms - born_ms - header.poll_time > LATE_MS:
        raise ServerError(ResponseCode.POLLING_TIMEOUT, f"the broker[{broker.host}] pop message is timeout too much")
    if not broker.options.broker_permission & PERM_READ:
        raise ServerError(ResponseCode.NO_PERMISSION, f"the broker[{broker.host}] pop message is forbidden")
    if header.max_msg_nums > MESSAGES_MAX:
        raise ServerError(
            ResponseCode.INVALID_PARAMETER, f"the broker[{broker.host}] pop message's num is greater than 32"
        )
    _check(broker, connection, header)
    await broker.groups.settled()  # messages of a group that nobody knows after a crash would not come again
    chosen = Filter.of(broker.store, header.exp_type, header.exp)
    _check_count(header)
    wanted = Wanted(
        header.topic, header.consumer_group, max(header.queue_id, -1), header.max_msg_nums, header.invisible_time,
        header.init_mode, header.order, header.attempt_id, chosen,
    )  # fmt: skip
    popped = broker.pop.pop(wanted)
    if popped.count:
        reply = await _popped(broker, command, wanted, popped)
        if popped.rest > 0:
            broker.pop.wake(wanted.topic, wanted.group, wanted.queue_id)
        return reply
    await broker.pop.settled(popped)

    def again(last: bool) -> bool:
        try:
            popped = broker.pop.pop(wanted)
        except AerobeeError as error:
            connection.write(error_reply(command, error).encode())
            return True
        if popped.count or last:
            _answer(broker, connection, command, wanted, popped)
            return True
        broker.pop.move(popped)
        look_further(popped)
        return False

    def look_further(popped: Popped) -> None:
        if popped.moves:  # messages that its filter leaves out: more may lie behind them, and the one that it wants
            asyncio.get_running_loop().call_soon(broker.pop.wake, *key)

    key = (wanted.topic, wanted.group, wanted.queue_id)
    code = broker.pop.wait(key, connection, born_ms, header.poll_time, again, takes=True)
    if code is None:
        look_further(popped)
        return None
    return command.reply(code, _pop_reply(wanted, popped), remark=_NOTHING)


_answering: set[asyncio.Task[None]] = set()


def _answer(broker: Broker, connection: Connection, command: RemotingCommand, wanted: Wanted, popped: Popped) -> None:
    """Writes the answer of one that waited, once its check points are safe."""

    async def answer() -> None:
        try:
            reply = await _popped(broker, command, wanted, popped)
        except AerobeeError as error:
            reply = error_reply(command, error)
        connection.write(reply.encode())

    task = asyncio.ensure_future(answer())
    _answering.add(task)
    task.add_done_callback(_answering.discard)


async def _popped(broker: Broker, command: RemotingCommand, wanted: Wanted, popped: Popped) -> RemotingCommand:
    await broker.pop.settled(popped)
    if not popped.count:
        return command.reply(ResponseCode.POLLING_TIMEOUT, _pop_reply(wanted, popped), remark=_NOTHING)
    for topic, count, size in popped.by_topic:
        broker.stats.popped(wanted.group, topic, count, size)
    return command.reply(ResponseCode.SUCCESS, _pop_reply(wanted, popped), b"".join(popped.records), remark="FOUND")


def _pop_reply(wanted: Wanted, popped: Popped) -> PopMessageReply:
    return PopMessageReply(
        pop_time=popped.pop_time,
        invisible_time=wanted.invisible_time,
        revive_qid=popped.revive_queue,
        rest_num=popped.rest,
        start_offset_info=";".join(popped.start_offsets),
        msg_offset_info=";".join(popped.message_offsets),
        order_count_info=";".join(popped.order_counts) if wanted.order else None,
    )


def peek(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """PEEK_MESSAGE: as a pop would find them; they stay for everybody."""
    header = command.header(PeekMessage)
    _check_readable(broker, connection, header)
    _check_count(header)
    group, lot = header.consumer_group, random.randrange(100)
    retries = retry_topic(header.topic, group, second_form=broker.options.enable_retry_topic_v2)
    topics = [(header.topic, header.queue_id)]
    topics.insert(0 if lot % 5 == 0 else 1, (retries, -1))
    records: list[bytes] = []
    count = rest = 0
    for topic, queue_id in topics:
        config = broker.topics.get(topic)
        queues = config.read_queue_nums if config is not None else 0
        for queue in [queue_id] if queue_id >= 0 else [(lot + step) % queues for step in range(queues)]:
            offset = broker.pop.peek_offset(topic, group, queue)
            low, high = broker.store.bounds(topic, queue)
            rest += max(0, high - offset)
            if count < min(header.max_msg_nums, MESSAGES_MAX):
                room = min(header.max_msg_nums, MESSAGES_MAX) - count
                batch = broker.store.read(topic, queue, max(low, offset), room)
                records.append(batch.records)
                count += batch.count
    found = ResponseCode.SUCCESS if count else ResponseCode.PULL_NOT_FOUND
    reply = PopMessageReply(pop_time=0, invisible_time=0, revive_qid=0, rest_num=rest)
    return command.reply(found, reply, b"".join(records), remark="FOUND" if count else _NOTHING)


def notification(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand | None:
    """NOTIFICATION: is there something to pop? Waits until there is, or its poll time is over. None: it waits."""
    header = command.header(Notification)
    _check_readable(broker, connection, header)
    filters = broker.options.use_message_filter_for_notification and header.exp_type and header.exp
    chosen = Filter.of(broker.store, header.exp_type, header.exp) if filters else Filter()

    def reply(has_message: bool, *, full: bool = False) -> RemotingCommand:
        return command.reply(header=NotificationReply(has_msg=has_message, polling_full=full))

    def again(last: bool) -> bool:
        found = _has_message(broker, header, chosen)
        if found or last:
            connection.write(reply(found).encode())
        return found or last

    if _has_message(broker, header, chosen):
        return reply(True)
    wants = _News(broker, header, chosen).any if chosen != Filter() else None
    key = (header.topic, header.consumer_group, max(header.queue_id, -1))
    born_ms = header.born_time or broker.clock.now_ms()
    code = broker.pop.wait(key, connection, born_ms, header.poll_time, again, takes=False, wants=wants)
    return None if code is None else reply(False, full=code == ResponseCode.POLLING_FULL)


class _News:
    """Messages that come while a notification waits: its filter lets some through, or leaves them out."""

    def __init__(self, broker: Broker, header: Notification, chosen: Filter) -> None:
        self._broker, self._header, self._chosen = broker, header, chosen
        self._seen = {place: broker.store.bounds(*place)[1] for place in _places(broker, header)[0]}

    def any(self) -> bool:
        """Some have come that it lets through."""
        # Each queue is looked at, not only up to the first that has some: all begin where they ended the next time.
        return any([self._some(place) for place in _places(self._broker, self._header)[0]])

    def _some(self, place: tuple[str, int]) -> bool:
        store, interval = self._broker.store, self._broker.options.pop_long_polling_force_notify_interval
        seen, end = self._seen.get(place, 0), store.bounds(*place)[1]
        self._seen[place] = end
        if interval and end // interval > seen // interval:
            return True
        while seen < end:
            batch = store.read(*place, seen, 1, tags=self._chosen.tags, sql=self._chosen.sql)
            if batch.count or batch.next_offset <= seen:
                return bool(batch.count)
            seen = batch.next_offset
        return False


def _has_message(broker: Broker, header: Notification, chosen: Filter) -> bool:
    group, some_match = header.consumer_group, broker.options.max_message_filter_num_for_notification
    own, retries = _places(broker, header)
    for place in own + retries:
        topic, queue = place
        if header.order and broker.pop.orders.is_blocked(header.topic, group, queue, header.attempt_id, 0):
            continue
        left = _left(broker, group, place)
        if left <= 0:
            continue
        if place in retries or chosen.tags is None or left >= some_match:
            return True
        if broker.store.read(topic, queue, broker.pop.peek_offset(topic, group, queue), 1, tags=chosen.tags).count:
            return True
    return False


def _left(broker: Broker, group: str, place: tuple[str, int]) -> int:
    topic, queue = place
    return broker.store.bounds(topic, queue)[1] - broker.pop.peek_offset(topic, group, queue)


def _places(broker: Broker, header: Notification) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The queues that a notification asks for, and those of the group's retry topics."""
    own: list[tuple[str, int]] = []
    config = broker.topics.get(header.topic)
    if header.queue_id >= 0:
        own.append((header.topic, header.queue_id))
    elif config is not None:
        own += [(header.topic, queue) for queue in range(config.read_queue_nums)]
    retries: list[tuple[str, int]] = []
    for second_form in (False, True):
        name = retry_topic(header.topic, header.consumer_group, second_form=second_form)
        of_retries = broker.topics.get(name)
        if of_retries is not None:
            retries += [(name, queue) for queue in range(of_retries.read_queue_nums)]
    return own, retries


def polling_info(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """POLLING_INFO: how many pops wait for a queue."""
    header = command.header(PollingInfo)
    _check_readable(broker, connection, header)
    waiting = broker.pop.waiting((header.topic, header.consumer_group, max(header.queue_id, -1)))
    return command.reply(header=PollingInfoReply(polling_num=waiting))


async def rollback(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """POP_ROLLBACK: what is popped lies where every release of Apache's broker finds it, on the disk.

    Apache's moves it there from a database; here it is always in the revive log and `consumerOrderInfo.json`.
    """
    await broker.save_offsets()
    await broker.store.flush()
    return command.reply()


def _check_count(header: PopMessage | PeekMessage) -> None:
    if header.max_msg_nums < 0:
        raise ServerError(ResponseCode.SYSTEM_ERROR, f"maxMsgNums is {header.max_msg_nums}, it must not be negative")


def _check_readable(broker: Broker, connection: Connection, header: PeekMessage | Notification | PollingInfo) -> None:
    if not broker.options.broker_permission & PERM_READ:
        raise ServerError(ResponseCode.NO_PERMISSION, f"the broker[{broker.host}] peeking message is forbidden")
    _check(broker, connection, header)


def _check(
    broker: Broker, connection: Connection, header: PopMessage | PeekMessage | Notification | PollingInfo
) -> None:
    """Topic, queue and group in Apache's order. Raises ServerError."""
    topic, name = header.topic, header.consumer_group
    config = broker.topics.get(topic)
    if config is None:
        raise ServerError(ResponseCode.TOPIC_NOT_EXIST, f"topic[{topic}] not exist, apply first please! {SEE_FAQ}")
    if not config.perm & PERM_READ:
        raise ServerError(ResponseCode.NO_PERMISSION, f"the topic[{topic}] peeking message is forbidden")
    if header.queue_id >= config.read_queue_nums:
        raise ServerError(
            ResponseCode.INVALID_PARAMETER,
            f"queueId[{header.queue_id}] is illegal, topic:[{topic}]"
            f" topicConfig.readQueueNums:[{config.read_queue_nums}] consumer:[{connection.peer}]",
        )
    group = broker.groups.find(name)
    if group is None:
        raise ServerError(
            ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"subscription group [{name}] does not exist, {SEE_FAQ}"
        )
    if not group.consume_enable:
        raise ServerError(ResponseCode.NO_PERMISSION, f"subscription group no permission, {name}")


HANDLERS = {
    RequestCode.POP_MESSAGE: pop,
    RequestCode.PEEK_MESSAGE: peek,
    RequestCode.NOTIFICATION: notification,
    RequestCode.POLLING_INFO: polling_info,
    RequestCode.POP_ROLLBACK: rollback,
}
