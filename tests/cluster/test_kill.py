"""kill -9 under load. What a kill can prove: bytes handed to the kernel before the answer survive the process. What it
cannot: that they survive the machine; that is for the simulated disk (`rust/engine/tests`), which loses what was not
flushed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from aerobee import (
    AerobeeError,
    ConsumeFrom,
    Consumer,
    Message,
    MessageExt,
    MessageQueue,
    Producer,
    PullConsumer,
    PullStatus,
)
from aerobee.protocol.codes import RequestCode
from aerobee.protocol.command import RemotingCommand
from aerobee.testing import Cluster, eventually
from aerobee.testing.plugin import MakeCluster

Place = tuple[MessageQueue, int]


class Load:
    """Sends without end through whatever happens, and remembers what was acknowledged."""

    def __init__(self, cluster: Cluster, topic: str, workers: int = 32) -> None:
        self.topic = topic
        self.acknowledged: dict[bytes, Place] = {}
        self.failures = 0
        self._cluster = cluster
        self._workers = workers
        self._number = 0
        self._stopping = False

    async def __aenter__(self) -> Load:
        self._producer = await Producer(self._cluster.name_servers, group="load", timeout_ms=1000).start()
        self._tasks = [asyncio.create_task(self._send()) for _ in range(self._workers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)
        await self._producer.stop()

    async def _send(self) -> None:
        while not self._stopping:
            self._number += 1
            body = b"%d" % self._number
            try:
                result = await self._producer.send(
                    Message(self.topic, body + b" " * random.randrange(400), keys=body.decode())
                )
            except AerobeeError:
                self.failures += 1
                await asyncio.sleep(0.02)
                continue
            self.acknowledged[body] = result.queue, result.queue_offset

    async def more(self, count: int, timeout_s: float = 20.0) -> None:
        """Returns when so many more were acknowledged."""
        wanted = len(self.acknowledged) + count
        await eventually(lambda: len(self.acknowledged) >= wanted, timeout_s)


async def stored(cluster: Cluster, topic: str) -> dict[Place, bytes]:
    """Everything the brokers hand out of a topic, by place."""
    found: dict[Place, bytes] = {}
    async with PullConsumer(cluster.name_servers, group="audit") as pull:
        for queue in await pull.queues(topic):
            offset = await pull.min_offset(queue)
            while (result := await pull.pull(queue, offset)).status is PullStatus.FOUND:
                for message in result.messages:
                    assert message.queue_offset == offset, f"a hole in {queue} at {offset}"
                    found[queue, offset] = message.body.strip()
                    offset += 1
            assert offset == await pull.max_offset(queue)
    return found


async def found_by_key(cluster: Cluster, topic: str, key: str) -> bool:
    fields = {"topic": topic, "key": key, "maxNum": "32", "beginTimestamp": "0", "endTimestamp": str(1 << 62)}
    async with PullConsumer(cluster.name_servers, group="audit") as pull:
        for broker in cluster.brokers:
            await pull.queues(topic)
            command = RemotingCommand.request(RequestCode.QUERY_MESSAGE)
            command.ext_fields = fields
            try:
                return bool((await pull.client.invoke(broker.address, command)).body)
            except AerobeeError:
                continue
    return False


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
async def test_kill_9_in_a_loop_loses_nothing_acknowledged(clusters: MakeCluster, flush: str) -> None:
    """Claim: however often the broker is killed while 32 senders are at it, each acknowledged message is at the place
    the acknowledgement named, once, readable through queue and key, and each start needs no help."""
    cluster = await clusters(settings={"flushDiskType": flush})
    await cluster.create_topic("killed")
    broker = cluster.brokers[0]
    async with Load(cluster, "killed") as load:
        await load.more(200)
        for _ in range(5):
            await asyncio.sleep(random.uniform(0, 0.1))  # sleeps: the kill comes at any moment
            await broker.killed()
            await broker.start()
            await load.more(300)
    found = await stored(cluster, "killed")
    for body, place in load.acknowledged.items():
        assert found.get(place) == body, f"acknowledged at {place}, there is {found.get(place)!r}"
    assert load.failures > 0, "no send met a dead broker: the test proved nothing"
    for body in random.sample(sorted(load.acknowledged), 20):
        await eventually(lambda body=body: found_by_key(cluster, "killed", body.decode()), 5)


async def test_consumers_see_everything_through_kills(clusters: MakeCluster) -> None:
    """Claim: a consumer group that runs while the broker is killed and started gets every acknowledged message, and the
    group's offset is behind none of what it has finished once the dust has settled (stale offsets after a master comes
    back, #1094, #2705)."""
    cluster = await clusters()
    await cluster.create_topic("steady")
    broker = cluster.brokers[0]
    seen: Counter[bytes] = Counter()
    consumer = Consumer(cluster.name_servers, group="steady", start_from=ConsumeFrom.FIRST_OFFSET)

    @consumer.on("steady")
    async def handle(message: MessageExt) -> None:
        seen[message.body.strip()] += 1

    async with Load(cluster, "steady") as load:
        await load.more(50)
        async with consumer:
            for _ in range(3):
                await load.more(300)
                await broker.killed()
                await broker.start()
            await load.more(300)
            await load.__aexit__()
            await eventually(lambda: not set(load.acknowledged) - set(seen), 30)
    async with PullConsumer(cluster.name_servers, group="steady") as pull:
        for queue in await pull.queues("steady"):
            assert await pull.committed(queue) == await pull.max_offset(queue)


