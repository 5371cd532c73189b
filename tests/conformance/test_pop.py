"""Pop as the official Java client and the client inside Apache's proxy see it, against Apache's broker and ours."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import apache
import pytest
import raw
from official import Client, Reply

pytestmark = pytest.mark.apache

AGAIN_S = 40.0
"""Apache's broker brings a message again up to half a minute after its invisible time."""


class Room:
    """One test's topic and group in one cluster."""

    def __init__(self, client: Client, cluster: apache.Cluster, topic: str) -> None:
        self.client, self.cluster, self.topic = client, cluster, topic
        self.group = f"{topic}_group"
        self.where: dict[str, Any] = {
            "broker": cluster.broker_address,
            "broker_name": cluster.broker_name,
            "topic": topic,
            "group": self.group,
        }
        self.consumers: list[str] = []

    def create(self, queues: int, attributes: str = "") -> None:
        number = str(queues)
        more = ("-a", attributes) if attributes else ()
        self.admin(
            "updateTopic", "-b", self.cluster.broker_address, "-t", self.topic, "-r", number, "-w", number, *more
        )
        self.admin("updateSubGroup", "-b", self.cluster.broker_address, "-g", self.group)
        route = {"topic": self.topic}
        eventually(lambda: apache.call(self.cluster.namesrv_address, 105, route)[0]["code"] == 0)

    def admin(self, *args: str) -> str:
        return self.client.admin(*args, "-n", self.cluster.namesrv_address)

    def produce(self, count: int, **arguments: Any) -> Reply:
        reply = self.client.do(
            "produce", namesrv=self.cluster.namesrv_address, topic=self.topic, count=count, **arguments
        )
        assert reply["errors"] == {}
        return reply

    def pop(self, **arguments: Any) -> Reply:
        return self.client.do("pop", **{**self.where, **arguments})

    def pop_all(self, count: int, timeout_s: float = 20.0, **arguments: Any) -> list[dict[str, Any]]:
        """Pops until there are so many; fails when they do not come, or more than that."""
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + timeout_s
        while len(found) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} messages came in {timeout_s:.0f} s"
            found += self.pop(poll_ms=1_000, **arguments)["messages"]
        assert len(found) == count
        return found

    def ack(self, *messages: dict[str, Any], batch: bool = False) -> list[str]:
        handles = [message["handle"] for message in messages]
        statuses: list[str] = self.client.do("pop.ack", handles=handles, batch=batch, **self.where)["statuses"]
        return statuses

    def change(self, handle: str, invisible_ms: int) -> str:
        reply = self.client.do("pop.change", handle=handle, invisible_ms=invisible_ms, **self.where)
        assert reply["status"] == "OK"
        new: str = reply["handle"]
        return new

    def consume(self, name: str, **arguments: Any) -> None:
        full = f"{self.topic}/{name}"
        self.client.do(
            "consume.start",
            **{
                "name": full,
                "group": self.group,
                "namesrv": self.cluster.namesrv_address,
                "topic": self.topic,
                "client_rebalance": False,
                **arguments,
            },
        )
        self.consumers.append(full)

    def state(self, name: str, received: int = 0, timeout_s: float = AGAIN_S, **arguments: Any) -> Reply:
        return self.client.do(
            "consume.state",
            name=f"{self.topic}/{name}",
            received=received,
            timeout_ms=int(timeout_s * 1000),
            **arguments,
        )

    def configure(self, **settings: str) -> None:
        """Changes settings of the running broker; the module's other tests need them as they were."""
        for key, value in settings.items():
            self.admin("updateBrokerConfig", "-b", self.cluster.broker_address, "-k", key, "-v", value)

    def close(self) -> None:
        for future in [self.client.start("consume.stop", name=name) for name in self.consumers]:
            future.result(30)


def eventually(check: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.05)


@pytest.fixture
def room(client: Client, cluster: apache.Cluster, request: pytest.FixtureRequest) -> Iterator[Room]:
    opened = Room(client, cluster, "pop_" + request.node.originalname.removeprefix("test_"))
    yield opened
    opened.close()


