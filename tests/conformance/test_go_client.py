"""What a program on the official Go client sees, the same against Apache's broker and ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache
import golang
import pytest
from official import Client, CommandFailed
from room import Room

from aerobee.testing.eventually import eventually_sync as eventually

pytestmark = [pytest.mark.apache, pytest.mark.go]


@pytest.fixture
def room(
    go_client: golang.Client, client: Client, cluster: apache.Cluster, request: pytest.FixtureRequest
) -> Iterator[Room]:
    name = "go_" + request.node.originalname.removeprefix("test_")
    variant = request.node.callspec.id.replace(cluster.kind, "").strip("-")
    opened = Room(go_client, cluster, f"{name}_{variant}" if variant else name, tools=client)
    yield opened
    opened.close()


def create(room: Room, queues: int) -> None:
    """By the client's own admin."""
    room.do("topic.create", broker_address=room.cluster.broker_address, queues=queues)
    room.is_known(room.topic)


def test_produce_and_consume(room: Room) -> None:
    sent = room.produce(40, keys="k", tags=["TagA", "TagB"], properties={"colour": "grün \u4e2d"})
    assert sent["statuses"] == {"SEND_OK": 40}
    assert sorted(sent["queues"]) == ["0", "1", "2", "3"], "an auto-created topic has four queues"
    assert {(result["region"], result["trace"]) for result in sent["results"]} == {("DefaultRegion", True)}
    room.consume(list=40)
    state = room.state(received=40)
    assert (state["received"], state["distinct"], state["duplicates"]) == (40, 40, 0)
    by_id = {result["msg_id"]: result for result in sent["results"]}
    for message in state["messages"]:
        result = by_id.pop(message["msg_id"])
        assert message["offset_msg_id"] == result["offset_msg_id"]
        assert (message["queue"], message["queue_offset"]) == (result["queue"], result["queue_offset"])
        assert message["store_host"] == room.cluster.broker_address
        assert message["properties"]["colour"] == "grün \u4e2d"
        assert message["keys"] == f"k{message['properties']['seq']}"
    assert not by_id


@pytest.mark.parametrize("mode", ["async", "oneway", "batch", "vip"])
def test_ways_of_sending(room: Room, mode: str) -> None:
    arguments: dict[str, Any] = {"vip": True} if mode == "vip" else {"mode": mode}
    create(room, 4)
    sent = room.produce(64, batch=16, tags=["TagA"], **arguments)
    assert len(sent["results"]) == {"oneway": 1, "batch": 4}.get(mode, 64)
    room.consume(tags="TagA")
    state = room.state(received=64)
    assert (state["received"], state["distinct"], state["duplicates"]) == (64, 64, 0)


def test_compressed_bodies_pass_through(room: Room) -> None:
    create(room, 1)
    room.produce(3, size=20_000)
    room.consume(list=3)
    assert [message["body_size"] for message in room.state(received=3)["messages"]] == [20_000] * 3


def test_tags(room: Room) -> None:
    create(room, 2)
    tags = ["TagA", "TagB", "Aa", "BB", "TagC", "TagD"]
    room.produce(60, tags=tags)
    room.consume("or", group="go_tags_or", tags="TagA || TagB")
    room.consume("hash", group="go_tags_hash", tags="Aa")  # "Aa" and "BB" have one hash: the client tells them apart
    assert room.state("or", received=20)["received"] == 20
    assert room.state("hash", received=10)["received"] == 10
    room.produce(12, tags=tags, **{"from": 60})  # when these have come, whatever was too many in front of them has
    assert room.state("or", received=24)["received"] == 24
    assert room.state("hash", received=12)["received"] == 12


def progress(room: Room) -> int:
    """The sum of the group's offsets at the broker."""
    printed = room.admin("consumerProgress", "-g", room.group)
    rows = [row.split() for row in printed.splitlines() if row.startswith(f"{room.topic} ")]
    assert rows, printed
    return sum(int(row[4]) for row in rows)


