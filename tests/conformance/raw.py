"""Bare requests to a broker: records as they lie in the log, byte by byte, and sends that no official client makes."""

from __future__ import annotations

import time
from typing import Any

import apache


def bounds(broker: str, topic: str, queue: int) -> tuple[int, int]:
    """Smallest and next offset."""
    place = {"topic": topic, "queueId": str(queue)}
    low, high = (apache.call(broker, code, place)[0]["extFields"]["offset"] for code in (31, 30))
    return int(low), int(high)


def pull(broker: str, topic: str, queue: int) -> list[bytes]:
    """Every record of a queue."""
    offset, end = bounds(broker, topic, queue)
    records: list[bytes] = []
    while offset < end:
        fields = {"consumerGroup": "TOOLS_CONSUMER", "topic": topic, "queueId": str(queue), "queueOffset": str(offset)}
        fields |= {"maxMsgNums": "32", "sysFlag": "4", "commitOffset": "0", "suspendTimeoutMillis": "0"}
        fields |= {"subscription": "*", "subVersion": "0", "expressionType": "TAG"}
        header, body = apache.call(broker, 11, fields)
        assert header["code"] == 0, (topic, queue, offset, end, header)
        records += split(body)
        offset = int(header["extFields"]["nextBeginOffset"])
    return records


def query(broker: str, topic: str, key: str, kind: str) -> list[bytes]:
    """Records with a key (`kind` K) or a unique key (U), sorted."""
    fields = {"topic": topic, "key": key, "maxNum": "32", "beginTimestamp": "0", "endTimestamp": str(2**62)}
    fields |= {"indexType": kind}
    if kind == "U":
        fields["_UNIQUE_KEY_QUERY"] = "true"
    header, body = apache.call(broker, 12, fields)
    # By time of storing, then place: the order within an answer is the walk through the index, newest first.
    assert header["code"] in (0, 22), header
    return sorted(split(body))


def split(body: bytes) -> list[bytes]:
    records, at = [], 0
    while at < len(body):
        size = int.from_bytes(body[at : at + 4], "big")
        records.append(body[at : at + size])
        at += size
    return records


def send(
    broker: str,
    topic: str,
    body: bytes,
    properties: dict[str, str],
    *,
    group: str = "raw",
    queue: int = 0,
    sys_flag: int = 0,
    born_ms: int | None = None,
) -> dict[str, Any]:
    """SEND_MESSAGE_V2; the reply's header."""
    text = "".join(f"{name}\x01{value}\x02" for name, value in properties.items())
    born = str(int(time.time() * 1000) if born_ms is None else born_ms)
    fields = {"a": group, "b": topic, "c": "TBW102", "d": "1", "e": str(queue), "f": str(sys_flag), "g": born, "h": "7"}
    fields |= {"i": text, "j": "0", "k": "false", "l": "16", "m": "false"}
    return apache.call(broker, 310, fields, body)[0]
