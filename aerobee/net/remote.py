"""Outgoing connections: one `Remote` an address, opened when first needed and again after it broke.

    pool = RemotePool(on_request=handle)               # requests that servers send to us
    reply = await pool.invoke("127.0.0.1:9876", command, timeout_s=3.0)

Promises: the loop is never blocked (names are resolved in a thread); after a failure the next attempt waits 0.1 s, then
twice as long, up to 1 s, within the caller's own time-out; requests that were under way when a connection broke end at
once with ConnectError, none is sent twice. A pool may be made anywhere and used in a forked child or in another event
loop: it notices, leaves the inherited sockets to the parent, and connects anew.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import Callable
from typing import Final

from aerobee.errors import ConnectError, RequestTimeout
from aerobee.net.connection import Connection
from aerobee.net.hub import Hub
from aerobee.protocol.command import FrameDecoder, RemotingCommand

OnRequest = Callable[[Connection, RemotingCommand], None]
"""Called with each request that a server sends; it answers with `connection.send(command.reply(…))`."""

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 1.0

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class Remote:
    """One server address. Made by a `RemotePool`, or alone with a hub of its own."""

    def __init__(
        self,
        address: str,
        on_request: OnRequest | None = None,
        *,
        hub: Hub | None = None,
        tls: ssl.SSLContext | None = None,
        connect_timeout_s: float = 3.0,
        on_connected: Callable[[str], None] | None = None,
        on_disconnected: Callable[[str], None] | None = None,
    ) -> None:
        self.address = address
        self.connection: Connection | None = None
        """The open connection, if there is one."""
        self.failure = ""
        """Why the last attempt to connect failed; empty when it did not."""
        self._host, self._port = split_address(address)
        self._on_request = on_request
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._hub = hub
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._connecting: asyncio.Task[Connection] | None = None
        self._backoff_s = 0.0
        self._retry_at = 0.0
        self._closed = False

    # Using it.

    async def invoke(self, command: RemotingCommand, timeout_s: float) -> RemotingCommand:
        """Sends a request and returns the response, whatever its code. Raises ConnectError, RequestTimeout."""
        connection = self.connection
        if connection is None or connection.closed:
            began = asyncio.get_running_loop().time()
            connection = await self._connected_within(timeout_s)
            timeout_s = max(0.001, timeout_s - (asyncio.get_running_loop().time() - began))
        if connection.blocked:
            return await connection.invoke(command, timeout_s)
        return await connection.request(command, timeout_s)

    async def oneway(self, command: RemotingCommand, timeout_s: float = 3.0) -> None:
        """Sends a request that gets no answer; returns when it is on its way and the server keeps reading."""
        connection = await self._connected_within(timeout_s)
        if connection.blocked:
            try:
                async with asyncio.timeout(timeout_s):
                    await connection.writable()
            except TimeoutError:
                raise RequestTimeout(f"{self.address} has not read earlier requests for {timeout_s:g} s") from None
        if connection.closed:
            raise ConnectError(f"connection to {self.address} ended before the request was sent")
        connection.send(command)

    def close(self) -> None:
        """Sends what is queued and closes; the remote cannot be used again."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self.connection is not None:
            self.connection.close()

    def abandon(self) -> None:
        """After a fork or a change of loop: gives the socket up without a word to the server."""
        connection, self.connection, self._connecting, self._hub = self.connection, None, None, None
        self._retry_at = self._backoff_s = 0.0
        transport = connection.transport if connection is not None else None
        if transport is not None:
            sock = transport.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                # The parent's connection must not end here, and the number stays taken, so that a late close
                # by the old loop hits nothing else.
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, sock.fileno())
                os.close(null)

    # Connecting.

    async def _connected_within(self, timeout_s: float) -> Connection:
        if self.connection is not None and not self.connection.closed:
            return self.connection
        if self._closed:
            raise ConnectError(f"the connection to {self.address} was closed by this process")
        task = self._connecting
        if task is None or task.done():
            self._connecting = task = asyncio.get_running_loop().create_task(self._connect())
            task.add_done_callback(_look_at)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(task)  # others wait for the same attempt
        except TimeoutError:
            reason = self.failure or "no answer"
            raise ConnectError(f"cannot connect to {self.address} within {timeout_s:g} s: {reason}") from None
        except asyncio.CancelledError:
            asked = asyncio.current_task()
            if self._closed and not (asked is not None and asked.cancelling()):
                raise ConnectError(f"the connection to {self.address} was closed by this process") from None
            raise

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        wait_s = self._retry_at - loop.time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if self._hub is None:
            self._hub = Hub(loop, idle_s=0)
        hub = self._hub
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(hub, self, server_side=False), self._host, self._port,
                    ssl=self._tls, server_hostname=self._host if self._tls else None,
                )  # fmt: skip
        except (OSError, UnicodeError) as error:
            timed_out = isinstance(error, TimeoutError) and not str(error)
            self.failure = f"no answer in {self._connect_timeout_s:g} s" if timed_out else str(error)
            if isinstance(error, UnicodeError):  # an empty label, or one over 63 characters
                self.failure = f"{self._host} is no host name"
            self._backoff_s = min(BACKOFF_MAX_S, self._backoff_s * 2 or BACKOFF_FIRST_S)
            self._retry_at = loop.time() + self._backoff_s * random.uniform(0.8, 1.0)
            raise ConnectError(f"cannot connect to {self.address}: {self.failure}") from None
        self.failure = ""
        self._backoff_s = self._retry_at = 0.0
        return connection

    # What the connection calls.

    def connected(self, connection: Connection) -> None:
        """The connection opened."""
        connection.state = FrameDecoder()
        self.connection = connection
        if self._on_connected is not None:
            self._on_connected(self.address)

    def received(self, connection: Connection, data: memoryview) -> None:
        """Responses go to those who wait, requests to `on_request`."""
        for command in connection.state.feed(data):
            if command.is_response:
                connection.resolve(command)
            elif self._on_request is not None:
                self._on_request(connection, command)

    def disconnected(self, connection: Connection) -> None:
        """The connection ended; the next request opens another one."""
        if self.connection is connection:
            self.connection = None
            if self._on_disconnected is not None:
                self._on_disconnected(self.address)