def test_order_within_a_queue(room: Room) -> None:
    create(room, 4)
    room.produce(200, mode="sharded", shards=8)
    room.consume(orderly=True)
    state = room.state(received=200)
    assert (state["received"], state["distinct"], state["disorder"]) == (200, 200, 0)
    assert len(state["queues"]) > 1


def test_an_ordered_queue_waits_for_what_fails(room: Room) -> None:
    create(room, 1)
    room.produce(5, mode="sharded", shards=1)
    room.consume(orderly=True, fail_times=2, list=20)
    state = room.state(received=5)
    assert (state["received"], state["duplicates"], state["disorder"]) == (5, 0, 0)
    assert [message["properties"]["seq"] for message in state["messages"]] == [str(n) for n in range(5) for _ in "abc"]


def test_members_share_and_hand_over(room: Room) -> None:
    create(room, 4)
    room.consume("one")
    room.consume("two")
    for name in ("one", "two"):
        assert len(room.state(name, queues=2)["assigned"]) == 2
    room.produce(40)
    assert [room.state(name, received=20)["received"] for name in ("one", "two")] == [20, 20]
    room.stop("two")
    assert len(room.state("one", queues=4)["assigned"]) == 4
    room.produce(40, **{"from": 40})
    state = room.state("one", received=60)
    assert (state["received"], state["duplicates"]) == (60, 0)


def test_broadcasting_gives_everyone_everything(room: Room) -> None:
    create(room, 4)
    room.consume("one", model="broadcasting")
    room.consume("two", model="broadcasting")
    room.produce(40)
    for name in ("one", "two"):
        state = room.state(name, received=40)
        assert (state["received"], state["distinct"]) == (40, 40)


def test_a_delayed_message(room: Room) -> None:
    create(room, 1)
    room.consume(list=10)
    room.produce(3, level=1)
    messages = room.state(received=3)["messages"]
    assert len(messages) == 3
    for message in messages:
        assert 900 <= message["stored"] - message["born"] <= 3000, "milliseconds in the schedule topic"
        assert message["properties"]["DELAY"] == "1"


def test_a_failing_message_comes_back(room: Room) -> None:
    create(room, 1)
    room.know_retries()
    room.produce(1, tags=["TagA"])
    room.consume(fail_times=1, level=1, list=10)
    state = room.state(received=1)
    assert state["received"] == 1
    first, second = state["messages"]
    assert (first["reconsume_times"], second["reconsume_times"]) == (0, 1)
    assert second["properties"]["RETRY_TOPIC"] == second["topic"] == room.topic
    assert second["tags"] == "TagA"


def test_a_hopeless_message_goes_to_the_dead_letter_topic(room: Room) -> None:
    create(room, 1)
    room.produce(1)
    room.consume(fail_times=100, max_retries=0)
    dead = {"topic": f"%DLQ%{room.group}", "queueId": "0"}

    def count() -> int:
        return int(apache.call(room.cluster.broker_address, 30, dead)[0]["extFields"]["offset"])

    eventually(lambda: count() == 1)


def test_transactions(room: Room) -> None:
    create(room, 1)
    rolled = room.do("transaction", name="rolled", count=3, outcome="rollback", **{"from": 3})
    sent = room.do("transaction", name="committed", count=3, outcome="commit", keys="t")
    assert rolled["statuses"] == sent["statuses"] == {"SEND_OK": 3}
    room.consume(list=10)
    messages = room.state(received=3)["messages"]
    assert {message["properties"]["seq"] for message in messages} == {"0", "1", "2"}
    assert {message["msg_id"] for message in messages} == {result["msg_id"] for result in sent["results"]}
    assert all(message["sys_flag"] & 12 == 8 for message in messages), "the committed record says so"
    for name in ("rolled", "committed"):
        assert room.do("transaction.stop", name=name)["checks"] == 0


