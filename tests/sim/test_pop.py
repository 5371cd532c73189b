"""Pop on a manual clock with a real store: given out, acknowledged, hidden on, come again, through crashes."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aerobee.broker.options import BrokerOptions
from aerobee.broker.pop_names import format_handle, retry_flag, retry_topic, topic_of_flag
from aerobee.broker.records import Stored, format_properties, parse_records
from aerobee.broker.revive import FIRST_POP_TIME, GROUP, TURN_MESSAGES
from aerobee.broker.server import Broker
from aerobee.broker.store import Record
from aerobee.clock import ManualClock
from aerobee.errors import AerobeeError, DiskFull, MalformedRequest
from aerobee.net.remote import RemotePool
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.pop import BatchAck, BatchAckMessageRequestBody
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.testing.eventually import eventually

TOPIC = "orders"


@dataclass
class Message:
    """A popped message and its handle, as the official client puts it together."""

    topic: str
    queue: int
    offset: int
    body: bytes
    times: int
    handle: str
    stored: Stored

    @property
    def stored_topic(self) -> str:
        return topic_of_flag(self.handle.split(" ")[4], self.topic, "g")


class Bench:
    """A broker on a manual clock, and a client that speaks plain commands."""

    def __init__(self, tmp_path: Path, **values: Any) -> None:
        self.clock = ManualClock(1_800_000_000_000)
        self.path = tmp_path
        self.values = values
        self.lives = itertools.count()
        self.broker: Broker
        self.pool = RemotePool()

    async def start(self, store: Path | None = None) -> Bench:
        self.store = store or self.path / f"store{next(self.lives)}"
        options = BrokerOptions(
            **{
                "broker_name": "broker-a",
                "store_path_root_dir": str(self.store),
                "listen_port": 0,
                "mapped_file_size_commit_log": 1 << 22,
                "mapped_file_size_consume_queue": 20_000,
                "max_hash_slot_num": 1000,
                "max_index_num": 4000,
                **self.values,
            }
        )
        self.broker = Broker(options, clock=self.clock)
        await self.broker.start()
        return self

    async def stop(self) -> None:
        await self.pool.close()
        await self.broker.stop()

    async def crash(self) -> None:
        """What `kill -9` leaves is on the disk now; a new broker finds it."""
        copy = self.path / f"store{next(self.lives)}"
        shutil.copytree(self.store, copy, ignore=shutil.ignore_patterns("*.tmp", "*.bak"))
        (copy / "lock").unlink(missing_ok=True)
        await self.pool.close()
        await self.broker.stop()
        self.pool = RemotePool()
        await self.start(copy)

    async def restart(self) -> None:
        """In peace."""
        await self.stop()
        self.pool = RemotePool()
        await self.start(self.store)

    async def call(self, code: int, body: bytes = b"", **fields: Any) -> RemotingCommand:
        command = RemotingCommand.request(code, body=body)
        command.ext_fields.update({name: str(value) for name, value in fields.items() if value is not None})
        return await self.pool.invoke(self.broker.address, command, 10)

    async def send(self, *bodies: str, queue: int = 0, properties: str = "", topic: str = TOPIC) -> None:
        for body in bodies:
            reply = await self.call(
                RequestCode.SEND_MESSAGE_V2, body.encode(), a="p", b=topic, c="TBW102", d=4, e=queue, f=0,
                g=self.clock.now_ms(), h=0, i=properties, j=0,
            )  # fmt: skip
            assert reply.code == 0, reply.remark

    def ask(self, **fields: Any) -> asyncio.Task[RemotingCommand]:
        header = {
            "consumerGroup": "g",
            "topic": TOPIC,
            "queueId": -1,
            "maxMsgNums": 32,
            "invisibleTime": 60_000,
            "pollTime": 0,
            "bornTime": self.clock.now_ms(),
            "initMode": 0,
            **fields,
        }
        return asyncio.ensure_future(self.call(RequestCode.POP_MESSAGE, **header))

    async def pop(self, **fields: object) -> list[Message]:
        reply = await self.ask(**fields)
        assert reply.code in (0, ResponseCode.POLLING_TIMEOUT), reply.remark
        return messages(reply)

    async def pop_all(self, **fields: object) -> list[Message]:
        """Until three pops in a row give nothing: each pop reads one form of the retry topic."""
        out: list[Message] = []
        empty = 0
        while empty < 3:
            some = await self.pop(**fields)
            out += some
            empty = 0 if some else empty + 1
        return out

    async def ack(self, message: Message) -> RemotingCommand:
        return await self.call(
            RequestCode.ACK_MESSAGE, consumerGroup="g", topic=message.stored_topic, queueId=message.queue,
            extraInfo=message.handle, offset=message.offset,
        )  # fmt: skip

    async def hide(self, message: Message, invisible_ms: int, **fields: Any) -> str:
        """The new handle."""
        reply = await self.call(
            RequestCode.CHANGE_MESSAGE_INVISIBLETIME,
            consumerGroup="g",
            topic=message.stored_topic,
            queueId=message.queue,
            extraInfo=message.handle,
            offset=message.offset,
            invisibleTime=invisible_ms,
            **fields,
        )
        assert reply.code == 0, reply.remark
        parts = reply.ext_fields
        return format_handle(
            message.offset, int(parts["popTime"]), int(parts["invisibleTime"]), int(parts["reviveQid"]),
            message.stored_topic, "broker-a", message.queue, message.offset,
        )  # fmt: skip

    async def pull(self, expression: str, kind: str) -> RemotingCommand:
        """With a subscription of its own."""
        return await self.call(
            RequestCode.PULL_MESSAGE, consumerGroup="g", topic=TOPIC, queueId=0, queueOffset=0, maxMsgNums=32,
            sysFlag=4, commitOffset=0, suspendTimeoutMillis=0, subscription=expression, subVersion=0,
            expressionType=kind,
        )  # fmt: skip

    def hold_flushes(self) -> asyncio.Event:
        """Nothing counts as flushed until the event is set."""
        store, gate = self.broker.store, asyncio.Event()
        flushed = store.flushed

        async def held(receipt: Any) -> None:
            await gate.wait()
            await flushed(receipt)

        store.flushed = held  # type: ignore[method-assign]
        return gate

    async def parked(self, count: int) -> None:
        """So many requests wait."""
        await eventually(lambda: self.broker.pop._waiters == count)

    async def calm(self) -> None:
        """What the broker has begun, it has done."""
        for _ in range(3):
            await self.call(RequestCode.POLLING_INFO, consumerGroup="g", topic=TOPIC, queueId=-1)

    async def later(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        revive = self.broker.pop.revive
        # A retry topic is written by a thread, which does not know that time is made of paper here.
        await eventually(lambda: all(point.due_ms > self.clock.now_ms() for point in revive._open.values()))


def messages(reply: RemotingCommand) -> list[Message]:
    """The reply's messages with the handles that Java's client makes of its header."""
    header = reply.ext_fields
    starts = {
        tuple(part.split(" ")[:2]): part.split(" ")[2] for part in header.get("startOffsetInfo", "").split(";") if part
    }
    out = []
    for stored in parse_records(reply.body):
        handle = stored.properties.get("POP_CK")
        if handle is None:
            handle = format_handle(
                int(starts[retry_flag(stored.topic), str(stored.queue_id)]),
                int(header["popTime"]), int(header["invisibleTime"]),
                int(header["reviveQid"]), stored.topic, "broker-a", stored.queue_id, stored.queue_offset,
            )  # fmt: skip
        assert len(handle.split(" ")) == 8
        out.append(
            Message(
                stored.topic, stored.queue_id, stored.queue_offset, stored.body, stored.reconsume_times, handle, stored
            )
        )
    return out


def bodies(some: list[Message]) -> list[str]:
    return sorted(message.body.decode() for message in some)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = await Bench(tmp_path).start()
    yield made
    await made.stop()


async def test_popped_is_hidden_and_acknowledged_never_comes_again(bench: Bench) -> None:
    await bench.send("a", "b", "c")
    popped = await bench.pop()
    assert bodies(popped) == ["a", "b", "c"]
    assert await bench.pop_all() == []
    for message in popped:
        assert (await bench.ack(message)).code == 0
    await bench.later(120)
    assert await bench.pop_all() == []
    assert bench.broker.pop.revive.open == 0


async def test_unacknowledged_comes_again_after_its_invisible_time(bench: Bench) -> None:
    await bench.send("a", "b", queue=1, properties="TAGS\x01x\x02KEYS\x01k\x02")
    popped = await bench.pop(invisibleTime=30_000)
    await bench.ack(popped[0])
    await bench.later(29)
    assert await bench.pop_all() == []
    await bench.later(2)
    again = await bench.pop_all()
    assert bodies(again) == ["b"]
    (message,) = again
    assert (message.topic, message.times) == (TOPIC, 1), "of the topic that was asked for"
    assert message.stored_topic == "%RETRY%g_orders"
    properties = message.stored.properties
    assert properties["ORIGIN_GROUP"] == "g"
    assert properties[FIRST_POP_TIME] == popped[0].handle.split(" ")[1]
    assert (properties["TAGS"], properties["KEYS"]) == ("x", "k")
    await bench.later(61)
    (third,) = await bench.pop_all()
    assert third.times == 2
    await bench.ack(third)
    await bench.later(120)
    assert await bench.pop_all() == []


async def test_all_queues_and_one(bench: Bench) -> None:
    for queue in range(4):
        await bench.send(f"q{queue}", queue=queue)
    assert bodies(await bench.pop(queueId=2)) == ["q2"]
    assert bodies(await bench.pop()) == ["q0", "q1", "q3"]


async def test_no_more_than_asked_for(bench: Bench) -> None:
    await bench.send(*"abcde")
    reply = await bench.ask(maxMsgNums=2)
    assert bodies(messages(reply)) == ["a", "b"]
    assert reply.ext_fields["restNum"] == "3"
    assert reply.ext_fields["msgOffsetInfo"] == "0 0 0,1"
    assert reply.ext_fields["startOffsetInfo"] == "0 0 0"
    reply = await bench.ask(maxMsgNums=33)
    assert reply.code == ResponseCode.INVALID_PARAMETER


async def test_batch_ack(bench: Bench) -> None:
    await bench.send(*"abcdef")
    popped = await bench.pop()
    start, pop_time, invisible, revive = popped[0].handle.split(" ")[:4]
    batch = BatchAck(
        consumer_group="g", topic=TOPIC, retry="0", start_offset=int(start), queue_id=0, revive_queue_id=int(revive),
        pop_time=int(pop_time), invisible_time=int(invisible),
    )  # fmt: skip
    batch.set_offsets([0, 2, 3, 5])
    body = BatchAckMessageRequestBody(broker_name="broker-a", acks=[batch]).to_json()
    assert (await bench.call(RequestCode.BATCH_ACK_MESSAGE, body)).code == 0
    await bench.later(61)
    assert bodies(await bench.pop_all()) == ["b", "e"]
    assert (await bench.call(RequestCode.BATCH_ACK_MESSAGE, b"")).code == ResponseCode.NO_MESSAGE


async def test_hidden_on(bench: Bench) -> None:
    await bench.send("a", "b")
    first, second = await bench.pop(invisibleTime=10_000)
    first.handle = await bench.hide(first, 100_000)
    second.handle = await bench.hide(second, 1_000, suspend="true")
    await bench.later(2)
    (again,) = await bench.pop_all()
    assert (again.body, again.times) == (b"b", 0), "suspended: not counted"
    await bench.later(50)
    await bench.ack(first)
    await bench.ack(again)
    await bench.later(200)
    assert await bench.pop_all() == []


async def test_hiding_what_is_acknowledged_does_not_bring_it_back(bench: Bench) -> None:
    await bench.send("a")
    (message,) = await bench.pop()
    await bench.ack(message)
    await bench.hide(message, 1_000)
    await bench.later(120)
    assert await bench.pop_all() == []


async def test_a_late_ack_is_no_error_and_changes_nothing(bench: Bench) -> None:
    await bench.send("a")
    (message,) = await bench.pop(invisibleTime=1_000)
    await bench.later(2)
    assert (await bench.ack(message)).code == 0
    assert bodies(await bench.pop_all()) == ["a"]


async def test_crash_keeps_what_is_acknowledged_and_what_is_not(bench: Bench) -> None:
    await bench.send(*"abcdef")
    popped = await bench.pop()
    for message in popped[:3]:
        await bench.ack(message)
    popped[3].handle = await bench.hide(popped[3], 300_000)
    await bench.crash()
    assert await bench.pop_all() == [], "the offsets were not on the disk, the check points were"
    await bench.ack(popped[4])
    await bench.later(61)
    assert bodies(await bench.pop_all()) == ["f"]
    await bench.crash()
    assert await bench.pop_all() == []
    await bench.later(301)
    assert bodies(await bench.pop_all()) == ["d", "f"]


async def test_crash_after_it_came_again(bench: Bench) -> None:
    await bench.send("a")
    await bench.pop(invisibleTime=1_000)
    await bench.later(2)
    (again,) = await bench.pop_all()
    await bench.ack(again)
    await bench.crash()
    await bench.later(120)
    assert await bench.pop_all() == []


async def test_progress_is_kept_and_memory_is_given_back(bench: Bench) -> None:
    for _ in range(20):
        await bench.send(*(str(number) for number in range(20)))
        for message in await bench.pop_all():
            await bench.ack(message)
    revive = bench.broker.pop.revive
    assert revive.open == 0
    assert not revive.in_flight
    assert len(revive._due) < 1200
    await bench.broker.pop.save()
    await bench.broker.offsets.save()
    ends = [bench.broker.store.bounds(revive.topic, queue)[1] for queue in range(8)]
    assert [bench.broker.offsets.query(GROUP, revive.topic, queue) for queue in range(8)] == [end - 1 for end in ends]
    await bench.crash()
    assert bench.broker.pop.revive.counters["check_points"] == 0
    assert await bench.pop_all() == []


async def test_progress_stops_at_what_is_open(bench: Bench) -> None:
    await bench.send("a")
    (message,) = await bench.pop(invisibleTime=1_000_000)
    for number in range(40):
        await bench.send(str(number))
        for other in await bench.pop_all():
            await bench.ack(other)
    await bench.broker.pop.save()
    await bench.broker.offsets.save()
    await bench.crash()
    assert bench.broker.pop.revive.open == 1
    await bench.ack(message)
    assert bench.broker.pop.revive.open == 0


async def test_what_is_hidden_for_long_does_not_hold_progress_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aerobee.broker.revive.FAR_BEHIND", 5)
    await bench.send("a", "b", "c")
    first, second, _ = await bench.pop(invisibleTime=1_000_000)
    await bench.ack(first)
    for number in range(80):
        await bench.send(str(number))
        for other in await bench.pop():
            await bench.ack(other)
    await bench.broker.pop.save()
    await bench.broker.offsets.save()
    revive = bench.broker.pop.revive
    queue = int(first.handle.split(" ")[3])
    assert bench.broker.offsets.query(GROUP, revive.topic, queue) > 10
    bench.broker.offsets.reset("g", TOPIC, 0, 70)
    assert len(await bench.pop(maxMsgNums=2)) == 2
    await bench.crash()
    assert bench.broker.pop.revive.open == 2
    assert len(await bench.pop()) == 11, "what was written again says nothing about where the group is"
    await bench.ack(second)
    await bench.later(1000)
    assert "c" in bodies(await bench.pop_all())
    assert "b" not in bodies(await bench.pop_all())


async def test_a_waiting_pop_is_woken_by_a_message(bench: Bench) -> None:
    await bench.send("first")
    await bench.pop()
    waiting = bench.ask(pollTime=10_000)
    other = bench.ask(pollTime=10_000, queueId=3)
    await bench.parked(2)
    info = await bench.call(RequestCode.POLLING_INFO, consumerGroup="g", topic=TOPIC, queueId=-1)
    assert info.ext_fields["pollingNum"] == "1"
    await bench.send("second", queue=2)
    assert bodies(messages(await waiting)) == ["second"]
    assert not other.done()
    await bench.send("third", queue=3)
    assert bodies(messages(await other)) == ["third"]


async def test_several_wait_and_share(bench: Bench) -> None:
    await bench.send("first")
    await bench.pop()
    waiting = [bench.ask(pollTime=10_000, maxMsgNums=1) for _ in range(4)]
    await bench.parked(4)
    await bench.send("a", "b", "c")
    done, still = await asyncio.wait(waiting, timeout=1)
    assert bodies([message for task in done for message in messages(task.result())]) == ["a", "b", "c"]
    await bench.clock.advance(10)
    assert [(await task).code for task in still] == [ResponseCode.POLLING_TIMEOUT]


async def test_waiting_ends_with_its_time_and_with_the_broker(bench: Bench) -> None:
    await bench.send("first")
    await bench.pop()
    waiting = bench.ask(pollTime=5_000)
    await bench.parked(1)
    await bench.clock.advance(4.9)
    assert not waiting.done()
    await bench.clock.advance(0.2)
    assert (await waiting).code == ResponseCode.POLLING_TIMEOUT
    waiting = bench.ask(pollTime=5_000)
    await bench.parked(1)
    await bench.broker.stop()
    assert (await waiting).code == ResponseCode.POLLING_TIMEOUT


async def test_what_comes_again_wakes_who_waits(bench: Bench) -> None:
    await bench.send("a")
    await bench.pop(invisibleTime=1_000)
    waiting = bench.ask(pollTime=30_000)
    notified = asyncio.ensure_future(
        bench.call(
            RequestCode.NOTIFICATION,
            consumerGroup="g",
            topic=TOPIC,
            queueId=-1,
            pollTime=30_000,
            bornTime=bench.clock.now_ms(),
        )
    )
    await bench.parked(2)
    await bench.later(2)
    assert (await waiting).code == 0 or bodies(messages(await waiting)) == ["a"]
    reply = await notified
    assert (reply.code, reply.ext_fields["pollingFull"]) == (0, "false")


async def test_too_many_wait(tmp_path: Path) -> None:
    bench = await Bench(tmp_path, pop_polling_size=1).start()
    await bench.send("first")
    await bench.pop()
    waiting = [bench.ask(pollTime=10_000) for _ in range(3)]
    done, _ = await asyncio.wait(waiting, timeout=1)
    assert [task.result().code for task in done] == [ResponseCode.POLLING_FULL]
    await bench.stop()


async def test_who_is_gone_waits_no_longer_and_gets_nothing(bench: Bench) -> None:
    await bench.send("first")
    await bench.pop()
    waiting = bench.ask(pollTime=10_000_000)
    await bench.parked(1)
    await bench.pool.close()
    with pytest.raises(AerobeeError):
        await waiting
    await bench.parked(0)
    bench.pool = RemotePool()
    await bench.send("second")
    assert bodies(await bench.pop()) == ["second"]


async def test_what_another_broker_left_in_the_revive_log_counts(bench: Bench) -> None:
    await bench.send("a", "b")
    point = {"bm": 0, "bn": "broker-a", "c": "g", "d": [0, 1], "it": 5000, "n": 2, "pt": bench.clock.now_ms()}
    point |= {"q": 0, "ro": 0, "so": 0, "sp": False, "t": TOPIC}
    ack = {"ackOffset": 1, "ao": 1, "bn": "broker-a", "c": "g", "pt": point["pt"], "q": 0, "so": 0, "t": TOPIC}
    bench.broker.groups.find("g")
    topic = bench.broker.pop.revive.topic
    for tag, body in (("ck", point), ("ack", ack)):
        properties = f"UNIQ_KEY\x01x\x02TAGS\x01{tag}\x02REAL_TOPIC\x01{topic}\x02".encode()
        bench.broker.store.append([Record(topic, 3, fastjson.dumps(body), properties)])
    await bench.clock.advance(1)
    assert bench.broker.pop.revive.open == 1
    await bench.later(5)
    again = await bench.pop_all()
    assert bodies([message for message in again if message.times]) == ["a"]


async def test_acknowledgements_that_another_broker_left_in_the_timer_count(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claim: Apache's broker has check points and acknowledgements wait in the timer, the latter a second longer; what
    is due meanwhile does not come again before the timer is past it."""
    await bench.send("a", "b", "c")
    topic, popped_ms = bench.broker.pop.revive.topic, bench.clock.now_ms()
    point = {"bm": 0, "bn": "broker-a", "c": "g", "d": [0, 1, 2], "it": 5000, "n": 3, "pt": popped_ms}
    point |= {"q": 0, "ro": 0, "so": 0, "sp": False, "t": TOPIC}
    ack = {"ao": -1, "aol": [0, 2], "bn": "broker-a", "c": "g", "pt": popped_ms, "q": 0, "so": 0, "t": TOPIC}
    bench.broker.groups.find("g")
    came = {"TIMER_OUT_MS": str(popped_ms + 4000), "REAL_TOPIC": topic, "REAL_QID": "3"}
    waits = {"TAGS": "bAck", "TIMER_DELIVER_MS": str(popped_ms + 5000)}
    place = bench.broker.timer.place(topic, 3, waits)
    deliver = bench.broker.timer.deliver
    monkeypatch.setattr(bench.broker.timer, "deliver", lambda: False)  # it has much to do
    bench.broker.store.append(
        [
            Record(topic, 3, fastjson.dumps(point), format_properties({"TAGS": "ck", **came})),
            Record(place[0], place[1], fastjson.dumps(ack), format_properties(waits)),
        ]
    )
    await bench.clock.advance(20)
    assert bench.broker.pop.revive.open == 1 and bench.broker.pop.revive.counters["revived"] == 0
    monkeypatch.setattr(bench.broker.timer, "deliver", deliver)
    await bench.later(20)
    again = await bench.pop_all()
    assert bodies([message for message in again if message.times]) == ["b"]


