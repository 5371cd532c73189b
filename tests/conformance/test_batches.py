"""Batches and oneway sends: what is refused and by whom, what becomes of each message, what a connection survives."""

from __future__ import annotations

import re

import pytest
import raw
from official import CommandFailed
from room import Room, eventually

from aerobee.broker.records import parse_record

pytestmark = pytest.mark.apache

SEND, SEND_V2, SEND_BATCH, GET_MAX_OFFSET = 10, 310, 320, 30
MESSAGE_ILLEGAL = 13


def test_batches_that_are_refused(room: Room) -> None:
    room.create(1)
    illegal = (
        "MQBrokerException: CODE: 13  DESC: the message is illegal, maybe msg body or properties length not matched."
    )
    if room.cluster.kind == "apache":
        illegal = "MQBrokerException: CODE: 1  DESC: java.lang.RuntimeException: message body size exceeded"
    for arguments, error in (
        ({"level": 1}, "UnsupportedOperationException: Delayed messages are not supported for batching"),
        ({"topics": [room.topic, "another"]}, "The topic of the messages in one batch should be the same"),
        ({"topic": "%RETRY%somebody"}, "Retry Group is not supported for batching"),
        ({"size": 1_500_000}, "the message body size over max value, MAX: 4194304"),
        ({"size": 1_500_000, "max_message": 8_000_000}, illegal),
    ):
        with pytest.raises(CommandFailed, match=re.escape(error)):
            room.do("produce", count=3, batch=3, mode="batch", compress_over=9_000_000, **arguments)
    assert raw.bounds(room.cluster.broker_address, room.topic, 0) == (0, 0)


def test_each_message_of_a_batch(room: Room) -> None:
    """Has its own key, unique key and properties, and is found by them."""
    room.create(1)
    sent = room.produce(5, batch=5, mode="batch", keys="k-", tags=["TagA", "TagB"], properties={"colour": "grün"})
    (result,) = sent["results"]
    unique, places = result["msg_id"].split(","), result["offset_msg_id"].split(",")
    assert (len(set(unique)), len(set(places)), result["queue_offset"]) == (5, 5, 0)
    eventually(lambda: room.do("query", msg_ids=[unique[-1]])["missing"] == [])
    for asked in (unique, places):
        found = room.do("query", msg_ids=asked)["messages"]
        assert [(m["msg_id"], m["offset_msg_id"]) for m in found] == list(zip(unique, places, strict=True))
    for number, message in enumerate(found):
        (by_key,) = room.do("query", key=f"k-{number}")["messages"]
        assert by_key["msg_id"] == unique[number]
        assert (message["queue_offset"], message["tags"]) == (number, ["TagA", "TagB"][number % 2])
        assert {"colour": "grün", "seq": str(number), "KEYS": f"k-{number}"}.items() <= message["properties"].items()
        # What the broker gives to a single message: a batch's have what the sender gave them.
        assert not {"CLUSTER", "MSG_REGION", "TRACE_ON"} & set(message["properties"])


def test_batches_that_no_client_makes(room: Room) -> None:
    room.create(1)
    broker, topic = room.cluster.broker_address, room.topic
    body = raw.batch((b"one", {"UNIQ_KEY": "U1", "DELAY": "3"}), (b"two", {}), (b"", {"TAGS": "a"}))
    with raw.Connection(broker) as connection:
        header, _ = connection.call(SEND_BATCH, raw.send_fields(f"%RETRY%{room.group}", {}, batch=True), body)
        assert header["code"] == MESSAGE_ILLEGAL
        assert header["remark"] == f"batch request does not support retry group %RETRY%{room.group}"
        for code, fields in (
            (SEND_BATCH, raw.send_fields(topic, {"UNIQ_KEY": "A,B"}, batch=True)),
            (SEND_V2, raw.send_fields(topic, {"UNIQ_KEY": "A,B"}, batch=True)),
        ):
            before = raw.bounds(broker, topic, 0)[1]
            header, _ = connection.call(code, fields, body)
            reply = header["extFields"]
            assert (header["code"], reply["queueOffset"], reply["transactionId"]) == (0, str(before), "A,B")
            assert len(reply["msgId"].split(",")) == 3
            stored = [parse_record(data) for data in raw.pull(broker, topic, 0)[before:]]
            assert [record.body for record in stored] == [b"one", b"two", b""], "at once, whatever they ask for"
            assert [record.properties for record in stored] == [{"UNIQ_KEY": "U1", "DELAY": "3"}, {}, {"TAGS": "a"}]
            assert {record.flag for record in stored} == {7}


def test_oneway(room: Room) -> None:
    """Nothing comes back, whatever becomes of it, and the connection lives on."""
    room.create(1)
    closed = f"{room.topic}_closed"
    room.create(1, perm=4, topic=closed)
    broker, made = room.cluster.broker_address, f"{room.topic}_made"
    with raw.Connection(broker) as connection:
        for number, (topic, body) in enumerate(
            (
                (room.topic, b"one"),
                (closed, b"not writable"),
                ("no such/topic", b"not a name"),
                (room.topic, bytes(4 * 1024 * 1024 + 1)),
                (made, b"its topic is made"),
                (room.topic, b"two"),
            )
        ):
            connection.send(SEND_V2, raw.send_fields(topic, {"seq": str(number)}), body, flag=raw.ONEWAY)
        connection.send(9999, flag=raw.ONEWAY)
        header, _ = connection.call(GET_MAX_OFFSET, {"topic": room.topic, "queueId": "0"})
        assert header["code"] == 0
        eventually(lambda: raw.bounds(broker, room.topic, 0) == (0, 2))
        assert sorted(parse_record(data).body for data in raw.pull(broker, room.topic, 0)) == [b"one", b"two"]
        # Apache's broker leaves it to the clients not to send to it.
        eventually(lambda: raw.bounds(broker, closed, 0) == (0, int(room.cluster.kind == "apache")))
        eventually(lambda: raw.bounds(broker, made, 0) == (0, 1))
        assert connection.call(GET_MAX_OFFSET, {"topic": room.topic, "queueId": "0"})[0]["code"] == 0
        assert connection.silent(), "one of them was answered"
