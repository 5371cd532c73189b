"""The version that Apache's tables carry: replicas and name servers compare it to see whether they are up to date."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Self


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class DataVersion:
    """State version (0 here: no controller), time of the last change in ms, number of changes."""

    state_version: int = 0
    timestamp_ms: int = field(default_factory=_now_ms)
    counter: int = 0

    def advance(self) -> None:
        """Something changed."""
        self.timestamp_ms = _now_ms()
        self.counter += 1

    def to_json(self) -> dict[str, Any]:
        """Apache's spelling."""
        return {"counter": self.counter, "stateVersion": self.state_version, "timestamp": self.timestamp_ms}

    @classmethod
    def from_json(cls, data: dict[str, Any] | None) -> Self:
        """Reads Apache's spelling; a fresh version when there is none."""
        if not data:
            return cls()
        return cls(int(data.get("stateVersion") or 0), int(data.get("timestamp") or 0), int(data.get("counter") or 0))
