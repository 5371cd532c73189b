"""Consumer groups on the official clients: who gets what, from where on, and what an operator can do about it.

The same program against Apache's broker and ours; `operate` is the official admin client (java/.../Admin.java).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import apache
import pytest
from official import Client, CommandFailed, Reply
from room import Room, eventually

pytestmark = pytest.mark.apache


# Who gets what.


def test_nine_messages_three_instances_three_each(room: Room) -> None:
    room.create(3)
    for name in ("one", "two", "three"):
        room.consume(name)
    for name in ("one", "two", "three"):
        assert len(room.state(name, queues=1)["assigned"]) == 1
    for queue in range(3):
        room.produce(3, mode="queue", broker=room.cluster.broker_name, queue=queue, **{"from": 3 * queue})
    assert [room.state(name, received=3)["received"] for name in ("one", "two", "three")] == [3, 3, 3]


def test_broadcasting_gives_everyone_everything(room: Room) -> None:
    room.create(4)
    room.consume("one", model="broadcasting")
    room.consume("two", model="broadcasting")
    for name in ("one", "two"):
        assert len(room.state(name, queues=4)["assigned"]) == 4
    room.produce(40)
    for name in ("one", "two"):
        state = room.state(name, received=40)
        assert (state["received"], state["distinct"]) == (40, 40)


def test_a_joining_member_gets_its_share_and_a_leaving_one_hands_over(room: Room) -> None:
    room.create(4)
    room.consume("one")
    assert len(room.state("one", queues=4)["assigned"]) == 4
    room.consume("two")
    assert len(room.state("one", queues=2, timeout_s=5)["assigned"]) == 2
    assert len(room.state("two", queues=2, timeout_s=5)["assigned"]) == 2
    room.stop("two")
    assert len(room.state("one", queues=4, timeout_s=5)["assigned"]) == 4


def test_a_crashed_member_is_replaced_at_once(room: Room, other: Client) -> None:
    room.create(4)
    room.consume("one")
    lost = Room(other, room.cluster, room.topic)
    lost.consume("two")
    assert len(room.state("one", queues=2)["assigned"]) == 2
    other.kill()
    started = time.monotonic()
    assert len(room.state("one", queues=4)["assigned"]) == 4
    # The broker tells at once; the client itself rebalances at most once a second.
    assert time.monotonic() - started < 4
    room.produce(40)
    assert room.state("one", received=40)["distinct"] == 40


# Where it begins, and goes on.


def test_offsets_are_kept_over_a_restart_of_the_consumer(room: Room) -> None:
    room.create(4)
    room.produce(40)
    room.consume()
    assert room.state(received=40)["received"] == 40
    eventually(lambda: room.noted() == 40)  # a member that stops tells what it has noted, which comes after the handler
    room.stop()
    room.produce(10, **{"from": 40})
    room.consume("again", list=20)
    state = room.state("again", received=10)
    time.sleep(1)  # sleeps: nothing must come again
    state = room.state("again")
    assert state["received"] == 10
    assert {int(message["properties"]["seq"]) for message in state["messages"]} == set(range(40, 50))


def test_a_new_group_begins_at_the_first_message_while_that_is_there(room: Room) -> None:
    # Wherever it wants to begin: a queue whose first message is still there and in memory counts as new.
    room.create(1)
    room.produce(10)
    for where in ("first", "last", "timestamp"):
        room.consume(where, group=f"{room.group}_{where}", **{"from": where})
    for where in ("first", "last", "timestamp"):
        assert room.state(where, received=10, timeout_s=5)["received"] == 10


def test_a_group_without_offset_is_told_so_when_it_asks(room: Room) -> None:
    room.create(1)
    fields = {"consumerGroup": room.group, "topic": room.topic, "queueId": "0"}

    def asked(**more: str) -> tuple[int, str | None]:
        header, _ = apache.call(room.cluster.broker_address, 14, {**fields, **more})
        return header["code"], header.get("extFields", {}).get("offset")

    assert asked() == (22, None), "an empty queue"
    room.produce(1)
    assert asked() == (0, "0")
    assert asked(setZeroIfNotFound="true") == (0, "0")
    assert asked(setZeroIfNotFound="false") == (22, None)


def test_a_member_whose_heartbeats_leave_out_what_has_not_changed(room: Room) -> None:
    room.create(2)
    room.consume(heartbeat_v2=True, heartbeat_ms=300)
    room.produce(20)
    assert room.state(received=20)["received"] == 20
    time.sleep(1.5)  # sleeps: several heartbeats, whose effect must be none
    room.produce(20, **{"from": 20})
    assert room.state(received=40)["received"] == 40
    assert room.topic in room.admin("consumerConnection", "-g", room.group)


def test_an_application_that_pulls_may_seek_back_and_commit_that(room: Room) -> None:
    room.create(1)
    room.produce(40)
    arguments = {"group": room.group, "assign": [0], "commit": True, "timeout_ms": 30_000}
    everything = room.do("litepull", seek=0, expect=40, **arguments)
    assert (everything["distinct"], everything["committed"]) == (40, {"0": 40})
    back = room.do("litepull", seek=0, expect=10, batch=10, **arguments)["committed"]["0"]
    assert 10 <= back < 40
    again = room.do("litepull", expect=40 - back, **arguments)
    assert again["received"] == 40 - back, "it goes on where it had committed"


# What an operator does.


def consumed(room: Room, count: int, *, queues: int = 2, running: bool = False, **arguments: object) -> None:
    """A topic of so many messages that the group has consumed; with a consumer that goes on, or without."""
    room.create(queues)
    room.produce(count)
    room.consume("before", **arguments)
    assert room.state("before", received=count)["received"] == count
    room.stop("before")  # which tells the broker its offsets; a running one begins to after ten seconds
    assert consumed_in_all(room) == count
    if running:
        room.consume(**{"list": 20, **arguments})
        room.state(queues=queues)


def consumed_in_all(room: Room) -> int:
    return sum(int(row["consumed"]) for row in stats(room).values())


def stats(room: Room, **arguments: object) -> dict[str, Reply]:
    """The group's offsets by queue."""
    rows: dict[str, Reply] = room.operate("stats", **arguments)["queues"]
    return rows