async def test_notification_looks_at_tags(bench: Bench) -> None:
    await bench.send("a", properties="TAGS\x01x\x02")
    fields: dict[str, Any] = dict(consumerGroup="g", topic=TOPIC, queueId=-1, pollTime=0, bornTime=bench.clock.now_ms())
    assert (await bench.call(RequestCode.NOTIFICATION, **fields)).ext_fields["hasMsg"] == "true"
    chosen: dict[str, Any] = {**fields, "expType": "TAG", "exp": "y"}
    assert (await bench.call(RequestCode.NOTIFICATION, **chosen)).ext_fields["hasMsg"] == "false"


@pytest.mark.parametrize(
    ("kind", "text", "earlier"), [("TAG", "x", 0), ("TAG", "x", 70), ("SQL92", "n = 1", 0)], ids=["tag", "many", "sql"]
)
async def test_a_notification_with_a_filter_is_not_disturbed(bench: Bench, kind: str, text: str, earlier: int) -> None:
    """Claim: it goes on waiting while only others' messages come, however many, and is answered by one of its own; by
    every eight hundredth of all as well, which is Apache's way to notice what the filter has been kept from."""
    fields: dict[str, Any] = dict(
        consumerGroup="g", topic=TOPIC, queueId=-1, pollTime=60_000, bornTime=bench.clock.now_ms(), expType=kind,
        exp=text,
    )  # fmt: skip
    others, own = "TAGS\x01y\x02n\x012\x02", "TAGS\x01x\x02n\x011\x02"
    await bench.send("first", properties=others)
    await bench.pop()

    async def waits() -> asyncio.Task[RemotingCommand]:
        waiting = asyncio.ensure_future(bench.call(RequestCode.NOTIFICATION, **fields))
        await bench.parked(1)
        return waiting

    waiting = await waits()
    for number in range(2 + earlier):
        await bench.send("a", queue=number % 2, properties=others)
    await bench.calm()
    assert not waiting.done()
    await bench.send("b", properties=own)
    assert (await waiting).ext_fields["hasMsg"] == "true"
    await bench.pop_all()
    waiting = await waits()
    await bench.send(*["c"] * (799 - bench.broker.store.bounds(TOPIC, 0)[1]), properties=others)
    await bench.calm()
    assert not waiting.done()
    await bench.send("d", properties=others)
    assert (await waiting).ext_fields["hasMsg"] == "true"


