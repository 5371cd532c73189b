"""Incoming connections: `await Listener().start(service, host, port)`, and `stop`, which drains.

Refused here and nowhere else: connections over the limit. Closed here: connections on which nothing moved for the idle
time, and those that sent what is no protocol (the service's decoder says so, see `Connection.buffer_updated`).
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from aerobee.net.connection import Connection, Service
from aerobee.net.hub import Hub

__all__ = ["Connection", "Limits", "Listener", "Service"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a listener allows. `connections_max` 0: as many as the process may open files, less 256 for the store. It
    counts the connections of all listeners that share it, see `Listener`."""

    connections_max: int = 0
    idle_s: float = 120.0
    backlog: int = 1024


class Listener:
    """A listening socket (one for each address that the host name stands for) and its connections.

    `beside` names all listeners, this one too, whose connections together are limited; None: it has its limit alone.
    """

    def __init__(self, name: str = "", *, beside: Callable[[], Iterable[Listener]] | None = None) -> None:
        self.name = name
        """Told to each of its connections: some answers depend on where a client came in."""
        self.refused = 0
        """Connections turned away because of the limit."""
        self._beside = beside or (lambda: (self,))
        self._hub: Hub | None = None
        self._server: asyncio.Server | None = None
        self._service: Service | None = None
        self._connections_max = 0
        self._address = ""

    async def start(
        self,
        service: Service,
        host: str | None,
        port: int,
        *,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Listens on `host`:`port` (0: a free port, see `address`); an address of IPv6 may have its brackets. Raises
        OSError, as when the port is taken."""
        limits = limits or Limits()
        loop = asyncio.get_running_loop()
        self._service = service
        self._connections_max = limits.connections_max or max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 256)
        self._hub = Hub(loop, idle_s=limits.idle_s)
        try:
            self._server = await loop.create_server(
                self._accept,
                host.removeprefix("[").removesuffix("]") if host is not None else None,
                port,
                backlog=limits.backlog,
                ssl=tls,
                ssl_handshake_timeout=10 if tls else None,
                reuse_address=True,
            )
        except socket.gaierror as error:
            raise OSError(error.errno, f"{host} is neither an address nor a name that can be resolved") from None
        except UnicodeError:  # an empty label, or one over 63 characters
            wrong = f"{host} is no host name; correct bindAddress or listeners"
            raise OSError(errno.EINVAL, wrong) from None
        sock = self._server.sockets[0]
        bound, number = sock.getsockname()[:2]
        self._address = f"[{bound}]:{number}" if sock.family == socket.AF_INET6 else f"{bound}:{number}"

    @property
    def address(self) -> str:
        """`ip:port` of the (first) listening socket; empty before `start`."""
        return self._address

    @property
    def connections(self) -> Mapping[int, Connection]:
        """Open connections by id; a live view."""
        return self._hub.connections if self._hub is not None else {}

    @property
    def taken(self) -> int:
        """How many connections count towards the limit: the open ones, and those accepted that are about to be."""
        return len(self._hub.connections) + len(self._hub.coming) if self._hub is not None else 0

    @property
    def counters(self) -> dict[str, int]:
        """`opened`, `refused`, and `closed: <reason>` for each reason seen."""
        hub = self._hub
        closed = {f"closed: {reason}": count for reason, count in hub.closed.items()} if hub else {}
        return {"opened": hub.opened if hub else 0, "refused": self.refused, **closed}

    def _accept(self) -> asyncio.BaseProtocol:
        assert self._hub is not None and self._service is not None
        if sum(listener.taken for listener in self._beside()) >= self._connections_max:
            self.refused += 1
            self._hub.complain("limit", "connection refused: the limit of %d is reached", self._connections_max)
            return _Refused()
        connection = Connection(self._hub, self._service, server_side=True)
        connection.listener = self.name
        self._hub.coming.add(connection)
        return connection

    def hold(self) -> None:
        """First half of `stop`: accepts nothing more, neither connections nor requests. Replies still go out."""
        if self._server is not None:
            self._server.close()
        for connection in self.connections.values():
            connection.hold_reading(True)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Accepts nothing more, sends what is queued, closes; after `grace_s` those that do not read are cut."""
        if self._hub is None:
            return
        self.hold()
        self._hub.flush()
        for connection in list(self.connections.values()):
            connection.close("shutdown")
        await self._hub.emptied(grace_s)
        self._hub.stop()
        await asyncio.sleep(0)
        if self._server is not None:
            await self._server.wait_closed()


class _Refused(asyncio.Protocol):
    """Takes a connection that is over the limit and ends it at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()
