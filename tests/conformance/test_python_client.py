"""The Python client does the same with Apache's broker and ours: each test runs against both."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apache
import pytest
from official import Client as Java

from aerobee import (
    ConnectError,
    ConsumeFrom,
    Consumer,
    Message,
    MessageExt,
    MessageModel,
    MessageQueue,
    Producer,
    PullConsumer,
    PullStatus,
    Retry,
    SendStatus,
    ServerError,
)
from aerobee.testing import ChaosProxy, eventually

pytestmark = pytest.mark.apache


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A topic (or group) name of this test's own."""
    return f"py_{request.node.originalname.removeprefix('test_')[:60]}_{random.randrange(1 << 32):08x}"


def create(cluster: apache.Cluster, topic: str, queues: int = 4) -> None:
    """Makes the topic, and waits until the name server tells of it."""
    fields = {
        "topic": topic, "defaultTopic": "TBW102", "readQueueNums": str(queues), "writeQueueNums": str(queues),
        "perm": "6", "topicFilterType": "SINGLE_TAG", "topicSysFlag": "0", "order": "false",
    }  # fmt: skip
    assert apache.call(cluster.broker_address, 17, fields)[0]["code"] == 0
    deadline = time.monotonic() + 10
    while apache.call(cluster.namesrv_address, 105, {"topic": topic})[0]["code"] != 0:
        assert time.monotonic() < deadline, "no route for a topic made 10 s ago"
        time.sleep(0.05)


def consumer_of(cluster: apache.Cluster, topic: str, group: str = "", **options: object) -> Consumer:
    options.setdefault("start_from", ConsumeFrom.FIRST_OFFSET)
    options.setdefault("subscriptions", {topic: "*"})
    return Consumer(cluster.namesrv_address, group=group or f"g_{topic}", **options)  # type: ignore[arg-type]


async def send_many(cluster: apache.Cluster, topic: str, count: int, *, start: int = 0) -> None:
    """Bodies are numbers. Few of them go one by one: Apache stores what is sent side by side in any order."""
    async with Producer(cluster.namesrv_address, group="many", in_flight_max=1 if count <= 20 else 4096) as producer:
        futures = [await producer.post(Message(topic, b"%d" % i)) for i in range(start, start + count)]
        for result in await asyncio.gather(*futures):
            assert result.status is SendStatus.SEND_OK


async def take(consumer: Consumer, count: int, timeout_s: float = 20.0) -> list[MessageExt]:
    """The next `count` messages, all acknowledged."""
    got: list[MessageExt] = []
    async with asyncio.timeout(timeout_s):
        async for message in consumer:
            got.append(message)
            if len(got) == count:
                consumer.ack(message)
                break
    return got


async def test_what_was_sent_comes_back_whole(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 1)
    async with Producer(cluster.namesrv_address, group="p") as producer:
        sent = Message(name, "wörld".encode(), tag="a", keys=["k1", "k2"], properties={"city": "Köln"}, flag=7)
        result = await producer.send(sent)
    assert result.status is SendStatus.SEND_OK
    assert result.queue == MessageQueue(name, cluster.broker_name, 0)
    assert result.queue_offset == 0
    assert result.message_id == sent.unique_id and len(result.message_id) == 32
    async with consumer_of(cluster, name) as consumer:
        (got,) = await take(consumer, 1)
    assert (got.topic, got.body, got.tag, got.keys, got.flag) == (name, "wörld".encode(), "a", ["k1", "k2"], 7)
    assert got.properties["city"] == "Köln"
    assert got.message_id == result.message_id
    assert got.offset_message_id == result.offset_message_id
    assert (got.queue_id, got.queue_offset, got.broker_name) == (0, 0, cluster.broker_name)


async def test_a_new_topic_is_made_by_the_first_send(cluster: apache.Cluster, name: str) -> None:
    async with Producer(cluster.namesrv_address, group="p") as producer:
        await producer.send(Message(name, b"first"))
        assert len(await eventually(lambda: producer.queues(name))) == 4
    async with consumer_of(cluster, name) as consumer:
        assert [m.body for m in await take(consumer, 1)] == [b"first"]