def test_reset_while_consumers_run(room: Room) -> None:
    consumed(room, 40, running=True)
    assert room.operate("reset", time_ms=0)["offsets"] == {"0": 0, "1": 0}
    state = room.state(received=40)
    assert (state["received"], state["duplicates"]) == (40, 0), "everything comes again, once"
    room.stop()
    assert consumed_in_all(room) == 40


def test_reset_of_one_queue_while_consumers_run(room: Room) -> None:
    consumed(room, 40, running=True)
    room.operate("reset_queue", queue=1, offset=15)
    room.state(received=5)
    time.sleep(1)  # sleeps: nothing more must come
    assert sorted(message["queue_offset"] for message in room.state()["messages"]) == [15, 16, 17, 18, 19]
    with pytest.raises(CommandFailed, match=r"CODE: 1 .*Target offset 1000 not in consume queue range \[0-20\]"):
        room.operate("reset_queue", queue=1, offset=1000)


def test_reset_to_a_time_and_skip_while_nobody_runs(room: Room) -> None:
    consumed(room, 10, queues=1)
    time.sleep(0.05)
    between = int(time.time() * 1000)
    time.sleep(0.05)
    room.produce(10, **{"from": 10})
    assert room.operate("reset", time_ms=0)["offsets"] == {"0": 0}
    assert stats(room)["0"]["consumed"] == 0
    assert room.operate("reset", time_ms=between)["offsets"] == {"0": 10}
    assert room.operate("reset", time_ms=-1)["offsets"] == {"0": 20}, "what has accumulated is skipped"
    assert room.operate("reset", time_ms=between)["offsets"] == {"0": 10}
    room.consume("again", list=20)
    state = room.state("again", received=10)
    time.sleep(1)  # sleeps: nothing more must come
    numbers = sorted(int(message["properties"]["seq"]) for message in room.state("again")["messages"])
    assert numbers == list(range(10, 20)), state


