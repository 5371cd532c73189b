"""Message types of topics, checked when the broker is told to: by a broker with real sockets, both ways of sending."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aerobee.broker.server import Broker
from aerobee.protocol.codes import RequestCode, ResponseCode
from tests.unit.test_broker_server import Peer, small

PROPERTIES = {
    "NORMAL": "k\x01v\x02",
    "FIFO": "__SHARDINGKEY\x01a\x02",
    "DELAY": "DELAY\x011\x02",
    "TRANSACTION": "TRAN_MSG\x01true\x02PGROUP\x01p\x02",
    "PRIORITY": "_SYS_MSG_PRIORITY_\x013\x02",
}


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    started = Broker(small(tmp_path, enable_topic_message_type_check=True, enable_mixed_message_type=True))
    await started.start()
    yield started
    await started.stop()


@pytest.fixture
async def peer(broker: Broker) -> AsyncIterator[Peer]:
    client = Peer(broker.address)
    yield client
    await client.pool.close()


async def _make(peer: Peer, topic: str, kind: str | None) -> None:
    made = await peer.call(
        RequestCode.UPDATE_AND_CREATE_TOPIC, topic=topic, defaultTopic="TBW102", readQueueNums=4, writeQueueNums=4,
        perm=6, topicFilterType="SINGLE_TAG", topicSysFlag=0, order=False,
        attributes=f"+message.type={kind}" if kind else "",
    )  # fmt: skip
    assert made.code == 0, made.remark


@pytest.mark.parametrize("kind", [None, "NORMAL", "FIFO", "DELAY", "TRANSACTION", "PRIORITY", "MIXED", "UNSPECIFIED"])
async def test_a_topic_takes_its_own_type_and_refuses_every_other(broker: Broker, peer: Peer, kind: str | None) -> None:
    # Claim: what a topic takes is what its attribute says, whether the engine or policy serves the send, and the
    # refusal names both types. Nothing refused is stored.
    await _make(peer, "t", kind)
    for sent, properties in PROPERTIES.items():
        before = broker.store.stats()["max_position"]
        reply = await peer.send("t", properties=properties)
        if kind == "MIXED" or sent == (kind or "NORMAL"):
            assert reply.code == 0, (kind, sent, reply.remark)
            continue
        assert reply.code == ResponseCode.MESSAGE_ILLEGAL
        assert reply.remark == (
            f"TopicMessageType validate failed, the expected type is {kind or 'NORMAL'}, but actual type is {sent}"
        )
        assert broker.store.stats()["max_position"] == before


@pytest.mark.parametrize(
    ("priority", "queue"),
    [("1", "1"), ("9", "3"), ("01", "1"), ("-1", "2"), ("x", "2"), ("²", "2"), ("2147483648", "2"), ("9" * 5000, "2")],
)
async def test_a_priority_that_is_none_leaves_the_queue_to_the_sender(
    broker: Broker, peer: Peer, priority: str, queue: str
) -> None:
    # Claim: what Java reads as no int is no priority; the message is stored where it was sent.
    await _make(peer, "t", "PRIORITY")
    reply = await peer.send("t", queue=2, properties=f"_SYS_MSG_PRIORITY_\x01{priority}\x02")
    assert (reply.code, reply.ext_fields.get("queueId")) == (0, queue), reply.remark


async def test_one_message_of_another_type_refuses_its_batch(broker: Broker, peer: Peer) -> None:
    await _make(peer, "t", "FIFO")

    def batch(*properties: str) -> bytes:
        parts = []
        for text in properties:
            data = text.encode()
            inner = struct.pack(">iiii", 0, 0, 0, 1) + b"x" + struct.pack(">h", len(data)) + data
            parts.append(struct.pack(">i", len(inner) + 4) + inner)
        return b"".join(parts)

    refused = await peer.send("t", batch(PROPERTIES["FIFO"], PROPERTIES["NORMAL"]), m="true")
    assert refused.code == ResponseCode.MESSAGE_ILLEGAL and "actual type is NORMAL" in (refused.remark or "")
    assert broker.store.bounds("t", 0) == (0, 0)
    taken = await peer.send("t", batch(PROPERTIES["FIFO"], PROPERTIES["FIFO"]), m="true")
    assert taken.code == 0 and broker.store.bounds("t", 0) == (0, 2)


async def test_the_check_is_switched_while_the_broker_runs(broker: Broker, peer: Peer) -> None:
    await _make(peer, "t", "FIFO")
    for on, code in (("false", 0), ("true", ResponseCode.MESSAGE_ILLEGAL)):
        changed = await peer.call(RequestCode.UPDATE_BROKER_CONFIG, f"enableTopicMessageTypeCheck={on}\n".encode())
        assert changed.code == 0
        assert (await peer.send("t")).code == code


async def test_without_the_setting_nothing_is_checked(tmp_path: Path) -> None:
    started = Broker(small(tmp_path))
    await started.start()
    client = Peer(started.address)
    try:
        await _make(client, "t", "FIFO")
        for properties in PROPERTIES.values():
            assert (await client.send("t", properties=properties)).code == 0
    finally:
        await client.pool.close()
        await started.stop()


async def test_what_the_topic_allows_stays_with_the_engine(broker: Broker, peer: Peer) -> None:
    # Claim: the check costs the sends that pass it nothing: they are served as fast as without.
    await _make(peer, "t", "FIFO")
    assert (await peer.send("t", properties=PROPERTIES["FIFO"])).code == 0
    assert broker.dispatcher.counters[RequestCode.SEND_MESSAGE_V2] == 0
