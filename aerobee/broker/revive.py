"""The revive log: what was popped and not yet acknowledged, and its second coming when its invisible time is over.

    pop        one check point (tag `ck`) for each queue that gave messages, all of a pop in one write
    ack        one record (`ack`, or `bAck` for many messages of one check point)
    hide on    a new check point and the ack of the old one, in one write
    time over  what is not acknowledged goes to the group's retry topic, reconsumeTimes + 1, and in the same write the
               `bAck` that ends the check point: after a crash it is either still open or has come again, never both

Records lie in `rmq_sys_REVIVE_LOG_<cluster>` in Apache's spelling. In memory is only what is open. Progress, the last
record of each queue before which nothing is open, is kept among the consumer offsets under Apache's group; a start
reads on from there. The groups' own offsets are in the same file, with the place in each queue up to where they
contain what was popped. They are repaired on the way: a check point behind that place proves that its queue was popped
so far; what is before it an operator may have undone.

Apache's broker writes check points and acknowledgements only when they are due: they wait as timed messages first. One
that came this way ends only once the timer has delivered everything of that time, its acknowledgements among it.

A message that is hidden for days would hold progress back, and with it how much a start has to read: a check point
that has fallen far behind is written again at the end.

Two tags of ours, which Apache's broker ignores: `ord` (the state of a queue that is popped in order, see `pop_order`)
and `rst` (an operator set a group's offset; what was popped before says nothing any more), which is written to every
queue so that each tells which of its check points are older.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import struct
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import msgspec
from msgspec import UNSET

from aerobee.broker.offsets import OffsetTable
from aerobee.broker.records import BORN_HOST_V6, STORE_HOST_V6, Stored, format_properties, parse_record
from aerobee.broker.store import Batch, Receipt, Record
from aerobee.broker.topics import REVIVE_QUEUES, SYSTEM_PREFIX
from aerobee.clock import Clock
from aerobee.errors import MessageIllegal, StoreError
from aerobee.protocol.bodies.pop import PopAck, PopCheckPoint, StoredPopCheckPoint

_log = logging.getLogger("aerobee.broker.pop")

GROUP: Final = "CID_RMQ_SYS_REVIVE_GROUP"
SAVED_GROUP: Final = "CID_AEROBEE_REVIVE_SAVED"
"""Its offsets say up to where in each queue the saved offsets contain what the check points tell."""
CHECK_POINT: Final = b"ck"
ACK: Final = b"ack"
BATCH_ACK: Final = b"bAck"
ORDER: Final = b"ord"
RESET: Final = b"rst"

FIRST_POP_TIME: Final = "1ST_POP_TIME"
ORIGIN_GROUP: Final = "ORIGIN_GROUP"

RENEWED: Final = -1
"""In the field `ro`, which nobody reads: see `CheckPoint.renewed`."""
READ_COUNT: Final = 1024
RETRY_MS: Final = 1000
"""After a failed write (a full disk) what is due is tried again."""
STUCK_RETRY_MS: Final = 60_000
"""After an error of another kind; the others go on meanwhile."""
TIMER_LOOK_MS: Final = 100
"""So often it is asked how far the timer is."""
FAR_BEHIND: Final = 50_000
"""Records of a queue behind which an open check point is written again."""
WRITE_BATCH: Final = 256
"""Check points written in one go."""
TURN_MESSAGES: Final = 128
"""So many messages come again in one go, or the rest of a check point more: about 2 ms. Others get their turn then."""
TURN_LOOKS: Final = 2048
"""Entries of the list of what will be due looked at in one go; most are long acknowledged."""

CheckPointKey = tuple[str, str, int, int, int]
"""Topic, group, queue id, first offset, pop time."""


class ReviveStore(Protocol):
    """What this mechanism needs of the store."""

    def append(self, records: list[Record]) -> list[Receipt]:
        """Appends records in one write."""

    def bounds(self, topic: str, queue_id: int) -> tuple[int, int]:
        """Smallest and next offset."""

    def read(self, topic: str, queue_id: int, offset: int, count: int, bytes_max: int = ...) -> Batch:
        """Records from a queue."""


@dataclass(slots=True, eq=False)
class CheckPoint:
    """Messages of one queue that were given out together; bit n of `left`: that at `diffs[n]` is open."""

    topic: str
    group: str
    queue_id: int
    start_offset: int
    pop_time: int
    invisible_time: int
    diffs: tuple[int, ...]
    broker_name: str
    suspend: bool
    left: int
    revive_queue: int
    timed: bool = False
    """Its acknowledgements may still wait in the timer."""
    renewed: bool = False
    """Not a pop, but a message of one that is hidden for longer; it proves nothing about the group's offset."""
    revive_offset: int = -1

    @property
    def key(self) -> CheckPointKey:
        """What an acknowledgement names."""
        return self.topic, self.group, self.queue_id, self.start_offset, self.pop_time

    @property
    def due_ms(self) -> int:
        """When what is left comes again."""
        return self.pop_time + self.invisible_time

    def offsets_left(self) -> list[int]:
        """Queue offsets of the messages that are open."""
        return [self.start_offset + diff for bit, diff in enumerate(self.diffs) if self.left >> bit & 1]

    def is_open(self, offset: int) -> bool:
        """This message was given out here and is not acknowledged."""
        try:
            return bool(self.left >> self.diffs.index(offset - self.start_offset) & 1)
        except ValueError:
            return False