async def test_a_notification_whose_filter_is_switched_off(tmp_path: Path) -> None:
    bench = await Bench(tmp_path, use_message_filter_for_notification=False).start()
    try:
        await bench.send("a", properties="TAGS\x01x\x02")
        fields: dict[str, Any] = dict(consumerGroup="g", topic=TOPIC, queueId=-1, pollTime=0, expType="TAG", exp="y")
        assert (await bench.call(RequestCode.NOTIFICATION, **fields, bornTime=0)).ext_fields["hasMsg"] == "true"
    finally:
        await bench.stop()


async def test_filters(bench: Bench) -> None:
    for number, tag in enumerate("xyxyxz"):
        await bench.send(f"{number}{tag}", properties=f"TAGS\x01{tag}\x02n\x01{number}\x02")
    popped = await bench.pop(expType="TAG", exp="x || z")
    assert bodies(popped) == ["0x", "2x", "4x", "5z"]
    reply = await bench.ask(consumerGroup="sql", expType="SQL92", exp="n BETWEEN 2 AND 4 AND TAGS <> 'y'")
    assert bodies(messages(reply)) == ["2x", "4x"]
    reply = await bench.ask(consumerGroup="sql", expType="SQL92", exp="n BETWEEN")
    assert reply.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED
    await bench.ack(popped[1])
    await bench.later(61)
    assert bodies(await bench.pop_all(expType="TAG", exp="x || z")) == ["0x", "4x", "5z"]


