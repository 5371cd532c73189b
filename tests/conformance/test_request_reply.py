"""Request and reply: what requesters and repliers see when all goes well, and when one of them is not there."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import raw
from official import CommandFailed, Reply
from room import Room, eventually

from aerobee.broker.records import parse_record

pytestmark = pytest.mark.apache

SEND_REPLY = 324
SEND_REPLY_V2 = 325
PUSH_REPLY = 326


def ask(room: Room, **arguments: Any) -> Reply:
    return room.do("request", broker=room.cluster.broker_name, queue=0, **arguments)


def test_the_ways_of_asking(room: Room) -> None:
    room.create(1)
    room.consume(reply=True)
    room.state(queues=1)
    for number, way in enumerate(("sync", "callback", "selector", "queue")):
        answered = ask(room, way=way, **{"from": number})
        assert answered["body"] == f"reply to {number}"
        assert set(answered["properties"]) == BY_CLIENTS | {"PUSH_REPLY_TIME", "MSG_REGION", "TRACE_ON"}
    assert room.state()["reply_errors"] == []


BY_CLIENTS = {"CORRELATION_ID", "REPLY_TO_CLIENT", "MSG_TYPE", "TTL", "UNIQ_KEY", "ARRIVE_TIME"}


def test_nobody_answers(room: Room) -> None:
    room.create(1)
    for way, error in (
        ("sync", "RequestTimeoutException: CODE: 10006 .*OK, but wait reply message timeout, 300 ms"),
        ("callback", "RequestTimeoutException: CODE: 10006 .*request timeout, no reply message"),
    ):
        with pytest.raises(CommandFailed, match=error):
            ask(room, way=way, timeout_ms=300)
    with pytest.raises(CommandFailed, match="send request message to <nobody_answers> fail"):
        ask(room, size=5_000_000, max_message=6_000_000, compress_over=7_000_000, timeout_ms=2_000)


def test_a_requester_that_waits_no_longer(room: Room) -> None:
    room.create(1)
    room.consume(reply=True, reply_pause_ms=1_000)
    room.state(queues=1)
    with pytest.raises(CommandFailed, match="wait reply message timeout"):
        ask(room, timeout_ms=300, linger_ms=1_500)  # it is still there: it takes the reply, and throws it away
    assert room.state()["reply_errors"] == []
    with pytest.raises(CommandFailed, match="wait reply message timeout"):
        ask(room, timeout_ms=300)
    eventually(lambda: bool(room.state()["reply_errors"]))
    (error,) = room.state()["reply_errors"]
    assert re.search(r"MQBrokerException: CODE: 1  DESC: push reply message fail, channel of <.*> not found", error)


@pytest.fixture
def storing(room: Room) -> Iterator[None]:
    yield
    room.change_settings(storeReplyMessageEnable="true")


@pytest.mark.usefixtures("storing")
def test_what_becomes_of_a_reply(room: Room) -> None:
    """What no official client shows: the push, its answer, what is stored."""
    broker, topic = room.cluster.broker_address, f"{room.cluster.cluster_name}_REPLY_TOPIC"
    group, me = f"{room.topic}_askers", f"{room.topic}_asker"
    sent = {"REPLY_TO_CLIENT": me, "CORRELATION_ID": "c-1", "TTL": "3000", "MSG_TYPE": "reply"}
    with raw.Connection(broker) as asker, raw.Connection(broker) as replier:
        asker.heartbeat(me, producer=group)

        def reply(properties: dict[str, str], answer: int | None = 0, body: bytes = b"here") -> tuple[Reply, Reply]:
            """The reply to the replier, and the push; `answer` None: there is none."""
            number = replier.send(SEND_REPLY_V2, raw.send_fields(topic, properties, group="repliers"), body)
            pushed: Reply = {}
            if answer is not None:
                pushed, got = asker.request()
                assert got == body
                asker.answer(pushed, answer)
            return replier.reply(number)[0], pushed

        before = raw.bounds(broker, topic, 0)[1]
        accepted, pushed = reply(sent)
        assert accepted["code"] == 0 and accepted.get("remark") is None
        fields = accepted["extFields"]
        assert set(fields) == {"msgId", "queueId", "queueOffset", "MSG_REGION", "TRACE_ON"}
        assert (fields["queueId"], fields["queueOffset"], len(fields["msgId"])) == ("0", str(before), 32)

        assert (pushed["code"], pushed["flag"]) == (PUSH_REPLY, 0)
        fields = pushed["extFields"]
        assert time.time() * 1000 - int(fields.pop("storeTimestamp")) < 10_000
        properties = dict(pair.split("\x01") for pair in fields.pop("properties").split("\x02") if pair)
        assert time.time() * 1000 - int(properties.pop("PUSH_REPLY_TIME")) < 10_000
        by_broker = {"MSG_REGION": "DefaultRegion", "TRACE_ON": "true"}
        assert properties == sent | by_broker
        assert fields.pop("storeHost") == broker
        assert re.fullmatch(r"127\.0\.0\.1:\d+", fields.pop("bornHost"))
        assert fields.pop("bornTimestamp").isdigit()
        assert fields == {
            "producerGroup": "repliers", "topic": topic, "defaultTopic": "TBW102", "defaultTopicQueueNums": "1",
            "queueId": "0", "sysFlag": "0", "flag": "7", "reconsumeTimes": "0", "unitMode": "false",
        }  # fmt: skip

        refused, _ = reply(sent, answer=1)
        assert (refused["code"], refused["remark"]) == (1, f"push reply message to {me}fail.")
        nowhere, _ = reply({"CORRELATION_ID": "c-2"}, None)
        assert (nowhere["code"], nowhere["remark"]) == (1, "reply message properties[REPLY_TO_CLIENT] is null")
        nobody, _ = reply({**sent, "REPLY_TO_CLIENT": "nobody"}, None)
        assert (nobody["code"], nobody["remark"]) == (1, "push reply message fail, channel of <nobody> not found.")
        assert raw.bounds(broker, topic, 0)[1] == before + 4, "stored whether it arrived or not"
        stored = [parse_record(data).properties for data in raw.pull(broker, topic, 0)[-4:]]
        to_nobody = {**sent, "REPLY_TO_CLIENT": "nobody"}
        assert stored == [one | by_broker for one in (sent, sent, {"CORRELATION_ID": "c-2"}, to_nobody)]

        large, _ = reply(sent, body=bytes(4 * 1024 * 1024 + 1))
        assert large["code"] == 0, "a reply that is too large to be stored has arrived"

        room.change_settings(storeReplyMessageEnable="false")
        accepted, _ = reply(sent)
        fields = accepted["extFields"]
        assert (accepted["code"], fields["msgId"], fields["queueId"], fields["queueOffset"]) == (0, "0", "0", "0")
        assert raw.bounds(broker, topic, 0)[1] == before + 4

        asker.call(35, {"clientID": me, "producerGroup": group})
        gone, _ = reply(sent, None)
        assert (gone["code"], gone["remark"]) == (1, f"push reply message fail, channel of <{me}> not found.")
