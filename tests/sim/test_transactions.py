"""Transactions on a manual clock: commit, rollback, questions, and what a crash or a stubborn producer may do."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from memory_store import MemoryStore, Receipt

from aerobee._engine import Record
from aerobee.broker.offsets import OffsetTable
from aerobee.broker.options import BrokerOptions
from aerobee.broker.records import COMMIT, ROLLBACK, Stored, format_properties, parse_record
from aerobee.broker.topics import CHECK_MAX_TIME_TOPIC, HALF_TOPIC, OP_HALF_TOPIC
from aerobee.broker.transactions import Transactions
from aerobee.clock import ManualClock
from aerobee.errors import DiskFull, LmqQuotaExceeded, MessageIllegal, ServerError


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
            self.store,
            self.clock,
            self.options,
            self.offsets,
            ask=self.ask,
            make_topic=self.make_topic,
            place=self.place,
        )
        self.transactions.load()
        return self.transactions

    async def ask(self, half: Stored) -> bool:
        self.asked.append(half)
        return self.online

    async def make_topic(self, name: str) -> None:
        return None

    def place(self, topic: str, queue_id: int, properties: dict[str, str]) -> tuple[str, int, int | None]:
        return topic, queue_id, None

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


async def test_an_answer_and_an_end_that_cross_before_the_flush_deliver_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claim: with synchronous flush nobody finds a message before it is flushed; an answer that waits for that, while
    the producer itself ends the half, does not commit it again."""
    store, flushing = bench.store, asyncio.Event()
    first, half = bench.prepare("first"), bench.prepare("half")
    flushed_to = store.end

    async def flushed(receipt: Receipt) -> None:
        nonlocal flushed_to
        await flushing.wait()
        flushed_to = max(flushed_to, receipt.position + receipt.size)

    search = store.search_index

    def found(*question: Any) -> tuple[list[bytes], int, int]:
        records, ms, position = search(*question)
        return [data for data in records if parse_record(data).position < flushed_to], ms, position

    monkeypatch.setattr(store, "flushed", flushed)
    monkeypatch.setattr(store, "search_index", found)
    ending = []
    # The first so that the answer has something to wait for.
    for one, from_check in ((first, False), (half, True), (half, False)):
        ending.append(asyncio.ensure_future(bench.end(one, COMMIT, from_check=from_check)))
        for _ in range(5):
            await asyncio.sleep(0)
    flushing.set()
    await asyncio.gather(*ending)
    assert bench.delivered == ["first", "half"]


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


async def test_a_count_of_questions_that_is_none_holds_up_nobody(bench: Bench) -> None:
    bench.prepare("bad", TRANSACTION_CHECK_TIMES="9" * 5000)
    bench.prepare("good")
    await bench.rounds(1)
    assert [half.properties["UNIQ_KEY"] for half in bench.asked] == ["bad", "good"]


@pytest.mark.parametrize("queue_id", ["-1", "2147483648", "4294967296", "9" * 5000])
async def test_a_half_for_a_queue_that_cannot_be_is_skipped(bench: Bench, queue_id: str) -> None:
    properties = {"PGROUP": "g", "UNIQ_KEY": "forged", "REAL_TOPIC": "orders", "REAL_QID": queue_id}
    receipt = bench.store.append([Record(HALF_TOPIC, 0, b"forged", format_properties(properties))])[0]
    good = bench.prepare("good")
    with pytest.raises(ServerError, match="Find prepared transaction message failed"):
        await bench.end((receipt.queue_offset, receipt.position), COMMIT)
    await bench.rounds(1)
    assert [half.properties["UNIQ_KEY"] for half in bench.asked] == ["good"]
    assert bench.transactions.counters["skipped"] == 1
    await bench.end(good, COMMIT)
    assert bench.delivered == ["good"]