async def test_the_ways_to_send(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name)
    async with Producer(cluster.namesrv_address, group="p") as producer:
        queues = await producer.queues(name)
        assert [queue.queue_id for queue in queues] == [0, 1, 2, 3]
        chosen = await producer.send(Message(name, b"chosen"), queue=queues[2])
        assert chosen.queue.queue_id == 2
        keyed = {(await producer.send(Message(name, b"keyed"), sharding_key="customer 1")).queue for _ in range(8)}
        assert len(keyed) == 1
        by_property = await producer.send(Message(name, b"keyed", sharding_key="customer 1"))
        assert by_property.queue in keyed
        selected = await producer.send(Message(name, b"selected"), selector=lambda queues, message: queues[-1])
        assert selected.queue.queue_id == 3
        batch = await producer.send_batch([Message(name, b"batch %d" % i, tag="b") for i in range(10)])
        assert len(batch.message_ids) == 10 and len(set(batch.message_ids)) == 10
        many = await producer.send_batch([Message(name, b"many %d" % i) for i in range(1000)])
        assert len(set(many.message_ids)) == len(many.offset_message_id.split(",")) == 1000
        await producer.send_oneway(Message(name, b"oneway"))
        spread = [await producer.send(Message(name, b"spread")) for _ in range(8)]
        assert Counter(result.queue.queue_id for result in spread) == {0: 2, 1: 2, 2: 2, 3: 2}
    async with consumer_of(cluster, name) as consumer:
        got = Counter(m.body.partition(b" ")[0] for m in await take(consumer, 1 + 9 + 1 + 10 + 1000 + 1 + 8))
    assert got == {b"chosen": 1, b"keyed": 9, b"selected": 1, b"batch": 10, b"many": 1000, b"oneway": 1, b"spread": 8}


async def test_posts_to_one_queue_keep_their_order(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 1)
    await send_many(cluster, name, 3000)
    async with consumer_of(cluster, name) as consumer:
        got = [int(m.body) for m in await take(consumer, 3000)]
    if cluster.kind == "apache":
        got.sort()  # it stores what one connection sends with several threads
    assert got == list(range(3000))


async def test_long_bodies_travel_compressed(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 1)
    bodies = [b"a" * 4096, b"b" * 5000, b"c" * 1_000_000, random.randbytes(6000)]
    async with Producer(cluster.namesrv_address, group="p") as producer:
        for body in bodies:
            await producer.send(Message(name, body))
    async with consumer_of(cluster, name) as consumer:
        got = await take(consumer, 4)
    assert [m.body for m in got] == bodies
    assert [m.sys_flag & 1 for m in got] == [0, 1, 1, 0]
    assert got[2].store_size < 5000


async def test_what_the_broker_refuses_is_its_error(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 1)
    async with Producer(cluster.namesrv_address, group="p", body_bytes_max=8 << 20, compress_above_bytes=8 << 20) as p:
        with pytest.raises(ServerError) as refused:
            await p.send(Message(name, b"x" * (5 << 20)))
        assert refused.value.code == 13
        with pytest.raises(ValueError, match="body"):
            await p.send(Message(name, b""))


async def test_tags_are_matched_exactly(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 2)
    # "Aa" and "BB" have the same Java hash: the broker lets both through.
    async with Producer(cluster.namesrv_address, group="p") as producer:
        for tag in ["Aa", "BB", "", "c", "Aa", "d"]:
            await producer.send(Message(name, tag.encode() or b"none", tag=tag))
    async with consumer_of(cluster, name, subscriptions={name: "Aa || c"}) as consumer:
        assert sorted(m.tag for m in await take(consumer, 3)) == ["Aa", "Aa", "c"]
        # What the filter skipped is committed too.
        await eventually(lambda: all(q.count == 0 and q.committable == q.next_offset for q in consumer.queues.values()))


