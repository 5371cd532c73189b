"""Timed messages on a clock that a test moves, over the real store in a folder."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import shutil
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aerobee._engine import Batch, Engine, Receipt, Record
from aerobee.broker import forward
from aerobee.broker.delay import Delay
from aerobee.broker.records import Stored, format_properties, parse_records
from aerobee.broker.timer import BATCH, Timer, read_handle, recall_handle
from aerobee.broker.timer_files import SLOTS, Check, TimerLog
from aerobee.clock import ManualClock
from aerobee.errors import DiskFull, ServerError
from aerobee.log import Complaints
from aerobee.testing.eventually import eventually

TOPIC = "orders"
TIMER = "rmq_sys_wheel_timer"
NOW_MS = 1_700_000_000_300
NOTES = ("TIMER_ENQUEUE_MS", "TIMER_DEQUEUE_MS", "TIMER_ROLL_TIMES")


class RealStore:
    """The engine with what a timer needs of it. `full`: refuses appends; `dies_after`: so many appends more."""

    def __init__(self, root: Path, **settings: object) -> None:
        settings = {"root": str(root), "log_file_bytes": 1 << 24, "background": False, **settings}
        self.engine = Engine.open(settings)
        self.full = False
        self.dies_after = -1

    def append(self, records: list[Record]) -> list[Receipt]:
        if self.full:
            raise DiskFull("no room")
        receipts, _ = self.engine.append(records)
        self._maybe_die()
        return receipts

    def bring_home(self, moves: list[tuple[int, bytes]]) -> tuple[int, int]:
        if self.full:
            raise DiskFull("no room")
        count, end, _ = self.engine.bring_home(moves)
        self._maybe_die()
        return count, end

    def _maybe_die(self) -> None:
        if self.dies_after >= 0:
            self.dies_after -= 1
            if self.dies_after < 0:
                raise Killed

    def bounds(self, topic: str, queue_id: int) -> tuple[int, int]:
        return self.engine.bounds(topic, queue_id)

    def entries(self, topic: str, queue_id: int, offset: int, count: int) -> bytes:
        return self.engine.entries(topic, queue_id, offset, count)

    def record(self, position: int) -> bytes | None:
        return self.engine.record(position) if position >= 0 else None

    def log_bounds(self) -> tuple[int, int, int]:
        end = self.engine.stats()["max_position"]
        return self.engine.stats()["min_position"], end, end

    def messages(self) -> list[Stored]:
        found: list[Stored] = []
        offset, high = 0, self.engine.bounds(TOPIC, 0)[1]
        while offset < high:
            batch: Batch = self.engine.read(TOPIC, 0, offset, 1000, 1 << 22)
            found += parse_records(batch.records)
            offset = batch.next_offset
        return found


class Killed(BaseException):
    """The process ended here."""


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW_MS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RealStore]:
    opened = RealStore(tmp_path)
    yield opened
    opened.engine.close()


def make(
    store: RealStore, clock: ManualClock, root: Path, *, boot: int = 1, roll_slots: int = 172_800, step_ms: int = 1000
) -> Timer:
    timer = Timer(store, clock, root, log_file_bytes=1 << 16, boot=boot, roll_slots=roll_slots, precision_ms=step_ms)
    timer.load()
    return timer


def send(store: RealStore, timer: Timer, body: str, **asked: int) -> dict[str, str]:
    properties = {"UNIQ_KEY": body, **{name: str(value) for name, value in asked.items()}}
    topic, queue_id, code = timer.place(TOPIC, 0, properties)
    store.append([Record(topic, queue_id, body.encode(), format_properties(properties), tags_code=code)])
    timer.scheduled()
    return properties


@asynccontextmanager
async def running(timer: Timer | Delay) -> AsyncIterator[None]:
    task = asyncio.create_task(timer.run())
    await asyncio.sleep(0)
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def bodies(store: RealStore) -> list[str]:
    return [message.body.decode() for message in store.messages()]


def drain(timer: Timer) -> None:
    while timer.turn() <= 0:
        pass


@pytest.mark.parametrize(
    ("asked", "waits_ms"),
    [
        ({"TIMER_DELAY_SEC": 7200}, 7_200_700),
        ({"TIMER_DELAY_MS": 1}, 700),
        ({"TIMER_DELIVER_MS": NOW_MS + 700}, 700),  # an exact second is delivered at that second
        ({"TIMER_DELIVER_MS": NOW_MS + 701}, 1700),
        ({"TIMER_DELIVER_MS": NOW_MS - 5}, 0),
    ],
)
async def test_delivered_when_its_step_is_over(
    asked: dict[str, int], waits_ms: int, store: RealStore, clock: ManualClock, tmp_path: Path
) -> None:
    timer = make(store, clock, tmp_path)
    async with running(timer):
        send(store, timer, "x", **asked)
        await clock.advance(max(0, waits_ms - 1) / 1000)
        assert bodies(store) == ([] if waits_ms else ["x"])
        await clock.advance(0.1)
        assert bodies(store) == ["x"]


async def test_too_far_away_or_no_number_is_refused(store: RealStore, clock: ManualClock, tmp_path: Path) -> None:
    timer = make(store, clock, tmp_path)
    for asked in ({"TIMER_DELAY_SEC": "259201"}, {"TIMER_DELAY_MS": "x"}):
        with pytest.raises(ServerError) as caught:
            timer.place(TOPIC, 0, dict(asked))
        assert caught.value.code == 13


async def test_what_is_recalled_is_not_delivered(store: RealStore, clock: ManualClock, tmp_path: Path) -> None:
    timer = make(store, clock, tmp_path)
    async with running(timer):
        for body in ("a", "b", "c"):
            properties = send(store, timer, body, TIMER_DELAY_SEC=60)
            if body == "b":
                handle = recall_handle(TIMER, "broker-a", properties)
        assert handle is not None
        topic, name, time_ms, unique = read_handle(handle)
        assert (topic, name, unique) == (TOPIC, "broker-a", "b")
        recall = {"UNIQ_KEY": unique, "TIMER_DEL_UNIQKEY": unique, "TIMER_DELIVER_MS": str(time_ms)}
        place, queue_id, code = timer.place(TOPIC, 0, recall)
        store.append([Record(place, queue_id, b"0", format_properties(recall), tags_code=code)])
        await clock.advance(62)
    assert bodies(store) == ["a", "c"]
    assert timer.recalled == 1


async def test_a_restart_in_the_middle_loses_and_repeats_nothing(
    store: RealStore, clock: ManualClock, tmp_path: Path
) -> None:
    timer = make(store, clock, tmp_path)
    async with running(timer):
        for number in range(5000):
            send(store, timer, str(number), TIMER_DELAY_SEC=1 + number % 100)
        await clock.advance(50)
    timer.close()
    half = len(bodies(store))
    assert 2000 < half < 3000
    timer = make(store, clock, tmp_path)
    async with running(timer):
        await clock.advance(60)
    assert Counter(bodies(store)) == Counter(str(number) for number in range(5000))
    timer.close()


@pytest.mark.parametrize("seed", range(12))
def test_killed_anywhere_at_most_one_batch_comes_twice(
    seed: int, store: RealStore, clock: ManualClock, tmp_path: Path
) -> None:
    # Claim: killed after any append, before its progress is noted; each kill repeats 256 messages or fewer.
    dice = random.Random(seed)
    timer = make(store, clock, tmp_path)
    due: dict[str, int] = {}
    kills = 0
    for step in range(40):
        for number in range(dice.randrange(200)):
            body = f"{step}-{number}"
            due[body] = int(send(store, timer, body, TIMER_DELAY_MS=dice.randrange(1, 20_000))["TIMER_OUT_MS"]) + 1000
        store.dies_after = dice.randrange(6)
        try:
            drain(timer)
        except Killed:
            kills += 1
            timer = make(store, clock, tmp_path, boot=dice.choice((1, 1, 2)))
        store.dies_after = -1
        clock.jump(dice.randrange(3000) / 1000)
    clock.jump(30)
    drain(timer)
    counted = Counter(bodies(store))
    assert set(counted) == set(due)
    assert counted.total() - len(counted) <= kills * 256
    for message in store.messages():
        sent_ms = int(message.properties["TIMER_DEQUEUE_MS"])
        assert sent_ms >= due[message.body.decode()]


@pytest.mark.parametrize("lost", ["timerwheel", "timerlog", "both"])
async def test_lost_files_are_made_again(lost: str, store: RealStore, clock: ManualClock, tmp_path: Path) -> None:
    timer = make(store, clock, tmp_path)
    async with running(timer):
        for number in range(3000):
            send(store, timer, str(number), TIMER_DELAY_SEC=1 + number % 60)
        await clock.advance(30)
    timer.close()
    if lost != "timerlog":
        os.unlink(tmp_path / "timerwheel")
    if lost != "timerwheel":
        for path in (tmp_path / "timerlog").iterdir():
            path.unlink()
    timer = make(store, clock, tmp_path)
    async with running(timer):
        await clock.advance(60)
    assert Counter(bodies(store)) == Counter(str(number) for number in range(3000))


STEPS = [(100, 1000), (1000, 100), (200, 500), (500, 200), (100, 500), (1000, 200)]


# Claim: a start with another precision delivers everything that waits, once: what is in the wheel, what is only in the
# queue yet, and not what was recalled. It comes at most a former step early and a new one late.
@pytest.mark.parametrize(("before", "after"), STEPS)
@pytest.mark.parametrize("lost", ["", "timerwheel"])
async def test_another_precision(
    before: int, after: int, lost: str, store: RealStore, clock: ManualClock, tmp_path: Path
) -> None:
    timer = make(store, clock, tmp_path, step_ms=before)
    due: dict[str, int] = {}

    def schedule(body: str, delay_ms: int) -> dict[str, str]:
        due[body] = clock.now_ms() + delay_ms
        return send(store, timer, body, TIMER_DELAY_MS=delay_ms)

    async with running(timer):
        for number in range(4000):
            schedule(str(number), 1 + number * 7 % 9000)
        recalled = schedule("recalled", 8130)
        await clock.advance(4.6)
    for number in range(300):
        schedule(f"late {number}", 5000 + number)
    timer.close()
    assert len(bodies(store)) > 1000
    if lost:
        os.unlink(tmp_path / lost)
    timer = make(store, clock, tmp_path, step_ms=after)
    async with running(timer):
        handle = recall_handle(TIMER, "broker-a", recalled)
        assert handle is not None
        properties = {"TIMER_DELIVER_MS": str(read_handle(handle)[2]), "TIMER_DEL_UNIQKEY": "orders+recalled"}
        topic, queue_id, code = timer.place(TOPIC, 0, properties)
        store.append([Record(topic, queue_id, b"", format_properties(properties), tags_code=code)])
        timer.scheduled()
        for _ in range(120):
            await clock.advance(0.1)
    assert Counter(bodies(store)) == Counter(due.keys() - {"recalled"})
    assert timer.waiting == 0
    for message in store.messages():
        late_ms = int(message.properties["TIMER_DEQUEUE_MS"]) - due[message.body.decode()]
        assert -before < late_ms <= max(before, after) + 200
    timer.close()
    assert make(store, clock, tmp_path, step_ms=before).waiting == 0


@pytest.mark.parametrize("lost", ["", "timerwheel"])
async def test_a_finer_precision_whose_wheel_is_shorter(
    lost: str, store: RealStore, clock: ManualClock, tmp_path: Path
) -> None:
    """Claim: 100 ms make a wheel of 33 hours, 1000 ms let messages wait in it for 48: who shares a place of it with
    another then comes all the same, at its time, and a recall still finds it."""
    span_s = SLOTS // 10
    timer = make(store, clock, tmp_path)
    due: dict[str, int] = {}
    for body, delay_s in (("near", 36_000), ("far", 36_000 + span_s), ("farther", 36_010 + span_s)):
        due[body] = int(send(store, timer, body, TIMER_DELAY_SEC=delay_s)["TIMER_OUT_MS"])
    recalled = send(store, timer, "recalled", TIMER_DELAY_SEC=36_000 + span_s)
    drain(timer)
    timer.close()
    if lost:
        os.unlink(tmp_path / lost)
    timer = make(store, clock, tmp_path, step_ms=100)
    assert timer.waiting == 4
    recall = {"TIMER_DELIVER_MS": str(int(recalled["TIMER_OUT_MS"]) + 1), "TIMER_DEL_UNIQKEY": "recalled"}
    topic, queue_id, code = timer.place(TOPIC, 0, recall)
    store.append([Record(topic, queue_id, b"", format_properties(recall), tags_code=code)])
    for at_ms in sorted({*due.values(), *range(NOW_MS, max(due.values()), 36_000_000)}):
        for late_ms in (50, 150):  # the slot that begins here is over after 100
            clock.jump((at_ms - clock.now_ms() + late_ms) / 1000)
            drain(timer)
            assert set(bodies(store)) == {body for body, due_ms in due.items() if due_ms + 100 <= clock.now_ms()}
    assert Counter(bodies(store)) == Counter(due.keys()) and timer.recalled == 1 and timer.waiting == 0
    timer.close()


@pytest.mark.parametrize("left", [1, 6, 12, BATCH - 10])
async def test_a_kill_while_units_move_to_other_slots(
    left: int, store: RealStore, clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claim: a start with another precision that is killed anywhere, and one after it, lose and repeat nothing: not
    where several chains become one, nor where some of one was delivered and cut off before."""
    timer = make(store, clock, tmp_path, step_ms=100)
    slots_ms = [4200, 4100, 4050, 4200, 4300, 4050, 6200, 6050, 6200, 6100, 6050]
    for number, after_ms in enumerate(slots_ms * 2 + [4050] * BATCH):
        send(store, timer, str(number), TIMER_DELIVER_MS=NOW_MS // 1000 * 1000 + after_ms)
    drain(timer)
    clock.jump(4.85 - NOW_MS % 1000 / 1000)
    timer.turn()
    timer.close()  # the slot's first batch is delivered, and leaves its chain
    assert len(bodies(store)) == BATCH
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("commitlog", "timerwheel"))
    moved, dies_at, move = 0, -1, TimerLog.move

    def counted(*args: Any) -> None:
        nonlocal moved
        if moved == dies_at:
            raise Killed
        moved += 1
        move(*args)

    monkeypatch.setattr(TimerLog, "move", counted)
    make(store, clock, tmp_path / "copy", step_ms=1000).close()
    moved, dies_at = 0, max(0, moved - left)
    with pytest.raises(Killed):
        make(store, clock, tmp_path, step_ms=1000)
    monkeypatch.setattr(TimerLog, "move", move)
    timer = make(store, clock, tmp_path, step_ms=1000)
    async with running(timer):
        await clock.advance(10)
    assert Counter(bodies(store)) == Counter(map(str, range(len(slots_ms) * 2 + BATCH)))
    timer.close()


