"""A set of queue offsets that lie close together: one bit each, forgotten from below.

A million offsets cost 128 KiB, and the first one that is missing is found at the speed of a memory scan. For queues
that are worked off in order while single messages are finished out of order.
"""

from __future__ import annotations

from typing import Final

_BITS: Final = 1 << 16
_BYTES: Final = _BITS // 8


class OffsetSet:
    """Offsets from `start` on; smaller ones are never in it."""

    def __init__(self) -> None:
        self.start = 0
        self._chunks: dict[int, bytearray] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, offset: int) -> bool:
        chunk = self._chunks.get(offset // _BITS)
        return chunk is not None and bool(chunk[offset % _BITS >> 3] & 1 << (offset & 7))

    def add(self, offset: int) -> None:
        """Puts the offset in, unless it is below `start`."""
        if offset < self.start or offset in self:
            return
        number = offset // _BITS
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._chunks[number] = bytearray(_BYTES)
        chunk[offset % _BITS >> 3] |= 1 << (offset & 7)
        self._count += 1

    def discard(self, offset: int) -> None:
        """Takes the offset out if it is in."""
        if offset in self:
            self._chunks[offset // _BITS][offset % _BITS >> 3] &= ~(1 << (offset & 7))
            self._count -= 1

    def next_missing(self, offset: int, end: int) -> int:
        """The first offset from `offset` on that is not in the set, at most `end`."""
        while offset < end:
            chunk = self._chunks.get(offset // _BITS)
            if chunk is None:
                return offset
            byte = offset % _BITS >> 3
            missing = ~chunk[byte] & 0xFF & (0xFF << (offset & 7))
            if not missing:
                rest = memoryview(chunk)[byte + 1 :]
                byte = _BYTES - len(bytes(rest).lstrip(b"\xff"))
                if byte == _BYTES:
                    offset = (offset // _BITS + 1) * _BITS
                    continue
                missing = ~chunk[byte] & 0xFF
            return min(end, offset // _BITS * _BITS + byte * 8 + (missing & -missing).bit_length() - 1)
        return end

    def drop_before(self, start: int) -> None:
        """Forgets what is below `start`, for ever."""
        if start <= self.start:
            return
        first = start // _BITS
        for number in [number for number in self._chunks if number < first]:
            self._count -= _ones(self._chunks.pop(number))
        chunk = self._chunks.get(first)
        if chunk is not None:
            byte = start % _BITS >> 3
            before = _ones(chunk)
            chunk[:byte] = bytes(byte)
            chunk[byte] &= 0xFF << (start & 7) & 0xFF
            self._count -= before - _ones(chunk)
        self.start = start


def _ones(chunk: bytearray) -> int:
    return int.from_bytes(chunk, "little").bit_count()
