"""What official clients and Apache's servers really said is understood whole, and said again with the same bytes.

Every frame goes through the decoder whole, byte by byte, and with bytes of the next one left over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aerobee.protocol import fastjson
from aerobee.protocol.bodies import Body
from aerobee.protocol.bodies.admin import BrokerStatsData, KVTable, QueryConsumeQueueResponseBody
from aerobee.protocol.bodies.client import (
    ConsumerConnection,
    ConsumerRunningInfo,
    GetConsumerListByGroupResponseBody,
    HeartbeatData,
    LockBatchRequestBody,
    LockBatchResponseBody,
)
from aerobee.protocol.bodies.groups import GroupList, SubscriptionGroupConfig, SubscriptionGroupWrapper
from aerobee.protocol.bodies.offsets import ConsumeStats
from aerobee.protocol.bodies.route import ClusterInfo, TopicList, TopicRouteData
from aerobee.protocol.bodies.topics import RegisterBrokerBody, TopicConfigSerializeWrapper, TopicStatsTable
from aerobee.protocol.codes import ROWS, RequestCode
from aerobee.protocol.command import FrameDecoder, RemotingCommand
from aerobee.protocol.message import decode_batch, decode_records, parse_properties

RECORDINGS = Path(__file__).parent / "recordings"
FILES = sorted(RECORDINGS.glob("*.jsonl"))
OTHERS = ("go_", "node_")
"""Recordings of clients that order fields in their own way, and leave others out."""

REQUEST_BODIES: dict[int, type[Body]] = {
    RequestCode.HEART_BEAT: HeartbeatData,
    RequestCode.LOCK_BATCH_MQ: LockBatchRequestBody,
    RequestCode.UNLOCK_BATCH_MQ: LockBatchRequestBody,
    RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP: SubscriptionGroupConfig,
    RequestCode.REGISTER_BROKER: RegisterBrokerBody,
}
REPLY_BODIES: dict[int, type[Body]] = {
    RequestCode.GET_ROUTEINFO_BY_TOPIC: TopicRouteData,
    RequestCode.GET_BROKER_CLUSTER_INFO: ClusterInfo,
    RequestCode.GET_BROKER_RUNTIME_INFO: KVTable,
    RequestCode.GET_KVLIST_BY_NAMESPACE: KVTable,
    RequestCode.REGISTER_BROKER: KVTable,
    RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER: TopicList,
    RequestCode.GET_TOPIC_STATS_INFO: TopicStatsTable,
    RequestCode.GET_CONSUME_STATS: ConsumeStats,
    RequestCode.GET_CONSUMER_CONNECTION_LIST: ConsumerConnection,
    RequestCode.GET_CONSUMER_LIST_BY_GROUP: GetConsumerListByGroupResponseBody,
    RequestCode.GET_CONSUMER_RUNNING_INFO: ConsumerRunningInfo,
    RequestCode.GET_ALL_TOPIC_CONFIG: TopicConfigSerializeWrapper,
    RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG: SubscriptionGroupWrapper,
    RequestCode.LOCK_BATCH_MQ: LockBatchResponseBody,
    RequestCode.QUERY_TOPIC_CONSUME_BY_WHO: GroupList,
    RequestCode.QUERY_CONSUME_QUEUE: QueryConsumeQueueResponseBody,
    RequestCode.VIEW_BROKER_STATS_DATA: BrokerStatsData,
}
RECORDS = (
    RequestCode.PULL_MESSAGE,
    RequestCode.LITE_PULL_MESSAGE,
    RequestCode.QUERY_MESSAGE,
    RequestCode.VIEW_MESSAGE_BY_ID,
)


def _frames(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _spoken(path: Path) -> Iterator[tuple[RemotingCommand, RemotingCommand | None]]:
    """Requests with their answers; None for those that got none."""
    replies = {}
    for frame in _frames(path):
        if frame["reply"]:
            replies[frame["link"], frame["from"], frame["opaque"]] = _decode(frame)
    for frame in _frames(path):
        if not frame["reply"]:
            other = "server" if frame["from"] == "client" else "client"
            yield _decode(frame), replies.get((frame["link"], other, frame["opaque"]))


def _decode(frame: dict[str, Any]) -> RemotingCommand:
    (command,) = FrameDecoder().feed(bytes.fromhex(frame["hex"]))
    return command


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


def test_frames_are_cut_the_same_however_they_arrive(path: Path) -> None:
    frames = [bytes.fromhex(frame["hex"]) for frame in _frames(path)]
    whole = FrameDecoder()
    expected = [command for frame in frames for command in whole.feed(frame)]
    assert len(expected) == len(frames)

    stream = b"".join(frames)
    drop_by_drop = FrameDecoder()
    got = [command for at in range(len(stream)) for command in drop_by_drop.feed(stream[at : at + 1])]
    assert got == expected
    assert drop_by_drop.kept_bytes == 0

    for size in (7, 1000, len(frames[0]) + 3):
        uneven = FrameDecoder()
        assert [c for at in range(0, len(stream), size) for c in uneven.feed(stream[at : at + size])] == expected

    left_over = FrameDecoder()
    assert left_over.feed(frames[0] + frames[-1][:-1]) == expected[:1]
    assert left_over.feed(frames[-1][-1:]) == expected[-1:]


def test_commands_are_written_with_the_same_bytes(path: Path) -> None:
    for frame in _frames(path):
        if path.stem.startswith(OTHERS) and frame["from"] == "client":  # the same meaning, in our order
            assert FrameDecoder().feed(_decode(frame).encode()) == [_decode(frame)]
            continue
        data = bytes.fromhex(frame["hex"])
        header_length = int.from_bytes(data[5:8], "big")
        header, body = data[8 : 8 + header_length], data[8 + header_length :]
        if data[4] == 0:
            # Java names a header class without fields this way; nobody can tell the difference.
            header = header.replace(b'"extFields":{},', b"")
        again = (4 + len(header) + len(body)).to_bytes(4, "big") + data[4:5] + len(header).to_bytes(3, "big")
        assert _decode(frame).encode() == again + header + body


def test_headers_are_understood(path: Path) -> None:
    for request, reply in _spoken(path):
        row = ROWS[request.code]
        if row.header is not None:
            written = request.header(row.header).to_fields()
            assert {
                key: written[key] for key in request.ext_fields if key in written
            }.items() <= request.ext_fields.items()
            known = set(row.header.__struct_encode_fields__)
            assert {key for key in request.ext_fields if key in known} <= written.keys()
        if reply is not None and reply.code == 0 and row.reply_header is not None and reply.ext_fields:
            written = reply.header(row.reply_header).to_fields()
            assert written.items() >= {k: v for k, v in reply.ext_fields.items() if k in written}.items()


def test_bodies_are_understood(path: Path) -> None:
    for request, reply in _spoken(path):
        kind = REQUEST_BODIES.get(request.code)
        if kind is RegisterBrokerBody and request.ext_fields.get("compressed") == "true":
            kind = None
            assert RegisterBrokerBody.decode(
                request.body, compressed=True
            ).topic_config_serialize_wrapper.topic_config_table
        if kind is not None and request.body:
            _same(kind, request.body, partly=path.stem.startswith(OTHERS))
        if reply is not None and reply.code == 0 and reply.body:
            kind = REPLY_BODIES.get(request.code)
            if kind is not None:
                _same(kind, reply.body)
            if request.code in RECORDS:
                _records(reply.body, marked=not path.stem.startswith(OTHERS))
        if request.code == RequestCode.SEND_BATCH_MESSAGE:
            messages = decode_batch(request.body)
            marked = ["UNIQ_KEY" in parse_properties(text) for _, _, text in messages]
            assert messages and (all(marked) or path.stem.startswith(OTHERS))


def _same(kind: type[Body], data: bytes, *, partly: bool = False) -> None:
    theirs = fastjson.loads(data)
    ours = fastjson.loads(kind.from_json(data).to_json())
    if partly:
        assert _within(theirs, ours) == ours, kind
        return
    for key, value in theirs.items():
        assert ours[key] == value, (kind, key)


def _within(part: Any, whole: Any) -> Any:
    """What the other side said, with what it left out as we have it."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return whole | {key: _within(value, whole.get(key)) for key, value in part.items()}
    if isinstance(part, list) and isinstance(whole, list) and len(part) == len(whole):
        return [_within(one, other) for one, other in zip(part, whole, strict=True)]
    return whole if part == str(whole) else part  # Go writes some numbers as strings


def _records(data: bytes, *, marked: bool) -> None:
    messages = decode_records(data, check_crc=True)
    assert sum(message.store_size for message in messages) == len(data)
    for message in messages:
        assert message.topic and (message.unique_id or not marked)  # messages in batches of Go's have none
