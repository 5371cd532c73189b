"""Pop: the broker chooses queues, gives messages out, and hides them until they are acknowledged or their time is over.

    pop ─ which topics: 20 of 100 begin with the retry topic, the others end with it if they are not full
        ─ which queues: one, or all of them from a random one on; by priority: all, the highest first
        ─ from where:   the group's offset, which moves on at once; `revive` remembers what is not acknowledged
        ─ nothing:      waits until its poll time is over; the first message that reaches one of its queues wakes it

The group's offset is the ordinary consumer offset: it says up to where a queue was given out. In order it says what is
acknowledged, and `pop_order` what was given out behind it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from aerobee.broker.filters import is_only_bars, is_tag_kind, tag_codes
from aerobee.broker.groups import priority_factor
from aerobee.broker.message_types import type_of_topic
from aerobee.broker.pop_names import ORDER_QUEUE, format_handle, normal_topic, retry_flag, retry_topic
from aerobee.broker.pop_order import OrderInfo, OrderTable, plain
from aerobee.broker.records import encode_record, parse_records
from aerobee.broker.revive import CheckPoint, CheckPointKey, OrderState, ReviveLog
from aerobee.broker.store import Batch, Receipt, Store
from aerobee.broker.topics import RETRY_PREFIX
from aerobee.errors import MessageIllegal, ServerError, StoreError
from aerobee.net.connection import Connection
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.topics import TopicConfig
from aerobee.protocol.codes import ResponseCode

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

_log = logging.getLogger("aerobee.broker.pop")

MESSAGES_MAX: Final = 32
RETRY_QUEUES: Final = 1
TICK_S: Final = 0.1
"""How late waiting ends and messages come again, at most."""
EARLY_MS: Final = 50
"""Waiting ends so much before its time, so that the answer is there in time."""
_PLACE: Final = struct.Struct(">i16xq")
"""Size and queue offset at the front of a record."""

QueueKey = tuple[str, str, int]
"""Topic, group, queue id (-1: all)."""


@dataclass(slots=True, frozen=True)
class Filter:
    """Hashes of tags, or an SQL92 text; neither: all messages."""

    tags: list[int] | None = None
    sql: str | None = None

    @classmethod
    def of(cls, store: Store, kind: str | None, expression: str | None) -> Filter:
        """Raises ServerError SUBSCRIPTION_PARSE_FAILED."""
        if not expression:
            return cls()
        if is_tag_kind(kind):
            if is_only_bars(expression):
                raise ServerError(ResponseCode.SUBSCRIPTION_PARSE_FAILED, "parse the consumer's subscription failed")
            return cls(tags=tag_codes(expression))
        problem = store.check_sql(expression) if kind == "SQL92" else f"there is no filter type {kind}"
        if problem is not None:
            raise ServerError(
                ResponseCode.SUBSCRIPTION_PARSE_FAILED, f"parse the consumer's subscription failed: {problem}"
            )
        return cls(sql=expression)


@dataclass(slots=True, frozen=True)
class Wanted:
    """What a client asks of a pop. Times in ms."""

    topic: str
    group: str
    queue_id: int
    count: int
    invisible_time: int
    init_mode: int = 0
    order: bool = False
    attempt_id: str | None = None
    filter: Filter = Filter()


@dataclass(slots=True)
class Popped:
    """What a pop gives. `rest`: messages that are left in the queues it looked at."""

    pop_time: int
    revive_queue: int
    records: list[bytes] = field(default_factory=list)
    count: int = 0
    rest: int = 0
    by_topic: list[tuple[str, int, int]] = field(default_factory=list)
    """Of each queue: its topic, perhaps one of retries, and how many messages and bytes it gave."""
    start_offsets: list[str] = field(default_factory=list)
    message_offsets: list[str] = field(default_factory=list)
    order_counts: list[str] = field(default_factory=list)
    number: int = 0
    """Later pops and resets have higher ones."""
    points: list[CheckPoint] = field(default_factory=list)
    moves: list[tuple[QueueKey, int]] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Waiter:
    """A request that waits. `again(last)` tries it; True: it is answered. `last`: its time is over."""

    key: QueueKey
    connection: Connection
    deadline_ms: int
    again: Callable[[bool], bool]
    takes: bool
    """It takes messages (a pop), so others need not be woken for them."""
    number: int = 0
    wants: Callable[[], bool] | None = None
    """Are there any for it among the messages that have come? None: all are."""


class Pops:
    """Popping; see the head of this file."""

    def __init__(self, broker: Broker, *, dice: random.Random | None = None) -> None:
        self._broker = broker
        self._clock = broker.clock
        self._dice = dice or random.Random()
        self._taken: dict[QueueKey, int] = {}
        """Offsets whose check points are written, but not yet as safe as the options promise."""
        self._unsettled = 0
        """Pops for which `settled` is still to come."""
        self._undone: dict[QueueKey, int] = {}
        """Queues that were reset or deleted while there were some: what was popped before moves nothing any more."""
        self._waiting: dict[QueueKey, OrderedDict[int, Waiter]] = {}
        self._waits_for: dict[str, dict[tuple[str, str], None]] = {}
        """Topic in the store → (topic, group) of those who wait for its messages."""
        self._of_connection: dict[int, dict[int, Waiter]] = {}
        self._deadlines: list[tuple[int, int, Waiter]] = []
        self._numbers = itertools.count(1)
        self._waiters = 0
        self._arrived: dict[tuple[str, int], None] = {}
        self._frees: list[tuple[int, str, str, int]] = []
        self._released = False
        options = broker.options
        self.orders = OrderTable(broker.clock, options.store_dir / "config", exists=self._exists)
        self.revive = ReviveLog(
            broker.store,
            broker.clock,
            broker.offsets,
            cluster=options.broker_cluster_name,
            broker_name=options.broker_name,
            place=self._place,
            on_order_state=self._order_state,
            timer_passed=lambda ms: not options.timer_wheel_enable or broker.timer.passed(ms),
        )

    # Life.

    def load(self) -> None:
        """Reads what a former run left. Raises OSError."""
        self.orders.load()
        self.revive.load()

    async def run(self) -> None:
        """Brings again what is due, ends waiting, frees ordered queues; for ever."""
        while True:
            try:
                busy = await self.tick()
            except Exception:
                busy = False
                _log.exception("popping stumbled")
            await self._clock.sleep(0 if busy else TICK_S)

    async def tick(self) -> bool:
        """One look at everything that time brings; True: messages came again, and there may be more."""
        busy = await self.revive.revive_due() > 0
        now_ms = self._clock.now_ms()
        while self._frees and self._frees[0][0] <= now_ms:
            _, topic, group, queue_id = heapq.heappop(self._frees)
            self.wake(topic, group, queue_id)
        while self._deadlines and self._deadlines[0][0] - EARLY_MS <= now_ms:
            _, _, waiter = heapq.heappop(self._deadlines)
            if self._drop(waiter) and not waiter.connection.closed:
                waiter.again(True)
        return busy

    async def save(self) -> None:
        """Writes the ordered queues' state and notes progress; save the consumer offsets next. Raises OSError."""
        saved = self.revive.order_saved()
        await self.orders.file.save()
        self.revive.order_kept(saved)
        self.revive.commit()

    def release(self) -> None:
        """The broker stops: everybody who waits is answered, nobody waits any more."""
        self._released = True
        for waiters in list(self._waiting.values()):
            for waiter in list(waiters.values()):
                if self._drop(waiter) and not waiter.connection.closed:
                    waiter.again(True)

    def disconnected(self, connection: Connection) -> None:
        """A connection ended: its requests wait no longer."""
        for waiter in self._of_connection.pop(connection.id, {}).values():
            self._drop(waiter)

    # Giving out.

    def pop(self, wanted: Wanted) -> Popped:
        """Takes what there is now. Raises StoreError: nothing is given out then. Await `settled` before answering."""
        options = self._broker.options
        lot = self._dice.randrange(100)
        popped = Popped(self._clock.now_ms(), ORDER_QUEUE if wanted.order else self.revive.next_queue())
        config = self._broker.topics.get(wanted.topic)
        by_priority = config is not None and self._is_by_priority(wanted, config, lot)
        start = 0 if by_priority else lot
        retry_first = lot < (
            options.pop_from_retry_probability_for_priority if by_priority else options.pop_from_retry_probability
        )
        retries = None if wanted.order else self.retry_topic_to_read(wanted.topic, wanted.group, lot)
        if retry_first and retries is not None:
            self._pop_topic(wanted, popped, retries, start)
        if wanted.queue_id >= 0:
            self._pop_queue(wanted, popped, wanted.topic, wanted.queue_id)
        else:
            self._pop_topic(wanted, popped, wanted.topic, start)
        if not retry_first and retries is not None and popped.count < wanted.count:
            self._pop_topic(wanted, popped, retries, start)
        if popped.points:
            popped.receipts += self.revive.give_out(popped.points)
        for key, offset in popped.moves:
            self._taken[key] = offset
        popped.number = next(self._numbers)
        self._unsettled += 1
        return popped

    async def settled(self, popped: Popped) -> None:
        """Returns when the check points are as safe as the options promise; the groups' offsets move then."""
        try:
            if popped.receipts:
                await self._broker.store.flushed(popped.receipts[-1])
        finally:
            self.move(popped)

    def move(self, popped: Popped) -> None:
        """The groups' offsets move, but for queues that were reset or deleted meanwhile."""
        for key, offset in popped.moves:
            if self._undone.get(key, 0) < popped.number:
                topic, group, queue_id = key
                if self._taken.get(key) == offset:
                    del self._taken[key]
                self._broker.offsets.commit(group, topic, queue_id, offset, peer="pop")
        self.revive.settled(popped.points)
        self._unsettled -= 1
        if not self._unsettled:
            self._undone.clear()

    def _undo(self, key: QueueKey) -> None:
        """The offset of the queue is set: pops that are not settled count for nothing."""
        self._taken.pop(key, None)
        if self._unsettled:
            self._undone[key] = next(self._numbers)

    def forget_topic(self, topic: str) -> None:
        """The topic was deleted."""
        self.orders.forget_topic(topic)
        self.revive.forget_topic(topic)
        for key in [key for key in self._taken if key[0] == topic]:
            self._undo(key)

    def forget_group(self, group: str) -> None:
        """The group was deleted."""
        self.orders.forget_group(group)
        for key in [key for key in self._taken if key[1] == group]:
            self._undo(key)

    def _is_by_priority(self, wanted: Wanted, config: TopicConfig, lot: int) -> bool:
        """The topic's queues are its priorities, and this is one of the pops (priority.factor of 100) that care."""
        group = self._broker.groups.find(wanted.group)
        return type_of_topic(config) == "PRIORITY" and not wanted.order and lot < priority_factor(group)

    def _pop_topic(self, wanted: Wanted, popped: Popped, topic: str, start: int) -> None:
        """All queues of a topic, one after the other, beginning `start` behind the first in the order of priority."""
        config = self._broker.topics.get(topic)
        count = config.read_queue_nums if config is not None else 0
        for step in range(count):
            place = count - 1 - step if self._broker.options.priority_order_asc else step
            self._pop_queue(wanted, popped, topic, (place + start) % count)

    def retry_topic_to_read(self, topic: str, group: str, lot: int) -> str:
        """One form of the retry topic: the configured one; every second time the other, if it is there."""
        options = self._broker.options
        own = retry_topic(topic, group, second_form=options.enable_retry_topic_v2)
        if lot % 2 == 0 and options.retrieve_message_from_pop_retry_topic_v1:
            other = retry_topic(topic, group, second_form=not options.enable_retry_topic_v2)
            if self._broker.topics.get(other) is not None:
                return other
        return own

    def _pop_queue(self, wanted: Wanted, popped: Popped, topic: str, queue_id: int) -> None:
        broker, group = self._broker, wanted.group
        key = (topic, group, queue_id)
        offset = self._offset(key, wanted.init_mode)
        if wanted.order and self.orders.is_blocked(topic, group, queue_id, wanted.attempt_id, wanted.invisible_time):
            return  # what lies in it counts for nothing: its ack wakes who waits
        room = wanted.count - popped.count
        if room <= 0 or self._too_many_in_flight(key):
            popped.rest += max(0, broker.store.bounds(topic, queue_id)[1] - offset)
            return
        batch = self._read(topic, queue_id, offset, room, wanted.filter)
        if batch.status in ("OFFSET_TOO_SMALL", "OFFSET_OVERFLOW_BADLY", "OFFSET_FOUND_NULL"):
            if offset != batch.next_offset:
                _log.warning(
                    "%s pops %s queue %d from %d instead of %d: the queue has changed",
                    group,
                    topic,
                    queue_id,
                    batch.next_offset,
                    offset,
                )
            offset = batch.next_offset
            broker.offsets.overwrite(group, topic, queue_id, offset)
            self._undo(key)
            batch = self._read(topic, queue_id, offset, room, wanted.filter)
        popped.rest += max(0, batch.max_offset - batch.next_offset)
        if not batch.count:
            if batch.next_offset > offset:
                popped.moves.append((key, batch.next_offset))
            return
        offsets = _queue_offsets(batch.records)
        self._give(wanted, popped, key, offset, offsets, batch.next_offset)
        popped.start_offsets.append(f"{retry_flag(topic)} {queue_id} {offset}")
        popped.message_offsets.append(f"{retry_flag(topic)} {queue_id} {','.join(map(str, offsets))}")
        popped.count += len(offsets)
        popped.by_topic.append((topic, len(offsets), len(batch.records)))
        if topic == wanted.topic or broker.options.pop_response_return_actual_retry_topic:
            popped.records.append(batch.records)
        else:
            popped.records.append(self._as_original(batch.records, wanted, popped, topic, offset))

    def _read(self, topic: str, queue_id: int, offset: int, count: int, chosen: Filter) -> Batch:
        bytes_max = self._broker.options.max_transfer_bytes_on_message_in_memory
        return self._broker.store.read(topic, queue_id, offset, count, bytes_max, chosen.tags, chosen.sql)

    def _give(
        self, wanted: Wanted, popped: Popped, key: QueueKey, start: int, offsets: list[int], next_offset: int
    ) -> None:
        topic, group, queue_id = key
        if not wanted.order:
            diffs = tuple(offset - start for offset in offsets)
            popped.points.append(
                CheckPoint(
                    topic,
                    group,
                    queue_id,
                    start,
                    popped.pop_time,
                    wanted.invisible_time,
                    diffs,
                    self._broker.options.broker_name,
                    False,
                    (1 << len(diffs)) - 1,
                    popped.revive_queue,
                )
            )
            popped.moves.append((key, next_offset))
            return
        before = self.orders.find(topic, group, queue_id)
        info = self.orders.give_out(
            topic, group, queue_id, offsets, popped.pop_time, wanted.invisible_time, wanted.attempt_id
        )
        try:
            popped.receipts += self._order_changed(topic, group, queue_id, start)
        except StoreError:
            self.orders.put(topic, group, queue_id, before)
            raise
        popped.moves.append((key, start))
        self._free_later(topic, group, queue_id, info)
        flag, counts = retry_flag(topic), info.oc or {}
        popped.order_counts += [f"{flag} qo{queue_id}%{offset} {times}" for offset, times in counts.items()]
        fewest = min(counts.values()) if len(counts) == len(offsets) else 0
        popped.order_counts.append(f"{flag} {queue_id} {fewest}")

    def _as_original(self, records: bytes, wanted: Wanted, popped: Popped, topic: str, start: int) -> bytes:
        """Messages of a retry topic as of the topic that was asked for; their handle goes with them."""
        out = []
        name = self._broker.options.broker_name
        at = 0
        for record in parse_records(records):
            at += record.size
            record.properties.setdefault(
                "POP_CK",
                format_handle(
                    start,
                    popped.pop_time,
                    wanted.invisible_time,
                    popped.revive_queue,
                    topic,
                    name,
                    record.queue_id,
                    record.queue_offset,
                ),
            )
            try:
                out.append(encode_record(record, topic=wanted.topic, queue_id=record.queue_id))
            except MessageIllegal:
                out.append(records[at - record.size : at])  # no room for a handle: as of the retry topic, it needs none
        return b"".join(out)

    def _too_many_in_flight(self, key: QueueKey) -> bool:
        options = self._broker.options
        return (
            options.enable_pop_message_threshold and self.revive.in_flight[key] > options.pop_inflight_message_threshold
        )

    # Offsets.

    def _offset(self, key: QueueKey, init_mode: int) -> int:
        """From where to pop; a reset or a first offset is put down."""
        topic, group, queue_id = key
        offsets = self._broker.offsets
        if offsets.has_reset(group, topic, queue_id):
            offset = offsets.take_reset(group, topic, queue_id)
            if offset is not None:
                self.orders.clear(topic, group, queue_id)
                self._undo(key)
                offsets.overwrite(group, topic, queue_id, offset)
                self.revive.reset(topic, group, queue_id, offset)
                return offset
        offset = offsets.query(group, topic, queue_id)
        if offset < 0:
            offset = self._first_offset(topic, queue_id, init_mode)
            offsets.commit(group, topic, queue_id, offset, peer="pop")
        return max(offset, self._taken.get(key, 0))

    def _first_offset(self, topic: str, queue_id: int, init_mode: int) -> int:
        low, high = self._broker.store.bounds(topic, queue_id)
        if init_mode == 0 or topic.startswith(RETRY_PREFIX):
            return low
        options = self._broker.options
        if (
            options.init_pop_offset_by_check_msg_in_mem
            and low <= 0
            and self._broker.store.is_recent(topic, queue_id, 0)
        ):
            return 0
        return max(0, high - 1)

    def peek_offset(self, topic: str, group: str, queue_id: int) -> int:
        """From where a pop would take; nothing changes."""
        key = (topic, group, queue_id)
        offset = self._broker.offsets.query(group, topic, queue_id)
        if offset < 0:
            offset = self._broker.store.bounds(topic, queue_id)[0]
        return max(offset, self._taken.get(key, 0))

    # Acknowledging.

    async def acknowledge(self, key: CheckPointKey, offsets: list[int], broker_name: str) -> None:
        """Messages of a pop are done; returns when that is as safe as the options promise. Raises StoreError."""
        receipts = self.revive.acknowledge(key, offsets, broker_name)
        if receipts:
            await self._broker.store.flushed(receipts[-1])

    async def acknowledge_in_order(self, topic: str, group: str, queue_id: int, offset: int, pop_time: int) -> bool:
        """A message of an ordered pop is done; False: it was not given out."""
        offsets = self._broker.offsets
        if offset < offsets.query(group, topic, queue_id):
            return True
        next_offset = self.orders.acknowledge(topic, group, queue_id, offset, pop_time)
        if next_offset < 0:
            return next_offset != -1
        if offsets.has_reset(group, topic, queue_id):
            return True
        receipts = self._order_changed(topic, group, queue_id, next_offset)
        offsets.commit(group, topic, queue_id, next_offset, peer="pop")
        await self._broker.store.flushed(receipts[-1])
        info = self.orders.find(topic, group, queue_id)
        if info is None or info.free_at() <= self._clock.now_ms():
            self.wake(topic, group, queue_id)
        return True

    async def hide_on(
        self,
        key: CheckPointKey,
        offset: int,
        invisible_time: int,
        revive_queue: int,
        *,
        suspend: bool,
        broker_name: str,
    ) -> int:
        """A popped message is hidden for `invisible_time` ms from now; returns the new pop time. Raises StoreError.

        One that is acknowledged, or has come again, stays as it is: the new handle leads nowhere.
        """
        pop_time = self._clock.now_ms()
        point = self.revive.find(key)
        if point is not None and point.is_open(offset):
            while self.revive.find((point.topic, point.group, point.queue_id, offset, pop_time)) is not None:
                pop_time += 1  # a handle names one check point
            new = CheckPoint(
                topic=point.topic,
                group=point.group,
                queue_id=point.queue_id,
                start_offset=offset,
                pop_time=pop_time,
                invisible_time=invisible_time,
                diffs=(0,),
                broker_name=broker_name,
                suspend=suspend,
                left=1,
                revive_queue=revive_queue,
                renewed=True,
            )
            receipts = self.revive.hide_on(point, offset, new, broker_name)
            await self._broker.store.flushed(receipts[-1])
        return pop_time

    async def hide_on_in_order(
        self, topic: str, group: str, queue_id: int, offset: int, pop_time: int, visible_ms: int
    ) -> None:
        """A message of an ordered pop is visible again at `visible_ms`. Raises StoreError."""
        info = self.orders.find(topic, group, queue_id)
        if info is None or info.pop_time != pop_time:
            return
        self.orders.hide_on(topic, group, queue_id, offset, pop_time, visible_ms)
        receipts = self._order_changed(
            topic, group, queue_id, max(0, self._broker.offsets.query(group, topic, queue_id))
        )
        self._free_later(topic, group, queue_id, info)
        await self._broker.store.flushed(receipts[-1])

    def _order_changed(self, topic: str, group: str, queue_id: int, next_offset: int) -> list[Receipt]:
        info = self.orders.find(topic, group, queue_id)
        raw = msgspec.Raw(fastjson.dumps(plain(info))) if info is not None else msgspec.Raw(b"null")
        return self.revive.order_changed(OrderState(topic, group, queue_id, next_offset, raw))

    def _order_state(self, state: OrderState) -> None:
        self.orders.put(state.t, state.c, state.q, msgspec.json.decode(state.info, type=OrderInfo | None, strict=False))

    def _free_later(self, topic: str, group: str, queue_id: int, info: OrderInfo) -> None:
        heapq.heappush(self._frees, (info.free_at(), topic, group, queue_id))

    # Waiting.

    def waiting(self, key: QueueKey) -> int:
        """Pops that wait for messages of this queue (-1: of any)."""
        return sum(waiter.takes for waiter in self._waiting.get(key, {}).values())

    def wait(
        self,
        key: QueueKey,
        connection: Connection,
        born_ms: int,
        poll_ms: int,
        again: Callable[[bool], bool],
        *,
        takes: bool,
        wants: Callable[[], bool] | None = None,
    ) -> ResponseCode | None:
        """Lets a request wait. None: it waits; POLLING_TIMEOUT: its time is over; POLLING_FULL: too many wait."""
        options = self._broker.options
        deadline_ms = born_ms + poll_ms
        if poll_ms <= 0 or self._released:
            return ResponseCode.POLLING_TIMEOUT
        if self._waiters >= options.max_pop_polling_size:
            return ResponseCode.POLLING_FULL
        if deadline_ms - EARLY_MS <= self._clock.now_ms():
            return ResponseCode.POLLING_TIMEOUT
        if len(self._waiting.get(key, ())) > options.pop_polling_size:
            return ResponseCode.POLLING_FULL
        waiter = Waiter(key, connection, deadline_ms, again, takes, next(self._numbers), wants)
        self._waiting.setdefault(key, OrderedDict())[waiter.number] = waiter
        self._of_connection.setdefault(connection.id, {})[waiter.number] = waiter
        self._waiters += 1
        heapq.heappush(self._deadlines, (deadline_ms, waiter.number, waiter))
        if len(self._deadlines) > 4 * self._waiters + 1024:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._waiting.get(entry[2].key, ())]
            heapq.heapify(self._deadlines)
        self._watch(key)
        return None

    def wake(self, topic: str, group: str, queue_id: int, *, arrived: bool = False) -> None:
        """There may be something in the queue: those who wait for it try again, one after the other while there is.

        `arrived`: new messages have.
        """
        for key in ((topic, group, -1), (topic, group, queue_id)) if queue_id >= 0 else ((topic, group, -1),):
            for waiter in list(self._waiting.get(key, {}).values()):
                if waiter.connection.closed:
                    self._drop(waiter)
                elif arrived and waiter.wants is not None and not waiter.wants():
                    continue
                elif waiter.again(False):
                    self._drop(waiter)
                elif waiter.takes:
                    break  # what one does not find the next will not find either
            if key in self._waiting:
                self._watch(key)

    def arrived(self, queues: list[tuple[str, int]]) -> None:
        """The store's word: watched queues have messages. They are looked at in the loop's next turn."""
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._wake_arrived)
        self._arrived.update(dict.fromkeys(queues))

    def _wake_arrived(self) -> None:
        queues, self._arrived = list(self._arrived), {}
        for stored, queue_id in queues:
            for topic, group in list(self._waits_for.get(stored, ())):
                # A retry topic's queues have nothing to do with those that a pop names.
                if stored == topic:
                    self.wake(topic, group, queue_id, arrived=True)
                else:
                    for key in [key for key in self._waiting if key[:2] == (topic, group)] if queue_id >= 0 else ():
                        self.wake(topic, group, key[2])

    def topic_changed(self, topic: str) -> None:
        """A topic was made, perhaps again, or has other queues: who waits for it waits for those."""
        if self._broker.topics.get(topic) is None:
            return
        for key in [key for key in self._waiting if key[0] == topic]:
            self._watch(key)

    def _watch(self, key: QueueKey) -> None:
        """The engine tells of the next message in any queue that `key` waits for."""
        topic, group, queue_id = key
        broker = self._broker
        config = broker.topics.get(topic)
        queues = [queue_id] if queue_id >= 0 else range(config.read_queue_nums if config is not None else 0)
        for watched in queues:
            broker.store.watch(topic, watched)
        self._waits_for.setdefault(topic, {})[topic, group] = None
        for second_form in (False, True):
            name = retry_topic(topic, group, second_form=second_form)
            retries = broker.topics.get(name)
            if retries is not None:
                for watched in range(retries.read_queue_nums):
                    broker.store.watch(name, watched)
                self._waits_for.setdefault(name, {})[topic, group] = None

    def _drop(self, waiter: Waiter) -> bool:
        waiters = self._waiting.get(waiter.key)
        if waiters is None or waiters.pop(waiter.number, None) is None:
            return False
        self._waiters -= 1
        others = self._of_connection.get(waiter.connection.id)
        if others is not None:
            others.pop(waiter.number, None)
            if not others:
                del self._of_connection[waiter.connection.id]
        if not waiters:
            del self._waiting[waiter.key]
            topic, group, _ = waiter.key
            if not any(key[:2] == (topic, group) for key in self._waiting):
                for name in (
                    topic,
                    retry_topic(topic, group, second_form=False),
                    retry_topic(topic, group, second_form=True),
                ):
                    waits = self._waits_for.get(name)
                    if waits is not None:
                        waits.pop((topic, group), None)
                        if not waits:
                            del self._waits_for[name]
        return True

    # What the mechanisms ask.

    def _exists(self, topic: str, group: str) -> bool:
        return self._broker.topics.get(topic) is not None and self._broker.groups.get(group) is not None

    async def _place(self, topic: str, group: str) -> tuple[str, int] | None:
        """The retry topic for messages of `topic`, made if need be, and how many of its queues they may use.

        None: topic or group are gone.
        """
        broker = self._broker
        source = normal_topic(topic, group)
        if not self._exists(source, group):
            return None
        name = topic
        if not topic.startswith(RETRY_PREFIX):
            name = retry_topic(topic, group, second_form=broker.options.enable_retry_topic_v2)
        queues = RETRY_QUEUES
        if broker.options.use_separate_retry_queue:
            of_source = broker.topics.get(source)  # a light queue has a topic that is in no table
            queues = of_source.write_queue_nums if of_source is not None else RETRY_QUEUES
        config = broker.topics.get(name)
        if config is None or config.write_queue_nums < queues:
            await broker.topics.make_or_widen(name, queues)
            for queue_id in range(queues):
                if broker.offsets.query(group, name, queue_id) < 0:
                    broker.offsets.commit(group, name, queue_id, 0, peer="pop")
            for key in [key for key in self._waiting if key[:2] == (source, group)]:
                self._watch(key)
        return name, queues


def _queue_offsets(records: bytes) -> list[int]:
    at, out = 0, []
    while at < len(records):
        size, offset = _PLACE.unpack_from(records, at)
        out.append(offset)
        at += size
    return out
