"""Transactions at a whole broker in this process: real store, real sockets, producers that are slow or gone."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from aerobee.broker.options import BrokerOptions
from aerobee.broker.records import COMMIT, ROLLBACK, format_properties, parse_record, parse_records
from aerobee.broker.server import Broker
from aerobee.broker.store import Batch, Record
from aerobee.broker.topics import HALF_TOPIC, OP_HALF_TOPIC
from aerobee.net.connection import Connection
from aerobee.net.remote import RemotePool
from aerobee.protocol import fastjson
from aerobee.protocol.codes import RequestCode
from aerobee.protocol.command import RemotingCommand
from aerobee.testing.eventually import eventually


async def start(tmp_path: Path, **values: Any) -> Broker:
    settings = {
        "broker_name": "broker-a",
        "store_path_root_dir": str(tmp_path / "store"),
        "listen_port": 0,
        "mapped_file_size_commit_log": 1 << 20,
        "mapped_file_size_consume_queue": 200_000,
        "max_hash_slot_num": 10_000,
        "max_index_num": 40_000,
        "transaction_time_out": 100,
        "transaction_check_interval": 3_600_000,
        "disk_max_used_space_ratio": 95,
        **values,
    }
    broker = Broker(BrokerOptions(**settings))
    await broker.start()
    return broker


class Producer:
    """A producer of group `g` that answers questions with `answer`, at once."""

    def __init__(self, broker: Broker, answer: int = 0) -> None:
        self.address, self.answer = broker.address, answer
        self.asked: list[RemotingCommand] = []
        self.pool = RemotePool(on_request=self._on_request)

    def _on_request(self, connection: Connection, command: RemotingCommand) -> None:
        self.asked.append(command)
        fields = command.ext_fields
        if self.answer:
            place = int(fields["tranStateTableOffset"]), int(fields["commitLogOffset"])
            connection.send(self._end(place, self.answer, from_check=True))

    @staticmethod
    def _end(place: tuple[int, int], decision: int, *, from_check: bool = False) -> RemotingCommand:
        command = RemotingCommand.request(RequestCode.END_TRANSACTION, oneway=from_check)
        command.ext_fields.update(
            producerGroup="g",
            tranStateTableOffset=str(place[0]),
            commitLogOffset=str(place[1]),
            commitOrRollback=str(decision),
            fromTransactionCheck=str(from_check).lower(),
        )
        return command

    async def join(self) -> None:
        body = {"clientID": f"c{id(self)}", "producerDataSet": [{"groupName": "g"}], "consumerDataSet": []}
        command = RemotingCommand.request(RequestCode.HEART_BEAT, body=fastjson.dumps(body))
        assert (await self.pool.invoke(self.address, command, 10)).code == 0

    async def send(self, key: str, **properties: str) -> tuple[int, int]:
        """A half message; its queue offset and position."""
        every = {"TRAN_MSG": "true", "PGROUP": "g", "UNIQ_KEY": key, **properties}
        text = format_properties(every).decode()
        command = RemotingCommand.request(RequestCode.SEND_MESSAGE_V2, body=key.encode())
        letters = dict(a="g", b="orders", c="TBW102", d=1, e=0, f=4, g=int(time.time() * 1000), h=0, i=text, j=0)
        command.ext_fields.update({name: str(value) for name, value in letters.items()})
        reply = await self.pool.invoke(self.address, command, 10)
        assert reply.code == 0
        return int(reply.ext_fields["queueOffset"]), int(reply.ext_fields["msgId"][16:], 16)

    async def end(self, place: tuple[int, int], decision: int) -> None:
        assert (await self.pool.invoke(self.address, self._end(place, decision), 10)).code == 0


def bodies(broker: Broker, topic: str = "orders", queue_id: int = 0) -> list[bytes]:
    low, high = broker.store.bounds(topic, queue_id)
    return [message.body for message in parse_records(broker.store.read(topic, queue_id, low, high - low).records)]


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
async def test_the_answer_to_a_question_counts_once(tmp_path: Path, flush: str) -> None:
    """Claim: a question leaves when its half is where the answer looks for it, and answers that cross count once."""
    broker = await start(tmp_path, flush_disk_type=flush)
    producer = Producer(broker, COMMIT)
    try:
        await producer.join()
        halves = [await producer.send(f"{n}") for n in range(40)]
        await asyncio.sleep(0.11)  # sleeps: until they are old enough to be asked about
        round_ = asyncio.ensure_future(broker.transactions.check())
        await asyncio.gather(*(producer.end(half, COMMIT) for half in halves))
        await round_
        await eventually(lambda: len(bodies(broker)) == 40)
        await broker.transactions.check()
        assert sorted(bodies(broker)) == sorted(b"%d" % n for n in range(40))
        assert broker.transactions.pending == 0
    finally:
        await producer.pool.close()
        await broker.stop()


@pytest.mark.parametrize(
    ("properties", "topic", "queue_id"),
    [({"DELAY": "3"}, "SCHEDULE_TOPIC_XXXX", 2), ({"TIMER_DELAY_SEC": "3600"}, "rmq_sys_wheel_timer", 0)],
    ids=["level", "time"],
)
async def test_a_committed_message_that_names_a_time_waits_for_it(
    tmp_path: Path, properties: dict[str, str], topic: str, queue_id: int
) -> None:
    broker = await start(tmp_path)
    producer = Producer(broker)
    try:
        half = await producer.send("later", **properties)
        assert bodies(broker, topic, queue_id) == []
        await producer.end(half, COMMIT)
        await producer.end(half, COMMIT)
        assert bodies(broker, topic, queue_id) == [b"later"] and bodies(broker) == []
    finally:
        await producer.pool.close()
        await broker.stop()


async def test_any_producer_of_the_group_is_asked_and_one_that_reads(tmp_path: Path) -> None:
    """Claim: questions go round; a producer that is gone gets none, and one that does not read is no obstacle."""
    broker = await start(tmp_path)
    first, second = Producer(broker), Producer(broker)
    try:
        await first.join()
        await second.join()
        for n in range(6):
            await first.send(f"{n}")
        await asyncio.sleep(0.11)  # sleeps: until they are old enough to be asked about
        await broker.transactions.check()
        await eventually(lambda: len(first.asked) == len(second.asked) == 3)
        deaf = next(iter(broker.clients.producers["g"].values()))
        deaf.connection.blocked = True
        await broker.transactions.check()
        await eventually(lambda: len(first.asked) + len(second.asked) == 12)
        assert sorted((len(first.asked), len(second.asked))) == [3, 9]
        deaf.connection.blocked = False
        await second.pool.close()
        await eventually(lambda: len(broker.clients.producers["g"]) == 1)
        asked = len(first.asked)
        await broker.transactions.check()
        await eventually(lambda: len(first.asked) == asked + 6)
    finally:
        await first.pool.close()
        await second.pool.close()
        await broker.stop()


async def test_broker_status_shows_open_transactions(tmp_path: Path) -> None:
    broker = await start(tmp_path)
    producer = Producer(broker)
    try:
        ended = [await producer.send(f"{n}") for n in range(3)]
        await producer.end(ended[0], COMMIT)
        await producer.end(ended[1], ROLLBACK)
        reply = await producer.pool.invoke(
            broker.address, RemotingCommand.request(RequestCode.GET_BROKER_RUNTIME_INFO), 10
        )
        table = fastjson.loads(reply.body)["table"]
        names = ("Open", "Prepared", "Committed", "RolledBack", "Asked", "GivenUp")
        assert [table[f"transactions{name}"] for name in names] == ["1", "3", "1", "1", "0", "0"]
        mark = parse_record(broker.store.read(OP_HALF_TOPIC, 0, 0, 1).records)
        assert mark.born_host == broker.listeners.store_host
    finally:
        await producer.pool.close()
        await broker.stop()


async def test_the_interval_of_rounds_can_be_changed_while_we_run(tmp_path: Path) -> None:
    broker = await start(tmp_path, transaction_check_interval=50)
    producer = Producer(broker, ROLLBACK)
    try:
        await producer.join()
        broker.options.change({"transactionCheckInterval": "60"})
        await producer.send("one")
        await eventually(lambda: len(producer.asked) == 1)
        broker.options.change({"transactionCheckInterval": "3600000"})
        await asyncio.sleep(0.2)  # sleeps: the round that was waited for passes
        await producer.send("two")
        await asyncio.sleep(0.3)  # sleeps: no round comes within this time
        assert len(producer.asked) == 1
    finally:
        await producer.pool.close()
        await broker.stop()


def halves(broker: Broker, count: int) -> None:
    """So many open halves of a group that nobody is in, old enough to be asked about."""
    born_ms = int(time.time() * 1000) - 60_000
    for first in range(0, count, 1000):
        broker.store.append(
            [
                Record(
                    HALF_TOPIC,
                    0,
                    b"half",
                    format_properties({"PGROUP": "gone", "UNIQ_KEY": f"{n}", "REAL_TOPIC": "orders", "REAL_QID": "0"}),
                    born_timestamp=born_ms,
                )
                for n in range(first, min(count, first + 1000))
            ]
        )


async def test_open_halves_cost_disk_and_neither_memory_nor_start_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claim: four times as many open halves cost a few bits each more of memory, through a round of questions too; a
    start reads none of them, and no round keeps others from their turn."""
    grown = [await a_round_of(tmp_path / str(count), count, monkeypatch) for count in (1_000, 4_000)]
    assert grown[1] - grown[0] < 4 * (4_000 - 1_000), f"bytes for 1000 and 4000 halves: {grown}"


