"""Delay levels on a clock that a test moves: two hours pass in a blink."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from memory_store import MemoryStore

from aerobee._engine import Record
from aerobee.broker.delay import Delay
from aerobee.broker.options import BrokerOptions
from aerobee.broker.records import format_properties
from aerobee.clock import ManualClock

LEVELS_MS = BrokerOptions(broker_name="a").delay_levels_ms()


def schedule(store: MemoryStore, delay: Delay, topic: str, body: bytes, level: int) -> None:
    properties = {"TAGS": "t", "UNIQ_KEY": body.decode()}
    place, queue_id, due_ms = delay.place(topic, 0, properties, level)
    store.append([Record(place, queue_id, body, format_properties(properties), tags_code=due_ms)])
    delay.scheduled()


@asynccontextmanager
async def running(delay: Delay) -> AsyncIterator[None]:
    task = asyncio.create_task(delay.run())
    await asyncio.sleep(0)
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_every_level_delivers_at_its_time_and_not_before(tmp_path: Path) -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    delay = Delay(store, clock, LEVELS_MS, tmp_path)
    async with running(delay):
        began_ms = clock.now_ms()
        for level in range(1, 19):
            schedule(store, delay, "orders", b"%d" % level, level)
        await clock.advance(7201)
        delivered = store.messages("orders")
        assert [message.body for message in delivered] == [b"%d" % level for level in range(1, 19)]
        for level, message in enumerate(delivered, 1):
            assert 0 <= message.store_timestamp - began_ms - LEVELS_MS[level - 1] <= 100
            assert message.properties["UNIQ_KEY"] == str(level)


async def test_a_level_above_the_highest_counts_as_the_highest(tmp_path: Path) -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    delay = Delay(store, clock, LEVELS_MS, tmp_path)
    schedule(store, delay, "orders", b"x", 99)
    assert len(store.messages("SCHEDULE_TOPIC_XXXX", 17)) == 1


async def test_after_a_restart_nothing_is_lost_and_delivered_is_not_delivered_again(tmp_path: Path) -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    first = Delay(store, clock, LEVELS_MS, tmp_path)
    async with running(first):
        schedule(store, first, "orders", b"soon", 1)
        schedule(store, first, "orders", b"later", 3)
        await clock.advance(2)
    await first.save()
    second = Delay(store, clock, LEVELS_MS, tmp_path)
    second.load()
    async with running(second):
        await clock.advance(20)
    assert [message.body for message in store.messages("orders")] == [b"soon", b"later"]


@pytest.mark.parametrize("others", [LEVELS_MS[:5], [*LEVELS_MS, 9_000_000]], ids=["fewer", "more"])
async def test_after_a_kill_other_levels_deliver_nothing_again(tmp_path: Path, others: list[int]) -> None:
    """Claim: how far each level has come survives a `messageDelayLevel` with more or fewer levels, and back."""
    clock = ManualClock()
    store = MemoryStore(clock)
    for number, levels in enumerate((LEVELS_MS, others, others, LEVELS_MS)):
        delay = Delay(store, clock, levels, tmp_path)
        delay.load()
        async with running(delay):  # and is never saved
            schedule(store, delay, "orders", b"%d" % number, 1)
            await clock.advance(3)
    assert [message.body for message in store.messages("orders")] == [b"0", b"1", b"2", b"3"]


async def test_a_full_disk_delays_further_but_loses_nothing(tmp_path: Path) -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    delay = Delay(store, clock, LEVELS_MS, tmp_path)
    async with running(delay):
        schedule(store, delay, "orders", b"x", 1)
        store.full = True
        await clock.advance(30)
        assert store.messages("orders") == []
        store.full = False
        await clock.advance(2)
    assert [message.body for message in store.messages("orders")] == [b"x"]


async def test_a_level_that_cannot_be_delivered_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    delay = Delay(store, clock, [1000, 1000, 1000], tmp_path)
    entries = store.entries

    def broken(topic: str, queue_id: int, offset: int, count: int) -> bytes:
        if queue_id == 0:
            raise OSError("its file cannot be read")
        return entries(topic, queue_id, offset, count)

    monkeypatch.setattr(store, "entries", broken)
    for level in (1, 2, 3):
        schedule(store, delay, "orders", b"%d" % level, level)
    async with running(delay):
        await clock.advance(3)
        assert [message.body for message in store.messages("orders")] == [b"2", b"3"]
        assert "its file cannot be read" in caplog.text
        monkeypatch.undo()
        await clock.advance(1)
    assert [message.body for message in store.messages("orders")] == [b"2", b"3", b"1"]


async def test_a_damaged_record_costs_that_record(tmp_path: Path) -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    delay = Delay(store, clock, LEVELS_MS, tmp_path)
    for body in (b"a", b"b", b"c"):
        schedule(store, delay, "orders", body, 1)
    store.damaged.add(store.messages("SCHEDULE_TOPIC_XXXX", 0)[1].position)
    async with running(delay):
        await clock.advance(3)
    assert [message.body for message in store.messages("orders")] == [b"a", b"c"]


async def test_a_queue_that_cannot_be_costs_that_message(tmp_path: Path) -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    delay = Delay(store, clock, LEVELS_MS, tmp_path)
    schedule(store, delay, "orders", b"a", 1)
    for queue_id in (b"-1", b"4294967296"):
        properties = b"REAL_TOPIC\x01orders\x02REAL_QID\x01" + queue_id + b"\x02"
        store.append([Record("SCHEDULE_TOPIC_XXXX", 0, b"forged", properties, tags_code=clock.now_ms())])
    schedule(store, delay, "orders", b"b", 1)
    async with running(delay):
        await clock.advance(3)
    assert [message.body for message in store.messages("orders")] == [b"a", b"b"]


async def test_a_clock_set_back_does_not_hold_messages_for_ever(tmp_path: Path) -> None:
    # Claim: nobody waits longer than the level's own delay from now, whatever the stored time says.
    clock = ManualClock()
    store = MemoryStore(clock)
    delay = Delay(store, clock, LEVELS_MS, tmp_path)
    properties = {"REAL_TOPIC": "orders", "REAL_QID": "0"}
    far_ms = clock.now_ms() + 86_400_000
    store.append([Record("SCHEDULE_TOPIC_XXXX", 0, b"x", format_properties(properties), tags_code=far_ms)])
    async with running(delay):
        await clock.advance(5)
    assert [message.body for message in store.messages("orders")] == [b"x"]


async def test_killed_between_batches_nothing_comes_twice(tmp_path: Path) -> None:
    # Claim: the progress of every batch is kept, not only that of delayOffset.json, which is written now and then.
    clock = ManualClock()
    store = MemoryStore(clock)
    first = Delay(store, clock, LEVELS_MS, tmp_path)
    for number in range(1000):
        schedule(store, first, "orders", b"%d" % number, 1)
    await clock.advance(2)
    first.deliver_due()
    second = Delay(store, clock, LEVELS_MS, tmp_path)
    second.load()
    async with running(second):
        await clock.advance(2)
    assert [message.body for message in store.messages("orders")] == [b"%d" % number for number in range(1000)]


async def test_progress_that_the_log_has_lost_does_not_count(tmp_path: Path) -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    first = Delay(store, clock, LEVELS_MS, tmp_path)
    schedule(store, first, "orders", b"x", 1)
    end = store.end
    await clock.advance(2)
    first.deliver_due()
    assert len(store.messages("orders")) == 1
    store.queues["orders", 0].clear()  # the power went before the log was synced
    store.end = end
    second = Delay(store, clock, LEVELS_MS, tmp_path)
    second.load()
    second.deliver_due()
    assert [message.body for message in store.messages("orders")] == [b"x"]


async def test_a_clock_set_back_delivers_nothing_early_and_holds_nobody_twice(tmp_path: Path) -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    delay = Delay(store, clock, LEVELS_MS, tmp_path)
    async with running(delay):
        for number in range(10):
            schedule(store, delay, "orders", b"%d" % number, 4)
            await clock.advance(1)
        clock.jump(-3600)
        await clock.advance(19.5)
        assert store.messages("orders") == []
        await clock.advance(25)
        assert len(store.messages("orders")) == 10