def test_reset_through_offsets_as_old_tools_do(room: Room) -> None:
    consumed(room, 10, queues=1)
    room.operate("update_offset", queue=0, offset=4)
    assert stats(room)["0"]["consumed"] == 4
    assert room.operate("reset_offline", time_ms=int(time.time() * 1000) + 3_600_000)["offsets"] == {"0": 10}
    assert stats(room)["0"]["consumed"] == 10
    assert room.operate("reset_offline", time_ms=0)["offsets"] == {"0": 0}
    assert stats(room)["0"]["consumed"] == 0
    room.consume("again")
    assert room.state("again", received=10)["received"] == 10


def test_an_offset_beyond_the_end_is_mended_by_the_consumer(room: Room) -> None:
    consumed(room, 10, queues=1)
    room.operate("update_offset", queue=0, offset=1000)
    room.consume("again", list=5)
    # The broker moves it to the end, and the client says so as its offset.
    eventually(lambda: stats(room)["0"]["consumed"] == 10, 30)
    room.state("again", queues=1)
    room.produce(3, **{"from": 10})
    assert room.state("again", received=3, timeout_s=30)["received"] == 3


@pytest.fixture
def told_by_clients(room: Room) -> Iterator[None]:
    room.change_settings(useServerSideResetOffset="false")
    yield
    room.change_settings(useServerSideResetOffset="true")


@pytest.mark.usefixtures("told_by_clients")
def test_consumers_are_told_to_reset(room: Room) -> None:
    # An orderly consumer: others wait ten seconds before they go back.
    consumed(room, 40, orderly=True, running=True)
    assert room.operate("reset", time_ms=0)["offsets"] == {"0": 0, "1": 0}
    assert room.state(received=40, timeout_s=40)["received"] == 40
    tomorrow = int(time.time() * 1000) + 86_400_000
    with pytest.raises(CommandFailed, match=r"CODE: 1 .*THe consumer group <nobody> not exist"):
        room.operate("reset", group="nobody", time_ms=0)
    room.stop()
    assert consumed_in_all(room) == 40
    with pytest.raises(CommandFailed, match=r"CODE: 206 .*Consumer not online, so can not reset offset"):
        room.operate("reset", time_ms=tomorrow, force=False)
    room.operate("reset_anyway", time_ms=0)  # which then goes through the offsets
    assert consumed_in_all(room) == 0


def test_offsets_are_cloned(room: Room) -> None:
    consumed(room, 10, queues=1)
    room.operate("clone", source=room.group, target="cloned", offline=False)
    assert stats(room, group="cloned")["0"]["consumed"] == 10
    room.operate("clone", topic="another", source=room.group, target="cloned2", offline=False)  # unknown: nothing
    assert stats(room, group="cloned2")["0"]["consumed"] == 0


def test_time_span_of_what_is_consumed(room: Room) -> None:
    consumed(room, 10, queues=1)
    room.produce(10, **{"from": 10})
    (span,) = room.operate("time_span")["queues"].values()
    assert span["first_ms"] <= span["consumed_ms"] <= span["last_ms"]
    assert 0 < span["behind_ms"] < 60_000


# What a running consumer is asked through the broker.


def test_a_consumer_tells_about_itself(room: Room) -> None:
    consumed(room, 10, orderly=True, running=True)
    client_id = room.state()["client_id"]
    info = room.operate("running_info", client_id=client_id, stacks=True)
    assert (info["orderly"], info["type"], info["stacks"]) == ("true", "CONSUME_PASSIVELY", True)
    assert f"{room.topic} *" in info["subscriptions"]
    assert sum(offset for queue, offset in info["commits"].items() if queue.startswith(room.topic)) == 10
    by_client = room.operate("status")["clients"]
    assert set(by_client) == {client_id}
    assert sum(by_client[client_id].values()) == 10
    assert room.operate("status", client_id="nobody")["clients"] == {}
    with pytest.raises(CommandFailed, match=r"CODE: 1 .*The Consumer <.*> <nobody> not online"):
        room.operate("running_info", client_id="nobody")


