"""asyncio's face of the engine: chunks in, replies out, commands to dispatch; appends that await the disk.

The only file here that knows the engine. One call per received chunk; what the engine answers alone never becomes a
Python object other than the reply's bytes. `Turn`s come from several doors (feed, append, settle, expire) and all go
through `_deliver`: replies to their connections by session, offsets to the offset table, the rest to dispatch.

Nothing here blocks the loop: opening (with its recovery) and closing run in a thread, and an append that must reach the
disk is awaited through `settle`, which the engine's file descriptor announces.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import os
from collections.abc import Callable
from typing import Any, Final

from aerobee._engine import Batch, CommandTuple, Engine, Receipt, Record, Turn, look_ahead
from aerobee.clock import Clock
from aerobee.errors import DiskFailed, MalformedRequest, error_for
from aerobee.log import Complaints
from aerobee.net.connection import Connection
from aerobee.net.hub import RECEIVE_BYTES
from aerobee.protocol.codes import ResponseCode

__all__ = ["Batch", "CommandTuple", "Receipt", "Record", "Store", "look_ahead"]

EXPIRE_TICK_S: Final = 0.2
"""Parked pulls end at most this much late."""
_END_OF_TIME_MS: Final = 1 << 62
_RECENT_BYTES: Final = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 40 // 100
"""Log bytes counted as "in memory", as Apache does: 40 % of the machine's memory."""

_log = logging.getLogger("aerobee.broker.store")


