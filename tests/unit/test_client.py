"""The client without a cluster: addresses, routes, choosing queues, and how it says that nobody is there."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from in_process import one_broker

from aerobee import (
    ConnectError,
    ConsumeFrom,
    Consumer,
    Message,
    Producer,
    PullConsumer,
    RequestTimeout,
    SendResult,
    ServerError,
    sync,
)
from aerobee.broker.options import BrokerOptions
from aerobee.broker.server import Broker
from aerobee.client import calls
from aerobee.client import client as client_module
from aerobee.client.client import Client, TopicRoute, parse_name_servers
from aerobee.errors import TopicNotExist
from aerobee.nameserver.options import NameServerOptions
from aerobee.nameserver.server import NameServer
from aerobee.protocol import message as wire
from aerobee.protocol.bodies.route import BrokerData, QueueData, TopicQueueMappingInfo, TopicRouteData
from aerobee.protocol.bodies.topics import TopicConfig
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.message import MessageQueue, java_hash
from aerobee.testing import eventually


def route(*brokers: str, queues: int = 2, masters: bool = True) -> TopicRoute:
    data = TopicRouteData(
        queue_datas=[
            QueueData(broker_name=b, read_queue_nums=queues, write_queue_nums=queues, perm=6) for b in brokers
        ],
        broker_datas=[BrokerData(broker_name=b, broker_addrs={0 if masters else 1: f"{b}:1"}) for b in brokers],
    )
    return TopicRoute("t", data)


def test_name_servers() -> None:
    assert parse_name_servers("a:1;b:2, c:3") == ["a:1", "b:2", "c:3"]
    assert parse_name_servers(["a:1", "b:2"]) == ["a:1", "b:2"]
    for wrong in ("a", "a:b", ";"):
        with pytest.raises(ValueError, match="name server"):
            parse_name_servers(wrong)


def test_name_servers_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAMESRV_ADDR", "x:9")
    assert parse_name_servers(None) == ["x:9"]
    monkeypatch.delenv("NAMESRV_ADDR")
    assert parse_name_servers(None) == ["127.0.0.1:9876"]


def test_a_broker_set_without_a_master_is_read_and_not_written() -> None:
    slaves = route("b", masters=False)
    assert slaves.write_queues == [] and len(slaves.read_queues) == 2


def test_queues_are_in_the_order_all_clients_agree_on() -> None:
    assert route("b", "a").write_queues == [MessageQueue("t", b, i) for b in "ab" for i in (0, 1)]


def test_a_static_topics_queues_are_where_the_newest_epoch_says() -> None:
    # Claim: as in the official clients, queue by queue the broker with the newest word leads; who leads none is found
    # nowhere, and counts all the same; how many physical queues a broker has does not matter.
    def mapped(broker: str, epoch: int, led: dict[int, int], *, scope: str = "__global__") -> TopicQueueMappingInfo:
        return TopicQueueMappingInfo(topic="t", bname=broker, epoch=epoch, total_queues=4, curr_id_map=led, scope=scope)

    def static(*infos: TopicQueueMappingInfo) -> TopicRoute:
        data = TopicRouteData(
            queue_datas=[QueueData(broker_name=b, read_queue_nums=9, write_queue_nums=9, perm=6) for b in "ab"],
            broker_datas=[BrokerData(broker_name=b, broker_addrs={0: f"{b}:1"}) for b in "ab"],
            topic_queue_mapping_by_broker={info.bname: info for info in infos},
        )
        return TopicRoute("t", data)

    before = static(mapped("a", 7, {0: 0, 1: 1, 9: 9}), mapped("b", 5, {1: 0, 2: 2}))
    queues = [MessageQueue("t", "__syslo__global__", i) for i in range(4)]
    assert before.write_queues == before.read_queues == queues
    assert [before.host(queue) for queue in queues] == ["a", "a", "b", "__syslo__global__"]
    after = static(mapped("a", 7, {0: 0}), mapped("b", 8, {1: 0, 2: 2, 3: 3}))
    assert [after.host(queue) for queue in queues] == ["a", "b", "b", "b"]
    assert not after.same_queues(before)
    again = static(mapped("b", 8, {3: 3, 2: 2, 1: 0}), mapped("a", 7, {0: 0}))
    assert again.same_queues(after)
    scoped = static(mapped("a", 1, {0: 0}, scope="east"))
    assert scoped.host(MessageQueue("t", "__syslo__east", 0)) == "a" and len(scoped.read_queues) == 4
    ordinary = MessageQueue("t", "a", 0)
    assert not route("a").hosts and route("a").host(ordinary) == "a"


async def test_a_queue_that_moved_is_asked_for_where_the_route_says_now(monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: a refusal of the former leader costs a look at the route, and the new one is told who asks before it is
    # asked; while no route names a new one, the refusal is the answer, within the time of a request. A moment in which
    # nobody leads the queue is waited through.
    client = Client("names:1", timeout_ms=300)
    queue = MessageQueue("t", "__syslo__global__", 0)
    leader, nobody_for, said = "a", 0, list[tuple[str, int]]()

    async def invoke(address: str, command: RemotingCommand, timeout_s: float) -> RemotingCommand:
        await asyncio.sleep(0.01)
        said.append((address, command.code))
        if command.code == RequestCode.GET_ROUTEINFO_BY_TOPIC:
            led = {0: 0} if sum(code == RequestCode.GET_ROUTEINFO_BY_TOPIC for _, code in said) > nobody_for else {}
            info = TopicQueueMappingInfo(topic="t", bname=leader, total_queues=1, curr_id_map=led)
            brokers = [BrokerData(broker_name=leader, broker_addrs={0: f"{leader}:1"})]
            data = TopicRouteData(broker_datas=brokers, topic_queue_mapping_by_broker={leader: info})
            return command.reply(body=data.to_json())
        return command.reply(ResponseCode.NOT_LEADER_FOR_QUEUE if address == "a:1" else ResponseCode.SUCCESS)

    monkeypatch.setattr(client.pool, "invoke", invoke)
    await client.route("t")

    async def ask() -> int:
        command = RemotingCommand.request(RequestCode.GET_MAX_OFFSET)
        return (await client.ask_host(queue, lambda _: command)).code

    began = time.monotonic()
    assert await ask() == ResponseCode.NOT_LEADER_FOR_QUEUE
    assert 0.1 < time.monotonic() - began < 2
    leader, said[:] = "b", []
    assert await ask() == ResponseCode.SUCCESS
    assert said == [
        ("a:1", RequestCode.GET_MAX_OFFSET),
        ("names:1", RequestCode.GET_ROUTEINFO_BY_TOPIC),
        ("b:1", RequestCode.HEART_BEAT),
        ("b:1", RequestCode.GET_MAX_OFFSET),
    ]
    nobody_for, said[:] = 2, []
    await client.route("t", fresh=True)
    assert await ask() == ResponseCode.SUCCESS
    assert [address for address, _ in said] == ["names:1", "names:1", "names:1", "b:1"]
    nobody_for = 1000
    await client.route("t", fresh=True)
    with pytest.raises(ConnectError):
        await ask()


async def test_retries_leave_the_broker_that_failed_and_the_ones_that_are_away() -> None:
    producer = Producer("127.0.0.1:1")
    three = route("a", "b", "c")
    assert {producer._next_queue(three, "").broker_name for _ in range(6)} == {"a", "b", "c"}
    assert {producer._next_queue(three, "a").broker_name for _ in range(12)} == {"b", "c"}
    producer._avoid["b"] = float("inf")
    assert {producer._next_queue(three, "a").broker_name for _ in range(12)} == {"c"}
    assert {producer._next_queue(three, "c").broker_name for _ in range(12)} == {"a"}
    producer._avoid |= {"a": float("inf"), "c": float("inf")}
    assert {producer._next_queue(three, "c").broker_name for _ in range(12)} == {"a", "b"}, "better than nothing"
    assert {producer._next_queue(route("a"), "a").broker_name for _ in range(3)} == {"a"}


def test_a_sharding_key_chooses_as_javas_selector_does() -> None:
    producer = Producer("127.0.0.1:1")
    eight = route("a", queues=8)
    for key in ("order-1", "käse", "polygenelubricants"):  # the last one's hash is Integer.MIN_VALUE
        chosen = producer._chooser(Message("t", b"x"), None, key, None)(eight, Message("t", b"x"), "")
        quotient = abs(java_hash(key)) // 8
        assert chosen.queue_id == abs(java_hash(key)) - quotient * 8
    by_property = producer._chooser(Message("t", b"x", sharding_key="order-1"), None, None, None)
    assert not by_property.may_retry
    with pytest.raises(ValueError, match="one of"):
        producer._chooser(Message("t", b"x"), MessageQueue("t", "a", 0), "key", None)


async def test_many_posts_in_a_row_leave_the_loop_to_others(tmp_path: Path) -> None:
    """A thousand posts without a pause of the caller's: other tasks have their turns meanwhile."""
    async with one_broker(tmp_path) as (names, _):
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with Producer(names) as producer:
            await producer.send(Message("t", b"x"))
            task = asyncio.create_task(others())
            for _ in range(1000):
                await producer.post(Message("t", b"x"))
            assert turns >= 10
            task.cancel()
            await producer.flush()