@pytest.mark.parametrize("expression", ["||", "||||", " ", "|| "])
async def test_a_tag_expression_of_bars_is_none_and_one_of_blanks_asks_for_nothing(
    bench: Bench, expression: str
) -> None:
    await bench.send("a", properties="TAGS\x01x\x02")
    bad = " " not in expression
    popped, pulled = await bench.ask(expType="TAG", exp=expression), await bench.pull(expression, "TAG")
    assert popped.code == (ResponseCode.SUBSCRIPTION_PARSE_FAILED if bad else ResponseCode.POLLING_TIMEOUT)
    assert pulled.code == (ResponseCode.SUBSCRIPTION_PARSE_FAILED if bad else ResponseCode.PULL_RETRY_IMMEDIATELY)


@pytest.mark.parametrize("how", ["pull", "pop"])
async def test_a_filter_that_cannot_be_read_is_refused_with_the_place(bench: Bench, how: str) -> None:
    await bench.send("a")
    text = "n BETWEEN 1 OR"
    reply = await (bench.pull(text, "SQL92") if how == "pull" else bench.ask(expType="SQL92", exp=text))
    assert reply.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED
    remark = reply.remark or ""
    assert remark.startswith("parse the consumer's subscription failed: ") and "column 13" in remark


async def test_waiting_with_a_filter_is_not_disturbed(bench: Bench) -> None:
    await bench.send("first")
    await bench.pop()
    waiting = bench.ask(pollTime=10_000, expType="TAG", exp="x")
    await bench.parked(1)
    await bench.send("a", properties="TAGS\x01y\x02")
    await bench.calm()
    assert not waiting.done()
    await bench.send("b", properties="TAGS\x01x\x02")
    assert bodies(messages(await waiting)) == ["b"]


async def test_what_comes_again_is_counted_where_it_was_popped(bench: Bench) -> None:
    await bench.send("a", "b")
    await bench.pop(invisibleTime=1_000)
    await bench.later(2)
    again = await bench.pop_all()
    assert {message.topic for message in again} == {TOPIC}
    for topic, size in ((TOPIC, 2), (f"%RETRY%g_{TOPIC}", 2)):
        seen = bench.broker.stats.view("GROUP_GET_NUMS", f"{topic}@g")
        assert seen is not None and seen["minute"][0] == size, topic


async def test_retry_topics_of_both_forms(tmp_path: Path) -> None:
    bench = await Bench(tmp_path, enable_retry_topic_v2=True).start()
    await bench.send("a")
    await bench.pop(invisibleTime=1_000)
    await bench.later(2)
    await bench.broker.topics.create_for_group(retry_topic(TOPIC, "g", second_form=False), 1)
    await bench.send("old", topic="%RETRY%g_orders")
    again = await bench.pop_all() + await bench.pop_all() + await bench.pop_all()
    assert bodies(again) == ["a", "old"]
    assert sorted(message.handle.split(" ")[4] for message in again) == ["1", "2"]
    for message in again:
        await bench.ack(message)
    await bench.later(120)
    assert await bench.pop_all() == []
    await bench.stop()


async def _make_priority_topic(bench: Bench, factor: int | None = None) -> None:
    made = await bench.call(
        RequestCode.UPDATE_AND_CREATE_TOPIC, topic=TOPIC, defaultTopic="TBW102", readQueueNums=4, writeQueueNums=4,
        perm=6, topicFilterType="SINGLE_TAG", topicSysFlag=0, order=False, attributes="+message.type=PRIORITY",
    )  # fmt: skip
    assert made.code == 0, made.remark
    group: dict[str, object] = {"groupName": "g"}
    if factor is not None:
        group["attributes"] = {"+priority.factor": str(factor)}
    made = await bench.call(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, fastjson.dumps(group))
    assert made.code == 0, made.remark


async def _send_priorities(bench: Bench, *priorities: int) -> None:
    for priority in priorities:
        await bench.send(str(priority), queue=-1, properties=f"_SYS_MSG_PRIORITY_\x01{priority}\x02")