async def test_an_error_at_one_half_does_not_stop_the_checks_of_the_others(bench: Bench) -> None:
    """Claim: an exception while one half is checked neither ends the round nor loses that half (#544, #8158)."""
    first, second = bench.prepare("first"), bench.prepare("second")
    asked: list[str] = []

    async def ask(half: Stored) -> bool:
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
    await bench.clock.advance(5)
    await bench.end(bench.prepare("in time", CHECK_IMMUNITY_TIME_IN_SECONDS="1"), COMMIT)
    await bench.clock.advance(2)  # past its own time, and past transactionTimeOut, which is the least
    with pytest.raises(ServerError) as refused:
        await bench.end(late, COMMIT)
    assert refused.value.code == 604


async def test_a_half_of_the_future_is_asked_about_whatever_it_wants(bench: Bench) -> None:
    """Claim: a producer whose clock is far ahead, or mad, has its halves asked about like others, and copied no more
    often."""
    for born_ms in (bench.clock.now_ms() + 10 * 365 * 86_400_000, 1 << 62):
        properties = {"PGROUP": "g", "UNIQ_KEY": "future", "REAL_TOPIC": "orders", "REAL_QID": "0"}
        properties["CHECK_IMMUNITY_TIME_IN_SECONDS"] = "100"
        record = Record(HALF_TOPIC, 0, b"future", format_properties(properties), born_timestamp=born_ms)
        bench.store.append([record])
    await bench.rounds(1)
    assert len(bench.asked) == 2
    await bench.rounds(20)
    assert len(bench.asked) == 2 * 15 and len(bench.store.messages(HALF_TOPIC)) == 2 * 16
    assert bench.transactions.pending == 0 and len(bench.store.messages(CHECK_MAX_TIME_TOPIC)) == 2


async def test_wrong_places_and_groups_are_refused(bench: Bench) -> None:
    half = bench.prepare("one")
    for group, place in (("other", half), ("g", (half[0] + 1, half[1])), ("g", (half[0], 12345))):
        with pytest.raises(ServerError):
            await bench.end(place, COMMIT, group=group)
    assert bench.delivered == []


async def test_what_one_turn_ends_shares_a_mark(bench: Bench) -> None:
    """Claim: messages and the mark of all halves that end at the same time are one write; marks have a largest size."""
    halves = [bench.prepare(f"{n}") for n in range(200)]
    appends: list[int] = []
    append = bench.store.append

    def counted(records: list[Record]) -> list[Receipt]:
        appends.append(len(records))
        return append(records)

    bench.store.append = counted  # type: ignore[method-assign]
    await asyncio.gather(*(bench.end(half, ROLLBACK if n % 4 == 3 else COMMIT) for n, half in enumerate(halves)))
    assert appends == [151] and len(bench.delivered) == 150
    (mark,) = bench.store.messages(OP_HALF_TOPIC)
    assert mark.body == b"".join(b"%d," % n for n in range(200)) and mark.properties == {"TAGS": "d"}
    bench.options.change({"transactionOpMsgMaxSize": "100"})
    await asyncio.gather(*(bench.end(bench.prepare(f"{n}"), ROLLBACK) for n in range(200, 300)))
    assert [len(mark.body) for mark in bench.store.messages(OP_HALF_TOPIC)[1:]] == [100, 100, 100, 100]
    await bench.rounds(2)
    assert bench.asked == [] and bench.transactions.pending == 0


async def test_an_ending_that_cannot_be_written_leaves_the_half_open(bench: Bench) -> None:
    half = bench.prepare("one")
    bench.store.full = True
    with pytest.raises(DiskFull):
        await bench.end(half, COMMIT)
    bench.store.full = False
    await bench.end(half, COMMIT)
    assert bench.delivered == ["one"]


