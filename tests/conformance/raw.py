"""Bare requests to a broker: records as they lie in the log, byte by byte, and what no official client sends."""

from __future__ import annotations

import itertools
import json
import struct
import time
from collections.abc import Mapping
from typing import Any

import apache

ONEWAY = 2


class Connection:
    """One that stays: requests whose replies come later or never, and what the broker sends by itself."""

    def __init__(self, broker: str, timeout_s: float = 10.0) -> None:
        self._sock = apache.dial(broker, timeout_s)
        self._opaques = itertools.count(1)
        self._replies: dict[int, tuple[dict[str, Any], bytes]] = {}
        """That nobody has asked for yet."""
        self.requests: list[tuple[dict[str, Any], bytes]] = []
        """What the broker asked or told, as it came."""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, code: int, fields: Mapping[str, str] | None = None, body: bytes = b"", *, flag: int = 0) -> int:
        """Sends a request; the number of its reply."""
        opaque = next(self._opaques)
        self._sock.sendall(apache.frame(code, fields, body, opaque=opaque, flag=flag))
        return opaque

    def reply(self, opaque: int) -> tuple[dict[str, Any], bytes]:
        """Waits for a reply. Raises OSError when it does not come, or the connection ends."""
        while opaque not in self._replies:
            self._take()
        return self._replies.pop(opaque)

    def _take(self) -> None:
        header, body = apache.read_frame(self._sock)
        if header["flag"] & 1:
            self._replies[header["opaque"]] = header, body
        else:
            self.requests.append((header, body))

    def request(self) -> tuple[dict[str, Any], bytes]:
        """Waits for what the broker asks next."""
        while not self.requests:
            self._take()
        return self.requests.pop(0)

    def silent(self) -> bool:
        """Nothing has come but what was asked for."""
        return not self._replies and not self.requests

    def answer(self, request: Mapping[str, Any], code: int = 0) -> None:
        """Answers what the broker has asked."""
        self._sock.sendall(apache.frame(code, opaque=request["opaque"], flag=1))

    def call(
        self, code: int, fields: Mapping[str, str] | None = None, body: bytes = b""
    ) -> tuple[dict[str, Any], bytes]:
        """A request and its reply."""
        return self.reply(self.send(code, fields, body))

    def heartbeat(
        self, client_id: str, *, producer: str = "", consumer: str = "", version: int = 1, **subscriptions: str
    ) -> None:
        """Makes this connection a member of groups. `subscriptions`: topic → SQL92, a tag of one letter, or "*"."""
        data: dict[str, Any] = {"clientID": client_id, "producerDataSet": [], "consumerDataSet": []}
        if producer:
            data["producerDataSet"] = [{"groupName": producer}]
        if consumer:
            wanted = [
                {"topic": topic, "subString": text, "expressionType": "TAG" if len(text) == 1 else "SQL92"}
                | {"classFilterMode": False, "subVersion": version}
                | {"codeSet": [ord(tag) for tag in tags], "tagsSet": tags}
                for topic, text in subscriptions.items()
                for tags in [[text] if len(text) == 1 and text != "*" else []]
            ]
            member = {"groupName": consumer, "consumeType": "CONSUME_PASSIVELY", "messageModel": "CLUSTERING"}
            member |= {"consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET", "unitMode": False}
            data["consumerDataSet"] = [{**member, "subscriptionDataSet": wanted}]
        header, _ = self.call(34, body=json.dumps(data).encode())
        assert header["code"] == 0, header


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
    fields = send_fields(topic, properties, group=group, queue=queue, sys_flag=sys_flag, born_ms=born_ms)
    return apache.call(broker, 310, fields, body)[0]


def send_fields(
    topic: str,
    properties: dict[str, str],
    *,
    group: str = "raw",
    queue: int = 0,
    sys_flag: int = 0,
    born_ms: int | None = None,
    batch: bool = False,
) -> dict[str, str]:
    """The header of SEND_MESSAGE_V2, SEND_BATCH_MESSAGE and SEND_REPLY_MESSAGE_V2."""
    text = "".join(f"{name}\x01{value}\x02" for name, value in properties.items())
    born = str(int(time.time() * 1000) if born_ms is None else born_ms)
    fields = {"a": group, "b": topic, "c": "TBW102", "d": "1", "e": str(queue), "f": str(sys_flag), "g": born, "h": "7"}
    return fields | {"i": text, "j": "0", "k": "false", "l": "16", "m": "true" if batch else "false"}


def batch(*messages: tuple[bytes, dict[str, str]], flag: int = 7) -> bytes:
    """The body of a batch: each message's body and properties."""
    data = b""
    for body, properties in messages:
        text = "".join(f"{name}\x01{value}\x02" for name, value in properties.items()).encode()
        size = 22 + len(body) + len(text)
        data += struct.pack(">iiiii", size, 0, 0, flag, len(body)) + body + struct.pack(">h", len(text)) + text
    return data
