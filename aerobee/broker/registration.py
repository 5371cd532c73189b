"""Telling the name servers that we are here: a task for each of them, so that a slow or dead one delays nobody.

Each is told everything at the start, every `registerNameServerPeriod` and whenever its connection broke, and the topics
that changed as soon as they change (changes within a few milliseconds go together). A name server that cannot be
reached is tried again after 1 s, 2 s, … up to 10 s. The first failure and the recovery are logged, repetitions are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import structs

from aerobee.broker.listeners import Listeners
from aerobee.broker.options import BrokerOptions
from aerobee.broker.static_topics import StaticTopics
from aerobee.broker.topics import TopicTable
from aerobee.errors import AerobeeError, error_for
from aerobee.net.remote import RemotePool
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.route import ClusterInfo, TopicRouteData
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand

_log = logging.getLogger("aerobee.broker.registration")

GATHER_S: Final = 0.01
RETRY_MAX_S: Final = 10.0
UNREGISTER_TIMEOUT_S: Final = 3.0
ROUTE_TIMEOUT_S: Final = 3.0
TOLD_S: Final = 3.0
"""Tools wait five seconds for an answer."""
HEARTBEAT_TIMEOUT_MS: Final = 120_000
"""How long name servers remember us without a word."""


@dataclass(eq=False)
class _NameServer:
    """What one of them is to be told, and how far it has been."""

    address: str
    everything: bool = True
    topics: set[str] = field(default_factory=set)
    """Those that changed, unless everything is to be told."""
    changes: int = 1
    """How many times there was something new."""
    told: int = 0
    """How many of those it was told of, or could not be."""
    waiting: int = 0
    """How many wait for it to be told."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, when `told` moves."""
    knows_us: asyncio.Event = field(default_factory=asyncio.Event)
    """It has registered us once."""

    def change(self, topics: set[str] | None) -> None:
        """These topics are new, or everything."""
        if topics is None:
            self.everything = True
        else:
            self.topics |= topics
        self.changes += 1
        self.news.set()

    def take(self) -> set[str] | None:
        """The topics to be told of now; None: everything."""
        topics = None if self.everything or not self.topics else self.topics
        self.everything, self.topics = False, set()
        self.news.clear()
        return topics

    def reached(self, changes: int) -> None:
        """So many changes were told of, or could not be."""
        self.told = changes
        self.heard.set()
        self.heard = asyncio.Event()

    async def hears(self) -> None:
        """Returns when it was told of every change so far, or could not be."""
        changes = self.changes
        self.waiting += 1
        try:
            while self.told < changes:
                await self.heard.wait()
        finally:
            self.waiting -= 1