async def test_one_message_that_no_store_can_hold_does_not_fail_the_others_of_its_turn(bench: Bench) -> None:
    def place(topic: str, queue_id: int, properties: dict[str, str]) -> tuple[str, int, int | None]:
        if properties["UNIQ_KEY"] == "bad":
            properties["large"] = "x" * 40_000
        return topic, queue_id, None

    bench.place = place  # type: ignore[method-assign]
    bench.restart()
    good, bad = bench.prepare("good"), bench.prepare("bad")
    results = await asyncio.gather(bench.end(good, COMMIT), bench.end(bad, COMMIT), return_exceptions=True)
    assert results[0] is None and isinstance(results[1], MessageIllegal)
    assert bench.delivered == ["good"]
    await bench.rounds(1)
    assert [half.properties["UNIQ_KEY"] for half in bench.asked] == ["bad"]


async def test_one_message_without_room_for_its_light_queues_does_not_fail_the_others_of_its_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = bench.store.append

    def refuse(records: list[Record]) -> list[Receipt]:
        if any(record.body == b"bad" for record in records):
            raise LmqQuotaExceeded("there are as many light queues as there may be")
        return append(records)

    good, bad = bench.prepare("good"), bench.prepare("bad")
    monkeypatch.setattr(bench.store, "append", refuse)
    results = await asyncio.gather(bench.end(good, COMMIT), bench.end(bad, COMMIT), return_exceptions=True)
    assert results[0] is None and isinstance(results[1], LmqQuotaExceeded)
    assert bench.delivered == ["good"]


async def test_a_kill_at_any_moment_leaves_each_half_open_once(bench: Bench) -> None:
    """Claim: progress on disk may be old, the marks tell what is open; nothing is asked about or delivered twice."""
    halves = [bench.prepare(f"{n}") for n in range(6)]
    await bench.rounds(1)
    assert len(bench.asked) == 6
    await bench.end(halves[0], COMMIT)
    bench.restart()  # nothing was saved: it starts at the first half again
    assert bench.transactions.half_offset == 0 and bench.transactions.pending == 5
    bench.asked.clear()
    await bench.rounds(1)
    assert [(half.body, half.properties["TRANSACTION_CHECK_TIMES"]) for half in bench.asked] == [
        (b"%d" % n, "2") for n in range(1, 6)
    ]
    bench.restart()
    await bench.end(halves[1], COMMIT)  # to its first place, two copies and two kills later
    for question in bench.asked[1:]:
        await bench.end((question.queue_offset, question.position), COMMIT, from_check=True)
    bench.asked.clear()
    await bench.rounds(2)
    assert bench.asked == [] and sorted(bench.delivered) == [f"{n}" for n in range(6)]


async def test_a_commit_counts_once_whatever_comes_around_it(bench: Bench) -> None:
    """Claim: a second commit delivers nothing, one behind a rollback does; also behind rounds, kills, in one turn."""
    for later in (0, 2):
        half = bench.prepare(f"twice {later}")
        await asyncio.gather(*(bench.end(half, COMMIT) for _ in range(3)))
        await bench.rounds(later)
        await bench.end(half, COMMIT)
        bench.restart()
        await bench.end(half, COMMIT)
        await bench.end(half, ROLLBACK)
        assert bench.delivered.count(f"twice {later}") == 1
        half = bench.prepare(f"back {later}")
        await bench.end(half, ROLLBACK)
        await bench.rounds(later)
        assert f"back {later}" not in bench.delivered
        await bench.end(half, COMMIT)
        await bench.end(half, COMMIT)
        assert bench.delivered.count(f"back {later}") == 1
    await bench.rounds(2)
    assert bench.asked == []


async def test_the_same_message_sent_again_is_another_transaction(bench: Bench) -> None:
    for _ in range(2):
        await bench.end(bench.prepare("same"), COMMIT)
        await bench.clock.advance(1)
    bench.prepare("same")
    await bench.rounds(1)
    (question,) = bench.asked
    await bench.end((question.queue_offset, question.position), COMMIT, from_check=True)
    assert bench.delivered == ["same"] * 3


