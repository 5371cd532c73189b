"""Transactions: a message that becomes visible when its producer commits it, and is asked about when nobody says so.

    half       stored in RMQ_SYS_TRANS_HALF_TOPIC queue 0; REAL_TOPIC and REAL_QID say where it belongs
    commit     the real message and a mark ("op") with the half's queue offset, in one write
    rollback   the mark alone
    unknown    every `transactionCheckInterval`, halves older than `transactionTimeOut` (or their own
               CHECK_IMMUNITY_TIME_IN_SECONDS) are put at the tail again and one producer of the group is asked (39)
    given up   after `transactionCheckMax` questions: moved to TRANS_CHECK_MAX_TIME_TOPIC, where an operator sees it

Marks lie in RMQ_SYS_TRANS_OP_HALF_TOPIC queue 0, tag `d`, body `offset,`: Apache's layout, so that either broker goes
on where the other stopped. Progress in both queues is kept among the consumer offsets, under group CID_RMQ_SYS_TRANS.

Apache writes its marks up to three seconds after the message; a crash in between delivers the message twice. Here both
are one write, the message in front, so that no crash can lose it. A half that was put at the tail while its producer's
answer was under way is recognised by the answer to its old place, and is not delivered a second time either.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from aerobee.broker.offsets import OffsetTable
from aerobee.broker.options import BrokerOptions
from aerobee.broker.records import (
    COMMIT,
    PREPARED,
    ROLLBACK,
    TRANSACTION_BITS,
    Stored,
    format_properties,
    parse_record,
    parse_records,
)
from aerobee.broker.store import Batch, Receipt, Record
from aerobee.broker.topics import CHECK_MAX_TIME_TOPIC, HALF_TOPIC, OP_HALF_TOPIC
from aerobee.clock import Clock
from aerobee.errors import StoreError, error_for
from aerobee.protocol.codes import ResponseCode

_log = logging.getLogger("aerobee.broker.transactions")

GROUP: Final = "CID_RMQ_SYS_TRANS"
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

READ_COUNT: Final = 32
ROUND_MAX: Final = 20_000
"""Halves looked at in one round; the rest waits for the next."""


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


class Transactions:
    """Half messages and what becomes of them; see the head of this file.

    `ask(half, real topic, real queue)` asks a producer; False when none is connected.
    `place(topic, queue, properties)` says where a committed message waits until its time, and its tags code.
    `make_topic(name)` creates the topic for those that are given up.
    """

    def __init__(
        self,
        store: TransactionStore,
        clock: Clock,
        options: BrokerOptions,
        offsets: OffsetTable,
        *,
        ask: Callable[[Stored], bool],
        make_topic: Callable[[str], Awaitable[object]],
        place: Callable[[str, int, dict[str, str]], tuple[str, int, int | None]] = lambda topic, queue, _: (
            topic,
            queue,
            None,
        ),
        store_host: str = "127.0.0.1:10911",
    ) -> None:
        self._place = place
        self.counters = {
            "prepared": 0,
            "committed": 0,
            "rolled_back": 0,
            "asked": 0,
            "given_up": 0,
            "skipped": 0,
            "failed": 0,
        }
        self._store = store
        self._clock = clock
        self._options = options
        self._offsets = offsets
        self._ask = ask
        self._make_topic = make_topic
        self._store_host = store_host
        self._ended: set[int] = set()
        """Queue offsets of halves that have their mark, from the half offset on."""
        self._marks: list[tuple[int, int]] = []
        """(offset of a mark, largest half offset in it), in order, from the mark offset on."""
        self._moved: dict[int, int] = {}
        """Old queue offset of a half that was put at the tail → its new one."""

    # Where we stand.

    @property
    def half_offset(self) -> int:
        """Halves before this queue offset are all dealt with."""
        return max(0, self._offsets.query(GROUP, HALF_TOPIC, 0))

    @property
    def pending(self) -> int:
        """Halves without a mark (roughly: copies at the tail count, holes too)."""
        return max(0, self._store.bounds(HALF_TOPIC, 0)[1] - self.half_offset - len(self._ended))

    def load(self) -> None:
        """Reads the marks that a former run left. Call it once, when the store is open."""
        low, high = self._store.bounds(OP_HALF_TOPIC, 0)
        offset = max(low, self._offsets.query(GROUP, OP_HALF_TOPIC, 0))
        while offset < high:
            batch = self._store.read(OP_HALF_TOPIC, 0, offset, READ_COUNT)
            if not batch.count:
                if batch.next_offset <= offset:
                    break
            for mark in parse_records(batch.records):
                self._remember_mark(mark.queue_offset, _offsets_in(mark))
            offset = batch.next_offset
        half = self.half_offset
        self._ended = {ended for ended in self._ended if ended >= half}

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
        """Commit (8) or rollback (12) of the half at this place; anything else leaves it pending.

        Raises ServerError when there is no such half, when it belongs to another group, or when the answer came later
        than the half's own CHECK_IMMUNITY_TIME_IN_SECONDS allows (ILLEGAL_OPERATION).
        """
        if decision not in (COMMIT, ROLLBACK):
            return
        data = self._store.record(position)
        try:
            half = parse_record(data) if data is not None else None
        except ValueError:
            half = None
        if half is None or half.topic != HALF_TOPIC:
            raise error_for(ResponseCode.SYSTEM_ERROR, "Find prepared transaction message failed")
        if not from_check and self._too_late(half):
            raise error_for(
                ResponseCode.ILLEGAL_OPERATION,
                "the answer came after the half message's immunity time; it will be asked",
            )
        if half.properties.get(PRODUCER_GROUP) != producer_group:
            raise error_for(ResponseCode.SYSTEM_ERROR, "The producer group wrong")
        if half.queue_offset != half_queue_offset:
            raise error_for(ResponseCode.SYSTEM_ERROR, "The transaction state table offset wrong")
        newest = self._newest(half_queue_offset)
        if newest in self._ended:
            return  # said twice, or to an old copy whose new one is ended: nothing is left to do
        records = [self._real_message(half)] if decision == COMMIT else []
        records.append(self._mark(newest))
        receipts = self._store.append(records)
        self._remember_mark(receipts[-1].queue_offset, [newest])
        self.counters["committed" if decision == COMMIT else "rolled_back"] += 1
        await self._store.flushed(receipts[-1])

    def _newest(self, offset: int) -> int:
        while offset in self._moved:
            offset = self._moved[offset]
        return offset

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

    def _mark(self, half_queue_offset: int) -> Record:
        now_ms = self._clock.now_ms()
        return Record(
            OP_HALF_TOPIC,
            0,
            f"{half_queue_offset},".encode(),
            format_properties({"TAGS": MARK_TAG}),
            born_timestamp=now_ms,
            born_host=self._store_host,
        )

    def _remember_mark(self, mark_offset: int, half_offsets: list[int]) -> None:
        self._marks.append((mark_offset, max(half_offsets, default=-1)))
        self._ended.update(half_offsets)

    # Asking.

    async def check(self) -> None:
        """One round: deals with every half that is old enough and has no mark. A bad half never holds up the others."""
        now_ms = self._clock.now_ms()
        low, high = self._store.bounds(HALF_TOPIC, 0)
        start = offset = max(self.half_offset, low)
        end = min(high, start + ROUND_MAX)  # copies that this round puts at the tail are for the next one
        while offset < end:
            if offset in self._ended:
                self._ended.discard(offset)
                offset += 1
                continue
            half = self._half(offset)
            if half is None:
                self.counters["skipped"] += 1
                offset += 1
                continue
            try:
                if not await self._look_at(half, now_ms):
                    break  # it is young, and all behind it are younger
            except StoreError:
                raise  # nothing can be written: the next round goes on from here
            except Exception:
                self._failed(half, offset)
            offset += 1
        if offset != start or self._offsets.query(GROUP, HALF_TOPIC, 0) < 0:
            self._offsets.overwrite(GROUP, HALF_TOPIC, 0, offset)
        self._forget_before(offset)

    def _failed(self, half: Stored, offset: int) -> None:
        """This half could not be dealt with: it makes way for the others and comes again, a bounded number of times."""
        self.counters["failed"] += 1
        times = half.properties.get(CHECK_TIMES, "0")
        asked = int(times) if times.isdigit() else 0
        if asked >= 2 * self._options.transaction_check_max:
            _log.exception("the half message at %d cannot be dealt with, it is skipped", half.queue_offset)
            return
        _log.exception("the half message at %d could not be dealt with, it is tried again", half.queue_offset)
        if half.queue_offset == offset:  # it was not put back yet
            self._put_back(half, {CHECK_TIMES: str(asked + 1)})

    def _half(self, offset: int) -> Stored | None:
        batch = self._store.read(HALF_TOPIC, 0, offset, 1)
        try:
            half = next(parse_records(batch.records), None)
        except ValueError as error:
            _log.error("the half message at %d is damaged, it is skipped: %s", offset, error)
            return None
        if half is None or half.queue_offset != offset:
            _log.error("the half message at %d is gone or damaged, it is skipped", offset)
            return None
        if REAL_TOPIC not in half.properties or not half.properties.get(REAL_QUEUE, "").isdigit():
            _log.error("the half message at %d does not say where it belongs, it is skipped", offset)
            return None
        return half

    async def _look_at(self, half: Stored, now_ms: int) -> bool:
        """Deals with one half; False: too young, look again in the next round."""
        age_ms = now_ms - half.born_timestamp
        times = half.properties.get(CHECK_TIMES, "0")
        asked = int(times) if times.isdigit() else 0
        if asked >= self._options.transaction_check_max or age_ms > self._options.file_reserved_time * 3_600_000:
            await self._give_up(half, asked)
            return True
        immunity_ms = self._immunity_ms(half)
        if immunity_ms is not None:
            if age_ms <= immunity_ms:
                # It asked for a time of its own; others behind it did not, so it makes way for them.
                self._put_back(
                    half, {PREPARED_QUEUE_OFFSET: half.properties.get(PREPARED_QUEUE_OFFSET, str(half.queue_offset))}
                )
                return True
        elif 0 <= age_ms <= self._options.transaction_time_out:
            return False
        copy = self._put_back(half, {CHECK_TIMES: str(asked + 1)})
        self.counters["asked"] += 1
        if not self._ask(copy):
            _log.info(
                "no producer of group %s is connected to be asked about %s",
                half.properties.get(PRODUCER_GROUP),
                half.properties.get(UNIQUE_KEY),
            )
        return True

    def _put_back(self, half: Stored, changes: dict[str, str]) -> Stored:
        properties = {**half.properties, **changes}
        receipt = self._store.append(
            [half.to_record(HALF_TOPIC, 0, properties=properties, sys_flag=half.sys_flag & ~PREPARED)]
        )[0]
        self._moved[half.queue_offset] = receipt.queue_offset
        half.properties = properties
        half.queue_offset, half.position, half.offset_id = receipt.queue_offset, receipt.position, receipt.message_id
        return half

    async def _give_up(self, half: Stored, asked: int) -> None:
        _log.error(
            "transaction %s of group %s for topic %s is unanswered after %d questions; it is in %s now",
            half.properties.get(UNIQUE_KEY),
            half.properties.get(PRODUCER_GROUP),
            half.properties[REAL_TOPIC],
            asked,
            CHECK_MAX_TIME_TOPIC,
        )
        await self._make_topic(CHECK_MAX_TIME_TOPIC)
        self._store.append([half.to_record(CHECK_MAX_TIME_TOPIC, 0, sys_flag=half.sys_flag & ~TRANSACTION_BITS)])
        self.counters["given_up"] += 1

    def _forget_before(self, half_offset: int) -> None:
        done = 0
        for _, largest in self._marks:
            if largest >= half_offset:
                break
            done += 1
        if done:
            self._offsets.overwrite(GROUP, OP_HALF_TOPIC, 0, self._marks[done - 1][0] + 1)
            del self._marks[:done]
        elif self._offsets.query(GROUP, OP_HALF_TOPIC, 0) < 0:
            self._offsets.overwrite(GROUP, OP_HALF_TOPIC, 0, self._store.bounds(OP_HALF_TOPIC, 0)[0])
        if self._moved:
            # An answer to an old place can still come as long as the newest copy is not dealt with.
            self._moved = {old: new for old, new in self._moved.items() if self._newest(old) >= half_offset}

    def _immunity_ms(self, half: Stored) -> int | None:
        text = half.properties.get(IMMUNITY_SECONDS)
        if text is None:
            return None
        try:
            seconds = int(text)
        except ValueError:
            return self._options.transaction_time_out
        return seconds * 1000 if seconds >= 0 else self._options.transaction_time_out

    def _too_late(self, half: Stored) -> bool:
        immunity_ms = self._immunity_ms(half)
        return immunity_ms is not None and self._clock.now_ms() - half.born_timestamp > immunity_ms


def _offsets_in(mark: Stored) -> list[int]:
    if mark.properties.get("TAGS") != MARK_TAG:
        return []
    return [int(part) for part in mark.body.decode("ascii", "replace").split(",") if part.strip().isdigit()]