@pytest.mark.parametrize("how", ["in a row", "side by side", "plain"])
async def test_posts_to_a_queue_arrive_in_the_order_of_the_calls(tmp_path: Path, how: str) -> None:
    # Claim: also bodies that are compressed on the way, in this thread or another one, with small ones between them;
    # and calls that wait side by side for the route, the connection or their turn.
    bodies = [bytes(size) for size in (200_000, 5000, 10, 100_000, 10, 5000, 10, 10)] * 20
    async with one_broker(tmp_path) as (names, _):
        async with Producer(names) as producer:
            await producer.send(Message("t", b"x"))
            queue = (await producer.client.publish_route("t")).write_queues[0]
        if how == "plain":

            def run() -> list[SendResult]:
                with sync.Producer(names, in_flight_max=40) as producer:
                    posted = [producer.post(Message("t", body), queue=queue) for body in bodies]
                    return [future.result(10) for future in posted]

            results = await asyncio.to_thread(run)
        else:
            async with Producer(names, in_flight_max=40 if how == "side by side" else 4096) as producer:

                async def one(body: bytes) -> SendResult:
                    return await (await producer.post(Message("t", body), queue=queue))

                if how == "side by side":
                    results = await asyncio.gather(*map(one, bodies))
                else:
                    posted = [await producer.post(Message("t", body), queue=queue) for body in bodies]
                    results = await asyncio.gather(*posted)
                assert not producer._turns
        offsets = [result.queue_offset for result in results]
        assert offsets == sorted(offsets)


