"""Messages between the broker and the application: one `ProcessQueue` a queue, one `Lane` a handler.

A pull task puts batches into the process queue of its queue. Handler workers and `async for` loops take messages out
of a lane, in batches, and give them back finished. The process queue knows which offset may be committed: everything
in front of it is finished. No task, lock or future is made per message.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from aerobee.protocol.message import MessageExt, MessageQueue

FOREVER = float("inf")


class ProcessQueue:
    """The messages of one queue that were pulled and are not finished yet, in offset order."""

    __slots__ = (
        "_done", "_idle", "_pending", "_room", "bytes", "committable", "dropped", "in_hand", "last_consume_ms",
        "last_pull_ms", "locked_until", "next_offset", "persisted", "queue", "read_from", "taken", "waiting",
    )  # fmt: skip

    def __init__(self, queue: MessageQueue, offset: int) -> None:
        self.queue = queue
        self.next_offset = offset
        """Where the next pull reads."""
        self.committable = offset
        """Everything in front of this offset is finished."""
        self.persisted = -1
        """The last offset the broker was told."""
        self.dropped = False
        """The queue belongs to someone else now: what is finished from here on is not committed."""
        self.bytes = 0
        self.read_from = 0
        """Broker id the broker suggested to read from; 0 is the master."""
        self.last_pull_ms = self.last_consume_ms = int(time.time() * 1000)
        self.in_hand = 0
        """Messages handed out and neither finished nor given back."""
        self.waiting: deque[MessageExt] = deque()
        """Orderly only: pulled, not yet handed out."""
        self.taken = False
        """Orderly only: someone is working on this queue, or it is in a lane's list, or it rests after a failure."""
        self.locked_until = FOREVER
        """Orderly only: until when (monotonic seconds) the broker's lock can be relied on."""
        self._pending: deque[tuple[int, int]] = deque()  # (offset, bytes), ascending
        self._done: set[int] = set()
        self._room: asyncio.Future[None] | None = None
        self._idle: asyncio.Future[None] | None = None

    @property
    def count(self) -> int:
        """Messages pulled and not yet behind the committable offset (a gap holds back what is behind it)."""
        return len(self._pending)

    @property
    def span(self) -> int:
        """Distance between the oldest unfinished and the newest offset."""
        return self._pending[-1][0] - self._pending[0][0] if self._pending else 0

    @property
    def first_offset(self) -> int:
        return self._pending[0][0] if self._pending else 0

    @property
    def last_offset(self) -> int:
        return self._pending[-1][0] if self._pending else 0

    def put(self, messages: Sequence[MessageExt]) -> None:
        """Messages of a pull, ascending offsets."""
        append = self._pending.append
        total = 0
        for message in messages:
            size = len(message.body)
            total += size
            append((message.queue_offset, size))
        self.bytes += total

    def skip_to(self, offset: int) -> None:
        """Nothing of interest in front of `offset`: it may be committed when nothing is under way."""
        if not self._pending and offset > self.committable:
            self.committable = offset

    def finish(self, messages: Sequence[MessageExt]) -> None:
        """The application is done with these; the committable offset moves past all that is finished from the start."""
        pending = self._pending
        done = self._done
        self.in_hand -= len(messages)
        for message in messages:
            offset = message.queue_offset
            if pending and pending[0][0] == offset:
                self.bytes -= pending.popleft()[1]
                self.committable = offset + 1
            else:
                done.add(offset)
        if done:
            while pending and pending[0][0] in done:
                offset, size = pending.popleft()
                done.discard(offset)
                self.bytes -= size
                self.committable = offset + 1
            if not pending:
                done.clear()
        if not pending and self.next_offset > self.committable:
            self.committable = self.next_offset
        self.last_consume_ms = int(time.time() * 1000)
        if self._room is not None:
            self._wake_room()
        if self._idle is not None and self.in_hand <= 0:
            self._wake_idle()

    def give_back(self, messages: Sequence[MessageExt]) -> None:
        """Handed out, and not wanted (or failed) for now; who calls this puts them into a lane again."""
        self.in_hand -= len(messages)
        if self._idle is not None and self.in_hand <= 0:
            self._wake_idle()

    async def idle(self, timeout_s: float) -> bool:
        """Whether all that was handed out came back, waiting for it up to `timeout_s`."""
        if self.in_hand <= 0:
            return True
        if self._idle is None:
            self._idle = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._idle], timeout=timeout_s)
        return self.in_hand <= 0

    async def finished(self, timeout_s: float) -> bool:
        """Whether all that was put is finished, waiting for it up to `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.room(0, 0, 0)
        except TimeoutError:
            pass
        return not self._pending

    def is_full(self, messages_max: int, bytes_max: int, span_max: int) -> bool:
        pending = self._pending
        return len(pending) > messages_max or self.bytes > bytes_max or (
            span_max > 0 and bool(pending) and pending[-1][0] - pending[0][0] > span_max
        )  # fmt: skip

    async def room(self, messages_max: int, bytes_max: int, span_max: int) -> None:
        """Returns when the queue is below its limits, or dropped."""
        while not self.dropped and self.is_full(messages_max, bytes_max, span_max):
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def drop(self) -> None:
        """The queue is not ours any more."""
        self.dropped = True
        self.waiting.clear()
        self._wake_room()

    def _wake_idle(self) -> None:
        idle, self._idle = self._idle, None
        if idle is not None and not idle.done():
            idle.set_result(None)

    def _wake_room(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)


class Parcel:
    """Messages of one queue, handed out together."""

    __slots__ = ("messages", "queue")

    def __init__(self, queue: ProcessQueue, messages: list[MessageExt]) -> None:
        self.queue = queue
        self.messages = messages


class Lane:
    """Messages on their way to one handler (or to the `async for` loops), first come, first served.

    Concurrent lanes hold parcels; orderly lanes hold process queues, each in the hands of one taker at a time.
    """

    __slots__ = ("_parcels", "_queues", "_takers", "closed", "size")

    def __init__(self) -> None:
        self.size = 0
        """Messages in parcels, those of dropped queues included."""
        self._parcels: deque[Parcel] = deque()
        self._queues: deque[ProcessQueue] = deque()
        self._takers: deque[asyncio.Future[None]] = deque()
        self.closed = False

    def put(self, parcel: Parcel) -> None:
        """Messages for whoever takes them first."""
        self._parcels.append(parcel)
        self.size += len(parcel.messages)
        if self._takers:
            self._wake_one()

    def put_first(self, parcel: Parcel) -> None:
        """Messages that were taken and come back: next in line."""
        self._parcels.appendleft(parcel)
        self.size += len(parcel.messages)
        if self._takers:
            self._wake_one()

    def put_queue(self, queue: ProcessQueue) -> None:
        """An orderly queue has messages and no taker."""
        queue.taken = True
        self._queues.append(queue)
        if self._takers:
            self._wake_one()

    def take_now(self, count: int) -> Parcel | None:
        """Up to `count` messages of one queue, or None when there are none."""
        parcels = self._parcels
        while parcels:
            parcel = parcels[0]
            queue = parcel.queue
            messages = parcel.messages
            if queue.dropped:
                self.size -= len(messages)
                parcels.popleft()
                continue
            if len(messages) <= count:
                parcels.popleft()
            else:
                parcel.messages = messages[count:]
                messages = messages[:count]
                parcel = Parcel(queue, messages)
            self.size -= len(messages)
            queue.in_hand += len(messages)
            return parcel
        while self._queues:
            queue = self._queues.popleft()
            waiting = queue.waiting
            if queue.dropped or not waiting or time.monotonic() > queue.locked_until:
                queue.taken = False  # it is put again with new messages, or with a new lock
                continue
            topic = waiting[
                0
            ].topic  # a retry queue may hold messages of several topics, each with a handler of its own
            messages = []
            while waiting and len(messages) < count and waiting[0].topic == topic:
                messages.append(waiting.popleft())
            queue.in_hand += len(messages)
            return Parcel(queue, messages)
        return None

    async def take(self, count: int) -> Parcel | None:
        """Waits for messages; None once the lane is closed (what is left in it was not handed out and comes again)."""
        while not self.closed:
            parcel = self.take_now(count)
            if parcel is not None:
                if self._takers and (self._parcels or self._queues):
                    self._wake_one()
                return parcel
            taker = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            try:
                await taker
            except asyncio.CancelledError:
                if taker.done() and not taker.cancelled():
                    self._wake_one()  # the wake-up was meant for whoever is next
                raise
            finally:
                if not taker.done():
                    taker.cancel()
        return None

    def close(self) -> None:
        """Ends all takers; nothing more is handed out."""
        self.closed = True
        while self._takers:
            self._wake_one()

    def clear(self) -> None:
        """Forgets what is left; it was not handed out and comes again from the broker."""
        self._parcels.clear()
        self._queues.clear()
        self.size = 0

    def _wake_one(self) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return
