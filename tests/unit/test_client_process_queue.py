"""What may be committed, when a queue is full, and who gets which messages next."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from aerobee.client.process_queue import Lane, Parcel, ProcessQueue
from aerobee.protocol.message import MessageExt, MessageQueue

QUEUE = MessageQueue("t", "b", 0)


def message(offset: int, body: bytes = b"12345", topic: str = "t") -> MessageExt:
    made = MessageExt.__new__(MessageExt)
    made.queue_offset, made.body, made.topic = offset, body, topic
    return made


def filled(offsets: range | list[int], start: int = 0) -> tuple[ProcessQueue, list[MessageExt]]:
    queue = ProcessQueue(QUEUE, start)
    messages = [message(offset) for offset in offsets]
    queue.put(messages)
    queue.next_offset = messages[-1].queue_offset + 1
    queue.in_hand = len(messages)
    return queue, messages


@given(st.lists(st.integers(0, 200), unique=True, min_size=1), st.randoms(use_true_random=False))
def test_nothing_in_front_of_the_committable_offset_is_unfinished(offsets: list[int], chance: random.Random) -> None:
    """Whatever the order of finishing, and with holes where a filter skipped: the offset never passes an unfinished
    one, never goes back, and ends behind everything."""
    queue, messages = filled(sorted(offsets))
    unfinished = set(offsets)
    chance.shuffle(messages)
    before = queue.committable
    for one in messages:
        queue.finish([one])
        unfinished.discard(one.queue_offset)
        assert queue.committable >= before
        assert all(offset >= queue.committable for offset in unfinished)
        before = queue.committable
    assert queue.committable == queue.next_offset
    assert (queue.bytes, queue.count, queue.in_hand) == (0, 0, 0)


def test_what_a_filter_skipped_is_committed_when_nothing_is_under_way() -> None:
    queue, messages = filled(range(3))
    queue.next_offset = 50
    queue.skip_to(50)
    assert queue.committable == 0
    queue.finish(messages)
    assert queue.committable == 50
    queue.skip_to(60)
    assert queue.committable == 60


async def test_a_full_queue_waits_for_room() -> None:
    queue, messages = filled(range(11))
    assert queue.is_full(10, 1 << 30, 0)
    assert queue.is_full(1000, 54, 0)
    assert queue.is_full(1000, 1 << 30, 9)
    assert not queue.is_full(11, 55, 10)
    waiting = asyncio.ensure_future(queue.room(10, 1 << 30, 0))
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.finish(messages[:1])
    await waiting
    queue, _ = filled(range(11))
    waiting = asyncio.ensure_future(queue.room(10, 1 << 30, 0))
    await asyncio.sleep(0)
    queue.drop()
    await waiting


async def test_a_queue_given_up_waits_for_what_is_in_hand() -> None:
    queue, messages = filled(range(2))
    assert not await queue.idle(0.01)
    waiting = asyncio.ensure_future(queue.idle(5))
    await asyncio.sleep(0)
    queue.finish(messages[:1])
    queue.give_back(messages[1:])
    assert await waiting


async def test_a_lane_hands_each_message_to_one_taker() -> None:
    lane = Lane()
    got: list[int] = []

    async def taker() -> None:
        while (parcel := await lane.take(3)) is not None:
            got.extend(m.queue_offset for m in parcel.messages)
            await asyncio.sleep(0)

    takers = [asyncio.ensure_future(taker()) for _ in range(5)]
    queue = ProcessQueue(QUEUE, 0)
    for start in range(0, 100, 10):
        lane.put(Parcel(queue, [message(offset) for offset in range(start, start + 10)]))
        await asyncio.sleep(0)
    for _ in range(50):
        await asyncio.sleep(0)
    assert sorted(got) == list(range(100)) and lane.size == 0
    lane.close()
    await asyncio.gather(*takers)


async def test_a_cancelled_taker_does_not_swallow_a_wake_up() -> None:
    lane = Lane()
    first = asyncio.ensure_future(lane.take(1))
    second = asyncio.ensure_future(lane.take(1))
    await asyncio.sleep(0)
    lane.put(Parcel(ProcessQueue(QUEUE, 0), [message(0)]))  # wakes the first
    first.cancel()
    parcel = await asyncio.wait_for(second, 1)
    assert parcel is not None and parcel.messages[0].queue_offset == 0


def test_messages_of_a_dropped_queue_are_not_handed_out() -> None:
    lane = Lane()
    queue = ProcessQueue(QUEUE, 0)
    lane.put(Parcel(queue, [message(0)]))
    queue.drop()
    assert lane.take_now(1) is None and lane.size == 0


def test_an_orderly_queue_needs_its_lock() -> None:
    lane = Lane()
    queue = ProcessQueue(QUEUE, 0)
    queue.waiting.extend([message(0), message(1, topic="u")])
    queue.locked_until = 0.0
    lane.put_queue(queue)
    assert lane.take_now(8) is None and not queue.taken
    queue.locked_until = float("inf")
    lane.put_queue(queue)
    parcel = lane.take_now(8)
    assert parcel is not None and [m.queue_offset for m in parcel.messages] == [0], "one topic at a time"