def sequence(messages: list[dict[str, Any]]) -> list[int]:
    return sorted(int(message["properties"]["seq"]) for message in messages)


def test_given_out_acknowledged_and_again(room: Room) -> None:
    room.create(4)
    room.produce(40, keys="k", tags=["TagA", "TagB"], properties={"colour": "grün"})
    popped = room.pop_all(40, invisible_ms=6_000)
    assert sequence(popped) == list(range(40))
    for message in popped:
        fields = message["handle"].split(" ")
        assert len(fields) == 8
        assert fields[2] == "6000"
        assert 0 <= int(fields[3]) < 8
        assert fields[4:] == ["0", "broker-a", str(message["queue"]), str(message["queue_offset"])]
        assert int(fields[0]) <= message["queue_offset"]
        assert message["properties"]["1ST_POP_TIME"] == fields[1]
    assert room.pop()["status"] == "POLLING_NOT_FOUND"
    assert set(room.ack(*popped[:10])) == {"OK"}
    assert room.ack(*popped[10:30], batch=True) == ["OK"]
    again = room.pop_all(10, AGAIN_S)
    assert sequence(again) == sequence(popped[30:])
    originals = {message["properties"]["seq"]: message for message in popped}
    for message in again:
        original = originals[message["properties"]["seq"]]
        assert (message["topic"], message["reconsume_times"], message["tags"], message["keys"]) == (
            room.topic,
            1,
            original["tags"],
            original["keys"],
        )
        assert message["handle"].split(" ")[4] == "1"
        assert message["properties"]["ORIGIN_GROUP"] == room.group
        assert message["properties"]["1ST_POP_TIME"] == original["handle"].split(" ")[1]
        assert set(message["properties"]) == set(original["properties"]) | {"ORIGIN_GROUP"}
    assert set(room.ack(*again)) == {"OK"}


def test_hidden_on(room: Room) -> None:
    room.create(1)
    room.produce(3)
    first, second, third = room.pop_all(3, invisible_ms=4_000)
    handle = room.change(first["handle"], 300_000)
    assert len(handle.split(" ")) == 8
    assert handle.split(" ")[2:] == ["300000", *first["handle"].split(" ")[3:]]
    room.ack(third)
    assert sequence(room.pop_all(1, AGAIN_S)) == sequence([second])
    assert room.ack({"handle": handle}) == ["OK"]


def test_in_order(room: Room) -> None:
    room.create(1)
    room.produce(6)
    asked: dict[str, Any] = {"order": True, "queue": 0, "invisible_ms": 30_000}
    one = room.pop(max=3, attempt="one", **asked)["messages"]
    assert sequence(one) == [0, 1, 2]
    assert {message["handle"].split(" ")[3] for message in one} == {"999"}
    assert room.pop(max=3, attempt="two", **asked)["status"] == "POLLING_NOT_FOUND"
    assert sequence(room.pop(max=3, attempt="one", **asked)["messages"]) == [0, 1, 2], (
        "the same attempt, the same again"
    )
    again = room.pop(max=3, attempt="one", **asked)["messages"]
    waiting = room.client.start("pop", **room.where, max=3, attempt="two", poll_ms=10_000, **asked)
    assert room.ack(*again) == ["OK"] * 3
    two = waiting.result(20)["messages"]
    assert sequence(two) == [3, 4, 5]
    room.change(two[0]["handle"], 1_000)
    room.change(two[1]["handle"], 1_000)
    room.ack(two[2])
    three = room.pop_all(2, max=2, attempt="three", **asked)
    assert [(message["properties"]["seq"], message["reconsume_times"]) for message in three] == [("3", 1), ("4", 1)]


