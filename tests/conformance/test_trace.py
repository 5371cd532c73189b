"""The trace that clients leave of their messages, in Apache's topic for it or in one of their own, and who shows it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest
import raw
from room import Room, eventually

from aerobee.broker.records import parse_record

pytestmark = pytest.mark.apache

OWN = "RMQ_SYS_TRACE_TOPIC"


@pytest.fixture
def tracing(room: Room) -> Iterator[None]:
    yield
    room.change_settings(traceOn="true")


@pytest.mark.parametrize("custom", [False, True], ids=["own", "custom"])
@pytest.mark.usefixtures("tracing")
def test_messages_leave_a_trace(room: Room, custom: bool) -> None:
    room.create(1)
    # The broker has made its own topic at the start (traceTopicEnable).
    topic, queues = (f"{room.topic}_trace", 3) if custom else (OWN, 1)
    if custom:
        room.create(queues, topic=topic)
    trace = topic if custom else ""
    before = types(room, topic, queues)
    room.consume(trace=trace)
    room.state(queues=1)
    sent = room.produce(3, trace=trace, keys="traced-", tags=["TagA"])["results"]
    committed = room.do("transaction", count=1, outcome="commit", trace=trace, **{"from": 3})["results"][0]
    room.state(received=4)
    room.stop()  # which sends what it has not sent yet
    every = {"Pub": 4, "SubBefore": 4, "SubAfter": 4, "EndTransaction": 1}
    eventually(lambda: sum((types(room, topic, queues) - before).values()) >= 13)
    assert types(room, topic, queues) - before == every
    (route,) = [line for line in room.admin("topicRoute", "-t", topic).splitlines() if "readQueueNums" in line]
    assert f'"readQueueNums":{queues}' in route.replace(" ", "")

    shown = ("-t", topic) if custom else ()
    for result in (*sent, committed):
        # The index is written behind the log.
        eventually(lambda result=result: len(rows(room, "-i", result["msg_id"], *shown)) == 4)  # type: ignore[misc]
        pub_head, pub, sub_head, sub = rows(room, "-i", result["msg_id"], *shown)
        assert (pub_head[0], pub_head[1], sub_head[0], sub_head[1]) == (
            "#Type", "#ProducerGroup", "#Type", "#ConsumerGroup",
        )  # fmt: skip
        assert pub[0] == "Pub" and pub[1] in ("producers", "transactions") and pub[-1] == "success"
        assert (sub[0], sub[1], sub[-1]) == ("Sub", room.group, "success")
    assert "traced-1" in room.admin("queryMsgByKey", "-t", topic, "-k", "traced-1") or rows(room, "-i", "traced-1")

    room.change_settings(traceOn="false")
    (silent,) = room.produce(1, trace=trace, **{"from": 4})["results"]
    (heard,) = room.produce(1, trace=trace, **{"from": 5})["results"]
    assert silent["msg_id"] != heard["msg_id"]
    assert types(room, topic, queues) - before == every, "the broker wants no trace"


def rows(room: Room, *args: str) -> list[list[str]]:
    """What queryMsgTraceById prints, in words."""
    return [line.split() for line in room.admin("queryMsgTraceById", *args).splitlines() if line.strip()]


def types(room: Room, topic: str, queues: int) -> Counter[str]:
    """How many notes of each kind the topic has."""
    found: Counter[str] = Counter()
    for queue in range(queues):
        try:
            records = raw.pull(room.cluster.broker_address, topic, queue)
        except KeyError:
            continue  # no such topic yet
        for data in records:
            for note in parse_record(data).body.decode().split("\x02"):
                if note:
                    found[re.split("\x01", note)[0]] += 1
    return found
