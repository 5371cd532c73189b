"""`Producer`: sends messages and hears where they went.

    async with Producer("127.0.0.1:9876", group="shop") as producer:
        result = await producer.send(Message("orders", b"42", tag="new", keys=["order-42"]))

* `send` waits for the broker's word and tries other brokers when that helps.
* `post` hands back a future and keeps many sends under way on one connection; the fastest way to send.
* `send_oneway` does not wait for anything: no result, no retry.
* `send_batch` sends several messages of one topic as one request.

A message that was acknowledged is stored. A send that failed with RequestTimeout or ConnectError may have been stored
all the same, and a retry after one of them may store it twice: consumers tell by `message.unique_id`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import zlib
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, Protocol, Self

from aerobee.client.calls import sending_request, sent, unregister
from aerobee.client.client import STATIC_BROKER, Client, TopicRoute
from aerobee.client.results import SendResult
from aerobee.errors import AerobeeError, ConnectError, RequestTimeout, ServerError, TopicNotExist
from aerobee.net.connection import Connection
from aerobee.protocol import message as wire
from aerobee.protocol.bodies.client import ProducerData
from aerobee.protocol.codes import ResponseCode
from aerobee.protocol.command import FLAG_ONEWAY, RemotingCommand
from aerobee.protocol.message import Message, MessageQueue, java_hash

_log = logging.getLogger("aerobee.client.producer")

QueueSelector = Callable[[Sequence[MessageQueue], Message], MessageQueue]
"""Chooses one of a topic's queues (sorted by broker name and queue id) for a message."""

RETRYABLE: Final = frozenset(
    {
        ResponseCode.SYSTEM_ERROR,
        ResponseCode.SYSTEM_BUSY,
        ResponseCode.SERVICE_NOT_AVAILABLE,
        ResponseCode.NO_PERMISSION,
        ResponseCode.TOPIC_NOT_EXIST,
        ResponseCode.NO_BUYER_ID,
        ResponseCode.NOT_IN_CURRENT_UNIT,
        ResponseCode.GO_AWAY,
        ResponseCode.NOT_LEADER_FOR_QUEUE,
    }
)
"""Refusals that another broker may not repeat: the official clients' list, and a queue that moves for too long."""

NEW_TOPIC_WAIT_S: Final = 0.05
"""Between two questions for a topic that a broker has just made: it tells the name servers within milliseconds."""
AVOID_S: Final = 5.0
"""How long a broker that could not be reached is left out while others are there."""
POSTS_A_TURN: Final = 64
"""So many posts in a row, then the loop's other tasks have their turn and the requests leave."""
COMPRESS_IN_THREAD_BYTES: Final = 64 * 1024
"""Bodies above this are compressed outside of the event loop's thread: 64 KiB take about a millisecond."""
BATCH_IN_THREAD_MESSAGES: Final = 128
BATCH_IN_THREAD_BYTES: Final = 1024 * 1024
"""Batches above either are put together outside of the event loop's thread: so many messages take a millisecond."""
ZLIB_LEVEL: Final = 5
SYS_FLAG_COMPRESSED_ZLIB: Final = 0x1 | 0x300
STOPPED: Final = "the producer was stopped before the message had its answer"
ROOM: Final = ""
"""The line of those that `in_flight_max` holds up; no topic is called so."""
BATCHES: Final = " "
"""Begins the name of a line of batches that are put together, which its topic ends."""

_Body = tuple[bytes, int]
"""As it travels, with its system flag."""
_Turns = dict[str | MessageQueue, asyncio.Future[None]]
"""Who came last, in each line that there is: of a topic, of a queue, for room."""


