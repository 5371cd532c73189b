"""Consumer offsets: how far each group has come in each queue. Kept as Apache's `consumerOffset.json`.

Offsets never go backwards unless an operator resets them, or whoever commits may (`may_go_back`; an application that
reads at its own offsets may). A client that sends a smaller offset than the stored one (a stale copy, a second consumer
on the same queue) is answered SUCCESS, as Apache does, but the stored offset stays and a counter says so.

A reset reaches the consumers that run in one of two ways:

on the broker     It is stored at once and handed to the group by its next pull (PULL_OFFSET_MOVED). Until then commits
                  for that queue are not accepted, and from members that push also not until one of them has taken it
                  up: commits exactly that offset, or asks where to begin. So nobody who does not know of the reset, or
                  has not got to it yet, can undo it.
by the clients    They are told (RESET_CONSUMER_CLIENT_OFFSET), and whoever has the queue commits the new offset.

With light queues (`light`) everything is in `lmqConsumerOffset.json` instead, where groups called like a light queue
have one offset a topic. When the setting was changed, the other file is the newer one: then it is read.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from aerobee.broker.config_file import ConfigFile
from aerobee.broker.data_version import DataVersion
from aerobee.broker.topics import is_light
from aerobee.clock import Clock, SystemClock
from aerobee.protocol import fastjson

_log = logging.getLogger("aerobee.broker.offsets")

SEPARATOR = "@"
VERSION_STEP = 500
"""Commits per step of the data version, by which replicas notice a change."""


TAKE_UP_S: Final = 30.0
"""How long members have to take up a reset that was handed out; Java's clients before 5 wait ten seconds."""


class _Told(NamedTuple):
    """A reset that a client knows of: the commit of exactly `offset` counts, others do not until then if `alone`."""

    offset: int
    until_s: float
    alone: bool


