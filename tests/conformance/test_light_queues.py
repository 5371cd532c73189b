"""Light queues (LMQ) through the official client against both brokers, and on a store that changes hands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache
import ours
import pytest
from official import Client, Reply

from aerobee.protocol import fastjson
from aerobee.testing.eventually import eventually_sync as eventually

pytestmark = [pytest.mark.apache, pytest.mark.timeout(300)]

LIGHT = {"enableLmq": "true", "enableMultiDispatch": "true", "enableLmqQuota": "true", "maxLmqConsumeQueueNum": "12"}


@pytest.fixture(scope="module", params=["apache", "aerobee"])
def cluster(
    request: pytest.FixtureRequest, private_network: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[apache.Cluster]:
    """A cluster of each kind with light queues."""
    directory = tmp_path_factory.mktemp(f"light-{request.param}")
    if request.param == "apache":
        started = apache.start(directory, LIGHT, namesrv_port=9977, port=11912)
    else:
        started = ours.start(directory, LIGHT, namesrv_port=19977, port=21912)
    yield started
    started.discard()


class Room:
    """One test's parent topic and light queues."""

    def __init__(self, client: Client, namesrv: str, name: str) -> None:
        self.client, self.namesrv, self.name = client, namesrv, name
        self.sent = 0

    def light(self, letter: str) -> str:
        return f"%LMQ%{self.name}{letter}"

    def send(self, count: int, letters: str, **arguments: Any) -> Reply:
        names = ",".join(self.light(letter) for letter in letters)
        arguments["properties"] = {"INNER_MULTI_DISPATCH": names, **arguments.get("properties", {})}
        reply = self.client.do(
            "produce", namesrv=self.namesrv, topic=self.name, queues=2, count=count, **{"from": self.sent}, **arguments
        )
        self.sent += count
        return reply

    def pull(self, letter: str, **arguments: Any) -> Reply:
        full = {"topic": self.light(letter), "queue": 0, "group": "%LMQ%readers", "broker": "broker-a"}
        return self.client.do("pull", namesrv=self.namesrv, route=self.name, **{**full, **arguments})

    def read(self, letter: str) -> list[str]:
        """The numbers of all messages of a light queue; checks that each says where it is."""
        found: list[str] = []
        offset = 0
        while (reply := self.pull(letter, offset=offset))["status"] == "FOUND":
            for number, message in enumerate(reply["messages"]):
                properties = message["properties"]
                names = properties["INNER_MULTI_DISPATCH"].split(",")
                offsets = properties["INNER_MULTI_QUEUE_OFFSET"].split(",")
                assert offsets[names.index(self.light(letter))] == str(offset + number)
                found.append(properties["seq"])
            offset = reply["next"]
        assert (reply["status"], reply["min"], reply["max"]) == ("NO_NEW_MSG", 0, len(found))
        return found


@pytest.fixture
def room(client: Client, cluster: apache.Cluster, request: pytest.FixtureRequest) -> Room:
    return Room(client, cluster.namesrv_address, request.node.originalname.removeprefix("test_"))


def test_one_message_in_several_queues(room: Room) -> None:
    assert room.send(3, "ab", tags=["TagA", "TagB"])["errors"] == {}
    assert room.send(40, "b", tags=["TagA"])["errors"] == {}
    eventually(lambda: room.pull("b")["max"] == 43, 15)
    assert room.read("a") == ["0", "1", "2"]
    assert room.read("b") == [str(number) for number in range(43)]
    tagged = room.pull("a", offset=0, tags="TagB")
    assert [message["properties"]["seq"] for message in tagged["messages"]] == ["1"]
    message = tagged["messages"][0]
    assert (message["topic"], tagged["next"]) == (room.name, 3)
    beyond = room.pull("a", offset=9)
    assert (beyond["status"], beyond["next"]) == ("OFFSET_ILLEGAL", 3)
    stored = [m["stored"] for m in room.pull("b", offset=0)["messages"]]
    assert room.pull("b", at_ms=0)["at"] == 0
    assert room.pull("b", at_ms=stored[-1] + 60_000)["at"] == 43
    assert room.pull("b", at_ms=stored[3])["at"] == stored.index(stored[3])
    status = room.client.admin("topicStatus", "-t", room.light("b"), "-c", room.name, "-n", room.namesrv)
    assert [line.split()[:4] for line in status.splitlines() if line.startswith("broker-a")] == [
        ["broker-a", "0", "0", "43"]
    ]