class OrderState(msgspec.Struct, gc=False):
    """Tag `ord`: where a queue that is popped in order stands. `next`: the group's offset; `info`: Apache's JSON."""

    t: str
    c: str
    q: int
    next: int
    info: msgspec.Raw = msgspec.Raw(b"null")


class ResetMark(msgspec.Struct, gc=False):
    """Tag `rst`: the group's offset was set to `so`."""

    t: str
    c: str
    q: int
    so: int


class Entry(NamedTuple):
    """A record of the revive log, as much of it as is needed: millions may have to be read at a start."""

    queue_offset: int
    tag: bytes
    body: bytes
    timed: bool
    """It waited in the timer first."""


_HEAD: Final = struct.Struct(">i16xq8xi")
"""Size, queue offset, sysFlag."""
_HOSTS: Final = 40 + 8 + 8 + 4 + 8
"""Where the body's length is, but for the two hosts."""
_TAGS: Final = b"TAGS\x01"
_TIMED: Final = b"TIMER_OUT_MS\x01"


def _entries(records: bytes) -> Iterator[Entry]:
    at = 0
    while at < len(records):
        size, offset, flags = _HEAD.unpack_from(records, at)
        body = at + _HOSTS + (20 if flags & BORN_HOST_V6 else 8) + (20 if flags & STORE_HOST_V6 else 8)
        end = body + 4 + int.from_bytes(records[body : body + 4], "big")
        tag = records.find(_TAGS, end, at + size) + len(_TAGS)
        yield Entry(
            offset,
            records[tag : records.find(b"\x02", tag, at + size)] if tag >= end else b"",
            records[body + 4 : end],
            records.find(_TIMED, end, at + size) >= 0,
        )
        at += size


