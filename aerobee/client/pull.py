"""`PullConsumer`: the application decides what is read, from where, and what it remembers.

    async with PullConsumer("127.0.0.1:9876", group="audit") as consumer:
        for queue in await consumer.queues("orders"):
            result = await consumer.pull(queue, await consumer.min_offset(queue))

        async with consumer.session("orders", store=my_offsets) as session:     # all queues, one stream
            async for message in session:
                ...

No rebalancing, no retries, no commits unless asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol, Self

from aerobee.client import calls
from aerobee.client.client import Client
from aerobee.client.results import PullResult, PullStatus
from aerobee.errors import AerobeeError, ConnectError
from aerobee.net.connection import Connection
from aerobee.protocol import message as wire
from aerobee.protocol.bodies.client import ConsumerData, SubscriptionData
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.filter import Sql, subscription
from aerobee.protocol.message import MessageExt, MessageQueue

_log = logging.getLogger("aerobee.client.pull")

SESSION_HOLD_MS: Final = 15_000
ERROR_WAIT_S: Final = 1.0


class OffsetStore(Protocol):
    """Where an application keeps its offsets: a database, a file, beside its own results."""

    async def load(self, queue: MessageQueue) -> int | None:
        """Where to go on in `queue`; None: nothing is known of it."""

    async def save(self, offsets: Mapping[MessageQueue, int]) -> None:
        """The next offset to read, for each queue in which something was read."""


class PullConsumer:
    """Reads queues at the application's own offsets; see the head of this file.

    `group` is what brokers know the reader by (permissions, statistics, and `commit`/`committed`).
    """

    def __init__(
        self,
        name_servers: str | Sequence[str] | None = None,
        *,
        group: str,
        instance_name: str = "",
        client: Client | None = None,
    ) -> None:
        wire.check_group(group)
        self.group = group
        self.client = client or Client(name_servers, instance_name=instance_name)
        self._subscriptions: dict[str, SubscriptionData] = {}  # what heartbeats say; each pull brings its own
        self._sessions: set[PullSession] = set()
        self._started = False

    async def start(self) -> Self:
        """Starts heartbeats; connections are made when first needed. `async with` does it for you."""
        if not self._started:
            await self.client.start()
            self.client.join(self)
            self._started = True
        return self

    async def stop(self) -> None:
        """Ends its sessions, says goodbye to the brokers, closes the connections. Offsets are the caller's own."""
        if not self._started:
            return
        self._started = False
        for session in tuple(self._sessions):
            await session.stop()
        self.client.leave(self)
        addresses = set(self.client.pool.connected) - set(self.client.name_servers)
        await asyncio.gather(
            *(calls.unregister(self.client, address, consumer_group=self.group) for address in addresses),
            return_exceptions=True,
        )
        await self.client.stop()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # What there is.

    async def queues(self, topic: str) -> list[MessageQueue]:
        """The queues of a topic that can be read, sorted. Raises TopicNotExist."""
        return list((await self.client.route(topic, fresh=True)).read_queues)

    async def min_offset(self, queue: MessageQueue) -> int:
        """The first offset still kept."""
        await self._known(queue)
        return await calls.min_offset(self.client, queue)

    async def max_offset(self, queue: MessageQueue) -> int:
        """The offset the next message will get."""
        await self._known(queue)
        return await calls.max_offset(self.client, queue)

    async def offset_by_time(self, queue: MessageQueue, timestamp_ms: int) -> int:
        """Offset of the first message stored at or after `timestamp_ms` (Unix time)."""
        await self._known(queue)
        return await calls.offset_by_time(self.client, queue, timestamp_ms)

    # The group's offsets at the broker, for those who want them.

    async def committed(self, queue: MessageQueue) -> int | None:
        """The group's committed offset, None if there is none."""
        await self._known(queue)
        return await calls.query_offset(self.client, self.group, queue)

    async def commit(self, queue: MessageQueue, offset: int) -> None:
        """Commits: the group goes on at `offset`."""
        await self._known(queue)
        await calls.update_offset(self.client, self.group, queue, offset)

    # Reading.

    async def pull(
        self, queue: MessageQueue, offset: int, *, max_messages: int = 32, tags: str | Sql = "*", wait_ms: int = 0
    ) -> PullResult:
        """Messages from `offset` on. With `wait_ms` the broker holds the request up to that long when there are none
        yet.

        Look at `result.status` and go on at `result.next_offset`, whatever the status. Raises ServerError,
        ConnectError, RequestTimeout.
        """
        await self._known(queue)
        wanted = subscription(queue.topic, tags)
        self._subscriptions.setdefault(queue.topic, wanted)
        return await calls.pull(
            self.client, self.group, queue, offset, count=max_messages, hold_ms=wait_ms,
            subscription=wanted.sub_string, expression_type=wanted.expression_type, sub_version=wanted.sub_version,
            tags=wanted.tags_set,
        )  # fmt: skip

    def session(
        self,
        topic_or_queues: str | Iterable[MessageQueue],
        *,
        store: OffsetStore | None = None,
        start: Mapping[MessageQueue, int] | int | None = None,
        tags: str | Sql = "*",
        prefetch_messages: int = 256,
    ) -> PullSession:
        """A stream over many queues; see `PullSession`. `start`: offsets, or a Unix time in ms, or None for the
        oldest message. Raises ValueError for tags that name none."""
        return PullSession(self, topic_or_queues, store, start, tags, prefetch_messages)

    async def _known(self, queue: MessageQueue) -> None:
        if not self._started:
            raise ConnectError("the consumer is not started; use `async with PullConsumer(...)`, or call start()")
        if self.client.host(queue) not in self.client.brokers:
            await self.client.route(queue.topic, fresh=True)
        address = self.client.any_of(self.client.host(queue))
        if not self.client.is_introduced(address):
            await self.client.introduce(address)  # brokers refuse offsets of groups they have never heard of

    # What the client asks of its members.

    def heartbeat_data(self) -> ConsumerData:
        """What the heartbeat says about this member."""
        return ConsumerData(
            group_name=self.group,
            consume_type="CONSUME_ACTIVELY",
            message_model="CLUSTERING",
            consume_from_where="CONSUME_FROM_LAST_OFFSET",
            subscription_data_set=list(self._subscriptions.values()),
        )

    def topics(self) -> Iterable[str]:
        """Topics whose routes are kept fresh."""
        return tuple(self._subscriptions)

    def routes_changed(self, topic: str) -> None:
        """A topic's queues changed."""
        pass  # a session keeps the queues it was given

    def requested(self, connection: Connection, command: RemotingCommand) -> None:
        """A broker's request; None if it is not for this member."""
        return None


