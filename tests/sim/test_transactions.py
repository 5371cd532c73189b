"""Transactions on a manual clock: commit, rollback, questions, and what a crash or a stubborn producer may do."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_store import MemoryStore

from aerobee._engine import Record
from aerobee.broker.offsets import OffsetTable
from aerobee.broker.options import BrokerOptions
from aerobee.broker.records import COMMIT, ROLLBACK, Stored, format_properties
from aerobee.broker.topics import CHECK_MAX_TIME_TOPIC, HALF_TOPIC
from aerobee.broker.transactions import Transactions
from aerobee.clock import ManualClock
from aerobee.errors import ServerError


class Bench:
    """A transaction mechanism with a producer that only notes what it is asked."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.options = BrokerOptions(broker_name="a")
        self.offsets = OffsetTable(tmp_path)
        self.asked: list[Stored] = []
        self.online = True
        self.transactions = self.restart()

    def restart(self) -> Transactions:
        self.transactions = Transactions(
            self.store, self.clock, self.options, self.offsets, ask=self.ask, make_topic=self.make_topic
        )
        self.transactions.load()
        return self.transactions

    def ask(self, half: Stored) -> bool:
        self.asked.append(half)
        return self.online

    async def make_topic(self, name: str) -> None:
        return None

    def prepare(self, key: str, **properties: str) -> tuple[int, int]:
        """A half message; (queue offset, position)."""
        every = {"TRAN_MSG": "true", "PGROUP": "g", "UNIQ_KEY": key, **properties}
        topic, queue_id, flag = self.transactions.prepare("orders", 3, every, 4)
        receipt = self.store.append(
            [
                Record(
                    topic,
                    queue_id,
                    key.encode(),
                    format_properties(every),
                    sys_flag=flag,
                    born_timestamp=self.clock.now_ms(),
                )
            ]
        )[0]
        return receipt.queue_offset, receipt.position

    async def end(self, half: tuple[int, int], decision: int, *, group: str = "g", from_check: bool = False) -> None:
        await self.transactions.end(group, half[0], half[1], decision, from_check=from_check)

    async def rounds(self, count: int, seconds: float = 30) -> None:
        for _ in range(count):
            await self.clock.advance(seconds)
            await self.transactions.check()

    @property
    def delivered(self) -> list[str]:
        return [message.body.decode() for message in self.store.messages("orders", 3)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_commit_delivers_once_rollback_never(bench: Bench) -> None:
    one, two = bench.prepare("one"), bench.prepare("two")
    assert bench.delivered == []
    await bench.end(one, COMMIT)
    await bench.end(two, ROLLBACK)
    assert bench.delivered == ["one"]
    message = bench.store.messages("orders", 3)[0]
    assert message.sys_flag & 12 == 8 and message.prepared_offset == one[1] and "REAL_TOPIC" not in message.properties
    await bench.rounds(3)
    assert bench.asked == [] and bench.delivered == ["one"]


async def test_saying_it_twice_delivers_once(bench: Bench) -> None:
    half = bench.prepare("one")
    await bench.end(half, COMMIT)
    await bench.end(half, COMMIT, from_check=True)
    assert bench.delivered == ["one"]


async def test_an_unanswered_half_is_asked_about_and_its_answer_counts(bench: Bench) -> None:
    bench.prepare("one")
    await bench.rounds(1)
    (question,) = bench.asked
    assert question.properties["TRANSACTION_CHECK_TIMES"] == "1"
    await bench.end((question.queue_offset, question.position), COMMIT, from_check=True)
    await bench.rounds(3)
    assert bench.delivered == ["one"] and len(bench.asked) == 1


async def test_a_late_answer_to_the_old_place_is_not_a_second_delivery(bench: Bench) -> None:
    # Claim: a producer's commit that was under way while it was asked, and its answer, deliver one message.
    half = bench.prepare("one")
    await bench.rounds(1)
    (question,) = bench.asked
    await bench.end(half, COMMIT)
    await bench.end((question.queue_offset, question.position), COMMIT, from_check=True)
    await bench.rounds(3)
    assert bench.delivered == ["one"] and len(bench.asked) == 1


async def test_a_crash_between_rounds_delivers_nothing_twice(bench: Bench) -> None:
    one = bench.prepare("one")
    bench.prepare("two")
    await bench.end(one, COMMIT)
    bench.restart()
    await bench.rounds(1)
    assert [half.properties["UNIQ_KEY"] for half in bench.asked] == ["two"]
    assert bench.delivered == ["one"]


async def test_questions_are_bounded_and_the_message_is_parked(bench: Bench) -> None:
    # Claim: an unanswered transaction is asked about 15 times, then set aside where an operator sees it.
    bench.online = False
    bench.prepare("one")
    await bench.rounds(20)
    assert len(bench.asked) == 15
    assert [message.body for message in bench.store.messages(CHECK_MAX_TIME_TOPIC)] == [b"one"]
    copies = len(bench.store.messages(HALF_TOPIC))
    await bench.rounds(5)
    assert len(bench.store.messages(HALF_TOPIC)) == copies


async def test_one_bad_half_does_not_hold_up_the_others(bench: Bench) -> None:
    bench.prepare("bad")
    bench.store.damaged.add(0)
    bench.prepare("good")
    await bench.rounds(1)
    assert [half.properties["UNIQ_KEY"] for half in bench.asked] == ["good"]


async def test_an_error_at_one_half_does_not_stop_the_checks_of_the_others(bench: Bench) -> None:
    """Claim: an exception while one half is checked neither ends the round nor loses that half (#544, #8158)."""
    first, second = bench.prepare("first"), bench.prepare("second")
    asked: list[str] = []

    def ask(half: Stored) -> bool:
        asked.append(half.body.decode())
        if asked == ["first"]:
            raise RuntimeError("the producer's connection broke")
        return True

    bench.ask = ask  # type: ignore[method-assign]
    bench.restart()
    await bench.rounds(1)
    assert asked == ["first", "second"]
    await bench.rounds(1)
    assert sorted(asked) == ["first", "first", "second", "second"]
    await bench.end(first, COMMIT)
    await bench.end(second, COMMIT)
    assert sorted(bench.delivered) == ["first", "second"]


async def test_young_halves_are_left_alone(bench: Bench) -> None:
    bench.prepare("one")
    await bench.rounds(1, seconds=5)
    assert bench.asked == []


async def test_an_own_immunity_time_is_kept_and_does_not_hold_up_others(bench: Bench) -> None:
    patient = bench.prepare("patient", CHECK_IMMUNITY_TIME_IN_SECONDS="100")
    bench.prepare("plain")
    await bench.rounds(2)
    assert {half.properties["UNIQ_KEY"] for half in bench.asked} == {"plain"}
    await bench.end(patient, COMMIT)
    assert bench.delivered == ["patient"]
    await bench.clock.advance(100)
    late = bench.prepare("late", CHECK_IMMUNITY_TIME_IN_SECONDS="1")
    await bench.clock.advance(2)
    with pytest.raises(ServerError) as refused:
        await bench.end(late, COMMIT)
    assert refused.value.code == 604


async def test_wrong_places_and_groups_are_refused(bench: Bench) -> None:
    half = bench.prepare("one")
    for group, place in (("other", half), ("g", (half[0] + 1, half[1])), ("g", (half[0], 12345))):
        with pytest.raises(ServerError):
            await bench.end(place, COMMIT, group=group)
    assert bench.delivered == []