@pytest.mark.parametrize("orderly", [False, True])
def test_a_consumer_consumes_a_message_now(room: Room, orderly: bool) -> None:
    room.create(1)
    sent = room.produce(2)["results"]
    room.consume(orderly=orderly, list=5)
    state = room.state(received=2)
    for identifier in (sent[0]["offset_msg_id"], sent[0]["msg_id"]):
        told = room.operate("consume", client_id=state["client_id"], msg_id=identifier)
        assert (told["result"], told["order"], told["auto_commit"]) == ("CR_SUCCESS", orderly, True)
    assert room.state()["received"] == 4
    with pytest.raises(CommandFailed, match="not online"):
        room.operate("consume", client_id="nobody", msg_id=sent[0]["offset_msg_id"])


# What a group may.


def test_a_group_that_may_not_consume(room: Room) -> None:
    room.create(1)
    room.create_group(consumeEnable=False)
    room.produce(5)
    room.consume()
    room.state(queues=1)
    code, fields, _ = pull(room)
    assert (code, fields["forbiddenType"]) == (16, "2")
    time.sleep(1)  # sleeps: nothing must come
    assert room.state()["received"] == 0
    room.create_group(consumeEnable=True)
    assert room.state(received=5)["received"] == 5
    room.create_group(consumeEnable=False)
    time.sleep(0.5)  # sleeps: what is on its way gets there
    room.produce(5, **{"from": 5})
    time.sleep(1)  # sleeps: a pull that waits must not be answered with messages
    assert room.state()["received"] == 5


def pull(room: Room, **more: str) -> tuple[int, dict[str, str], str]:
    """One pull by the group as a member, answered at once: code, fields, remark."""
    fields = {"consumerGroup": room.group, "topic": room.topic, "queueId": "0", "queueOffset": "0", "maxMsgNums": "32"}
    fields |= {"sysFlag": "0", "commitOffset": "0", "suspendTimeoutMillis": "0", "subVersion": "0", **more}
    header, _ = apache.call(room.cluster.broker_address, 11, fields)
    return header["code"], header.get("extFields", {}), header.get("remark", "")


def test_a_group_that_may_not_broadcast(room: Room) -> None:
    room.create(1)
    room.create_group(consumeBroadcastEnable=False)
    room.produce(5)
    room.consume(model="broadcasting")
    room.state(queues=1)
    code, fields, remark = pull(room)
    assert (code, fields["forbiddenType"]) == (16, "4")
    assert "can not consume by broadcast way" in remark
    time.sleep(1)  # sleeps: nothing must come
    assert room.state()["received"] == 0
    room.create_group(consumeBroadcastEnable=True)
    assert room.state(received=5)["received"] == 5


def test_a_group_that_may_not_read_a_topic(room: Room) -> None:
    room.create(1)
    room.produce(5)
    room.consume()
    assert room.state(received=5)["received"] == 5
    fields = {"group": room.group, "topic": room.topic}
    _, body = room.call(353, fields)
    assert json.loads(body) == {"group": room.group, "topic": room.topic, "readable": True}
    _, body = room.call(353, {**fields, "readable": "false"})
    assert json.loads(body)["readable"] is False
    code, answered, remark = pull(room)
    assert (code, answered["forbiddenType"]) == (16, "5")
    assert "is forbidden for topic" in remark
    time.sleep(0.5)  # sleeps: what is on its way gets there
    room.produce(5, **{"from": 5})
    time.sleep(1)  # sleeps: a pull that waits must not be answered with messages
    assert room.state()["received"] == 5
    room.call(353, {**fields, "readable": "true"})
    assert room.state(received=10)["distinct"] == 10


