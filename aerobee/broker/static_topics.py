"""Static topics: queues whose numbers and offsets stay when they move from one broker to another.

    logical queue 3 ─ gen 0 ─ broker-a, queue 1   logical offsets      0 …     (physical 0 …)
                    ─ gen 1 ─ broker-b, queue 0   logical offsets 10 000 …     the leader: messages are sent here

A tool (`mqadmin updateStaticTopic`, `remappingStaticTopic`) says who has which stretch, and tells every broker that has
one. Clients ask the leader for everything, in logical numbers; the leader asks who has the stretch for what is older. A
new leader's stretch begins at an offset that is not decided (-1) until the former one has stopped taking messages: so
long its own messages have no logical offset and nobody is given them.

Kept as Apache's `topicQueueMapping.json`. `handlers/static_topics.py` translates the requests.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from aerobee.broker.config_file import ConfigFile
from aerobee.broker.data_version import DataVersion
from aerobee.errors import MalformedRequest, ServerError, error_for
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.route import LogicQueueMappingItem, TopicQueueMappingDetail, TopicQueueMappingInfo
from aerobee.protocol.bodies.topics import TopicQueueMappingSerializeWrapper
from aerobee.protocol.codes import ResponseCode

_log = logging.getLogger("aerobee.broker.topics")

UNDECIDED: Final = -1
QUEUES_MAX: Final = 1 << 16
"""Logical queues of a topic: every client lists them all."""
QUEUE_ID_MAX: Final = (1 << 31) - 1
OFFSET_MAX: Final = 1 << 62
"""Where a stretch may begin or end: what follows stays a Java long, as a logical offset and as one of a queue."""

Items = Sequence[LogicQueueMappingItem]
Bounds = Callable[[str, LogicQueueMappingItem], Awaitable[tuple[int, int] | None]]
"""First and next offset in a stretch's queue; None: whoever has it does not say."""