# Claim: killed in the middle of a slot, nothing is lost by going on with another precision; what comes twice is at
# most a batch, and nothing of what the note says was delivered.
@pytest.mark.parametrize(("before", "after"), STEPS)
async def test_another_precision_after_a_kill(
    before: int, after: int, store: RealStore, clock: ManualClock, tmp_path: Path
) -> None:
    timer = make(store, clock, tmp_path, step_ms=before)
    for number in range(3000):
        send(store, timer, str(number), TIMER_DELAY_MS=3000 + number % 4 * 100)
    drain(timer)
    clock.jump(10)
    store.dies_after = 2
    with pytest.raises(Killed):
        drain(timer)
    timer = make(store, clock, tmp_path, step_ms=after)
    async with running(timer):
        await clock.advance(5)
    counted = Counter(bodies(store))
    assert set(counted) == {str(number) for number in range(3000)}
    assert counted.total() - len(counted) <= BATCH


async def test_far_away_is_stored_anew_on_the_way(store: RealStore, clock: ManualClock, tmp_path: Path) -> None:
    timer = make(store, clock, tmp_path, roll_slots=100)
    async with running(timer):
        send(store, timer, "far", TIMER_DELAY_SEC=1000)
        await clock.advance(990)
        assert bodies(store) == []
        assert store.bounds(TIMER, 0)[1] > 5
        await clock.advance(20)
    assert bodies(store) == ["far"]
    assert store.messages()[0].properties["TIMER_ROLL_TIMES"].isdigit()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REAL_QID", "-1"),
        ("REAL_QID", "4294967295"),
        ("REAL_QID", "4294967296"),
        ("REAL_TOPIC", "x" * 300),
        ("REAL_TOPIC", "../../evil"),
        ("TIMER_OUT_MS", str(1 << 70)),
    ],
)
async def test_a_message_that_belongs_nowhere_holds_up_nobody(
    name: str, value: str, store: RealStore, clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Claim: anybody may send to the timer's own topic; what cannot be true costs that message and a line in the log.
    timer = make(store, clock, tmp_path, roll_slots=4)
    async with running(timer):
        send(store, timer, "before", TIMER_DELAY_SEC=2)
        properties = {"UNIQ_KEY": "forged", "TIMER_OUT_MS": str(NOW_MS + 2000), "REAL_TOPIC": TOPIC, "REAL_QID": "0"}
        store.append([Record(TIMER, 0, b"forged", format_properties({**properties, name: value}))])
        send(store, timer, "after", TIMER_DELAY_SEC=2)
        await clock.advance(20)
        send(store, timer, "later", TIMER_DELAY_SEC=1)
        await clock.advance(10)
    assert bodies(store) == ["before", "after", "later"]
    assert sum("it is skipped" in line for line in caplog.messages) == 1, caplog.messages
    assert {TOPIC, TIMER} == set(store.engine.topics())
    timer.close()


@pytest.mark.parametrize("names", ["%LMQ%b", "%LMQ%a,b"], ids=["quota", "impossible"])
async def test_a_message_without_room_in_its_light_queues_arrives_without_them(
    names: str,
    clock: ManualClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Claim: a message that waited and may not be in the light queues it names holds up nobody and is not lost: it
    reaches its topic, and the log says, not once a message, that it is in no light queue."""
    monkeypatch.setattr(forward, "_complaints", Complaints(logging.getLogger("aerobee.broker.forward")))
    store = RealStore(tmp_path, light_queues=True)
    store.engine.allow(light_queues_max=1)
    timer, delay = make(store, clock, tmp_path), Delay(store, clock, [1000, 2000], tmp_path)
    light = {"INNER_MULTI_DISPATCH": "%LMQ%a"}
    store.append([Record("parent", 0, b"the first has its queue", format_properties(light))])

    def put(body: str, level: int, **named: str) -> None:
        code: int | None
        if level:
            properties = {"UNIQ_KEY": body, **named}
            topic, queue_id, code = delay.place(TOPIC, 0, properties, level)
        else:
            properties = {"UNIQ_KEY": body, "TIMER_DELAY_SEC": "1", **named}
            topic, queue_id, code = timer.place(TOPIC, 0, properties)
        store.append([Record(topic, queue_id, body.encode(), format_properties(properties), tags_code=code)])

    for level in (0, 1, 2):
        put(f"light {level}", level, **light)
        put(f"bad {level}", level, INNER_MULTI_DISPATCH=names)
        put(f"plain {level}", level)
    async with running(timer), running(delay):
        await clock.advance(3)
    sent = [f"{kind} {level}" for kind in ("light", "bad", "plain") for level in (0, 1, 2)]
    assert sorted(bodies(store)) == sorted(sent)
    found = {message.body.decode(): message.properties for message in store.messages()}
    assert all("INNER_MULTI_QUEUE_OFFSET" in found[f"light {level}"] for level in (0, 1, 2))
    assert not any("INNER_MULTI_QUEUE_OFFSET" in found[f"bad {level}"] for level in (0, 1, 2))
    assert store.bounds("%LMQ%a", 0) == (0, 4) and "%LMQ%b" not in store.engine.topics()
    assert sum("light queue" in line for line in caplog.messages) == 1, caplog.messages
    store.engine.close()


@pytest.mark.parametrize("roll_slots", [172_800, 4], ids=["at once", "stored anew on the way"])
@pytest.mark.parametrize("room", [0, 1, 18, 19, 20, 60, 62, 64, 80, 82, 84, 100])
async def test_a_message_without_room_for_notes_arrives(
    room: int, roll_slots: int, store: RealStore, clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Claim: what the broker would like to note of a timed message does not cost the message, nor its neighbours."""
    timer = make(store, clock, tmp_path, roll_slots=roll_slots)
    properties = {"UNIQ_KEY": "full", "TIMER_DELAY_SEC": "30", "OWN": ""}
    topic, queue_id, code = timer.place(TOPIC, 0, properties)
    properties["OWN"] = "x" * (32767 - room - len(format_properties(properties)))
    async with running(timer):
        send(store, timer, "before", TIMER_DELAY_SEC=30)
        store.append([Record(topic, queue_id, b"full", format_properties(properties), tags_code=code)])
        send(store, timer, "after", TIMER_DELAY_SEC=30)
        await clock.advance(32)
    assert bodies(store) == ["before", "full", "after"]
    before, full, after = (message.properties for message in store.messages())
    assert {**full, **properties} == full and "skipped" not in caplog.text
    notes = {name: value for name, value in before.items() if name in NOTES}
    assert {name: after[name] for name in notes} == notes and (len(notes) == 3) == (roll_slots == 4)
    assert ("TIMER_DEQUEUE_MS" in full) == (room >= len(format_properties(notes)))
    count = {name: value for name, value in notes.items() if name == "TIMER_ROLL_TIMES"}
    if count and room >= len(format_properties(count)):
        assert full["TIMER_ROLL_TIMES"] == count["TIMER_ROLL_TIMES"]
    timer.close()


@pytest.mark.parametrize("times", ["x", "9" * 5000, "-1"])
async def test_a_sender_who_counts_rolls_is_not_believed(
    times: str, store: RealStore, clock: ManualClock, tmp_path: Path
) -> None:
    timer = make(store, clock, tmp_path)
    properties = {"UNIQ_KEY": "odd", "TIMER_DELAY_SEC": "3", "TIMER_ENQUEUE_MS": "x", "TIMER_ROLL_TIMES": times}
    topic, queue_id, code = timer.place(TOPIC, 0, properties)
    async with running(timer):
        store.append([Record(topic, queue_id, b"odd", format_properties(properties), tags_code=code)])
        await clock.advance(5)
    assert bodies(store) == ["odd"] and store.messages()[0].properties["TIMER_ENQUEUE_MS"].isdigit()


async def test_a_full_disk_delays_further_but_loses_nothing(
    store: RealStore, clock: ManualClock, tmp_path: Path
) -> None:
    timer = make(store, clock, tmp_path)
    async with running(timer):
        send(store, timer, "x", TIMER_DELAY_SEC=2)
        store.full = True
        await clock.advance(30)
        store.full = False
        await clock.advance(2)
    assert bodies(store) == ["x"]


async def test_clocks_that_jump(store: RealStore, clock: ManualClock, tmp_path: Path) -> None:
    timer = make(store, clock, tmp_path)
    async with running(timer):
        send(store, timer, "first", TIMER_DELAY_SEC=100)
        await clock.advance(5)
        clock.jump(3600)
        await clock.advance(2)
        assert bodies(store) == ["first"]
        clock.jump(-7200)  # an hour before the beginning
        send(store, timer, "second", TIMER_DELAY_SEC=100)
        await clock.advance(99)
        assert bodies(store) == ["first"]
        await clock.advance(5)
        assert bodies(store) == ["first", "second"]
        clock.jump(400 * 86_400)
        send(store, timer, "third", TIMER_DELAY_SEC=3)
        await clock.advance(10)
    assert bodies(store) == ["first", "second", "third"]


async def test_the_check_file_is_what_apache_reads(store: RealStore, clock: ManualClock, tmp_path: Path) -> None:
    timer = make(store, clock, tmp_path)
    async with running(timer):
        for number in range(10):
            send(store, timer, str(number), TIMER_DELAY_SEC=60)
        await clock.advance(2)
        await timer.save()
    check = Check.load(tmp_path / "config" / "timercheck")
    assert check is not None and (check.queue_offset, check.log_end, check.ours) == (10, 520, True)
    timer.close()


async def test_timers_never_refer_past_a_log_that_was_cut(tmp_path: Path, clock: ManualClock) -> None:
    # Claim: after a power cut took the end of the log, units for what is gone are gone too, and new messages that lie
    # where the lost ones lay are delivered once.
    root = tmp_path / "a"
    store = RealStore(root)
    timer = make(store, clock, root)
    for number in range(300):
        send(store, timer, str(number), TIMER_DELAY_SEC=20 + number % 3)
        if number == 199:
            drain(timer)
            await timer.save()
    drain(timer)
    cut = store.engine.entries(TIMER, 0, 150, 1)
    store.engine.close()
    position = int.from_bytes(cut[:8], "big")
    log = root / "commitlog" / f"{0:020d}"
    with log.open("r+b") as file:
        file.seek(position)
        file.write(bytes(400_000))
    (root / "checkpoint").unlink()
    (root / "abort").touch()
    store = RealStore(root)
    assert store.bounds(TIMER, 0) == (0, 150)
    timer = make(store, clock, root, boot=2)
    for number in range(1000, 1100):
        send(store, timer, str(number), TIMER_DELAY_SEC=20)
    async with running(timer):
        await clock.advance(30)
    assert Counter(bodies(store)) == Counter(str(number) for number in (*range(150), *range(1000, 1100)))
    store.engine.close()


async def test_what_was_lost_to_damage_is_nobody_else(tmp_path: Path, clock: ManualClock) -> None:
    # Claim: the log's first message does not come again in the place of one that was lost with its queue's entries.
    store = RealStore(tmp_path)
    timer = make(store, clock, tmp_path)
    delay = Delay(store, clock, [5000], tmp_path / "config")
    for number in range(3):
        send(store, timer, f"timed {number}", TIMER_DELAY_SEC=5)
        properties: dict[str, str] = {}
        topic, queue_id, code = delay.place(TOPIC, 0, properties, 1)
        body = f"level {number}".encode()
        store.append([Record(topic, queue_id, body, format_properties(properties), tags_code=code)])
    timer.close()
    store.engine.close()
    log = tmp_path / "commitlog" / f"{0:020d}"
    data = log.read_bytes()
    with log.open("r+b") as file:
        for lost in (b"timed 1", b"level 1"):
            file.seek(data.index(lost))
            file.write(b"damaged")
    shutil.rmtree(tmp_path / "consumequeue")
    (tmp_path / "checkpoint").unlink()
    (tmp_path / "abort").touch()
    store = RealStore(tmp_path)
    timer = make(store, clock, tmp_path, boot=2)
    assert store.bounds(TIMER, 0) == store.bounds("SCHEDULE_TOPIC_XXXX", 0) == (0, 3)
    async with running(timer), running(Delay(store, clock, [5000], tmp_path / "config")):
        await clock.advance(10)
    assert sorted(bodies(store)) == ["level 0", "level 2", "timed 0", "timed 2"]
    timer.close()
    store.engine.close()


def test_what_waits_is_needed(store: RealStore, clock: ManualClock, tmp_path: Path) -> None:
    timer = make(store, clock, tmp_path)
    for number in range(10):
        send(store, timer, str(number), TIMER_DELAY_SEC=10 if number != 4 else 1000)
    drain(timer)
    assert timer.needed_offset() == 0
    clock.jump(20)
    drain(timer)
    assert timer.needed_offset() == 4
    clock.jump(1000)
    drain(timer)
    assert timer.needed_offset() == 10


def test_a_hundred_thousand_that_wait_cost_no_memory(store: RealStore, clock: ManualClock, tmp_path: Path) -> None:
    timer = make(store, clock, tmp_path)
    for number in range(0, 100_000, 1000):
        records = []
        for one in range(1000):
            properties = {"UNIQ_KEY": str(number + one), "TIMER_DELAY_SEC": str(100 + one)}
            topic, queue_id, code = timer.place(TOPIC, 0, properties)
            records.append(Record(topic, queue_id, b"x", format_properties(properties), tags_code=code))
        store.append(records)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        while timer.take_in():
            pass
        gc.collect()  # what is only garbage waits for nothing
        assert tracemalloc.get_traced_memory()[0] - before < 1_000_000
    finally:
        tracemalloc.stop()
    assert timer.queue_offset == 100_000


async def test_a_level_does_not_wait_behind_exact_times(
    store: RealStore, clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claim: while tens of thousands that are due by time are delivered, what becomes due by level comes at once: there
    are four of their batches, of a few ms each, in front of it at most."""
    timer, delay = make(store, clock, tmp_path), Delay(store, clock, [701], tmp_path)
    for number in range(0, 20_000, 1000):
        records = []
        for one in range(1000):
            properties = {"UNIQ_KEY": str(number + one), "TIMER_DELIVER_MS": str(NOW_MS + 700)}
            topic, queue_id, code = timer.place(TOPIC, 0, properties)
            records.append(Record(topic, queue_id, b"time", format_properties(properties), tags_code=code))
        store.append(records)
    properties = {"UNIQ_KEY": "level"}
    topic, queue_id, due_ms = delay.place(TOPIC, 0, properties, 1)
    store.append([Record(topic, queue_id, b"level", format_properties(properties), tags_code=due_ms)])
    while timer.take_in():
        pass
    bring_home, appended = store.bring_home, []

    def noted(moves: list[tuple[int, bytes]]) -> tuple[int, int]:
        appended.append(clock.now_ms() >= due_ms)
        return bring_home(moves)

    monkeypatch.setattr(store, "bring_home", noted)
    async with running(timer), running(delay):
        await clock.advance(0.7)
        assert 0 < len(appended) < 20_000 // BATCH // 2, "they are in the middle of it"
        await clock.advance(0.001)
        await eventually(lambda: store.bounds(TOPIC, 0)[1] == 20_001)
    place = bodies(store).index("level")
    assert sum(late for late in appended[: place // BATCH]) <= 4


def test_counts_what_waits_across_a_restart(store: RealStore, clock: ManualClock, tmp_path: Path) -> None:
    timer = make(store, clock, tmp_path)
    for number in range(100):
        send(store, timer, str(number), TIMER_DELAY_SEC=10 + number % 2 * 50)
    drain(timer)
    assert timer.runtime()["timerCongestNum"] == "100"
    clock.jump(20)
    drain(timer)
    assert timer.runtime()["timerCongestNum"] == "50"
    timer = make(store, clock, tmp_path)
    assert timer.runtime()["timerCongestNum"] == "50"