@pytest.mark.parametrize(("highest_last", "expected"), [(True, "9321100"), (False, "0011293")])
async def test_the_highest_priority_first(tmp_path: Path, highest_last: bool, expected: str) -> None:
    # Claim: whatever was sent when, each pop takes from the highest priority that has messages; what comes again
    # waits behind everything new.
    bench = await Bench(tmp_path, priority_order_asc=highest_last).start()
    await _make_priority_topic(bench)
    await _send_priorities(bench, 1, 0, 2, 9, 1, 3, 0)  # 9 is the last queue's, as 3
    first = (await bench.pop(maxMsgNums=1, invisibleTime=1_000))[0].body.decode()
    seen = [first]
    await bench.later(2)
    for _ in range(7):
        (message,) = await bench.pop(maxMsgNums=1)
        seen.append(message.body.decode())
        await bench.ack(message)
    assert seen[-1] == first, "it came again, last of all"
    assert "".join(seen[:-1]) == expected
    await bench.stop()


async def test_a_group_without_priority_factor_takes_any_queue_first(bench: Bench) -> None:
    await _make_priority_topic(bench, factor=0)
    await _send_priorities(bench, *([0, 1, 2, 3] * 20))
    seen = [(await bench.pop(maxMsgNums=1))[0].queue for _ in range(40)]
    assert seen != sorted(seen, reverse=True)
    refused = await bench.call(
        RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
        fastjson.dumps({"groupName": "g", "attributes": {"+priority.factor": "101"}}),
    )
    assert refused.code != 0 and "range(0, 100)" in (refused.remark or "")


async def test_retries_in_queues_of_their_own(tmp_path: Path) -> None:
    # Claim: with useSeparateRetryQueue a message comes again in the queue of its number, also after a crash and when
    # the topic has grown meanwhile; without, all come again in queue 0.
    bench = await Bench(tmp_path, use_separate_retry_queue=True).start()
    for queue in range(4):
        await bench.send(str(queue), queue=queue)
    popped = await bench.pop_all(invisibleTime=1_000)
    assert len(popped) == 4
    await bench.crash()
    await bench.later(2)
    again = await bench.pop_all(invisibleTime=1_000)
    assert sorted((message.body.decode(), message.queue) for message in again) == [(str(q), q) for q in range(4)]
    assert bench.broker.topics.table["%RETRY%g_orders"].write_queue_nums == 4
    wider = await bench.call(
        RequestCode.UPDATE_AND_CREATE_TOPIC, topic=TOPIC, defaultTopic="TBW102", readQueueNums=6, writeQueueNums=6,
        perm=6, topicFilterType="SINGLE_TAG", topicSysFlag=0, order=False,
    )  # fmt: skip
    assert wider.code == 0
    await bench.send("5", queue=5)
    assert bodies(await bench.pop(invisibleTime=1_000)) == ["5"]
    await bench.later(2)
    again = await bench.pop_all(invisibleTime=1_000)
    assert sorted((message.body.decode(), message.queue, message.times) for message in again) == [
        *((str(q), q, 2) for q in range(4)),
        ("5", 5, 1),
    ]
    bench.broker.options.use_separate_retry_queue = False
    await bench.later(2)
    assert {message.queue for message in await bench.pop_all()} == {0}
    await bench.stop()


async def test_rollback_leaves_everything_where_an_older_broker_looks(bench: Bench) -> None:
    # Claim: after POP_ROLLBACK the disk knows what is popped and not acknowledged, in order and not.
    await bench.send("a", "b")
    await bench.pop(maxMsgNums=1, queueId=0)
    await bench.pop(maxMsgNums=1, queueId=0, consumerGroup="ordered", order=True)
    assert (await bench.call(RequestCode.POP_ROLLBACK)).code == 0
    config = bench.store / "config"
    assert fastjson.loads((config / "consumerOffset.json").read_bytes())["offsetTable"]["orders@g"] == {"0": 1}
    assert "orders@ordered" in (config / "consumerOrderInfo.json").read_text()
    assert bench.broker.pop.revive.open == 1
    low, durable, high = bench.broker.store.log_bounds()
    assert low <= durable == high


async def test_first_offset(bench: Bench) -> None:
    await bench.send("a", "b")
    assert bodies(await bench.pop(initMode=1)) == ["a", "b"], "the beginning is in memory"
    bench.broker.options.init_pop_offset_by_check_msg_in_mem = False
    assert bodies(messages(await bench.ask(consumerGroup="late", initMode=1))) == ["b"]
    assert bodies(messages(await bench.ask(consumerGroup="early", initMode=0))) == ["a", "b"]


async def test_reset(bench: Bench) -> None:
    await bench.send("a", "b", "c")
    for message in await bench.pop():
        await bench.ack(message)
    bench.broker.offsets.reset("g", TOPIC, 0, 1)
    again = await bench.pop()
    assert bodies(again) == ["b", "c"]
    bench.broker.offsets.reset("g", TOPIC, 0, 0)
    first = await bench.pop(maxMsgNums=1)
    again[1].handle = await bench.hide(again[1], 60_000)
    await bench.crash()
    assert bodies(first) == ["a"]
    assert bodies(await bench.pop()) == ["b", "c"], "older check points say nothing after a reset"


async def test_peek_takes_nothing(bench: Bench) -> None:
    await bench.send("a", "b")
    for _ in range(2):
        reply = await bench.call(RequestCode.PEEK_MESSAGE, consumerGroup="g", topic=TOPIC, queueId=-1, maxMsgNums=8)
        assert [record.body for record in parse_records(reply.body)] == [b"a", b"b"]
    assert len(await bench.pop()) == 2
    reply = await bench.call(RequestCode.PEEK_MESSAGE, consumerGroup="g", topic=TOPIC, queueId=-1, maxMsgNums=8)
    assert reply.code == ResponseCode.PULL_NOT_FOUND


@pytest.mark.parametrize("code", [RequestCode.POP_MESSAGE, RequestCode.PEEK_MESSAGE])
async def test_fewer_messages_than_none_cannot_be_asked_for(bench: Bench, code: RequestCode) -> None:
    await bench.send("a")
    reply = await bench.call(code, **{**HEADERS[code], "maxMsgNums": -1})
    assert (reply.code, reply.remark) == (ResponseCode.SYSTEM_ERROR, "maxMsgNums is -1, it must not be negative")
    assert bodies(await bench.pop()) == ["a"]


@pytest.mark.parametrize(
    "code",
    [RequestCode.POP_MESSAGE, RequestCode.PEEK_MESSAGE, RequestCode.NOTIFICATION, RequestCode.POLLING_INFO],
)
async def test_a_queue_that_the_topic_does_not_have(bench: Bench, code: RequestCode) -> None:
    await bench.send("a")
    reply = await bench.call(code, **{**HEADERS[code], "queueId": 9})
    assert reply.code == ResponseCode.INVALID_PARAMETER
    assert "queueId[9]" in str(reply.remark) and "consumer:[127.0.0.1:" in str(reply.remark)


@pytest.mark.parametrize("missing", ["topic", "consumerGroup", "messageModel"])
async def test_an_assignment_needs_to_know_whose_queues(bench: Bench, missing: str) -> None:
    body = BODIES[RequestCode.QUERY_ASSIGNMENT]
    assert (await bench.call(RequestCode.QUERY_ASSIGNMENT, fastjson.dumps(body))).code == 0
    reply = await bench.call(RequestCode.QUERY_ASSIGNMENT, fastjson.dumps({**body, missing: None}))
    assert reply.code == MalformedRequest.code and missing in str(reply.remark)


