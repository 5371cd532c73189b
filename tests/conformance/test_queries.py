"""Looking for messages by key, unique key, tag, place and time: what is found, how many, and in which order."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import apache
import ours
import pytest
import raw
from official import Client, CommandFailed
from room import Room, eventually

from aerobee.broker.records import parse_record

pytestmark = pytest.mark.apache

QUERY_MESSAGE, VIEW_MESSAGE = 12, 33
QUERY_NOT_FOUND = 22
ODD_KEYS = ["ü-中-🚀", "a#b", "50%", "k=v", "/", "x" * 1000, "-1", "null"]


def query(broker: str, topic: str, key: str, **more: str) -> list[int]:
    """The "seq" of each record of the broker's bare answer, in its order."""
    fields = {"topic": topic, "key": key, "maxNum": "32", "beginTimestamp": "0", "endTimestamp": str(2**62), **more}
    header, body = apache.call(broker, QUERY_MESSAGE, fields)
    if header["code"] == QUERY_NOT_FOUND:
        assert header["remark"] == "can not find message, maybe time range not correct"
        return []
    assert header["code"] == 0 and int(header["extFields"]["indexLastUpdatePhyoffset"]) >= 0, header
    return [int(parse_record(data).properties["seq"]) for data in raw.split(body)]


def seqs(room: Room, key: str, **arguments: Any) -> list[int]:
    """The same as the official client gives them."""
    try:
        messages = room.do("query", key=key, **arguments)["messages"]
    except CommandFailed as error:
        assert "CODE: 208" in str(error), error
        return []
    return [int(message["properties"]["seq"]) for message in messages]


def test_by_key(room: Room) -> None:
    room.create(2)
    broker = room.cluster.broker_address
    room.produce(1, key_list=[" ".join(ODD_KEYS)])
    room.produce(80, key_list=["many"], tags=["TagA", "TagB"], **{"from": 100})
    room.produce(1, key_list=["twice twice"], **{"from": 200})
    (last,) = room.produce(1, key_list=["Aa"], **{"from": 201})["results"]
    room.produce(1, key_list=["BB"], **{"from": 202})
    eventually(lambda: seqs(room, "BB") == [202])

    for key in ODD_KEYS:
        assert seqs(room, key) == [0], key
    assert seqs(room, " ".join(ODD_KEYS[:2])) == [], "that is two keys"
    assert seqs(room, "Aa") == [201], "the other key with that hash is another"
    assert seqs(room, "many", max=5) == list(range(175, 180)), "the newest, oldest of them first"
    assert seqs(room, "many", max=1_000) == list(range(116, 180)), "never more than 64"
    assert seqs(room, "MANY") == []
    assert query(broker, room.topic, "many", maxNum="0") == []
    assert query(broker, "another_topic", "many") == []

    # By unique key as a key, and as what it is; a tag only as a tag.
    for index in ({}, {"indexType": "K"}, {"indexType": "U"}, {"_UNIQUE_KEY_QUERY": "true"}):
        assert query(broker, room.topic, last["msg_id"], **index) == [201], index
    assert query(broker, room.topic, "TagA", indexType="K") == []
    assert query(broker, room.topic, "TagA", indexType="T", maxNum="3") == [174, 176, 178]
    assert query(broker, room.topic, "many", indexType="T") == []
    assert query(broker, room.topic, "many", indexType="K", maxNum="3", lastKey="many") == [177, 178, 179]
    assert query(broker, room.topic, "many", _UNIQUE_KEY_QUERY="true", maxNum="3") == list(range(148, 180))


def test_by_time(room: Room) -> None:
    room.create(1)
    marks = [int(time.time() * 1000) - 1_500]
    for part in range(2):
        room.produce(2, key_list=["timed"], **{"from": 2 * part})
        time.sleep(1.1)  # sleeps: the index knows whole seconds
        marks.append(int(time.time() * 1000))
        time.sleep(1.1)  # sleeps: the same
    eventually(lambda: len(seqs(room, "timed")) == 4)
    for begin in range(3):
        for end in range(begin, 3):
            expected = list(range(2 * begin, 2 * end))
            assert seqs(room, "timed", begin_ms=marks[begin], end_ms=marks[end]) == expected, (begin, end)
    assert seqs(room, "timed", begin_ms=marks[2], end_ms=marks[0]) == []


def test_the_same_unique_key_twice(room: Room) -> None:
    """The client shows the first of the answer: the message itself, not what was made of it later."""
    room.create(1)
    broker = room.cluster.broker_address
    for number in range(2):
        assert raw.send(broker, room.topic, b"x", {"UNIQ_KEY": "7F" * 16, "seq": str(number)})["code"] == 0
    eventually(lambda: query(broker, room.topic, "7F" * 16) == [0, 1])
    (found,) = room.do("query", msg_ids=["7F" * 16])["messages"]
    assert found["properties"]["seq"] == "0"


def test_by_place(room: Room) -> None:
    room.create(1)
    (sent,) = room.produce(1)["results"]
    place = sent["offset_msg_id"]
    assert [m["msg_id"] for m in room.do("query", msg_ids=[place])["messages"]] == [sent["msg_id"]]
    beyond = place[:16] + "0000FFFFFFFFFFFF"
    (missing,) = room.do("query", msg_ids=[beyond])["missing"]
    assert "CODE: 208 " in missing, "the client has looked for it as a unique key too"
    for offset in (2**48 - 1, int(place[16:], 16) + 1, -1):
        header, _ = apache.call(room.cluster.broker_address, VIEW_MESSAGE, {"offset": str(offset)})
        assert (header["code"], header["remark"]) == (1, f"can not find message by the offset, {offset}")


def test_across_index_files(client: Client, private_network: None, tmp_path: Path) -> None:
    """Old messages are found in files that are full, also after a kill. (Only ours, with small files.)"""
    options = {"maxHashSlotNum": 100, "maxIndexNum": 400}
    cluster = ours.start(tmp_path, options, namesrv_port=39876, port=31911)
    try:
        room = Room(client, cluster, "indexed")
        room.create(1)
        for part in range(3):
            room.produce(300, keys="k-", mode="batch", batch=100, **{"from": 300 * part})
            room.produce(1, key_list=["each"], **{"from": 1000 + part})
        for killed in (False, True):
            if killed:
                cluster.kill_broker()
                cluster.start_broker()
            eventually(lambda: seqs(room, "each") == [1000, 1001, 1002])
            assert len(list((cluster.store / "index").iterdir())) == 5
            assert [seqs(room, f"k-{number}") for number in (0, 299, 450, 899)] == [[0], [299], [450], [899]]
            assert seqs(room, "each", max=2) == [1001, 1002]
    finally:
        cluster.discard()
