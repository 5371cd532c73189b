"""The client for programs without an event loop: the same names, plain calls.

    from aerobee.sync import Producer, Message

    with Producer("127.0.0.1:9876", group="shop") as producer:
        producer.send(Message("orders", b"42"))

All objects of a process share one background thread with an event loop. Calls may come from any thread. In a forked
child a fresh thread and fresh connections are made on the first call; the parent's go on undisturbed.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Generic, Self, TypeVar

import uvloop

from aerobee import client as aio
from aerobee.client import (
    ConsumeFrom,
    Message,
    MessageExt,
    MessageModel,
    MessageQueue,
    PullResult,
    PullStatus,
    Retry,
    SendResult,
    SendStatus,
    Sql,
)

__all__ = [
    "ConsumeFrom",
    "Consumer",
    "Message",
    "MessageExt",
    "MessageModel",
    "MessageQueue",
    "Producer",
    "PullConsumer",
    "PullResult",
    "PullStatus",
    "Retry",
    "SendResult",
    "SendStatus",
    "Sql",
]

T = TypeVar("T")
A = TypeVar("A", aio.Producer, aio.Consumer, aio.PullConsumer)


class _Background:
    """The loop's thread, one a process; made when first needed, and again after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lock = threading.Lock()
        self._loop = None

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = uvloop.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="aerobee", daemon=True).start()
            return self._loop

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` there and returns what it returns; Ctrl-C cancels it."""
        if threading.current_thread().name == "aerobee" and self._loop is not None and self._loop.is_running():
            work.close()
            raise RuntimeError(
                "this call would wait for its own thread; use aerobee's asyncio classes inside coroutines"
            )
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


_background = _Background()


class _Face(Generic[A]):
    """Makes the asyncio object in the background's loop, and again in a forked child."""

    def __init__(self, make: Callable[[], A]) -> None:
        self._make: Callable[[], A] = make
        self._pid = 0
        self._inner: A | None = None
        self._started = False
        # By process: a child must not wait for a thread that only its parent has.
        self._locks: dict[int, threading.RLock] = {}

    def _lock(self) -> threading.RLock:
        return self._locks.setdefault(os.getpid(), threading.RLock())

    def _aio(self) -> A:
        pid = os.getpid()
        if self._pid == pid and (inner := self._inner) is not None:
            return inner
        with self._lock():
            if self._pid == pid and (inner := self._inner) is not None:
                return inner
            inner = self._make()
            if self._started:
                _background.run(inner.start())
            self._inner = inner
            self._pid = pid  # last: nobody takes the parent's object for ours
            return inner

    def start(self) -> Self:
        """See the asyncio class."""
        with self._lock():
            inner = self._aio()
            if not self._started:
                self._started = True
                try:
                    _background.run(inner.start())
                except BaseException:
                    self._started = False
                    raise
        return self

    def stop(self) -> None:
        """See the asyncio class."""
        if self._started and self._pid == os.getpid() and self._inner is not None:
            self._started = False
            _background.run(self._inner.stop())

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Producer(_Face[aio.Producer]):
    """`aerobee.Producer` with plain calls; takes the same arguments."""

    def __init__(self, name_servers: str | Sequence[str] | None = None, **options: Any) -> None:
        super().__init__(lambda: aio.Producer(name_servers, **options))

    def send(self, message: Message, **how: Any) -> SendResult:
        """Sends and waits until the broker has stored the message."""
        return _background.run(self._aio().send(message, **how))

    def post(self, message: Message, **how: Any) -> Future[SendResult]:
        """Sends without waiting; the future has the result, or the error, later."""
        return _background.submit(_posted(self._aio(), message, how))

    def send_oneway(self, message: Message, **how: Any) -> None:
        """Sends and forgets."""
        _background.run(self._aio().send_oneway(message, **how))

    def send_batch(self, messages: Iterable[Message], **how: Any) -> SendResult:
        """Sends messages of one topic as one request."""
        return _background.run(self._aio().send_batch(list(messages), **how))

    def send_all(self, messages: Sequence[Message], **how: Any) -> list[SendResult]:
        """Sends all, many at a time, each as a message of its own; results in the same order. Raises the first
        error."""
        return _background.run(_send_all(self._aio(), messages, how))

    def flush(self) -> None:
        """Returns when every `post` has its answer."""
        _background.run(self._aio().flush())

    def queues(self, topic: str) -> list[MessageQueue]:
        """The queues of a topic that can be sent to."""
        return _background.run(self._aio().queues(topic))


class Consumer(_Face[aio.Consumer]):
    """`aerobee.Consumer` with plain calls: handlers are plain functions and run in threads, or `for message in
    consumer`."""

    def __init__(self, name_servers: str | Sequence[str] | None = None, *, group: str, **options: Any) -> None:
        super().__init__(self._build)
        self._arguments = (name_servers, group, options)
        self._handlers: list[tuple[str, str, dict[str, Any], Callable[..., Any]]] = []

    def _build(self) -> aio.Consumer:
        name_servers, group, options = self._arguments
        consumer = aio.Consumer(name_servers, group=group, **options)
        for kind, topic, how, function in self._handlers:
            getattr(consumer, kind)(topic, **how)(function)
        return consumer

    def on(self, topic: str, **how: Any) -> Callable[[Callable[[MessageExt], None]], Callable[[MessageExt], None]]:
        """Decorator: calls the function for each message of `topic`, in threads."""
        return self._register("on", topic, how)

    def on_batch(self, topic: str, **how: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Decorator: calls the function with lists of messages."""
        return self._register("on_batch", topic, how)

    def _register(
        self, kind: str, topic: str, how: dict[str, Any]
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        if self._started:
            raise RuntimeError("handlers are registered before the consumer starts")

        def register(function: Callable[..., None]) -> Callable[..., None]:
            self._handlers.append((kind, topic, how, function))
            self._inner = None
            return function

        return register

    def run(self) -> None:
        """Consumes until `stop` is called from another thread, or Ctrl-C."""
        self.start()
        try:
            _background.run(self._aio().run())
        finally:
            self.stop()

    def __iter__(self) -> Iterator[MessageExt]:
        """Messages without end; each is acknowledged when the next one is asked for."""
        consumer: aio.Consumer = self._aio()
        gone: deque[MessageExt] = deque()

        def acknowledge() -> None:
            while gone:
                consumer.ack(gone.popleft())

        while True:
            taken = _background.run(consumer.take(32))
            if taken is None:
                return
            done = 0
            try:
                for message in taken.messages:
                    if taken.queue.dropped:
                        break  # stopped, or the queue went to another member
                    yield message
                    done += 1
                    gone.append(message)
                    if len(gone) == 1:  # otherwise the loop has not come to those before, and takes this one along
                        _background.loop().call_soon_threadsafe(acknowledge)
            finally:
                _background.loop().call_soon_threadsafe(consumer.settle, taken, done)

    def ack(self, message: MessageExt) -> None:
        """Acknowledges a message of a loop before the loop is left."""
        _background.run(_call(self._aio().ack, message))

    def retry(self, message: MessageExt, *, delay_level: int = 0) -> None:
        """A message of a loop failed: it comes again later."""
        _background.run(self._aio().retry(message, delay_level=delay_level))


class PullConsumer(_Face[aio.PullConsumer]):
    """`aerobee.PullConsumer` with plain calls."""

    def __init__(self, name_servers: str | Sequence[str] | None = None, *, group: str, **options: Any) -> None:
        super().__init__(lambda: aio.PullConsumer(name_servers, group=group, **options))

    def queues(self, topic: str) -> list[MessageQueue]:
        """The queues of a topic that can be read."""
        return _background.run(self._aio().queues(topic))

    def min_offset(self, queue: MessageQueue) -> int:
        """The first offset still kept."""
        return _background.run(self._aio().min_offset(queue))

    def max_offset(self, queue: MessageQueue) -> int:
        """The offset the next message will get."""
        return _background.run(self._aio().max_offset(queue))

    def offset_by_time(self, queue: MessageQueue, timestamp_ms: int) -> int:
        """Offset of the first message stored at or after `timestamp_ms`."""
        return _background.run(self._aio().offset_by_time(queue, timestamp_ms))

    def committed(self, queue: MessageQueue) -> int | None:
        """The group's committed offset, None if there is none."""
        return _background.run(self._aio().committed(queue))

    def commit(self, queue: MessageQueue, offset: int) -> None:
        """Commits: the group goes on at `offset`."""
        _background.run(self._aio().commit(queue, offset))

    def pull(self, queue: MessageQueue, offset: int, **how: Any) -> PullResult:
        """Messages from `offset` on."""
        return _background.run(self._aio().pull(queue, offset, **how))


async def _posted(producer: aio.Producer, message: Message, how: Mapping[str, Any]) -> SendResult:
    return await (await producer.post(message, **how))


async def _send_all(producer: aio.Producer, messages: Sequence[Message], how: Mapping[str, Any]) -> list[SendResult]:
    return await asyncio.gather(*[await producer.post(message, **how) for message in messages])


async def _call(function: Callable[..., T], *args: Any) -> T:
    return function(*args)
