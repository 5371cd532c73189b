"""How far a mechanism that moves messages has come, exact across `kill -9` and never ahead of the log.

A ring of small entries in one file, one written after every batch. An entry says how long the log was when it became
true; after a power cut that took the end of the log, newer entries than the log do not count, so that nothing is
taken for delivered that was lost. Each has a checksum: a torn one is passed over.

The file has its full size from the start, and so tells how many integers its entries have. One with another number, as
after a change of the settings, is read, and replaced as a whole with the next entry.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ENTRIES: Final = 1024
_MAGIC: Final = 0x61657270


def boot_id() -> int:
    """A number that changes when the machine starts: pages written before are only there if they were synced."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        text = os.urandom(16)
    return zlib.crc32(text)


def _entry(words: int) -> struct.Struct:
    """Magic, boot, sequence, the log's end, then so many integers; four bytes of checksum follow."""
    return struct.Struct(f">IIqq{words}q")


class Progress:
    """`words` integers; the newest that the log bears out is `values`, None when there is none.

    After `load`, `values` are as many as the file has.
    """

    def __init__(self, path: Path, words: int, *, boot: int | None = None) -> None:
        self.path = path
        self.values: tuple[int, ...] | None = None
        self.same_boot = False
        """Whether the machine has run ever since `values` were written."""
        self._entry = _entry(words)
        self._size = self._entry.size + 4
        self._boot = boot_id() if boot is None else boot
        self._sequence = 0
        self._file = -1

    def load(self, log_end: int) -> None:
        """Finds the newest entry that counts. Raises OSError."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        entry = _entry(max(0, len(data) // ENTRIES - _entry(0).size - 4) // 8)
        best = -1
        for at in range(0, len(data) - entry.size - 3, entry.size + 4):
            part = data[at : at + entry.size]
            if zlib.crc32(part) != int.from_bytes(data[at + entry.size : at + entry.size + 4], "big"):
                continue
            magic, boot, sequence, end, *values = entry.unpack(part)
            self._sequence = max(self._sequence, sequence + 1)
            if magic == _MAGIC and end <= log_end and sequence > best:
                best, self.values, self.same_boot = sequence, tuple(values), boot == self._boot

    def write(self, log_end: int, values: Sequence[int]) -> None:
        """Notes `values`, true as soon as the log reaches `log_end`. Raises OSError."""
        data = self._entry.pack(_MAGIC, self._boot, self._sequence, log_end, *values)
        data += zlib.crc32(data).to_bytes(4, "big")
        if self._file < 0:
            self._file = self._open(data)
        self._put(self._file, data)
        self._sequence += 1
        self.values = tuple(values)

    def _put(self, file: int, data: bytes) -> None:
        os.pwrite(file, data, self._sequence % ENTRIES * self._size)

    def _open(self, data: bytes) -> int:
        """The file; when it is new or its entries have another size, one with this entry alone takes its place."""
        whole = ENTRIES * self._size
        if self.path.exists() and self.path.stat().st_size == whole:
            return os.open(self.path, os.O_RDWR)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(self.path.name + ".tmp")
        file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.posix_fallocate(file, 0, whole)
            self._put(file, data)
            os.replace(new, self.path)
        except BaseException:
            os.close(file)
            raise
        return file

    def sync(self) -> None:
        """Syncs the file; blocks."""
        if self._file >= 0:
            os.fsync(self._file)

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
