"""What a program on the official Java client sees, the same against Apache's broker and ours."""

from __future__ import annotations

import json
import time
from typing import Any

import apache
import pytest
import raw
from official import CommandFailed
from room import Room, eventually

from aerobee.broker.records import parse_record

pytestmark = pytest.mark.apache


def test_produce_and_consume(room: Room) -> None:
    sent = room.produce(200, keys="k", tags=["TagA", "TagB"], properties={"colour": "grün \u4e2d"})
    assert sent["statuses"] == {"SEND_OK": 200}
    assert sorted(sent["queues"]) == ["0", "1", "2", "3"], "an auto-created topic has four queues"
    room.consume(list=200)
    state = room.state(received=200)
    assert (state["received"], state["distinct"], state["duplicates"]) == (200, 200, 0)
    by_id = {result["msg_id"]: result for result in sent["results"]}
    for message in state["messages"]:
        result = by_id.pop(message["msg_id"])
        assert message["offset_msg_id"] == result["offset_msg_id"]
        assert (message["queue"], message["queue_offset"]) == (result["queue"], result["queue_offset"])
        properties = message["properties"]
        assert properties["colour"] == "grün \u4e2d"
        assert properties["KEYS"] == f"k{properties['seq']}"
        assert properties["UNIQ_KEY"] == message["msg_id"]
        assert properties["CLUSTER"] == "DefaultCluster"
        assert (properties["MSG_REGION"], properties["TRACE_ON"]) == ("DefaultRegion", "true")
        assert set(properties) == BY_CLIENT | BY_BROKER | {"colour", "KEYS", "TAGS"}
    assert not by_id


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cluster", ["aerobee"], indirect=True)
def test_a_million_messages_nothing_lost_nothing_twice(room: Room) -> None:
    # Claim: what one group consumes while it is sent is all of it, once. (Apache's broker would only cost time here.)
    room.create(8)
    room.consume(batch=32, threads=4)
    sending = [
        room.client.start(
            "produce",
            namesrv=room.cluster.namesrv_address,
            topic=room.topic,
            group=f"million_{part}",
            mode="batch",
            batch=250,
            count=500_000,
            **{"from": part * 500_000},
        )
        for part in range(2)
    ]
    for future in sending:
        sent = future.result(240)
        assert sent["errors"] == {} and sent["statuses"] == {"SEND_OK": 2_000}
    state = room.state(received=1_000_000, timeout_s=60)
    assert (state["received"], state["distinct"], state["duplicates"]) == (1_000_000, 1_000_000, 0)


BY_CLIENT = {"seq", "WAIT", "UNIQ_KEY", "MIN_OFFSET", "MAX_OFFSET", "CONSUME_START_TIME"}
BY_BROKER = {"CLUSTER", "MSG_REGION", "TRACE_ON"}


@pytest.mark.parametrize("mode", ["async", "oneway", "batch", "vip"])
def test_ways_of_sending(room: Room, mode: str) -> None:
    arguments: dict[str, Any] = {"vip": True} if mode == "vip" else {"mode": mode}
    # A topic that exists keeps the test about sending.
    room.create(4)
    sent = room.produce(64, batch=16, tags=["TagA"], keys="k", **arguments)
    if mode == "batch":
        ids = [result["offset_msg_id"].split(",") for result in sent["results"]]
        assert [len(each) for each in ids] == [16, 16, 16, 16]
        assert len({one for each in ids for one in each}) == 64
    room.consume(tags="TagA")
    state = room.state(received=64)
    assert (state["received"], state["distinct"], state["duplicates"]) == (64, 64, 0)


@pytest.mark.parametrize("kind", ["ZLIB", "LZ4", "ZSTD"])
def test_compressed_bodies_pass_through(room: Room, kind: str) -> None:
    room.produce(5, size=20_000, compress_type=kind)
    room.consume(list=5)
    messages = room.state(received=5)["messages"]
    assert [message["body_size"] for message in messages] == [20_000] * 5
    flag = {"LZ4": 0x100, "ZSTD": 0x200, "ZLIB": 0x300}[kind]
    assert {message["sys_flag"] & 0x700 for message in messages} == {flag}


def test_order_within_a_queue(room: Room) -> None:
    room.create(4)
    room.produce(400, mode="selector", shards=8)
    room.consume(orderly=True)
    state = room.state(received=400)
    assert (state["received"], state["distinct"], state["disorder"]) == (400, 400, 0)
    assert len(state["queues"]) == 4