class Producer:
    """Sends messages; see the head of this file.

    `name_servers`: "host:port", several joined by `;`. `group` names who sends, for tools and statistics; transactional
    messages are not sent from here. `retry_times`: how many further attempts a `send` or `post` makes. `timeout_ms` is
    the time for all of them together. `compress_above_bytes`: longer bodies travel and are stored compressed.
    `in_flight_max`: how many `post`s may be unanswered before the next one waits. One producer serves any number of
    tasks, and all of its sends share a connection a broker.
    """

    def __init__(
        self,
        name_servers: str | Sequence[str] | None = None,
        *,
        group: str = "DEFAULT_PRODUCER",
        timeout_ms: int = 3000,
        retry_times: int = 2,
        compress_above_bytes: int = 4096,
        body_bytes_max: int = 4 * 1024 * 1024,
        in_flight_max: int = 4096,
        instance_name: str = "",
        client: Client | None = None,
    ) -> None:
        wire.check_group(group)
        self.group = group
        self.client = client or Client(name_servers, instance_name=instance_name)
        self._timeout_s = timeout_ms / 1000
        self._attempts = retry_times + 1
        self._compress_above_bytes = compress_above_bytes
        self._body_bytes_max = body_bytes_max
        self._in_flight_max = in_flight_max
        self._in_flight = 0
        self._posts = 0
        self._room: asyncio.Event | None = None
        self._turns: _Turns = {}
        self._turn: dict[str, int] = {}
        self._avoid: dict[str, float] = {}
        self._started = False
        self._closed = False
        self._tasks: set[asyncio.Task[SendResult | None]] = set()
        self._seen: set[str] = set()
        self._spread = _Spread(self)

    # Life.

    async def start(self) -> Self:
        """Starts heartbeats; connections are made when first needed. `async with` does it for you."""
        if not self._started:
            await self.client.start()
            self.client.join(self)
            self._started, self._closed = True, False
            self._in_flight, self._room, self._turns, self._tasks = 0, None, {}, set()
            self._seen.clear()
        return self

    async def stop(self) -> None:
        """Waits for what is under way, says goodbye to the brokers, closes the connections."""
        if not self._started:
            return
        self._started = False
        try:
            try:
                await self.flush()
            finally:
                self.client.leave(self)
            addresses = set(self.client.pool.connected) - set(self.client.name_servers)
            await asyncio.gather(
                *(unregister(self.client, address, producer_group=self.group) for address in addresses),
                return_exceptions=True,
            )
        finally:  # also when it is cancelled: what has no answer yet gets none
            self._closed = True
            for task in self._tasks:
                task.cancel()
            await self.client.stop()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # Sending.

    async def send(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        sharding_key: str | None = None,
        selector: QueueSelector | None = None,
        timeout_ms: int | None = None,
    ) -> SendResult:
        """Sends and waits until the broker has stored the message.

        `queue` sends to exactly that one. `sharding_key`: messages with the same key go to the same queue, and so
        keep their order (the queue changes when the number of queues does). `selector` chooses freely. With any of
        the three no other broker is tried. Raises ServerError (what the broker said), RequestTimeout, ConnectError,
        ValueError.
        """
        self._check(message)
        deadline = self._deadline(timeout_ms)
        return await self._send(message, self._chooser(message, queue, sharding_key, selector), deadline)

    async def post(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        sharding_key: str | None = None,
        selector: QueueSelector | None = None,
        timeout_ms: int | None = None,
    ) -> asyncio.Future[SendResult]:
        """Sends without waiting for the answer: the future has it, or the error, later.

        Returns when the message is on its way, which takes a moment only while `in_flight_max` others are unanswered or
        longer messages in front of it are compressed, and up to half of `timeout_ms` while its broker does not read.
        Messages to the same queue arrive in the order of the calls unless one has to be retried.
        """
        self._check(message)
        if self._in_flight >= self._in_flight_max or ROOM in self._turns:
            async with _Turn(self._turns, ROOM):
                while self._in_flight >= self._in_flight_max:
                    await self._less_in_flight()
            self._check_open()
        self._in_flight += 1
        loop = asyncio.get_running_loop()
        out: asyncio.Future[SendResult] = loop.create_future()
        out.add_done_callback(self._landed)
        timeout_s = self._timeout_s if timeout_ms is None else timeout_ms / 1000
        deadline = loop.time() + timeout_s
        try:
            choose = self._chooser(message, queue, sharding_key, selector)
            body = None
            packing: asyncio.Future[_Body] | None = None
            if len(message.body) > self._compress_above_bytes:
                if len(message.body) > COMPRESS_IN_THREAD_BYTES:
                    packing = loop.run_in_executor(None, _packed, message.body)
                else:
                    body = _packed(message.body)
            turns, turn, work = self._turns, None, None
            route = self.client.routes.get(message.topic)
            if route is None or route.hosts or not route.write_queues or (turns and message.topic in turns):
                turn = _Turn(turns, message.topic)
                work = self._post_to_topic(_Posted(message, choose, deadline, out, body, packing), turn)
            else:
                chosen = choose(route, message, "")
                waits = packing is not None or (turns and chosen in turns)
                connection = None if waits else self._open_connection(chosen)
                if connection is not None:
                    self._request(connection, route, chosen, message, choose, timeout_s, deadline, out, body)
                else:
                    turn = _Turn(turns, chosen)
                    work = self._post_to_queue(
                        _Posted(message, choose, deadline, out, body, packing), route, chosen, turn
                    )
            if work is not None:
                if packing is None:
                    await work
                else:
                    self._beside(work, out, turn)
            self._posts += 1
            if self._posts % POSTS_A_TURN == 0:
                await asyncio.sleep(0)  # behind this message: none comes in between
        except BaseException:
            out.cancel()  # nobody waits for it, and `flush` should not
            raise
        return out

    async def send_oneway(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        sharding_key: str | None = None,
        selector: QueueSelector | None = None,
    ) -> None:
        """Sends and forgets: nobody learns whether it arrived. Raises only when there is no route, or no connection to
        send on, within the producer's `timeout_ms`."""
        self._check(message)
        choose = self._chooser(message, queue, sharding_key, selector)
        deadline = self._deadline(None)
        route = await self._route(message.topic, self._timeout_s)
        chosen = choose(route, message, "")
        host = route.host(chosen)
        command = self._command(message, chosen, *await self._body(message), host)
        command.flag |= FLAG_ONEWAY
        remaining_s = deadline - asyncio.get_running_loop().time()
        await self.client.pool.oneway(self.client.master(host), command, remaining_s)

    async def send_batch(
        self,
        messages: Iterable[Message],
        *,
        queue: MessageQueue | None = None,
        sharding_key: str | None = None,
        timeout_ms: int | None = None,
    ) -> SendResult:
        """Sends messages of one topic as one request, into one queue, all or nothing; up to `body_bytes_max` together.

        Delayed messages and those to retry topics cannot be batched (ValueError).
        """
        messages = list(messages)
        if not messages:
            raise ValueError("a batch needs at least one message")
        self._check_started()
        deadline = self._deadline(timeout_ms)
        choose = self._chooser(messages[0], queue, sharding_key, None)
        line = BATCHES + messages[0].topic
        many = len(messages) > BATCH_IN_THREAD_MESSAGES
        if many or line in self._turns or sum(len(m.body) for m in messages) > BATCH_IN_THREAD_BYTES:
            async with _Turn(self._turns, line):
                batch = await asyncio.to_thread(self._batch, messages)
        else:
            batch = self._batch(messages)
        return await self._send(batch, choose, deadline)

    async def flush(self) -> None:
        """Returns when every `post` has its answer."""
        while self._in_flight or ROOM in self._turns:
            if self._in_flight:
                await self._less_in_flight()
            else:
                await asyncio.sleep(0)  # those in line take the room now

    async def queues(self, topic: str) -> list[MessageQueue]:
        """The queues of a topic that can be sent to. Raises TopicNotExist."""
        return list((await self.client.route(topic)).write_queues)

    # How.

    def _deadline(self, timeout_ms: int | None) -> float:
        """In loop time."""
        timeout_s = self._timeout_s if timeout_ms is None else timeout_ms / 1000
        return asyncio.get_running_loop().time() + timeout_s

    def _batch(self, messages: Sequence[Message]) -> Message:
        for message in messages:
            message.check(self._body_bytes_max)
        batch = wire.batch_of(messages)
        if len(batch.body) > self._body_bytes_max:
            raise ValueError(
                f"the batch has {len(batch.body)} bytes, the limit is {self._body_bytes_max}; send it in parts"
            )
        return batch

    async def _post_to_topic(self, posted: _Posted, turn: _Turn) -> None:
        """A message whose queue cannot be chosen yet, and those to its topic behind it."""
        now = asyncio.get_running_loop().time
        async with turn:
            self._check_open()
            route = await self._route_or_none(posted.message.topic, posted.deadline - now())
            if route is None or route.hosts:  # queues that move may be somewhere else: `_send` looks there
                await posted.pack()
                self._send_beside(posted)
                return
            chosen = posted.choose(route, posted.message, "")
            turn_at_queue = _Turn(self._turns, chosen)
        await self._post_to_queue(posted, route, chosen, turn_at_queue)

    async def _post_to_queue(self, posted: _Posted, route: TopicRoute, chosen: MessageQueue, turn: _Turn) -> None:
        """A message whose body or connection has to be waited for, and those to its queue behind it."""
        now = asyncio.get_running_loop().time
        connection = None
        async with turn:
            await posted.pack()
            if posted.out.done():
                return  # cancelled by its owner
            self._check_open()
            if not chosen.broker_name.startswith(STATIC_BROKER):  # nobody leads it at the moment
                try:
                    connection = await self._connection(chosen.broker_name, (posted.deadline - now()) / 2)
                except TimeoutError:
                    self._avoid[chosen.broker_name] = now() + AVOID_S
            if connection is None:
                self._send_beside(posted)
            else:
                self._request(
                    connection, route, chosen, posted.message, posted.choose, posted.deadline - now(), posted.deadline,
                    posted.out, posted.body,
                )  # fmt: skip

    def _request(
        self, connection: Connection, route: TopicRoute, queue: MessageQueue, message: Message, choose: _Chooser,
        remaining_s: float, deadline: float, out: asyncio.Future[SendResult], body: _Body | None,
    ) -> None:  # fmt: skip
        """Writes a posted message."""
        command = self._command(message, queue) if body is None else self._command(message, queue, *body)
        if route.has_others and choose.may_retry and self._attempts > 1:
            remaining_s /= 2  # the other half is for another broker
        reply = connection.request(command, remaining_s)
        reply.add_done_callback(lambda reply: self._answered(reply, out, message, queue, choose, deadline, body))

    def _send_beside(self, posted: _Posted) -> None:
        if not posted.out.done():
            work = self._send(posted.message, posted.choose, posted.deadline, body=posted.body)
            self._beside(work, posted.out)

    def _beside(
        self, work: Coroutine[Any, Any, SendResult | None], out: asyncio.Future[SendResult], turn: _Turn | None = None
    ) -> None:
        """Does a posted message's work, or what is left of it, in a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda task: _copy(task, out, self._closed))
        if turn is not None:
            task.add_done_callback(turn.leave)  # also when it has not begun

    async def _send(
        self, message: Message, choose: _Chooser, deadline: float, failed_at: str = "", body: _Body | None = None
    ) -> SendResult:
        loop = asyncio.get_running_loop()
        attempts = self._attempts if choose.may_retry else 1
        failures: list[str] = []
        body = body or await self._body(message)
        error: AerobeeError
        for attempt in range(1, attempts + 1):
            route = await self._route(message.topic, deadline - loop.time())
            chosen = choose(route, message, failed_at)
            host = route.host(chosen)
            remaining_s = deadline - loop.time()
            # A silent broker must not eat the time in which another one could take the message.
            others = attempt < attempts and route.has_others
            try:
                if remaining_s <= 0:
                    raise RequestTimeout("no time left")
                reply = await self.client.ask_host(
                    chosen,
                    functools.partial(self._command, message, chosen, *body),
                    remaining_s / 2 if others else remaining_s,
                )
                return self._stored(reply, chosen, message)
            except ServerError as refused:
                error = refused
                if self._guessed_wrong(route, refused) and await self._exists(message.topic, deadline):
                    return await self._send(message, choose, deadline, failed_at, body)
                if refused.code not in RETRYABLE:
                    raise
            except (ConnectError, RequestTimeout) as broken:
                error = broken
                self._avoid[host] = loop.time() + AVOID_S
            failed_at = host
            failures.append(f"{host}: {error}")
            if deadline - loop.time() <= 0:
                break
        if isinstance(error, TopicNotExist):
            self.client.forget_guess(message.topic)
        if len(failures) > 1:
            error.add_note(f"not sent in {len(failures)} attempts: {'; '.join(failures)}")
        raise error

    def _answered(
        self, reply: asyncio.Future[RemotingCommand], out: asyncio.Future[SendResult], message: Message, queue:
        MessageQueue, choose: _Chooser, deadline: float, body: _Body | None,
    ) -> None:  # fmt: skip
        """A posted message has its answer: hand it on, or try elsewhere."""
        if out.done():
            return  # cancelled by its owner
        if reply.cancelled():
            out.cancel()
            return
        error = reply.exception()
        if error is None:
            try:
                out.set_result(self._stored(reply.result(), queue, message))
                return
            except ServerError as refused:
                error = refused
        now = asyncio.get_running_loop().time()
        retry = choose.may_retry and self._attempts > 1
        failed_at = queue.broker_name
        if not isinstance(error, ServerError):
            self._avoid[queue.broker_name] = now + AVOID_S
        elif self._guessed_wrong(self.client.routes.get(message.topic), error):
            retry, failed_at = True, ""  # asked again the same way, and then it finds out
        else:
            retry = retry and error.code in RETRYABLE
        if not retry or now >= deadline or not self._started:
            if isinstance(error, TopicNotExist):
                self.client.forget_guess(message.topic)
            out.set_exception(error)
            return
        self._beside(self._send(message, choose, deadline, failed_at, body), out)

    def _guessed_wrong(self, route: TopicRoute | None, refused: ServerError) -> bool:
        """Whether the topic has been made since its queues were guessed, with fewer of them."""
        return route is not None and route.guessed and refused.code == ResponseCode.INVALID_PARAMETER

    async def _exists(self, topic: str, deadline: float) -> bool:
        """Waits until the name server knows a topic that a broker has."""
        while True:
            try:
                await self.client.route(topic, fresh=True)
                return True
            except TopicNotExist:
                if asyncio.get_running_loop().time() + NEW_TOPIC_WAIT_S >= deadline:
                    return False
                await asyncio.sleep(NEW_TOPIC_WAIT_S)

    def _stored(self, reply: RemotingCommand, queue: MessageQueue, message: Message) -> SendResult:
        ids = ",".join(message.batch_ids) if message.batch_ids else message.unique_id
        result = sent(reply, queue, ids)
        if message.topic not in self._seen:
            self._seen.add(message.topic)
            self.client.greet(self.client.brokers.get(self.client.host(queue), {}).values())
        return result

    def _command(
        self, message: Message, queue: MessageQueue, body: bytes | None = None, sys_flag: int = 0, host: str = ""
    ) -> RemotingCommand:
        times, times_max = "0", None
        if message.topic.startswith(wire.RETRY_TOPIC_PREFIX):
            times = message.properties.get(wire.PROPERTY_RECONSUME_TIME, "0")
            times_max = message.properties.get(wire.PROPERTY_MAX_RECONSUME_TIMES)
        return sending_request(
            self.group, queue, message.body if body is None else body, message.encode_properties(), flag=message.flag,
            sys_flag=sys_flag, batch=bool(message.batch_ids), reconsume_times=times, max_reconsume_times=times_max,
            host=host,
        )  # fmt: skip

    async def _body(self, message: Message) -> _Body:
        if len(message.body) <= self._compress_above_bytes or message.batch_ids:
            return message.body, 0
        if len(message.body) > COMPRESS_IN_THREAD_BYTES:
            return await asyncio.to_thread(_packed, message.body)
        return _packed(message.body)

    def _open_connection(self, queue: MessageQueue) -> Connection | None:
        """One that can be written to at once. Raises ConnectError for a broker that nobody knows."""
        if queue.broker_name.startswith(STATIC_BROKER):
            return None
        connection = self.client.pool.remote(self.client.master(queue.broker_name)).connection
        return None if connection is None or connection.blocked or connection.closed else connection

    async def _connection(self, broker_name: str, timeout_s: float) -> Connection | None:
        """A connection to the broker that can be written to now; None when there is none to be had. Raises TimeoutError
        when the broker is silent for so long."""
        address = self.client.master(broker_name)
        remote = self.client.pool.remote(address)
        connection = remote.connection
        if connection is None or connection.closed:
            if broker_name in self._avoid:
                return None
            async with asyncio.timeout(timeout_s):
                if not await self.client.introduce(address):
                    return None
            connection = remote.connection
        if connection is not None and connection.blocked:
            async with asyncio.timeout(timeout_s):
                await connection.writable()
        return None if connection is None or connection.closed else connection

    async def _route_or_none(self, topic: str, timeout_s: float) -> TopicRoute | None:
        try:
            return await self._route(topic, timeout_s)
        except AerobeeError:
            return None  # asked again where it can be reported

    async def _route(self, topic: str, timeout_s: float) -> TopicRoute:
        known = self.client.routes.get(topic)
        if known is not None and known.write_queues:
            return known
        try:
            async with asyncio.timeout(timeout_s):
                route = await self.client.publish_route(topic)
                if not route.write_queues:
                    route = await self.client.route(topic, fresh=True)
        except RequestTimeout:
            raise  # a name server's
        except TimeoutError:
            raise RequestTimeout(f"no name server has told the route of topic {topic} in {timeout_s:.3g} s") from None
        if not route.write_queues:
            raise ConnectError(f"topic {topic} has no queue that can be written to")
        return route

    def _chooser(
        self, message: Message, queue: MessageQueue | None, sharding_key: str | None, selector: QueueSelector | None
    ) -> _Chooser:
        if queue is None and sharding_key is None and selector is None:
            sharding_key = message.properties.get(wire.PROPERTY_SHARDING_KEY)
            if sharding_key is None:
                return self._spread
        if sum(given is not None for given in (queue, sharding_key, selector)) > 1:
            raise ValueError("give one of queue, sharding_key and selector")
        if queue is not None and queue.topic != message.topic:
            raise ValueError(f"a message to {message.topic} cannot be sent to a queue of {queue.topic}")
        return _Fixed(queue, sharding_key, selector)

    def _next_queue(self, route: TopicRoute, failed_at: str) -> MessageQueue:
        """Round robin over the queues, past the broker that just failed and those that lately could not be reached."""
        queues = route.write_queues
        turn = self._turn.get(route.topic)
        if turn is None:
            turn = random.randrange(len(queues))  # many producers start together: not all on the first queue
        self._turn[route.topic] = turn + 1
        if not failed_at and not self._avoid:
            return queues[turn % len(queues)]
        now = asyncio.get_running_loop().time()
        for broker in [broker for broker, until in self._avoid.items() if until <= now]:
            del self._avoid[broker]
        for avoided in ({failed_at, *self._avoid}, {failed_at}):
            for step in range(len(queues)):
                queue = queues[(turn + step) % len(queues)]
                if route.host(queue) not in avoided:
                    self._turn[route.topic] = turn + step + 1
                    return queue
        return queues[turn % len(queues)]

    def _check(self, message: Message) -> None:
        self._check_started()
        message.check(self._body_bytes_max)
        message.give_unique_id()

    def _check_started(self) -> None:
        if not self._started:
            raise ConnectError("the producer is not started; use `async with Producer(...)`, or call start()")

    def _check_open(self) -> None:
        """For those that have waited: a stop waits for them too, unless it is cancelled."""
        if self._closed:
            raise ConnectError(STOPPED)

    async def _less_in_flight(self) -> None:
        if self._room is None:
            self._room = asyncio.Event()
        self._room.clear()
        await self._room.wait()

    def _landed(self, _: object) -> None:
        self._in_flight -= 1
        if self._room is not None:
            self._room.set()

    # What the client asks of its members.

    def heartbeat_data(self) -> ProducerData:
        """What the heartbeat says about this member."""
        return ProducerData(group_name=self.group)

    def topics(self) -> Iterable[str]:
        """Topics whose routes are kept fresh."""
        return ()  # those in use are in the client's routes

    def routes_changed(self, topic: str) -> None:
        """A topic's queues changed."""
        pass  # looked up anew for each message

    def requested(self, connection: Connection, command: RemotingCommand) -> None:
        """A broker's request; None if it is not for this member."""
        return None