def test_a_message_wakes_who_waits(room: Room) -> None:
    room.create(2)
    assert room.pop()["status"] == "POLLING_NOT_FOUND"
    waiting = room.client.start("pop", **room.where, poll_ms=15_000)
    noticed = room.client.start("pop.notify", **{**room.where, "group": "others"}, poll_ms=15_000)
    eventually(lambda: polling(room, room.group) == 1)
    room.produce(1)
    assert sequence(waiting.result(5)["messages"]) == [0]
    assert noticed.result(5) == {"has_msg": True, "polling_full": False}
    started = time.monotonic()
    assert room.pop(poll_ms=1_000)["status"] == "POLLING_NOT_FOUND"
    assert 0.8 < time.monotonic() - started < 5


def polling(room: Room, group: str) -> int:
    ask = {"consumerGroup": group, "topic": room.topic, "queueId": "-1"}
    return int(apache.call(room.cluster.broker_address, 200055, ask)[0]["extFields"]["pollingNum"])


def test_notification_and_polling_info_at_the_door(room: Room) -> None:
    """What no official client shows: who is refused and how, what waits where, when it is answered."""
    room.create(2)
    broker, topic, group = room.cluster.broker_address, room.topic, room.group
    ask = {"consumerGroup": group, "topic": topic, "queueId": "-1"}
    closed, mute = f"{topic}_closed", f"{group}_mute"
    room.admin("updateTopic", "-b", broker, "-t", closed, "-r", "1", "-w", "1", "-p", "2")
    room.admin("updateSubGroup", "-b", broker, "-g", mute, "-s", "false")

    with raw.Connection(broker, 20) as connection:

        def notification(**more: str) -> dict[str, str]:
            return {**ask, "pollTime": "0", "bornTime": "0", **more}

        def told(code: int, fields: dict[str, str]) -> tuple[int, str]:
            header, _ = connection.call(code, fields)
            return header["code"], header.get("remark") or ""

        for code, full in ((NOTIFICATION, notification()), (POLLING_INFO, ask)):
            refusals = {
                "topic": ({"topic": "nowhere"}, 17, "topic[nowhere] not exist, apply first please! "),
                "perm": ({"topic": closed}, 16, f"the topic[{closed}] peeking message is forbidden"),
                "queue": (
                    {"queueId": "2"},
                    29,
                    f"queueId[2] is illegal, topic:[{topic}] topicConfig.readQueueNums:[2] ",
                ),
                "group": ({"consumerGroup": mute}, 16, f"subscription group no permission, {mute}"),
            }
            for change, expected, remark in refusals.values():
                got = told(code, {**full, **change})
                assert got[0] == expected and got[1].startswith(remark), got

        def polling(queue: int = -1) -> int:
            header, _ = connection.call(POLLING_INFO, {**ask, "queueId": str(queue)})
            assert header["code"] == 0
            return int(header["extFields"]["pollingNum"])

        def answer(number: int) -> dict[str, str]:
            header, body = connection.reply(number)
            assert (header["code"], body) == (0, b"")
            fields: dict[str, str] = header["extFields"]
            return fields

        # Nothing there: at once when it may not wait; else when its time is over, or a message comes.
        assert answer(connection.send(NOTIFICATION, notification())) == {"hasMsg": "false", "pollingFull": "false"}
        assert [polling(queue) for queue in (-1, 0, 1)] == [0, 0, 0]
        started = time.monotonic()
        born = str(int(time.time() * 1000))
        short = connection.send(NOTIFICATION, notification(pollTime="1500", bornTime=born))
        assert answer(short) == {"hasMsg": "false", "pollingFull": "false"}
        assert 1.0 < time.monotonic() - started < 4
        of_all, of_one, of_other = (
            connection.send(NOTIFICATION, notification(pollTime="15000", bornTime=born, queueId=str(queue)))
            for queue in (-1, 1, 0)
        )
        popping = connection.send(POP_MESSAGE, {
            **ask, "queueId": "1", "maxMsgNums": "1", "invisibleTime": "60000", "pollTime": "15000", "bornTime": born,
            "initMode": "0", "consumerGroup": f"{group}_pops",
        })  # fmt: skip
        eventually(lambda: polling_of(connection, {**ask, "queueId": "1", "consumerGroup": f"{group}_pops"}) == 1)
        assert [polling(queue) for queue in (-1, 0, 1)] == [0, 0, 0], "only pops are counted"
        room.produce(1, mode="queue", broker=room.cluster.broker_name, queue=1)
        for number in (of_all, of_one):
            assert answer(number) == {"hasMsg": "true", "pollingFull": "false"}
        assert connection.reply(popping)[0]["code"] == 0
        assert connection.silent(), "the other queue has no message"
        assert answer(connection.send(NOTIFICATION, notification(queueId="1"))) == {
            "hasMsg": "true", "pollingFull": "false",
        }  # fmt: skip
        assert answer(connection.send(NOTIFICATION, notification(queueId="0")))["hasMsg"] == "false"
        room.produce(1, mode="queue", broker=room.cluster.broker_name, queue=0)
        assert answer(of_other)["hasMsg"] == "true"

        # Only for what a filter lets through.
        tagged = {"expType": "TAG", "exp": "TagA || TagB"}
        assert answer(connection.send(NOTIFICATION, notification(**tagged)))["hasMsg"] == "false"
        assert answer(connection.send(NOTIFICATION, notification(expType="TAG", exp="*")))["hasMsg"] == "true"
        waiting = connection.send(NOTIFICATION, notification(pollTime="15000", **tagged))
        for tag in ("TagC", "TagB"):
            room.produce(1, mode="queue", broker=room.cluster.broker_name, queue=0, tags=[tag])
            if tag == "TagC":
                assert answer(connection.send(NOTIFICATION, notification(**tagged)))["hasMsg"] == "false"
                assert connection.silent()
        assert answer(waiting)["hasMsg"] == "true"
        wrong = notification(expType="SQL92", exp="a >")
        code, remark = told(NOTIFICATION, wrong)
        assert code == 23 and remark.startswith("parse the consumer's subscription failed")