class Store:
    """The broker's store and its fast path; made by `open`."""

    def __init__(self, engine: Engine, clock: Clock, *, sync_flush: bool = False, flush_timeout_s: float = 5.0) -> None:
        self.engine = engine
        self._clock = clock
        self._sync_flush = sync_flush
        self._flush_timeout_s = flush_timeout_s
        self._feed = engine.feed
        self._last_fed = 0
        self._staged = False
        """Messages wait for `_commit`."""
        self._connections: dict[int, Connection] = {}
        self._on_command: Callable[[Connection, CommandTuple], None] = lambda connection, command: None
        self._on_commit: Callable[[str, str, int, int], None] = lambda group, topic, queue_id, offset: None
        self.on_arrival: Callable[[list[tuple[str, int]]], None] = lambda queues: None
        """Hears of the queues of `watch` that got a message: (topic, queue id)."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._unflushed: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._resuming: set[asyncio.Task[None]] = set()
        self._held_back: dict[int, Connection] = {}
        """Senders that wait for the disk, by session."""
        self._stalled: set[int] = set()
        """Sessions whose waiting pulls are not woken, because they do not read."""
        self._complaints = Complaints(_log)
        self._released = False

    @classmethod
    async def open(
        cls,
        settings: dict[str, object],
        clock: Clock,
        *,
        sync_flush: bool,
        flush_timeout_s: float,
        look: object = None,
    ) -> Store:
        """Opens and recovers the store in a thread. Raises StoreError (locked, unwritable, damaged beyond repair)."""
        engine = await asyncio.to_thread(Engine.open, settings, look)
        return cls(engine, clock, sync_flush=sync_flush, flush_timeout_s=flush_timeout_s)

    def start(
        self,
        on_command: Callable[[Connection, CommandTuple], None],
        on_commit: Callable[[str, str, int, int], None],
    ) -> None:
        """Begins to serve; call it in the running loop."""
        self._on_command = on_command
        self._on_commit = on_commit
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.engine.fileno(), self._settle)
        self._tick = self._loop.call_later(EXPIRE_TICK_S, self._expire)

    def release(self) -> None:
        """The broker stops: everybody who waits for a message is answered now, nobody is read from any more."""
        self._released = True
        self._deliver(self.engine.expire(_END_OF_TIME_MS))

    async def close(self) -> None:
        """Flushes everything and closes the files, in a thread. Connections must be gone. Raises StoreError."""
        if self._loop is not None:
            self._loop.remove_reader(self.engine.fileno())
        if self._tick is not None:
            self._tick.cancel()
        for _, _, waiter in self._unflushed:
            if not waiter.done():
                waiter.cancel()
        await asyncio.to_thread(self.engine.close)

    # The listener's service: bytes in.

    def connected(self, connection: Connection) -> None:
        """A connection opened: it gets a session of the engine's."""
        connection.session = session = self.engine.session(connection.peer)
        self._connections[session] = connection

    def received(self, connection: Connection, data: memoryview) -> None:
        """A chunk arrived; what is no protocol closes the connection."""
        session = connection.session
        write = connection.write_through
        if len(data) == RECEIVE_BYTES and (fd := connection.fileno()) >= 0:
            turn = self.engine.feed_on(session, data, fd)  # much is coming: it goes on without Python in between
            write = connection.write
        else:
            # One after the other is at work: their messages may share a write. Somebody alone is answered at once.
            turn = self._feed(session, data, session != self._last_fed)
        self._last_fed = session
        if turn is None:
            if not self._staged:
                self._staged = True
                assert self._loop is not None
                self._loop.call_soon(self._commit)
            return
        replies = turn.replies
        if len(replies) == 1 and replies[0][0] == session:
            write(replies[0][1])
        elif replies:
            self._write(replies)
        commits = turn.commits
        if commits:
            for commit in commits:
                self._on_commit(*commit)
        if turn.arrivals:
            self.on_arrival(turn.arrivals)
        commands = turn.commands
        if commands and not self._dispatch(connection, commands):
            self._later(connection, turn)
        elif turn.error is not None:
            connection.reject(turn.error)
        elif turn.more:
            self._later(connection)
        elif turn.unread:
            connection.give_way()
        elif turn.behind:
            self._hold_back(connection)

    def _dispatch(self, connection: Connection, commands: list[CommandTuple]) -> bool:
        """Hands out `commands` from the front until all are gone, or there is more of the peer's than it reads, or than
        may wait (False)."""
        on_command = self._on_command
        for count, command in enumerate(commands):
            if connection.blocked or connection.laden:
                del commands[:count]
                return False
            on_command(connection, command)
        commands.clear()
        return True

    def _later(self, connection: Connection, turn: Turn | None = None) -> None:
        """Its replies have grown long, or what waits for an answer: the rest of what it asked (in `turn`, or still in
        the engine) is served when it has read them, or is answered."""
        connection.hold_reading(True)
        task = asyncio.ensure_future(self._resume(connection, turn))
        self._resuming.add(task)
        task.add_done_callback(self._resuming.discard)

    async def _resume(self, connection: Connection, turn: Turn | None) -> None:
        await asyncio.sleep(0)
        await connection.servable()
        while turn is not None and not connection.closed and not self._dispatch(connection, turn.commands):
            await connection.servable()
        if connection.closed or connection.session not in self._connections:
            return
        if turn is not None and turn.error is not None:
            connection.reject(turn.error)
            return
        connection.hold_reading(self._released)
        self.received(connection, memoryview(b""))

    def _hold_back(self, connection: Connection) -> None:
        """The disk is behind: a sender is not read until it has caught up. Others are served."""
        connection.hold_reading(True)
        self._held_back[connection.session] = connection
        self._complaints.warn("behind", "the disk does not keep up: %s has to wait with what it sends", connection.peer)

    def _let_go(self) -> None:
        held_back, self._held_back = self._held_back, {}
        for session, connection in held_back.items():
            if session in self._connections and not connection.closed:
                connection.hold_reading(self._released)
                self.received(connection, memoryview(b""))

    def disconnected(self, connection: Connection) -> None:
        """The connection ended: its session and the pulls it parked go with it."""
        self._held_back.pop(connection.session, None)
        if self._connections.pop(connection.session, None) is not None:
            self.engine.close_session(connection.session)

    # Turns that no chunk began.

    def _commit(self) -> None:
        self._staged = False
        self._deliver(self.engine.commit())

    def _deliver(self, turn: Turn) -> None:
        if turn.replies:
            self._write(turn.replies)
        for commit in turn.commits:
            self._on_commit(*commit)
        if turn.arrivals:
            self.on_arrival(turn.arrivals)

    def _write(self, replies: list[tuple[int, bytes]]) -> None:
        connections = self._connections
        for session, data in replies:
            connection = connections.get(session)
            if connection is not None:
                connection.write_through(data)
                if connection.blocked and session not in self._stalled:
                    self._stall(connection)

    def _stall(self, connection: Connection) -> None:
        """It does not read what others' messages brought it: its waiting pulls wait until it does."""
        self._stalled.add(connection.session)
        self.engine.stall(connection.session, True)
        task = asyncio.ensure_future(self._go_on(connection))
        self._resuming.add(task)
        task.add_done_callback(self._resuming.discard)

    async def _go_on(self, connection: Connection) -> None:
        await connection.writable()
        self._stalled.discard(connection.session)
        if connection.session in self._connections:
            self._deliver(self.engine.stall(connection.session, False))

    def _settle(self) -> None:
        self._deliver(self.engine.settle())
        durable = self.engine.durable()
        while self._unflushed and self._unflushed[0][0] <= durable:
            _, _, waiter = heapq.heappop(self._unflushed)
            if not waiter.done():
                waiter.set_result(None)
        if self._unflushed and (failure := self.engine.health(True)) is not None:
            failed, self._unflushed = self._unflushed, []
            for _, _, waiter in failed:
                if not waiter.done():
                    waiter.set_exception(DiskFailed(failure))
        if self._held_back and not self.engine.is_behind():
            self._let_go()

    def _expire(self) -> None:
        assert self._loop is not None
        self._tick = self._loop.call_later(EXPIRE_TICK_S, self._expire)
        due_ms = self.engine.next_expiry_ms()
        if due_ms is not None and due_ms <= self._clock.now_ms():
            self._deliver(self.engine.expire(self._clock.now_ms()))

    # What policy does itself.

    def append(self, records: list[Record]) -> list[Receipt]:
        """Appends records in one write and wakes who waits for them. Written, maybe not flushed. Raises StoreError."""
        receipts, turn = self.engine.append(records)
        self._deliver(turn)
        return receipts

    def bring_home(self, moves: list[tuple[int, bytes]]) -> tuple[int, int]:
        """Appends messages that waited, (position, property text to add), where their properties say they belong, in
        one write and without making objects of them: those from the front up to the first that needs more thought. How
        many, and where the last one ends. Raises StoreError: none was."""
        count, end, turn = self.engine.bring_home(moves)
        self._deliver(turn)
        return count, end

    async def put(self, record: Record) -> Receipt:
        """Appends one record; returns when it is as safe as the options promise.

        Raises StoreError, and ServerError FLUSH_DISK_TIMEOUT when the disk does not answer in time (it is stored then).
        """
        receipt = self.append([record])[0]
        await self.flushed(receipt)
        return receipt

    async def flushed(self, receipt: Receipt) -> None:
        """Returns when the record is as safe as the options promise; see `put`."""
        waiter = self._waiter(receipt)
        if waiter is None:
            return
        try:
            async with asyncio.timeout(self._flush_timeout_s):
                await waiter
        except TimeoutError:
            raise error_for(ResponseCode.FLUSH_DISK_TIMEOUT, "the flush did not finish in time") from None

    def when_flushed(self, receipt: Receipt, do: Callable[[], None]) -> None:
        """Calls `do` when the record can be read: now, or when it is flushed, also if whoever awaits that gives up."""
        waiter = self._waiter(receipt)
        if waiter is None:
            do()
        else:
            waiter.add_done_callback(lambda done: None if done.cancelled() or done.exception() else do())

    def _waiter(self, receipt: Receipt) -> asyncio.Future[None] | None:
        """What is done when the record is flushed; None: it is, or need not be. Raises DiskFailed: it never will be."""
        end = receipt.position + receipt.size
        # Who finds it flushed already still comes after those before it, who are about to be told.
        if not self._sync_flush or (self.engine.durable() >= end and not self._unflushed):
            return None
        failure = self.engine.health(True)
        if failure is not None:
            raise DiskFailed(failure)
        assert self._loop is not None
        waiter: asyncio.Future[None] = self._loop.create_future()
        heapq.heappush(self._unflushed, (end, next(self._order), waiter))
        return waiter

    def check_sql(self, expression: str) -> str | None:
        """What is wrong with an SQL92 filter and where; None: nothing. One that `pull` and `read` know costs little."""
        return self.engine.check_sql(expression)

    def pull(
        self,
        connection: Connection,
        command: CommandTuple,
        tags: list[int] | None,
        *,
        park: bool,
        sql: str | None = None,
    ) -> None:
        """Serves (or parks) a pull that policy has allowed. Raises MalformedRequest for a field that is no number."""
        try:
            turn = self.engine.pull(connection.session, command, tags, park, sql)
        except ValueError as error:
            # Numbers are less strict where headers are read: `1e3` is one there.
            raise MalformedRequest(str(error)) from None
        self._deliver(turn)

    def watch(self, topic: str, queue_id: int) -> None:
        """`on_arrival` hears of the next message in the queue, once."""
        self.engine.watch(topic, queue_id)

    def bounds(self, topic: str, queue_id: int) -> tuple[int, int]:
        """Smallest offset and the one after the largest visible one; (0, 0) for a queue that was never written."""
        return self.engine.bounds(topic, queue_id) if queue_id >= 0 else (0, 0)

    def read(
        self,
        topic: str,
        queue_id: int,
        offset: int,
        count: int,
        bytes_max: int = 1 << 20,
        tags: list[int] | None = None,
        sql: str | None = None,
    ) -> Batch:
        """Records from a queue, as they are in the log; `tags` (hashes) or `sql` (SQL92) choose among them."""
        return self.engine.read(topic, queue_id, offset, count, bytes_max, tags, sql)

    def entries(self, topic: str, queue_id: int, offset: int, count: int) -> bytes:
        """Queue entries of 20 bytes: position, size, tags code; -1, 0, 0 where the message was lost to damage."""
        return self.engine.entries(topic, queue_id, offset, count) if queue_id >= 0 else b""

    def record(self, position: int) -> bytes | None:
        """The record at a position of the log; None when there is none."""
        return self.engine.record(position) if position >= 0 else None

    def log_bounds(self) -> tuple[int, int, int]:
        """Where the log begins, how far it is on the disk, where it ends."""
        stats = self.engine.stats()
        return stats["min_position"], stats["flushed_position"], stats["max_position"]

    async def flush(self) -> None:
        """Brings everything to the disk, in a thread. Raises StoreError."""
        await asyncio.to_thread(self.engine.flush)

    def is_recent(self, topic: str, queue_id: int, offset: int) -> bool:
        """The message at this offset exists and still lies within the memory that the page cache may use."""
        unit = self.entries(topic, queue_id, offset, 1)
        if len(unit) < 20:
            return False
        return self.engine.durable() - int.from_bytes(unit[:8], "big", signed=True) <= _RECENT_BYTES

    def earliest_time(self, topic: str, queue_id: int) -> int:
        """Store time of the first message kept, ms; -1 for an empty queue."""
        low, high = self.bounds(topic, queue_id)
        return self.engine.store_time(topic, queue_id, low) if high > low else -1

    def offset_by_time(self, topic: str, queue_id: int, ms: int, *, upper: bool = False) -> int:
        """First offset stored at or after `ms` (`upper`: the last one at or before)."""
        return self.engine.offset_by_time(topic, queue_id, ms, upper) if queue_id >= 0 else 0

    def store_time(self, topic: str, queue_id: int, offset: int) -> int:
        """When a message was stored, ms; -1: there is none."""
        return self.engine.store_time(topic, queue_id, offset) if offset >= 0 and queue_id >= 0 else -1

    def search_index(
        self, topic: str, key: str, kind: str, limit: int, begin_ms: int, end_ms: int
    ) -> tuple[list[bytes], int, int]:
        """The newest records with this key, oldest of them first; then the index's last update: ms, position."""
        return self.engine.search_index(topic, key, kind, limit, begin_ms, end_ms)

    def topics(self) -> dict[str, list[int]]:
        """Topics that have queues in the store, with their queue ids."""
        return self.engine.topics()

    def delete_topic(self, topic: str) -> None:
        """Removes a topic's queues; its records stay in the log until their file goes."""
        self.engine.delete_topic(topic)

    def delete_empty_topic(self, topic: str) -> bool:
        """Removes a topic's queues if no message is left in them and nobody waits for one; True if they are gone."""
        return self.engine.delete_empty_topic(topic)

    async def clean(self, before_ms: int, consumed_position: int | None = None) -> dict[str, int]:
        """Deletes log files older than `before_ms` that end at or before `consumed_position` (None: do not care), and
        what belongs to them, in a thread."""
        return await asyncio.to_thread(self.engine.clean, before_ms, consumed_position=consumed_position)

    def health(self) -> str | None:
        """Why writes are refused, in one sentence; None: they are not."""
        return self.engine.health()

    def stats(self) -> dict[str, int]:
        """Sizes and positions of the store."""
        return self.engine.stats()

    def counters(self) -> dict[str, Any]:
        """Traffic since the start."""
        return self.engine.counters()

    def allow(self, **settings: Any) -> None:
        """Settings of the fast path for all topics and groups."""
        self.engine.allow(**settings)