class _Turn:
    """`async with _Turn(turns, key):` goes through one after the other, in the order in which the turns were made."""

    __slots__ = ("_before", "_key", "_mine", "_turns")

    def __init__(self, turns: _Turns, key: str | MessageQueue) -> None:
        self._turns = turns
        self._key = key
        self._before = turns.get(key)
        self._mine = turns[key] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> None:
        if self._before is not None:
            try:
                await asyncio.wait((self._before,))
            except BaseException:
                self.leave()
                raise

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self, _: object = None) -> None:
        """Ends it; who gives up while waiting leaves those behind to wait for those in front."""
        if self._before is not None and not self._before.done():
            self._before.add_done_callback(self._end)
        else:
            self._end()

    def _end(self, _: object = None) -> None:
        if not self._mine.done():
            if self._turns.get(self._key) is self._mine:
                del self._turns[self._key]
            self._mine.set_result(None)


class _Posted:
    """A posted message that waits for something."""

    __slots__ = ("_packing", "body", "choose", "deadline", "message", "out")

    def __init__(
        self, message: Message, choose: _Chooser, deadline: float, out: asyncio.Future[SendResult], body: _Body | None,
        packing: asyncio.Future[_Body] | None,
    ) -> None:  # fmt: skip
        self.message = message
        self.choose = choose
        self.deadline = deadline
        self.out = out
        self.body = body
        self._packing = packing

    async def pack(self) -> None:
        """Returns when `body` is as it travels."""
        if self._packing is not None:
            self.body = await self._packing