def test_a_waiting_pull_is_woken(room: Room) -> None:
    room.send(1, "a")
    eventually(lambda: room.pull("a")["max"] == 1, 15)
    waiting = room.client.start(
        "pull",
        namesrv=room.namesrv,
        route=room.name,
        topic=room.light("a"),
        queue=0,
        group="%LMQ%waiter",
        broker="broker-a",
        offset=1,
        wait=True,
    )
    time.sleep(1)  # sleeps: the pull is to wait already when the message comes
    started = time.monotonic()
    room.send(1, "a")
    reply = waiting.result(20)
    assert [message["properties"]["seq"] for message in reply["messages"]] == ["1"]
    assert time.monotonic() - started < 3


def test_offsets_of_a_group_that_nobody_made(room: Room) -> None:
    room.send(5, "a")
    eventually(lambda: room.pull("a")["max"] == 5, 15)
    group = f"%LMQ%{room.name}"
    room.pull("a", group=group, commit=3)
    eventually(lambda: room.pull("a", group=group, committed=True)["committed"] == 3, 15)


def test_waiting_messages_are_dispatched_when_due(room: Room, cluster: apache.Cluster) -> None:
    room.send(1, "a", level=1)
    room.send(1, "a")
    eventually(lambda: room.pull("a")["max"] == 2, 15)
    assert room.read("a") == ["1", "0"]
    room.client.do(
        "transaction",
        namesrv=room.namesrv,
        topic=room.name,
        queues=2,
        count=1,
        outcome="commit",
        properties={"INNER_MULTI_DISPATCH": room.light("b")},
        **{"from": 2},
    )
    last = 1 if cluster.kind == "apache" else 0  # Apache's broker shows the half message, too
    eventually(lambda: room.pull("b")["max"] == last + 1, 15)
    [message] = room.pull("b", offset=last)["messages"]
    assert (message["topic"], message["properties"]["seq"]) == (room.name, "2")


def test_a_batch_is_not_dispatched(room: Room) -> None:
    room.send(2, "a", mode="batch", batch=2)
    room.send(1, "a")
    eventually(lambda: room.pull("a")["max"] == 1, 15)
    assert room.read("a") == ["2"]


def test_no_more_queues_than_there_may_be(room: Room) -> None:
    letters = "".join(chr(ord("a") + number) for number in range(13))
    errors: dict[str, int] = {}
    for letter in letters:
        errors |= room.send(1, letter, retries=0)["errors"]
    [error] = errors
    assert "CODE: 2017" in error and "lmq consume queue num exceeded" in error
    assert room.send(1, "a")["errors"] == {}, "those that are there are served"


def noted(store: Path, queue: str) -> int:
    """How far the group is in a light queue, by the store's file."""
    file = store / "config" / "lmqConsumerOffset.json"
    table = fastjson.loads(file.read_bytes())["lmqOffsetTable"] if file.exists() else {}
    return int(table.get(f"{queue}@%LMQ%readers", -1))


@pytest.mark.slow
def test_a_store_goes_to_and_fro(client: Client, private_network: None, tmp_path: Path) -> None:
    # Claim: what one broker wrote into light queues, and how far their groups are, the other finds, also after a kill.
    namesrv = ours.start_namesrv(tmp_path, 29878)
    start: dict[str, Callable[..., apache.Process]] = {"apache": apache.start_broker, "aerobee": ours.start_broker}
    room = Room(client, "127.0.0.1:29878", "exchange")
    broker: apache.Process | None = None
    expected: dict[str, list[str]] = {"a": [], "b": []}
    try:
        for number, kind in enumerate(("apache", "aerobee", "apache")):
            broker = start[kind](tmp_path, room.namesrv, 30912, LIGHT)
            if number:
                eventually(lambda: room.pull("b")["max"] >= len(expected["b"]), 15)
                assert {letter: room.read(letter) for letter in "ab"} == expected, (number, kind)
                assert room.pull("a", committed=True)["committed"] == number
            expected["a"] += [str(room.sent + n) for n in range(3)]
            assert room.send(3, "ab")["errors"] == {}
            expected["b"] += expected["a"][-3:] + [str(room.sent + n) for n in range(40)]
            assert room.send(40, "b")["errors"] == {}
            eventually(lambda: room.pull("b")["max"] == len(expected["b"]), 15)
            assert {letter: room.read(letter) for letter in "ab"} == expected, (number, kind)
            if number < 2:
                room.pull("a", commit=number + 1)
                # Every 5 s; Apache's broker for the first time 10 s after its start.
                eventually(lambda number=number: noted(tmp_path / "store", room.light("a")) == number + 1, 20)
            broker.kill()
    finally:
        if broker is not None:
            broker.kill()
        namesrv.kill()