async def test_a_graceful_restart_delivers_nothing_twice(clusters: MakeCluster) -> None:
    """Claim: duplicates do not grow with restarts (#7182, #1589). Broker and consumer are stopped and started in turn;
    every message is consumed once."""
    cluster = await clusters()
    seen: Counter[bytes] = Counter()

    async def consume_some(count: int) -> None:
        async with Consumer(
            cluster.name_servers, group="once", subscriptions=["once"], start_from=ConsumeFrom.FIRST_OFFSET
        ) as consumer:
            async with asyncio.timeout(20):
                async for message in consumer:
                    seen[message.body] += 1
                    count -= 1
                    if not count:
                        consumer.ack(message)
                        break

    async with Producer(cluster.name_servers, group="p") as producer:
        await producer.send_batch([Message("once", b"%d" % i) for i in range(100)])
    await consume_some(40)
    await cluster.brokers[0].restart()
    await cluster.registered()
    await consume_some(40)
    await cluster.brokers[0].restart()
    await cluster.registered()
    await consume_some(20)
    assert len(seen) == 100 and set(seen.values()) == {1}


async def test_half_made_files_do_not_stop_the_start(clusters: MakeCluster) -> None:
    """Claim: an empty queue file, an empty index file and an empty next log file, as a crash leaves them, are
    repaired or set aside (#9728, #10108); nothing acknowledged is missing afterwards."""
    cluster = await clusters()
    await cluster.create_topic("half")
    broker = cluster.brokers[0]
    async with Load(cluster, "half") as load:
        await load.more(300)
    await broker.killed()
    store = broker.directory / "store"
    for queue in ("0", "9"):
        (store / "consumequeue" / "half" / queue).mkdir(parents=True, exist_ok=True)
    (store / "consumequeue" / "half" / "0" / f"{600_000:020d}").touch()
    (store / "consumequeue" / "half" / "9" / f"{0:020d}").touch()
    (store / "index").mkdir(exist_ok=True)
    (store / "index" / "20990101000000000").touch()
    (store / "commitlog" / f"{16 * 1024 * 1024:020d}").touch()
    await broker.start()
    await cluster.registered()
    found = await stored(cluster, "half")
    assert all(found.get(place) == body for body, place in load.acknowledged.items())
    async with Load(cluster, "half") as load:
        await load.more(100)