async def test_handlers_get_each_message_once(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name)
    await send_many(cluster, name, 500)
    consumer = consumer_of(cluster, name, subscriptions={})
    seen: Counter[bytes] = Counter()

    @consumer.on(name)
    async def handle(message: MessageExt) -> None:
        seen[message.body] += 1

    async with consumer:
        await eventually(lambda: len(seen) == 500)
    assert set(seen.values()) == {1}


async def test_plain_functions_and_batches_work_as_handlers(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name)
    create(cluster, f"{name}_2")
    await send_many(cluster, name, 200)
    await send_many(cluster, f"{name}_2", 200)
    consumer = consumer_of(cluster, name, subscriptions={})
    plain: list[bytes] = []
    batches: list[int] = []

    @consumer.on(name, concurrency=4)
    def handle(message: MessageExt) -> None:
        plain.append(message.body)

    @consumer.on_batch(f"{name}_2", size=16)
    async def handle_batch(messages: list[MessageExt]) -> None:
        batches.append(len(messages))

    async with consumer:
        await eventually(lambda: len(set(plain)) == 200 and sum(batches) == 200)
    assert max(batches) > 1 and max(batches) <= 16


async def test_a_failed_message_comes_again(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name)
    await send_many(cluster, name, 20)
    consumer = consumer_of(cluster, name, subscriptions={})
    tries: dict[bytes, list[int]] = {}

    @consumer.on(name)
    async def handle(message: MessageExt) -> None:
        assert message.topic == name
        tries.setdefault(message.body, []).append(message.reconsume_times)
        if message.body == b"7" and message.reconsume_times == 0:
            raise Retry(delay_level=1)

    async with consumer:
        await eventually(lambda: tries.get(b"7") == [0, 1] and len(tries) == 20)
    assert all(numbers == [0] for body, numbers in tries.items() if body != b"7")


async def test_a_hopeless_message_goes_to_the_dead_letter_queue(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 1)
    await send_many(cluster, name, 3)
    async with consumer_of(cluster, name) as consumer:
        async for message in consumer:
            if message.body == b"1":
                await consumer.retry(message, delay_level=-1)
            elif message.body == b"2":
                consumer.ack(message)
                break
    async with PullConsumer(cluster.namesrv_address, group="look") as pull:
        (queue,) = await eventually(lambda: pull.queues(f"%DLQ%g_{name}"))
        result = await pull.pull(queue, 0, wait_ms=5000)
        assert [m.body for m in result.messages] == [b"1"]
        assert result.messages[0].properties["ORIGIN_MESSAGE_ID"]


async def test_what_was_not_acknowledged_comes_again_and_nothing_else(cluster: apache.Cluster, name: str) -> None:
    """Known failure: duplicates double with every restart."""
    create(cluster, name)
    await send_many(cluster, name, 100)
    seen: list[int] = []
    for count in (30, 30):
        async with consumer_of(cluster, name) as consumer:
            seen += [int(m.body) for m in await take(consumer, count)]
    async with consumer_of(cluster, name) as consumer:
        async with asyncio.timeout(10):
            async for message in consumer:
                seen.append(int(message.body))
                if len(set(seen)) == 100:
                    consumer.ack(message)
                    break
    assert sorted(seen) == list(range(100))
    async with PullConsumer(cluster.namesrv_address, group=f"g_{name}") as pull:
        for queue in await pull.queues(name):
            assert await pull.committed(queue) == await pull.max_offset(queue)


async def test_the_message_in_hand_when_a_loop_is_left_comes_again(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 1)
    await send_many(cluster, name, 3)
    async with consumer_of(cluster, name) as consumer:
        async for message in consumer:
            assert message.body == b"0"
            break
        assert [m.body for m in await take(consumer, 2)] == [b"0", b"1"]
    async with consumer_of(cluster, name) as consumer:
        assert [m.body for m in await take(consumer, 1)] == [b"2"]


