"""How far a mechanism that moves messages has come, exact across `kill -9` and never ahead of the log.

A ring of small entries in one file, one written after every batch. An entry says how long the log was when it became
true; after a power cut that took the end of the log, newer entries than the log do not count, so that nothing is
taken for delivered that was lost. Each has a checksum: a torn one is passed over.
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


class Progress:
    """`words` integers; the newest that the log bears out is `values`, None when there is none."""

    def __init__(self, path: Path, words: int, *, boot: int | None = None) -> None:
        self.path = path
        self.values: tuple[int, ...] | None = None
        self.same_boot = False
        """Whether the machine has run ever since `values` were written."""
        self._entry = struct.Struct(f">IIqq{words}q")
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
        best = -1
        for at in range(0, len(data) - self._size + 1, self._size):
            part = data[at : at + self._entry.size]
            if zlib.crc32(part) != int.from_bytes(data[at + self._entry.size : at + self._size], "big"):
                continue
            magic, boot, sequence, end, *values = self._entry.unpack(part)
            self._sequence = max(self._sequence, sequence + 1)
            if magic == _MAGIC and end <= log_end and sequence > best:
                best, self.values, self.same_boot = sequence, tuple(values), boot == self._boot

    def write(self, log_end: int, values: Sequence[int]) -> None:
        """Notes `values`, true as soon as the log reaches `log_end`. Raises OSError."""
        if self._file < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            os.posix_fallocate(self._file, 0, ENTRIES * self._size)
        data = self._entry.pack(_MAGIC, self._boot, self._sequence, log_end, *values)
        data += zlib.crc32(data).to_bytes(4, "big")
        os.pwrite(self._file, data, self._sequence % ENTRIES * self._size)
        self._sequence += 1
        self.values = tuple(values)

    def sync(self) -> None:
        """Syncs the file; blocks."""
        if self._file >= 0:
            os.fsync(self._file)

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