def test_orderly_consumers_share_and_hand_over(room: Room) -> None:
    room.create(4)
    room.consume("one", orderly=True)
    room.consume("two", orderly=True)
    assert len(room.state("one", queues=2)["assigned"]) == 2
    assert len(room.state("two", queues=2)["assigned"]) == 2
    room.produce(100, mode="selector", shards=4)
    deadline = time.monotonic() + 30
    while room.state("one")["received"] + room.state("two")["received"] < 100 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert room.state("one")["received"] == room.state("two")["received"] == 50
    room.stop("two")
    assert len(room.state("one", queues=4, timeout_s=15)["assigned"]) == 4
    room.produce(100, mode="selector", shards=4, **{"from": 100})
    state = room.state("one", received=150)
    assert (state["received"], state["disorder"]) == (150, 0)


def test_tags(room: Room) -> None:
    # "Aa" and "BB" have the same Java hash: the broker lets both through, the client keeps the exact one.
    room.create(2)
    room.produce(60, tags=["TagA", "TagB", "Aa", "BB", "", "TagC"])
    room.consume("or", group="tags_or", tags="TagA || TagB")
    room.consume("hash", group="tags_hash", tags="Aa")
    assert room.state("or", received=20)["received"] == 20
    assert room.state("hash", received=10)["received"] == 10
    time.sleep(0.5)  # sleeps: nothing more must come
    assert room.state("or")["received"] == 20
    assert room.state("hash")["received"] == 10


