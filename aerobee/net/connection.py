"""One TCP (or TLS) connection, from either end: bytes in, bytes out, requests that wait for a reply.

A connection knows no frames. Its service gets each received chunk as a memoryview that is valid only during the call,
decodes it, and gives responses back through `resolve`. Everything here runs on the loop's thread.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any, Protocol, cast

from aerobee.errors import ConnectError, ProtocolError, RequestTimeout
from aerobee.net.backpressure import UNREAD_BYTES_HIGH, UNREAD_BYTES_LOW, UNREAD_BYTES_MAX, BackPressure
from aerobee.net.hub import Hub
from aerobee.protocol.command import RemotingCommand

_log = logging.getLogger("aerobee.net")
_ids = itertools.count(1)
_NEVER = float("inf")

PIECES_MAX = 64
PIECE_BYTES_LARGE = 64 * 1024
"""So much may wait for the end of a turn; more goes to the transport at once, which counts it."""

QUIET_REASONS = frozenset({"peer closed", "connection reset", "idle", "shutdown", "done"})
"""Ends of a connection that are nobody's fault; all others are logged, rate-limited."""


class Service(Protocol):
    """What a server gives its listener. All calls come on the loop's thread and must not block."""

    def connected(self, connection: Connection) -> None:
        """A connection opened."""

    def received(self, connection: Connection, data: memoryview) -> None:
        """A chunk arrived; `data` is valid only during this call. A ProtocolError closes the connection."""

    def disconnected(self, connection: Connection) -> None:
        """The connection ended; called once for each `connected`, also for one that has raised."""