class ReviveLog:
    """See the head of this file.

    `place(topic, group)` makes the retry topic if need be and returns it with the number of queues to use: a message
    stays in the queue of its number if that is one of them. None: topic or group are gone. `timer_passed(ms)`: whatever
    waited in the timer until then has been delivered.
    """

    def __init__(
        self,
        store: ReviveStore,
        clock: Clock,
        offsets: OffsetTable,
        *,
        cluster: str,
        broker_name: str,
        place: Callable[[str, str], Awaitable[tuple[str, int] | None]],
        on_order_state: Callable[[OrderState], None] = lambda state: None,
        timer_passed: Callable[[int], bool] = lambda ms: True,
    ) -> None:
        self.topic = f"{SYSTEM_PREFIX}REVIVE_LOG_{cluster}"
        self.counters: Counter[str] = Counter()
        """`check_points`; messages: `acks`, `late_acks`, `revived`, `lost` (gone before they came again)."""
        self.in_flight: Counter[tuple[str, str, int]] = Counter()
        """Messages that are open, by topic, group, queue."""
        self._store = store
        self._clock = clock
        self._offsets = offsets
        self._broker_name = broker_name
        self._place = place
        self._on_order_state = on_order_state
        self._timer_passed = timer_passed
        self._open: dict[CheckPointKey, CheckPoint] = {}
        self._by_queue: list[OrderedDict[int, CheckPoint]] = [OrderedDict() for _ in range(REVIVE_QUEUES)]
        self._due: list[tuple[int, int, CheckPoint]] = []
        self._sequence = itertools.count()
        self._seen = [0] * REVIVE_QUEUES
        """Up to where each queue has been taken in."""
        self._giving: dict[CheckPoint, int] = {}
        """Check points whose queue's offset has not moved yet, and where they are in the revive log."""
        self._order_floor: dict[int, int] = {}
        """Queue → its first `ord` record that `consumerOrderInfo.json` does not contain."""
        self._turn = 0

    # Where we stand.

    @property
    def open(self) -> int:
        """Check points that wait for acknowledgements."""
        return len(self._open)

    def points(self) -> list[CheckPoint]:
        """Check points that are open."""
        return list(self._open.values())

    def find(self, key: CheckPointKey) -> CheckPoint | None:
        """A check point that is open."""
        return self._open.get(key)

    def next_queue(self) -> int:
        """The queue for the next pop's check points; all take turns."""
        self._turn = (self._turn + 1) % REVIVE_QUEUES
        return self._turn

    # Coming up.

    def load(self) -> None:
        """Reads what a former run left. Call it once, when store and offsets are open."""
        popped: dict[tuple[str, str, int], list[tuple[int, bool]]] = {}
        total = 0
        for queue in range(REVIVE_QUEUES):
            low, _ = self._store.bounds(self.topic, queue)
            self._seen[queue] = max(low, self._offsets.query(GROUP, self.topic, queue) + 1)
            saved = self._offsets.query(SAVED_GROUP, self.topic, queue)
            here: dict[tuple[str, str, int], tuple[int, bool]] = {}
            for record in self._unread(queue):
                total += 1
                self._take_in(queue, record, here if record.queue_offset >= saved else {})
            for key, found in here.items():
                popped.setdefault(key, []).append(found)
        for (topic, group, queue_id), founds in popped.items():
            offset = max(offset for offset, _ in founds)
            if any(was_reset for _, was_reset in founds):
                self._offsets.overwrite(group, topic, queue_id, offset)
            elif offset > self._offsets.query(group, topic, queue_id):
                self._offsets.overwrite(group, topic, queue_id, offset)
        if total:
            _log.info("%d records of the revive log read, %d check points are open", total, self.open)

    def _catch_up(self) -> None:
        """Takes in what somebody else wrote: Apache's broker lets its records wait in the timer first."""
        for queue in range(REVIVE_QUEUES):
            if self._store.bounds(self.topic, queue)[1] > self._seen[queue]:
                for record in self._unread(queue):
                    self._take_in(queue, record, {})

    def _unread(self, queue: int) -> Iterator[Entry]:
        """Records from `_seen` on, which moves along."""
        while self._seen[queue] < self._store.bounds(self.topic, queue)[1]:
            batch = self._store.read(self.topic, queue, self._seen[queue], READ_COUNT)
            yield from _entries(batch.records)
            if batch.next_offset <= self._seen[queue]:
                break
            self._seen[queue] = batch.next_offset

    def _take_in(self, queue: int, record: Entry, popped: dict[tuple[str, str, int], tuple[int, bool]]) -> None:
        tag = record.tag
        try:
            if tag in (ACK, BATCH_ACK):
                ack = msgspec.json.decode(record.body, type=PopAck)
                if ack.t is not None and ack.c is not None:
                    offsets = [ack.ao] if ack.aol is UNSET else ack.aol
                    self._settle((ack.t, ack.c, ack.q, ack.so, ack.pt), offsets)
            elif tag == CHECK_POINT:
                self._take_in_check_point(queue, record, popped)
            elif tag == ORDER:
                state = msgspec.json.decode(record.body, type=OrderState)
                popped[state.t, state.c, state.q] = (state.next, True)
                self._order_floor.setdefault(queue, record.queue_offset)
                self._on_order_state(state)
            elif tag == RESET:
                mark = msgspec.json.decode(record.body, type=ResetMark)
                popped[mark.t, mark.c, mark.q] = (mark.so, True)
        except msgspec.MsgspecError as error:
            _log.error(
                "record %d of revive queue %d cannot be read, it is skipped: %s", record.queue_offset, queue, error
            )

    def _take_in_check_point(
        self, queue: int, record: Entry, popped: dict[tuple[str, str, int], tuple[int, bool]]
    ) -> None:
        stored = msgspec.json.decode(record.body, type=StoredPopCheckPoint)
        if stored.t is None or stored.c is None or stored.n <= 0:
            return
        diffs = tuple(stored.d) if stored.d else tuple(range(stored.n))
        point = CheckPoint(
            topic=stored.t,
            group=stored.c,
            queue_id=stored.q,
            start_offset=stored.so,
            pop_time=stored.pt,
            invisible_time=stored.it,
            diffs=diffs,
            broker_name=stored.bn or self._broker_name,
            suspend=stored.sp,
            left=((1 << len(diffs)) - 1) & ~stored.bm,
            revive_queue=queue,
            timed=record.timed,
            renewed=stored.ro == RENEWED,
            revive_offset=record.queue_offset,
        )
        known, was_reset = popped.get((stored.t, stored.c, stored.q), (0, False))
        if stored.rp is None and stored.ro != RENEWED:
            popped[stored.t, stored.c, stored.q] = (max(known, stored.so + diffs[-1] + 1), was_reset)
        known_point = self._open.get(point.key)
        if known_point is not None:
            self._moved(known_point, record.queue_offset)  # written again
        elif point.left:
            self._register(point)

    # What clients do.

    def give_out(self, points: list[CheckPoint]) -> list[Receipt]:
        """Writes check points in one write, from now on they are open. Call `settled` when the groups' offsets have
        moved. Raises StoreError; nothing is given out then."""
        receipts = self._append([self._check_point_record(point) for point in points])
        for point, receipt in zip(points, receipts, strict=True):
            self._giving[point] = point.revive_offset = receipt.queue_offset
            self._register(point)
        self.counters["check_points"] += len(points)
        return receipts

    def settled(self, points: Iterable[CheckPoint]) -> None:
        """The groups' offsets contain these check points."""
        for point in points:
            self._giving.pop(point, None)

    def forget_topic(self, topic: str) -> None:
        """The topic was deleted: none of its messages comes again, whatever lies at its offsets in another life."""
        points = [point for point in self._open.values() if point.topic == topic]
        for some in (points[at : at + WRITE_BATCH] for at in range(0, len(points), WRITE_BATCH)):
            try:
                self._append([self._ack_record(point, point.offsets_left(), point.broker_name) for point in some])
            except StoreError as error:
                _log.error("check points of the deleted topic %s are not ended in the log: %s", topic, error)
            for point in some:
                self._settle(point.key, point.offsets_left())

    def acknowledge(self, key: CheckPointKey, offsets: list[int], broker_name: str) -> list[Receipt]:
        """Messages of a check point are done; nothing is written when they were before. Raises StoreError."""
        point = self._open.get(key)
        done = [offset for offset in offsets if point is not None and point.is_open(offset)]
        if point is None or not done:
            self.counters["late_acks"] += len(offsets)
            return []
        receipts = self._append([self._ack_record(point, done, broker_name)])
        self._settle(key, done)
        self.counters["acks"] += len(done)
        return receipts

    def hide_on(self, point: CheckPoint, offset: int, new: CheckPoint, broker_name: str) -> list[Receipt]:
        """Message `offset` of `point` is open in `new` from now on. Raises StoreError; nothing has changed then."""
        receipts = self._append([self._check_point_record(new), self._ack_record(point, [offset], broker_name)])
        new.revive_offset = receipts[0].queue_offset
        self._register(new)
        self._settle(point.key, [offset])
        return receipts

    def order_changed(self, state: OrderState) -> list[Receipt]:
        """Writes the state of a queue that is popped in order. Raises StoreError."""
        queue = hash_of(state.t, state.c, state.q) % REVIVE_QUEUES
        receipts = self._append([self._record(queue, ORDER, msgspec.json.encode(state), 0)])
        self._order_floor.setdefault(queue, receipts[0].queue_offset)
        return receipts

    def order_saved(self) -> dict[int, int]:
        """What `consumerOrderInfo.json` is about to contain; pass it to `order_kept` when it is written."""
        return {queue: self._store.bounds(self.topic, queue)[1] for queue in self._order_floor}

    def order_kept(self, saved: dict[int, int]) -> None:
        """`ord` records before these offsets are not needed any more."""
        for queue, end in saved.items():
            if self._order_floor.get(queue, end) < end:
                self._order_floor[queue] = end

    def reset(self, topic: str, group: str, queue_id: int, offset: int) -> None:
        """The group's offset was set: what was popped before proves nothing any more. Raises StoreError."""
        body = msgspec.json.encode(ResetMark(topic, group, queue_id, offset))
        self._append([self._record(queue, RESET, body, 0) for queue in range(REVIVE_QUEUES)])

    # Time.

    async def revive_due(self) -> int:
        """Brings what is due again, as much as one turn may; returns how many messages are through with waiting."""
        self._catch_up()
        now_ms = self._clock.now_ms()
        through = 0
        for _ in range(TURN_LOOKS):
            if through >= TURN_MESSAGES or not self._due or self._due[0][0] > now_ms:
                break
            _, _, point = heapq.heappop(self._due)
            if self._open.get(point.key) is not point:
                continue
            if point.timed and not self._timer_passed(point.due_ms):
                heapq.heappush(self._due, (now_ms + TIMER_LOOK_MS, next(self._sequence), point))
                continue
            try:
                through += await self._revive(point)
            except (StoreError, OSError) as error:
                _log.error("messages of %s cannot come again now, they are tried later: %s", point.topic, error)
                heapq.heappush(self._due, (now_ms + RETRY_MS, next(self._sequence), point))
                break
            except Exception:
                _log.exception("messages of %s cannot come again, they are tried later", point.topic)
                heapq.heappush(self._due, (now_ms + STUCK_RETRY_MS, next(self._sequence), point))
        return through

    async def _revive(self, point: CheckPoint) -> int:
        """Ends a check point; returns how many messages were open in it, also if they are gone. Raises StoreError."""
        place = await self._place(point.topic, point.group)
        if self._open.get(point.key) is not point:
            return 0  # acknowledged while the retry topic was made
        offsets = point.offsets_left()
        again: list[Stored] = []
        if place is None:
            _log.warning("topic or group of %d messages of %s for %s is gone", len(offsets), point.topic, point.group)
        else:
            for offset in offsets:
                stored = self._message(point, offset)
                if stored is None:
                    self.counters["lost"] += 1
                    _log.warning(
                        "message %d of %s queue %d is gone and cannot come again", offset, point.topic, point.queue_id
                    )
                else:
                    again.append(stored)
        done = self._ack_record(point, offsets, point.broker_name)
        try:
            self._append([*(_again(stored, point, *place) for stored in again if place is not None), done])
        except MessageIllegal:
            assert place is not None
            again = [stored for stored in again if self._come_alone(stored, point, *place)]
            self._append([done])
        self._settle(point.key, offsets)
        self.counters["revived"] += len(again)
        return len(offsets)

    def _come_alone(self, stored: Stored, point: CheckPoint, topic: str, queues: int) -> bool:
        """One of several that the store has refused: without our properties if they do not fit. Raises StoreError."""
        done = self._ack_record(point, [stored.queue_offset], point.broker_name)
        for marked in (True, False):
            try:
                self._append([_again(stored, point, topic, queues, marked=marked), done])
            except MessageIllegal as error:
                refused = error
            else:
                self._settle(point.key, [stored.queue_offset])
                return True
        self.counters["lost"] += 1
        _log.error("message %d of %s cannot come again: %s", stored.queue_offset, point.topic, refused)
        return False

    def _message(self, point: CheckPoint, offset: int) -> Stored | None:
        batch = self._store.read(point.topic, point.queue_id, offset, 1)
        if not batch.count:
            return None
        try:
            stored = parse_record(batch.records)
        except ValueError:
            return None
        return stored if stored.queue_offset == offset else None

    def commit(self) -> None:
        """Notes progress among the consumer offsets; call it before they are saved."""
        for queue, points in enumerate(self._by_queue):
            try:
                self._bring_up(queue)
            except StoreError as error:
                _log.warning("check points that are far behind cannot be written again now: %s", error)
            end = min(self._store.bounds(self.topic, queue)[1], self._seen[queue])
            saved = min([end, *(at for point, at in self._giving.items() if point.revive_queue == queue)])
            if saved > self._offsets.query(SAVED_GROUP, self.topic, queue):
                self._offsets.commit(SAVED_GROUP, self.topic, queue, saved)
            if points:
                end = min(end, next(iter(points)))
            end = min(end, self._order_floor.get(queue, end))
            if end - 1 > self._offsets.query(GROUP, self.topic, queue):
                self._offsets.commit(GROUP, self.topic, queue, end - 1)

    def _bring_up(self, queue: int) -> None:
        """Writes check points of the queue that are far behind again. Raises StoreError."""
        oldest = self._seen[queue] - FAR_BEHIND
        behind = [*itertools.takewhile(lambda point: point.revive_offset < oldest, self._by_queue[queue].values())]
        for some in (behind[at : at + WRITE_BATCH] for at in range(0, len(behind), WRITE_BATCH)):
            for point in some:
                point.renewed = True
            receipts = self._append([self._check_point_record(point) for point in some])
            for point, receipt in zip(some, receipts, strict=True):
                self._moved(point, receipt.queue_offset)

    # The inside.

    def _moved(self, point: CheckPoint, revive_offset: int) -> None:
        points = self._by_queue[point.revive_queue]
        points.pop(point.revive_offset, None)
        point.revive_offset = revive_offset
        points[revive_offset] = point

    def _register(self, point: CheckPoint) -> None:
        self._open[point.key] = point
        self._by_queue[point.revive_queue][point.revive_offset] = point
        self.in_flight[point.topic, point.group, point.queue_id] += point.left.bit_count()
        heapq.heappush(self._due, (point.due_ms, next(self._sequence), point))

    def _settle(self, key: CheckPointKey, offsets: Iterable[int]) -> None:
        point = self._open.get(key)
        if point is None:
            return
        before = point.left.bit_count()
        for offset in offsets:
            try:
                point.left &= ~(1 << point.diffs.index(offset - point.start_offset))
            except ValueError:
                continue
        flying = (point.topic, point.group, point.queue_id)
        self.in_flight[flying] -= before - point.left.bit_count()
        if self.in_flight[flying] <= 0:
            del self.in_flight[flying]
        if not point.left:
            del self._open[key]
            self._by_queue[point.revive_queue].pop(point.revive_offset, None)
            if len(self._due) > 4 * len(self._open) + 1024:
                # Long invisible times leave what is done behind; sweep it out before it outweighs what is open.
                self._due = [entry for entry in self._due if self._open.get(entry[2].key) is entry[2]]
                heapq.heapify(self._due)

    def _append(self, records: list[Record]) -> list[Receipt]:
        receipts = self._store.append(records)
        for record, receipt in zip(records, receipts, strict=True):
            if record.topic == self.topic and receipt.queue_offset == self._seen[record.queue_id]:
                self._seen[record.queue_id] += 1
        return receipts

    def _check_point_record(self, point: CheckPoint) -> Record:
        body = msgspec.json.encode(
            PopCheckPoint(
                (1 << len(point.diffs)) - 1 & ~point.left,
                point.broker_name,
                point.group,
                list(point.diffs),
                point.invisible_time,
                len(point.diffs),
                point.pop_time,
                point.queue_id,
                RENEWED if point.renewed else 0,
                point.start_offset,
                point.suspend,
                point.topic,
            )
        )
        return self._record(point.revive_queue, CHECK_POINT, body, point.due_ms - 1000)

    def _ack_record(self, point: CheckPoint, offsets: list[int], broker_name: str) -> Record:
        ack = PopAck(
            -1, UNSET, broker_name, point.group, point.pop_time, point.queue_id, point.start_offset, point.topic
        )
        if len(offsets) == 1:
            ack.ao = offsets[0]
        else:
            ack.aol = offsets
        tag = ACK if len(offsets) == 1 else BATCH_ACK
        return self._record(point.revive_queue, tag, msgspec.json.encode(ack), point.due_ms)

    def _record(self, queue: int, tag: bytes, body: bytes, deliver_ms: int) -> Record:
        # TIMER_DELIVER_MS is the time to which Apache's broker believes the log to be complete.
        properties = {"TAGS": tag.decode()}
        if deliver_ms:
            properties["TIMER_DELIVER_MS"] = str(deliver_ms)
        return Record(self.topic, queue, body, format_properties(properties), born_timestamp=self._clock.now_ms())


def _again(stored: Stored, point: CheckPoint, topic: str, queues: int, *, marked: bool = True) -> Record:
    """The message as it comes again; `marked`: its properties say when it was popped first, and for whom."""
    properties = dict(stored.properties)
    if marked:
        if stored.reconsume_times == 0 or FIRST_POP_TIME not in properties:
            properties[FIRST_POP_TIME] = str(point.pop_time)
        properties[ORIGIN_GROUP] = point.group
    times = stored.reconsume_times if point.suspend else stored.reconsume_times + 1
    return stored.to_record(
        topic,
        stored.queue_id if stored.queue_id < queues else 0,
        properties=properties,
        reconsume_times=times,
        prepared_offset=stored.prepared_offset,
    )


def hash_of(topic: str, group: str, queue_id: int) -> int:
    """The same number in every run, for spreading queues."""
    return sum(f"{topic}@{group}@{queue_id}".encode())
