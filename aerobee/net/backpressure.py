"""What happens when a peer reads more slowly than we write: the whole of it is in this file.

The transport counts bytes it could not hand to the kernel. Above `UNREAD_BYTES_HIGH` it calls `pause_writing`, below
`UNREAD_BYTES_LOW` `resume_writing`. In between

* a server's connection is not read: a client that does not take its replies gets no further requests accepted, so its
  backlog is at most what its last chunk asked for, and what a turn may bring its waiting pulls (`broker/store.py`);
* a client's connection goes on reading (the server may be waiting for exactly that), and whoever wants to send
  awaits `writable()`.

Nor is a connection read whose requests, taken and not answered yet, hold too much memory, or wait for the disk in too
great a number (`broker/dispatch.py`).
A server whose disk is behind does not read its senders either (`broker/store.py`); what they sent stays with them.

A peer that lets more than `UNREAD_BYTES_MAX` pile up, by long replies or by notices it did not ask for, is cut off.
When the peers of a hub leave more than `UNREAD_BYTES_TOTAL_MAX` together, whoever leaves most is.
"""

from __future__ import annotations

import asyncio
from typing import Final, Generic, TypeVar

UNREAD_BYTES_HIGH: Final = 256 * 1024
UNREAD_BYTES_LOW: Final = 64 * 1024
UNREAD_BYTES_MAX: Final = 256 * 1024 * 1024
UNREAD_BYTES_TOTAL_MAX: Final = 512 * 1024 * 1024
assert UNREAD_BYTES_LOW < UNREAD_BYTES_HIGH < UNREAD_BYTES_MAX < UNREAD_BYTES_TOTAL_MAX


class BackPressure:
    """The flow-control half of a connection; `transport` is set while it is open."""

    __slots__ = ("_held", "_reads_while_blocked", "_writers", "blocked", "laden", "transport")

    def __init__(self, *, reads_while_blocked: bool) -> None:
        self.transport: asyncio.Transport | None = None
        self.blocked = False
        """The peer is not reading what we wrote."""
        self.laden = False
        """Its requests that wait for something are as many, or hold as much memory, as they may."""
        self._reads_while_blocked = reads_while_blocked
        self._held = False
        self._writers: list[asyncio.Future[None]] | None = None

    def pause_writing(self) -> None:
        """Called by the transport: too much is unread."""
        self.blocked = True
        if not self._reads_while_blocked:
            self._set_reading()

    def resume_writing(self) -> None:
        """Called by the transport: the peer caught up."""
        self.blocked = False
        self._set_reading()
        self._wake_writers()

    def unread_bytes(self) -> int:
        """Bytes that the kernel did not take yet."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    def hold_reading(self, held: bool) -> None:
        """Stops (or takes up again) reading for a reason of the owner's: a shutdown, a full store."""
        self._held = held
        self._set_reading()

    def load(self, laden: bool) -> None:
        """Its requests that wait for something are too much: it is not read until they are not any more."""
        self.laden = laden
        self._set_reading()
        if not laden:
            self._wake_writers()

    async def writable(self) -> None:
        """Returns at once while the peer keeps up, otherwise when it has caught up or the connection ended."""
        while self.blocked and self.transport is not None:
            await self._eased()

    async def servable(self) -> None:
        """As `writable`, and nothing else is in the way of its next request."""
        while (self.blocked or self.laden) and self.transport is not None:
            await self._eased()

    def _eased(self) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._writers is None:
            self._writers = []
        self._writers.append(waiter)
        return waiter

    def _set_reading(self) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        wanted = not self._held and not self.laden and (self._reads_while_blocked or not self.blocked)
        if wanted != transport.is_reading():
            (transport.resume_reading if wanted else transport.pause_reading)()

    def _wake_writers(self) -> None:
        writers, self._writers = self._writers, None
        for waiter in writers or ():
            if not waiter.done():
                waiter.set_result(None)


_Peer = TypeVar("_Peer", bound=BackPressure)


class Unread(Generic[_Peer]):
    """What the blocked peers of one hub have not read, all together, as of when each was last written to."""

    __slots__ = ("_bytes", "_of")

    def __init__(self) -> None:
        self._of: dict[_Peer, int] = {}
        self._bytes = 0

    def grew(self, peer: _Peer) -> _Peer | None:
        """A blocked peer has more to read now. Returns who is to be cut off if that is too much: who has most."""
        unread = peer.unread_bytes()
        self._bytes += unread - self._of.get(peer, 0)
        self._of[peer] = unread
        if self._bytes > UNREAD_BYTES_TOTAL_MAX:
            # They may have read since.
            self._of = {peer: peer.unread_bytes() for peer in self._of}
            self._bytes = sum(self._of.values())
            if self._bytes > UNREAD_BYTES_TOTAL_MAX:
                return max(self._of, key=self._of.__getitem__)
        return None

    def caught_up(self, peer: _Peer) -> None:
        """It is not blocked any more, or has gone."""
        self._bytes -= self._of.pop(peer, 0)