async def a_round_of(directory: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The bytes that start and round cost with so many open halves."""
    broker = await start(directory)
    halves(broker, count)
    await broker.transactions.check()
    await broker.stop()

    broker = await start(directory)
    read, reads = broker.store.read, []

    def counted(topic: str, *args: int) -> Batch:
        reads.append(topic)
        return read(topic, *args)

    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    with monkeypatch.context() as patch:
        patch.setattr(broker.store, "read", counted)
        broker.transactions.load()
        assert HALF_TOPIC not in reads and reads.count(OP_HALF_TOPIC) <= 1
    assert broker.transactions.pending == count
    task = asyncio.ensure_future(others())
    tracemalloc.start()
    await broker.transactions.check()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    task.cancel()
    assert turns >= count // 32 - 1
    (record,) = parse_records(broker.store.read(HALF_TOPIC, 0, 2 * count, 1).records)
    assert record.properties["TRANSACTION_CHECK_TIMES"] == "2" and broker.transactions.pending == count
    await broker.stop()
    return grown


async def test_the_marks_of_a_round_are_few(tmp_path: Path) -> None:
    broker = await start(tmp_path)
    try:
        halves(broker, 640)
        await broker.transactions.check()
        marks = bodies(broker, OP_HALF_TOPIC)
        assert len(marks) == 20 and b"".join(marks) == b"".join(b"%d," % n for n in range(640))
        data = broker.store.record(int.from_bytes(broker.store.entries(HALF_TOPIC, 0, 640, 1)[:8], "big"))
        assert data is not None and parse_record(data).queue_offset == 640
    finally:
        await broker.stop()
