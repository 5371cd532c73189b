"""`Consumer`: messages come to the application, in a group that shares the work.

    async with Consumer("127.0.0.1:9876", group="billing", subscriptions={"orders": "new || paid"}) as consumer:
        async for message in consumer:
            ...

    consumer = Consumer("127.0.0.1:9876", group="billing")

    @consumer.on("orders", tags="new || paid")
    async def handle(message): ...

    async with consumer:
        await consumer.run()

* A message is acknowledged when its handler returns, or when the `async for` asks for the next one. Leaving the
  loop leaves its last message unacknowledged (it comes again) unless `consumer.ack(message)` was called.
* A handler that raises gets the message again later: 10 s, 30 s, 1 min … up to `max_reconsume_times` (16), then it
  goes to the dead letter queue `%DLQ%group`. In a loop, `await consumer.retry(message)` does the same.
* Offsets are kept at the broker: committed every 5 s, with pulls, and at the stop. What was finished and not yet
  committed when a process dies is delivered again: handlers should not mind seeing a message twice.
* With `orderly=True` the messages of a queue are handed out one batch after the other, under the broker's lock; a
failed
  message is tried again in place after `suspend_ms`.
* Java members with the same group and the default strategy share its queues with Python members.

Plain functions work as handlers too: they run in threads, so that the event loop goes on.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from aerobee.client import answers, calls
from aerobee.client.client import STATIC_BROKER, Client, TopicRoute
from aerobee.client.offsets import BrokerOffsets, LocalOffsets
from aerobee.client.process_queue import FOREVER, Lane, Parcel, ProcessQueue
from aerobee.client.producer import Producer
from aerobee.client.rebalance import AllocateStrategy, allocate, allocate_average
from aerobee.client.results import ConsumeFrom, MessageModel, PullStatus, Retry
from aerobee.errors import AerobeeError, ConnectError, RequestTimeout, ServerError, TopicNotExist
from aerobee.net.connection import Connection
from aerobee.protocol import message as wire
from aerobee.protocol.bodies.client import ConsumerData, SubscriptionData
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.filter import Sql, subscription
from aerobee.protocol.message import Message, MessageExt, MessageQueue

_log = logging.getLogger("aerobee.client.consumer")

Handler = Callable[[MessageExt], Awaitable[None] | None]
BatchHandler = Callable[[Sequence[MessageExt]], Awaitable[None] | None]
H = TypeVar("H", bound=Handler)
B = TypeVar("B", bound=BatchHandler)
Subscriptions = Mapping[str, "str | Sql"] | Iterable[str]

_worker: ContextVar[asyncio.Task[Any] | None] = ContextVar("worker", default=None)
"""In the thread of a plain handler, and in what it has the loop do: the task that waits for it."""

COMMIT_INTERVAL_S: Final = 5.0
REBALANCE_INTERVAL_S: Final = 20.0
REBALANCE_AGAIN_S: Final = 1.0
"""When a queue that should be ours could not be taken, or a topic is missing: the next look."""
MISSING_S: Final = 5.0
"""A topic that does not exist for so long is mentioned: one that somebody has just sent to is there in a moment."""
HOLD_MS: Final = 15_000
"""How long the broker may hold a pull that finds nothing."""
LOCK_INTERVAL_S: Final = 20.0
LOCK_TRUST_S: Final = 30.0
"""The broker's lock lives 60 s; we rely on it for half of that and renew it in between."""
HAND_OVER_S: Final = 1.0
"""How long a queue that goes to another member waits for messages in hand, so that they are not delivered twice."""
LOCAL_RETRY_S: Final = 5.0
ERROR_WAIT_MAX_S: Final = 3.0
ITERATE_COUNT: Final = 32
ORDERLY_RECONSUME_MAX: Final = 2**31 - 1
CONCURRENT_RECONSUME_MAX: Final = 16
START_TIMESTAMP_AGO_MS: Final = 30 * 60 * 1000
SUBSCRIPTION_UNKNOWN: Final = frozenset(
    {
        ResponseCode.SUBSCRIPTION_NOT_EXIST,
        ResponseCode.SUBSCRIPTION_NOT_LATEST,
        ResponseCode.FILTER_DATA_NOT_EXIST,
        ResponseCode.FILTER_DATA_NOT_LATEST,
    }
)


