"""Timed messages: delivered at the time their sender named, to a precision step; recalled while they wait.

    sent        stored in rmq_sys_wheel_timer, TIMER_OUT_MS = the slot, REAL_TOPIC and REAL_QID = where it belongs
    taken in    a unit in the timer log, chained to its slot of the wheel (timer_files.py)
    due         the slot's step is over: the chain is moved to the real topics, oldest first, in batches
    recalled    a message with TIMER_DEL_UNIQKEY in the same slot; what it names is not delivered
    far away    beyond the wheel's window a message is stored anew on the way, so that the log may forget the old one

The slot is the step that ends at the time asked for or holds it, and is delivered when it is over: never early, at
most a step late. Memory holds the positions of one slot. After each batch the progress is noted (progress.py), and
each unit names its record, so after a crash everything is where it was, but for one batch that may come twice.

After a start with another precision the wheel is made again from the timer log; what waits then keeps the slot it has,
or the new one that holds it, and so may come early by up to the former step. A finer step makes the wheel shorter:
what is due behind its end goes round once more.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import struct
from array import array
from pathlib import Path
from typing import Final

from aerobee.broker.forward import Moving, MovingStore, append_waited
from aerobee.broker.progress import Progress
from aerobee.broker.store import Record
from aerobee.broker.timer_files import DELETE, ROLL, SLOTS, UNIT, Check, Slot, TimerLog, TimerWheel, Unit
from aerobee.broker.topics import RETRY_PREFIX, TIMER_TOPIC
from aerobee.clock import Clock
from aerobee.errors import ServerError
from aerobee.protocol.codes import ResponseCode
from aerobee.protocol.message import PROPERTIES_BYTES_MAX

_log = logging.getLogger("aerobee.broker.timer")

DELAY_SEC: Final = "TIMER_DELAY_SEC"
DELAY_MS: Final = "TIMER_DELAY_MS"
DELIVER_MS: Final = "TIMER_DELIVER_MS"
ASKED: Final = (DELAY_SEC, DELAY_MS, DELIVER_MS)
OUT_MS: Final = "TIMER_OUT_MS"
RECALL_KEY: Final = "TIMER_DEL_UNIQKEY"

PRECISIONS_MS: Final = (100, 200, 500, 1000)
BATCH: Final = 256
TAKE: Final = 2048
LOAD: Final = 2_000
"""Units of a chain, or empty slots, looked at in one go."""
LOOK_S: Final = 1.0
RETRY_S: Final = 0.5
SPARE_SLOTS: Final = 60
_TIME_MIN: Final = 1 << 40
"""A tags code above is a time: what we store carries its slot there, so it need not be read to be taken in."""
_DELAY_MS_MAX: Final = 1 << 31
_DIGITS_MAX: Final = 9
"""A count of more is none; `int` itself refuses thousands."""
_NOTES: Final = (b"TIMER_ENQUEUE_MS", b"TIMER_DEQUEUE_MS", b"TIMER_ROLL_TIMES")
_ENTRY: Final = struct.Struct(">qiq")


_SPECIAL: Final = -1
"""Stands for the position of a message that goes round the wheel again, and of a recall."""


class _Chain:
    """A slot's units: where they are in the timer log, and of those that just go home where their messages are in the
    commit log and when they came (of others `_SPECIAL`). Arrays: a hundred thousand units take 2.4 MB."""

    def __init__(self) -> None:
        self.units = array("q")
        self.positions = array("q")
        self.written_ms = array("q")

    def add(self, at: int, unit: Unit) -> None:
        """The unit at `at`."""
        self.units.append(at)
        self.positions.append(_SPECIAL if unit.magic & (ROLL | DELETE) else unit.position)
        self.written_ms.append(unit.write_ms)

    def reverse(self) -> None:
        """Turns the order round: a chain is read from its end."""
        for column in (self.units, self.positions, self.written_ms):
            column.reverse()


class Timer:
    """The timed messages of a store; see the head of this file."""

    def __init__(
        self,
        store: MovingStore,
        clock: Clock,
        root: Path,
        *,
        precision_ms: int = 1000,
        delay_max_s: int = 259_200,
        roll_slots: int = 172_800,
        log_file_bytes: int = 100 << 20,
        boot: int | None = None,
    ) -> None:
        self.precision_ms = precision_ms = max(step for step in PRECISIONS_MS if step <= max(precision_ms, 100))
        self.delay_max_s = delay_max_s
        self.read_ms = 0
        """The slot to deliver next."""
        self.queue_offset = 0
        """The next offset of rmq_sys_wheel_timer to take in."""
        self.delivered = 0
        self.recalled = 0
        self.waiting = 0
        """Messages that wait for their time; what is recalled does not count."""
        self._store = store
        self._clock = clock
        self._root = root
        self._roll_slots = roll_slots if 2 <= roll_slots <= SLOTS // 2 - SPARE_SLOTS else SLOTS // 2 - SPARE_SLOTS
        self._log = TimerLog(root / "timerlog", log_file_bytes)
        self._wheel = TimerWheel(root / "timerwheel", precision_ms)
        self._check_path = root / "config" / "timercheck"
        self._progress = Progress(root / "config" / "timerProgress", 4, boot=boot)
        self._check = Check()
        self._wake = asyncio.Event()
        self._rebuild_to = 0
        """Offsets below were taken in before: only what is not delivered yet counts."""
        self._moved_end = 0
        """The log must reach this far for what is noted to be true."""
        self._index = 0
        """Units of the slot `read_ms` that are delivered."""
        self._chain: _Chain | None = None
        self._chain_last = -1
        self._loading = _Chain()
        self._loading_at = -1
        self._recalls: set[bytes] = set()
        self._dirty = False
        self._oldest = 0
        """Units of the timer log in front of this are delivered."""

    # Where a message is stored.

    def place(self, topic: str, queue_id: int, properties: dict[str, str]) -> tuple[str, int, int | None]:
        """Where a message with these properties is stored: (topic, queue, tags code or None: at once).

        Raises ServerError MESSAGE_ILLEGAL when the time is none or too far away.
        """
        if OUT_MS in properties or not any(name in properties for name in ASKED):
            return topic, queue_id, None
        now_ms = self._clock.now_ms()
        try:
            if DELAY_SEC in properties:
                due_ms = now_ms + int(properties[DELAY_SEC]) * 1000
            elif DELAY_MS in properties:
                due_ms = now_ms + int(properties[DELAY_MS])
            else:
                due_ms = int(properties[DELIVER_MS])
        except ValueError:
            raise self._illegal() from None
        if due_ms <= now_ms:
            if RECALL_KEY in properties:
                raise self._illegal()
            return topic, queue_id, None
        if due_ms - now_ms > self.delay_max_s * 1000:
            raise self._illegal()
        slot_ms = (due_ms - 1) // self.precision_ms * self.precision_ms
        properties[OUT_MS] = str(slot_ms)
        properties["REAL_TOPIC"] = topic
        properties["REAL_QID"] = str(queue_id)
        return TIMER_TOPIC, 0, None if RECALL_KEY in properties else slot_ms

    def _illegal(self) -> ServerError:
        return ServerError(
            ResponseCode.MESSAGE_ILLEGAL,
            "timer message illegal, the delay time should not be bigger than the max delay "
            f"{self.delay_max_s * 1000}ms; or if set del msg, the delay time should be bigger than the current time",
        )

    def congestion(self, slot_ms: int) -> int:
        """How many messages wait in a slot. Raises OSError."""
        return self._wheel.get(slot_ms).count

    def scheduled(self) -> None:
        """A message was stored with `place`."""
        self._wake.set()

    # Start.

    def load(self) -> None:
        """Finds out where things stand, and repairs the files where they disagree with the log. Raises OSError."""
        _, _, log_end = self._store.log_bounds()
        self._progress.load(log_end)
        check, values = Check.load(self._check_path), self._progress.values
        floor_ms = self._floor(self._clock.now_ms())
        same = False
        start = 0
        if values is not None and (check is None or check.ours):
            self.read_ms, self._index, self.queue_offset, start = values
            same = self._progress.same_boot
            if not same:
                start = check.log_end if check is not None else 0
        elif check is not None:
            self.read_ms, self.queue_offset, start = check.read_ms, check.queue_offset, check.log_end
        self._check = check or Check()
        read_ms = self.read_ms or floor_ms
        self.read_ms = self._floor(read_ms)
        low, high = self._store.bounds(TIMER_TOPIC, 0)
        self.queue_offset = max(self.queue_offset, low)

        end = max(start, self._log.base)
        sound = same
        while end > self._log.base and not self._is_whole(end, log_end):
            end, sound = max(self._log.base, end - UNIT.size), False
            if end % self._log.file_bytes == 0 or start - end > 1000 * UNIT.size:
                end = self._log.base
        rebuild = not self._wheel.usable or (end == self._log.base and start > end)
        slots: dict[int, Slot] = {}
        if not rebuild:
            self._wheel.open()
        last: Unit | None = None
        foreign = False
        for at, unit in self._log.units(self._log.base if rebuild else end, log_end):
            end, last = at + UNIT.size, unit
            foreign = foreign or (unit.due_ms >= read_ms and unit.due_ms % self.precision_ms > 0)
            if unit.due_ms >= self.read_ms and not rebuild:
                slot = slots.get(unit.due_ms) or self._wheel.get(unit.due_ms)
                if slot.last < at:
                    _grow(slot, at, unit.magic)
                slots[unit.due_ms] = slot
        self._log.cut(end)
        if not sound and not rebuild:
            rebuild = any(slot.last >= end for ms, slot in self._wheel.filled() if ms >= self.read_ms)
        taken = self._taken(last or self._last_unit(end), low)
        if sound:
            self.queue_offset = max(self.queue_offset, taken)
        else:
            self._rebuild_to = max(self.queue_offset, taken)
            self.queue_offset = max(low, taken)
        self.queue_offset = min(self.queue_offset, high)
        self._moved_end = log_end
        if (rebuild or foreign) and end > self._log.base:
            self._rebuild_wheel(log_end, read_ms)
        elif slots:
            self._wheel.put(slots)
        if not self._count():
            self._rebuild_wheel(log_end, read_ms)
            self._count()
        if high > low or check is not None:
            self._note()

    def _is_whole(self, end: int, log_end: int) -> bool:
        unit = self._last_unit(end)
        return unit is not None and unit.position + unit.size <= log_end

    def _last_unit(self, end: int) -> Unit | None:
        try:
            return self._log.unit(end - UNIT.size) if end > self._log.base else None
        except (LookupError, OSError):
            return None

    def _taken(self, last: Unit | None, low: int) -> int:
        """The queue offset behind the last unit's message."""
        data = self._store.record(last.position) if last is not None else None
        try:
            return Moving(data).queue_offset + 1 if data is not None else low
        except ValueError:
            return low

    def _count(self) -> bool:
        """Counts what waits; False when the wheel was written with another precision: its times are then twice or half
        as long after 1970, or further off."""
        self.waiting = 0
        fits = True
        for ms, slot in self._wheel.filled():
            if ms >= self.read_ms:
                self.waiting += slot.count
            fits = fits and 2 * self.read_ms < 3 * ms < 5 * self.read_ms
        return fits

    def _rebuild_wheel(self, log_end: int, read_ms: int) -> None:
        """Fills the wheel from the log. Units of another precision move to its slots: several chains become one. Those
        due behind its end would take the slots of others: they move to a nearer one, to be stored anew on the way.
        `read_ms`: what is due before was delivered.

        A kill half way loses nothing: what was cut off a chain leaves its slot for good first, and units move the
        newest first. So one that refers to none is at any time the first of its slot, and what is in front of it is
        not in it."""
        _log.warning("the timer wheel is made again from the timer log")
        begins: dict[int, int] = {}
        foreign = read_ms != self.read_ms
        end_ms = self.read_ms + (SLOTS - SPARE_SLOTS) * self.precision_ms
        for at, unit in self._log.units(self._log.base, log_end):
            if unit.due_ms >= read_ms:
                foreign = foreign or unit.due_ms % self.precision_ms > 0 or unit.due_ms >= end_ms
                if unit.previous < 0:
                    begins[unit.due_ms] = at
        near_ms = self.read_ms + self._roll_slots * self.precision_ms
        delivered = 0
        if foreign:
            delivered, self._index = self._index, 0
            self._note()  # first: should it end half way, some come again and none is passed over
        slots: dict[int, Slot] = {}
        moves = tuple(array("q") for _ in range(3))
        for at, unit in self._log.units(self._log.base, log_end):
            if unit.due_ms < read_ms:
                continue
            if at < begins.get(unit.due_ms, 0):
                if foreign:
                    self._log.move(at, unit._replace(write_ms=0), 0, -1)
                continue
            if delivered and unit.due_ms == read_ms:
                delivered -= 1
                continue
            due_ms = near_ms if unit.due_ms >= end_ms else self._floor(unit.due_ms)
            slot = slots.setdefault(due_ms, Slot())
            if foreign and (unit.due_ms, unit.previous) != (due_ms, slot.last):
                for column, value in zip(moves, (at, due_ms, slot.last), strict=True):
                    column.append(value)
            _grow(slot, at, unit.magic)
        for at, due_ms, previous in zip(*map(reversed, moves), strict=True):
            unit = self._log.unit(at)
            if unit.due_ms >= end_ms:
                write_ms = unit.write_ms if abs(due_ms - unit.write_ms) < _DELAY_MS_MAX else due_ms
                unit = unit._replace(magic=unit.magic | ROLL, write_ms=write_ms)
            self._log.move(at, unit, due_ms, previous)
        if foreign:
            self._log.sync(0)
        self._wheel.replace(slots)

    # Life.

    async def run(self) -> None:
        """Takes in and delivers, for ever."""
        while True:
            self._wake.clear()
            try:
                wait_s = self.turn()
            except Exception as error:
                _log.error("timed messages cannot be delivered now, they are tried again: %s", error)
                wait_s = RETRY_S
                self._forget_chain()
            if wait_s <= 0:
                await asyncio.sleep(0)
                continue
            sleeper = asyncio.ensure_future(self._clock.sleep(min(wait_s, LOOK_S)))
            waker = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait((sleeper, waker), return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeper.cancel()
                waker.cancel()

    def turn(self) -> float:
        """Takes in a batch and delivers a batch; returns the seconds until there is more to do."""
        taken = self.take_in()
        if self.deliver() or taken:
            return 0.0
        now_ms = self._clock.now_ms()
        return (self._floor(now_ms) + self.precision_ms - now_ms) / 1000

    async def save(self) -> None:
        """Makes what is noted safe, once the log is; Apache's check file included. Raises OSError."""
        if not self._dirty or self._store.log_bounds()[1] < self._moved_end:
            return
        self._dirty = False
        check = self._checkpoint()
        try:
            await asyncio.to_thread(self._sync, check)
        except OSError:
            self._dirty = True
            raise

    def close(self) -> None:
        """Leaves the files so that Apache's broker or ours continues; the log must be flushed. Blocks.

        Raises OSError.
        """
        try:
            if self._check.queue_offset or self.queue_offset:
                self._cut_current()
                self._note()
                self._sync(self._checkpoint())
        finally:
            self._log.close()
            self._wheel.close()
            self._progress.close()

    def clean(self) -> None:
        """Deletes timer log files whose messages are gone from the log. Raises OSError."""
        self._log.clean(self._store.log_bounds()[0])

    def needed_offset(self) -> int:
        """The first offset of rmq_sys_wheel_timer that still waits; it may be a little below, never above."""
        at = max(self._oldest, self._log.base)
        for _ in range(LOAD):
            at = self._log.place(at)
            if at >= self._log.end:
                self._oldest = at
                return self.queue_offset
            try:
                unit = self._log.unit(at)
            except LookupError:
                break
            if unit.due_ms >= self.read_ms:
                break
            at += UNIT.size
        self._oldest = at
        low = self._store.bounds(TIMER_TOPIC, 0)[0]
        try:
            return min(self.queue_offset, max(low, self._taken(self._log.unit(at), low) - 1))
        except LookupError:
            return low

    def _checkpoint(self) -> Check:
        self._check = Check(self.read_ms, self._log.end, self.queue_offset, True, self._check.counter + 1)
        return self._check

    def _sync(self, check: Check) -> None:
        self._log.sync()
        self._wheel.sync()
        self._progress.sync()
        check.save(self._check_path, self._clock.now_ms())

    def check_point(self) -> bytes:
        """What GET_TIMER_CHECK_POINT answers."""
        return Check(self.read_ms, self._log.end, self.queue_offset, True, self._check.counter).pack(
            self._clock.now_ms()
        )

    def runtime(self) -> dict[str, str]:
        """What brokerStatus shows."""
        return {
            "timerReadBehind": str(max(0, self._clock.now_ms() - self.read_ms) // 1000),
            "timerOffsetBehind": str(self.behind),
            "timerCongestNum": str(self.waiting),
        }

    def passed(self, ms: int) -> bool:
        """Whatever is due until then has been delivered."""
        return self.read_ms > ms and not self.behind

    @property
    def behind(self) -> int:
        """Messages that are not taken in yet."""
        return self._store.bounds(TIMER_TOPIC, 0)[1] - self.queue_offset

    # Taking in.

    def take_in(self) -> bool:
        """Takes a batch of the queue into the wheel; False when there is none. Raises StoreError, OSError."""
        low, high = self._store.bounds(TIMER_TOPIC, 0)
        offset = min(max(self.queue_offset, low), high)
        now_ms = self._clock.now_ms()
        floor_ms = self._floor(now_ms)
        if offset >= high or floor_ms - self.read_ms > (SLOTS - self._roll_slots - SPARE_SLOTS) * self.precision_ms:
            return False
        slots: dict[int, Slot] = {}
        units: list[tuple[int, bytes]] = []
        at_once: list[Record] = []
        earliest, waiting = self.read_ms, 0
        end = self._log.end
        for position, size, code in _ENTRY.iter_unpack(self._store.entries(TIMER_TOPIC, 0, offset, TAKE)):
            offset += 1
            due_ms, write_ms, magic = self._floor(code), floor_ms, 1
            message: Moving | None = None
            if code < _TIME_MIN or offset <= self._rebuild_to:
                message = self._read(position)
                try:
                    due_ms = self._floor(message.number(OUT_MS.encode())) if message is not None else 0
                except ValueError as error:
                    _log.error(
                        "the timed message at position %d cannot be delivered, it is skipped: %s", position, error
                    )
                    continue
                if message is None:
                    continue
                if message.get(RECALL_KEY.encode()) is not None:
                    magic |= DELETE
                if offset <= self._rebuild_to:
                    write_ms = self._floor(message.store_ms)
            if due_ms - write_ms >= self._roll_slots * self.precision_ms:
                magic |= ROLL
                window = self._roll_slots * self.precision_ms
                near = due_ms - write_ms - window < window // 3
                due_ms = write_ms + self._floor(window // 2 if near else window)
            if not -_DELAY_MS_MAX < due_ms - write_ms < _DELAY_MS_MAX:
                write_ms = due_ms  # only there to be read by people; a clock has jumped
            if due_ms < self.read_ms:
                if offset <= self._rebuild_to:
                    continue
                if due_ms + self.precision_ms <= now_ms:
                    message = message or self._read(position)
                    if message is not None and not magic & DELETE:
                        at_once += self._moved(message, (1 << 63) - 1, magic, now_ms)
                    continue
                earliest = min(earliest, due_ms)
            slot = slots.get(due_ms)
            if slot is None:
                slot = slots[due_ms] = self._wheel.get(due_ms)
            end = self._log.place(end)
            units.append(
                (end, UNIT.pack(UNIT.size, slot.last, magic, write_ms, due_ms - write_ms, position, size, 0, 0))
            )
            waiting += _grow(slot, end, magic)
            end += UNIT.size
            self._moved_end = max(self._moved_end, position + size)
        self._append(at_once)
        if units:
            self._wheel.open()
            self._log.write(units)
            self._wheel.put(slots)
            self.waiting += waiting
        if earliest < self.read_ms:  # the clock was set back: slots that were past are to come again
            self._cut_current()
            self.read_ms = earliest
            self._oldest = 0
        self.queue_offset = offset
        self._note()
        return True

    def _read(self, position: int) -> Moving | None:
        data = self._store.record(position)
        try:
            if data is not None:
                return Moving(data)
        except ValueError:
            pass
        _log.error("the timed message at position %d is gone or damaged, it is skipped", position)
        return None

    # Delivering.

    def deliver(self) -> bool:
        """Delivers a batch of what is due; False when nothing is. Raises StoreError, OSError."""
        now_ms = self._clock.now_ms()
        floor_ms = self._floor(now_ms)
        if self._chain is None and self._loading_at < 0 and not self._next_slot(floor_ms):
            return False
        if self.read_ms >= floor_ms:
            return False
        if self._chain is None and not self._load():
            return True
        chain = self._chain
        assert chain is not None
        batch = slice(self._index, self._index + BATCH)
        units, positions, moved = chain.units[batch], chain.positions[batch], 0
        if not self._recalls and _SPECIAL not in positions:
            moves = zip(positions, chain.written_ms[batch], strict=True)
            moved, end = self._store.bring_home([(position, _times(ms, now_ms)) for position, ms in moves])
            self._moved_end = max(self._moved_end, end)
            self.delivered += moved
            self._index += moved
        records: list[Record] = []
        for at in units[moved:]:
            unit = self._log.unit(at)
            if unit.magic & DELETE and not unit.magic & ROLL:
                continue
            message = self._read(unit.position)
            if message is None:
                continue
            if self._recalls and message.get(b"UNIQ_KEY") in self._recalls and not unit.magic & ROLL:
                self.recalled += 1
                continue
            records += self._moved(message, unit.write_ms, unit.magic, now_ms)
        self._append(records)
        self._index += len(units) - moved
        if self._index >= len(chain.units):
            slot = self._wheel.get(self.read_ms)
            if slot.last == self._chain_last:
                self.waiting = max(0, self.waiting - slot.count)
                done = self.read_ms
                self.read_ms += self.precision_ms
                self._index = 0
                self._note()
                self._wheel.put({done: Slot()})
            self._forget_chain()
            return True
        self._note()
        return True

    def _next_slot(self, floor_ms: int) -> bool:
        """Moves to the next slot that has something and is due."""
        steps = 0
        while self.read_ms < floor_ms:
            slot = self._wheel.get(self.read_ms)
            if slot.last >= 0:
                self._chain_last = self._loading_at = slot.last
                self._loading = _Chain()
                self._recalls.clear()
                return True
            self.read_ms += self.precision_ms
            self._index = 0
            steps += 1
            if steps > LOAD:
                later = min((ms for ms, _ in self._wheel.filled() if ms >= self.read_ms), default=floor_ms)
                self.read_ms = min(later, floor_ms)
                steps = 0
        return False

    def _load(self) -> bool:
        """Reads a piece of the slot's chain; True when it is whole."""
        at = self._loading_at
        for _ in range(LOAD):
            if at < 0:
                break
            try:
                unit = self._log.unit(at)
            except LookupError as error:
                _log.error("a timer slot is broken, what is older in it is lost: %s", error)
                at = -1
                break
            self._loading.add(at, unit)
            if unit.magic & DELETE and not unit.magic & ROLL:
                marker = self._read(unit.position)
                key = marker.get(RECALL_KEY.encode()) if marker is not None else None
                if key is not None:
                    self._recalls.add(key.rpartition(b"+")[2])
            at = unit.previous
        self._loading_at = at
        if at >= 0:
            return False
        self._loading.reverse()
        self._chain, self._loading = self._loading, _Chain()
        return True

    def _moved(self, message: Moving, write_ms: int, magic: int, now_ms: int) -> list[Record]:
        """The record to append for a unit; none when its message does not say where it belongs."""
        rolled = 0
        if b"TIMER_ENQUEUE_MS\x01" in message.properties or b"TIMER_ROLL_TIMES\x01" in message.properties:
            digits = message.get(b"TIMER_ROLL_TIMES") or b""  # it was stored anew before
            rolled = int(digits) if digits.isdigit() and len(digits) <= _DIGITS_MAX else 0
            message.drop(_NOTES)
        count, times = _count(rolled + 1 if magic & ROLL else rolled), _times(write_ms, now_ms)
        # Notes for people, as far as there is room: they must not cost the message.
        room = PROPERTIES_BYTES_MAX - len(message.properties) - (not message.properties.endswith(b"\x02"))
        added = next((notes for notes in (times + count, count, _count(rolled)) if len(notes) <= room), b"")
        try:
            if magic & ROLL:
                code = None if magic & DELETE else message.number(OUT_MS.encode())
                return [message.to(TIMER_TOPIC, 0, added, code)]
            return [message.home(added)]
        except ValueError as error:
            _log.error("a timed message cannot be delivered, it is skipped: %s", error)
            return []

    def _append(self, records: list[Record]) -> None:
        receipts = append_waited(self._store, records)
        if receipts:
            self._moved_end = max(self._moved_end, receipts[-1].position + receipts[-1].size)
        self.delivered += len(receipts)

    def _forget_chain(self) -> None:
        self._chain = None
        self._loading_at = -1

    def _cut_current(self) -> None:
        """What is delivered of the current slot leaves its chain."""
        chain, index = self._chain, self._index
        if chain is not None and 0 < index < len(chain.units):
            slot = self._wheel.get(self.read_ms)
            self._log.cut_chain(chain.units[index])
            self._wheel.put({self.read_ms: Slot(chain.units[index], slot.last, slot.count - index)})
            self.waiting = max(0, self.waiting - index)
            self._index = 0
        self._forget_chain()

    def _note(self) -> None:
        self._progress.write(self._moved_end, (self.read_ms, self._index, self.queue_offset, self._log.end))
        self._dirty = True

    def _floor(self, ms: int) -> int:
        return ms // self.precision_ms * self.precision_ms


def _times(write_ms: int, now_ms: int) -> bytes:
    """The properties of a message that has waited."""
    return b"TIMER_ENQUEUE_MS\x01%d\x02TIMER_DEQUEUE_MS\x01%d\x02" % (write_ms, now_ms)


def _count(rolled: int) -> bytes:
    """The property of a message that was stored anew so often."""
    return b"TIMER_ROLL_TIMES\x01%d\x02" % rolled if rolled else b""


def _grow(slot: Slot, at: int, magic: int) -> int:
    """One more unit, at the end of the slot's chain. Returns what it counts: a recall takes one away."""
    slot.first = at if slot.first < 0 else slot.first
    slot.last = at
    counts = -1 if magic & DELETE else 1
    slot.count += counts
    return counts


# Recall: the handle a sender gets, and what it says.


def recall_handle(topic: str, broker: str, properties: dict[str, str]) -> str | None:
    """The handle for a message stored with `Timer.place`; None when it cannot be recalled."""
    real = properties.get("REAL_TOPIC")
    if OUT_MS not in properties or real is None or topic != TIMER_TOPIC or real.startswith(RETRY_PREFIX):
        return None
    text = f"v1 {real} {broker} {int(properties[OUT_MS]) + 1} {properties['UNIQ_KEY']}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def read_handle(handle: str) -> tuple[str, str, int, str]:
    """Topic, broker name, a time within the message's slot, unique key. ValueError."""
    padded = handle + "=" * (-len(handle) % 4)
    words = base64.b64decode(padded, altchars=b"-_", validate=True).decode().split(" ")
    if len(words) < 5 or words[0] != "v1":
        raise ValueError("recall handle is invalid")
    return words[1], words[2], int(words[3]) if words[3].lstrip("-").isdigit() else -1, words[4]