async def test_members_share_the_queues_and_take_over(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name)
    first = consumer_of(cluster, name)
    second = consumer_of(cluster, name)

    def held(consumer: Consumer) -> list[int]:
        return sorted(queue.queue_id for queue in consumer.queues if queue.topic == name)

    async with first:
        await eventually(lambda: held(first) == [0, 1, 2, 3])
        async with second:
            await eventually(lambda: {tuple(held(first)), tuple(held(second))} == {(0, 1), (2, 3)})
            ordered = sorted([first, second], key=lambda consumer: consumer.client.client_id)
            assert held(ordered[0]) == [0, 1]
        await eventually(lambda: held(first) == [0, 1, 2, 3], timeout_s=5)


async def test_nothing_is_lost_while_members_come_and_go(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 8)
    seen: Counter[int] = Counter()

    def member() -> Consumer:
        consumer = consumer_of(cluster, name, subscriptions={})

        @consumer.on(name, concurrency=4)
        async def handle(message: MessageExt) -> None:
            await asyncio.sleep(0.001)
            seen[int(message.body)] += 1

        return consumer

    members = [await member().start()]
    sending = asyncio.create_task(send_many(cluster, name, 3000))
    for _ in range(3):
        members.append(await member().start())
        await asyncio.sleep(0.1)
        await members.pop(0).stop()
    await sending
    await eventually(lambda: len(seen) == 3000, timeout_s=30)
    for consumer in members:
        await consumer.stop()
    assert sum(seen.values()) - 3000 < 300, "far more came twice than were in hand"


async def test_java_and_python_members_share_a_group(cluster: apache.Cluster, client: Java, name: str) -> None:
    """Both sort alike and divide alike: every queue has exactly one owner, and every message arrives once."""
    create(cluster, name, 8)
    group = f"g_{name}"
    at = {"namesrv": cluster.namesrv_address, "topic": name}
    client.do("consume.start", name=name, group=group, **{"from": "first"}, **at)
    try:
        consumer = consumer_of(cluster, name, group, subscriptions={})
        mine: list[bytes] = []

        @consumer.on(name)
        async def handle(message: MessageExt) -> None:
            mine.append(message.body)

        async with consumer:

            async def java() -> dict[str, Any]:
                return await asyncio.to_thread(client.do, "consume.state", name=name, received=0, timeout_ms=10)

            async def divided() -> bool:
                theirs = {int(queue.rpartition(":")[2]) for queue in (await java())["assigned"]}
                ours = {queue.queue_id for queue in consumer.queues if queue.topic == name}
                return len(theirs) == len(ours) == 4 and theirs | ours == set(range(8))

            async def all_arrived() -> bool:
                return len(mine) + (await java())["received"] == 400

            await eventually(divided, timeout_s=40)
            await send_many(cluster, name, 400)
            await eventually(all_arrived, timeout_s=30)
            assert 150 < len(mine) < 250
    finally:
        client.do("consume.stop", name=name)


async def test_broadcasting_gives_everything_to_everyone(cluster: apache.Cluster, name: str, tmp_path: Path) -> None:
    create(cluster, name)

    def member(instance: str) -> Consumer:
        return consumer_of(
            cluster,
            name,
            model=MessageModel.BROADCASTING,
            instance_name=f"{name}{instance}",
            offsets_directory=tmp_path,
        )

    await send_many(cluster, name, 20)
    async with member("a") as one, member("b") as two:
        for consumer in (one, two):
            assert sorted(int(m.body) for m in await take(consumer, 20)) == list(range(20))
    assert len(await asyncio.to_thread(lambda: list(tmp_path.rglob("offsets.json")))) == 2
    await send_many(cluster, name, 4, start=20)
    async with member("a") as again:
        assert sorted(int(m.body) for m in await take(again, 4)) == [20, 21, 22, 23]


