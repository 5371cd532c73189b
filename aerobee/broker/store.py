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
from collections.abc import Callable
from typing import Any, Final

from aerobee._engine import Batch, CommandTuple, Engine, Receipt, Record, Turn
from aerobee.clock import Clock
from aerobee.errors import ServerError
from aerobee.net.connection import Connection
from aerobee.protocol.codes import ResponseCode

__all__ = ["Batch", "CommandTuple", "Receipt", "Record", "Store"]

EXPIRE_TICK_S: Final = 0.2
"""Parked pulls end at most this much late."""

_log = logging.getLogger("aerobee.broker.store")


class Store:
    """The broker's store and its fast path; made by `open`."""

    def __init__(self, engine: Engine, clock: Clock, *, sync_flush: bool = False, flush_timeout_s: float = 5.0) -> None:
        self.engine = engine
        self._clock = clock
        self._sync_flush = sync_flush
        self._flush_timeout_s = flush_timeout_s
        self._feed = engine.feed
        self._connections: dict[int, Connection] = {}
        self._on_command: Callable[[Connection, CommandTuple], None] = lambda connection, command: None
        self._on_commit: Callable[[str, str, int, int], None] = lambda group, topic, queue_id, offset: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._unflushed: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    @classmethod
    async def open(cls, settings: dict[str, object], clock: Clock, *, sync_flush: bool, flush_timeout_s: float) -> Store:
        """Opens and recovers the store in a thread. Raises StoreError (locked, unwritable, damaged beyond repair)."""
        engine = await asyncio.to_thread(Engine.open, settings)
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
        """A chunk arrived. ProtocolError leaves through the caller, who closes the connection."""
        turn = self._feed(connection.session, data)
        replies = turn.replies
        if len(replies) == 1 and replies[0][0] == connection.session:
            connection.write(replies[0][1])
        elif replies:
            self._write(replies)
        commits = turn.commits
        if commits:
            for commit in commits:
                self._on_commit(*commit)
        commands = turn.commands
        if commands:
            on_command = self._on_command
            for command in commands:
                on_command(connection, command)
        if turn.error is not None:
            connection.close(turn.error)

    def disconnected(self, connection: Connection) -> None:
        """The connection ended: its session and the pulls it parked go with it."""
        if self._connections.pop(connection.session, None) is not None:
            self.engine.close_session(connection.session)

    # Turns that no chunk began.

    def _deliver(self, turn: Turn) -> None:
        if turn.replies:
            self._write(turn.replies)
        for commit in turn.commits:
            self._on_commit(*commit)

    def _write(self, replies: list[tuple[int, bytes]]) -> None:
        connections = self._connections
        for session, data in replies:
            connection = connections.get(session)
            if connection is not None:
                connection.write(data)

    def _settle(self) -> None:
        self._deliver(self.engine.settle())
        durable = self.engine.durable()
        while self._unflushed and self._unflushed[0][0] <= durable:
            _, _, waiter = heapq.heappop(self._unflushed)
            if not waiter.done():
                waiter.set_result(None)

    def _expire(self) -> None:
        assert self._loop is not None
        self._tick = self._loop.call_later(EXPIRE_TICK_S, self._expire)
        if self._connections:
            self._deliver(self.engine.expire(self._clock.now_ms()))

    # What policy does itself.

    def append(self, records: list[Record]) -> list[Receipt]:
        """Appends records in one write and wakes who waits for them. Written, not necessarily flushed. Raises StoreError."""
        receipts, turn = self.engine.append(records)
        self._deliver(turn)
        return receipts

    async def put(self, record: Record) -> Receipt:
        """Appends one record; returns when it is as safe as the options promise.

        Raises StoreError, and ServerError FLUSH_DISK_TIMEOUT when the disk does not answer in time (it is stored then).
        """
        receipt = self.append([record])[0]
        await self.flushed(receipt)
        return receipt

    async def flushed(self, receipt: Receipt) -> None:
        """Returns when the record is as safe as the options promise; see `put`."""
        end = receipt.position + receipt.size
        if not self._sync_flush or self.engine.durable() >= end:
            return
        assert self._loop is not None
        waiter: asyncio.Future[None] = self._loop.create_future()
        heapq.heappush(self._unflushed, (end, next(self._order), waiter))
        try:
            async with asyncio.timeout(self._flush_timeout_s):
                await waiter
        except TimeoutError:
            raise ServerError(ResponseCode.FLUSH_DISK_TIMEOUT, "the flush did not finish in time") from None

    def pull(self, connection: Connection, command: CommandTuple, tags: list[int] | None, *, park: bool) -> None:
        """Serves (or parks) a pull that policy has allowed."""
        self._deliver(self.engine.pull(connection.session, command, tags, park))

    def bounds(self, topic: str, queue_id: int) -> tuple[int, int]:
        """Smallest offset and the one after the largest visible one; (0, 0) for a queue that was never written."""
        return self.engine.bounds(topic, queue_id)

    def read(self, topic: str, queue_id: int, offset: int, count: int, bytes_max: int = 1 << 20) -> Batch:
        """Records from a queue, as they are in the log."""
        return self.engine.read(topic, queue_id, offset, count, bytes_max)

    def record(self, position: int) -> bytes | None:
        """The record at a position of the log; None when there is none."""
        return self.engine.record(position)

    def stats(self) -> dict[str, int]:
        """Figures of the store."""
        return self.engine.stats()

    def allow(self, **settings: Any) -> None:
        """Global settings of the fast path."""
        self.engine.allow(**settings)