class OffsetTable:
    """Offsets by `topic@group` and queue; see the head of this file."""

    def __init__(
        self,
        config_dir: Path,
        *,
        light: bool = False,
        clock: Clock | None = None,
        on_reset: Callable[[str], None] = lambda group: None,
    ) -> None:
        names = ("lmqConsumerOffset.json", "consumerOffset.json")
        mine, others = names if light else reversed(names)
        self.file = ConfigFile(config_dir / mine, self._to_json)
        self._others = ConfigFile(config_dir / others, self._to_json)
        self._light = light
        self.version = DataVersion()
        self.table: dict[str, dict[int, int]] = {}
        self.resets: dict[str, dict[int, int]] = {}
        self.counters: Counter[str] = Counter()
        """`commits`, `backwards` (refused), `held` (refused while a reset waits)."""
        self.dirty = False
        self._clock = clock or SystemClock()
        self._told: dict[str, dict[int, _Told]] = {}
        self._on_reset = on_reset

    def load(self) -> None:
        """Reads the file, if there is one. Raises OSError, MalformedRequest."""
        file = max(self.file, self._others, key=ConfigFile.written_at)
        data = file.load()
        if not data:
            return
        if file is self._others:
            _log.warning("offsets are read from %s: it was written later than %s", file.path, self.file.path)
        with file.reading():
            self.table = {
                key: {int(queue): int(offset) for queue, offset in queues.items()}
                for key, queues in (data.get("offsetTable") or {}).items()
            }
            for key, offset in (data.get("lmqOffsetTable") or {}).items():
                self.table[key] = {0: int(offset)}
            self.version = DataVersion.from_json(data.get("dataVersion"))

    def commit(
        self,
        group: str,
        topic: str,
        queue_id: int,
        offset: int,
        *,
        peer: str = "",
        may_go_back: Callable[[int], bool] | None = None,
    ) -> None:
        """Moves an offset forward, or back if `may_go_back(stored offset)`.

        Negative offsets mean "unknown" in some clients and are ignored.
        """
        if offset < 0:
            return
        key = topic + SEPARATOR + group
        if self.resets and queue_id in self.resets.get(key, ()):
            self.counters["held"] += 1
            return
        if self._told and key in self._told and not self._after_reset(key, queue_id, offset):
            self.counters["held"] += 1
            return
        queues = self.table.get(key)
        if queues is None:
            queues = self.table[key] = {}
        if offset < queues.get(queue_id, 0) and not (may_go_back is not None and may_go_back(queues[queue_id])):
            self.counters["backwards"] += 1
            _log.info(
                "commit of %d for %s queue %d is behind %d and was ignored (%s)",
                offset,
                key,
                queue_id,
                queues[queue_id],
                peer,
            )
            return
        queues[queue_id] = offset
        self._changed()

    def query(self, group: str, topic: str, queue_id: int) -> int:
        """The offset the group continues from: a pending reset, or what it committed; -1 when there is none."""
        key = topic + SEPARATOR + group
        pending = self.resets.get(key)
        if pending is not None and queue_id in pending:
            return pending[queue_id]
        return self.table.get(key, {}).get(queue_id, -1)

    def reset(self, group: str, topic: str, queue_id: int, offset: int) -> None:
        """Sets an offset, backwards or forwards; the group hears of it with its next pull."""
        key = topic + SEPARATOR + group
        self.resets.setdefault(key, {})[queue_id] = offset
        self.table.setdefault(key, {})[queue_id] = offset
        self._changed()
        self._on_reset(group)

    def overwrite(self, group: str, topic: str, queue_id: int, offset: int) -> None:
        """Sets an offset without telling anybody (cloning, an operator's tool)."""
        self.table.setdefault(topic + SEPARATOR + group, {})[queue_id] = offset
        self._changed()

    def has_reset(self, group: str, topic: str | None = None, queue_id: int | None = None) -> bool:
        """A reset waits to be handed out (anywhere in the group, in a topic, or for one queue)."""
        if topic is None:
            suffix = SEPARATOR + group
            return any(key.endswith(suffix) for key in self.resets)
        pending = self.resets.get(topic + SEPARATOR + group)
        return pending is not None and (queue_id is None or queue_id in pending)

    def take_reset(self, group: str, topic: str, queue_id: int, *, alone: bool = False) -> int | None:
        """The pending reset, which is thereby handed out; None when there is none.

        `alone`: commits do not count until somebody has taken it up (at most `TAKE_UP_S`).
        """
        key = topic + SEPARATOR + group
        pending = self.resets.get(key)
        if pending is None:
            return None
        offset = pending.pop(queue_id, None)
        if not pending:
            del self.resets[key]
            self._on_reset(group)
        if offset is not None and alone:
            self._told.setdefault(key, {})[queue_id] = _Told(offset, self._clock.monotonic() + TAKE_UP_S, True)
        return offset

    def told_to_reset(self, group: str, topic: str, queue_id: int, offset: int) -> None:
        """Clients were told to go on at this offset: the commit that says they do counts, whatever is stored."""
        key = topic + SEPARATOR + group
        self._told.setdefault(key, {})[queue_id] = _Told(offset, self._clock.monotonic() + TAKE_UP_S, False)

    def taken_up(self, group: str, topic: str, queue_id: int) -> None:
        """A member asked where to begin: whatever it commits from now on is later than the reset it was handed."""
        key = topic + SEPARATOR + group
        told = self._told.get(key)
        if told is not None and queue_id in told and told[queue_id].alone:
            self._untell(key, queue_id)

    def _after_reset(self, key: str, queue_id: int, offset: int) -> bool:
        """Whether the commit counts though the queue was reset lately."""
        told = self._told[key].get(queue_id)
        if told is None:
            return True
        if offset != told.offset and self._clock.monotonic() < told.until_s:
            return not told.alone
        self._untell(key, queue_id)
        if offset == told.offset and not told.alone:
            self.table.setdefault(key, {})[queue_id] = offset
        return True

    def _untell(self, key: str, queue_id: int) -> None:
        del self._told[key][queue_id]
        if not self._told[key]:
            del self._told[key]

    def clone(self, source: str, target: str, topic: str) -> None:
        """Gives `target` the offsets of `source`."""
        queues = self.table.get(topic + SEPARATOR + source)
        if queues is not None:
            self.table[topic + SEPARATOR + target] = dict(queues)
            self._changed()

    def topics_by_group(self) -> dict[str, list[str]]:
        """Topics for which each group has offsets: `topics_of` of all, in one walk."""
        found: dict[str, list[str]] = {}
        for topic, group in sorted(set(self._keys())):
            found.setdefault(group, []).append(topic)
        return found

    def topics_of(self, group: str) -> list[str]:
        """Topics for which the group has offsets."""
        return sorted({topic for topic, owner in self._keys() if owner == group})

    def groups_of(self, topic: str) -> list[str]:
        """Groups with offsets for the topic."""
        return sorted({owner for name, owner in self._keys() if name == topic})

    def forget_group(self, group: str) -> None:
        """Drops everything about a group."""
        for key in [key for key in self._all_keys() if key.partition(SEPARATOR)[2] == group]:
            self._forget(key)
        self._changed()
        self._on_reset(group)

    def forget_topic(self, topic: str) -> None:
        """Drops everything about a topic."""
        groups = set()
        for key in [key for key in self._all_keys() if key.partition(SEPARATOR)[0] == topic]:
            self._forget(key)
            groups.add(key.partition(SEPARATOR)[2])
        self._changed()
        for group in groups:
            self._on_reset(group)

    def _all_keys(self) -> set[str]:
        return {*self.table, *self.resets, *self._told}

    def _forget(self, key: str) -> None:
        self.table.pop(key, None)
        self.resets.pop(key, None)
        self._told.pop(key, None)

    async def save(self) -> None:
        """Writes the file if anything changed. Raises OSError, and tries again the next time."""
        if not self.dirty:
            return
        self.dirty = False
        try:
            await self.file.save()
        except BaseException:  # also when who asked was cancelled: the stop saves again what may not be on the disk
            self.dirty = True
            raise

    def _keys(self) -> Iterator[tuple[str, str]]:
        for key in self.table:
            topic, _, group = key.partition(SEPARATOR)
            yield topic, group

    def _changed(self) -> None:
        self.dirty = True
        self.counters["commits"] += 1
        if self.counters["commits"] % VERSION_STEP == 0:
            self.version.advance()

    def _to_json(self) -> bytes:
        return fastjson.dumps_table(self.to_dict(), pretty=True, bare_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """The file's content; also what GET_ALL_CONSUMER_OFFSET answers."""
        if not self._light:
            return {"dataVersion": self.version.to_json(), "offsetTable": self.table}
        light = {key for key in self.table if is_light(key.partition(SEPARATOR)[2])}
        return {
            "dataVersion": self.version.to_json(),
            "lmqOffsetTable": {key: self.table[key].get(0, 0) for key in light},
            "offsetTable": {key: queues for key, queues in self.table.items() if key not in light},
        }
