"""What the connections of one loop share, so that each of them is small: receive buffer, clock ticks, outbox, counters.

One hub belongs to one listener or one pool of outgoing connections, and to one event loop.

* **Receive buffer.** A read fills the one buffer and is handled before the next read starts.
* **Outbox.** Writes made while a chunk is handled leave together when it is done: one `transport.write` per connection
  and turn. Writes made elsewhere, or for a chunk that fills the buffer, leave at the end of the loop's round.
* **Ticks.** One timer looks after idle connections, another after requests that wait for a reply. It runs only while
  there are any, and looks at a connection only when one of its requests may be due.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Final

from aerobee.log import Complaints
from aerobee.net.backpressure import Unread

if TYPE_CHECKING:
    from aerobee.net.connection import Connection

RECEIVE_BYTES: Final = 64 * 1024
"""So much stays in a core's second cache until it is handled. Whoever gets it full may read on: both together cost
batches of 32 15 % less CPU than 256 KiB without reading on."""
IDLE_TICKS: Final = 8  # an idle connection is closed after 8 to 9 ticks of a quiet line
DEADLINE_SLACK_S: Final = 0.02  # requests due within this time of each other end together


class Hub:
    """Shared state; see the head of this file. `connections` holds every open connection by its id."""

    __slots__ = (
        "_deadline",
        "_deadline_timer",
        "_emptied",
        "_idle_timer",
        "_tick_s",
        "closed",
        "coming",
        "complain",
        "connections",
        "dirty",
        "holding",
        "loop",
        "opened",
        "unread",
        "view",
        "waiting",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, *, idle_s: float, receive_bytes: int = RECEIVE_BYTES) -> None:
        self.loop = loop
        self.view = memoryview(bytearray(receive_bytes))
        self.connections: dict[int, Connection] = {}
        self.coming: weakref.WeakSet[Connection] = weakref.WeakSet()
        """Accepted and not open yet: in this round, or while TLS shakes hands, which nobody tells us has failed."""
        self.dirty: list[Connection] = []
        self.holding = False  # a chunk is being handled; its end flushes
        self.waiting: set[Connection] = set()  # connections with requests that wait for a reply
        self.unread: Unread[Connection] = Unread()
        self.closed: Counter[str] = Counter()
        """Connections that ended, by reason."""
        self.opened = 0
        self.complain = Complaints(logging.getLogger("aerobee.net")).warn
        self._tick_s = idle_s / IDLE_TICKS
        self._idle_timer: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._deadline_timer: asyncio.TimerHandle | None = None

    def add(self, connection: Connection) -> None:
        """A connection opened."""
        self.coming.discard(connection)
        self.opened += 1
        self.connections[connection.id] = connection
        if self._idle_timer is None and self._tick_s > 0:
            self._idle_timer = self.loop.call_later(self._tick_s, self._tick)

    def missed(self, connection: Connection, reason: str) -> None:
        """A connection had ended before it could be added: it is counted."""
        self.coming.discard(connection)
        self.opened += 1
        self.closed[reason] += 1

    def remove(self, connection: Connection, reason: str) -> bool:
        """A connection ended; `reason` is a short fixed text, a metric's label. False: it was none of ours."""
        known = self.connections.pop(connection.id, None) is not None
        if known:
            self.closed[reason] += 1
        self.waiting.discard(connection)
        self.unread.caught_up(connection)
        if not self.connections and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)
        return known

    async def emptied(self, grace_s: float) -> None:
        """Waits until the last connection ended, at most `grace_s`."""
        if self.connections:
            self._emptied = self.loop.create_future()
            await asyncio.wait([self._emptied], timeout=grace_s)

    # Outbox.

    def post(self, connection: Connection) -> None:
        """`connection` has its first unsent piece of this turn."""
        if not self.dirty and not self.holding:
            self.loop.call_soon(self.flush)
        self.dirty.append(connection)

    def flush(self) -> None:
        """Hands everything written in this turn to the transports."""
        while self.dirty:
            dirty, self.dirty = self.dirty, []
            for connection in dirty:
                connection.flush()

    # Time.

    def _tick(self) -> None:
        self._idle_timer = None
        for connection in list(self.connections.values()):
            if connection.tick() > IDLE_TICKS:
                connection.expire()
        if self.connections:
            self._idle_timer = self.loop.call_later(self._tick_s, self._tick)

    def watch(self, connection: Connection, deadline: float) -> None:
        """A request on `connection` is due at `deadline` (loop time)."""
        self.waiting.add(connection)
        if self._deadline_timer is not None:
            if deadline >= self._deadline:
                return
            self._deadline_timer.cancel()
        self._deadline = deadline
        self._deadline_timer = self.loop.call_at(deadline, self._due)

    def _due(self) -> None:
        self._deadline_timer = None
        horizon = self.loop.time() + DEADLINE_SLACK_S
        earliest = float("inf")
        for connection in list(self.waiting):
            due = connection.deadline if connection.deadline > horizon else connection.end_overdue(horizon)
            if due == float("inf"):
                self.waiting.discard(connection)
            elif due < earliest:
                earliest = due
        if earliest != float("inf"):
            self._deadline = earliest
            self._deadline_timer = self.loop.call_at(earliest, self._due)

    def stop(self) -> None:
        """Cuts all connections and ends the timers."""
        for timer in (self._idle_timer, self._deadline_timer):
            if timer is not None:
                timer.cancel()
        self._idle_timer = self._deadline_timer = None
        for connection in list(self.connections.values()):
            connection.abort("shutdown")