class StaticTopics:
    """The mappings this broker was told; see the head of this file. `on_change` hears of each topic that changed."""

    def __init__(
        self, broker_name: str, config_dir: Path, *, on_change: Callable[[str], None] = lambda topic: None
    ) -> None:
        self.file = ConfigFile(config_dir / "topicQueueMapping.json", self._to_json)
        self.version = DataVersion()
        self.table: dict[str, TopicQueueMappingDetail] = {}
        self._broker_name = broker_name
        self._on_change = on_change

    def load(self) -> None:
        """Reads the file, if there is one. Raises OSError, MalformedRequest."""
        data = self.file.load()
        if data:
            with self.file.reading():
                kept = TopicQueueMappingSerializeWrapper.from_dict(data).topic_queue_mapping_info_map
                for detail in kept.values():
                    if (problem := _impossible_number(detail)) is not None:
                        raise MalformedRequest(problem)
                self.table = kept
                self.version = DataVersion.from_json(data.get("dataVersion"))

    def get(self, topic: str) -> TopicQueueMappingDetail | None:
        """The topic's mapping; None: it is not static."""
        return self.table.get(topic)

    async def put(self, detail: TopicQueueMappingDetail, *, force: bool) -> None:
        """Takes a mapping; on the disk when it returns.

        Raises ServerError SYSTEM_ERROR for one that cannot be, or that contradicts what is known; `force` takes it all
        the same. Stretches that are known and not mentioned stay.
        """
        if detail.bname != self._broker_name:
            raise _refused(f"The mapping is for broker {detail.bname}, this is {self._broker_name}")
        for number, items in detail.hosted_queues.items():
            _check_items(items)
            if number >= detail.total_queues >= 0:
                raise _refused(f"there is no logical queue {number}, totalQueues is {detail.total_queues}")
        if (problem := _impossible_number(detail)) is not None:
            raise _refused(problem)
        known = self.table.get(detail.topic)
        if known is not None and not force:
            _check_change(known, detail)
        if known is not None:
            detail.hosted_queues = {**known.hosted_queues, **detail.hosted_queues}
        self.table[detail.topic] = detail
        await self._changed(detail.topic)

    async def delete(self, topic: str) -> None:
        """The topic was deleted."""
        if self.table.pop(topic, None) is not None:
            await self._changed(topic)

    async def forget_empty(self, bounds: Bounds) -> None:
        """Takes out the first stretch of each queue led here once retention has left nothing of it."""
        for topic, detail in list(self.table.items()):
            kept = dict(detail.hosted_queues)
            for number, items in detail.hosted_queues.items():
                if len(items) < 2 or items[-1].bname != self._broker_name or items[1].logic_offset < 0:
                    continue
                found = await bounds(topic, items[0])
                if found is not None and found[0] == found[1]:
                    kept[number] = items[1:]
                    _log.info("nothing is left of stretch %d of %s queue %d", items[0].gen, topic, number)
            if kept != detail.hosted_queues and self.table.get(topic) is detail:
                self.table[topic] = msgspec.structs.replace(detail, hosted_queues=kept)
                await self._changed(topic)

    async def _changed(self, topic: str) -> None:
        self.version.advance()
        self._on_change(topic)
        await self.file.save()

    # What others are told.

    def infos(self, topics: Iterable[str] | None = None) -> dict[str, TopicQueueMappingInfo]:
        """What name servers are told: which logical queues are led here, and as which queues; of some topics or all."""
        names = self.table if topics is None else [topic for topic in topics if topic in self.table]
        return {topic: self._info(self.table[topic]) for topic in names}

    def to_dict(self, topics: Iterable[str] | None = None) -> dict[str, Any]:
        """What replicas and tools are told, topic → mapping; of some topics or all."""
        names = self.table if topics is None else [topic for topic in topics if topic in self.table]
        return {topic: self.table[topic].to_dict() for topic in sorted(names)}

    @staticmethod
    def _info(detail: TopicQueueMappingDetail) -> TopicQueueMappingInfo:
        return TopicQueueMappingInfo(
            topic=detail.topic,
            scope=detail.scope,
            total_queues=detail.total_queues,
            bname=detail.bname,
            epoch=detail.epoch,
            dirty=detail.dirty,
            curr_id_map={
                number: items[-1].queue_id
                for number, items in detail.hosted_queues.items()
                if items and items[-1].bname == detail.bname
            },
        )

    def _to_json(self) -> bytes:
        tree = {"dataVersion": self.version.to_json(), "topicQueueMappingInfoMap": self.to_dict()}
        return fastjson.dumps(tree, pretty=True, bare_keys=True)


# Offsets. A stretch begins at `logic_offset`, which is its queue's `start_offset`, and ends before `end_offset`, if
# that is known.


def to_logical(item: LogicQueueMappingItem, offset: int) -> int:
    """A logical offset for one of the stretch's queue; -1 while that is not decided."""
    if item.logic_offset < 0:
        return UNDECIDED
    if has_end(item):
        offset = min(offset, item.end_offset)
    return item.logic_offset + max(0, offset - item.start_offset)


def to_physical(item: LogicQueueMappingItem, offset: int) -> int:
    """The offset in the stretch's queue."""
    return offset - item.logic_offset + item.start_offset


def has_end(item: LogicQueueMappingItem) -> bool:
    """It is known where the stretch ends."""
    return item.end_offset > item.start_offset


def led_queues(detail: TopicQueueMappingDetail) -> list[tuple[int, int, int, int]]:
    """The queues led here whose messages get a logical offset at once: (logical queue, queue, and where the stretch
    begins as a logical offset and as one of its queue)."""
    return [
        (number, items[-1].queue_id, items[-1].logic_offset, items[-1].start_offset)
        for number, items in detail.hosted_queues.items()
        if items and items[-1].bname == detail.bname and items[-1].logic_offset >= 0 and not has_end(items[-1])
    ]


