"""Delay levels: a message waits in its level's queue of SCHEDULE_TOPIC_XXXX until its time has come.

    level   1   2    3    4   5  …  18        messageDelayLevel
    delay  1s  5s  10s  30s  1m  …  2h
    queue   0   1    2    3   4  …  17        of SCHEDULE_TOPIC_XXXX; REAL_TOPIC and REAL_QID say where it belongs

All messages of a queue wait equally long, so its head is always the next one due; the queue's own tags code holds that
time in ms. One loop looks at the heads, sleeps until the earliest is due, and moves what is due in batches. How far
each level has come is noted after every batch (progress.py), and every few seconds in Apache's `delayOffset.json`;
after a crash at most one batch is delivered again.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from pathlib import Path
from typing import Any, Final

from aerobee.broker.config_file import ConfigFile
from aerobee.broker.data_version import DataVersion
from aerobee.broker.forward import Moving, MovingStore, append_waited
from aerobee.broker.progress import Progress
from aerobee.broker.store import Record
from aerobee.broker.topics import SCHEDULE_TOPIC
from aerobee.clock import Clock
from aerobee.protocol import fastjson

_log = logging.getLogger("aerobee.broker.delay")

DELAY: Final = "DELAY"
REAL_TOPIC: Final = "REAL_TOPIC"
REAL_QUEUE: Final = "REAL_QID"
TIMER_PROPERTIES: Final = ("TIMER_DELAY_SEC", "TIMER_DELIVER_MS", "TIMER_DELAY_MS")

BATCH: Final = 256
LOOK_S: Final = 1.0
"""Longest sleep; a message that is scheduled meanwhile wakes the loop by itself."""
RETRY_S: Final = 0.5
"""After a failed write (a full disk) the same messages are tried again."""

_UNIT: Final = struct.Struct(">qiq")


class Delay:
    """The delay levels; see the head of this file."""

    def __init__(self, store: MovingStore, clock: Clock, levels_ms: list[int], config_dir: Path) -> None:
        self.file = ConfigFile(config_dir / "delayOffset.json", self._to_json)
        self.version = DataVersion()
        self.offsets: dict[int, int] = {}
        """Level → the next offset of its queue to deliver."""
        self.delivered = 0
        self._store = store
        self._clock = clock
        self._levels_ms = levels_ms
        self._wake = asyncio.Event()
        self._dirty = False
        self._progress = Progress(config_dir / "delayProgress", len(levels_ms), boot=0)
        self._log_end = 0
        """The log must reach this far for `offsets` to be true."""
        self._set_back: dict[int, tuple[int, int, int]] = {}
        """Level → offsets below this and times above that are so much too late: the clock was set back."""

    @property
    def level_max(self) -> int:
        """The highest level there is; higher ones count as this."""
        return len(self._levels_ms)

    def load(self) -> None:
        """Reads how far each level has come. Raises OSError, MalformedRequest."""
        data = self.file.load()
        if data:
            with self.file.reading():
                self.offsets = {int(level): int(offset) for level, offset in (data.get("offsetTable") or {}).items()}
                self.version = DataVersion.from_json(data.get("dataVersion"))
        self._log_end = self._store.log_bounds()[2]
        self._progress.load(self._log_end)
        for level, offset in enumerate(self._progress.values or (), 1):
            if offset > self.offsets.get(level, 0):
                self._moved(level, offset)

    def place(self, topic: str, queue_id: int, properties: dict[str, str], level: int) -> tuple[str, int, int]:
        """Where a message with this level is stored: (topic, queue, tags code); `properties` note its real place."""
        level = min(level, self.level_max)
        properties[DELAY] = str(level)
        properties[REAL_TOPIC] = topic
        properties[REAL_QUEUE] = str(queue_id)
        for name in TIMER_PROPERTIES:
            properties.pop(name, None)
        return SCHEDULE_TOPIC, level - 1, self._clock.now_ms() + self._levels_ms[level - 1]

    def scheduled(self) -> None:
        """A message was stored with `place`: look when it is due."""
        self._wake.set()

    async def run(self) -> None:
        """Delivers what is due, for ever."""
        while True:
            self._wake.clear()
            try:
                wait_s = self.deliver_due()
            except Exception as error:
                _log.error("delayed messages cannot be delivered now, they are tried again: %s", error)
                wait_s = RETRY_S
            if wait_s <= 0:
                await asyncio.sleep(0)  # others get their turn between two batches
                continue
            sleeper = asyncio.ensure_future(self._clock.sleep(min(wait_s, LOOK_S)))
            waker = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait((sleeper, waker), return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeper.cancel()
                waker.cancel()

    def deliver_due(self) -> float:
        """Delivers at most one batch of each level; returns the seconds until there is more to do.

        Raises what stopped a level, when the others have had their turn.
        """
        now_ms = self._clock.now_ms()
        earliest = now_ms + round(LOOK_S * 1000)
        failed: Exception | None = None
        for level in range(1, self.level_max + 1):
            try:
                earliest = min(earliest, self._deliver_level(level, now_ms))
            except Exception as error:  # not the other levels' fault
                failed = failed or error
        if failed is not None:
            raise failed
        return max(0.0, (earliest - now_ms) / 1000)

    def _deliver_level(self, level: int, now_ms: int) -> int:
        """Delivers a batch; returns when the level has to be looked at again (ms)."""
        queue_id = level - 1
        low, high = self._store.bounds(SCHEDULE_TOPIC, queue_id)
        offset = max(self.offsets.get(level, 0), low)
        if offset > high:
            _log.warning("delay level %d stood at %d, but its queue ends at %d; continuing there", level, offset, high)
            offset = high
        far = now_ms + round(LOOK_S * 1000)
        if offset >= high:
            self._moved(level, offset)
            return far
        units = self._store.entries(SCHEDULE_TOPIC, queue_id, offset, BATCH)
        again = now_ms if len(units) else far
        taken = 0
        due: list[tuple[int, int]] = []
        for position, size, stored_ms in _UNIT.iter_unpack(units):
            due_ms = self._due(level, offset + taken, stored_ms, high, now_ms)
            if due_ms > now_ms:
                again = due_ms
                break
            taken += 1
            due.append((position, size))
        if due:
            moved, end = self._store.bring_home([(position if size > 0 else -1, b"") for position, size in due])
            if moved:
                self._log_end = end
                self.delivered += moved
                self._moved(level, offset + moved)
            restored = (self._restore(position, size) for position, size in due[moved:])
            records = [record for record in restored if record is not None]
            if records:
                self._append(records)
            self._moved(level, offset + taken)
            self._progress.write(self._log_end, [self.offsets.get(n + 1, 0) for n in range(self.level_max)])
        return again

    def _due(self, level: int, offset: int, stored_ms: int, high: int, now_ms: int) -> int:
        """When a message is due. One further away than its level's delay was stored before the clock was set back: it
        and those behind it wait for one more delay and keep their distances; nobody comes early, nobody waits twice."""
        wait_ms = self._levels_ms[level - 1]
        mark, limit_ms, back_ms = self._set_back.get(level, (0, 0, 0))
        due_ms = stored_ms - back_ms if offset < mark and stored_ms > limit_ms else stored_ms
        if due_ms > now_ms + wait_ms:
            self._set_back[level] = high, now_ms + wait_ms, stored_ms - now_ms - wait_ms
            due_ms = now_ms + wait_ms
        return due_ms

    def _append(self, records: list[Record]) -> None:
        receipts = append_waited(self._store, records)
        if receipts:
            self._log_end = receipts[-1].position + receipts[-1].size
        self.delivered += len(receipts)

    def _restore(self, position: int, size: int) -> Record | None:
        data = self._store.record(position) if size > 0 else None
        if data is None:
            _log.error("the delayed message at position %d is gone or damaged, it is skipped", position)
            return None
        try:
            return Moving(data).home()
        except ValueError as error:
            _log.error("the delayed message at position %d cannot be delivered, it is skipped: %s", position, error)
            return None

    def _moved(self, level: int, offset: int) -> None:
        if self.offsets.get(level) != offset:
            self.offsets[level] = offset
            self._dirty = True

    def behind(self) -> dict[int, tuple[int, int]]:
        """Level → (delivered up to, end of its queue), for brokerStatus."""
        return {
            level: (self.offsets.get(level, 0), self._store.bounds(SCHEDULE_TOPIC, level - 1)[1])
            for level in range(1, self.level_max + 1)
        }

    async def save(self) -> None:
        """Writes the file if anything moved, once the disk has what was delivered. Raises OSError."""
        if self._dirty and self._store.log_bounds()[1] >= self._log_end:
            self._dirty = False
            self.version.advance()
            try:
                await self.file.save()
            except BaseException:  # also when who asked was cancelled: the stop saves again
                self._dirty = True
                raise

    def to_dict(self) -> dict[str, Any]:
        """The file's content; also what GET_ALL_DELAY_OFFSET answers."""
        return {"dataVersion": self.version.to_json(), "offsetTable": dict(sorted(self.offsets.items()))}

    def _to_json(self) -> bytes:
        return fastjson.dumps(self.to_dict(), pretty=True, bare_keys=True)