def test_long_poll_is_answered_by_the_message(room: Room) -> None:
    room.create(1)
    room.consume(list=20)
    room.state(queues=1)
    time.sleep(1)  # sleeps: the pull must be waiting
    for number in range(10):
        room.produce(1, **{"from": number})
    messages = room.state(received=10)["messages"]
    delays = sorted(message["received"] - message["stored"] for message in messages)
    assert delays[len(delays) // 2] < 200, "milliseconds from store to listener"


def test_lite_pull_with_own_offsets(room: Room) -> None:
    room.create(2)
    sent = room.produce(40, mode="queue", broker=room.cluster.broker_name, queue=1)
    arguments = {"group": room.group, "assign": [1]}
    state = room.do("litepull", seek=30, expect=10, list=50, commit=True, **arguments)
    assert sorted(message["queue_offset"] for message in state["messages"]) == list(range(30, 40))
    assert state["committed"] == {"1": 40}
    again = room.do("litepull", seek=0, expect=40, **arguments)
    assert (again["received"], again["distinct"]) == (40, 40)
    nothing = room.do("litepull", expect=1, timeout_ms=1500, **arguments)
    assert nothing["received"] == 0, "the committed offset is the next to read"
    assert len(sent["results"]) == 40


def test_lite_pull_by_subscription(room: Room) -> None:
    room.create(4)
    room.produce(50, tags=["TagA", "TagB"])
    state = room.do("litepull", group=room.group, tags="TagB", expect=25, timeout_ms=20_000)
    assert (state["received"], state["distinct"]) == (25, 25)


def test_seek_by_time(room: Room) -> None:
    room.create(1)
    room.produce(10)
    time.sleep(0.05)
    between = int(time.time() * 1000)
    time.sleep(0.05)
    room.produce(10, **{"from": 10})
    state = room.do("litepull", group=room.group, assign=[0], seek_ms=between, expect=10, list=20)
    assert [int(message["properties"]["seq"]) for message in state["messages"]] == list(range(10, 20))
    rows = room.do("offsets", at_ms=between)["rows"]
    assert [(row["min"], row["max"], row["at"]) for row in rows] == [(0, 20, 10)]
    assert [row["at"] for row in room.do("offsets", at_ms=1)["rows"]] == [0]
    assert [row["at"] for row in room.do("offsets", at_ms=between + 3_600_000)["rows"]] == [20]


def test_offsets_of_an_empty_topic(room: Room) -> None:
    room.create(2)
    rows = room.do("offsets", at_ms=int(time.time() * 1000))["rows"]
    assert [(row["min"], row["max"], row["at"], row["earliest"]) for row in rows] == [(0, 0, 0, -1)] * 2


def test_query(room: Room) -> None:
    room.create(4)
    before = int(time.time() * 1000)
    sent = room.produce(20, keys="order-", tags=["TagA"])
    batch = room.produce(4, keys="batched-", mode="batch", batch=4, **{"from": 20})
    after = int(time.time() * 1000)
    results = {result["msg_id"]: result for result in sent["results"]}

    by_offset_id = room.do("query", msg_ids=[result["offset_msg_id"] for result in sent["results"]])
    assert by_offset_id["missing"] == []
    assert {message["msg_id"] for message in by_offset_id["messages"]} == set(results)

    def found(key: str, **arguments: object) -> list[str]:
        try:
            messages = room.do("query", key=key, **arguments)["messages"]
        except CommandFailed as error:
            assert "NO MATCH" in str(error) or "no message" in str(error).lower()
            return []
        return [message["properties"]["seq"] for message in messages]

    # Indexes are written behind the log: a moment may pass before the last is there.
    eventually(lambda: found("batched-23") == ["23"])
    assert found("order-7") == ["7"]
    assert found("order-99") == []
    assert found("order-7", begin_ms=before - 1000, end_ms=after + 1000) == ["7"]
    assert found("order-7", begin_ms=before - 10_000, end_ms=before - 5_000) == []
    unique = next(iter(results))
    by_unique = room.do("query", msg_ids=[unique])
    assert [message["msg_id"] for message in by_unique["messages"]] == [unique]
    assert len(batch["results"]) == 1


def test_a_delayed_message(room: Room) -> None:
    room.create(1)
    room.produce(1)
    room.consume(list=10)
    room.state(received=1)
    room.produce(3, level=1, **{"from": 1})
    messages = [m for m in room.state(received=4)["messages"] if m["properties"]["seq"] != "0"]
    assert len(messages) == 3
    for message in messages:
        assert 900 <= message["stored"] - message["born"] <= 3000, "milliseconds in the schedule topic"
        assert message["topic"] == room.topic
        assert message["properties"]["DELAY"] == "1"
        assert set(message["properties"]) == BY_CLIENT | BY_BROKER | {"DELAY", "REAL_TOPIC", "REAL_QID"}


@pytest.mark.slow
def test_a_failing_message_comes_back_after_ten_seconds(room: Room) -> None:
    """Also one that the broker cannot take back, as it does not find it: the client sends it on itself."""
    room.create(1)
    room.know_retries()
    room.produce(1, tags=["TagA"])
    room.produce(1, properties={"misplaced": "yes"}, **{"from": 1})
    room.consume(fail_times=1, list=10)
    state = room.state(received=2, timeout_s=25)
    assert (state["received"], state["distinct"]) == (2, 2)
    for number in ("0", "1"):
        first, second = (message for message in state["messages"] if message["properties"]["seq"] == number)
        assert (first["reconsume_times"], second["reconsume_times"]) == (0, 1)
        assert second["topic"] == room.topic
        assert second["properties"]["RETRY_TOPIC"] == room.topic
        assert second["properties"]["ORIGIN_MESSAGE_ID"] == first["msg_id"] or second["properties"]["UNIQ_KEY"]
        assert 9_500 <= second["stored"] - first["received"] <= 13_000


def test_a_failing_message_without_retries_goes_to_the_dead_letter_topic(room: Room) -> None:
    room.create(1)
    room.produce(1)
    room.consume(fail_times=100, max_retries=0)

    def dead() -> bool:
        try:
            rows = room.do("offsets", topic=f"%DLQ%{room.group}")["rows"]
        except CommandFailed:
            return False
        return bool(rows and rows[0]["max"] == 1)

    eventually(dead, 15)


def test_when_a_retry_is_a_dead_letter(room: Room) -> None:
    """One that a client sends to the retry topic itself: behind its last chance, which the client or group names."""
    room.create_group(retryMaxTimes=5)
    broker, retries, dead = room.cluster.broker_address, f"%RETRY%{room.group}", f"%DLQ%{room.group}"
    with raw.Connection(broker) as member:
        member.heartbeat("retrying", consumer=room.group, **{room.topic: "*"})
        for number, (times, most) in enumerate(
            (("16", "16"), ("17", "16"), ("0", "0"), ("1", "0"), ("5", ""), ("6", ""))
        ):
            fields = raw.send_fields(retries, {"RETRY_TOPIC": room.topic, "seq": str(number)}) | {"j": times, "l": most}
            header, _ = member.call(310, {name: value for name, value in fields.items() if value}, b"x")
            assert header["code"] == 0, header

    def found(topic: str) -> dict[str, tuple[int, str | None]]:
        records = [parse_record(data) for data in raw.pull(broker, topic, 0)]
        return {one.properties["seq"]: (one.reconsume_times, one.properties.get("DELAY")) for one in records}

    assert found(retries) == {"0": (16, None), "2": (0, None), "4": (5, None)}
    assert found(dead) == {"1": (17, "-1"), "3": (1, "-1"), "5": (6, "-1")}


def test_transactions(room: Room) -> None:
    room.create(1)
    assert room.do("transaction", count=3, outcome="commit", keys="t")["statuses"] == {"SEND_OK": 3}
    assert room.do("transaction", count=3, outcome="rollback", **{"from": 3})["statuses"] == {"SEND_OK": 3}
    room.consume(list=10)
    messages = room.state(received=3)["messages"]
    time.sleep(1)  # sleeps: nothing more must come
    assert room.state()["received"] == 3
    assert {message["properties"]["seq"] for message in messages} == {"0", "1", "2"}
    assert all(message["sys_flag"] & 12 == 8 for message in messages), "the committed record says so"


WAITING = [
    {},
    {"DELAY": "18"},
    {"TIMER_DELAY_SEC": "3600"},
    {"TIMER_DELAY_MS": "3600000"},
    {"TRAN_MSG": "true", "PGROUP": "g"},
]


@pytest.mark.parametrize("properties", WAITING, ids=lambda properties: next(iter(properties), "NOTHING"))
def test_the_answer_names_the_queue_of_the_topic_wherever_the_message_waits(
    room: Room, properties: dict[str, str]
) -> None:
    room.create(4)
    for queue in (3, 1):
        reply = raw.send(room.cluster.broker_address, room.topic, b"x", properties, queue=queue)
        assert (reply["code"], reply["extFields"]["queueId"]) == (0, str(queue))


def test_request_and_reply(room: Room) -> None:
    room.create(1)
    room.consume(reply=True)
    room.state(queues=1)
    assert room.do("request", **{"from": 7})["body"] == "reply to 7"


REFUSALS = {
    "too_large": ({"size": 4 * 1024 * 1024 + 1}, "the message body size over max value"),
    "name": ({"topic": "no spaces allowed"}, "contains illegal characters"),
    "system_topic": ({"topic": "SCHEDULE_TOPIC_XXXX"}, "is forbidden"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_sends(room: Room, case: str) -> None:
    arguments, reason = REFUSALS[case]
    errors = list(room.do("produce", count=1, **arguments)["errors"])
    assert len(errors) == 1
    assert reason in errors[0]


def test_a_topic_that_may_not_be_written(room: Room) -> None:
    room.create(4, perm=4)
    (error,) = room.do("produce", count=1, timeout_ms=2000)["errors"]
    assert "No route info of this topic" in error or "CODE: 16" in error


MESSAGE_TYPES: dict[str, dict[str, str]] = {
    "NORMAL": {},
    "FIFO": {"__SHARDINGKEY": "a"},
    "DELAY": {"DELAY": "1"},
    "TRANSACTION": {"TRAN_MSG": "true", "PGROUP": "p"},
    "PRIORITY": {"_SYS_MSG_PRIORITY_": "1"},
}


def test_message_types_of_topics(room: Room) -> None:
    """A topic keeps the type it was made for, and it may change; what else it takes is for who checks: Apache's proxy,
    with the same answer our broker, both where they are told to."""
    broker = room.cluster.broker_address

    def made(kind: str) -> tuple[int, str | None]:
        fields = {"topic": room.topic, "defaultTopic": "TBW102", "perm": "6", "topicFilterType": "SINGLE_TAG"}
        fields |= {"readQueueNums": "1", "writeQueueNums": "1", "order": "false", "attributes": f"+message.type={kind}"}
        header, _ = apache.call(broker, 17, fields)
        return header["code"], header.get("remark")

    assert made("MIXED") == (29, "MIXED message type is not supported.")
    code, remark = made("ODD")
    assert code == 1 and remark is not None and remark.startswith("value is not in set: ")
    for kind in (*MESSAGE_TYPES, "UNSPECIFIED", "FIFO"):
        assert made(kind)[0] == 0
        _, body = room.call(351, {"topic": room.topic})
        assert json.loads(body)["attributes"] == {"message.type": kind}
    room.is_known(room.topic)
    assert [raw.send(broker, room.topic, b"x", own)["code"] for own in MESSAGE_TYPES.values()] == [0] * 5
    if room.cluster.kind == "apache":
        return
    room.change_settings(enableTopicMessageTypeCheck="true")
    try:
        assert [raw.send(broker, room.topic, b"x", own)["code"] for own in MESSAGE_TYPES.values()] == [
            0 if kind == "FIFO" else 13 for kind in MESSAGE_TYPES
        ]
        (error,) = room.do("produce", count=1)["errors"]
        assert "CODE: 13  DESC: TopicMessageType validate failed, the expected type is FIFO, but actual type" in error
    finally:
        room.change_settings(enableTopicMessageTypeCheck="false")


def test_sql_needs_the_property_filter(room: Room) -> None:
    room.create(1)
    with pytest.raises(CommandFailed, match="The broker does not support consumer to filter message by SQL92"):
        room.consume(sql="a > 1")