@pytest.mark.parametrize(("kind", "text"), [("TAG", "TagA"), ("SQL92", "seq >= 100")])
def test_a_notification_sleeps_through_what_its_filter_leaves_out(room: Room, kind: str, text: str) -> None:
    room.topic += kind
    room.create(2)
    with raw.Connection(room.cluster.broker_address, 20) as connection:
        ask = {"consumerGroup": room.group, "topic": room.topic, "queueId": "-1", "bornTime": "0", "pollTime": "15000"}
        waiting = connection.send(NOTIFICATION, {**ask, "expType": kind, "exp": text})
        room.produce(70, tags=["TagB"])
        assert polling_of(connection, {**ask, "queueId": "0"}) == 0 and connection.silent()
        room.produce(1, tags=["TagA"], **{"from": 100})
        assert connection.reply(waiting)[0]["extFields"]["hasMsg"] == "true"
        ask["pollTime"] = "0"
        header, _ = connection.call(NOTIFICATION, {**ask, "expType": "SQL92", "exp": "seq = 5555"})
        assert header["extFields"]["hasMsg"] == "true", "what is there already is looked at by its tag only"


NOTIFICATION, POLLING_INFO, POP_MESSAGE = 200054, 200055, 200050


def polling_of(connection: raw.Connection, ask: dict[str, str]) -> int:
    return int(connection.call(POLLING_INFO, ask)[0]["extFields"]["pollingNum"])


