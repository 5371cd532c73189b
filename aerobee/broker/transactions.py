"""Transactions: a message that becomes visible when its producer commits it, and is asked about when nobody says so.

    half       stored in RMQ_SYS_TRANS_HALF_TOPIC queue 0; REAL_TOPIC and REAL_QID say where it belongs
    commit     the real message and a mark ("op") with the half's queue offset, in one write
    rollback   the mark alone
    unknown    every `transactionCheckInterval`, halves older than `transactionTimeOut` (or their own
               CHECK_IMMUNITY_TIME_IN_SECONDS) are put at the tail again and one producer of the group is asked (39)
    given up   after `transactionCheckMax` questions: moved to TRANS_CHECK_MAX_TIME_TOPIC, where an operator sees it

Marks lie in RMQ_SYS_TRANS_OP_HALF_TOPIC queue 0, tag `d`, body `offset,offset,`: Apache's layout, so that either broker
goes on where the other stopped. Progress in both queues is kept among the consumer offsets, group CID_RMQ_SYS_TRANS.

A mark is never later than what it stands for. Apache collects marks for up to three seconds after the messages; a crash
in between delivers them twice. Here they are one write with the messages, and what one turn of the loop ends shares a
mark. Halves that are put at the tail or given up get theirs in the same write as their copies. So after a crash the
marks tell exactly what is open, however old the progress on disk is.

Nothing is remembered of a half but one bit: whether the place in the queue is dealt with. An answer to a place that is
(the half was put at the tail while the answer was under way, or somebody has ended it) looks into the index by the
message's unique key: for the copy that is still open, and whether the message was delivered before. So a commit
delivers once, also behind a crash or behind another broker; one that comes behind a rollback still counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from enum import Enum
from typing import Final, NamedTuple, Protocol

from aerobee.broker.offset_set import OffsetSet
from aerobee.broker.offsets import OffsetTable
from aerobee.broker.options import BrokerOptions
from aerobee.broker.records import (
    COMMIT,
    ROLLBACK,
    TRANSACTION_BITS,
    Stored,
    format_properties,
    parse_record,
    parse_records,
)
from aerobee.broker.store import Batch, Receipt, Record
from aerobee.broker.topics import CHECK_MAX_TIME_TOPIC, HALF_TOPIC, OP_HALF_TOPIC, SCHEDULE_TOPIC, TIMER_TOPIC
from aerobee.clock import Clock
from aerobee.errors import LmqQuotaExceeded, MessageIllegal, error_for
from aerobee.protocol.codes import ResponseCode

_log = logging.getLogger("aerobee.broker.transactions")

GROUP: Final = "CID_RMQ_SYS_TRANS"
QUEUE_ID_MAX: Final = (1 << 31) - 1
DIGITS_MAX: Final = 10
"""A property with more is no number; `int` itself refuses thousands of them."""
MARK_TAG: Final = "d"

REAL_TOPIC: Final = "REAL_TOPIC"
REAL_QUEUE: Final = "REAL_QID"
PREPARED_PROPERTY: Final = "TRAN_MSG"
PRODUCER_GROUP: Final = "PGROUP"
UNIQUE_KEY: Final = "UNIQ_KEY"
TRANSACTION_ID: Final = "__transactionId__"
CHECK_TIMES: Final = "TRANSACTION_CHECK_TIMES"
IMMUNITY_SECONDS: Final = "CHECK_IMMUNITY_TIME_IN_SECONDS"
PREPARED_QUEUE_OFFSET: Final = "TRAN_PREPARED_QUEUE_OFFSET"

BATCH: Final = 32
"""Halves or marks read at a time; after each batch of halves others get their turn."""
SAME_KEY_MAX: Final = 64
"""Records of one unique key that are looked at."""
CLOCK_STEP_MS: Final = 60_000
"""What is made of a send is not stored earlier than this before it, even if the clock was set back in between, or its
producer's is ahead."""
_END_OF_TIME_MS: Final = 1 << 62