class RemotePool:
    """Remotes by address, for one event loop at a time. `idle_s` 0: unused connections stay open."""

    def __init__(
        self,
        on_request: OnRequest | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        idle_s: float = 120.0,
        connect_timeout_s: float = 3.0,
        on_connected: Callable[[str], None] | None = None,
        on_disconnected: Callable[[str], None] | None = None,
    ) -> None:
        self._on_request = on_request
        self._tls = tls
        self._idle_s = idle_s
        self._connect_timeout_s = connect_timeout_s
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._remotes: dict[str, Remote] = {}
        self._hub: Hub | None = None
        self._fork = _forks

    def remote(self, address: str) -> Remote:
        """The remote for `host:port`, made if needed. Ask in the loop, for every use: a fork may have come between."""
        loop = asyncio.get_running_loop()
        if self._hub is None or self._fork != _forks or self._hub.loop is not loop:
            self._move(loop)
        found = self._remotes.get(address)
        if found is None:
            found = self._remotes[address] = Remote(
                address, self._on_request, hub=self._hub, tls=self._tls, connect_timeout_s=self._connect_timeout_s,
                on_connected=self._on_connected, on_disconnected=self._on_disconnected,
            )  # fmt: skip
        return found

    async def invoke(self, address: str, command: RemotingCommand, timeout_s: float) -> RemotingCommand:
        """`Remote.invoke` at `address`."""
        return await self.remote(address).invoke(command, timeout_s)

    async def oneway(self, address: str, command: RemotingCommand, timeout_s: float = 3.0) -> None:
        """`Remote.oneway` at `address`."""
        await self.remote(address).oneway(command, timeout_s)

    @property
    def connected(self) -> list[str]:
        """Addresses with an open connection."""
        return [address for address, remote in self._remotes.items() if remote.connection is not None]

    async def close(self) -> None:
        """Sends what is queued and closes all connections."""
        hub = self._hub
        remotes, self._remotes, self._hub = list(self._remotes.values()), {}, None
        if hub is None or self._fork != _forks or hub.loop is not asyncio.get_running_loop():
            for remote in remotes:
                remote.abandon()
            return
        for remote in remotes:
            remote.close()
        await hub.emptied(1.0)
        hub.stop()

    def drop(self, address: str) -> None:
        """Forgets an address that is not part of the cluster any more; what is queued there is still sent."""
        remote = self._remotes.pop(address, None)
        if remote is not None:
            remote.close()

    def _move(self, loop: asyncio.AbstractEventLoop) -> None:
        for remote in self._remotes.values():
            remote.abandon()
        self._remotes = {}
        self._fork = _forks
        self._hub = Hub(loop, idle_s=self._idle_s)


def split_address(address: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` → (host, port). Raises ConnectError when it is neither."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or len(port) > 9 or int(port) > 65535:
        raise ConnectError(f"{address!r} is not an address; host:port is expected")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _look_at(task: asyncio.Task[Connection]) -> None:
    """An attempt that nobody waits for any more may fail without a warning from the loop."""
    if not task.cancelled():
        task.exception()
