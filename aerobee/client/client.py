"""What producers and consumers share: name servers, routes, connections, heartbeats, and the requests brokers send us.

One `Client` is one member of the cluster, known by its client id. Each `Producer` and `Consumer` makes its own
unless it is given one. Other parts of aerobee (admin, console) use it to talk to clusters.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Protocol, Self

from aerobee.client.rebalance import queue_order
from aerobee.errors import AerobeeError, ConnectError, RequestTimeout, ServerError, TopicNotExist, error_for
from aerobee.net.connection import Connection
from aerobee.net.remote import RemotePool
from aerobee.protocol.bodies.client import ConsumerData, HeartbeatData, ProducerData
from aerobee.protocol.bodies.route import TopicRouteData
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.message import MessageQueue

_log = logging.getLogger("aerobee.client")

DEFAULT_NAME_SERVERS: Final = "127.0.0.1:9876"
DEFAULT_TOPIC: Final = "TBW102"
"""The topic whose settings a broker copies when it creates a topic on first use."""
DEFAULT_TOPIC_QUEUES: Final = 4
ROUTE_INTERVAL_S: Final = 30.0
ROUTE_GUESSED_S: Final = 1.0
ROUTE_SHRUNK_S: Final = 3.0
SHRUNK_MEMORY_S: Final = 120.0
"""How long a broker that left a route is looked for more often."""
MOVING_WAIT_S: Final = 0.05
"""While a queue moves and its new leader is not in the route yet: the next look."""
HEARTBEAT_INTERVAL_S: Final = 30.0
PERM_READ: Final = 4
PERM_WRITE: Final = 2
MASTER_ID: Final = 0
STATIC_BROKER: Final = "__syslo__"
"""Begins the broker name of a static topic's queues: they are nowhere for ever."""
GLOBAL_SCOPE: Final = "__global__"


def static_hosts(topic: str, data: TopicRouteData) -> dict[MessageQueue, str]:
    """A static topic's queues, and which broker leads each now: the one that says so in the newest epoch. A queue that
    nobody leads has its own broker name, of which no address is known. Empty for other topics."""
    hosts: dict[MessageQueue, str] = {}
    infos = sorted((data.topic_queue_mapping_by_broker or {}).values(), key=lambda info: (info.epoch, info.bname))
    names = [STATIC_BROKER + ("global__" if info.scope == GLOBAL_SCOPE else info.scope) for info in infos]
    for info, name in zip(infos, names, strict=True):
        hosts |= {MessageQueue(topic, name, number): name for number in range(info.total_queues)}
    for info, name in zip(infos, names, strict=True):
        led = (MessageQueue(topic, name, number) for number in info.curr_id_map)
        hosts |= {queue: info.bname for queue in led if queue in hosts}
    return hosts


class TopicRoute:
    """Where a topic lives: its queues for sending and for reading, in the order all clients agree on."""

    __slots__ = ("brokers", "guessed", "has_others", "hosts", "read_queues", "topic", "write_queues")

    def __init__(self, topic: str, data: TopicRouteData, *, guessed: bool = False) -> None:
        self.topic = topic
        self.guessed = guessed
        """The topic does not exist yet: these are the queues it will have once a broker has created it."""
        self.brokers: dict[str, dict[int, str]] = {
            broker.broker_name: broker.broker_addrs for broker in data.broker_datas
        }
        self.hosts = static_hosts(topic, data)
        """Of a static topic only; see `host`."""
        self.write_queues: list[MessageQueue] = list(self.hosts)
        self.read_queues: list[MessageQueue] = list(self.hosts)
        for queues in data.queue_datas if not self.hosts else ():
            name = queues.broker_name
            if queues.perm & PERM_READ:
                self.read_queues += [MessageQueue(topic, name, i) for i in range(queues.read_queue_nums)]
            # Only a master takes messages.
            if queues.perm & PERM_WRITE and MASTER_ID in self.brokers.get(name, ()):
                writable = min(queues.write_queue_nums, DEFAULT_TOPIC_QUEUES) if guessed else queues.write_queue_nums
                self.write_queues += [MessageQueue(topic, name, i) for i in range(writable)]
        self.write_queues.sort(key=queue_order)
        self.read_queues.sort(key=queue_order)
        self.has_others = len({self.host(queue) for queue in self.write_queues}) > 1
        """When one broker does not take a message, another one may."""

    def host(self, queue: MessageQueue) -> str:
        """Name of the broker that has the queue: its own, but for the queues of static topics, which move."""
        return self.hosts.get(queue, queue.broker_name) if self.hosts else queue.broker_name

    def same_queues(self, other: TopicRoute | None) -> bool:
        """Whether sending and reading is the same as with `other`."""
        return (
            other is not None
            and self.write_queues == other.write_queues
            and self.read_queues == other.read_queues
            and self.hosts == other.hosts
        )