async def test_a_half_that_another_broker_left_twice_is_delivered_once(bench: Bench) -> None:
    """Claim: Apache's broker notes nowhere that it put a half at the tail; killed, it leaves several open ones."""
    bench.prepare("one")
    first = bench.store.messages(HALF_TOPIC)[0]
    for times in "12":
        bench.store.append(
            [first.to_record(HALF_TOPIC, 0, properties={**first.properties, "TRANSACTION_CHECK_TIMES": times})]
        )
    await bench.rounds(1)
    assert len(bench.asked) == 3
    for question in bench.asked:
        await bench.end((question.queue_offset, question.position), COMMIT, from_check=True)
    assert bench.delivered == ["one"]
    await bench.rounds(1)
    assert len(bench.asked) == 3 and bench.transactions.pending == 0


@pytest.mark.parametrize(("away_s", "deaf_rounds"), [(120, 0), (1, 4)])
async def test_what_another_broker_delivered_without_a_mark_is_not_delivered_again(
    bench: Bench, away_s: float, deaf_rounds: int
) -> None:
    """Claim: Apache's broker, killed before it has noted a commit, leaves message and open half; whenever its producer
    answers, also about a copy much younger than the message, nothing comes twice."""
    half = bench.prepare("one")
    await bench.end(half, COMMIT)
    bench.store.queues[OP_HALF_TOPIC, 0].clear()
    await bench.clock.advance(away_s)
    bench.restart()
    await bench.rounds(deaf_rounds)
    bench.asked.clear()
    await bench.rounds(1)
    (question,) = bench.asked
    await bench.end((question.queue_offset, question.position), COMMIT, from_check=True)
    assert bench.delivered == ["one"] and bench.transactions.pending == 0


async def test_first_question_after_six_seconds_then_every_thirty_fifteen_times(bench: Bench) -> None:
    """Claim: with the settings nobody changed, the times are Apache's."""
    began = bench.clock.now_ms()
    bench.prepare("one")
    times: list[float] = []
    interval_s = bench.options.transaction_check_interval / 1000
    for wait_s in (6, 1, *[interval_s] * 18):
        await bench.rounds(1, wait_s)
        times += [(bench.clock.now_ms() - began) / 1000] * (len(bench.asked) - len(times))
    assert times == [7 + 30 * n for n in range(15)]
    assert [message.body for message in bench.store.messages(CHECK_MAX_TIME_TOPIC)] == [b"one"]
    await bench.end((0, 0), COMMIT)  # its producer knows at last
    await bench.rounds(1)
    assert bench.delivered == ["one"] and len(bench.asked) == 15


async def test_progress_is_never_ahead_of_the_disk(bench: Bench) -> None:
    """Claim: a power cut that takes copies at the tail does not lose the halves they were made of."""
    for n in range(3):
        bench.prepare(f"{n}")
    bench.store.on_disk = bench.store.end
    await bench.rounds(1)
    bench.transactions.publish()
    assert bench.offsets.query("CID_RMQ_SYS_TRANS", HALF_TOPIC, 0) <= 0
    bench.store.on_disk = None
    bench.transactions.publish()
    assert bench.offsets.query("CID_RMQ_SYS_TRANS", HALF_TOPIC, 0) == 3
    assert bench.offsets.query("CID_RMQ_SYS_TRANS", OP_HALF_TOPIC, 0) == 1


async def test_progress_that_the_log_has_lost_does_not_count(bench: Bench) -> None:
    bench.offsets.overwrite("CID_RMQ_SYS_TRANS", HALF_TOPIC, 0, 100)
    bench.offsets.overwrite("CID_RMQ_SYS_TRANS", OP_HALF_TOPIC, 0, 100)
    bench.restart()
    bench.prepare("one")
    await bench.rounds(1)
    assert len(bench.asked) == 1