class TransactionStore(Protocol):
    """What this mechanism needs of the store."""

    def append(self, records: list[Record]) -> list[Receipt]:
        """Appends records in one write."""

    async def flushed(self, receipt: Receipt) -> None:
        """Returns when the record is as safe as the options promise."""

    def bounds(self, topic: str, queue_id: int) -> tuple[int, int]:
        """Smallest and next offset."""

    def read(self, topic: str, queue_id: int, offset: int, count: int, bytes_max: int = ...) -> Batch:
        """Records from a queue."""

    def record(self, position: int) -> bytes | None:
        """A record's bytes."""

    def log_bounds(self) -> tuple[int, int, int]:
        """Where the log begins, how far it is on the disk, where it ends."""

    def search_index(
        self, topic: str, key: str, kind: str, limit: int, begin_ms: int, end_ms: int
    ) -> tuple[list[bytes], int, int]:
        """Records with this key, newest first; and what the index says of itself."""


class Verdict(Enum):
    """What a round does with a half that nobody has ended."""

    WAIT = "it is young, and all behind it are younger"
    MAKE_WAY = "it asked for a time of its own; others behind it did not, so it goes to the tail"
    ASK = "it goes to the tail, and a producer is asked"
    GIVE_UP = "it has been asked about for long enough"


class Move(NamedTuple):
    """A half, its record for a new place and the properties in it."""

    half: Stored
    record: Record
    properties: dict[str, str]
    verdict: Verdict


class Ending(NamedTuple):
    """What waits for the write of this turn: the real message, the half that gets a mark, who waits for it."""

    message: Record | None
    half_offset: int | None
    done: asyncio.Future[Receipt]