class Member(Protocol):
    """A producer or consumer, as its client sees it."""

    def heartbeat_data(self) -> ProducerData | ConsumerData: ...
    def topics(self) -> Iterable[str]:
        """Topics whose routes are kept fresh."""

    def routes_changed(self, topic: str) -> None: ...
    def requested(
        self, connection: Connection, command: RemotingCommand
    ) -> Coroutine[Any, Any, RemotingCommand | None] | None:
        """A broker's request; None if it is not for this member."""


class Client:
    """A member of the cluster; see the head of this file. Start it inside a running event loop.

    `name_servers` is "host:port", several separated by `;` or `,`; when left out, the environment's NAMESRV_ADDR,
    then 127.0.0.1:9876. They are asked one after the other until one answers. An empty `instance_name` stands for one
    that no other client has; a child that starts what was made before the fork gets another one.
    """

    def __init__(
        self,
        name_servers: str | Iterable[str] | None = None,
        *,
        instance_name: str = "DEFAULT",
        client_ip: str | None = None,
        timeout_ms: int = 3000,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.name_servers = parse_name_servers(name_servers)
        self.instance_name = instance_name or unique_instance_name()
        self._renamed_in_child = not instance_name
        self.client_ip = client_ip or local_ip()
        self.timeout_s = timeout_ms / 1000
        self.routes: dict[str, TopicRoute] = {}
        self.brokers: dict[str, dict[int, str]] = {}
        """Broker name → broker id → address, from all routes seen."""
        self.pool = RemotePool(on_request=self._requested, tls=tls, on_connected=self._connected)
        self._members: list[Member] = []
        self._name_server = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._asking: dict[str, asyncio.Task[TopicRoute]] = {}
        self._greeting: dict[str, asyncio.Task[bool]] = {}
        self._greeted: set[str] = set()
        self._routes_unsettled = asyncio.Event()
        self._shrunk_until = 0.0
        self._users = 0
        self._pid = os.getpid()

    @property
    def client_id(self) -> str:
        """`ip@instance`, what brokers list and groups are divided by."""
        return f"{self.client_ip}@{self.instance_name}"

    # Life.

    async def start(self) -> Self:
        """May be called by several users; the last `stop` ends it."""
        if self._pid != os.getpid():
            # A forked child: everything that ran belongs to the parent, and so does a name that was made there. Members
            # of a group with the same name would all be given the same queues, and nobody the others.
            self._pid = os.getpid()
            if self._renamed_in_child:
                self.instance_name = unique_instance_name()
            self._users, self._tasks, self._asking, self._members = 0, set(), {}, []
            self._greeting, self._greeted = {}, set()
        self._users += 1
        if self._users == 1:
            self._routes_unsettled = asyncio.Event()  # of this loop; another one may come later
            self.spawn(self._keep_routes())
            self.spawn(self._keep_heartbeats())
        return self

    async def stop(self) -> None:
        """Ends when the last user stops: heartbeats end, connections are closed."""
        if self._users == 0 or self._pid != os.getpid():
            return
        self._users -= 1
        if self._users:
            return
        others = self._tasks - {asyncio.current_task()}  # a handler may be what stops us
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.pool.close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs `work` beside; it is cancelled by `stop`, and what it raises is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("background work failed", exc_info=task.exception())

    # Talking.

    async def invoke(self, address: str, command: RemotingCommand, timeout_s: float | None = None) -> RemotingCommand:
        """Sends a request to a broker or name server; a response that is not SUCCESS becomes its error."""
        reply = await self.pool.invoke(address, command, self.timeout_s if timeout_s is None else timeout_s)
        if reply.code != ResponseCode.SUCCESS:
            raise error_for(reply.code, reply.remark)
        return reply

    async def ask_host(
        self,
        queue: MessageQueue,
        make: Callable[[str], RemotingCommand],
        timeout_s: float | None = None,
        *,
        broker_id: int | None = None,
    ) -> RemotingCommand:
        """What the broker that has the queue answers, whatever its code; `make` is given that broker's name.

        A queue of a static topic that has moved is looked for at its new leader, for no longer than a request may take
        (the former one has done nothing). Only masters are asked unless `broker_id` says which is preferred.
        """
        now = asyncio.get_running_loop().time
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        end, patient_until = now() + timeout_s, now() + min(timeout_s, self.timeout_s)
        refused_by = ""
        while True:
            host = self.host(queue)
            if host.startswith(STATIC_BROKER) and now() + MOVING_WAIT_S <= patient_until:
                # The former leader has said that it is none, the new one has not said yet that it is.
                await asyncio.sleep(MOVING_WAIT_S)
                await self.route(queue.topic, fresh=True)
                continue
            address = self.master(host) if broker_id is None else self.any_of(host, broker_id)
            if refused_by == host:
                await asyncio.sleep(MOVING_WAIT_S)
            elif refused_by and not self.is_introduced(address):
                await self.introduce(address)  # brokers refuse offsets of groups they have never heard of
            reply = await self.pool.invoke(address, make(host), end - now())
            if reply.code != ResponseCode.NOT_LEADER_FOR_QUEUE or now() + MOVING_WAIT_S > patient_until:
                return reply
            refused_by = host
            await self.route(queue.topic, fresh=True)

    async def ask_name_servers(
        self, make: Callable[[], RemotingCommand], timeout_s: float | None = None
    ) -> RemotingCommand:
        """Asks one name server, the next ones when it cannot be reached; the first that answers is asked first from
        then on. `timeout_s` is for all of them together: a silent one leaves the others their share."""
        failure: AerobeeError | None = None
        now = asyncio.get_running_loop().time
        deadline = now() + (self.timeout_s if timeout_s is None else timeout_s)
        first, count = self._name_server, len(self.name_servers)
        for step in range(count):
            address = self.name_servers[(first + step) % count]
            try:
                return await self.invoke(address, make(), (deadline - now()) / (count - step))
            except (ConnectError, RequestTimeout) as error:
                _log.warning("name server %s: %s", address, error)
                failure = error
                self._name_server = first + step + 1  # the same for all that ask beside each other
        if failure is not None and count == 1:
            raise failure
        raise ConnectError(f"none of the name servers {', '.join(self.name_servers)} answers; the last: {failure}")

    # Routes.

    async def route(self, topic: str, *, fresh: bool = False) -> TopicRoute:
        """The route of an existing topic. Raises TopicNotExist, or ConnectError when no name server answers."""
        known = self.routes.get(topic)
        if known is not None and not known.guessed and not fresh:
            return known
        asking = self._asking.get(topic)
        if asking is None:
            self._asking[topic] = asking = asyncio.get_running_loop().create_task(self._ask_route(topic))
            asking.add_done_callback(lambda task: (self._asking.pop(topic, None), task.cancelled() or task.exception()))
        return await asyncio.shield(asking)

    async def publish_route(self, topic: str) -> TopicRoute:
        """The route to send by: for a topic that does not exist, that of the topic new ones are modelled on."""
        known = self.routes.get(topic)
        if known is not None:
            return known
        try:
            return await self.route(topic)
        except TopicNotExist as missing:
            try:
                reply = await self.ask_name_servers(lambda: route_request(DEFAULT_TOPIC))
            except ServerError:
                raise missing from None
            route = TopicRoute(topic, TopicRouteData.from_json(reply.body), guessed=True)
            if not route.write_queues:
                raise missing from None
            self._learn(route)
            return route

    async def _ask_route(self, topic: str) -> TopicRoute:
        reply = await self.ask_name_servers(lambda: route_request(topic))
        route = TopicRoute(topic, TopicRouteData.from_json(reply.body))
        self._learn(route)
        return route

    def _learn(self, route: TopicRoute) -> None:
        before = self.routes.get(route.topic)
        self.routes[route.topic] = route
        for name, addresses in route.brokers.items():
            if self.brokers.get(name) != addresses:
                self.brokers[name] = addresses
                self.greet(addresses.values())
        if before is not None and not before.brokers.keys() <= route.brokers.keys():
            self._shrunk_until = time.monotonic() + SHRUNK_MEMORY_S
            self._routes_unsettled.set()
        if route.guessed:
            self._routes_unsettled.set()
        if not route.same_queues(before):
            for member in self._members:
                member.routes_changed(route.topic)

    def forget_guess(self, topic: str) -> None:
        """A broker does not make the topic: what was guessed of it does not count any more."""
        known = self.routes.get(topic)
        if known is not None and known.guessed:
            del self.routes[topic]

    def host(self, queue: MessageQueue) -> str:
        """Name of the broker that has the queue, as far as is known; see `TopicRoute.host`."""
        route = self.routes.get(queue.topic)
        return queue.broker_name if route is None else route.host(queue)

    def master(self, broker_name: str) -> str:
        """Address of a broker's master. Raises ConnectError when none is known."""
        address = self.brokers.get(broker_name, {}).get(MASTER_ID)
        if address is None:
            raise ConnectError(f"no master of broker {broker_name} is known")
        return address

    def any_of(self, broker_name: str, broker_id: int = MASTER_ID) -> str:
        """Address of the wanted broker of a set, or of another one when that one is gone."""
        addresses = self.brokers.get(broker_name)
        if not addresses:
            raise ConnectError(f"broker {broker_name} is not known")
        return addresses.get(broker_id) or addresses.get(MASTER_ID) or next(iter(addresses.values()))

    async def _keep_routes(self) -> None:
        """Every 30 s; sooner when a broker has just gone and may come back. Topics about to be created are looked for
        in between."""
        refreshed = time.monotonic()
        while True:
            now = time.monotonic()
            due_s = refreshed + (ROUTE_SHRUNK_S if now < self._shrunk_until else ROUTE_INTERVAL_S) - now
            only_guessed = due_s > ROUTE_GUESSED_S and any(route.guessed for route in self.routes.values())
            self._routes_unsettled.clear()
            try:
                async with asyncio.timeout(ROUTE_GUESSED_S if only_guessed else due_s):
                    await self._routes_unsettled.wait()
            except TimeoutError:
                await self.refresh_routes(only_guessed=only_guessed)
                if not only_guessed:
                    refreshed = time.monotonic()

    async def refresh_routes(self, *, only_guessed: bool = False) -> None:
        """Asks again for every topic in use; failures are logged and the old route stays."""
        topics = {topic for member in self._members for topic in member.topics()} | set(self.routes)
        for topic in sorted(topics):
            known = self.routes.get(topic)
            if only_guessed and not (known and known.guessed):
                continue
            try:
                await self.route(topic, fresh=True)
            except TopicNotExist:
                pass  # not created yet, or deleted: the next send or rebalance says so where it matters
            except AerobeeError as error:
                _log.warning("route of %s not refreshed: %s", topic, error)
                return

    # Members and heartbeats.

    def join(self, member: Member) -> None:
        """Adds a producer or consumer to the heartbeats."""
        self._members.append(member)

    def leave(self, member: Member) -> None:
        """Takes it out again."""
        if member in self._members:
            self._members.remove(member)

    def heartbeat(self) -> RemotingCommand:
        """What this client says about itself to every broker."""
        producers: list[ProducerData] = []
        consumers: list[ConsumerData] = []
        for member in self._members:
            data = member.heartbeat_data()
            if isinstance(data, ProducerData):
                producers.append(data)
            else:
                consumers.append(data)
        body = HeartbeatData(client_id=self.client_id, producer_data_set=producers, consumer_data_set=consumers)
        return RemotingCommand.request(RequestCode.HEART_BEAT, body=body.to_json())

    async def heartbeat_all(self) -> None:
        """Tells every known broker now; those that do not answer are logged and told again at the next turn."""
        addresses = {address for by_id in self.brokers.values() for address in by_id.values()}
        if self._members:
            under_way = list(self._greeting.values())  # they may say what was true a moment ago
            await asyncio.gather(*under_way, return_exceptions=True)
            await asyncio.gather(*(self.introduce(address) for address in sorted(addresses)))

    def greet(self, addresses: Iterable[str]) -> None:
        """Heartbeats to these brokers, beside."""
        if self._members:
            for address in addresses:
                self._introducing(address)

    async def introduce(self, address: str) -> bool:
        """Connects and heartbeats to a broker; whether it answered. Several callers wait for the same attempt."""
        return await asyncio.shield(self._introducing(address))

    def is_introduced(self, address: str) -> bool:
        """Whether a broker has answered a heartbeat of this client."""
        return address in self._greeted

    def _introducing(self, address: str) -> asyncio.Task[bool]:
        task = self._greeting.get(address)
        if task is None:
            self._greeting[address] = task = self.spawn(self._introduce(address))
            task.add_done_callback(lambda _: self._greeting.pop(address, None))
        return task

    async def _introduce(self, address: str) -> bool:
        try:
            await self.invoke(address, self.heartbeat())
        except AerobeeError as error:
            _log.warning("heartbeat to %s: %s", address, error)
            return False
        self._greeted.add(address)
        return True

    def _connected(self, address: str) -> None:
        """A broker forgets a client with its connection: introduce ourselves again."""
        if address in self._greeted and address not in self.name_servers:
            self.greet([address])

    async def _keep_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
            await self.heartbeat_all()

    # What brokers ask us.

    def _requested(self, connection: Connection, command: RemotingCommand) -> None:
        for member in self._members:
            work = member.requested(connection, command)
            if work is not None:
                self.spawn(self._answer(connection, command, work))
                return
        if not command.is_oneway:
            connection.send(
                command.reply(
                    ResponseCode.REQUEST_CODE_NOT_SUPPORTED, remark=f"no member here answers request {command.code}"
                )
            )

    async def _answer(
        self, connection: Connection, command: RemotingCommand, work: Coroutine[Any, Any, RemotingCommand | None]
    ) -> None:
        try:
            reply = await work
        except Exception as error:
            _log.exception("request %d of %s failed", command.code, connection.peer)
            reply = command.reply(ResponseCode.SYSTEM_ERROR, remark=repr(error))
        if reply is not None and not command.is_oneway:
            connection.send(reply)


def route_request(topic: str) -> RemotingCommand:
    command = RemotingCommand.request(RequestCode.GET_ROUTEINFO_BY_TOPIC)
    command.ext_fields = {"topic": topic, "acceptStandardJsonOnly": "true"}
    return command


def parse_name_servers(text: str | Iterable[str] | None) -> list[str]:
    """ "a:9876;b:9876" → a list; nothing → NAMESRV_ADDR, then loopback. Raises ValueError for what is not host:port."""
    if text is None:
        text = os.environ.get("NAMESRV_ADDR") or DEFAULT_NAME_SERVERS
    parts = text.replace(",", ";").split(";") if isinstance(text, str) else list(text)
    addresses = [part.strip() for part in parts if part.strip()]
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"{address!r} is not a name server address; host:port is expected, several joined by ';'")
    if not addresses:
        raise ValueError("no name server given")
    return addresses


def local_ip() -> str:
    """The address this machine uses towards others, as the official clients choose it; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address: only the routing table is asked
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def unique_instance_name() -> str:
    """A name no other client has: members of a group must differ."""
    return f"{os.getpid()}#{time.monotonic_ns()}"