class _Chooser(Protocol):
    may_retry: bool

    def __call__(self, route: TopicRoute, message: Message, failed_at: str) -> MessageQueue: ...


class _Spread:
    """Any queue will do."""

    may_retry = True

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    def __call__(self, route: TopicRoute, message: Message, failed_at: str) -> MessageQueue:
        return self._producer._next_queue(route, failed_at)


class _Fixed:
    """The caller said which."""

    may_retry = False

    def __init__(self, queue: MessageQueue | None, sharding_key: str | None, selector: QueueSelector | None) -> None:
        self._queue = queue
        self._sharding_key = sharding_key
        self._selector = selector

    def __call__(self, route: TopicRoute, message: Message, failed_at: str) -> MessageQueue:
        if self._queue is not None:
            return self._queue
        if self._sharding_key is not None:
            return route.write_queues[abs(java_hash(self._sharding_key)) % len(route.write_queues)]
        assert self._selector is not None
        chosen = self._selector(route.write_queues, message)
        if not isinstance(chosen, MessageQueue) or chosen.topic != message.topic:
            raise ValueError(f"the selector returned {chosen!r}, which is not a queue of {message.topic}")
        return chosen


def _packed(body: bytes) -> _Body:
    packed = zlib.compress(body, ZLIB_LEVEL)
    return (packed, SYS_FLAG_COMPRESSED_ZLIB) if len(packed) < len(body) else (body, 0)


def _copy(task: asyncio.Task[SendResult | None], out: asyncio.Future[SendResult], stopped: bool) -> None:
    """The task's end becomes the future's; None: somebody else has been given the future."""
    if out.done():
        return
    if task.cancelled() and not stopped:
        out.cancel()
    elif task.cancelled():
        out.set_exception(ConnectError(STOPPED))
    elif (error := task.exception()) is not None:
        out.set_exception(error)
    elif (result := task.result()) is not None:
        out.set_result(result)