class PullSession:
    """Reads queues side by side and hands their messages out as one stream.

    `offsets` says for each queue where the application is: behind the last message it was given and came back from.
    They go to the store with `save()`, and when the session ends without an error. Stopped from elsewhere, a loop over
    it ends.
    """

    def __init__(
        self, consumer: PullConsumer, topic_or_queues: str | Iterable[MessageQueue], store: OffsetStore | None,
        start: Mapping[MessageQueue, int] | int | None, tags: str | Sql, prefetch_messages: int,
    ) -> None:  # fmt: skip
        subscription("", tags)  # what no pull can ask for is said here, not to the readers
        self.offsets: dict[MessageQueue, int] = {}
        self._consumer = consumer
        self._wanted = topic_or_queues
        self._store = store
        self._start = start
        self._tags = tags
        self._prefetch = prefetch_messages
        self._ready: deque[tuple[MessageQueue, MessageExt]] = deque()
        self._position: dict[MessageQueue, int] = {}
        self._readers: dict[MessageQueue, asyncio.Task[None]] = {}
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._last: tuple[MessageQueue, int] | None = None
        self._saved: dict[MessageQueue, int] = {}
        self._stopped = False

    async def start(self) -> Self:
        """Finds the queues and where to begin in each; begins to read."""
        wanted = self._wanted
        self._stopped = False
        self._consumer._sessions.add(self)
        for queue in await self._consumer.queues(wanted) if isinstance(wanted, str) else list(wanted):
            self._read_from(queue, await self._first(queue))
        return self

    async def stop(self) -> None:
        """Ends reading, and loops over the session; what was fetched and not taken is dropped."""
        self._stopped = True
        self._consumer._sessions.discard(self)
        for reader in self._readers.values():
            reader.cancel()
        await asyncio.gather(*self._readers.values(), return_exceptions=True)
        self._readers.clear()
        self._ready.clear()
        self._arrived.set()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.stop()
        if kind is None:
            await self.save()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> MessageExt:
        self._done()
        while not self._ready:
            if self._stopped:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._take()

    async def fetch(self, max_messages: int = 32, timeout_ms: int = 1000) -> list[MessageExt]:
        """Up to `max_messages`, waiting up to `timeout_ms` for the first; an empty list when none came, or the session
        is stopped."""
        self._done()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while not (self._ready or self._stopped):
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            return []
        messages: list[MessageExt] = []
        while self._ready and len(messages) < max_messages:
            self._done()
            messages.append(self._take())
        return messages

    def _take(self) -> MessageExt:
        queue, message = self._ready.popleft()
        self._last = queue, message.queue_offset + 1
        if len(self._ready) <= self._prefetch:
            self._room.set()
        return message

    async def seek(self, queue: MessageQueue, offset: int) -> None:
        """Goes on at `offset` in that queue; what was read ahead is dropped."""
        reader = self._readers.pop(queue, None)
        if reader is not None:
            reader.cancel()
        self._ready = deque(entry for entry in self._ready if entry[0] != queue)
        if self._last is not None and self._last[0] == queue:
            self._last = None
        self._read_from(queue, offset)

    async def save(self) -> None:
        """Hands the offsets that changed to the store, if there is one."""
        self._done()
        changed = {queue: offset for queue, offset in self.offsets.items() if self._saved.get(queue) != offset}
        if changed and self._store is not None:
            await self._store.save(changed)
            self._saved.update(changed)

    def _done(self) -> None:
        if self._last is not None:
            self.offsets[self._last[0]] = self._last[1]
            self._last = None

    async def _first(self, queue: MessageQueue) -> int:
        stored = await self._store.load(queue) if self._store is not None else None
        if stored is not None:
            self._saved[queue] = stored
            return stored
        if isinstance(self._start, int):
            return await self._consumer.offset_by_time(queue, self._start)
        if self._start is not None and queue in self._start:
            return self._start[queue]
        return await self._consumer.min_offset(queue)

    def _read_from(self, queue: MessageQueue, offset: int) -> None:
        self.offsets[queue] = offset
        self._readers[queue] = self._consumer.client.spawn(self._read(queue, offset))

    async def _read(self, queue: MessageQueue, offset: int) -> None:
        failing = False
        while True:
            while len(self._ready) > self._prefetch:
                self._room.clear()
                await self._room.wait()
            try:
                result = await self._consumer.pull(queue, offset, tags=self._tags, wait_ms=SESSION_HOLD_MS)
            except AerobeeError as error:
                if not failing:
                    _log.warning("reading %s: %s", queue, error)
                failing = True
                await asyncio.sleep(ERROR_WAIT_S)
                continue
            except Exception:
                _log.exception("reading %s at offset %d", queue, offset)
                await asyncio.sleep(ERROR_WAIT_S)
                continue
            failing = False
            if result.status is PullStatus.OFFSET_ILLEGAL:
                _log.warning("%s is read on from offset %d instead of %d", queue, result.next_offset, offset)
            offset = result.next_offset
            if result.messages:
                self._ready.extend((queue, message) for message in result.messages)
                self._arrived.set()