class Transactions:
    """Half messages and what becomes of them; see the head of this file.

    `ask(half)` asks a producer, False when none is connected and reads. `make_topic(name)` creates the topic for those
    that are given up. `place(topic, queue, properties)` says where a committed message waits until its time, and its
    tags code. `host()`: this broker's ip:port.
    """

    def __init__(
        self,
        store: TransactionStore,
        clock: Clock,
        options: BrokerOptions,
        offsets: OffsetTable,
        *,
        ask: Callable[[Stored], Awaitable[bool]],
        make_topic: Callable[[str], Awaitable[object]],
        place: Callable[[str, int, dict[str, str]], tuple[str, int, int | None]] = lambda topic, queue, _: (
            topic,
            queue,
            None,
        ),
        host: Callable[[], str] = lambda: "127.0.0.1:10911",
    ) -> None:
        self._place = place
        self.counters = dict.fromkeys(("prepared", "committed", "rolled_back", "asked", "given_up", "skipped"), 0)
        self._store = store
        self._clock = clock
        self._options = options
        self._offsets = offsets
        self._ask = ask
        self._make_topic = make_topic
        self._host = host
        self.half_offset = 0
        """Halves before this queue offset are all dealt with."""
        self._op_offset = 0
        """Marks before this queue offset are of such halves only."""
        self._reached = (0, 0, 0)
        """Half offset and op offset that will be among the consumer offsets once the disk has the log up to here."""
        self._published = 0
        self._ended = OffsetSet()
        """Queue offsets of halves that are dealt with, from the half offset on."""
        self._marks: deque[list[int]] = deque()
        """Runs of marks, in order: where the run ends, the largest half offset in it, how many marks it has."""
        self._answering: dict[str, asyncio.Future[None]] = {}
        """Unique key → ends when the answer about it that is being dealt with is written."""
        self._endings: list[Ending] = []
        self._newest: Receipt | None = None
        """Of what was written last."""
        self._parking = False
        """The topic for those that are given up is there."""

    # Where we stand.

    @property
    def published(self) -> int:
        """The half offset among the consumer offsets: where another start would go on."""
        return max(0, self._offsets.query(GROUP, HALF_TOPIC, 0))

    @property
    def pending(self) -> int:
        """Halves that nobody has ended (holes count too)."""
        return max(0, self._store.bounds(HALF_TOPIC, 0)[1] - self.half_offset - len(self._ended))

    def runtime(self) -> dict[str, str]:
        """What brokerStatus shows."""
        return {"transactionsOpen": str(self.pending)} | {
            f"transactions{name.title().replace('_', '')}": str(count) for name, count in self.counters.items()
        }

    def load(self) -> None:
        """Goes on where the consumer offsets say: reads the marks from there on."""
        self._ended = OffsetSet()
        self._marks.clear()
        self._published = self.published
        self.half_offset = self._stands_at(HALF_TOPIC)
        self._op_offset = offset = self._stands_at(OP_HALF_TOPIC)
        self._reached = self.half_offset, self._op_offset, 0
        self._ended.drop_before(self.half_offset)
        high = self._store.bounds(OP_HALF_TOPIC, 0)[1]
        while offset < high:
            batch = self._store.read(OP_HALF_TOPIC, 0, offset, BATCH)
            if not batch.count and batch.next_offset <= offset:
                break
            for mark in _readable(batch.records):
                self._remember_mark(mark.queue_offset, _offsets_in(mark))
            offset = batch.next_offset

    def _stands_at(self, topic: str) -> int:
        low, high = self._store.bounds(topic, 0)
        offset = self._offsets.query(GROUP, topic, 0)
        if offset > high:
            _log.warning("transactions stood at %d of %s, which ends at %d; continuing there", offset, topic, high)
        return min(max(offset, low), high)

    def publish(self) -> None:
        """Puts the progress among the consumer offsets, as far as the disk has what it rests on: the copies of halves
        that it has passed. Call it before they are saved."""
        self._heed_operator()
        on_disk = self._store.log_bounds()[1]
        for _ in range(2):
            half_offset, op_offset, log_end = self._reached
            if log_end > on_disk:
                return
            for topic, offset in ((HALF_TOPIC, half_offset), (OP_HALF_TOPIC, op_offset)):
                if offset != self._offsets.query(GROUP, topic, 0):
                    self._offsets.overwrite(GROUP, topic, 0, offset)
            self._published = half_offset
            newest = self._newest
            self._reached = self.half_offset, self._op_offset, newest.position + newest.size if newest else 0

    def _heed_operator(self) -> None:
        """Goes on where somebody has set the offset meanwhile."""
        if self.published != self._published:
            self._write_endings()
            self.load()

    # What producers say.

    def prepare(self, topic: str, queue_id: int, properties: dict[str, str], sys_flag: int) -> tuple[str, int, int]:
        """Where a half message is stored: (topic, queue, sysFlag). Notes its real place in `properties`."""
        unique = properties.get(UNIQUE_KEY)
        if unique:
            properties[TRANSACTION_ID] = unique
        properties[REAL_TOPIC] = topic
        properties[REAL_QUEUE] = str(queue_id)
        self.counters["prepared"] += 1
        return HALF_TOPIC, 0, sys_flag & ~TRANSACTION_BITS

    async def end(
        self, producer_group: str, half_queue_offset: int, position: int, decision: int, *, from_check: bool
    ) -> None:
        """Commit (8) or rollback (12) of the half at this place; 0 leaves it pending.

        Raises ServerError when there is no such half, when it belongs to another group, or when the answer came later
        than the half's own CHECK_IMMUNITY_TIME_IN_SECONDS allows (ILLEGAL_OPERATION); StoreError when it cannot be
        written, the half stays open then.
        """
        if decision not in (COMMIT, ROLLBACK, 0):
            raise error_for(ResponseCode.SYSTEM_ERROR, f"commitOrRollback must be 8, 12 or 0, not {decision}")
        if not decision:
            return
        half = self._half_there(position)
        if not from_check and self._too_late(half):
            raise error_for(
                ResponseCode.ILLEGAL_OPERATION,
                "the answer came after the half message's immunity time; it will be asked",
            )
        if half.properties.get(PRODUCER_GROUP) != producer_group:
            raise error_for(ResponseCode.SYSTEM_ERROR, "The producer group wrong")
        if half.queue_offset != half_queue_offset:
            raise error_for(ResponseCode.SYSTEM_ERROR, "The transaction state table offset wrong")
        # One answer after the other: what one has written, the next one must be able to find.
        name = half.properties.get(UNIQUE_KEY) or str(position)
        while (other := self._answering.get(name)) is not None:
            await asyncio.wait((other,))
        answering = self._answering[name] = asyncio.get_running_loop().create_future()
        try:
            await self._end(half, decision, from_check=from_check)
        finally:
            del self._answering[name]
            answering.set_result(None)

    async def _end(self, half: Stored, decision: int, *, from_check: bool) -> None:
        commit = decision == COMMIT
        target: int | None = half.queue_offset
        if not self._is_open(half.queue_offset) or (commit and from_check):
            await self._all_written()  # the index shows nothing younger than that
            target = self._open_place(half)
            commit = commit and not self._is_delivered(half)
            if target is None and not commit:
                return
        receipt = await self._ending(self._real_message(half) if commit else None, target)
        self.counters["committed" if decision == COMMIT else "rolled_back"] += 1
        await self._store.flushed(receipt)

    def _half_there(self, position: int) -> Stored:
        data = self._store.record(position)
        try:
            half = parse_record(data) if data is not None else None
        except ValueError:
            half = None
        if half is None or half.topic != HALF_TOPIC or not _has_a_home(half):
            raise error_for(ResponseCode.SYSTEM_ERROR, "Find prepared transaction message failed")
        return half

    def _is_open(self, half_offset: int) -> bool:
        return half_offset >= self.half_offset and half_offset not in self._ended

    def _open_place(self, half: Stored) -> int | None:
        """Where this half, or the copy of it that was put at the tail last, waits for its end; None: it does not."""
        if self._is_open(half.queue_offset):
            return half.queue_offset
        places = (copy.queue_offset for copy in self._same(half, HALF_TOPIC) if self._is_open(copy.queue_offset))
        return max(places, default=None)

    def _is_delivered(self, half: Stored) -> bool:
        """The message was committed before, and is where it belongs or waits for its time."""
        places = half.properties[REAL_TOPIC], TIMER_TOPIC, SCHEDULE_TOPIC
        return any(True for topic in places for _ in self._same(half, topic))

    def _same(self, half: Stored, topic: str) -> Iterator[Stored]:
        """Records of the topic that were made of the same send."""
        unique = half.properties.get(UNIQUE_KEY)
        if not unique:
            return
        # A copy is stored again in every round: only its birth tells how old what was made of the send may be.
        since_ms = min(half.store_timestamp, half.born_timestamp) - CLOCK_STEP_MS
        found = self._store.search_index(topic, unique, "U", SAME_KEY_MAX, since_ms, _END_OF_TIME_MS)[0]
        for data in found:
            record = parse_record(data)
            if (
                record.properties.get(UNIQUE_KEY) == unique
                and record.born_timestamp == half.born_timestamp
                and record.properties.get(PRODUCER_GROUP) == half.properties.get(PRODUCER_GROUP)
            ):
                yield record

    def _real_message(self, half: Stored) -> Record:
        properties = dict(half.properties)
        topic, queue_id = properties.pop(REAL_TOPIC), int(properties.pop(REAL_QUEUE))
        topic, queue_id, tags_code = self._place(topic, queue_id, properties)
        # TRAN_MSG stays in the message, as it does in Apache's: consumers use it to recognise transactional messages.
        return half.to_record(
            topic,
            queue_id,
            properties=properties,
            sys_flag=(half.sys_flag & ~TRANSACTION_BITS) | COMMIT,
            prepared_offset=half.position,
            tags_code=tags_code,
        )

    # Writing: messages and the marks of their halves, together.

    def _ending(self, message: Record | None, half_offset: int | None) -> asyncio.Future[Receipt]:
        """Joins the write of this turn of the loop. The half counts as dealt with from now on."""
        loop = asyncio.get_running_loop()
        if not self._endings:
            loop.call_soon(self._write_endings)
        if half_offset is not None:
            self._ended.add(half_offset)
        ending = Ending(message, half_offset, loop.create_future())
        self._endings.append(ending)
        return ending.done

    def _write_endings(self) -> None:
        endings, self._endings = self._endings, []
        if not endings:
            return
        try:
            self._write_together(endings)
        except (MessageIllegal, LmqQuotaExceeded):
            for ending in endings:  # one of them cannot be stored: the others can
                try:
                    self._write_together([ending])
                except Exception as error:
                    self._failed([ending], error)
        except Exception as error:
            self._failed(endings, error)

    def _write_together(self, endings: list[Ending]) -> None:
        messages = [ending.message for ending in endings if ending.message is not None]
        receipts = self._append(messages, [e.half_offset for e in endings if e.half_offset is not None])
        for ending in endings:
            if not ending.done.done():
                ending.done.set_result(receipts[-1])

    def _failed(self, endings: list[Ending], error: Exception) -> None:
        for ending in endings:
            if ending.half_offset is not None:
                self._ended.discard(ending.half_offset)
            if not ending.done.done():
                ending.done.set_exception(error)

    def _append(self, records: list[Record], half_offsets: list[int]) -> list[Receipt]:
        """Writes records, then the marks of these halves, in one write; receipts of all of them. Raises StoreError."""
        marks = list(self._marks_of(half_offsets))
        receipts = self._store.append([*records, *(mark for mark, _ in marks)])
        self._newest = receipts[-1]
        for receipt, (_, marked) in zip(receipts[len(records) :], marks, strict=True):
            self._remember_mark(receipt.queue_offset, marked)
        return receipts

    def _marks_of(self, half_offsets: list[int]) -> Iterator[tuple[Record, list[int]]]:
        """As few marks as `transactionOpMsgMaxSize` allows, with the offsets in each."""
        now_ms = self._clock.now_ms()
        body, marked = bytearray(), []
        for number, half_offset in enumerate(half_offsets, 1):
            body += b"%d," % half_offset
            marked.append(half_offset)
            if number == len(half_offsets) or len(body) >= self._options.transaction_op_msg_max_size:
                properties = format_properties({"TAGS": MARK_TAG})
                yield (
                    Record(
                        OP_HALF_TOPIC,
                        0,
                        bytes(body),
                        properties,
                        born_timestamp=now_ms,
                        born_host=self._host(),
                    ),
                    marked,
                )
                body, marked = bytearray(), []

    def _remember_mark(self, mark_offset: int, half_offsets: list[int]) -> None:
        largest = max(half_offsets, default=-1)
        for half_offset in half_offsets:
            self._ended.add(half_offset)
        if self._marks and self._marks[-1][2] < BATCH:
            run = self._marks[-1]
            run[:] = mark_offset + 1, max(run[1], largest), run[2] + 1
        else:
            self._marks.append([mark_offset + 1, largest, 1])

    async def _all_written(self) -> None:
        """Returns when everything written so far can be read."""
        self._write_endings()
        if self._newest is not None:
            await self._store.flushed(self._newest)

    # Asking.

    async def check(self) -> None:
        """One round: deals with every half that is old enough and that nobody has ended.

        Others get their turn after each batch. A half that is bad, and a producer that does not listen, hold up nobody.
        """
        self._heed_operator()
        now_ms = self._clock.now_ms()
        low, end = self._store.bounds(HALF_TOPIC, 0)  # copies that this round puts at the tail are for the next one
        self._move_to(max(self.half_offset, low))
        unasked: Counter[str] = Counter()
        going_on = True
        while going_on:
            going_on = await self._check_batch(now_ms, end, unasked)
        if self.counters["given_up"]:
            await self._make_parking()
        for group, count in unasked.items():
            _log.warning(
                "%d transactions of group %s could not be asked about: no producer of it is connected and reading",
                count,
                group,
            )

    async def _check_batch(self, now_ms: int, end: int, unasked: Counter[str]) -> bool:
        """Deals with the next few halves; False: the round is over."""
        self._write_endings()
        start = self._ended.next_missing(self.half_offset, end)
        self._move_to(start)
        if start >= end:
            return False
        moves: list[Move] = []
        behind, going_on = start, True
        for offset, half in self._open_halves(start, end):
            verdict = self._judge(half, now_ms) if half is not None else None
            if verdict is Verdict.WAIT:
                going_on = False
                break
            behind = offset + 1
            move = self._move(half, verdict) if half is not None and verdict is not None else None
            if move is None:
                self.counters["skipped"] += 1
            else:
                moves.append(move)
        if any(move.verdict is Verdict.GIVE_UP for move in moves) and await self._make_parking():
            return True  # who knows what was ended meanwhile: look again
        if moves:
            self._write_moves(moves)
        self._move_to(behind)
        if moves:
            await self._all_written()  # who is asked can answer before the disk does, and must be understood
        for move in moves:
            if move.verdict is Verdict.ASK:
                await self._ask_about(move.half, unasked)
        await asyncio.sleep(0)
        return going_on

    async def _make_parking(self) -> bool:
        """Makes the topic for those that are given up; False: it was there."""
        if self._parking:
            return False
        await self._make_topic(CHECK_MAX_TIME_TOPIC)
        self._parking = True
        return True

    def _open_halves(self, start: int, end: int) -> list[tuple[int, Stored | None]]:
        """The next run of halves that nobody has ended, with their offsets; None: damaged, or no half at all."""
        stop = start + 1
        while stop < min(end, start + BATCH) and stop not in self._ended:
            stop += 1
        batch = self._store.read(HALF_TOPIC, 0, start, stop - start)
        found = {half.queue_offset: half for half in _readable(batch.records)}
        halves: list[tuple[int, Stored | None]] = []
        for offset in range(start, max(start + 1, min(stop, batch.next_offset))):
            half = found.get(offset)
            if half is None:
                _log.error("the half message at %d is gone or damaged, it is skipped", offset)
            elif not _has_a_home(half):
                _log.error("the half message at %d does not say where it belongs, it is skipped", offset)
                half = None
            halves.append((offset, half))
        return halves

    def _judge(self, half: Stored, now_ms: int) -> Verdict:
        age_ms = now_ms - half.born_timestamp
        if _asked(half) >= self._options.transaction_check_max:
            return Verdict.GIVE_UP
        if age_ms > self._options.file_reserved_time * 3_600_000:
            return Verdict.GIVE_UP
        if age_ms < 0:
            return Verdict.ASK  # its producer's clock is ahead: to wait for that time may be to wait for ever
        immunity_ms = self._immunity_ms(half)
        if immunity_ms is not None:
            return Verdict.MAKE_WAY if age_ms <= immunity_ms else Verdict.ASK
        return Verdict.WAIT if age_ms <= self._options.transaction_time_out else Verdict.ASK

    def _move(self, half: Stored, verdict: Verdict) -> Move | None:
        """Where the half goes; None: its record cannot be made."""
        properties = dict(half.properties)
        if verdict is Verdict.ASK:
            properties[CHECK_TIMES] = str(_asked(half) + 1)
        elif verdict is Verdict.MAKE_WAY:
            properties.setdefault(PREPARED_QUEUE_OFFSET, str(half.queue_offset))
        try:
            record = (
                _parked(half)
                if verdict is Verdict.GIVE_UP
                else half.to_record(HALF_TOPIC, 0, properties=properties, sys_flag=half.sys_flag & ~TRANSACTION_BITS)
            )
        except ValueError as error:
            _log.error("the half message at %d cannot be written again, it is skipped: %s", half.queue_offset, error)
            return None
        return Move(half, record, properties, verdict)

    def _write_moves(self, moves: list[Move]) -> None:
        """Writes the halves at their new places and the marks of their old ones. Raises StoreError."""
        try:
            receipts = self._append([move.record for move in moves], [move.half.queue_offset for move in moves])
        except MessageIllegal as error:
            if len(moves) > 1:
                for move in moves:
                    self._write_moves([move])
                return
            # There is no room in it for what has to be noted: it is set aside as it is, and can be ended there once.
            half = moves[0].half
            _log.error("the half message at %d cannot be kept, it is given up: %s", half.queue_offset, error)
            self._append([_parked(half)], [half.queue_offset])
            self.counters["given_up"] += 1
            return
        for move, receipt in zip(moves, receipts, strict=False):
            half = move.half
            if move.verdict is Verdict.GIVE_UP:
                self.counters["given_up"] += 1
                _log.error(
                    "transaction %s of group %s for topic %s is unanswered after %d questions; it is in %s now",
                    half.properties.get(UNIQUE_KEY),
                    half.properties.get(PRODUCER_GROUP),
                    half.properties[REAL_TOPIC],
                    _asked(half),
                    CHECK_MAX_TIME_TOPIC,
                )
            half.properties = move.properties
            half.queue_offset, half.position = receipt.queue_offset, receipt.position
            half.offset_id = receipt.message_id

    async def _ask_about(self, half: Stored, unasked: Counter[str]) -> None:
        group = half.properties.get(PRODUCER_GROUP, "")
        self.counters["asked"] += 1
        try:
            if group in unasked or not await self._ask(half):
                unasked[group] += 1
        except Exception:
            _log.exception("a producer of group %s could not be asked about %s", group, half.properties.get(UNIQUE_KEY))

    def _move_to(self, half_offset: int) -> None:
        """Halves before this offset are dealt with: nothing of them is kept."""
        self.half_offset = half_offset
        self._ended.drop_before(half_offset)
        while self._marks and self._marks[0][1] < half_offset:
            self._op_offset = self._marks.popleft()[0]

    def _immunity_ms(self, half: Stored) -> int | None:
        """How long the half itself wants not to be asked about; None: it does not say."""
        text = half.properties.get(IMMUNITY_SECONDS)
        if text is None:
            return None
        try:
            seconds = int(text)
        except ValueError:
            return self._options.transaction_time_out
        return seconds * 1000 if seconds >= 0 else self._options.transaction_time_out

    def _too_late(self, half: Stored) -> bool:
        if not half.properties.get(IMMUNITY_SECONDS):
            return False
        age_ms = self._clock.now_ms() - half.born_timestamp
        return age_ms > max(self._immunity_ms(half) or 0, self._options.transaction_time_out)


def _parked(half: Stored) -> Record:
    """The half as an operator finds it. Nobody has committed it: light queues that it names do not get it."""
    record = half.to_record(CHECK_MAX_TIME_TOPIC, 0, sys_flag=half.sys_flag & ~TRANSACTION_BITS)
    record.multi_dispatch = False
    return record


def _asked(half: Stored) -> int:
    """How often a producer was asked."""
    times = half.properties.get(CHECK_TIMES, "0")
    return int(times) if times.isdecimal() and len(times) <= DIGITS_MAX else 0


def _has_a_home(half: Stored) -> bool:
    queue_id = half.properties.get(REAL_QUEUE, "")
    is_number = queue_id.isdecimal() and len(queue_id) <= DIGITS_MAX
    return REAL_TOPIC in half.properties and is_number and int(queue_id) <= QUEUE_ID_MAX


def _readable(records: bytes) -> Iterator[Stored]:
    """Records of a run, as far as they can be read."""
    try:
        yield from parse_records(records)
    except ValueError:
        return


def _offsets_in(mark: Stored) -> list[int]:
    if mark.properties.get("TAGS") != MARK_TAG:
        return []
    return [int(part) for part in mark.body.decode("ascii", "replace").split(",") if part.strip().isdigit()]
