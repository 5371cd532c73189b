"""One logger tree, `aerobee.*`, and how a daemon writes it: a line a record, the part that speaks first.

    2026-11-23 21:04:05.678 INFO  broker.store: recovered 3 files, 1204331 messages, 412 ms

Libraries only call `logging.getLogger("aerobee.<part>")`; only a program calls `to_stderr`.
"""

from __future__ import annotations

import logging
import time
from typing import Final

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")

REPEAT_S: Final = 60.0
REASONS_MAX: Final = 1000


class Complaints:
    """Warnings that anybody outside can provoke: the same reason is one line a minute, with a count of the others."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: dict[str, tuple[float, int]] = {}

    def warn(self, reason: str, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Logs `text % args` unless the same `reason` was logged within the last minute."""
        now = time.monotonic()
        last, omitted = self._said.get(reason, (-REPEAT_S, 0))
        if now - last < REPEAT_S:
            self._said[reason] = (last, omitted + 1)
            return
        if len(self._said) >= REASONS_MAX:
            self._said.clear()
        self._said[reason] = (now, 0)
        if omitted:
            text, args = text + " (and %d more since the last such line)", (*args, omitted)
        self._log.warning(text, *args, exc_info=exc_info)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        part = record.name.removeprefix("aerobee.")
        line = f"{stamp}.{int(record.msecs):03d} {record.levelname:<5.5} {part}: {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def to_stderr(level: str = "INFO") -> None:
    """Sends the tree (and what asyncio and libraries have to say) to standard error; `level` is one of LEVELS."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("aerobee").setLevel(level)
