"""The name server: a listener, the tables, and a look round for brokers that fell silent.

    server = NameServer(NameServerOptions(listen_port=0))
    await server.start()
    server.address                                  # "127.0.0.1:40123"
    await server.stop()

It keeps nothing but the KV configuration: brokers register with every name server every 30 s, so one that was killed
knows everything again within that time, and several side by side need not know of each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Iterable
from pathlib import Path

from aerobee.clock import Clock, SystemClock
from aerobee.errors import AerobeeError
from aerobee.nameserver.dispatch import Dispatch
from aerobee.nameserver.handlers import Parts
from aerobee.nameserver.kv import KvConfig
from aerobee.nameserver.options import NameServerOptions
from aerobee.nameserver.routes import MinIdChange, Routes
from aerobee.net.addresses import MAIN, named_addresses
from aerobee.net.listener import Connection, Limits, Listener
from aerobee.net.remote import RemotePool
from aerobee.protocol.codes import RequestCode
from aerobee.protocol.command import FrameDecoder, RemotingCommand
from aerobee.protocol.headers.admin import NotifyMinBrokerIdChange

TELL_TIMEOUT_S = 0.3

_log = logging.getLogger("aerobee.nameserver")


class NameServer:
    """One name server; `start` and `stop` once each."""

    def __init__(self, options: NameServerOptions, clock: Clock | None = None) -> None:
        self.options = options
        self._clock = clock or SystemClock()
        self.listeners: dict[str, Listener] = {MAIN: Listener(beside=self._everyone)}
        """By name: that of `listenPort`, then those of `listeners`."""
        self._brokers = RemotePool()
        self._parts = Parts(
            options=options,
            clock=self._clock,
            routes=Routes(),
            kv=KvConfig(Path(options.kv_config_path)),
            tell=self._tell,
            started_ms=self._clock.now_ms(),
        )
        self._dispatch = Dispatch(self._parts)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """`ip:port` it listens on."""
        return self.listeners[MAIN].address

    @property
    def addresses(self) -> list[str]:
        """Everything it listens on."""
        return [listener.address for listener in self.listeners.values()]

    @property
    def counters(self) -> dict[str, int]:
        """Connections: opened, refused, closed by reason."""
        total: Counter[str] = Counter()
        for listener in self.listeners.values():
            total.update(listener.counters)
        return dict(total)

    async def start(self) -> None:
        """Loads the KV configuration and listens. Raises OSError when the port is taken or the file unreadable, or when
        it was given and cannot be written."""
        self._parts.kv.load()
        try:
            self._parts.kv.check()
        except OSError as error:
            if self.options.kv_config_path != NameServerOptions.ROWS["kvConfigPath"].value():
                raise
            _log.warning("%s cannot be written: changes of the KV configuration will be refused", error.filename)
        limits = Limits(
            connections_max=self.options.connections_max, idle_s=self.options.server_channel_max_idle_time_seconds
        )
        places = {MAIN: (self.options.bind_address, self.options.listen_port)}
        for name, address in named_addresses(self.options.listeners).items():
            host, _, port = address.rpartition(":")
            places[name] = host, int(port)
        try:
            for name, (host, number) in places.items():
                listener = self.listeners[name] = self.listeners.get(name) or Listener(name, beside=self._everyone)
                await listener.start(self, host, number, limits=limits)
        except BaseException:
            await asyncio.gather(*(listener.stop(0.0) for listener in self.listeners.values()))
            self.listeners = {MAIN: Listener(beside=self._everyone)}
            raise
        self._spawn(self._expire_brokers())
        _log.info("listening on %s", ", ".join(self.addresses))

    async def failed(self) -> str:
        """Never: it needs nobody."""
        forever: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await forever

    async def stop(self) -> None:
        """Answers what was accepted, then closes."""
        if not self.address:
            return
        for listener in self.listeners.values():
            listener.hold()
        await self._dispatch.drain()
        await asyncio.gather(*(listener.stop() for listener in self.listeners.values()))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._brokers.close()
        _log.info("stopped; connections: %s", ", ".join(f"{what} {count}" for what, count in self.counters.items()))

    # What the listeners call.

    def connected(self, connection: Connection) -> None:
        """A broker, a client or a tool; its decoder is made when it says something."""

    def received(self, connection: Connection, data: memoryview) -> None:
        """Serves the requests that a chunk completes."""
        decoder = connection.state
        if decoder is None:
            decoder = connection.state = FrameDecoder()
        for command in decoder.feed(data):
            if command.is_response:
                connection.resolve(command)
            else:
                self._dispatch.serve(connection, command)

    def disconnected(self, connection: Connection) -> None:
        """Brokers that registered over this connection are gone, unless they came back over another one."""
        for change in self._parts.routes.disconnected(connection.id):
            self._tell(change)

    def _everyone(self) -> Iterable[Listener]:
        return self.listeners.values()

    # Brokers.

    async def _expire_brokers(self) -> None:
        while True:
            await self._clock.sleep(self.options.scan_not_active_broker_interval / 1000)
            changes, connections = self._parts.routes.expire(self._clock.now_ms())
            for change in changes:
                self._tell(change)
            for number in connections:
                for listener in self.listeners.values():
                    connection = listener.connections.get(number)
                    if connection is not None:
                        connection.close("broker expired")

    def _tell(self, change: MinIdChange) -> None:
        if not self.options.notify_min_broker_id_changed:
            return
        header = NotifyMinBrokerIdChange(
            min_broker_id=change.broker_id,
            broker_name=change.name,
            min_broker_addr=change.address,
            offline_broker_addr=change.offline_address,
            ha_broker_addr=change.ha_address,
        )
        for address in change.tell:
            command = RemotingCommand.request(RequestCode.NOTIFY_MIN_BROKER_ID_CHANGE, header, oneway=True)
            self._spawn(self._send(address, command))

    async def _send(self, address: str, command: RemotingCommand) -> None:
        try:
            await self._brokers.oneway(address, command, TELL_TIMEOUT_S)
        except AerobeeError as error:
            _log.info("broker at %s was not told of a change: %s", address, error)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