def test_an_open_transaction_is_asked_about(room: Room) -> None:
    create(room, 1)
    room.do("transaction", name="open", count=2, outcome="unknown", check="commit")
    room.consume()
    assert room.state(received=2, timeout_s=60)["distinct"] == 2
    assert room.do("transaction.stop", name="open")["checks"] >= 2


def test_pulling_at_own_offsets(room: Room) -> None:
    create(room, 2)
    room.produce(40, mode="queue", broker=room.cluster.broker_name, queue=1, tags=["TagA", "TagB"])
    asked: dict[str, Any] = {"group": room.group, "broker": room.cluster.broker_name, "queue": 1}
    found = room.do("pull", offset=30, list=50, commit=40, **asked)
    assert (found["status"], found["next"], found["min"], found["max"]) == ("FOUND", 40, 0, 40)
    assert [message["queue_offset"] for message in found["messages"]] == list(range(30, 40))
    where = {"consumerGroup": room.group, "topic": room.topic, "queueId": "1"}
    eventually(lambda: apache.call(room.cluster.broker_address, 14, where)[0]["extFields"]["offset"] == "40")
    filtered = room.do("pull", offset=0, tags="TagB", **asked)
    assert (filtered["status"], filtered["received"]) == ("FOUND", 20)
    far = room.do("pull", offset=5000, **asked)
    assert (far["status"], far["next"]) == ("OFFSET_ILLEGAL", 40)


def test_polling_in_a_group(room: Room) -> None:
    create(room, 4)
    room.produce(50, tags=["TagA", "TagB"])
    first = room.do("poll", group=room.group, tags="TagB", expect=25)
    assert (first["received"], first["distinct"]) == (25, 25)
    room.produce(10, tags=["TagA", "TagB"], **{"from": 50})
    again = room.do("poll", group=room.group, tags="TagB", expect=5)
    assert (again["received"], again["distinct"]) == (5, 5), "acknowledged messages do not come again"


def test_offsets_are_kept_over_a_restart_of_the_consumer(room: Room) -> None:
    create(room, 4)
    room.produce(40)
    room.consume()
    assert room.state(received=40)["received"] == 40
    eventually(lambda: room.noted() == 40)  # a member that stops tells what it has noted, which comes after the handler
    room.stop()
    room.produce(10, **{"from": 40})
    room.consume("again", list=20)
    state = room.state("again", received=10)
    assert {int(message["properties"]["seq"]) for message in state["messages"]} == set(range(40, 50))
    eventually(lambda: room.noted() == 50)
    assert room.stop("again")["received"] == 10
    eventually(lambda: progress(room) == 50)


def test_sql_needs_the_property_filter(room: Room) -> None:
    create(room, 1)
    room.produce(1)
    room.consume(sql="a > 1")
    state = room.state(received=1, timeout_s=1)
    assert state["received"] == 0


def test_a_request_is_answered_by_a_java_consumer(room: Room, client: Client) -> None:
    create(room, 1)
    at = {"namesrv": room.cluster.namesrv_address, "topic": room.topic}
    client.do("consume.start", name=room.topic, group=room.group, reply=True, **at)
    try:
        client.do("consume.state", name=room.topic, queues=1, timeout_ms=20_000)
        assert room.do("request", **{"from": 7})["body"] == "reply to 7"
    finally:
        client.do("consume.stop", name=room.topic)


def test_topics_and_groups(room: Room) -> None:
    create(room, 3)
    room.produce(3)
    room.consume()
    room.state(received=3)
    at = {"broker_address": room.cluster.broker_address}
    found = room.do("topic.list", **at)
    assert room.topic in found["topics"]
    assert room.group in found["groups"]
    room.stop()
    room.do("topic.delete", **at)
    eventually(lambda: room.topic not in room.do("topic.list", **at)["topics"])
    with pytest.raises(CommandFailed, match="may not exist"):
        room.consume()
