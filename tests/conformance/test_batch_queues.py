"""Batch queues through the official client against both brokers, and on a store that changes hands."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache
import ours
import pytest
from official import Client, Reply

from aerobee.testing.eventually import eventually_sync as eventually

pytestmark = [pytest.mark.apache, pytest.mark.timeout(300)]


class Room:
    """One test's topic with one batch queue."""

    def __init__(self, client: Client, namesrv: str, broker: str, name: str) -> None:
        self.client, self.namesrv, self.broker, self.name = client, namesrv, broker, name
        self.sent = 0

    def create(self, attributes: str = "+queue.type=BatchCQ") -> str:
        made = self.client.admin(
            "updateTopic",
            "-b",
            self.broker,
            "-t",
            self.name,
            "-r",
            "1",
            "-w",
            "1",
            "-a",
            attributes,
            "-n",
            self.namesrv,
        )
        if "success" in made:
            eventually(lambda: apache.call(self.namesrv, 105, {"topic": self.name})[0]["code"] == 0, 15)
        return made

    def send(self, count: int, **arguments: Any) -> list[dict[str, Any]]:
        reply = self.client.do(
            "produce", namesrv=self.namesrv, topic=self.name, count=count, **{"from": self.sent}, **arguments
        )
        assert reply["errors"] == {}
        self.sent += count
        results: list[dict[str, Any]] = reply["results"]
        return results

    def pull(self, **arguments: Any) -> Reply:
        full = {"topic": self.name, "queue": 0, "group": "readers", "broker": "broker-a"}
        return self.client.do("pull", namesrv=self.namesrv, **{**full, **arguments})

    def read(self, offset: int = 0, **arguments: Any) -> list[tuple[int, str]]:
        """Offset and number of all messages from an offset on."""
        found = []
        while (reply := self.pull(offset=offset, **arguments))["status"] == "FOUND":
            found += [(message["queue_offset"], message["properties"]["seq"]) for message in reply["messages"]]
            offset = reply["next"]
        return found


@pytest.fixture
def room(client: Client, cluster: apache.Cluster, request: pytest.FixtureRequest) -> Room:
    name = "batches_" + request.node.originalname.removeprefix("test_")
    return Room(client, cluster.namesrv_address, cluster.broker_address, name)


def expected(first: int, count: int) -> list[tuple[int, str]]:
    return [(number, str(number)) for number in range(first, first + count)]


def test_a_batch_stays_one(room: Room) -> None:
    room.create()
    results = room.send(12, mode="batch", batch=5, tags=["TagA"], keys="k")
    assert [result["queue_offset"] for result in results] == [0, 5, 10]
    assert all("," not in result["offset_msg_id"] for result in results), "one record each"
    single = room.send(1, tags=["TagB"])
    assert single[0]["queue_offset"] == 12
    eventually(lambda: room.pull()["max"] == 13, 15)
    assert room.read() == expected(0, 13)
    assert room.read(7) == expected(5, 8), "the whole batch comes again"
    one = room.pull(offset=0, max=1)
    assert (len(one["messages"]), one["next"]) == (5, 5)
    whole = room.pull(offset=0)["messages"]
    assert {message["sys_flag"] & 0xC0 for message in whole[:12]} == {0xC0} and whole[12]["sys_flag"] & 0xC0 == 0
    assert {message["properties"]["KEYS"] for message in whole[:12]} == {f"k{number}" for number in range(12)}
    assert room.read(tags="TagB") == [(12, "12")]
    assert room.pull(offset=50)["next"] == 13
    times = [message["stored"] for message in whole]
    assert room.pull(at_ms=times[0] - 1)["at"] == 0
    assert room.pull(at_ms=times[12] + 60_000)["at"] == 12, "the last batch"
    if times[5] > times[4]:
        assert room.pull(at_ms=times[5])["at"] == 5
    status = room.client.admin("topicStatus", "-t", room.name, "-n", room.namesrv)
    assert [line.split()[:4] for line in status.splitlines() if line.startswith("broker-a")] == [
        ["broker-a", "0", "0", "13"]
    ]