# In order.


async def test_in_order_the_queue_is_blocked_until_all_is_acknowledged(bench: Bench) -> None:
    await bench.send("a", "b", "c")
    reply = await bench.ask(order="true", queueId=0, maxMsgNums=2)
    popped = messages(reply)
    assert reply.ext_fields["reviveQid"] == "999"
    assert reply.ext_fields["orderCountInfo"] == "0 0 0"
    assert bodies(popped) == ["a", "b"]
    assert await bench.pop(order="true", queueId=0) == []
    waiting = bench.ask(order="true", queueId=0, pollTime=20_000)
    await bench.parked(1)
    await bench.ack(popped[0])
    await bench.calm()
    assert not waiting.done()
    await bench.ack(popped[1])
    assert bodies(messages(await waiting)) == ["c"]


async def test_in_order_the_same_comes_again_in_place(bench: Bench) -> None:
    await bench.send("a", "b", "c")
    popped = await bench.pop(order="true", queueId=0, invisibleTime=5_000, maxMsgNums=2)
    await bench.ack(popped[0])
    waiting = bench.ask(order="true", queueId=0, pollTime=20_000, invisibleTime=5_000)
    await bench.parked(1)
    await bench.later(5.2)
    reply = await waiting
    assert bodies(messages(reply)) == ["b", "c"]
    assert reply.ext_fields["orderCountInfo"] == "0 qo0%1 1;0 0 0"
    assert (await bench.ack(popped[1])).code == 0, "of another pop: nothing happens"
    assert bench.broker.offsets.query("g", TOPIC, 0) == 1


async def test_in_order_an_attempt_gets_the_same_again(bench: Bench) -> None:
    await bench.send("a", "b")
    first = await bench.pop(order="true", queueId=0, attemptId="one")
    again = await bench.pop(order="true", queueId=0, attemptId="one")
    assert bodies(first) == bodies(again) == ["a", "b"]
    assert await bench.pop(order="true", queueId=0, attemptId="two") == []


async def test_in_order_hidden_on(bench: Bench) -> None:
    await bench.send("a")
    (message,) = await bench.pop(order="true", queueId=0, invisibleTime=60_000)
    await bench.hide(message, 1_000)
    await bench.later(2)
    assert bodies(await bench.pop(order="true", queueId=0)) == ["a"]


@pytest.mark.parametrize("order", ["true", "false"])
async def test_times_that_no_java_long_holds_are_refused(bench: Bench, order: str) -> None:
    """Claim: what is answered and kept stays a number that Java reads; what would not be is refused, with its name."""
    longest = 1 << 61
    await bench.send("a")
    for hidden in ((1 << 63) - 1, longest + 1, -(1 << 63)):
        refused = await bench.ask(queueId=0, order=order, invisibleTime=hidden)
        assert refused.code == ResponseCode.INVALID_PARAMETER and "invisibleTime" in (refused.remark or "")
    (message,) = await bench.pop(order=order, queueId=0)
    start, pop_time, hidden_ms, queue, *rest = message.handle.split(" ")

    async def hide(milliseconds: int, *front: object) -> RemotingCommand:
        return await bench.call(
            RequestCode.CHANGE_MESSAGE_INVISIBLETIME, consumerGroup="g", topic=TOPIC, queueId=0, offset=0,
            extraInfo=" ".join([*(str(field) for field in front), *rest]), invisibleTime=milliseconds,
        )  # fmt: skip

    for milliseconds in ((1 << 63) - 1, longest + 1, -longest - 1):
        refused = await hide(milliseconds, start, pop_time, hidden_ms, queue)
        assert refused.code == ResponseCode.INVALID_PARAMETER and "invisibleTime" in (refused.remark or "")
    for odd in (-(10**22), longest + 1, "9" * 5000):
        for front in ((odd, pop_time, hidden_ms), (start, odd, hidden_ms), (start, pop_time, odd)):
            refused = await hide(1000, *front, queue)
            assert refused.code == ResponseCode.INVALID_PARAMETER and "extraInfo" in (refused.remark or "")
    others = [(milliseconds, at) for milliseconds in (-longest, longest) for at in (-longest, longest)]
    for milliseconds, at in [*others, (longest, int(pop_time))]:
        reply = await hide(milliseconds, start, at, hidden_ms, queue)
        assert reply.code == 0, reply.remark
        assert all(-(1 << 63) <= int(value) < 1 << 63 for value in reply.ext_fields.values()), reply.ext_fields
    await bench.later(100)
    assert await bench.pop(order=order, queueId=0) == [], "hidden for as long as was asked"


async def test_in_order_after_a_crash(bench: Bench) -> None:
    await bench.send("a", "b", "c")
    popped = await bench.pop(order="true", queueId=0, maxMsgNums=2)
    await bench.ack(popped[0])
    await bench.crash()
    assert await bench.pop(order="true", queueId=0) == [], "still blocked"
    await bench.ack(popped[1])
    await bench.crash()
    assert bodies(await bench.pop(order="true", queueId=0)) == ["c"]
    await bench.broker.pop.save()
    await bench.broker.offsets.save()
    await bench.crash()
    assert await bench.pop(order="true", queueId=0) == []
    await bench.later(61)
    assert bodies(await bench.pop(order="true", queueId=0)) == ["c"]


async def test_order_file_is_apaches(bench: Bench) -> None:
    await bench.send("a", "b", "c")
    await bench.pop(order="true", queueId=0, maxMsgNums=2, attemptId="one")
    await bench.broker.pop.save()
    data = fastjson.loads((bench.store / "config" / "consumerOrderInfo.json").read_bytes())
    now = bench.clock.now_ms()
    assert data == {
        "table": {f"{TOPIC}@g": {0: {"a": "one", "cm": 0, "i": 60_000, "l": now, "o": [0, 1], "popTime": now}}}
    } or data["table"][f"{TOPIC}@g"]["0"]["o"] == [0, 1]


# When the disk does not want to.


def no_room(records: list[Any]) -> list[Any]:
    raise DiskFull("no room")


async def test_a_full_disk_gives_nothing_out_and_takes_no_acks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.send("a", "b")
    (first,) = await bench.pop(maxMsgNums=1)
    with monkeypatch.context() as patch:
        patch.setattr(bench.broker.store, "append", no_room)
        assert (await bench.ask()).code == ResponseCode.SERVICE_NOT_AVAILABLE
        assert (await bench.ask(order="true", consumerGroup="o")).code == ResponseCode.SERVICE_NOT_AVAILABLE
        assert (await bench.ack(first)).code == ResponseCode.SERVICE_NOT_AVAILABLE
    assert bodies(await bench.pop()) == ["b"]
    assert bodies(messages(await bench.ask(order="true", consumerGroup="o"))) == ["a", "b"]
    assert (await bench.ack(first)).code == 0


async def test_what_cannot_come_again_now_comes_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.send("a")
    await bench.pop(invisibleTime=1_000)
    with monkeypatch.context() as patch:
        patch.setattr(bench.broker.store, "append", no_room)
        await bench.clock.advance(2)
        await eventually(lambda: bench.broker.topics.get("%RETRY%g_orders") is not None)
        await bench.clock.advance(5)
        assert bench.broker.pop.revive.open == 1
    await bench.later(3)
    await eventually(lambda: bench.broker.pop.revive.open == 0)
    assert bodies(await bench.pop_all()) == ["a"]