async def test_a_post_given_up_in_the_line_lets_the_others_through_in_their_order(tmp_path: Path) -> None:
    async with one_broker(tmp_path) as (names, _), Producer(names) as producer:
        await producer.send(Message("t", b"x"))
        queue = (await producer.client.publish_route("t")).write_queues[0]
        first = await producer.post(Message("t", bytes(200_000)), queue=queue)
        dropped = await producer.post(Message("t", bytes(100_000)), queue=queue)
        dropped.cancel()
        waiting = [asyncio.create_task(producer.post(Message("t", b"x"), queue=queue)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        async with asyncio.timeout(5):
            results = [await first, *[await (await task) for task in waiting[1:]]]
        offsets = [result.queue_offset for result in results]
        assert offsets == list(range(offsets[0], offsets[0] + 3)), "what was given up in time is not sent"


async def test_a_topic_made_with_fewer_queues_than_were_guessed_is_sent_to_all_the_same(tmp_path: Path) -> None:
    # Claim: who has guessed the queues of a topic that did not exist, and is told that there is no such queue, looks
    # for the route, also while the name server does not know it yet; whatever chooses the queue, but for a caller who
    # names one.
    async with one_broker(tmp_path) as (names, broker):
        async with Producer(names) as producer:
            for number, how in enumerate(({}, {"sharding_key": "b"}, {"selector": lambda queues, _: queues[-1]})):
                for post in (False, True):
                    topic = f"t{number}{post}"
                    guess = await producer.client.publish_route(topic)
                    assert guess.guessed and len(guess.write_queues) == 4
                    await broker.topics.update([TopicConfig(topic_name=topic, read_queue_nums=1, write_queue_nums=1)])
                    for _ in range(5):
                        producer.client.routes[topic] = guess
                        if post:
                            result = await (await producer.post(Message(topic, b"x"), **how))  # type: ignore[arg-type]
                        else:
                            result = await producer.send(Message(topic, b"x"), **how)  # type: ignore[arg-type]
                        assert result.queue.queue_id == 0
            producer.client.routes[topic] = guess
            with pytest.raises(ServerError, match="illegal"):
                await producer.send(Message(topic, b"x"), queue=guess.write_queues[3])
            assert not producer.client.routes[topic].guessed


async def test_a_topic_that_is_not_made_leaves_the_other_routes_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: while the queues of one topic are guessed the others are looked at as often as ever.
    monkeypatch.setattr(client_module, "ROUTE_INTERVAL_S", 0.5)
    monkeypatch.setattr(client_module, "ROUTE_GUESSED_S", 0.1)
    async with one_broker(tmp_path) as (names, broker):
        await broker.topics.update([TopicConfig(topic_name="t", read_queue_nums=1, write_queue_nums=1)])
        async with Producer(names) as producer:
            await producer.send(Message("t", b"x"))
            await eventually(lambda: not producer.client.routes["t"].guessed)
            await producer.client.publish_route("never")
            await broker.topics.update([TopicConfig(topic_name="t", read_queue_nums=5, write_queue_nums=5)])
            broker.registration.changed(["t"])
            await eventually(lambda: len(producer.client.routes["t"].write_queues) == 5)
            assert producer.client.routes["never"].guessed


async def test_the_guessed_queues_of_a_topic_that_no_broker_makes_are_forgotten(tmp_path: Path) -> None:
    async with one_broker(tmp_path) as (names, broker), Producer(names) as producer:
        broker.options.auto_create_topic_enable = False
        for how in ({}, {"sharding_key": "a"}):
            for post in (False, True):
                assert (await producer.client.publish_route("never")).guessed
                with pytest.raises(TopicNotExist):
                    if post:
                        await (await producer.post(Message("never", b"x"), **how))  # type: ignore[arg-type]
                    else:
                        await producer.send(Message("never", b"x"), **how)  # type: ignore[arg-type]
                assert "never" not in producer.client.routes


async def test_a_post_that_raises_is_not_waited_for() -> None:
    def broken(queues: Sequence[MessageQueue], message: Message) -> MessageQueue:
        raise KeyError("selector")

    async with asyncio.timeout(5):
        async with Producer("127.0.0.1:1", in_flight_max=1) as producer:
            producer.client.routes["t"] = route("a")
            with pytest.raises(KeyError):
                await producer.post(Message("t", b"x"), selector=broken)
            with pytest.raises(ConnectError, match="broker b"):
                await producer.post(Message("t", b"x"), queue=MessageQueue("t", "b", 0))
            with pytest.raises(ValueError, match="one of"):
                await producer.post(Message("t", b"x"), sharding_key="key", selector=broken)


async def test_nobody_there_is_an_error_within_the_time_out() -> None:
    async with Producer("127.0.0.1:1", timeout_ms=500) as producer:
        began = time.monotonic()
        with pytest.raises(ConnectError, match=r"127\.0\.0\.1:1"):
            await producer.send(Message("t", b"x"))
        future = await producer.post(Message("t", b"x"))
        with pytest.raises(ConnectError):
            await future
        assert time.monotonic() - began < 10
    with pytest.raises(ConnectError):
        async with Consumer("127.0.0.1:1", group="g", subscriptions=["t"]):
            pass


async def test_what_is_not_started_says_so() -> None:
    with pytest.raises(ConnectError, match="async with"):
        await Producer("127.0.0.1:1").send(Message("t", b"x"))


async def test_wrong_arguments_are_refused_before_anything_is_sent() -> None:
    async with Producer("127.0.0.1:1", body_bytes_max=100) as producer:
        for wrong in (Message("a b", b"x"), Message("t", b""), Message("t", b"x" * 101)):
            with pytest.raises(ValueError):
                await producer.send(wrong)
        for batch in ([], [Message("t", b"x"), Message("u", b"x")], [Message("t", b"x", delay_level=3)]):
            with pytest.raises(ValueError):
                await producer.send_batch(batch)
        elsewhere = MessageQueue("other", "broker-a", 0)
        for send in (producer.send, producer.post, producer.send_oneway):
            with pytest.raises(ValueError, match="to t cannot be sent to a queue of other"):
                await send(Message("t", b"x"), queue=elsewhere)
        with pytest.raises(ValueError, match="to t cannot be sent to a queue of other"):
            await producer.send_batch([Message("t", b"x")], queue=elsewhere)
        producer.client.routes["t"] = route("b")
        for chosen in (None, 0, elsewhere):
            for send in (producer.send, producer.post):
                with pytest.raises(ValueError, match="which is not a queue of t"):
                    await send(Message("t", b"x"), selector=lambda *_, chosen=chosen: chosen)
    with pytest.raises(ValueError, match="group"):
        Consumer("127.0.0.1:1", group="")
    with pytest.raises(TypeError, match="must be bytes or str, not dict"):
        Message("t", {"a": 1})  # type: ignore[arg-type]


def test_plain_calls_raise_the_same_errors() -> None:
    with sync.Producer("127.0.0.1:1", timeout_ms=300) as producer:
        with pytest.raises(ConnectError):
            producer.send(Message("t", b"x"))
        with pytest.raises(ConnectError):
            producer.post(Message("t", b"x")).result(10)


async def test_large_batches_are_put_together_and_unfolded_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: the loop goes on meanwhile, and batches to a queue arrive in the order of the calls all the same.
    threads: list[tuple[str, bool]] = []

    def noted(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **how: Any) -> Any:
            threads.append((what, threading.current_thread() is threading.main_thread()))
            return function(*args, **how)

        return call

    monkeypatch.setattr(wire, "batch_of", noted("batch", wire.batch_of))
    monkeypatch.setattr(calls, "decode_records", noted("decode", calls.decode_records))
    async with one_broker(tmp_path) as (names, _), Producer(names) as producer:
        queue = (await producer.send(Message("t", b"0" * 5000))).queue
        sizes = (1, 3000, 2, 2000, 3)
        results = await asyncio.gather(
            *(producer.send_batch((Message("t", b"1") for _ in range(size)), queue=queue) for size in sizes)
        )
        assert [result.queue_offset for result in results] == [1, 2, 3002, 3004, 5004]
        assert [("batch", True)] + [("batch", False)] * 4 == sorted(threads, reverse=True)
        threads.clear()
        async with PullConsumer(names, group="g") as consumer:
            assert len((await consumer.pull(queue, 0, max_messages=1)).messages[0].body) == 5000
            assert (await consumer.pull(queue, 1, max_messages=1)).messages[0].body == b"1"
        assert threads == [("decode", False), ("decode", True)]


async def test_a_broker_that_does_not_read_holds_no_post_up_for_longer_than_its_time_out(tmp_path: Path) -> None:
    # Claim: half of the time is waited for the connection, in the other half another broker takes the message.
    name_server = NameServer(NameServerOptions(listen_port=0, kv_config_path=str(tmp_path / "kv.json")))
    await name_server.start()
    brokers = [
        Broker(
            BrokerOptions(
                listen_port=0, namesrv_addr=name_server.address, store_path_root_dir=str(tmp_path / name),
                mapped_file_size_commit_log=1 << 20, max_hash_slot_num=1000, max_index_num=4000, broker_name=name,
            )
        )
        for name in "ab"
    ]  # fmt: skip
    for broker in brokers:
        await broker.start()
        await broker.topics.update([TopicConfig(topic_name="t", read_queue_nums=1, write_queue_nums=1)])
    async with Producer(name_server.address, timeout_ms=1000) as producer:

        async def are_known() -> bool:
            return len((await producer.client.route("t", fresh=True)).write_queues) == 2

        await eventually(are_known)
        silent, other = await producer.queues("t")
        await producer.send(Message("t", b"x"), queue=silent)
        connection = producer.client.pool.remote(producer.client.master("a")).connection
        assert connection is not None
        connection.pause_writing()
        async with asyncio.timeout(5):
            for _ in range(2):
                began = time.monotonic()
                result = await producer.post(Message("t", b"x"))
                assert (await result).queue == other
                assert time.monotonic() - began < 1.5
            result = await producer.post(Message("t", b"x"), queue=silent)
            with pytest.raises(RequestTimeout, match="has not read"):
                await result
        connection.resume_writing()
    for server in (*brokers, name_server):
        await server.stop()


async def test_a_post_keeps_its_time_over_its_attempts(tmp_path: Path) -> None:
    # Claim: a broker that does not answer has half of the time when another one is there; with nobody who answers the
    # future has its error when the time is over.
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    address = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with one_broker(tmp_path) as (names, broker), Producer(names, timeout_ms=1000) as producer:
        await producer.send(Message("t", b"x"))
        await producer.client.pool.remote(address)._connected_within(1)
        data = TopicRouteData(
            queue_datas=[QueueData(broker_name=name, read_queue_nums=1, write_queue_nums=1, perm=6) for name in "ab"]
        )
        for other in (broker.address, address):
            addresses = {"a": address, "b": other}
            data.broker_datas = [BrokerData(broker_name=b, broker_addrs={0: a}) for b, a in addresses.items()]
            producer._avoid.clear()
            producer.client.routes["t"] = known = TopicRoute("t", data)
            producer.client.brokers |= known.brokers
            producer._turn["t"] = 0
            began = time.monotonic()
            posted = await producer.post(Message("t", b"x"))
            if other != address:
                assert (await posted).queue.broker_name == "b"
            else:
                with pytest.raises(RequestTimeout):
                    await posted
            assert time.monotonic() - began < 1.3
    silent.close()


async def test_a_producer_whose_stop_is_cancelled_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: neither connections, nor heartbeats, nor tasks of what it waited for; those who wait for that hear of it.
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    data = TopicRouteData(
        queue_datas=[QueueData(broker_name="a", read_queue_nums=1, write_queue_nums=1, perm=6)],
        broker_datas=[BrokerData(broker_name="a", broker_addrs={0: f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"})],
    )
    before = asyncio.all_tasks()
    producer = await Producer("127.0.0.1:1", timeout_ms=60_000).start()
    producer.client.routes["t"] = known = TopicRoute("t", data)
    producer.client.brokers |= known.brokers
    await producer.client.pool.remote(producer.client.master("a"))._connected_within(1)
    posted = [await producer.post(Message("t", b"x")), await producer.post(Message("t", bytes(4_000_000)))]
    monkeypatch.setattr(producer, "_open_connection", lambda queue: None)
    waiting = asyncio.create_task(producer.post(Message("t", b"x")))
    await asyncio.sleep(0)
    resent: asyncio.Future[SendResult] = asyncio.get_running_loop().create_future()
    producer._beside(producer._send(Message("t", b"x"), producer._spread, float("inf")), resent)
    stopping = asyncio.create_task(producer.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await stopping
        for future in (*posted, waiting, resent):
            with pytest.raises(ConnectError):
                await future
    assert not producer.client._tasks and not producer.client._members and not producer.client.pool.connected
    await eventually(lambda: asyncio.all_tasks() <= before)
    silent.close()


async def test_a_silent_name_server_holds_no_send_up_for_longer_than_its_time_out() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Producer(f"127.0.0.1:{port}", timeout_ms=200) as producer:
        began = time.monotonic()
        with pytest.raises(RequestTimeout, match="route of topic t"):
            await producer.send(Message("t", b"x"))
        posted = await producer.post(Message("t", b"x"))
        with pytest.raises(RequestTimeout, match="route of topic t"):
            await posted
        with pytest.raises(RequestTimeout, match="route of topic t"):
            await producer.send_oneway(Message("t", b"x"))
        assert time.monotonic() - began < 2
    server.close()


async def test_a_silent_name_server_leaves_the_next_one_its_share_of_the_time(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with one_broker(tmp_path) as (names, _):
        names = f"127.0.0.1:{port};{names}"
        async with Producer(names, client=Client(names, timeout_ms=1000), timeout_ms=1000) as producer:
            sends = (producer.send(Message(topic, b"x")) for topic in ("t", "u"))  # both meet the silent one
            assert {result.queue.topic for result in await asyncio.gather(*sends)} == {"t", "u"}
        client = Client(names, timeout_ms=1000)
        async with Consumer(group="g", client=client, subscriptions=["t"], start_from=ConsumeFrom.FIRST_OFFSET) as some:
            async for message in some:
                assert message.body == b"x"
                break
    server.close()


def test_the_first_call_in_a_forked_child_may_come_from_several_threads_at_once() -> None:
    # Claim: one of them makes and starts the child's object, the others wait for it; one that does not start is made
    # again by the next.
    class Slow:
        made = 0

        def __init__(self) -> None:
            Slow.made += 1
            self.started = False

        async def start(self) -> None:
            await asyncio.sleep(0.05)
            if Slow.made == 2:
                raise ConnectError("nobody there")
            self.started = True

    face: sync._Face[Any] = sync._Face(Slow)
    face.start()
    face._pid = -1  # what a child finds
    with pytest.raises(ConnectError):
        face._aio()
    with ThreadPoolExecutor(8) as threads:
        assert all(inner.started for inner in threads.map(lambda _: face._aio(), range(8)))
    assert Slow.made == 3


def test_what_was_made_before_a_fork_is_another_member_in_each_child() -> None:
    # Claim: a consumer at the head of a module, run by several worker processes, is a member of its group in each of
    # them: with one client id, all would be given the same queues and none the others. A name its owner chose stays.
    made = [
        Producer("names:1"),
        Consumer("names:1", group="g"),
        PullConsumer("names:1", group="g"),
        Consumer("names:1", group="g", instance_name="mine"),
    ]

    async def names() -> list[str]:
        for member in made:
            await member.client.start()
        found = [member.client.instance_name for member in made]
        for member in made:
            await member.client.stop()
        return found

    def in_a_child() -> list[str]:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(writing, " ".join(asyncio.run(names())).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as told:
            text = told.read()
        os.waitpid(child, 0)
        return text.split(" ")

    before = [member.client.instance_name for member in made]
    everywhere = [in_a_child(), in_a_child(), asyncio.run(names())]
    assert everywhere[2] == before
    assert [len(set(ids)) for ids in zip(*everywhere, strict=True)] == [3, 3, 3, 1]