def test_filters(room: Room) -> None:
    room.create(1)
    room.produce(9, tags=["TagA", "TagB", "TagC"])
    chosen = room.pop_all(6, exp="TagA || TagC", exp_type="TAG")
    assert {message["tags"] for message in chosen} == {"TagA", "TagC"}
    others = {"group": f"{room.group}_sql"}
    chosen = room.pop_all(3, exp="seq >= 2 AND seq BETWEEN 0 AND 4", exp_type="SQL92", **others)
    assert sequence(chosen) == [2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"topic": "pop_no_such_topic"}, 17),
        ({"queueId": "9"}, 29),
        ({"maxMsgNums": "33"}, 29),
        ({"expType": "SQL92", "exp": "a >"}, 23),
        ({"bornTime": "1"}, 210),
    ],
)
def test_refusals(room: Room, changes: dict[str, str], code: int) -> None:
    room.create(1)
    header = {
        "consumerGroup": room.group,
        "topic": room.topic,
        "queueId": "-1",
        "maxMsgNums": "1",
        "invisibleTime": "10000",
        "pollTime": "0",
        "bornTime": "0",
        "initMode": "0",
    }
    assert apache.call(room.cluster.broker_address, 200050, {**header, **changes})[0]["code"] == code


def test_acks_that_cannot_be(room: Room) -> None:
    room.create(1)
    room.produce(1)
    (message,) = room.pop_all(1)
    header = {"consumerGroup": room.group, "topic": room.topic, "queueId": "0", "offset": "0"}
    header["extraInfo"] = message["handle"]

    def code(number: int = 200051, **changes: str) -> int:
        found: int = apache.call(room.cluster.broker_address, number, {**header, **changes})[0]["code"]
        return found

    assert code(topic="pop_no_such_topic") == 17
    assert code(queueId="7") == 13
    assert code(offset="100") == 208
    assert code(200053, offset="100", invisibleTime="1000") == 208
    assert code() == 0
    assert code() == 0, "acknowledged twice"


def test_push_consumers_that_pop(room: Room) -> None:
    room.create(4)
    room.admin(
        "setConsumeMode", "-b", room.cluster.broker_address, "-t", room.topic, "-g", room.group, "-m", "POP", "-q", "0"
    )
    room.consume("one")
    room.consume("two")
    for name in ("one", "two"):
        assigned = room.state(name, queues=1)["assigned"]
        assert assigned == [f"pop:broker-a:{room.topic}:-1"]
    room.produce(200)
    counts: list[int] = []

    def all_came() -> bool:
        counts[:] = [room.state(name)["received"] for name in ("one", "two")]
        return sum(counts) >= 200

    eventually(all_came)
    assert sum(counts) == 200
    eventually(lambda: consumed(room))


def consumed(room: Room) -> bool:
    """The group's offsets are at the end of all queues."""
    return all(
        line.split()[3] == line.split()[4]
        for line in room.admin("consumerProgress", "-g", room.group).splitlines()
        if line.startswith(f"{room.topic} ")
    )


def test_a_push_consumer_that_fails(room: Room) -> None:
    room.create(1)
    room.admin(
        "setConsumeMode", "-b", room.cluster.broker_address, "-t", room.topic, "-g", room.group, "-m", "POP", "-q", "0"
    )
    room.consume("one", fail_times=1, list=10, pop_invisible_ms=5_000)
    room.produce(2)
    state = room.state("one", received=2, timeout_s=60)
    assert (state["received"], state["duplicates"]) == (2, 0)
    assert sorted(message["reconsume_times"] for message in state["messages"]) == [0, 0, 1, 1]


def test_the_highest_priority_first(room: Room) -> None:
    room.create(4, "+message.type=PRIORITY")
    room.produce(7, priorities=[1, 0, 2, 9, 1, 3, 0])
    seen = [room.pop_all(1, max=1)[0] for _ in range(7)]
    assert [(message["properties"]["seq"], message["queue"]) for message in seen] == [
        ("3", 3), ("5", 3), ("2", 2), ("0", 1), ("4", 1), ("1", 0), ("6", 0),
    ]  # fmt: skip
    assert seen[0]["properties"]["_SYS_MSG_PRIORITY_"] == "9"