class Consumer:
    """A member of a consumer group; see the head of this file.

    `subscriptions`: topic → tags ("*", "a || b") or `Sql("price > 5")`; a list of topics means all tags. `start_from`
    decides where a group begins that the broker has no offset of. `concurrency`: how many messages (or batches) each
    handler works on at a time. Flow limits hold per queue: no more is pulled while so many messages, bytes or so wide
    a span of offsets are unfinished. `max_reconsume_times` -1: 16, or without end when orderly.
    """

    def __init__(
        self,
        name_servers: str | Sequence[str] | None = None,
        *,
        group: str,
        subscriptions: Subscriptions = (),
        model: MessageModel = MessageModel.CLUSTERING,
        orderly: bool = False,
        start_from: ConsumeFrom = ConsumeFrom.LAST_OFFSET,
        start_timestamp_ms: int | None = None,
        concurrency: int = 20,
        pull_batch_messages: int = 32,
        queue_messages_max: int = 1000,
        queue_bytes_max: int = 100 * 1024 * 1024,
        queue_span_max: int = 2000,
        max_reconsume_times: int = -1,
        suspend_ms: int = 1000,
        stop_timeout_ms: int = 10_000,
        strategy: AllocateStrategy = allocate_average,
        instance_name: str = "",
        offsets_directory: str | Path | None = None,
        client: Client | None = None,
    ) -> None:
        wire.check_group(group)
        self.group = group
        self.model = model
        self.orderly = orderly
        self.start_from = start_from
        self.start_timestamp_ms = start_timestamp_ms or int(time.time() * 1000) - START_TIMESTAMP_AGO_MS
        self.concurrency = concurrency
        broadcasting = model is MessageModel.BROADCASTING
        # Broadcasting members keep their offsets in a file named after the client id, so that one must come again.
        name = "DEFAULT" if broadcasting else ""
        self.client = client or Client(name_servers, instance_name=instance_name or name)
        self.queues: dict[MessageQueue, ProcessQueue] = {}
        """The queues this member has now."""
        self.subscriptions: dict[str, SubscriptionData] = {}
        self.counts: dict[str, answers.Counts] = {}
        """What was consumed, by topic."""
        self.started_ms = 0
        self._pull_batch = pull_batch_messages
        self._limits = (queue_messages_max, queue_bytes_max, 0 if orderly else queue_span_max)
        self._reconsume_max = max_reconsume_times
        self._suspend_s = suspend_ms / 1000
        self._stop_timeout_s = stop_timeout_ms / 1000
        self._strategy = strategy
        self._offsets = LocalOffsets(self, offsets_directory) if broadcasting else BrokerOffsets(self)
        self._handlers: dict[str, _Handler] = {}
        self._lane = Lane()  # of the topics without a handler
        self._iterators = 0
        self._in_loops: dict[int, tuple[ProcessQueue, MessageExt]] = {}
        self._tasks: list[asyncio.Task[Any]] = []
        self._pulls: dict[MessageQueue, asyncio.Task[None]] = {}
        self._rebalance_now = asyncio.Event()
        self._stopped = asyncio.Event()
        self._threads: ThreadPoolExecutor | None = None
        self._returner: Producer | None = None
        self._retry_topic = wire.RETRY_TOPIC_PREFIX + group
        self._running = False
        self._paused = False
        self._queues_moved = False
        self._missing: dict[str, float] = {}
        """Topics that do not exist, and since when; for ever once that was mentioned."""
        for topic, expression in (
            subscriptions.items() if isinstance(subscriptions, Mapping) else dict.fromkeys(subscriptions, "*").items()
        ):
            self.subscribe(topic, expression)

    # Saying what is wanted.

    def subscribe(self, topic: str, expression: str | Sql = "*") -> None:
        """Adds (or changes) a topic; works before and after the start. All members of a group must subscribe alike."""
        wire.check_topic(topic)
        self.subscriptions[topic] = subscription(topic, expression)
        self.counts.setdefault(topic, answers.Counts())
        if self._running:
            self.client.spawn(self._resubscribed())

    def unsubscribe(self, topic: str) -> None:
        """Leaves a topic; its queues are given up, finished offsets are committed."""
        self.subscriptions.pop(topic, None)
        if self._running:
            self.client.spawn(self._resubscribed())

    def on(self, topic: str, *, tags: str | Sql = "*", concurrency: int | None = None) -> Callable[[H], H]:
        """Decorator: subscribes `topic` and calls the function for each of its messages. Returning acknowledges,
        raising retries. Plain functions run in threads."""

        def register(function: H) -> H:
            self._handle(topic, tags, function, 1, concurrency)
            return function

        return register

    def on_batch(
        self, topic: str, *, tags: str | Sql = "*", size: int = 32, concurrency: int | None = None
    ) -> Callable[[B], B]:
        """Like `on`, with up to `size` messages of one queue at a time; `raise Retry(messages=[...])` says which
        failed."""

        def register(function: B) -> B:
            self._handle(topic, tags, function, size, concurrency)
            return function

        return register

    def _handle(
        self, topic: str, tags: str | Sql, function: Callable[..., Any], size: int, concurrency: int | None
    ) -> None:
        if self._running:
            raise RuntimeError("handlers are registered before the consumer starts")
        self.subscribe(topic, tags)
        self._handlers[topic] = _Handler(function, size, concurrency or self.concurrency)

    # Life.

    async def start(self) -> Self:
        """Joins the group. Raises ConnectError when no name server can be reached. Topics that do not exist are
        waited for."""
        if self._running:
            return self
        if self.model is MessageModel.CLUSTERING:
            self.subscriptions[self._retry_topic] = subscription(self._retry_topic, "*")
        await self.client.start()
        self._running = True
        self._stopped, self._rebalance_now = asyncio.Event(), asyncio.Event()
        self.started_ms = int(time.time() * 1000)
        self.client.join(self)
        try:
            for topic in list(self.subscriptions):
                try:
                    await self.client.route(topic, fresh=True)
                except TopicNotExist:
                    pass  # `rebalance` looks again
            await self.client.heartbeat_all()
        except BaseException:
            self._running = False
            self.client.leave(self)
            await self.client.stop()
            raise
        spawn = self.client.spawn
        self._tasks = [spawn(self._keep_balanced()), spawn(self._keep_committing())]
        if self._needs_locks:
            self._tasks.append(spawn(self._keep_locks()))
        for handler in self._handlers.values():
            handler.lane.closed = False
            handler.workers = [spawn(self._work(handler)) for _ in range(handler.concurrency)]
        self._lane.closed = False
        return self

    async def stop(self) -> None:
        """Stops pulling, lets handlers finish what they hold (up to `stop_timeout_ms`), commits, leaves the group."""
        if not self._running:
            return
        self._running = False
        for task in (*self._tasks, *self._pulls.values()):
            task.cancel()
        lanes = [self._lane, *(handler.lane for handler in self._handlers.values())]
        for lane in lanes:
            lane.close()
        current = asyncio.current_task()
        asking = (current, _worker.get())  # a handler that stops its consumer is not waited for
        workers = [worker for handler in self._handlers.values() for worker in handler.workers]
        if workers:
            await asyncio.wait(
                [w for w in workers if w not in asking] or [asyncio.ensure_future(asyncio.sleep(0))],
                timeout=self._stop_timeout_s,
            )
        for process_queue in self.queues.values():
            process_queue.drop()
        await self._offsets.commit(self.queues.values(), last=True)
        if self._needs_locks:
            await self._unlock(list(self.queues))
        for worker in workers:
            if worker is not current:
                worker.cancel()
        self.queues.clear()
        self._pulls.clear()
        if self._returner is not None:
            await self._returner.stop()
            self._returner = None
        self.client.leave(self)
        addresses = {address for by_id in self.client.brokers.values() for address in by_id.values()}
        reachable = addresses & set(self.client.pool.connected)
        await asyncio.gather(
            *(calls.unregister(self.client, address, consumer_group=self.group) for address in reachable),
            return_exceptions=True,
        )
        await self.client.stop()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None
        for lane in lanes:
            lane.clear()
        self._stopped.set()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def run(self) -> None:
        """Returns when the consumer is stopped (by `stop`, from a handler or elsewhere)."""
        await self.start()
        await self._stopped.wait()

    def pause(self) -> None:
        """No further pulls; what was pulled is still handed out. Its queues stay with this member."""
        self._paused = True

    def resume(self) -> None:
        """Goes on after `pause`."""
        self._paused = False

    @property
    def _needs_locks(self) -> bool:
        return self.orderly and self.model is MessageModel.CLUSTERING

    # Taking messages in a loop.

    def __aiter__(self) -> AsyncIterator[MessageExt]:
        return Messages(self)

    async def batches(self, size: int = 32) -> AsyncIterator[list[MessageExt]]:
        """Messages in lists of up to `size` of one queue; a list is acknowledged when the next one is asked for."""
        while (parcel := await self._lane.take(size)) is not None:
            try:
                yield parcel.messages
            except BaseException:
                self._put_back(parcel)
                raise
            self._finished(parcel.queue, parcel.messages)

    async def take(self, count: int) -> Parcel | None:
        """Up to `count` messages for a loop of another kind; they are given back with `settle`. None when stopped."""
        parcel = await self._lane.take(1 if self.orderly else count)
        if parcel is not None:
            for message in parcel.messages:
                self._in_loops[id(message)] = parcel.queue, message
        return parcel

    def settle(self, parcel: Parcel, done: int) -> None:
        """The first `done` messages are acknowledged (unless `ack` or `retry` did it), the others go to the next
        taker."""
        held = [self._in_loops.pop(id(message), None) is not None for message in parcel.messages]
        good = [message for message, ours in zip(parcel.messages[:done], held, strict=False) if ours]
        rest = [message for message, ours in zip(parcel.messages[done:], held[done:], strict=True) if ours]
        if rest:
            self._put_back(Parcel(parcel.queue, rest))
        if good:
            self._finished(parcel.queue, good)

    def ack(self, message: MessageExt) -> None:
        """Acknowledges a message of a loop now, instead of when the next one is asked for."""
        entry = self._in_loops.pop(id(message), None)
        if entry is not None:
            self._finished(entry[0], [message])

    async def retry(self, message: MessageExt, *, delay_level: int = 0) -> None:
        """A message of a loop failed: it comes again later (see `Retry`). The loop goes on with the next one."""
        entry = self._in_loops.pop(id(message), None)
        if entry is None:
            raise ValueError("this message is not in the hands of a loop over this consumer")
        await self._failed(Parcel(entry[0], [message]), Retry(delay_level=delay_level))

    def _finished(self, process_queue: ProcessQueue, messages: Sequence[MessageExt]) -> None:
        process_queue.finish(messages)
        self._count(messages).ok += len(messages)
        if self.orderly:
            self._next_in_order(process_queue)

    def _count(self, messages: Sequence[MessageExt]) -> answers.Counts:
        topic = messages[0].topic
        counts = self.counts.get(topic)
        if counts is None:
            counts = self.counts[topic] = answers.Counts()
        return counts

    def _put_back(self, parcel: Parcel) -> None:
        """Handed out and not wanted: first in line for the next taker."""
        parcel.queue.give_back(parcel.messages)
        if parcel.queue.dropped:
            return
        if self.orderly:
            parcel.queue.waiting.extendleft(reversed(parcel.messages))
            self._next_in_order(parcel.queue)
        else:
            self._lane_of(parcel.messages[0].topic).put_first(parcel)

    def _lane_of(self, topic: str) -> Lane:
        handler = self._handlers.get(topic)
        return handler.lane if handler is not None else self._lane

    def _next_in_order(self, process_queue: ProcessQueue) -> None:
        """Nobody holds messages of this queue: the next ones are free."""
        process_queue.taken = False
        if process_queue.waiting and not process_queue.dropped:
            self._lane_of(process_queue.waiting[0].topic).put_queue(process_queue)

    # Handlers.

    async def _work(self, handler: _Handler) -> None:
        lane = handler.lane
        function = handler.function
        current = asyncio.current_task()
        assert current is not None
        while True:
            count = handler.size
            if not handler.is_async and count == 1:
                # A hop to a thread costs more than most messages do: take several along when many are waiting.
                count = max(1, min(ITERATE_COUNT, lane.size // handler.concurrency))
            parcel = await lane.take(count)
            if parcel is None:
                return
            messages = parcel.messages
            began = time.perf_counter()
            failure: BaseException | None = None
            try:
                if handler.is_async:
                    await function(messages[0] if handler.size == 1 else messages)
                elif handler.size == 1:
                    done, failure = await self._in_thread(_one_by_one, function, messages)
                    if failure is not None:
                        if done:
                            self._finished_some(parcel, done)
                        rest = parcel.messages[1:]
                        if rest:
                            parcel.messages = parcel.messages[:1]
                            self._put_back_rest(parcel.queue, rest)
                else:
                    failure = await self._in_thread(_failure_of, function, messages)
            except asyncio.CancelledError:
                if not self._running or current.cancelling():
                    raise
                failure = Retry("the handler was cancelled")
            except Exception as error:
                failure = error
            counts = self._count(messages)
            counts.spent_s += time.perf_counter() - began
            if failure is None:
                self._finished(parcel.queue, parcel.messages)
            else:
                if not isinstance(failure, Retry):
                    _log.error(
                        "handler of %s failed at offset %d of %s", messages[0].topic, parcel.messages[0].queue_offset,
                        parcel.queue.queue, exc_info=failure,
                    )  # fmt: skip
                await self._failed(parcel, failure)

    async def consume_once(self, message: MessageExt, timeout_s: float) -> str:
        """Runs one message through its handler (or a loop), beside the group's offsets; raises what the handler
        raises."""
        handler = self._handlers.get(message.topic)
        if handler is not None:
            argument = message if handler.size == 1 else [message]
            if handler.is_async:
                await handler.function(argument)
            else:
                failure = await self._in_thread(_failure_of, handler.function, argument)
                if failure is not None:
                    raise failure
            return "CR_SUCCESS"
        beside = ProcessQueue(MessageQueue(message.topic, message.broker_name, message.queue_id), message.queue_offset)
        beside.put([message])
        self._lane.put(Parcel(beside, [message]))
        if await beside.finished(timeout_s):
            return "CR_SUCCESS"
        beside.drop()
        return "CR_LATER"

    def _finished_some(self, parcel: Parcel, count: int) -> None:
        parcel.queue.finish(parcel.messages[:count])
        self._count(parcel.messages).ok += count
        parcel.messages = parcel.messages[count:]

    def _put_back_rest(self, process_queue: ProcessQueue, messages: list[MessageExt]) -> None:
        """The messages behind a failed one, not tried yet."""
        process_queue.give_back(messages)
        if process_queue.dropped:
            return
        if self.orderly:
            process_queue.waiting.extendleft(reversed(messages))  # the failed one is put in front of them, or finished
        else:
            self._lane_of(messages[0].topic).put_first(Parcel(process_queue, messages))

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._threads is None:
            workers = sum(h.concurrency for h in self._handlers.values() if not h.is_async) or self.concurrency
            self._threads = ThreadPoolExecutor(min(workers, 256), thread_name_prefix=f"consumer-{self.group}")
        context = copy_context()
        context.run(_worker.set, asyncio.current_task())
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, function, *args)

    async def _failed(self, parcel: Parcel, failure: BaseException) -> None:
        """Messages whose handler failed: back to the broker, or again in place."""
        messages = parcel.messages
        level = 0
        if isinstance(failure, Retry):
            level = failure.delay_level
            if failure.messages is not None and not self.orderly:
                wanted = {id(message) for message in failure.messages}
                good = [message for message in messages if id(message) not in wanted]
                messages = [message for message in messages if id(message) in wanted]
                if good:
                    self._finished(parcel.queue, good)
                if not messages:
                    return
        process_queue = parcel.queue
        self._count(messages).failed += len(messages)
        if process_queue.dropped:
            process_queue.finish(messages)  # someone else has the queue and will see them
            return
        if self.orderly:
            await self._failed_in_order(process_queue, messages)
        elif self.model is MessageModel.BROADCASTING:
            _log.warning("broadcasting knows no retry: %d messages of %s dropped", len(messages), process_queue.queue)
            process_queue.finish(messages)
        else:
            for message in messages:
                if await self._send_back(message, process_queue.queue.broker_name, level):
                    process_queue.finish([message])
                else:
                    message.reconsume_times += 1
                    process_queue.give_back([message])
                    asyncio.get_running_loop().call_later(
                        LOCAL_RETRY_S, self._lane_of(message.topic).put, Parcel(process_queue, [message])
                    )

    async def _failed_in_order(self, process_queue: ProcessQueue, messages: Sequence[MessageExt]) -> None:
        limit = ORDERLY_RECONSUME_MAX if self._reconsume_max < 0 else self._reconsume_max
        again: list[MessageExt] = []
        for message in messages:
            exhausted = message.reconsume_times >= limit
            if exhausted and self.model is MessageModel.CLUSTERING and await self._send_to_retry_topic(message, limit):
                process_queue.finish([message])
            elif exhausted and self.model is MessageModel.BROADCASTING:
                process_queue.finish([message])
            else:
                message.reconsume_times += 1
                again.append(message)
        process_queue.give_back(again)
        process_queue.waiting.extendleft(reversed(again))
        if again:
            # The queue stays taken, so nothing overtakes; it rests and is then offered again.
            asyncio.get_running_loop().call_later(self._suspend_s, self._next_in_order, process_queue)
        else:
            self._next_in_order(process_queue)

    async def _send_back(self, message: MessageExt, broker_name: str, delay_level: int) -> bool:
        """Whether the message is safe at a broker for a later delivery."""
        limit = CONCURRENT_RECONSUME_MAX if self._reconsume_max < 0 else self._reconsume_max
        if broker_name.startswith(STATIC_BROKER):
            # Which broker has it, nobody knows: the queue may have moved since.
            return await self._send_to_retry_topic(message, limit, delay_level)
        try:
            await calls.send_back(
                self.client, self.client.master(broker_name), self.group, message, delay_level, limit, broker_name
            )
            return True
        except AerobeeError as error:
            _log.warning("message %s not taken back by %s: %s; sending it anew", message.message_id, broker_name, error)
        return await self._send_to_retry_topic(message, limit, delay_level)

    async def _send_to_retry_topic(self, message: MessageExt, limit: int, delay_level: int = 0) -> bool:
        """Stores a copy for later delivery: where the broker that has the message cannot be asked, and for dead letters
        of orderly consumers (the broker moves what comes from a group that holds locks straight to the dead letter
        queue)."""
        properties = dict(message.properties)
        properties.pop(wire.PROPERTY_TRANSACTION_PREPARED, None)
        properties.setdefault(wire.PROPERTY_ORIGIN_MESSAGE_ID, message.message_id)
        properties[wire.PROPERTY_RETRY_TOPIC] = message.topic
        properties[wire.PROPERTY_RECONSUME_TIME] = str(message.reconsume_times + 1)
        # More times than allowed: the broker moves it to the dead letter queue.
        properties[wire.PROPERTY_MAX_RECONSUME_TIMES] = str(limit if delay_level >= 0 else 0)
        properties[wire.PROPERTY_DELAY_TIME_LEVEL] = str(max(0, delay_level) or 3 + message.reconsume_times)
        copy = Message(self._retry_topic, message.body, properties=properties, flag=message.flag)
        try:
            if self._returner is None:
                self._returner = await Producer(group="CLIENT_INNER_PRODUCER", client=self.client).start()
            await self._returner.send(copy)
            return True
        except AerobeeError as error:
            _log.error("message %s could not be put back for a retry: %s", message.message_id, error)
            return False

    # Pulling.

    async def _pull(self, process_queue: ProcessQueue) -> None:
        """Fetches one queue for as long as it is ours."""
        queue = process_queue.queue
        failures = 0
        while not process_queue.dropped:
            await process_queue.room(*self._limits)
            if self._paused:
                await asyncio.sleep(0.2)
                continue
            wanted = self.subscriptions.get(queue.topic)
            if wanted is None or process_queue.dropped:
                return
            process_queue.last_pull_ms = int(time.time() * 1000)
            try:
                result = await calls.pull(
                    self.client, self.group, queue, process_queue.next_offset, count=self._pull_batch,
                    hold_ms=HOLD_MS, broker_id=process_queue.read_from,
                    commit_offset=self._offsets.with_pull(process_queue), expression_type=wanted.expression_type,
                    sub_version=wanted.sub_version, tags=wanted.tags_set,
                )  # fmt: skip
            except asyncio.CancelledError:
                raise
            except Exception as error:
                failures += 1
                await self._pull_failed(process_queue, error, failures)
                continue
            failures = 0
            if process_queue.dropped:
                return
            process_queue.read_from = result.suggested_broker_id
            if result.status is PullStatus.OFFSET_ILLEGAL:
                # Messages were deleted, or an operator reset the group's offset.
                process_queue = await self._moved(process_queue, self._moves(process_queue, result.next_offset))
                continue
            process_queue.next_offset = result.next_offset
            if result.messages:
                self._arrived(process_queue, result.messages)
            else:
                process_queue.skip_to(result.next_offset)

    async def _pull_failed(self, process_queue: ProcessQueue, error: Exception, failures: int) -> None:
        queue = process_queue.queue
        wait_s = min(ERROR_WAIT_MAX_S, 0.1 * 2 ** min(failures, 8))
        if isinstance(error, ServerError) and error.code in SUBSCRIPTION_UNKNOWN:
            self.client.greet([self.client.any_of(self.client.host(queue), process_queue.read_from)])
            if failures > 1:
                _log.warning("pull of %s: %s; the group's subscription was sent again", queue, error)
        elif isinstance(error, ServerError) and error.code == ResponseCode.FLOW_CONTROL:
            wait_s = 0.02
        elif isinstance(error, AerobeeError):
            if failures in (1, 10) or failures % 100 == 0:
                _log.warning("pull of %s failed (%d times in a row): %s", queue, failures, error)
            process_queue.read_from = 0
            if isinstance(error, ConnectError | RequestTimeout) and failures % 3 == 1:
                self.client.spawn(self._look_again(queue.topic))
        else:
            _log.error("pull of %s at offset %d", queue, process_queue.next_offset, exc_info=error)
            wait_s = ERROR_WAIT_MAX_S
        await asyncio.sleep(wait_s)

    async def _look_again(self, topic: str) -> None:
        try:
            await self.client.route(topic, fresh=True)
        except AerobeeError as error:
            _log.debug("route of %s: %s", topic, error)

    def _arrived(self, process_queue: ProcessQueue, messages: Sequence[MessageExt]) -> None:
        process_queue.put(messages)
        topic = process_queue.queue.topic
        counts = self.counts.get(topic)
        if counts is not None:
            counts.pulled += len(messages)
        if topic == self._retry_topic:
            for message in messages:
                message.topic = message.properties.get(wire.PROPERTY_RETRY_TOPIC) or topic
        if self.orderly:
            process_queue.waiting.extend(messages)
            if not process_queue.taken:
                self._next_in_order(process_queue)
        elif topic == self._retry_topic:
            for message in messages:
                self._lane_of(message.topic).put(Parcel(process_queue, [message]))
        else:
            self._lane_of(topic).put(Parcel(process_queue, list(messages)))

    def _moves(self, process_queue: ProcessQueue, offset: int) -> ProcessQueue:
        """The queue from another place on; from now on this is where the group is, whoever asks."""
        queue = process_queue.queue
        _log.warning(
            "group %s goes on at offset %d of %s instead of %d", self.group, offset, queue, process_queue.next_offset
        )
        process_queue.drop()
        self.queues[queue] = fresh = ProcessQueue(queue, offset)
        fresh.locked_until = process_queue.locked_until
        return fresh

    async def _moved(self, process_queue: ProcessQueue, fresh: ProcessQueue) -> ProcessQueue:
        """What is in hand of the former place has its time."""
        await process_queue.idle(HAND_OVER_S)
        await self._offsets.commit([fresh])
        return fresh

    def reset(self, offsets: Mapping[MessageQueue, int]) -> None:
        """Goes on at these offsets, forwards or backwards; queues of other members are ignored. Of a queue that is just
        handed over the offset is what its next owner is told."""
        self._offsets.forget(offsets)
        for queue, offset in offsets.items():
            pull = self._pulls.get(queue)
            if pull is not None:
                pull.cancel()
                before = self.queues[queue]
                self._pulls[queue] = self.client.spawn(self._reset(before, self._moves(before, offset)))
            elif queue in self.queues:
                self.queues[queue] = told = ProcessQueue(queue, offset)
                told.drop()

    async def _reset(self, before: ProcessQueue, fresh: ProcessQueue) -> None:
        await self._pull(await self._moved(before, fresh))

    # Sharing the queues.

    async def _resubscribed(self) -> None:
        for topic in list(self.subscriptions):
            await self._look_again(topic)
        await self.client.heartbeat_all()
        self._rebalance_now.set()

    async def _keep_balanced(self) -> None:
        wait_s = 0.0
        again_s = REBALANCE_AGAIN_S / 4
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await self._rebalance_now.wait()
            except TimeoutError:
                pass
            self._rebalance_now.clear()
            balanced = await self.rebalance()
            if self._needs_locks and self._queues_moved:
                # The new leader knows nothing of locks. After the balance: what was given up must not be locked again.
                self._queues_moved = False
                await self._renew_locks()
            if balanced:
                wait_s = REBALANCE_INTERVAL_S
                again_s = REBALANCE_AGAIN_S / 4
            else:
                wait_s = again_s
                again_s = min(REBALANCE_INTERVAL_S, again_s * 1.5)

    async def rebalance(self) -> bool:
        """Takes and gives up queues as the group's membership asks for; False if it should be tried again soon."""
        balanced = True
        left = [queue.topic for queue in self.queues if queue.topic not in self.subscriptions]
        for topic in dict.fromkeys([*left, *self.subscriptions]):
            try:
                if topic in self.subscriptions:
                    balanced &= await self._rebalance_topic(topic)
                    self._missing.pop(topic, None)
                else:
                    await self._hold(topic, [])
            except TopicNotExist:
                self._mention_missing(topic)
                balanced = False
            except AerobeeError as error:
                _log.warning("group %s could not be balanced over %s: %s", self.group, topic, error)
                balanced = False
            except Exception:
                _log.exception("group %s could not be balanced over %s", self.group, topic)
                balanced = False
        return balanced

    def _mention_missing(self, topic: str) -> None:
        """Once, and not for one that has just been sent to. The retry topic comes with the first failure."""
        now = time.monotonic()
        if now - self._missing.setdefault(topic, now) >= MISSING_S and topic != self._retry_topic:
            self._missing[topic] = math.inf
            _log.warning("topic %s does not exist (yet); group %s waits for it", topic, self.group)

    async def _rebalance_topic(self, topic: str) -> bool:
        route = await self.client.route(topic)
        if self.model is MessageModel.BROADCASTING:
            return await self._hold(topic, route.read_queues)
        members = await self._members(route)
        if self.client.client_id not in members:
            await self.client.heartbeat_all()  # the broker forgot us, or has not heard of us
            return False
        mine = allocate(self.client.client_id, route.read_queues, members, self._strategy)
        self._offsets.forget(set(route.read_queues).difference(mine))
        return await self._hold(topic, mine)

    async def _members(self, route: TopicRoute) -> list[str]:
        """The group as one broker of the topic sees it."""
        names = sorted({route.host(queue) for queue in route.read_queues})
        random.shuffle(names)
        failure: AerobeeError = ConnectError(f"topic {route.topic} has no queue to read")
        for name in names:
            try:
                return await calls.consumer_ids(self.client, self.client.any_of(name), self.group)
            except ServerError as error:
                return [] if error.code == ResponseCode.SYSTEM_ERROR else _raise(error)  # Apache's "no such group yet"
            except AerobeeError as error:
                failure = error
        raise failure

    async def _hold(self, topic: str, mine: Iterable[MessageQueue]) -> bool:
        """Makes the queues of `topic` that we have equal to `mine`."""
        wanted = set(mine)
        gone = [queue for queue in self.queues if queue.topic == topic and queue not in wanted]
        if gone:
            await asyncio.gather(*(self._give_up(queue) for queue in gone))
        for queue in wanted & self._pulls.keys():
            if self._pulls[queue].done():  # its topic was left, and is back
                self._pulls[queue] = self.client.spawn(self._pull(self.queues[queue]))
        new = [queue for queue in sorted(wanted, key=lambda q: (q.broker_name, q.queue_id)) if queue not in self.queues]
        if not new:
            return True
        complete = True
        locked = await self._lock(new) if self._needs_locks else set(new)
        for queue in new:
            if queue not in locked:
                complete = False  # its last owner has not let go
                continue
            try:
                offset = await self._offsets.start(queue)
            except AerobeeError as error:
                _log.warning("where to start in %s: %s", queue, error)
                complete = False
                continue
            process_queue = ProcessQueue(queue, offset)
            if self._needs_locks:
                process_queue.locked_until = time.monotonic() + LOCK_TRUST_S
            self.queues[queue] = process_queue
            self._pulls[queue] = self.client.spawn(self._pull(process_queue))
        _log.info("group %s has %d queues of %s", self.group, len(wanted) if complete else len(new), topic)
        return complete

    async def _give_up(self, queue: MessageQueue) -> None:
        process_queue = self.queues[queue]
        self._pulls.pop(queue).cancel()
        process_queue.drop()
        await process_queue.idle(HAND_OVER_S)
        await self._offsets.commit([self.queues.get(queue, process_queue)])  # another one: it was reset meanwhile
        if self._needs_locks:
            await self._unlock([queue])
        self.queues.pop(queue, None)

    async def _lock(self, queues: Iterable[MessageQueue]) -> set[MessageQueue]:
        by_broker: dict[str, list[MessageQueue]] = {}
        for queue in queues:
            by_broker.setdefault(self.client.host(queue), []).append(queue)
        locked: set[MessageQueue] = set()
        for name, of_broker in by_broker.items():
            try:
                locked |= await calls.lock(self.client, name, self.group, of_broker)
            except AerobeeError as error:
                _log.warning("group %s could not lock its queues at %s: %s", self.group, name, error)
        return locked

    async def _unlock(self, queues: Iterable[MessageQueue]) -> None:
        by_broker: dict[str, list[MessageQueue]] = {}
        for queue in queues:
            by_broker.setdefault(self.client.host(queue), []).append(queue)
        for name, of_broker in by_broker.items():
            try:
                await calls.unlock(self.client, name, self.group, of_broker)
            except AerobeeError as error:
                _log.warning("group %s could not unlock its queues at %s: %s", self.group, name, error)

    async def _keep_locks(self) -> None:
        while True:
            await asyncio.sleep(LOCK_INTERVAL_S)
            await self._renew_locks()

    async def _renew_locks(self) -> None:
        asked_at = time.monotonic()
        locked = await self._lock(list(self.queues))
        for queue, process_queue in self.queues.items():
            if queue in locked:
                process_queue.locked_until = asked_at + LOCK_TRUST_S
                if process_queue.waiting and not process_queue.taken:
                    self._next_in_order(process_queue)
            elif process_queue.locked_until < FOREVER:
                _log.warning("the lock of %s was not renewed", queue)

    async def _keep_committing(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_INTERVAL_S)
            for counts in self.counts.values():
                counts.tick(COMMIT_INTERVAL_S)
            await self._offsets.commit(self.queues.values())

    # What the client asks of its members.

    def heartbeat_data(self) -> ConsumerData:
        """What the heartbeat says about this member."""
        return ConsumerData(
            group_name=self.group,
            consume_type="CONSUME_PASSIVELY",
            message_model=self.model.value,
            consume_from_where=self.start_from.value,
            subscription_data_set=list(self.subscriptions.values()),
        )

    def topics(self) -> Iterable[str]:
        """Topics whose routes are kept fresh."""
        return tuple(self.subscriptions)

    def routes_changed(self, topic: str) -> None:
        """A topic's queues changed."""
        if topic in self.subscriptions:
            self._queues_moved = True
            self._rebalance_now.set()

    def requested(
        self, connection: Connection, command: RemotingCommand
    ) -> Coroutine[Any, Any, RemotingCommand | None] | None:
        """A broker's request; None if it is not for this member."""
        if command.code == RequestCode.NOTIFY_CONSUMER_IDS_CHANGED:
            if command.ext_fields.get("consumerGroup") == self.group:
                self._rebalance_now.set()
                return _nothing()
            return None
        return answers.answer(self, command)


class Messages:
    """One `async for` over a consumer: asking for the next message acknowledges the one before."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._loop = asyncio.get_running_loop()
        self._queue: ProcessQueue | None = None
        self._rest: list[MessageExt] = []  # in reverse
        self._current: MessageExt | None = None
        consumer._iterators += 1

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> MessageExt:
        consumer = self._consumer
        current = self._current
        if current is not None:
            self._current = None
            if consumer._in_loops.pop(id(current), None) is not None:
                assert self._queue is not None
                self._finish(self._queue, current)
        if self._rest and (self._queue is None or self._queue.dropped):
            if self._queue is not None:
                self._queue.give_back(self._rest)
            self._rest = []  # the queue went to another member
        if not self._rest:
            # With several loops on one consumer nobody hoards.
            parcel = await consumer._lane.take(
                ITERATE_COUNT if consumer._iterators == 1 and not consumer.orderly else 1
            )
            if parcel is None:
                raise StopAsyncIteration
            self._queue = parcel.queue
            self._rest = parcel.messages[::-1]
        message = self._rest.pop()
        assert self._queue is not None
        consumer._in_loops[id(message)] = (self._queue, message)
        self._current = message
        return message

    def _finish(self, process_queue: ProcessQueue, message: MessageExt) -> None:
        self._consumer._finished(process_queue, (message,))

    def close(self) -> None:
        """Leaves the loop: the messages it still holds, the current one too unless acknowledged, go to other takers."""
        consumer, self._rest, rest = self._consumer, [], self._rest
        current, self._current = self._current, None
        if current is not None and consumer._in_loops.pop(id(current), None) is not None:
            rest.append(current)
        if rest and self._queue is not None:
            consumer._put_back(Parcel(self._queue, rest[::-1]))

    def __del__(self) -> None:
        self._consumer._iterators -= 1
        if (self._rest or self._current is not None) and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.close)


class _Handler:
    """A function, its lane and its workers."""

    __slots__ = ("concurrency", "function", "is_async", "lane", "size", "workers")

    def __init__(self, function: Callable[..., Any], size: int, concurrency: int) -> None:
        self.function = function
        self.size = size
        self.concurrency = concurrency
        # An object with an async __call__ is a coroutine function too, only not to `inspect`.
        self.is_async = any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))
        self.lane = Lane()
        self.workers: list[asyncio.Task[None]] = []


def _one_by_one(function: Callable[[MessageExt], Any], messages: Sequence[MessageExt]) -> tuple[int, Exception | None]:
    """How many messages went well, and what the next one raised."""
    for index, message in enumerate(messages):
        try:
            function(message)
        except Exception as error:
            return index, error
    return len(messages), None


def _failure_of(function: Callable[[Any], Any], argument: Any) -> Exception | None:
    """What a call raised, as a value: no future takes a StopIteration."""
    try:
        function(argument)
    except Exception as error:
        return error
    return None


async def _nothing() -> None:
    return None


def _raise(error: Exception) -> Any:
    raise error
