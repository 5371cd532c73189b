"""The files of timed messages, byte for byte as Apache RocketMQ keeps them, so that either goes on
where the other stopped.

    timerlog/    52 bytes a waiting message, in the order of rmq_sys_wheel_timer: where its record lies, which
                 unit of the same slot came before it. A slot is a chain from its newest unit back to its first.
    timerwheel   7 × 86400 × 2 slots of 32 bytes, one a precision step: time, first and last unit, how many
    config/timercheck   next slot to deliver, end of the timer log, next offset of the queue to take in

Waiting messages cost these bytes on the disk and nothing in memory. Written with positioned writes into files that
have their full size from the start, so that a full disk is an error and neither a signal nor half a slot.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

SLOTS: Final = 7 * 86400 * 2
UNIT: Final = struct.Struct(">iqiqiqiiq")
"""Size, previous unit, magic, write time, delay, position and size of the record, hash of the topic, 0."""
SLOT: Final = struct.Struct(">qqqii")
CHECK: Final = struct.Struct(">7q")
_HEAD: Final = struct.Struct(">iqiqi")
ROLL: Final = 2
DELETE: Final = 4
_BLANK: Final = struct.Struct(">iqi")
_BLANK_MAGIC: Final = -875286124
OURS: Final = 0x6165726F626565
"""In the check file's state version: aerobee wrote it last, and its own progress file belongs to it."""


class Unit(NamedTuple):
    """One waiting message. `due_ms`: its slot."""

    previous: int
    magic: int
    write_ms: int
    due_ms: int
    position: int
    size: int


@dataclass(slots=True)
class Slot:
    """Messages of one precision step; `last` -1: none."""

    first: int = -1
    last: int = -1
    count: int = 0


class TimerLog:
    """The units; `end` is where the next goes."""

    def __init__(self, directory: Path, file_bytes: int) -> None:
        self.directory = directory
        self.file_bytes = file_bytes
        self.end = 0
        self._maps: dict[int, mmap.mmap] = {}
        self._files: dict[int, int] = {}
        self.base = min(self._bases(), default=0)

    def _bases(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())

    def _file(self, base: int, *, create: bool) -> int:
        file = self._files.get(base, -1)
        if file < 0:
            path = self.directory / f"{base:020d}"
            if not create and not path.exists():
                raise LookupError(f"no timer log file for {base}")
            self.directory.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            if os.fstat(file).st_size != self.file_bytes:
                os.truncate(file, self.file_bytes)
            self._files[base] = file
        return file

    def _map(self, base: int) -> mmap.mmap:
        found = self._maps.get(base)
        if found is None:
            file = self._file(base, create=False)
            found = self._maps[base] = mmap.mmap(file, self.file_bytes, access=mmap.ACCESS_READ)
        return found

    def unit(self, at: int) -> Unit:
        """The unit at `at`. LookupError when there is none."""
        base = at - at % self.file_bytes
        if at < 0 or at % self.file_bytes + UNIT.size > self.file_bytes:
            raise LookupError(f"no timer unit at {at}")
        found = self._maps.get(base) or self._map(base)
        size, previous, magic, write_ms, delay, position, length, _, _ = UNIT.unpack_from(found, at - base)
        if size != UNIT.size or not 0 <= magic <= 15 or not -1 <= previous < at or length <= 0:
            raise LookupError(f"no timer unit at {at}")
        return Unit(previous, magic, write_ms, write_ms + delay, position, length)

    def place(self, at: int) -> int:
        """Where a unit goes that would go to `at`: there, or at the beginning of the next file."""
        room = self.file_bytes - at % self.file_bytes
        return at if room >= UNIT.size + _BLANK.size else at + room

    def units(self, at: int, log_end: int) -> Iterator[tuple[int, Unit]]:
        """Whole units from `at` on, up to the first that is none or refers behind `log_end`."""
        while True:
            at = self.place(at)
            try:
                unit = self.unit(at)
            except (LookupError, OSError):
                return
            if unit.position + unit.size > log_end:
                return
            yield at, unit
            at += UNIT.size

    def write(self, units: list[tuple[int, bytes]]) -> None:
        """Writes units at their places (ascending). `end` moves when all are written. Raises OSError."""
        at, run = self.end, bytearray()
        for place, data in units:
            if place != at + len(run):
                self._write(at, bytes(run))
                self._blank(at + len(run))
                at = place
                run.clear()
            run += data
        self._write(at, bytes(run))
        self.end = at + len(run)

    def _write(self, at: int, data: bytes) -> None:
        if not data:
            return
        base = at - at % self.file_bytes
        os.pwrite(self._file(base, create=True), data, at - base)

    def _blank(self, at: int) -> None:
        """The rest of a file says that nothing more comes in it."""
        room = self.file_bytes - at % self.file_bytes
        if _BLANK.size <= room < self.file_bytes:
            self._write(at, _BLANK.pack(room, 0, _BLANK_MAGIC))

    def cut(self, end: int) -> None:
        """Nothing at or behind `end` is a unit any more. Raises OSError."""
        self.end = end
        for base in self._bases():
            if base >= end and base > self.base:
                self._drop(base)
            elif base + self.file_bytes > end:
                file, at = self._file(base, create=False), max(0, end - base)
                if any(self._map(base)[at : at + UNIT.size]):
                    self._maps.pop(base).close()
                    os.truncate(file, at)
                    os.truncate(file, self.file_bytes)

    def cut_chain(self, at: int) -> None:
        """The unit at `at` becomes the first of its slot."""
        self._write(at + 4, (-1).to_bytes(8, "big", signed=True))

    def move(self, at: int, unit: Unit, due_ms: int, previous: int) -> None:
        """The unit at `at` belongs to another slot, behind the unit at `previous` (-1: it is the first)."""
        self._write(at, _HEAD.pack(UNIT.size, previous, unit.magic, unit.write_ms, due_ms - unit.write_ms))

    def clean(self, log_begin: int) -> None:
        """Deletes files whose messages are all gone from the log."""
        for base in self._bases()[:-1]:
            last = (self.file_bytes - _BLANK.size) // UNIT.size * UNIT.size - UNIT.size
            try:
                if self.unit(base + last).position >= log_begin or base + self.file_bytes > self.end:
                    return
            except LookupError:
                return
            self._drop(base)
            self.base = base + self.file_bytes

    def _drop(self, base: int) -> None:
        if base in self._maps:
            self._maps.pop(base).close()
        if base in self._files:
            os.close(self._files.pop(base))
        (self.directory / f"{base:020d}").unlink(missing_ok=True)

    def sync(self, files: int = 2) -> None:
        """Syncs the files opened last (0: all); blocks. Raises OSError."""
        for file in list(self._files.values())[-files:]:
            os.fsync(file)

    def close(self) -> None:
        """Closes the files."""
        for found in self._maps.values():
            found.close()
        for file in self._files.values():
            os.close(file)
        self._maps.clear()
        self._files.clear()


