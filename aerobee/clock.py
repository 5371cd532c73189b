"""Time as an argument: the system's clock, and one that a test moves by hand.

clock = ManualClock()
task = asyncio.create_task(delay.run())          # sleeps on the clock
await clock.advance(7200)                        # two hours pass in a blink
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """What a mechanism needs to know about time."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, as stored in messages. May jump when the machine's clock is set."""

    def monotonic(self) -> float:
        """Seconds that never go backwards; for intervals and leases."""

    async def sleep(self, seconds: float) -> None:
        """Returns after that time."""


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that stands still until `advance` moves it from one sleeper's hour to the next."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._start_ms = now_ms
        self._elapsed_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return self._start_ms + round(self._elapsed_s * 1000)

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return self._elapsed_s

    def jump(self, seconds: float) -> None:
        """The machine's clock is set, forwards or backwards; no time passes."""
        self._start_ms += round(seconds * 1000)

    async def sleep(self, seconds: float) -> None:
        """Waits until `advance` has passed that time."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed_s + seconds, next(self._order), waiter))
        await waiter

    async def advance(self, seconds: float, *, settle_turns: int = 20) -> None:
        """Lets time pass. Sleepers wake in order, each at its own time, with `settle_turns` turns to act."""
        end = self._elapsed_s + seconds
        await self._settle(settle_turns)
        while self._sleepers and self._sleepers[0][0] <= end + 1e-9:
            due, _, waiter = heapq.heappop(self._sleepers)
            if waiter.done():
                continue
            self._elapsed_s = max(self._elapsed_s, due)
            waiter.set_result(None)
            await self._settle(settle_turns)
        self._elapsed_s = max(self._elapsed_s, end)

    @staticmethod
    async def _settle(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
