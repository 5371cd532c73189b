"""Compaction topics at the broker: what may be sent, when it is compacted, what is remembered."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from aerobee.broker import retention
from aerobee.broker.options import BrokerOptions
from aerobee.broker.server import Broker
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.message import decode_records
from aerobee.testing.eventually import eventually
from tests.unit.test_broker_server import Peer, small

UNITS = 10
MADE = dict(
    readQueueNums=1,
    writeQueueNums=1,
    perm=6,
    order=False,
    defaultTopic="TBW102",
    topicSysFlag=0,
    topicFilterType="SINGLE_TAG",
)


def options(tmp_path: Path, **values: Any) -> BrokerOptions:
    small_files = {
        "compaction_mapped_file_size": 100 * UNITS * 46,
        "compaction_cq_mapped_file_size": UNITS * 46,
        "compaction_schedule_internal": 100,
    }
    return small(tmp_path, **{**small_files, **values})


async def create(peer: Peer, topic: str, attributes: str = "+cleanup.policy=COMPACTION") -> int:
    return int((await peer.call(RequestCode.UPDATE_AND_CREATE_TOPIC, topic=topic, **MADE, attributes=attributes)).code)


async def read(peer: Peer, topic: str) -> list[tuple[int, bytes]]:
    return [
        (record.queue_offset, record.body) for record in decode_records((await peer.pull(topic, maxMsgNums=100)).body)
    ]


async def test_only_the_newest_of_each_key_stays(tmp_path: Path) -> None:
    broker = Broker(options(tmp_path))
    await broker.start()
    peer = Peer(broker.address)
    assert await create(peer, "newest") == 0
    for number in range(30):
        reply = await peer.send("newest", b"%d" % number, properties=f"KEYS\x01k{number % 3}\x02")
        assert reply.ext_fields["queueOffset"] == str(number)
    expected = [(number, b"%d" % number) for number in range(24, 30)]
    await broker.store.flush()
    await eventually(lambda: broker.compaction.positions == {"newest_0": 26})
    assert await read(peer, "newest") == expected
    await peer.commit(3, oneway=False, topic="newest")
    assert await retention.furthest_behind(broker) is None, "a group that is behind keeps no log file"
    await peer.pool.close()
    await broker.stop()
    file = tmp_path / "store/compaction/position-checkpoint"
    assert json.loads(file.read_text()) == {"queueOffsetMap": {"newest_0": 26}}

    broker = Broker(options(tmp_path))
    await broker.start()
    peer = Peer(broker.address)
    assert broker.compaction.positions == {"newest_0": 26}
    assert await read(peer, "newest") == expected
    assert (await peer.call(RequestCode.DELETE_TOPIC_IN_BROKER, topic="newest")).code == 0
    assert broker.compaction.positions == {}
    assert list((tmp_path / "store/compaction/compactionLog").iterdir()) == []
    await peer.pool.close()
    await broker.stop()


async def test_no_other_message_is_sent_back(tmp_path: Path) -> None:
    # The position a consumer names is in the log as long as the message is there; later it only says where the copy is.
    broker = Broker(options(tmp_path))
    await broker.start()
    peer = Peer(broker.address)
    assert (await peer.send("orders", b"of somebody else")).code == 0
    assert await create(peer, "newest") == 0
    for number in range(20):
        await peer.send("newest", b"x", properties=f"KEYS\x01k{number}\x02UNIQ_KEY\x01U{number}\x02")
    await broker.store.flush()
    records = decode_records((await peer.pull("newest")).body)

    async def send_back(offset: int, unique: str) -> RemotingCommand:
        fields = dict(group="g", delayLevel=0, offset=offset, originMsgId=unique, originTopic="newest")
        return await peer.call(RequestCode.CONSUMER_SEND_MSG_BACK, **fields)

    assert (await send_back(records[3].commit_log_offset, "U3")).code == 0
    refused = await send_back(0, "U0")
    assert (refused.code, refused.remark) == (ResponseCode.SYSTEM_ERROR, "look message by offset failed, 0")
    await peer.pool.close()
    await broker.stop()


async def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    def inner(properties: bytes) -> bytes:
        return struct.pack(">iiiii", 23 + len(properties), 0, 0, 0, 1) + struct.pack(
            f">ch{len(properties)}s", b"x", len(properties), properties
        )

    broker = Broker(options(tmp_path))
    await broker.start()
    peer = Peer(broker.address)
    assert await create(peer, "newest") == 0
    for properties in ("", "KEYS\x01 \x02", "TAGS\x01a\x02"):
        reply = await peer.send("newest", b"x", properties=properties)
        assert (reply.code, reply.remark) == (ResponseCode.MESSAGE_ILLEGAL, "Required message key is missing")
    mixed = inner(b"KEYS\x01k\x02") + inner(b"TAGS\x01a\x02")
    assert (await peer.send("newest", mixed, m="true")).code == ResponseCode.MESSAGE_ILLEGAL
    assert (await peer.send("newest", inner(b"KEYS\x01k\x02") * 2, m="true")).code == 0
    assert [offset for offset, _ in await read(peer, "newest")] == [0, 1]
    assert await create(peer, "newest", "+cleanup.policy=DELETE") == ResponseCode.SYSTEM_ERROR
    both = "+cleanup.policy=COMPACTION,+queue.type=BatchCQ"
    assert await create(peer, "both", both) == ResponseCode.SYSTEM_ERROR
    await peer.pool.close()
    await broker.stop()


async def test_switched_off_such_topics_are_as_any_other(tmp_path: Path) -> None:
    broker = Broker(options(tmp_path, enable_compaction=False))
    await broker.start()
    peer = Peer(broker.address)
    assert await create(peer, "newest") == 0
    for number in range(30):
        assert (await peer.send("newest", b"%d" % number, properties="KEYS\x01k\x02")).code == 0
    await broker.store.flush()
    await broker.compaction.run()
    assert len(await read(peer, "newest")) == 30
    assert not (tmp_path / "store/compaction").exists()
    await peer.pool.close()
    await broker.stop()