async def test_where_a_new_group_starts(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 1)
    await send_many(cluster, name, 5)
    await asyncio.sleep(0.1)  # between two store times
    middle_ms = int(time.time() * 1000)
    await send_many(cluster, name, 5, start=5)
    async with consumer_of(cluster, name, f"first_{name}") as first:
        assert (await take(first, 1))[0].body == b"0"
    since = {"start_from": ConsumeFrom.TIMESTAMP, "start_timestamp_ms": middle_ms}
    async with PullConsumer(cluster.namesrv_address, group="look") as pull:
        (queue,) = await pull.queues(name)
        assert await pull.offset_by_time(queue, middle_ms) == 5
    for options, expected in ((since, {0, 5}), ({"start_from": ConsumeFrom.LAST_OFFSET}, {0, 10})):
        async with consumer_of(
            cluster, name, f"late_{len(expected)}_{options['start_from'].name}_{name}", **options
        ) as c:  # type: ignore[attr-defined]
            await eventually(lambda c=c: any(q.topic == name for q in c.queues))
            # A broker that still has offset 0 in memory answers 0 for an unknown group: Apache's rule, and ours.
            started = next(held for q, held in c.queues.items() if q.topic == name)
            assert started.first_offset in expected or started.next_offset in expected


async def test_ordered_consumption_keeps_the_order_through_failures(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 2)
    async with Producer(cluster.namesrv_address, group="p") as producer:
        queues = await producer.queues(name)
        for i in range(60):
            await producer.send(Message(name, b"%d" % i), queue=queues[i % 2])
    consumer = consumer_of(cluster, name, subscriptions={}, orderly=True, suspend_ms=50)
    done: dict[int, list[int]] = {0: [], 1: []}
    failed: Counter[int] = Counter()
    working: Counter[int] = Counter()

    @consumer.on(name, concurrency=8)
    async def handle(message: MessageExt) -> None:
        number = int(message.body)
        working[message.queue_id] += 1
        assert working[message.queue_id] == 1, "two at a time from one queue"
        await asyncio.sleep(0)
        working[message.queue_id] -= 1
        if number % 20 == 10 and failed[number] < 2:
            failed[number] += 1
            raise Retry("not yet")
        done[message.queue_id].append(number)

    async with consumer:
        await eventually(lambda: sum(map(len, done.values())) == 60)
    assert done == {0: list(range(0, 60, 2)), 1: list(range(1, 60, 2))}
    assert failed == {10: 2, 30: 2, 50: 2}


async def test_an_ordered_consumer_that_starts_at_the_end_skips_nothing(cluster: apache.Cluster, name: str) -> None:
    """Known failure: an ordered consumer skips one message when it starts at the end (#10955)."""
    create(cluster, name, 1)
    await send_many(cluster, name, 5)
    async with PullConsumer(cluster.namesrv_address, group=f"g_{name}") as pull:
        (queue,) = await pull.queues(name)
        await pull.commit(queue, 5)
    async with consumer_of(cluster, name, orderly=True, start_from=ConsumeFrom.LAST_OFFSET) as consumer:
        await eventually(lambda: any(q.topic == name for q in consumer.queues))
        async with Producer(cluster.namesrv_address, group="p") as producer:
            for i in (5, 6, 7):
                await producer.send(Message(name, b"%d" % i))
        assert [m.body for m in await take(consumer, 3)] == [b"5", b"6", b"7"]


async def test_an_ordered_queue_has_one_owner(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 2)
    async with consumer_of(cluster, name, orderly=True) as first:
        await eventually(lambda: len([q for q in first.queues if q.topic == name]) == 2)
        async with consumer_of(cluster, name, orderly=True) as second:
            await eventually(lambda: len([q for q in second.queues if q.topic == name]) == 1, timeout_s=10)
            owned = [q for c in (first, second) for q in c.queues if q.topic == name]
            assert sorted(q.queue_id for q in owned) == [0, 1]