@pytest.mark.parametrize("gone", [False, True])
async def test_many_that_come_again_let_others_have_their_turn(bench: Bench, gone: bool) -> None:
    count = 3000
    await bench.send("0")
    bench.broker.store.append([Record(TOPIC, 0, b"%d" % number, b"") for number in range(1, count)])
    for _ in range(0, count, 32):
        await bench.pop(queueId=0, invisibleTime=1_000)
    if gone:
        assert (await bench.call(RequestCode.DELETE_SUBSCRIPTIONGROUP, groupName="g")).code == 0
    revive = bench.broker.pop.revive
    left = [revive.in_flight.total()]
    assert left == [count]
    time = asyncio.ensure_future(bench.clock.advance(2))
    while revive.open:
        await asyncio.sleep(0)
        left.append(revive.in_flight.total())
    await time
    assert max(before - after for before, after in itertools.pairwise(left)) < TURN_MESSAGES + 32
    assert revive.counters["revived"] == (0 if gone else count)


async def test_synchronous_flush(tmp_path: Path) -> None:
    bench = await Bench(tmp_path, flush_disk_type="SYNC_FLUSH").start()
    await bench.send(*"abcd")
    popped = await asyncio.gather(*(bench.pop(maxMsgNums=2) for _ in range(3)))
    assert sorted(map(bodies, popped)) == [[], ["a", "b"], ["c", "d"]]
    assert bench.broker.offsets.query("g", TOPIC, 0) == 4
    for message in popped[0]:
        assert (await bench.ack(message)).code == 0
    await bench.crash()
    await bench.later(61)
    expected = sorted(body for some in popped[1:] for body in bodies(some))
    retries = retry_topic(TOPIC, "g", second_form=False)
    await eventually(lambda: bench.broker.store.bounds(retries, 0)[1] == len(expected))  # visible once flushed
    assert bodies(await bench.pop_all()) == expected
    await bench.stop()


# What an operator does.


async def others_hide_some(bench: Bench) -> None:
    """Another group's messages in every queue of the revive log: a start reads on from there."""
    for _ in range(8):
        await bench.send("hidden", topic="other")
        popped = await bench.pop(topic="other", consumerGroup="h", invisibleTime=36_000_000, maxMsgNums=1)
        assert bodies(popped) == ["hidden"]


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("what", ["reset", "commit", "topic", "group"])
async def test_a_start_undoes_nothing_that_an_operator_did(bench: Bench, what: str, crash: bool) -> None:
    # Claim: check points that are read again because somebody else's hold progress back do not move an offset that was
    # set, or given up, after them.
    await others_hide_some(bench)
    await bench.send(*"abc")
    for message in await bench.pop():
        await bench.ack(message)
    await bench.broker.save_offsets()
    if what == "reset":
        asked = await bench.call(
            RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, group="g", topic=TOPIC, queueId=-1, timestamp=0, isForce="true"
        )
    elif what == "commit":
        asked = await bench.call(
            RequestCode.UPDATE_CONSUMER_OFFSET, consumerGroup="g", topic=TOPIC, queueId=0, commitOffset=0
        )
        await bench.broker.save_offsets()
    elif what == "topic":
        asked = await bench.call(RequestCode.DELETE_TOPIC_IN_BROKER, topic=TOPIC)
        await bench.send(*"abc")
    else:
        asked = await bench.call(RequestCode.DELETE_SUBSCRIPTIONGROUP, groupName="g", cleanOffset="true")
    assert asked.code == 0, asked.remark
    await (bench.crash() if crash else bench.restart())
    assert bodies(await bench.pop()) == ["a", "b", "c"]


async def test_a_queue_popped_in_order_and_read_on_otherwise_stays_where_it_was(bench: Bench) -> None:
    await others_hide_some(bench)
    await bench.send(*"abcde")
    for message in await bench.pop(maxMsgNums=2, order="true"):
        await bench.ack(message)
    assert bench.broker.offsets.query("g", TOPIC, 0) == 2
    bench.broker.offsets.commit("g", TOPIC, 0, 4)
    await bench.restart()
    assert bench.broker.offsets.query("g", TOPIC, 0) == 4


async def test_a_crash_between_check_point_and_offset_gives_nothing_out_twice(bench: Bench) -> None:
    # Claim: offsets that are saved while a pop waits for its flush do not say that they contain it.
    await bench.send(*"abc")
    assert bodies(await bench.pop(maxMsgNums=1)) == ["a"]
    gate = bench.hold_flushes()
    waiting = bench.ask(maxMsgNums=1)
    await eventually(lambda: bench.broker.pop.revive.counters["check_points"] == 2)
    await bench.broker.save_offsets()
    crashed = asyncio.ensure_future(bench.crash())
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(waiting, return_exceptions=True)
    await crashed
    assert bodies(await bench.pop()) == ["c"]


async def test_a_reset_is_not_undone_by_a_pop_that_waits_for_its_flush(tmp_path: Path) -> None:
    bench = await Bench(tmp_path, flush_disk_type="SYNC_FLUSH").start()
    await bench.send(*"abcd")
    gate = bench.hold_flushes()
    first = bench.ask(maxMsgNums=3)
    await eventually(lambda: bench.broker.pop.revive.counters["check_points"] == 1)
    bench.broker.offsets.reset("g", TOPIC, 0, 0)
    second = bench.ask(maxMsgNums=1)
    await eventually(lambda: bench.broker.pop.revive.counters["check_points"] == 2)
    gate.set()
    assert bodies(messages(await first)) == ["a", "b", "c"]
    assert bodies(messages(await second)) == ["a"]
    assert bodies(await bench.pop()) == ["b", "c", "d"]
    await bench.stop()


async def test_what_was_popped_of_a_deleted_topic_stays_away_from_the_next_of_its_name(bench: Bench) -> None:
    await bench.send("old", "older")
    assert len(await bench.pop()) == 2
    await bench.call(RequestCode.DELETE_TOPIC_IN_BROKER, topic=TOPIC)
    await bench.clock.advance(1)
    await bench.send("new", "newer")
    for message in await bench.pop():
        await bench.ack(message)
    await bench.crash()
    await bench.later(61)
    assert bench.broker.pop.revive.open == 0
    assert await bench.pop_all() == []


async def test_a_waiting_pop_leaves_nothing_behind(bench: Bench) -> None:
    # Claim: who waits with a filter moves the group past what it leaves out; an operator's offset counts after that.
    await bench.send("first", properties="TAGS\x01x\x02")
    waiting = bench.ask(pollTime=10_000, expType="TAG", exp="z")
    await bench.parked(1)
    await bench.send("a", "b", properties="TAGS\x01y\x02")
    await eventually(lambda: bench.broker.offsets.query("g", TOPIC, 0) == 3)
    await bench.clock.advance(11)
    await waiting
    await bench.call(RequestCode.UPDATE_CONSUMER_OFFSET, consumerGroup="g", topic=TOPIC, queueId=0, commitOffset=0)
    assert bodies(await bench.pop()) == ["a", "b", "first"]


async def test_a_waiting_pop_looks_through_all_that_its_filter_leaves_out(bench: Bench) -> None:
    # Claim: nothing new has to come for it to find what lies behind more messages than are looked at in one go.
    for at in range(0, 2000, 50):
        await asyncio.gather(*(bench.send(str(n), properties="TAGS\x01y\x02") for n in range(at, at + 50)))
    await bench.send("it", properties="TAGS\x01x\x02")
    assert bodies(await bench.pop(pollTime=10_000, expType="TAG", exp="x")) == ["it"]


