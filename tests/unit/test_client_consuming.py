"""Consumers of all kinds against a broker in this process: what they read, and how they end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from in_process import one_broker

from aerobee import ConsumeFrom, Consumer, Message, MessageExt, MessageModel, MessageQueue, Producer, PullConsumer, sync
from aerobee.client import calls, offsets
from aerobee.client import pull as pull_module
from aerobee.client.client import Client
from aerobee.client.process_queue import ProcessQueue
from aerobee.client.results import PullResult
from aerobee.errors import ConnectError, TopicNotExist
from aerobee.protocol.bodies.topics import TopicConfig
from aerobee.testing import eventually


@pytest.fixture
async def names(tmp_path: Path) -> AsyncIterator[str]:
    """A name server that knows a broker with topic t, of two queues."""
    async with one_broker(tmp_path) as (names, broker):
        await broker.topics.update([TopicConfig(topic_name="t", read_queue_nums=2, write_queue_nums=2)])
        async with Producer(names, group="p") as producer:

            async def is_known() -> bool:
                try:
                    return bool(await producer.queues("t"))
                except TopicNotExist:
                    return False

            await eventually(is_known)
        yield names


async def test_a_topic_that_is_missing_is_mentioned_once_and_not_in_the_first_moment(
    names: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: a program that sends to a new topic and consumes it at once is told nothing, one with a wrong name is.
    async with Consumer(names, group="g", subscriptions=["later"]) as consumer:
        await consumer.rebalance()
        assert "later" not in caplog.text
        monkeypatch.setattr("aerobee.client.consumer.MISSING_S", 0.0)
        await consumer.rebalance()
        await consumer.rebalance()
        assert caplog.text.count("topic later does not exist (yet); group g waits for it") == 1
        assert "RETRY" not in caplog.text


async def test_a_pull_without_tags_reads_everything_whatever_was_filtered_before(names: str) -> None:
    # Claim: each pull and each session filters by its own tags only, on one consumer too.
    async with Producer(names) as producer, PullConsumer(names, group="g") as consumer:
        queue = (await producer.queues("t"))[0]
        for tag in "abab":
            await producer.send(Message("t", tag.encode(), tag=tag), queue=queue)

        async def pulled(tags: str = "*") -> bytes:
            return b"".join(message.body for message in (await consumer.pull(queue, 0, tags=tags)).messages)

        assert [await pulled("a"), await pulled(), await pulled("b"), await pulled("*")] == [
            b"aa",
            b"abab",
            b"bb",
            b"abab",
        ]
        async with consumer.session([queue], tags="a") as some, consumer.session([queue]) as all_of_them:
            assert b"".join([message.body for message in await some.fetch(4)]) == b"aa"
            assert b"".join([message.body for message in await all_of_them.fetch(4)]) == b"abab"


@pytest.mark.parametrize("whose", ["session", "consumer"])
async def test_a_loop_over_a_session_ends_when_it_is_stopped_from_elsewhere(names: str, whose: str) -> None:
    async with Producer(names) as producer:
        await producer.send(Message("t", b"x"))
    consumer = await PullConsumer(names, group="g").start()
    session = await consumer.session("t").start()
    read = asyncio.Event()

    async def loop() -> None:
        async for _ in session:
            read.set()

    looping = asyncio.create_task(loop())
    async with asyncio.timeout(10):
        await read.wait()
        await (session if whose == "session" else consumer).stop()
        await looping
        assert await session.fetch(timeout_ms=10) == []
    await consumer.stop()
    assert [offset for offset in session.offsets.values() if offset] == [1], "the loop came back from its message"


async def test_a_session_says_at_once_what_it_can_never_read() -> None:
    consumer = PullConsumer("127.0.0.1:1", group="g")
    with pytest.raises(ValueError, match="names no tag"):
        consumer.session("t", tags="||")


async def test_a_fetch_from_a_session_that_is_stopped_comes_back_at_once(names: str) -> None:
    async with PullConsumer(names, group="g") as consumer, asyncio.timeout(10):
        session = await consumer.session("t").start()
        fetching = asyncio.create_task(session.fetch(timeout_ms=60_000))
        await asyncio.sleep(0)
        await session.stop()
        assert await fetching == []
        assert await session.fetch(timeout_ms=60_000) == []


async def test_a_session_reads_on_after_a_failure_nobody_has_foreseen(
    names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_module, "ERROR_WAIT_S", 0.01)
    async with Producer(names) as producer, PullConsumer(names, group="g") as consumer, asyncio.timeout(10):
        queue = (await producer.queues("t"))[0]
        await producer.send(Message("t", b"x"), queue=queue)
        pull, calls = consumer.pull, 0

        async def failing(*args: Any, **how: Any) -> PullResult:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise TypeError("unforeseen")
            return await pull(*args, **how)

        monkeypatch.setattr(consumer, "pull", failing)
        async with consumer.session([queue]) as session:
            assert [message.body for message in await session.fetch(timeout_ms=5000)] == [b"x"]


async def test_the_file_of_a_broadcasting_member_is_whole_whoever_writes_it(tmp_path: Path) -> None:
    # Claim: commits side by side, one of them given up in the middle, leave a file with every offset and nothing else.
    for attempt in range(20):
        consumer = Consumer(
            "127.0.0.1:1", group="g", model=MessageModel.BROADCASTING, offsets_directory=tmp_path / str(attempt)
        )
        queues = [ProcessQueue(MessageQueue("t", "b", number), 10**number) for number in range(9)]
        given_up = asyncio.create_task(consumer._offsets.commit(queues))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(*(consumer._offsets.commit([queue]) for queue in queues))
        (path,) = (tmp_path / str(attempt)).rglob("offsets.json")
        assert json.loads(path.read_text())["offsets"] == {f"t@b@{number}": 10**number for number in range(9)}
        assert [queue.persisted for queue in queues] == [10**number for number in range(9)]


@pytest.mark.parametrize(
    "content",
    [
        "", "x", "[]", "{}", "[" * 100_000, '{"offsets": []}', '{"offsets": {"t@b@0": null}}',
        '{"offsets": {"t@b@0": 1e999}}', '{"offsets": {"t@b@0": -1}}', '{"offsets": {"t@b@0": 9223372036854775808}}',
    ],
)  # fmt: skip
async def test_a_broadcasting_member_starts_without_a_file_that_is_of_another_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    async def first(consumer: Consumer, queue: MessageQueue) -> int:
        return 7

    monkeypatch.setattr(offsets, "first_offset", first)
    consumer = Consumer("127.0.0.1:1", group="g", model=MessageModel.BROADCASTING, offsets_directory=tmp_path)
    path = tmp_path / consumer.client.client_id / "g" / "offsets.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert await consumer._offsets.start(MessageQueue("t", "b", 0)) == 7


async def test_a_balance_that_fails_in_an_unforeseen_way_is_tried_again(
    names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Producer(names) as producer:
        await producer.send(Message("t", b"x"))
    consumer = Consumer(names, group="g", start_from=ConsumeFrom.FIRST_OFFSET)
    seen: list[MessageExt] = []
    start, calls = consumer._offsets.start, 0

    async def failing(queue: MessageQueue) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise TypeError("unforeseen")
        return await start(queue)

    monkeypatch.setattr(consumer._offsets, "start", failing)

    @consumer.on("t")
    async def handle(message: MessageExt) -> None:
        seen.append(message)

    async with consumer:
        await eventually(lambda: len(seen) == 1)


async def test_a_handler_stops_its_consumer_and_the_run_ends(names: str) -> None:
    async with Producer(names) as producer:
        await producer.send(Message("t", b"x"))
    consumer = Consumer(names, group="g", start_from=ConsumeFrom.FIRST_OFFSET)
    came_back = asyncio.Event()

    @consumer.on("t")
    async def handle(message: MessageExt) -> None:
        await consumer.stop()
        came_back.set()

    async with asyncio.timeout(5):
        await consumer.run()
        await came_back.wait()
    assert not consumer.client.pool.connected


async def test_a_plain_handler_stops_its_consumer_at_once(names: str) -> None:
    # Claim: the stop waits for what other handlers have in hand, not for the one that asked for it.
    async with Producer(names) as producer:
        await producer.send(Message("t", b"x"))
    consumer = sync.Consumer(names, group="g", start_from=ConsumeFrom.FIRST_OFFSET)

    @consumer.on("t", concurrency=2)
    def handle(message: MessageExt) -> None:
        consumer.stop()

    async with asyncio.timeout(5):
        await asyncio.to_thread(consumer.run)


async def test_a_worker_ends_with_its_loop(names: str) -> None:
    # Claim: who cancels all tasks, as asyncio.run does when main has failed, is not held up by a handler at work; a
    # cancellation that comes out of the handler's own doing is a failure like others.
    async with Producer(names) as producer:
        for _ in range(2):
            await producer.send(Message("t", b"x"))
    consumer = Consumer(names, group="g", start_from=ConsumeFrom.FIRST_OFFSET, concurrency=1)
    calls = 0

    @consumer.on("t")
    async def handle(message: MessageExt) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError
        await asyncio.Event().wait()

    async with consumer:
        await eventually(lambda: calls == 2)
        (worker,) = consumer._handlers["t"].workers
        worker.cancel()
        await eventually(worker.cancelled)


async def test_a_plain_batch_handler_that_raises_stop_iteration_has_failed(names: str) -> None:
    # Claim: it is a failure like others, and the worker goes on; no future takes a StopIteration.
    consumer = Consumer(names, group="g", start_from=ConsumeFrom.FIRST_OFFSET, concurrency=1)
    seen: list[MessageExt] = []

    @consumer.on_batch("t")
    def handle(messages: Sequence[MessageExt]) -> None:
        seen.extend(messages)
        next(iter(()))

    async with Producer(names) as producer, consumer:
        for number in (1, 2):
            await producer.send(Message("t", b"x"))
            await eventually(lambda number=number: len(seen) == number)
        with pytest.raises(RuntimeError, match="StopIteration"):
            async with asyncio.timeout(5):
                await consumer.consume_once(seen[0], 1.0)


async def test_a_topic_left_and_taken_again_at_once_is_read_on(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: also when its pulls have ended meanwhile and its queues have not been given up yet.
    consumer = Consumer(names, group="g", start_from=ConsumeFrom.FIRST_OFFSET)
    seen: list[bytes] = []

    @consumer.on("t")
    async def handle(message: MessageExt) -> None:
        seen.append(message.body)

    async with Producer(names) as producer, consumer:
        queues = await producer.queues("t")
        await eventually(lambda: set(queues) <= set(consumer.queues))
        due, rebalance = asyncio.Event(), consumer.rebalance

        async def late() -> bool:
            await due.wait()
            return await rebalance()

        monkeypatch.setattr(consumer, "rebalance", late)
        consumer.unsubscribe("t")
        for queue in queues:
            await producer.send(Message("t", b"between"), queue=queue)
        await eventually(lambda: all(consumer._pulls[queue].done() for queue in queues))
        consumer.subscribe("t")
        due.set()
        for queue in queues:
            await producer.send(Message("t", b"after"), queue=queue)
        await eventually(lambda: sorted(seen) == [b"after"] * 2 + [b"between"] * 2)


async def test_a_reset_while_queues_go_to_another_member_counts_for_all(names: str) -> None:
    # Claim: a queue that stays is read from there; for one that goes the offset is what its next owner finds.
    consumer = Consumer(names, group="g", start_from=ConsumeFrom.FIRST_OFFSET)
    seen: list[int] = []
    released = asyncio.Event()

    @consumer.on("t")
    async def handle(message: MessageExt) -> None:
        seen.append(message.queue_id)
        if message.queue_id == 0:
            await released.wait()

    async with Producer(names) as producer, consumer:
        going, staying = await producer.queues("t")
        for queue in (going, staying):
            await producer.send(Message("t", b"x"), queue=queue)
        await eventually(lambda: sorted(seen) == [0, 1])
        handing_over = asyncio.create_task(consumer._hold("t", [staying]))
        await eventually(lambda: consumer.queues[going].dropped)
        consumer.reset({going: 0, staying: 0})
        await eventually(lambda: sorted(seen) == [0, 1, 1])
        released.set()
        await handing_over
        assert await consumer._offsets.start(going) == 0


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("meanwhile", ["nobody", "another member", "reset", "reset while it was given up"])
async def test_a_queue_given_up_while_its_broker_is_away_goes_on_where_it_was(
    names: str, monkeypatch: pytest.MonkeyPatch, meanwhile: str, told: bool
) -> None:
    # Claim: what the broker could not be told counts when it is back, unless others had the queue or it was reset.
    async def away(*_: object) -> None:
        if meanwhile == "reset while it was given up":
            consumer.reset({queue: 0})
        raise ConnectError("the broker is away")

    def nothing(*_: object) -> list[MessageQueue]:
        return []

    consumer = Consumer(names, group="g", start_from=ConsumeFrom.FIRST_OFFSET)
    monkeypatch.setattr(consumer._offsets, "with_pull", lambda _: -1)
    seen: list[bytes] = []

    @consumer.on("t")
    async def handle(message: MessageExt) -> None:
        seen.append(message.body)

    async with Producer(names) as producer, consumer:
        queue = (await producer.queues("t"))[0]
        await producer.send(Message("t", b"0"), queue=queue)
        await eventually(lambda: seen == [b"0"])
        if told:
            await consumer._offsets.commit(consumer.queues.values())
        await producer.send(Message("t", b"1"), queue=queue)
        await eventually(lambda: consumer.queues[queue].committable == 2)
        with monkeypatch.context() as patch:
            patch.setattr(calls, "update_offset", away)
            await consumer._hold("t", [])
        if meanwhile == "reset":
            consumer.reset({queue: 0})
        elif meanwhile == "another member":
            with monkeypatch.context() as patch:
                patch.setattr(consumer, "_strategy", nothing)
                await consumer._rebalance_topic("t")
        await consumer._hold("t", [queue])
        await producer.send(Message("t", b"2"), queue=queue)
        await eventually(lambda: seen[-1] == b"2")
        again = [] if meanwhile == "nobody" else [b"1"] if told else [b"0", b"1"]
        assert seen == [b"0", b"1", *again, b"2"]


async def test_a_reset_at_the_last_moment_is_what_the_broker_is_told_at_the_stop(
    names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[MessageQueue, int]] = []

    async def recorded(_client: Client, _group: str, queue: MessageQueue, offset: int) -> None:
        told.append((queue, offset))

    monkeypatch.setattr(calls, "update_offset", recorded)
    async with Producer(names) as producer:
        queue = (await producer.send(Message("t", b"x"))).queue
    async with Consumer(names, group="g", subscriptions=["t"], start_from=ConsumeFrom.FIRST_OFFSET) as consumer:
        async for message in consumer:
            consumer.ack(message)
            break
        await consumer._offsets.commit(consumer.queues.values())
        assert (queue, 1) in told
        told.clear()
        consumer.reset({queue: 0})
    assert {offset for about, offset in told if about == queue} == {0}


async def test_the_first_offset_of_a_topic_is_told_alone_and_at_the_stop_all_are_told_again(
    names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: of the first commits of a group that come together Apache's broker keeps one only; and a broker that was
    # killed has forgotten what it was told last.
    told: list[MessageQueue] = []
    beside: list[int] = []
    under_way = 0
    update_offset = calls.update_offset

    async def counted(client: Client, group: str, queue: MessageQueue, offset: int) -> None:
        nonlocal under_way
        told.append(queue)
        beside.append(under_way)
        under_way += 1
        await update_offset(client, group, queue, offset)
        under_way -= 1

    monkeypatch.setattr(calls, "update_offset", counted)
    async with Consumer(names, group="g", subscriptions=["t"]) as consumer:
        await eventually(lambda: sum(queue.topic == "t" for queue in consumer.queues) == 2)
        queues = sorted(queue for queue in consumer.queues if queue.topic == "t")
        await consumer._offsets.commit([consumer.queues[queue] for queue in queues])
        assert (told, beside) == (queues, [0, 0])
        await consumer._offsets.commit([consumer.queues[queue] for queue in queues])
        assert told == queues
        told.clear()
        await consumer._offsets.commit([consumer.queues[queue] for queue in queues], last=True)
        assert told == [queues[0], *queues]


async def test_a_plain_loop_has_acknowledged_what_it_has_gone_on_from(names: str) -> None:
    # Claim: a stop from another thread commits every message but the one in hand, and the loop ends with that one.
    async with Producer(names) as producer:
        queue = (await producer.queues("t"))[0]
        for number in range(10):
            await producer.send(Message("t", b"%d" % number), queue=queue)
    consumer = sync.Consumer(names, group="g", subscriptions=["t"], start_from=ConsumeFrom.FIRST_OFFSET)
    seen: list[bytes] = []
    third, stopped = threading.Event(), threading.Event()

    def loop() -> None:
        for message in consumer.start():
            seen.append(message.body)
            if len(seen) == 3:
                third.set()
                stopped.wait(10)

    looping = asyncio.create_task(asyncio.to_thread(loop))
    assert await asyncio.to_thread(third.wait, 10)
    await asyncio.to_thread(consumer.stop)
    stopped.set()
    await looping
    assert seen == [b"0", b"1", b"2"]
    async with PullConsumer(names, group="g") as reader:
        assert await reader.committed(queue) == 2
