# ruff: noqa: RUF012 - msgspec gives each object its own copy of an empty default
"""How far groups are."""

from __future__ import annotations

from datetime import UTC, datetime

from aerobee.protocol.bodies import Body
from aerobee.protocol.bodies.topics import DataVersion
from aerobee.protocol.fastjson import MessageQueue


class ConsumerOffsetSerializeWrapper(Body):
    """A broker's offsets by `topic@group`: the file `consumerOffset.json`, GET_ALL_CONSUMER_OFFSET's answer."""

    offset_table: dict[str, dict[int, int]] = {}
    data_version: DataVersion | None = None


class OffsetWrapper(Body):
    """A group's offsets in one queue. `last_timestamp`: when the last consumed message was stored, ms."""

    broker_offset: int = 0
    consumer_offset: int = 0
    pull_offset: int = 0
    last_timestamp: int = 0


class ConsumeStats(Body):
    """GET_CONSUME_STATS's answer."""

    offset_table: dict[MessageQueue, OffsetWrapper] = {}
    consume_tps: float = 0.0


class ConsumeStatsList(Body):
    """GET_BROKER_CONSUME_STATS's answer: group → its topics' statistics."""

    consume_stats_list: list[dict[str, list[ConsumeStats]]] = []
    broker_addr: str | None = None
    total_diff: int = 0
    total_inflight_diff: int = 0


class RollbackStats(Body):
    """What resetting one queue's offset did."""

    broker_name: str | None = None
    queue_id: int = 0
    broker_offset: int = 0
    consumer_offset: int = 0
    timestamp_offset: int = 0
    rollback_offset: int = 0


class QueueTimeSpan(Body):
    """Store times of a queue's first, last and next consumed message, in ms; `delay_time` is how old the latter is."""

    message_queue: MessageQueue | None = None
    min_time_stamp: int = 0
    max_time_stamp: int = 0
    consume_time_stamp: int = 0
    delay_time: int = 0
    min_time_stamp_str: str | None = None
    max_time_stamp_str: str | None = None
    consume_time_stamp_str: str | None = None

    def __post_init__(self) -> None:
        for name in ("min_time_stamp", "max_time_stamp", "consume_time_stamp"):
            if getattr(self, name + "_str") is None:
                setattr(self, name + "_str", _text(getattr(self, name)))


def _text(ms: int) -> str:
    """`1970-01-01#00:00:00:009`, as Java adds it for people."""
    try:
        when = datetime.fromtimestamp(ms // 1000, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return ""
    return f"{when:%Y-%m-%d#%H:%M:%S}:{ms % 1000:03d}"


class QueryConsumeTimeSpanBody(Body):
    """QUERY_CONSUME_TIME_SPAN's answer."""

    consume_time_span_set: list[QueueTimeSpan] = []


class QueryCorrectionOffsetBody(Body):
    """QUERY_CORRECTION_OFFSET's answer."""

    correction_offsets: dict[int, int] = {}
