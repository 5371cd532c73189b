"""One logger tree, `aerobee.*`, and how a daemon writes it: a line a record, the part that speaks first.

    2026-11-23 21:04:05.678 INFO  broker.store: recovered 3 files, 1204331 messages, 412 ms

Libraries only call `logging.getLogger("aerobee.<part>")`; only a program calls `to_stderr`.
"""

from __future__ import annotations

import logging
import time
from typing import Final

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


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