class Registration:
    """Keeps every name server informed of us and of what clients are told to dial; see the head of this file."""

    def __init__(
        self,
        options: BrokerOptions,
        topics: TopicTable,
        static_topics: StaticTopics,
        listeners: Listeners,
        *,
        on_order_topics: Callable[[Iterable[str]], Awaitable[None]] | None = None,
    ) -> None:
        self.registered: dict[str, bool] = {server: False for server in options.name_servers}
        """Name server → it knows us."""
        self.failures: dict[str, str] = {}
        """Name server → why the last attempt failed."""
        self._options = options
        self._listeners = listeners
        self._topics = topics
        self._static_topics = static_topics
        self._on_order_topics = on_order_topics
        self._pool = RemotePool(idle_s=0, on_disconnected=self._disconnected)
        self._name_servers = {server: _NameServer(server) for server in options.name_servers}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to register; returns at once."""
        if not self.registered:
            _log.warning("no name server is configured: clients that look for this broker will not find it")
        self._tasks = [
            asyncio.create_task(self._keep(server), name=f"register at {server.address}")
            for server in self._name_servers.values()
        ]

    async def first(self, timeout_s: float, *, any_will_do: bool = False) -> bool:
        """Returns when every name server (or any) has heard of us once, or after that time; whether one has."""
        waiting = [asyncio.ensure_future(server.knows_us.wait()) for server in self._name_servers.values()]
        if waiting:
            when = asyncio.FIRST_COMPLETED if any_will_do else asyncio.ALL_COMPLETED
            try:
                await asyncio.wait(waiting, timeout=timeout_s, return_when=when)
            finally:
                for task in waiting:
                    task.cancel()
        return any(server.knows_us.is_set() for server in self._name_servers.values())

    def changed(self, topics: Iterable[str]) -> None:
        """These topics changed: tell everybody soon. No topics: tell everybody everything."""
        names = set(topics) or None
        for server in self._name_servers.values():
            server.change(names)

    async def told(self) -> None:
        """Returns when all name servers that know us know of every change so far, or after three seconds.

        Whoever made a topic looks for its route next, as after Apache's broker has answered.
        """
        waiting = [
            asyncio.ensure_future(server.hears())
            for server in self._name_servers.values()
            if self.registered[server.address] and server.told < server.changes
        ]
        if waiting:
            try:
                await asyncio.wait(waiting, timeout=TOLD_S)
            finally:
                for task in waiting:
                    task.cancel()

    async def route(self, topic: str) -> TopicRouteData | None:
        """Where the topic lives, on all brokers; None: no name server knows. Raises nothing."""
        for server, known in self.registered.items():
            if not known:
                continue
            command = RemotingCommand.request(RequestCode.GET_ROUTEINFO_BY_TOPIC)
            command.ext_fields["topic"] = topic
            with contextlib.suppress(AerobeeError, OSError):
                reply = await self._pool.invoke(server, command, ROUTE_TIMEOUT_S)
                if reply.code == ResponseCode.SUCCESS and reply.body:
                    return TopicRouteData.from_json(reply.body)
        return None

    async def masters(self) -> dict[str, str]:
        """The masters of our cluster, ourselves among them: broker name → address. Raises nothing."""
        return await self.brokers(self._options.broker_cluster_name)

    async def brokers(self, cluster: str | None = None) -> dict[str, str]:
        """The masters of a cluster, or of all: broker name → address. Raises nothing."""
        for server, known in self.registered.items():
            if not known:
                continue
            command = RemotingCommand.request(RequestCode.GET_BROKER_CLUSTER_INFO)
            with contextlib.suppress(AerobeeError, OSError):
                reply = await self._pool.invoke(server, command, ROUTE_TIMEOUT_S)
                if reply.code == ResponseCode.SUCCESS and reply.body:
                    return {
                        name: broker.broker_addrs[0]
                        for name, broker in ClusterInfo.from_json(reply.body).broker_addr_table.items()
                        if cluster in (None, broker.cluster) and 0 in broker.broker_addrs
                    }
        return {}

    async def stop(self) -> None:
        """Unregisters everywhere (all at once, at most three seconds)."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._unregister(server) for server, known in self.registered.items() if known))
        await self._pool.close()

    def abandon(self) -> None:
        """Ends without a word, as a crash would."""
        for task in self._tasks:
            task.cancel()

    async def _keep(self, server: _NameServer) -> None:
        address, delay_s, complained = server.address, 0.0, False
        loop = asyncio.get_running_loop()
        due = 0.0  # by the loop's time: when everything is told again, however often topics change meanwhile
        while True:
            changes, names = server.changes, server.take()
            if loop.time() >= due:
                names = None
            try:
                try:
                    await self._register(address, names)
                finally:
                    server.reached(changes)
                if names is None:
                    due = loop.time() + self._options.register_name_server_period / 1000
                if complained:
                    _log.info("name server %s is back, registered", address)
                elif not self.registered[address]:
                    ours = self._listeners.address
                    _log.info("registered at name server %s as %s (%s)", address, ours, self._options.broker_name)
                self.registered[address], complained, delay_s = True, False, 0.0
                server.knows_us.set()
            except (AerobeeError, OSError) as error:
                self.failures[address] = str(error)
                if not complained:
                    _log.warning("cannot register at name server %s: %s; trying again until it works", address, error)
                self.registered[address], complained, server.everything = False, True, True
                delay_s = min(RETRY_MAX_S, delay_s * 2 or 1.0)
                await asyncio.sleep(delay_s)
                continue
            except Exception as error:
                self.failures[address] = f"internal error while registering at {address}: {error!r}"
                _log.exception("internal error while registering at %s", address)
                server.everything = True
                await asyncio.sleep(RETRY_MAX_S)
                continue
            with contextlib.suppress(TimeoutError):
                # Not `wait_for`: before Python 3.12 it forgets a cancellation that meets the wake-up: a stop hung.
                async with asyncio.timeout_at(due):
                    await server.news.wait()
                if not server.waiting:
                    await asyncio.sleep(GATHER_S)

    async def _register(self, server: str, names: set[str] | None) -> None:
        body = fastjson.dumps_table(self._body(names))
        command = RemotingCommand.request(RequestCode.REGISTER_BROKER, body=body)
        command.ext_fields.update(
            brokerName=self._options.broker_name,
            brokerAddr=self._listeners.address,
            clusterName=self._options.broker_cluster_name,
            brokerId=str(self._options.broker_id),
            haServerAddr=self._ha_address(),
            heartbeatTimeoutMillis=str(HEARTBEAT_TIMEOUT_MS),
            enableActingMaster="false",
            compressed="false",
            bodyCrc32=str(zlib.crc32(body) & 0x7FFFFFFF),
        )
        if len(self._listeners.advertised) > 1:
            named = ";".join(f"{name}://{address}" for name, address in self._listeners.advertised.items())
            command.ext_fields["advertisedListeners"] = named
        if names is not None:  # a name server of aerobee's with deleteTopicWithBrokerRegistration then drops no others
            command.ext_fields["changedTopicsOnly"] = "true"
        reply = await self._pool.invoke(server, command, self._options.register_broker_timeout_mills / 1000)
        if reply.code != ResponseCode.SUCCESS:
            raise error_for(reply.code, reply.remark or "")
        if reply.body and self._on_order_topics is not None:
            table = fastjson.loads(reply.body).get("table") or {}
            if table:
                await self._on_order_topics(table)

    async def _unregister(self, server: str) -> None:
        command = RemotingCommand.request(RequestCode.UNREGISTER_BROKER)
        command.ext_fields.update(
            brokerName=self._options.broker_name,
            brokerAddr=self._listeners.address,
            clusterName=self._options.broker_cluster_name,
            brokerId=str(self._options.broker_id),
        )
        with contextlib.suppress(AerobeeError, OSError):
            await self._pool.invoke(server, command, UNREGISTER_TIMEOUT_S)

    def _body(self, names: set[str] | None) -> dict[str, Any]:
        table = self._topics.to_dict(None if names is None else [name for name in names if name in self._topics.table])
        permission = self._options.broker_permission
        if permission & 6 != 6:
            # Queues of a broker that does not read or write are shown that way to clients, so that they go elsewhere.
            configs = table["topicConfigTable"]
            for name, config in configs.items():
                configs[name] = structs.replace(config, perm=config.perm & permission)
        return {
            "filterServerList": [],
            "topicConfigSerializeWrapper": {
                **table,
                "mappingDataVersion": self._static_topics.version.to_json(),
                "topicQueueMappingDetailMap": {},
                "topicQueueMappingInfoMap": {
                    topic: info.to_dict()
                    for topic, info in self._static_topics.infos(names).items()
                    if topic in self._topics.table  # else it is being made or deleted
                },
            },
        }

    def _ha_address(self) -> str:
        host, _, port = self._listeners.address.rpartition(":")
        return f"{self._options.broker_ip2 or host}:{min(int(port) + 1, 65535)}"

    def _disconnected(self, address: str) -> None:
        if (server := self._name_servers.get(address)) is not None:
            server.change(None)  # it forgets us with the connection: everything is said again at once