async def test_pulling_at_own_offsets(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 1)
    await send_many(cluster, name, 100)
    async with PullConsumer(cluster.namesrv_address, group=f"g_{name}") as pull:
        (queue,) = await pull.queues(name)
        assert (await pull.min_offset(queue), await pull.max_offset(queue)) == (0, 100)
        found = await pull.pull(queue, 40, max_messages=10)
        assert found.status is PullStatus.FOUND and found.next_offset == 50
        assert [m.queue_offset for m in found.messages] == list(range(40, 50))
        assert (found.min_offset, found.max_offset) == (0, 100)
        nothing = await pull.pull(queue, 100)
        assert nothing.status is PullStatus.NO_NEW_MESSAGE and nothing.next_offset == 100
        far = await pull.pull(queue, 5000)
        assert far.status is PullStatus.OFFSET_ILLEGAL and far.next_offset == 100
        assert await pull.committed(queue) in (None, 0)
        await pull.commit(queue, 42)
        assert await pull.committed(queue) == 42
        # A waiting pull is answered by the next message.
        waiting = asyncio.create_task(pull.pull(queue, 100, wait_ms=10_000))
        await send_many(cluster, name, 1, start=100)
        async with asyncio.timeout(5):
            assert [m.body for m in (await waiting).messages] == [b"100"]


async def test_a_session_reads_all_queues_and_remembers(cluster: apache.Cluster, name: str) -> None:
    class Table:
        def __init__(self) -> None:
            self.rows: dict[MessageQueue, int] = {}

        async def load(self, queue: MessageQueue) -> int | None:
            return self.rows.get(queue)

        async def save(self, offsets: Mapping[MessageQueue, int]) -> None:
            self.rows |= offsets

    create(cluster, name)
    await send_many(cluster, name, 50)
    table = Table()
    seen: list[int] = []
    async with PullConsumer(cluster.namesrv_address, group=f"g_{name}") as pull:
        for _ in range(2):
            async with pull.session(name, store=table) as session:
                async for message in session:
                    seen.append(int(message.body))
                    if len(seen) % 25 == 0:
                        break
        assert sorted(seen) == list(range(50))
        assert sum(table.rows.values()) == 50
        async with pull.session(name, store=table) as session:
            assert await session.fetch(timeout_ms=200) == []
            queue = next(iter(session.offsets))
            await session.seek(queue, 0)
            assert (await session.fetch(max_messages=5))[0].queue_offset == 0


async def test_an_operator_resets_a_group(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 2)
    await send_many(cluster, name, 40)
    async with consumer_of(cluster, name) as consumer:
        assert len(await take(consumer, 40)) == 40
        fields = {"topic": name, "group": consumer.group, "timestamp": "0", "isForce": "true", "queueId": "-1"}
        header, _ = await asyncio.to_thread(apache.call, cluster.broker_address, 222, fields)
        assert header["code"] == 0, header
        assert sorted(int(m.body) for m in await take(consumer, 40, timeout_s=30)) == list(range(40))


async def test_brokers_can_ask_what_a_consumer_is_doing(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 2)
    await send_many(cluster, name, 10)
    consumer = consumer_of(cluster, name, subscriptions={})
    seen: list[bytes] = []

    @consumer.on(name, tags="*")
    async def handle(message: MessageExt) -> None:
        seen.append(message.body)

    async with consumer:
        await eventually(lambda: len(seen) == 10)
        ask = {"consumerGroup": consumer.group, "clientId": consumer.client.client_id}
        header, body = await asyncio.to_thread(
            apache.call, cluster.broker_address, 307, {**ask, "jstackEnable": "false"}
        )
        assert header["code"] == 0, header
        assert b"CONSUME_PASSIVELY" in body and name.encode() in body and b'"mqTable"' in body
        async with PullConsumer(cluster.namesrv_address, group="look") as pull:
            queue = (await pull.queues(name))[0]
            message = (await pull.pull(queue, 0)).messages[0]
        directly = {**ask, "msgId": message.offset_message_id, "brokerName": cluster.broker_name, "topic": name}
        header, body = await asyncio.to_thread(apache.call, cluster.broker_address, 309, directly)
        assert header["code"] == 0, header
        assert b"CR_SUCCESS" in body
        await eventually(lambda: len(seen) == 11)
        assert seen[-1] == message.body


