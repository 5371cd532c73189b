"""The one way tests wait: ask again until it is true, finish the moment it is, say what was missing when it is not."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast, overload

T = TypeVar("T")

INTERVAL_S = 0.02


@overload
async def eventually(check: Callable[[], Awaitable[T]], timeout_s: float = ..., interval_s: float = ...) -> T: ...
@overload
async def eventually(check: Callable[[], T], timeout_s: float = ..., interval_s: float = ...) -> T: ...
async def eventually(
    check: Callable[[], T | Awaitable[T]], timeout_s: float = 10.0, interval_s: float = INTERVAL_S
) -> T:
    """Calls `check` until it returns something true, and returns that.

    `check` is a function or a coroutine function. An exception it raises counts as "not yet" and is shown when time
    is over, so `assert` works inside it. Raises AssertionError after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    last: object = None
    error: Exception | AssertionError | None = None
    while True:
        try:
            value = check()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return cast(T, value)
            last, error = value, None
        except (Exception, AssertionError) as caught:
            error = caught
        if time.monotonic() > deadline:
            seen = f"last error: {error!r}" if error is not None else f"last value: {last!r}"
            raise AssertionError(f"not true within {timeout_s:g} s; {seen}") from error
        await asyncio.sleep(interval_s)


def eventually_sync(check: Callable[[], T], timeout_s: float = 10.0, interval_s: float = INTERVAL_S) -> T:
    """`eventually` for tests without an event loop."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    error: Exception | None = None
    while True:
        try:
            value = check()
            if value:
                return value
            last, error = value, None
        except Exception as caught:
            error = caught
        if time.monotonic() > deadline:
            seen = f"last error: {error!r}" if error is not None else f"last value: {last!r}"
            raise AssertionError(f"not true within {timeout_s:g} s; {seen}") from error
        time.sleep(interval_s)