def test_a_group_that_wants_no_notices(room: Room) -> None:
    room.create(4)
    room.create_group(notifyConsumerIdsChangedEnable=False)
    room.consume("one")
    assert len(room.state("one", queues=4)["assigned"]) == 4
    room.consume("two")
    time.sleep(2.5)  # sleeps: a notice would have changed it by now
    assert len(room.state("one")["assigned"]) == 4, "it looks by itself every twenty seconds"


RETRY_POLICIES = {
    "exponential": {
        "type": "EXPONENTIAL",
        "exponentialRetryPolicy": {"initial": 1000, "max": 60_000, "multiplier": 3},
    },
    "customized": {"type": "CUSTOMIZED", "customizedRetryPolicy": {"next": [1000, 2000, 5000]}},
}


@pytest.mark.parametrize("policy", RETRY_POLICIES)
def test_settings_of_a_group_are_kept(room: Room, policy: str) -> None:
    settings = {
        "consumeEnable": True,
        "consumeFromMinEnable": False,
        "consumeBroadcastEnable": False,
        "consumeMessageOrderly": True,
        "retryQueueNums": 3,
        "retryMaxTimes": 7,
        "brokerId": 0,
        "whichBrokerWhenConsumeSlowly": 2,
        "notifyConsumerIdsChangedEnable": False,
        "groupSysFlag": 1,
        "consumeTimeoutMinute": 30,
        "subscriptionDataSet": [
            {"topic": room.topic, "expression": "a", "expressionType": "TAG", "version": 1},
        ],
        "groupRetryPolicy": RETRY_POLICIES[policy],
        "attributes": {},
    }
    room.create_group(**settings)
    for code, fields in ((352, {"group": room.group}), (201, {})):
        _, body = room.call(code, fields)
        told = json.loads(body)
        if code == 201:
            told = told["subscriptionGroupTable"][room.group]
        assert {name: told[name] for name in settings if name != "groupRetryPolicy"} == {
            name: value for name, value in settings.items() if name != "groupRetryPolicy"
        }
        kind = RETRY_POLICIES[policy]["type"]
        assert told["groupRetryPolicy"]["type"] == kind
        name = next(name for name in RETRY_POLICIES[policy] if name != "type")
        assert told["groupRetryPolicy"][name] == RETRY_POLICIES[policy][name]


# Last, because Apache's broker deletes nothing in its first minute.


def test_where_a_new_group_begins_when_the_first_messages_are_gone(room: Room) -> None:
    room.create(1)
    for number in range(5):  # 20 MB: the first file of the log is full
        room.produce(1, size=4_000_000, compress_over=5_000_000, **{"from": number})
    room.change_settings(fileReservedTime=0, deleteUnconsumedEnable="true")
    try:
        eventually(lambda: first_messages_are_gone(room), 90)
    finally:
        room.change_settings(fileReservedTime=72, deleteUnconsumedEnable="false")
    room.produce(3, **{"from": 5})
    time.sleep(1.1)  # sleeps: the client names a time in whole seconds
    since = time.strftime("%Y%m%d%H%M%S")
    time.sleep(1.1)  # sleeps: the next messages are later than that second
    room.produce(3, **{"from": 8})
    (row,) = room.do("offsets")["rows"]
    assert row["max"] == 11
    for where in ("first", "last", "timestamp"):
        room.consume(where, group=f"{room.group}_{where}", since=since, list=20, **{"from": where})
        room.state(where, queues=1)
    # An offset is asked for, and the end with it, before the queue counts as assigned.
    room.produce(1, **{"from": 11})
    expected = {"first": list(range(row["min"], 12)), "timestamp": [8, 9, 10, 11], "last": [11]}
    for where, numbers in expected.items():
        state = room.state(where, received=len(numbers))
        assert sorted(int(message["properties"]["seq"]) for message in state["messages"]) == numbers, where


def first_messages_are_gone(room: Room) -> bool:
    room.call(329)  # delete what is over its time
    room.call(306)  # and the queue entries of what is gone
    return bool(room.do("offsets")["rows"][0]["min"] > 0)
