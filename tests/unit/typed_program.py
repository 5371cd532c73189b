"""A program of somebody who uses the client and checks it with `mypy --strict`, as test_public_names.py does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import assert_type

from aerobee import (
    AerobeeError,
    Client,
    ConnectError,
    ConsumeFrom,
    Consumer,
    Message,
    MessageExt,
    MessageModel,
    MessageQueue,
    OffsetStore,
    Producer,
    PullConsumer,
    PullResult,
    PullSession,
    PullStatus,
    RequestTimeout,
    Retry,
    SendResult,
    SendStatus,
    ServerError,
    Sql,
    sync,
)
from aerobee.testing import ChaosProxy, Cluster, eventually, eventually_sync


class Table:
    """Somebody's own offsets."""

    async def load(self, queue: MessageQueue) -> int | None:
        return 0

    async def save(self, offsets: Mapping[MessageQueue, int]) -> None:
        return None


def choose(queues: Sequence[MessageQueue], message: Message) -> MessageQueue:
    return queues[len(message.body) % len(queues)]


async def send(names: list[str]) -> None:
    async with Producer(names, group="shop", timeout_ms=1000, retry_times=1) as producer:
        result = await producer.send(Message("orders", b"42", tag="new", keys=["order-42"]))
        assert_type(result, SendResult)
        assert_type(result.status, SendStatus)
        assert_type(await (await producer.post(Message("orders", b"1"))), SendResult)
        await producer.send_oneway(Message("orders", b"1"), sharding_key="k")
        batch = await producer.send_batch([Message("orders", b"1"), Message("orders", b"2")])
        assert_type(batch.message_ids, list[str])
        queues = await producer.queues("orders")
        await producer.send(Message("orders", b"1"), queue=queues[0])
        await producer.send(Message("orders", b"1"), selector=choose)


async def consume() -> None:
    consumer = Consumer(
        group="g",
        subscriptions={"orders": Sql("a > 1"), "bills": "a || b"},
        start_from=ConsumeFrom.FIRST_OFFSET,
        model=MessageModel.CLUSTERING,
        client=Client("127.0.0.1:9876"),
    )

    @consumer.on("orders", tags="a || b")
    async def handle(message: MessageExt) -> None:
        raise Retry("later", delay_level=3)

    @consumer.on_batch("others", size=10)
    def handle_all(messages: Sequence[MessageExt]) -> None:
        print(messages[0].body, messages[0].properties)

    async with consumer:
        async for message in consumer:
            assert_type(message, MessageExt)
            await consumer.retry(message)
        async for messages in consumer.batches(4):
            assert_type(messages, list[MessageExt])


async def pull() -> None:
    table: OffsetStore = Table()
    async with PullConsumer("127.0.0.1:9876", group="g") as consumer:
        queue = (await consumer.queues("orders"))[0]
        found = await consumer.pull(queue, await consumer.offset_by_time(queue, 0))
        assert_type(found, PullResult)
        if found.status is PullStatus.FOUND:
            assert_type(found.messages[0].queue_offset, int)
        async with consumer.session("orders", store=table) as session:
            assert_type(session, PullSession)
            async for message in session:
                assert_type(message.body, bytes)


def plain() -> None:
    with sync.Producer("127.0.0.1:9876", group="p") as producer:
        assert_type(producer.send(Message("t", b"x")), SendResult)
    with sync.Consumer("127.0.0.1:9876", group="p", subscriptions=["t"]) as consumer:
        for message in consumer:
            assert_type(message, MessageExt)


async def test() -> None:
    async with Cluster(brokers=2) as cluster, ChaosProxy(cluster.brokers[0].address) as proxy:
        assert_type(await eventually(lambda: proxy.address), str)
        assert_type(eventually_sync(lambda: 1), int)
    try:
        pass
    except (ServerError, ConnectError, RequestTimeout, AerobeeError) as error:
        print(error)