async def test_a_consumer_survives_a_cut_connection(cluster: apache.Cluster, name: str) -> None:
    """The broker forgets a client with its connection: the client introduces itself again, and nothing is lost."""
    create(cluster, name)
    seen: list[bytes] = []
    consumer = consumer_of(cluster, name, subscriptions={})

    @consumer.on(name)
    async def handle(message: MessageExt) -> None:
        seen.append(message.body)

    async with ChaosProxy(cluster.broker_address) as proxy:
        # The client is told of the proxy instead of the broker.
        learn = consumer.client._learn

        def through_the_proxy(route: object) -> None:
            for addresses in route.brokers.values():  # type: ignore[attr-defined]
                addresses[0] = proxy.address
            learn(route)  # type: ignore[arg-type]

        consumer.client._learn = through_the_proxy  # type: ignore[method-assign,assignment]
        async with consumer:
            await send_many(cluster, name, 10)
            await eventually(lambda: len(seen) == 10)
            for round in range(2, 4):
                assert proxy.cut() > 0
                await send_many(cluster, name, 10, start=round * 10)
                await eventually(lambda round=round: len(set(seen)) == round * 10, timeout_s=15)
    assert proxy.connections_made >= 3


async def test_name_servers_are_asked_in_turn(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name)
    async with Producer(f"127.0.0.1:1;{cluster.namesrv_address}", group="p") as producer:
        await producer.send(Message(name, b"x"))
    async with Producer("127.0.0.1:1;127.0.0.1:2", group="p", timeout_ms=1000) as producer:
        with pytest.raises(ConnectError, match=r"127\.0\.0\.1:1"):
            await producer.send(Message(name, b"x"))


PLAIN = """
import os, sys
from aerobee.sync import ConsumeFrom, Consumer, Message, Producer, PullConsumer

name_server, topic = sys.argv[1:]

with Producer(name_server, group="p") as producer:
    ids = {result.message_id for result in producer.send_all([Message(topic, b"%d" % i) for i in range(20)])}
    ids.add(producer.send(Message(topic, b"20")).message_id)
    child = os.fork()
    if not child:
        # The parent's producer, used in the child: fresh connections, fresh ids.
        result = producer.send(Message(topic, b"21"))
        os._exit(0 if result.message_id not in ids else 3)
    assert os.waitpid(child, 0)[1] == 0
    ids.add(producer.post(Message(topic, b"22")).result(5).message_id)
    assert len(ids) == 22

got = []
with Consumer(name_server, group="g_" + topic, subscriptions=[topic], start_from=ConsumeFrom.FIRST_OFFSET) as consumer:
    for message in consumer:
        got.append(int(message.body))
        if len(got) == 10:
            consumer.ack(message)
            break
consumer = Consumer(name_server, group="g_" + topic, start_from=ConsumeFrom.FIRST_OFFSET)

@consumer.on(topic)
def handle(message):
    got.append(int(message.body))
    if len(got) == 23:
        import threading
        threading.Thread(target=consumer.stop).start()

consumer.run()
assert sorted(got) == list(range(23)), got

with PullConsumer(name_server, group="look") as pull:
    assert sum(pull.max_offset(queue) for queue in pull.queues(topic)) == 23
print("fine")
"""


def test_programs_without_an_event_loop_and_with_forks(cluster: apache.Cluster, name: str) -> None:
    create(cluster, name, 2)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, cluster.namesrv_address, name],
        capture_output=True, text=True, timeout=60, cwd=apache.ROOT, env={**os.environ, "PYTHONPATH": str(apache.ROOT)},
    )  # fmt: skip
    assert done.stdout == "fine\n", done.stderr