def find(items: Items, offset: int) -> LogicQueueMappingItem | None:
    """The stretch that a logical offset lies in; the first for one before all; None: none is decided."""
    decided = [item for item in items if item.logic_offset >= 0]
    return next((item for item in reversed(decided) if offset >= item.logic_offset), decided[0] if decided else None)


def following(items: Items, item: LogicQueueMappingItem) -> LogicQueueMappingItem | None:
    """The stretch behind this one; None: there is none, or it is not decided where it begins."""
    after = next((other for other in items if other.gen > item.gen), None)
    return after if after is not None and after.logic_offset >= 0 else None


# What a mapping must be. The sentences are Apache's: tools show them.


def _refused(sentence: str) -> ServerError:
    return error_for(ResponseCode.SYSTEM_ERROR, sentence)


def _impossible_number(detail: TopicQueueMappingDetail) -> str | None:
    """What is wrong with a number of the mapping that no queue or offset can have; such a mapping stops a start."""
    numbers = [("totalQueues", detail.total_queues, 0, QUEUES_MAX)]
    for number, items in detail.hosted_queues.items():
        numbers.append(("logical queue", number, 0, QUEUES_MAX - 1))
        for item in items:
            numbers += [
                ("queueId", item.queue_id, 0, QUEUE_ID_MAX),
                ("gen", item.gen, 0, QUEUE_ID_MAX),
                ("logicOffset", item.logic_offset, UNDECIDED, OFFSET_MAX),
                ("startOffset", item.start_offset, 0, OFFSET_MAX),
                ("endOffset", item.end_offset, -1, OFFSET_MAX),
            ]
    for name, value, low, high in numbers:
        if not low <= value <= high:
            return f"static topic {detail.topic}: {name} must be {low} to {high}, not {value}"
    return None


def _check_items(items: Items) -> None:
    later: LogicQueueMappingItem | None = None
    for item in reversed(items):
        if item.start_offset < 0 or item.gen < 0 or item.queue_id < 0:
            raise _refused("The field is illegal, should not be negative")
        if item is not items[-1] and item.logic_offset < 0:
            raise _refused("The non-latest item has negative logic offset")
        if item.end_offset != -1 and item.end_offset < item.start_offset:
            raise _refused("The endOffset is smaller than the start offset")
        if later is not None:
            if item.gen >= later.gen:
                raise _refused("The gen does not increase monotonically")
            if later.logic_offset != UNDECIDED:
                if item.logic_offset >= later.logic_offset:
                    raise _refused("The base logic offset does not increase monotonically")
                if has_end(item) and to_logical(item, item.end_offset) >= later.logic_offset:
                    raise _refused("The max logic offset does not increase monotonically")
        later = item


def _check_change(known: TopicQueueMappingDetail, new: TopicQueueMappingDetail) -> None:
    if new.epoch < known.epoch:
        raise _refused(f"Can't accept data with small epoch {new.epoch} < {known.epoch}")
    if new.scope != known.scope:
        raise _refused(f"Can't accept data with unmatched scope {new.scope} != {known.scope}")
    for number, old_items in known.hosted_queues.items():
        new_items = new.hosted_queues.get(number)
        if new_items is None:
            if new.epoch == known.epoch:
                raise _refused("Cannot accept equal epoch with null data")
            continue
        if not old_items:
            continue
        if not new_items:
            raise _refused("The new item list is null or empty")
        by_gen = {item.gen: item for item in new_items}
        for old in old_items:
            item = by_gen.get(old.gen)
            if item is not None and not _continues(old, item):
                raise _refused(f"The stretch {old.gen} of queue {number} cannot change")
        if new.epoch == known.epoch and not _continues(old_items[-1], new_items[-1]):
            raise _refused("The new leader is different but epoch equal")


def _continues(old: LogicQueueMappingItem, new: LogicQueueMappingItem) -> bool:
    """The same stretch, of which more may be known."""
    same = (old.gen, old.bname, old.queue_id, old.start_offset) == (new.gen, new.bname, new.queue_id, new.start_offset)
    return same and old.logic_offset in (UNDECIDED, new.logic_offset)
