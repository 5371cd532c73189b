"""Which log files go: those over their time whose messages every group has consumed.

A file holds messages of all topics, so the group that is furthest behind decides. What counts as consumed is what a
later start would continue from: committed offsets of every group that has any, the delay levels' and the transactions'
own progress, and pops that are not acknowledged. A queue nobody ever committed an offset for holds nothing back, and
neither does a group called like a light queue.

Two settings delete what was not consumed, and only these: `deleteUnconsumedEnable` (when its time is over, as Apache
RocketMQ does) and `cleanFileForciblyEnable` (before its time, when the disk is nearly full).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aerobee.broker.offsets import SEPARATOR
from aerobee.broker.records import parse_record
from aerobee.broker.store import Store
from aerobee.broker.topics import HALF_TOPIC, SCHEDULE_TOPIC, TIMER_TOPIC, is_light

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

_log = logging.getLogger("aerobee.broker.store")

HOUR_MS: Final = 3_600_000
QUEUES_A_TURN: Final = 256
"""Queues looked at before others get their turn."""
LOST_AT_ONCE: Final = 1024
_UNIT: Final = struct.Struct(">qiq")

Holder = tuple[int, str, str, int]
"""Position of the first record not consumed; who has not consumed it, topic, queue id."""


def _progress(broker: Broker) -> Iterator[tuple[str, str, int, int]]:
    """Who has come how far: (who, topic, queue id, next offset to consume), in no order."""
    compacted = set(broker.topics.compacted())
    for key, queues in list(broker.offsets.table.items()):
        topic, _, group = key.partition(SEPARATOR)
        if topic in compacted:
            continue  # what it has to read is in a log of its own
        if is_light(group):
            continue  # made by nobody's decision and forgotten by nobody's: it would keep the log for ever
        for queue_id, offset in list(queues.items()):
            yield f"group {group}", topic, queue_id, offset
    for queue_id in broker.store.topics().get(SCHEDULE_TOPIC, []):
        yield "delayed delivery", SCHEDULE_TOPIC, queue_id, broker.delay.offsets.get(queue_id + 1, 0)
    yield "timed delivery", TIMER_TOPIC, 0, broker.timer.needed_offset()
    yield "the check of unfinished transactions", HALF_TOPIC, 0, broker.transactions.published
    for point in broker.pop.revive.points():
        offsets = point.offsets_left()
        if offsets:
            yield f"group {point.group} (popped, not acknowledged)", point.topic, point.queue_id, offsets[0]


async def furthest_behind(broker: Broker) -> Holder | None:
    """The oldest message that somebody has still to consume; None: everything is consumed."""
    store = broker.store
    found: Holder | None = None
    for number, (who, topic, queue_id, offset) in enumerate(_progress(broker), 1):
        if number % QUEUES_A_TURN == 0:
            await asyncio.sleep(0)
        low, high = store.bounds(topic, queue_id)
        offset = max(offset, low)
        if offset >= high:
            continue
        position = _first_position(store, topic, queue_id, offset)
        if position is not None and (found is None or position < found[0]):
            found = position, who, topic, queue_id
    return found


def _first_position(store: Store, topic: str, queue_id: int, offset: int) -> int | None:
    """Where the first message from this offset on lies that is not lost; None: there is none."""
    units = store.entries(topic, queue_id, offset, 1)
    while units:
        for position, _, _ in _UNIT.iter_unpack(units):
            if position >= 0:
                return int(position)
        offset += len(units) // _UNIT.size
        units = store.entries(topic, queue_id, offset, LOST_AT_ONCE)
    return None


def used(path: Path) -> float:
    """How much of the disk with this directory is used, as df says it: what is reserved for root is not room."""
    usage = shutil.disk_usage(path)
    return usage.used / (usage.used + usage.free)


async def clean(broker: Broker, *, now: bool = False) -> dict[str, int]:
    """Deletes files that may go, at the hours for it, when the disk fills up, or `now`.

    Returns the engine's report; empty when nothing was due.
    """
    options = broker.options
    percent = 100 * max(used(options.store_dir), used(options.log_dir))
    hours = {int(hour) for hour in options.delete_when.split(";")}
    full = percent > min(options.disk_max_used_space_ratio, options.disk_space_warning_level_ratio)
    forced = options.clean_file_forcibly_enable and percent > options.disk_space_clean_forcibly_ratio
    if not (now or full or forced or time.localtime(broker.clock.now_ms() / 1000).tm_hour in hours):
        return {}
    before_ms = broker.clock.now_ms() - (0 if forced else options.file_reserved_time * HOUR_MS)
    if not _is_due(broker, before_ms):
        return {}
    holder = None if forced or options.delete_unconsumed_enable else await furthest_behind(broker)
    report = await broker.store.clean(before_ms, None if holder is None else holder[0])
    if report["log_files"]:
        _log.info("deleted %d log files, the log begins at %d now", report["log_files"], report["min_position"])
        if options.enable_lmq:
            await _forget_light_queues(broker)
    if holder is not None and holder[0] < report["min_position"] + options.mapped_file_size_commit_log:
        if _is_due(broker, before_ms):
            _, who, topic, queue_id = holder
            broker.retention_complaints.warn(
                f"held by {who}",
                "log files are over their time but stay: %s has not consumed %s queue %d. "
                "Let it consume or skip (resetOffsetByTime), delete it with its offsets (deleteSubGroup -r true), "
                "or set deleteUnconsumedEnable=true",
                who,
                topic,
                queue_id,
            )
    return report


async def _forget_light_queues(broker: Broker) -> None:
    """Nobody makes light queues, so they go with their last message, and with them how far their groups were."""
    gone = 0
    for number, topic in enumerate(filter(is_light, broker.store.topics()), 1):
        if number % QUEUES_A_TURN == 0:
            await asyncio.sleep(0)
        low, high = broker.store.bounds(topic, 0)
        if 0 < low == high and broker.store.delete_empty_topic(topic):
            broker.offsets.forget_topic(topic)
            gone += 1
    if gone:
        _log.info("%d light queues without a message are forgotten", gone)


def _is_due(broker: Broker, before_ms: int) -> bool:
    """The oldest file's time is over: the next one begins with a message from before `before_ms`."""
    next_base = broker.store.stats()["min_position"] + broker.options.mapped_file_size_commit_log
    raw = broker.store.record(next_base)
    if raw is None:
        return broker.store.stats()["log_files"] > 1  # damaged, or of another size: the engine looks closer
    return parse_record(raw).store_timestamp < before_ms
