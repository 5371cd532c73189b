"""Popping in order: a queue gives its group nothing more until what it gave is acknowledged or visible again.

    pop ──▶ given (offsets, pop time, invisible time, attempt) ──ack of all──▶ free, the group's offset behind them
                      │ invisible time over: the same messages again, their count + 1
                      └ the same attempt id: the same messages again at once (the client did not get the answer)

The state is Apache's `consumerOrderInfo.json`; `revive` keeps what changed since it was last written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from aerobee.broker.config_file import ConfigFile
from aerobee.clock import Clock
from aerobee.protocol import fastjson

KEEP_MS = 24 * 3600 * 1000
"""Queues that nobody popped for so long are forgotten."""


class OrderInfo(msgspec.Struct, kw_only=True, omit_defaults=False):
    """One queue of one group; names as in Apache's file. Message n is at `o[0]`, or `o[0] + o[n]`; times in ms."""

    a: str | None = None
    """Attempt id of the pop."""
    cm: int = 0
    """Bit n: message n is acknowledged."""
    i: int | None = None
    """Invisible time."""
    l: int = 0  # noqa: E741 - Apache's name
    """When it was last popped."""
    o: list[int] = []
    oc: dict[int, int] | None = None
    """Queue offset → how often it was given before."""
    ot: dict[int, int] | None = None
    """Queue offset → when it is visible again, where that was changed."""
    pop_time: int = msgspec.field(default=0, name="popTime")

    def offsets(self) -> list[int]:
        """Queue offsets of the messages."""
        return [self.o[0], *(self.o[0] + distance for distance in self.o[1:])] if self.o else []

    def visible_at(self, bit: int, offset: int) -> int:
        """When an unacknowledged message comes again; 0 for an acknowledged one."""
        if self.cm >> bit & 1:
            return 0
        changed = self.ot.get(offset) if self.ot else None
        return self.pop_time + (self.i or 0) if changed is None else changed

    def free_at(self) -> int:
        """When the queue gives messages again if nothing is acknowledged."""
        return max((self.visible_at(bit, offset) for bit, offset in enumerate(self.offsets())), default=0)

    def next_offset(self) -> int:
        """The first message that is not acknowledged, or the one behind the last."""
        offsets = self.offsets()
        for bit, offset in enumerate(offsets):
            if not self.cm >> bit & 1:
                return offset
        return offsets[-1] + 1


class OrderTable:
    """What was given out in order; see the head of this file."""

    def __init__(
        self, clock: Clock, config_dir: Path, *, exists: Callable[[str, str], bool] = lambda topic, group: True
    ) -> None:
        self.file = ConfigFile(config_dir / "consumerOrderInfo.json", self._to_json)
        self.table: dict[tuple[str, str], dict[int, OrderInfo]] = {}
        """(topic, group) → queue → state."""
        self._clock = clock
        self._exists = exists

    def load(self) -> None:
        """Reads the file, if there is one. Raises OSError, MalformedRequest."""
        data = self.file.load()
        with self.file.reading():
            for key, queues in ((data or {}).get("table") or {}).items():
                topic, separator, group = key.partition("@")
                if separator:
                    self.table[topic, group] = {
                        int(queue): msgspec.convert(info, OrderInfo, strict=False) for queue, info in queues.items()
                    }

    def find(self, topic: str, group: str, queue_id: int) -> OrderInfo | None:
        """The state of a queue."""
        return self.table.get((topic, group), {}).get(queue_id)

    def is_blocked(self, topic: str, group: str, queue_id: int, attempt_id: str | None, invisible_time: int) -> bool:
        """The queue may give this attempt nothing now."""
        info = self.find(topic, group, queue_id)
        if info is None or not info.o or (info.a is not None and info.a == attempt_id):
            return False
        if not info.i or info.i <= 0:
            info.i = invisible_time
        return info.free_at() > self._clock.now_ms()

    def give_out(
        self,
        topic: str,
        group: str,
        queue_id: int,
        offsets: list[int],
        pop_time: int,
        invisible_time: int,
        attempt_id: str | None,
    ) -> OrderInfo:
        """Notes what a pop gives, and counts what it has given before."""
        info = OrderInfo(
            a=attempt_id, i=invisible_time, l=self._clock.now_ms(), pop_time=pop_time,
            o=[offsets[0], *(offset - offsets[0] for offset in offsets[1:])],
        )  # fmt: skip
        before = self.find(topic, group, queue_id)
        if before is not None:
            counts = before.oc or {}
            if before.a is not None and before.a == attempt_id:
                info.oc = counts
            else:
                given = set(before.offsets())
                info.oc = {offset: counts.get(offset, 0) + 1 for offset in offsets if offset in given}
        self.table.setdefault((topic, group), {})[queue_id] = info
        return info

    def acknowledge(self, topic: str, group: str, queue_id: int, offset: int, pop_time: int) -> int:
        """Notes an ack; the group's next offset; -1: the message was not given, -2: another pop gave it."""
        info = self.find(topic, group, queue_id)
        if info is None:
            return offset + 1
        if not info.o:
            return -1
        if info.pop_time != pop_time:
            return -2
        try:
            bit = info.offsets().index(offset)
        except ValueError:
            return -1
        info.cm |= 1 << bit
        return info.next_offset()

    def hide_on(self, topic: str, group: str, queue_id: int, offset: int, pop_time: int, visible_ms: int) -> None:
        """A message is visible again at `visible_ms`; nothing when it belongs to another pop."""
        info = self.find(topic, group, queue_id)
        if info is not None and info.pop_time == pop_time:
            if info.ot is None:
                info.ot = {}
            info.ot[offset] = visible_ms

    def clear(self, topic: str, group: str, queue_id: int) -> None:
        """The group's offset was reset: the queue is free."""
        self.table.get((topic, group), {}).pop(queue_id, None)

    def put(self, topic: str, group: str, queue_id: int, info: OrderInfo | None) -> None:
        """The state as the revive log has it, after a crash."""
        if info is None:
            self.clear(topic, group, queue_id)
        else:
            self.table.setdefault((topic, group), {})[queue_id] = info

    def forget_topic(self, topic: str) -> None:
        """The topic was deleted."""
        for key in [key for key in self.table if key[0] == topic]:
            del self.table[key]

    def forget_group(self, group: str) -> None:
        """The group was deleted."""
        for key in [key for key in self.table if key[1] == group]:
            del self.table[key]

    def _clean(self) -> None:
        oldest = self._clock.now_ms() - KEEP_MS
        for key, queues in list(self.table.items()):
            for queue_id in [queue_id for queue_id, info in queues.items() if info.l < oldest]:
                del queues[queue_id]
            if not queues or not self._exists(*key):
                del self.table[key]

    def to_dict(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "table": {
                f"{topic}@{group}": {queue_id: plain(info) for queue_id, info in sorted(queues.items())}
                for (topic, group), queues in sorted(self.table.items())
            }
        }

    def _to_json(self) -> bytes:
        self._clean()
        return fastjson.dumps(self.to_dict(), pretty=True, bare_keys=True)


def plain(info: OrderInfo) -> dict[str, Any]:
    """As plain values, None left out."""
    values = {name: value for name, value in msgspec.structs.asdict(info).items() if value is not None}
    values["popTime"] = values.pop("pop_time")
    return values