class TimerWheel:
    """The slots. `get` and `put` take the slot's time; a slot that holds another time counts as empty."""

    def __init__(self, path: Path, precision_ms: int) -> None:
        self.path = path
        self.precision_ms = precision_ms
        self._file = -1
        self._unwritten: dict[int, bytes] = {}
        """Slots that could not be written yet, by place in the file."""

    @property
    def usable(self) -> bool:
        """The file is there and has its size."""
        try:
            return self.path.stat().st_size == SLOTS * SLOT.size
        except FileNotFoundError:
            return False

    def open(self) -> None:
        """Makes the file if need be, with all its room. Raises OSError."""
        if self._file < 0:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if os.fstat(file).st_size != SLOTS * SLOT.size:
                    os.truncate(file, 0)
                    os.posix_fallocate(file, 0, SLOTS * SLOT.size)
            except OSError:
                os.close(file)
                raise
            self._file = file

    def _at(self, ms: int) -> int:
        return ms // self.precision_ms % SLOTS * SLOT.size

    def get(self, ms: int) -> Slot:
        """The slot of `ms`. Raises OSError."""
        if self._file < 0:
            return Slot()
        at = self._at(ms)
        data = self._unwritten.get(at) or os.pread(self._file, SLOT.size, at)
        step, first, last, count, _ = SLOT.unpack(data)
        return Slot(first, last, count) if step == ms // self.precision_ms and step else Slot()

    def put(self, slots: dict[int, Slot]) -> None:
        """Writes slots by their times. What cannot be written is kept and tried again next time. Raises OSError."""
        self.open()
        for ms, slot in slots.items():
            step = ms // self.precision_ms if slot.last >= 0 else 0
            self._unwritten[self._at(ms)] = SLOT.pack(step, slot.first, slot.last, slot.count, 0)
        for at in list(self._unwritten):
            os.pwrite(self._file, self._unwritten[at], at)
            del self._unwritten[at]

    def filled(self) -> Iterator[tuple[int, Slot]]:
        """All slots in use with their times, in no order."""
        if self._file < 0:
            return
        for start in range(0, SLOTS, 16384):
            data = os.pread(self._file, 16384 * SLOT.size, start * SLOT.size)
            if not data.strip(b"\0"):
                continue
            for step, first, last, count, _ in SLOT.iter_unpack(data):
                if step > 0 and last >= 0:
                    yield step * self.precision_ms, Slot(first, last, count)

    def replace(self, slots: dict[int, Slot]) -> None:
        """Holds these slots and no others. There is no file until it is whole. Raises OSError."""
        self.close()
        self._unwritten.clear()
        self.path.unlink(missing_ok=True)
        whole = TimerWheel(self.path.with_name(self.path.name + ".tmp"), self.precision_ms)
        whole.path.unlink(missing_ok=True)
        try:
            whole.put(slots)
            whole.sync()
        finally:
            whole.close()
        os.replace(whole.path, self.path)
        self.open()

    def sync(self) -> None:
        """Syncs the file; blocks. Raises OSError."""
        if self._file >= 0:
            os.fsync(self._file)

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@dataclass(slots=True)
class Check:
    """What `config/timercheck` says."""

    read_ms: int = 0
    log_end: int = 0
    queue_offset: int = 0
    ours: bool = False
    counter: int = 0

    @classmethod
    def load(cls, path: Path) -> Check | None:
        """Reads the file; None: there is none. Raises OSError."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if len(data) < CHECK.size:
            return None
        read_ms, log_end, queue_offset, master, state, _, counter = CHECK.unpack_from(data)
        return cls(read_ms, log_end, min(queue_offset, master), state == OURS, counter)

    def pack(self, now_ms: int) -> bytes:
        """The file's bytes."""
        return CHECK.pack(self.read_ms, self.log_end, self.queue_offset, self.queue_offset, OURS, now_ms, self.counter)

    def save(self, path: Path, now_ms: int) -> None:
        """Writes the file and syncs it; blocks. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if os.fstat(file).st_size < 4096:
                os.truncate(file, 4096)
            os.pwrite(file, self.pack(now_ms), 0)
            os.fsync(file)
        finally:
            os.close(file)