def test_the_client_gathers_by_itself(room: Room) -> None:
    room.create()
    results = room.send(60, auto_batch=True, threads=20)
    batches = {result["msg_id"] for result in results}
    assert len(batches) == len({result["offset_msg_id"] for result in results}) < 60, "the batch's id for all in it"
    room.client.do(
        "consume.start", namesrv=room.namesrv, topic=room.name, name=room.name, group=f"{room.name}_group", list=60
    )
    state = room.client.do("consume.state", name=room.name, received=60, timeout_ms=20_000)
    room.client.do("consume.stop", name=room.name)
    assert (state["received"], state["distinct"], state["duplicates"]) == (60, 60, 0)
    by_id = {message["msg_id"]: message["queue_offset"] for message in state["messages"]}
    assert sorted(by_id.values()) == list(range(60))
    assert len(by_id) == 60 and not batches & set(by_id), "each message has its own id"


def test_a_waiting_pull_gets_the_batch(room: Room) -> None:
    room.create()
    room.send(2, mode="batch", batch=2)
    eventually(lambda: room.pull()["max"] == 2, 15)
    waiting = room.client.start(
        "pull",
        namesrv=room.namesrv,
        topic=room.name,
        queue=0,
        group="readers",
        broker="broker-a",
        offset=2,
        wait=True,
    )
    time.sleep(1)  # sleeps: the pull is to wait already when the batch comes
    room.send(3, mode="batch", batch=3)
    reply = waiting.result(20)
    assert [message["queue_offset"] for message in reply["messages"]] == [2, 3, 4]


def test_the_kind_of_queue_is_chosen_once(room: Room) -> None:
    answers = [
        room.create("-queue.type"),
        room.create("+queue.type=Other"),
        room.create("+no.such=1"),
        room.create(),
        room.create(),
        room.create("+queue.type=SimpleCQ"),
        room.create("-queue.type"),
        room.create("-message.type"),
        room.create("+reserve.time=x"),
        room.create("+reserve.time=-2"),
    ]
    reasons = [answer.partition("DESC: ")[2].partition("\n")[0].split(" BROKER")[0].strip() for answer in answers]
    assert reasons == [
        "only add attribute is supported while creating topic. key: queue.type",
        "value is not in set: [SimpleCQ, BatchCQ]",
        "unsupported key: no.such",
        "",
        "attempt to update an unchangeable attribute. key: queue.type",
        "attempt to update an unchangeable attribute. key: queue.type",
        "attempt to update an unchangeable attribute. key: queue.type",
        "attempt to delete a nonexistent key: message.type",
        'For input string: "x"',
        "value is not in range(-1, 9223372036854775807)",
    ]


def test_a_deleted_topic_can_be_of_the_other_kind(room: Room) -> None:
    room.create()
    room.send(4, mode="batch", batch=4)
    eventually(lambda: room.pull()["max"] == 4, 15)
    room.client.admin("deleteTopic", "-t", room.name, "-c", "DefaultCluster", "-n", room.namesrv)
    eventually(lambda: apache.call(room.namesrv, 105, {"topic": room.name})[0]["code"] != 0, 15)
    room.create("+queue.type=SimpleCQ")
    room.sent = 0
    room.send(4, mode="batch", batch=4)
    eventually(lambda: room.pull()["max"] == 4, 15)
    assert room.read(2) == expected(2, 2), "no batches any more"


@pytest.mark.slow
def test_a_store_goes_to_and_fro(client: Client, private_network: None, tmp_path: Path) -> None:
    # Claim: batch queues of one broker are the other's, also after a kill; their files are of the same layout.
    namesrv = ours.start_namesrv(tmp_path, 29879)
    start: dict[str, Callable[..., apache.Process]] = {"apache": apache.start_broker, "aerobee": ours.start_broker}
    options = {"mapperFileSizeBatchConsumeQueue": 46 * 20}
    room = Room(client, "127.0.0.1:29879", "127.0.0.1:30913", "batches_exchange")
    broker: apache.Process | None = None
    try:
        for number, kind in enumerate(("apache", "aerobee", "apache")):
            broker = start[kind](tmp_path, room.namesrv, 30913, options)
            if number == 0:
                room.create()
            eventually(lambda: room.pull()["max"] == room.sent, 15)
            assert room.read() == expected(0, room.sent), (number, kind)
            room.send(90, mode="batch", batch=3)
            room.send(1)
            eventually(lambda: room.pull()["max"] == room.sent, 15)
            assert room.read() == expected(0, room.sent), (number, kind)
            broker.kill()
        files = sorted(path.name for path in (tmp_path / "store/batchconsumequeue/batches_exchange/0").iterdir())
        assert files == [f"{920 * number:020}" for number in range(len(files))] and len(files) >= 5
        assert not (tmp_path / "store/consumequeue/batches_exchange").exists()
    finally:
        if broker is not None:
            broker.kill()
        namesrv.kill()