async def test_an_operator_may_skip_open_halves_or_have_them_asked_again(bench: Bench) -> None:
    for n in range(3):
        bench.prepare(f"{n}")
    bench.offsets.overwrite("CID_RMQ_SYS_TRANS", HALF_TOPIC, 0, 2)
    await bench.rounds(1)
    assert [half.body for half in bench.asked] == [b"2"]
    bench.transactions.publish()
    bench.offsets.overwrite("CID_RMQ_SYS_TRANS", HALF_TOPIC, 0, 0)
    bench.offsets.overwrite("CID_RMQ_SYS_TRANS", OP_HALF_TOPIC, 0, 0)
    bench.asked.clear()
    await bench.rounds(1)
    assert [half.body for half in bench.asked] == [b"0", b"1", b"2"]


async def test_a_half_without_room_for_notes_is_given_up_and_holds_up_nobody(bench: Bench) -> None:
    room = 32767 - len(format_properties({"TRAN_MSG": "true", "PGROUP": "g", "UNIQ_KEY": "full", "fill": ""}))
    full = bench.prepare("full", fill="x" * (room - 60))
    bench.prepare("other")
    await bench.rounds(3)
    assert [half.properties["UNIQ_KEY"] for half in bench.asked] == ["full", "other", "other", "other"]
    assert [message.body for message in bench.store.messages(CHECK_MAX_TIME_TOPIC)] == [b"full"]
    await bench.end(full, COMMIT, from_check=True)
    assert bench.delivered == ["full"]


async def test_a_half_that_is_given_up_reaches_no_light_queue(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim: it was never committed; so a quota of light queues is no obstacle either."""
    append = bench.store.append

    def refuse(records: list[Record]) -> list[Receipt]:
        if any(b"%LMQ%z" in record.properties and record.multi_dispatch for record in records):
            if any(record.topic == CHECK_MAX_TIME_TOPIC for record in records):
                raise LmqQuotaExceeded("there are as many light queues as there may be")
        return append(records)

    monkeypatch.setattr(bench.store, "append", refuse)
    room = 32767 - len(format_properties({"TRAN_MSG": "true", "PGROUP": "g", "UNIQ_KEY": "full", "fill": ""}))
    bench.prepare("full", fill="x" * (room - 100), INNER_MULTI_DISPATCH="%LMQ%z")
    bench.prepare("light", INNER_MULTI_DISPATCH="%LMQ%z")
    await bench.rounds(14)
    bench.prepare("other")
    await bench.rounds(4)
    assert [message.body for message in bench.store.messages(CHECK_MAX_TIME_TOPIC)] == [b"full", b"light"]
    assert [half.body for half in bench.asked[-4:]] == [b"other"] * 4


async def test_a_producer_that_does_not_read_holds_up_nobody(bench: Bench) -> None:
    asked: list[str] = []

    async def ask(half: Stored) -> bool:
        asked.append(half.properties["PGROUP"])
        if half.properties["PGROUP"] == "deaf":
            await asyncio.sleep(0.01)
            return False
        return True

    bench.ask = ask  # type: ignore[method-assign]
    bench.restart()
    for n in range(100):
        bench.prepare(f"{n}", PGROUP="deaf" if n % 2 else "g")
    await bench.rounds(1)
    assert asked.count("deaf") == 1 and asked.count("g") == 50


async def test_ended_halves_behind_an_old_open_one_cost_a_bit_each(bench: Bench) -> None:
    """Claim: what is remembered of ended halves is one bit, and nothing once the open one has been dealt with."""
    bench.prepare("old", CHECK_IMMUNITY_TIME_IN_SECONDS="3600")
    marks = [list(range(first, first + 500)) for first in range(1, 100_001, 500)]
    bench.transactions._remember_mark(0, [100_001])
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number, offsets in enumerate(marks, 1):
        bench.transactions._remember_mark(number, offsets)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000 / 8 + 16 * 1024 and len(bench.transactions._ended) == 100_001
    bench.transactions._move_to(100_002)
    assert len(bench.transactions._ended) == 0 and not bench.transactions._marks
