"""Failures that systems of this kind are known for and that no other room tests; `tests/README.md` lists them all."""

from __future__ import annotations

from aerobee import ConsumeFrom, Consumer, Message, MessageExt, Producer, PullConsumer
from aerobee.testing import eventually
from aerobee.testing.plugin import MakeCluster


async def test_an_ordered_consumer_that_starts_at_the_end_skips_no_message(clusters: MakeCluster) -> None:
    """Claim: an ordered consumer that begins at the end gets the very next message of each queue, of an empty one too,
    and those that follow in their order (#10955)."""
    cluster = await clusters()
    await cluster.create_topic("ends", queues=2)
    seen: list[bytes] = []
    consumer = Consumer(cluster.name_servers, group="ordered", orderly=True, start_from=ConsumeFrom.LAST_OFFSET)

    @consumer.on("ends")
    async def handle(message: MessageExt) -> None:
        seen.append(message.body)

    async with Producer(cluster.name_servers, group="p") as producer:
        async with PullConsumer(cluster.name_servers, group="ordered") as pull:
            first, second = await pull.queues("ends")
            for number in range(3):  # one queue has something, the other nothing
                await producer.send(Message("ends", b"before %d" % number), queue=first)
            await pull.commit(first, 3)
            await pull.commit(second, 0)
        async with consumer:
            await eventually(lambda: len([queue for queue in consumer.queues if queue.topic == "ends"]) == 2)
            for number in range(5):
                await producer.send(Message("ends", b"first %d" % number), queue=first)
                await producer.send(Message("ends", b"second %d" % number), queue=second)
            await eventually(lambda: len(seen) >= 10)
    assert sorted(seen) == sorted(b"%s %d" % (name, n) for name in (b"first", b"second") for n in range(5))
    for name in (b"first", b"second"):
        assert [body for body in seen if body.startswith(name)] == [b"%s %d" % (name, n) for n in range(5)]