class Connection(BackPressure, asyncio.BufferedProtocol):
    """One connection. `id` is unique in this process, `peer` is `ip:port`; `session`, `state`: the service's own."""

    __slots__ = (
        "__weakref__", "_hub", "_next_opaque", "_pieces", "_reason", "_service", "_unread", "_view", "_waiting",
        "deadline", "id", "listener", "local", "peer", "quiet_ticks", "session", "state",
    )  # fmt: skip

    def __init__(self, hub: Hub, service: Service, *, server_side: bool) -> None:
        super().__init__(reads_while_blocked=not server_side)
        self.id = next(_ids)
        self.peer = ""
        self.local = ""
        """Our own `ip:port` of this connection."""
        self.listener = ""
        """Name of the listener it came through."""
        self.session = 0
        self.state: Any = None
        self.quiet_ticks = 0
        self.deadline = _NEVER
        """Loop time before which none of the waiting requests is due."""
        self._hub = hub
        self._view = hub.view
        self._service = service
        self._reason = ""
        self._pieces: list[bytes] = []
        self._next_opaque = 0
        self._waiting: dict[int, tuple[asyncio.Future[RemotingCommand], float]] | None = None
        self._unread = 0

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self.peer}{' closed' if self.closed else ''}>"

    @property
    def closed(self) -> bool:
        """Nothing can be sent any more."""
        return self.transport is None or bool(self._reason)

    def fileno(self) -> int:
        """The socket's, to read what comes behind the chunk being handled; -1: closed, or what it carries is TLS."""
        transport = self.transport
        if transport is None or self._reason or transport.get_extra_info("sslcontext") is not None:
            return -1
        return int(transport.get_extra_info("socket").fileno())

    def give_way(self) -> None:
        """The others have their turn first: this connection is not read again before the loop's next round."""
        if self.transport is not None and self.transport.is_reading():
            self.transport.pause_reading()
            self._hub.loop.call_soon(self._set_reading)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open (with TLS: after the handshake)."""
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass
        peer = transport.get_extra_info("peername")
        if peer is None:  # reset before we saw it: nobody is there to be served
            self._hub.missed(self, "connection reset")
            self.abort("connection reset")
            return
        self.peer = _address(peer)
        self.local = _address(transport.get_extra_info("sockname"))
        transport.set_write_buffer_limits(high=UNREAD_BYTES_HIGH, low=UNREAD_BYTES_LOW)
        self._hub.add(self)
        try:
            self._service.connected(self)
        except Exception:
            _log.exception("connection %s: internal error while taking it; it is closed", self.peer)
            self.abort("internal error")

    def get_buffer(self, sizehint: int) -> memoryview:
        """The buffer that all connections of the hub share: filled and emptied within one step of the loop."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """A chunk arrived: the service handles it, then everything it wrote leaves at once; at the end of the loop's
        round if it filled the buffer: who is answered while it is still read says more, and is read before others."""
        self.quiet_ticks = 0
        hub = self._hub
        hub.holding = holding = nbytes < len(self._view)
        chunk = self._view[:nbytes]
        try:
            if not self._reason:
                self._service.received(self, chunk)
        except ProtocolError as error:
            self.reject(error.reason)
        except Exception:
            _log.exception("connection %s: internal error while handling what it sent; it is closed", self.peer)
            self.close("internal error")
        finally:
            chunk.release()
            if holding:
                hub.holding = False
                if hub.dirty:
                    hub.flush()

    def eof_received(self) -> bool:
        """The peer has nothing more to say; the transport closes when our last bytes are out."""
        return False

    def pause_writing(self) -> None:
        """It does not read as fast as we write."""
        super().pause_writing()
        self._left_unread()

    def resume_writing(self) -> None:
        """It caught up."""
        self._hub.unread.caught_up(self)
        super().resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone, whoever began it."""
        self.transport = None
        self._reason = self._reason or ("peer closed" if error is None else "connection reset")
        self._pieces.clear()
        was_open = self._hub.remove(self, self._reason)
        self._wake_writers()
        self._fail_waiting()
        if was_open:
            self._service.disconnected(self)

    # Sending.

    def write(self, data: bytes) -> None:
        """Queues bytes; they leave with everything else written to it in this turn. Ignored once closed."""
        pieces = self._pieces
        if not pieces:
            if self.transport is None or self._reason:
                return
            self._hub.post(self)
        pieces.append(data)
        if len(pieces) >= PIECES_MAX or len(data) >= PIECE_BYTES_LARGE:
            self.flush()  # a long turn must not hide a peer that does not read

    def flush(self) -> None:
        """Hands the queued bytes to the transport (the hub calls this once a turn)."""
        transport, pieces = self.transport, self._pieces
        if transport is None or not pieces:
            return
        self._pieces = []
        if len(pieces) == 1:
            transport.write(pieces[0])
        else:
            transport.writelines(pieces)
        self._written(transport)

    def write_through(self, data: bytes) -> None:
        """As `write`, for whoever has all there is to say in this turn: it leaves at once."""
        transport = self.transport
        if self._pieces or transport is None or self._reason:
            self.write(data)
            return
        transport.write(data)
        self._written(transport)

    def _written(self, transport: asyncio.Transport) -> None:
        if not self.blocked:
            self.quiet_ticks = 0
        elif transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            self.abort("peer does not read")
        else:
            self._left_unread()

    def _left_unread(self) -> None:
        most = self._hub.unread.grew(self)
        if most is not None:
            most.abort("too many peers do not read")

    def send(self, command: RemotingCommand) -> None:
        """Sends a response, or a request that gets no answer (its opaque is set here)."""
        if not command.is_response:
            command.opaque = self._opaque()
        self.write(command.encode())

    async def invoke(self, command: RemotingCommand, timeout_s: float) -> RemotingCommand:
        """Sends a request and returns its response, whatever its code. Raises RequestTimeout or ConnectError."""
        if self.blocked:
            try:
                async with asyncio.timeout(timeout_s):
                    await self.writable()
            except TimeoutError:
                raise RequestTimeout(f"{self.peer} has not read earlier requests for {timeout_s:g} s") from None
        return await self.request(command, timeout_s)

    def request(self, command: RemotingCommand, timeout_s: float) -> asyncio.Future[RemotingCommand]:
        """`invoke` as a future and without waiting for a peer that does not read; the request leaves with this turn."""
        if self.closed:
            raise ConnectError(f"connection to {self.peer} is closed ({self._reason or 'never opened'})")
        hub = self._hub
        command.opaque = opaque = self._opaque()
        future: asyncio.Future[RemotingCommand] = hub.loop.create_future()
        deadline = hub.loop.time() + timeout_s
        if self._waiting is None:
            self._waiting = {}
        self._waiting[opaque] = (future, deadline)
        if deadline < self.deadline:
            self.deadline = deadline
            hub.watch(self, deadline)
        self.write(command.encode())
        return future

    def resolve(self, command: RemotingCommand) -> bool:
        """Gives a response to the request that waits for it; False if none does (it was late, or never asked for)."""
        entry = self._waiting.pop(command.opaque, None) if self._waiting else None
        if entry is None or entry[0].done():
            return False
        entry[0].set_result(command)
        return True

    def end_overdue(self, now: float) -> float:
        """Ends requests due before `now`; returns when the next one is due (infinity: none waits)."""
        self.deadline = _NEVER
        for opaque, (future, deadline) in list((self._waiting or {}).items()):
            if future.done():
                del self._waiting[opaque]  # type: ignore[union-attr]
            elif deadline <= now:
                del self._waiting[opaque]  # type: ignore[union-attr]
                future.set_exception(RequestTimeout(f"no response from {self.peer} in time"))
            elif deadline < self.deadline:
                self.deadline = deadline
        return self.deadline

    def _opaque(self) -> int:
        self._next_opaque = (self._next_opaque + 1) & 0x7FFFFFFF
        return self._next_opaque

    def _fail_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        sentence = f"connection to {self.peer} ended ({self._reason}) before the response"
        for future, _ in (waiting or {}).values():
            if not future.done():
                future.set_exception(ConnectError(sentence))
                future.exception()  # whoever still waits gets it; nobody is warned about one that nobody awaits

    # Ending.

    def close(self, reason: str = "done", detail: str = "") -> None:
        """Sends what is queued, then closes. `reason` is short and fixed (a label), `detail` is for the log."""
        if self._reason or self.transport is None:
            return
        self.flush()
        self._say(reason, detail)
        self._reason = reason
        self.transport.close()

    def reject(self, error: str) -> None:
        """Closes because of what the peer sent: `error` is `kind: detail`; only the kind is counted and told apart."""
        kind, _, detail = error.partition(": ")
        self.close(kind, detail)

    def abort(self, reason: str) -> None:
        """Closes at once; what is queued is lost."""
        if self.transport is None:
            return
        if not self._reason:
            self._say(reason, "")
            self._reason = reason
        self.transport.abort()

    def tick(self) -> int:
        """Ticks of a quiet line so far. A peer that took some of what waits for it is not quiet, however slow it is."""
        unread = self.unread_bytes()
        self.quiet_ticks = 0 if unread < self._unread else self.quiet_ticks + 1
        self._unread = unread
        return self.quiet_ticks

    def expire(self) -> None:
        """Nothing came or went for the idle time."""
        if self._reason or self.blocked:  # it had its chance to end in peace, or to read
            self.abort("peer does not read")
        else:
            self.close("idle")

    def _say(self, reason: str, detail: str) -> None:
        if reason not in QUIET_REASONS:
            self._hub.complain(reason, "connection %s closed: %s%s", self.peer, reason, detail and f" ({detail})")


def _address(name: Any) -> str:
    """`127.0.0.1:9876`, `[::1]:9876`; a Unix socket has no name worth showing."""
    if not isinstance(name, tuple):
        return str(name or "")
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
