"""Static topics as mqadmin makes and moves them, under the official clients: two brokers of Apache's, two of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import apache
import ours
import pytest
from official import Client

import aerobee.client.consumer as consumer_module
from aerobee import ConsumeFrom, Consumer, Message, MessageExt, MessageQueue, Producer, PullConsumer
from aerobee.testing.eventually import eventually as soon
from aerobee.testing.eventually import eventually_sync as eventually

pytestmark = [pytest.mark.apache, pytest.mark.timeout(400)]  # two of Apache's brokers start, twice

TOPIC = "static"
BLOCK = 10_000
"""mqadmin begins the new leader's offsets at a multiple of this."""


class Pair:
    """A name server and the brokers `left` and `right` of one cluster."""

    def __init__(self, kind: str, directory: Any, client: Client) -> None:
        self.kind, self.client = kind, client
        self._maker = apache if kind == "apache" else ours
        self._directory = directory
        names, self._ports = (9886, {"left": 12911, "right": 13911})
        if kind == "aerobee":
            names, self._ports = (19886, {"left": 22911, "right": 23911})
        self.names = f"127.0.0.1:{names}"
        self._namesrv = self._maker.start_namesrv(directory / "names", names)
        self._brokers = {name: self._start(name) for name in self._ports}
        self._number = 0
        self._groups: list[str] = []
        self.sent: dict[str, int] = {}
        """Unique id → number of each message that was accepted."""

    def _start(self, name: str) -> apache.Process:
        options = apache.PATIENT if self.kind == "apache" else None
        return self._maker.start_broker(self._directory / name, self.names, self._ports[name], options, name=name)

    def kill_and_start(self, name: str) -> None:
        self._brokers[name].kill()
        self._brokers[name] = self._start(name)

    def discard(self) -> None:
        for group in self._groups:
            self.client.do("consume.stop", name=f"{self.kind}/{group}")
        for process in [*self._brokers.values(), self._namesrv]:
            process.kill()

    def admin(self, *args: str) -> str:
        return self.client.admin(*args, "-n", self.names)

    def route(self) -> str:
        header, body = apache.call(self.names, 105, {"topic": TOPIC, "acceptStandardJsonOnly": "true"})
        return body.decode() if header["code"] == 0 else ""

    def produce(self, count: int, *, errors: bool = False) -> list[dict[str, Any]]:
        """Sends from a producer of its own, which knows the newest route; the accepted ones."""
        reply = self.client.do(
            "produce", namesrv=self.names, topic=TOPIC, count=count, **{"from": self._number}, timeout_ms=3000
        )
        assert errors or reply["errors"] == {}, reply["errors"]
        self._number += count
        for result in reply["results"]:
            self.sent[result["msg_id"]] = result["queue"]
        results: list[dict[str, Any]] = reply["results"]
        return results

    def consume(self, group: str) -> None:
        self.client.do(
            "consume.start", name=f"{self.kind}/{group}", group=group, namesrv=self.names, topic=TOPIC,
            orderly=True, list=100_000,
        )  # fmt: skip
        self._groups.append(group)

    def received(self, group: str, count: int, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        state = self.client.do(
            "consume.state", name=f"{self.kind}/{group}", received=count, timeout_ms=int(timeout_s * 1000)
        )
        messages: list[dict[str, Any]] = state["messages"]
        return messages


@pytest.fixture(params=["apache", "aerobee"])
def pair(
    request: pytest.FixtureRequest,
    private_network: None,
    client: Client,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    made = Pair(request.param, tmp_path_factory.mktemp(f"static-{request.param}"), client)
    yield made
    made.discard()


def in_order(messages: list[dict[str, Any]]) -> None:
    """Within each queue numbers and offsets only grow."""
    last: dict[int, tuple[int, int]] = {}
    for message in messages:
        here = (int(message["properties"]["seq"]), message["queue_offset"])
        before = last.get(message["queue"], (-1, -1))
        assert here[0] > before[0] and here[1] > before[1], f"queue {message['queue']}: {before} then {here}"
        last[message["queue"]] = here


def test_queues_move_under_a_producer_and_a_consumer(pair: Pair) -> None:
    # Claim: a logical queue keeps its number and its order while it moves from broker to broker and its brokers are
    # killed; its consumers get every accepted message once, and continue where they were.
    pair.admin("updateStaticTopic", "-b", "left", "-t", TOPIC, "-qn", "4")
    eventually(lambda: '"topicQueueMappingByBroker":{' in pair.route(), 30)
    pair.consume("followers")
    first = pair.produce(100)
    assert sorted((result["queue"], result["queue_offset"]) for result in first) == [
        (queue, offset) for queue in range(4) for offset in range(25)
    ]
    assert len(pair.received("followers", 100)) == 100

    moving = pair.client.start(
        "admin", args=["remappingStaticTopic", "-b", "left,right", "-t", TOPIC, "-n", pair.names]
    )
    while not moving.done():
        pair.produce(20, errors=True)  # the former leader refuses until the producer knows better
    moving.result(1)
    eventually(lambda: all(result["queue_offset"] >= 0 for result in pair.produce(8, errors=True)), 30)
    later = pair.produce(100)
    moved = {result["queue"] for result in later if result["queue_offset"] >= BLOCK}
    assert len(moved) == 2, "half of the queues are led by the other broker now"

    def all_came(group: str) -> list[dict[str, Any]]:
        messages = pair.received(group, len(pair.sent), 90)
        assert sorted(message["msg_id"] for message in messages) == sorted(pair.sent)
        in_order(messages)
        return messages

    everything = all_came("followers")
    assert {message["queue"] for message in everything if message["queue_offset"] >= BLOCK} == moved

    pair.admin("updateStaticTopic", "-b", "left,right", "-t", TOPIC, "-qn", "6")
    eventually(lambda: {result["queue"] for result in pair.produce(24, errors=True)} == set(range(6)), 30)
    all_came("followers")

    for name in ("right", "left"):
        pair.kill_and_start(name)
    eventually(lambda: {result["queue"] for result in pair.produce(24, errors=True)} == set(range(6)), 30)
    messages = pair.received("followers", len(pair.sent), 90)
    assert {message["msg_id"] for message in messages} == set(pair.sent)
    pair.consume("readers")
    again = all_came("readers")
    assert len(again) == len(pair.sent), "a new group reads all of it, through every stretch"
    table = pair.admin("topicStatus", "-t", TOPIC)
    assert "__syslo__global__" in table or "left" in table


async def test_queues_move_under_the_python_client(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: while queues move no send fails, and none is stored twice; two groups of two members, one in
    # order and one not, get everything once and in order, and go on where they were; whoever reads at own offsets too.
    monkeypatch.setattr(consumer_module, "HOLD_MS", 1000)  # nothing comes any more where the last pull waits
    await asyncio.to_thread(pair.admin, "updateStaticTopic", "-b", "left", "-t", TOPIC, "-qn", "4")
    await soon(lambda: '"topicQueueMappingByBroker":{' in pair.route(), 30)
    got: dict[str, list[MessageExt]] = {"ordered": [], "spread": []}
    members: list[Consumer] = []
    placed: dict[str, tuple[MessageQueue, int]] = {}

    def consumer(group: str) -> Consumer:
        return Consumer(
            pair.names, group=group, subscriptions=[TOPIC], start_from=ConsumeFrom.FIRST_OFFSET,
            orderly=group == "ordered",
        )  # fmt: skip

    async def read(group: str, stopping: asyncio.Event) -> None:
        async with consumer(group) as reader:
            members.append(reader)
            took = asyncio.create_task(take(reader, got[group]))
            await stopping.wait()
        await took

    async def send(producer: Producer, queue: MessageQueue, until: asyncio.Event) -> None:
        while not until.is_set():
            number = len(placed)
            message = Message(TOPIC, b"%d" % number)
            placed[message.give_unique_id()] = queue, -1
            if number % 3:
                result = await producer.send(message, queue=queue)
            else:
                result = await producer.send_batch([message], queue=queue)
            assert result.queue == queue
            placed[message.unique_id] = queue, result.queue_offset
            await asyncio.sleep(0.02)

    def shared() -> bool:
        return [sum(queue.topic == TOPIC for queue in member.queues) for member in members] == [2] * 4

    def came() -> bool:
        return all(len(messages) >= len(placed) for messages in got.values())

    def sent_to(queue: MessageQueue) -> list[str]:
        return [unique_id for unique_id, (chosen, _) in placed.items() if chosen == queue]

    def moved() -> set[MessageQueue]:
        return {queue for queue, offset in placed.values() if offset >= BLOCK}

    async with Producer(pair.names, group="p", retry_times=0) as producer:
        queues = await producer.queues(TOPIC)
        assert queues == [MessageQueue(TOPIC, "__syslo__global__", number) for number in range(4)]
        stopping, enough = asyncio.Event(), asyncio.Event()
        reading = [asyncio.create_task(read(group, stopping)) for group in 2 * list(got)]
        await soon(shared, 30)  # a queue that changes hands may be read twice
        sending = [asyncio.create_task(send(producer, queue, enough)) for queue in queues]
        await soon(lambda: all(len(messages) >= 40 for messages in got.values()), 20)
        await asyncio.to_thread(pair.admin, "remappingStaticTopic", "-b", "left,right", "-t", TOPIC)
        await soon(lambda: len(moved()) == 2, 10)
        enough.set()
        await asyncio.gather(*sending)
        await soon(came, 20)
        stopping.set()
        await asyncio.gather(*reading)
        first = await asyncio.gather(*(producer.send(Message(TOPIC, b"later"), queue=queue) for queue in queues))

    for messages in got.values():
        assert sorted(message.unique_id for message in messages) == sorted(placed)
        for queue in queues:
            here = [message for message in messages if message.queue_id == queue.queue_id]
            assert [message.unique_id for message in here] == sent_to(queue)
            assert {message.broker_name for message in here} == {queue.broker_name}
            offsets = [message.queue_offset for message in here]
            assert offsets == sorted(set(offsets))
            assert (offsets[-1] >= BLOCK) == (queue in moved())
            assert all(placed[m.unique_id][1] in (m.queue_offset, -1) for m in here)

    got["ordered"], got["spread"] = [], []
    stopping = asyncio.Event()
    reading = [asyncio.create_task(read(group, stopping)) for group in got]
    await soon(lambda: all(len(messages) == 4 for messages in got.values()), 20)
    stopping.set()
    await asyncio.gather(*reading)
    for messages in got.values():
        places = sorted((message.queue_id, message.queue_offset) for message in messages)
        assert places == [(result.queue.queue_id, result.queue_offset) for result in first]

    async with PullConsumer(pair.names, group="own") as pull:
        for queue, result in zip(queues, first, strict=True):
            begin, end = await pull.min_offset(queue), await pull.max_offset(queue)
            assert (begin, end) == (0, result.queue_offset + 1)
            assert await pull.offset_by_time(queue, 0) == 0
            read_here: list[str] = []
            while begin < end:
                found = await pull.pull(queue, begin)
                read_here += [message.unique_id for message in found.messages]
                assert found.next_offset > begin or not found.messages
                begin = found.next_offset
            assert read_here[:-1] == sent_to(queue)
        await pull.commit(queues[0], 7)
        assert await pull.committed(queues[0]) == 7


async def take(consumer: Consumer, into: list[MessageExt]) -> None:
    """Until the consumer stops."""
    async for message in consumer:
        into.append(message)
