"""Two brokers and two name servers, one of each gone: clients go on with what is left."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from aerobee import ConsumeFrom, Consumer, Message, MessageExt, Producer
from aerobee.testing import eventually
from aerobee.testing.plugin import MakeCluster


async def test_one_broker_and_one_name_server_killed(clusters: MakeCluster) -> None:
    """Claim: with one broker and one name server killed, every send still succeeds within its time-out, consumers get
    all that was acknowledged by the broker that lives, and the rest once the other one is back; a client started
    while half of the cluster is dead works too."""
    cluster = await clusters(brokers=2, name_servers=2)
    await cluster.create_topic("pair")
    one, two = cluster.brokers
    sent: set[bytes] = set()
    seen: Counter[bytes] = Counter()
    consumer = Consumer(cluster.name_servers, group="pair", start_from=ConsumeFrom.FIRST_OFFSET)

    @consumer.on("pair")
    async def handle(message: MessageExt) -> None:
        seen[message.body] += 1

    async def send(producer: Producer, count: int) -> set[str]:
        used = set()
        for _ in range(count):
            body = b"%d" % len(sent)
            used.add((await producer.send(Message("pair", body))).queue.broker_name)
            sent.add(body)
        return used

    async with Producer(cluster.name_servers, group="p") as producer:
        async with consumer:
            await eventually(
                lambda: {q.broker_name for q in consumer.queues if q.topic == "pair"} == {one.name, two.name}
            )
            assert await send(producer, 40) == {one.name, two.name}
            await eventually(lambda: len(seen) == 40)

            await one.killed()
            await cluster.name_server_list[0].killed()
            began = time.monotonic()
            assert await send(producer, 40) == {two.name}
            assert time.monotonic() - began < 5
            await eventually(lambda: len(seen) == 80)
            async with Producer(cluster.name_servers, group="late") as late:
                assert await send(late, 10) == {two.name}
            await eventually(lambda: len(seen) == 90)

            await one.start()
            await cluster.name_server_list[0].start()
            await cluster.registered(40)

            async def both_used() -> bool:
                return await send(producer, 8) == {one.name, two.name}

            await eventually(both_used, 40, 0.5)
            await eventually(lambda: not sent - set(seen))
            assert [body for body, count in seen.items() if count > 1] == []


async def test_all_name_servers_restarted_lose_nothing(clusters: MakeCluster) -> None:
    """Claim: when every name server dies and comes back empty, the brokers are known again within one registration
    interval, and clients that already know the way never notice."""
    cluster = await clusters(name_servers=2, settings={"registerNameServerPeriod": 10_000})
    async with Producer(cluster.name_servers, group="p") as producer:
        await producer.send(Message("steady", b"1"))
        await asyncio.gather(*(server.killed() for server in cluster.name_server_list))
        await producer.send(Message("steady", b"2"))
        await asyncio.gather(*(server.start() for server in cluster.name_server_list))
        await cluster.registered(15)
        async with Producer(cluster.name_servers, group="q") as other:
            assert len(await other.queues("steady")) == 4
            await other.send(Message("steady", b"3"))


async def test_an_auto_created_topic_is_on_every_broker(clusters: MakeCluster) -> None:
    """Claim: a topic made by its first send does not land on one broker for ever (#2744, #6657); who looks for its
    route once that send is answered finds all of it."""
    cluster = await clusters(brokers=2)
    async with Producer(cluster.name_servers, group="p") as producer:
        for number in range(10):
            topic = f"everywhere{number}"
            await producer.send(Message(topic, b"x"))
            route = await producer.client.route(topic, fresh=True)
            assert len({queue.broker_name for queue in route.write_queues}) == 2