async def test_who_waits_hears_of_a_topic_that_is_made_again(bench: Bench) -> None:
    await bench.send("old")
    await bench.pop()
    waiting = bench.ask(pollTime=10_000)
    await bench.parked(1)
    await bench.call(RequestCode.DELETE_TOPIC_IN_BROKER, topic=TOPIC)
    await bench.send("new")
    assert bodies(messages(await waiting)) == ["new"]


# Messages for which there is hardly room.


@pytest.mark.parametrize("properties_bytes", [32_700, 32_740])
async def test_a_message_without_room_for_more_properties_comes_again_with_the_others(
    bench: Bench, properties_bytes: int
) -> None:
    own = "UNIQ_KEY\x01u\x02MSG_REGION\x01DefaultRegion\x02TRACE_ON\x01true\x02CLUSTER\x01DefaultCluster\x02"
    await bench.send("a")
    await bench.send("fat", properties=own + "x\x01" + "y" * (properties_bytes - len(own) - 3) + "\x02")
    await bench.send("b")
    assert len(await bench.pop()) == 3
    await bench.later(61)
    assert bench.broker.pop.revive.open == 0
    again = await bench.pop_all()
    assert bodies(again) == ["a", "b", "fat"]
    assert {message.times for message in again} == {1}


async def test_light_queues_come_again_with_retry_queues_of_their_own(tmp_path: Path) -> None:
    bench = await Bench(tmp_path, enable_lmq=True, enable_multi_dispatch=True, use_separate_retry_queue=True).start()
    await bench.send("a", properties="INNER_MULTI_DISPATCH\x01%LMQ%a\x02")
    assert bodies(await bench.pop(topic="%LMQ%a")) == ["a"]
    await bench.later(61)
    assert bodies(await bench.pop_all(topic="%LMQ%a")) == ["a"]
    await bench.stop()


# Everything at once.


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_is_lost_and_nothing_acknowledged_comes_again(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    bench = await Bench(tmp_path, enable_retry_topic_v2=bool(seed % 2)).start()
    await bench.send("0")
    sent, done = 1, Counter[str]()
    held: list[Message] = []
    for _ in range(60):
        action = dice.random()
        if action < 0.35:
            for _ in range(dice.randrange(1, 6)):
                await bench.send(str(sent), queue=dice.randrange(4))
                sent += 1
        elif action < 0.65:
            held += await bench.pop(maxMsgNums=dice.randrange(1, 9), invisibleTime=dice.choice([2_000, 10_000, 60_000]))
        elif action < 0.8 and held:
            dice.shuffle(held)
            for message in held[: dice.randrange(1, 9)]:
                held.remove(message)
                if bench.broker.pop.revive.find(_key(message)) is not None:
                    done[message.body.decode()] += 1
                assert (await bench.ack(message)).code == 0
        elif action < 0.87 and held:
            message = dice.choice(held)
            message.handle = await bench.hide(message, dice.choice([1_000, 30_000]))
        elif action < 0.96:
            await bench.later(dice.choice([0.5, 3, 15]))
        else:
            await bench.crash()
        if dice.random() < 0.1:
            await bench.broker.pop.save()
            await bench.broker.offsets.save()
    await bench.later(100)
    while some := await bench.pop_all():
        for message in some:
            done[message.body.decode()] += 1
            await bench.ack(message)
        await bench.later(61)
    assert sorted(done, key=int) == [str(number) for number in range(sent)]
    assert set(done.values()) <= {1}, {body: times for body, times in done.items() if times > 1}
    await bench.stop()


def _key(message: Message) -> tuple[str, str, int, int, int]:
    start, pop_time = message.handle.split(" ")[:2]
    return message.stored_topic, "g", message.queue, int(start), int(pop_time)


# What no official client sends.

HEADERS: dict[int, dict[str, str]] = {
    RequestCode.POP_MESSAGE: dict(
        consumerGroup="g", topic=TOPIC, queueId="0", maxMsgNums="1", invisibleTime="60000", pollTime="0", bornTime="0",
        initMode="0", expType="TAG", exp="*", order="false", attemptId="a",
    ),
    RequestCode.ACK_MESSAGE: dict(
        consumerGroup="g", topic=TOPIC, queueId="0", extraInfo="0 1 60000 0 0 broker-a 0 0", offset="0"
    ),
    RequestCode.CHANGE_MESSAGE_INVISIBLETIME: dict(
        consumerGroup="g", topic=TOPIC, queueId="0", extraInfo="0 1 60000 0 0 broker-a 0 0", offset="0",
        invisibleTime="1",
    ),
    RequestCode.NOTIFICATION: dict(consumerGroup="g", topic=TOPIC, queueId="0", pollTime="0", bornTime="0"),
    RequestCode.POLLING_INFO: dict(consumerGroup="g", topic=TOPIC, queueId="0"),
    RequestCode.PEEK_MESSAGE: dict(consumerGroup="g", topic=TOPIC, queueId="0", maxMsgNums="1"),
}  # fmt: skip
BODIES: dict[int, dict[str, Any]] = {
    RequestCode.BATCH_ACK_MESSAGE: {
        "brokerName": "a",
        "acks": [{"c": "g", "t": TOPIC, "r": "0", "so": 0, "q": 0, "rq": 0, "pt": 1, "it": 1, "b": "AQ=="}],
    },
    RequestCode.QUERY_ASSIGNMENT: {
        "topic": TOPIC, "consumerGroup": "g", "clientId": "c", "strategyName": "AVG", "messageModel": "CLUSTERING",
    },
    RequestCode.SET_MESSAGE_REQUEST_MODE: {
        "topic": TOPIC, "consumerGroup": "g", "mode": "POP", "popShareQueueNum": 0,
    },
}  # fmt: skip
WRONG = ["", "-1", "-2", "x", "999", "9" * 18, "9" * 40, "%RETRY%g_orders", "\x01\x02", "é 1 2"]


async def test_bad_headers_are_answered(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.send("a")
    for code, header in HEADERS.items():
        for name in header:
            less = {other: value for other, value in header.items() if other != name}
            assert (await bench.call(code, **less)).is_response
            for wrong in WRONG:
                if name == "pollTime" and wrong.startswith("9"):
                    continue  # nothing is wrong with waiting long
                assert (await bench.call(code, **{**header, name: wrong})).is_response
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    assert (await bench.ask(consumerGroup="fresh")).code == 0


async def test_bad_bodies_are_answered(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.send("a")
    wrongs: list[Any] = [*WRONG, None, [], {}, -1, 1 << 40, 1 << 70, True, 1.5]
    for code, body in BODIES.items():
        for data in (b"", b"null", b"[]", b"{", b"\xff\xfe", b'"x"'):
            assert (await bench.call(code, data)).is_response
        parts = [body, *(part for value in body.values() if isinstance(value, list) for part in value)]
        for part in parts:
            for name, good in list(part.items()):
                for wrong in wrongs:
                    part[name] = wrong
                    assert (await bench.call(code, fastjson.dumps(body))).is_response
                del part[name]
                assert (await bench.call(code, fastjson.dumps(body))).is_response
                part[name] = good
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    assert bodies(await bench.pop(consumerGroup="fresh")) == ["a"]