def test_retry_topics_as_the_settings_say(room: Room) -> None:
    room.create(3)
    room.produce(3, mode="queue", queue=2, broker="broker-a")
    assert len(room.pop_all(3, invisible_ms=3_000)) == 3
    try:
        room.configure(useSeparateRetryQueue="true", enableRetryTopicV2="false")
        once = room.pop_all(3, AGAIN_S, invisible_ms=3_000)
        assert {(message["handle"].split(" ")[4], message["queue"]) for message in once} == {("1", 2)}
        room.configure(enableRetryTopicV2="true")
        room.produce(2, mode="queue", queue=1, broker="broker-a")
        fresh = [message for message in room.pop_all(2, invisible_ms=3_000) if message["reconsume_times"] == 0]
        assert len(fresh) == 2
        again = room.pop_all(5, AGAIN_S, invisible_ms=60_000)
        places = {(message["handle"].split(" ")[4], message["queue"], message["reconsume_times"]) for message in again}
        assert places == {("1", 2, 2), ("2", 1, 1)}, "a retry topic keeps its form, and both are read"
        assert set(room.ack(*again)) == {"OK"}
    finally:
        room.configure(useSeparateRetryQueue="false", enableRetryTopicV2="false")


def test_modes_and_assignments(room: Room) -> None:
    room.create(4)

    def ask(code: int, **body: Any) -> tuple[int, str, Any]:
        full = {"topic": room.topic, "consumerGroup": room.group, **body}
        header, answer = apache.call(room.cluster.broker_address, code, body=json.dumps(full).encode())
        return header["code"], header.get("remark") or "", json.loads(answer) if answer else None

    assert ask(401, topic="%RETRY%x", mode="POP") == (16, "retry topic is not allowed to set mode", None)
    assert ask(401, topic="pop_no_such", mode="POP") == (17, "topic[pop_no_such] not exist", None)
    assert ask(401, mode="POP", popShareQueueNum=2) == (0, "", None)
    table = ask(402)[2]["messageRequestModeMap"]
    assert table[room.topic][room.group] == {
        "consumerGroup": room.group, "mode": "POP", "popShareQueueNum": 2, "topic": room.topic,
    }  # fmt: skip
    query: dict[str, Any] = {"clientId": "c1", "strategyName": "AVG", "messageModel": "CLUSTERING"}
    nobody = ask(400, **query)
    assert (nobody[0], nobody[2].get("messageQueueAssignments")) == (0, None), "a group without members"
    code, _, body = ask(400, **{**query, "messageModel": "BROADCASTING"})
    assert code == 0
    places = sorted(
        (place["messageQueue"]["brokerName"], place["messageQueue"]["queueId"], place["mode"])
        for place in body["messageQueueAssignments"]
    )
    assert places == [("broker-a", queue, "POP") for queue in range(4)]


def test_what_is_popped_is_exported_for_an_older_release(room: Room) -> None:
    room.create(1)
    room.produce(1)
    (message,) = room.pop_all(1, invisible_ms=6_000)
    told = room.admin("exportPopRecord", "-b", room.cluster.broker_address)
    assert told.startswith("Export broker records, brokerName=broker-a"), told
    (again,) = room.pop_all(1, AGAIN_S)
    assert sequence([again]) == sequence([message])
    room.ack(again)


def test_kill_9(room: Room) -> None:
    room.create(2)
    room.produce(20)
    popped = room.pop_all(20, invisible_ms=8_000)
    room.ack(*popped[:12], batch=True)
    room.cluster.kill_broker()
    room.cluster.start_broker()
    seen: list[int] = []
    deadline = time.monotonic() + 2 * AGAIN_S
    missing = set(sequence(popped[12:]))
    while missing - set(seen):
        assert time.monotonic() < deadline, f"{missing - set(seen)} did not come again"
        messages = room.pop(poll_ms=1_000)["messages"]
        seen += sequence(messages)
        room.ack(*messages)
    if room.cluster.kind == "aerobee":
        assert sorted(seen) == sorted(missing), "acknowledged never comes again; Apache's broker forgets up to 5 s"
        assert room.pop(poll_ms=2_000)["status"] == "POLLING_NOT_FOUND"
