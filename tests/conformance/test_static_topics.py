"""Static topics as mqadmin makes and moves them, under the official clients: two brokers of Apache's, two of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache
import ours
import pytest
from official import Client

from aerobee.testing.eventually import eventually_sync as eventually

pytestmark = [pytest.mark.apache, pytest.mark.timeout(400)]  # two of Apache's brokers start, twice

TOPIC = "static"
BLOCK = 10_000
"""mqadmin begins the new leader's offsets at a multiple of this."""


class Pair:
    """A name server and the brokers `left` and `right` of one cluster."""

    def __init__(self, kind: str, directory: Any, client: Client) -> None:
        self.kind, self.client = kind, client
        self._maker = apache if kind == "apache" else ours
        self._directory = directory
        names, self._ports = (9886, {"left": 12911, "right": 13911})
        if kind == "aerobee":
            names, self._ports = (19886, {"left": 22911, "right": 23911})
        self.names = f"127.0.0.1:{names}"
        self._namesrv = self._maker.start_namesrv(directory / "names", names)
        self._brokers = {name: self._start(name) for name in self._ports}
        self._number = 0
        self._groups: list[str] = []
        self.sent: dict[str, int] = {}
        """Unique id → number of each message that was accepted."""

    def _start(self, name: str) -> apache.Process:
        return self._maker.start_broker(self._directory / name, self.names, self._ports[name], name=name)

    def kill_and_start(self, name: str) -> None:
        self._brokers[name].kill()
        self._brokers[name] = self._start(name)

    def discard(self) -> None:
        for group in self._groups:
            self.client.do("consume.stop", name=f"{self.kind}/{group}")
        for process in [*self._brokers.values(), self._namesrv]:
            process.kill()

    def admin(self, *args: str) -> str:
        return self.client.admin(*args, "-n", self.names)

    def route(self) -> str:
        header, body = apache.call(self.names, 105, {"topic": TOPIC, "acceptStandardJsonOnly": "true"})
        return body.decode() if header["code"] == 0 else ""

    def produce(self, count: int, *, errors: bool = False) -> list[dict[str, Any]]:
        """Sends from a producer of its own, which knows the newest route; the accepted ones."""
        reply = self.client.do(
            "produce", namesrv=self.names, topic=TOPIC, count=count, **{"from": self._number}, timeout_ms=3000
        )
        assert errors or reply["errors"] == {}, reply["errors"]
        self._number += count
        for result in reply["results"]:
            self.sent[result["msg_id"]] = result["queue"]
        results: list[dict[str, Any]] = reply["results"]
        return results

    def consume(self, group: str) -> None:
        self.client.do(
            "consume.start", name=f"{self.kind}/{group}", group=group, namesrv=self.names, topic=TOPIC,
            orderly=True, list=100_000,
        )  # fmt: skip
        self._groups.append(group)

    def received(self, group: str, count: int, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        state = self.client.do(
            "consume.state", name=f"{self.kind}/{group}", received=count, timeout_ms=int(timeout_s * 1000)
        )
        messages: list[dict[str, Any]] = state["messages"]
        return messages


@pytest.fixture(params=["apache", "aerobee"])
def pair(
    request: pytest.FixtureRequest,
    private_network: None,
    client: Client,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    made = Pair(request.param, tmp_path_factory.mktemp(f"static-{request.param}"), client)
    yield made
    made.discard()


def in_order(messages: list[dict[str, Any]]) -> None:
    """Within each queue numbers and offsets only grow."""
    last: dict[int, tuple[int, int]] = {}
    for message in messages:
        here = (int(message["properties"]["seq"]), message["queue_offset"])
        before = last.get(message["queue"], (-1, -1))
        assert here[0] > before[0] and here[1] > before[1], f"queue {message['queue']}: {before} then {here}"
        last[message["queue"]] = here


def test_queues_move_under_a_producer_and_a_consumer(pair: Pair) -> None:
    # Claim: a logical queue keeps its number and its order while it moves from broker to broker and its brokers are
    # killed; its consumers get every accepted message once, and continue where they were.
    pair.admin("updateStaticTopic", "-b", "left", "-t", TOPIC, "-qn", "4")
    eventually(lambda: '"topicQueueMappingByBroker":{' in pair.route(), 30)
    pair.consume("followers")
    first = pair.produce(100)
    assert sorted((result["queue"], result["queue_offset"]) for result in first) == [
        (queue, offset) for queue in range(4) for offset in range(25)
    ]
    assert len(pair.received("followers", 100)) == 100

    moving = pair.client.start(
        "admin", args=["remappingStaticTopic", "-b", "left,right", "-t", TOPIC, "-n", pair.names]
    )
    while not moving.done():
        pair.produce(20, errors=True)  # the former leader refuses until the producer knows better
    moving.result(1)
    eventually(lambda: all(result["queue_offset"] >= 0 for result in pair.produce(8, errors=True)), 30)
    later = pair.produce(100)
    moved = {result["queue"] for result in later if result["queue_offset"] >= BLOCK}
    assert len(moved) == 2, "half of the queues are led by the other broker now"

    def all_came(group: str) -> list[dict[str, Any]]:
        messages = pair.received(group, len(pair.sent), 90)
        assert sorted(message["msg_id"] for message in messages) == sorted(pair.sent)
        in_order(messages)
        return messages

    everything = all_came("followers")
    assert {message["queue"] for message in everything if message["queue_offset"] >= BLOCK} == moved

    pair.admin("updateStaticTopic", "-b", "left,right", "-t", TOPIC, "-qn", "6")
    eventually(lambda: {result["queue"] for result in pair.produce(24, errors=True)} == set(range(6)), 30)
    all_came("followers")

    for name in ("right", "left"):
        pair.kill_and_start(name)
    eventually(lambda: {result["queue"] for result in pair.produce(24, errors=True)} == set(range(6)), 30)
    messages = pair.received("followers", len(pair.sent), 90)
    assert {message["msg_id"] for message in messages} == set(pair.sent)
    pair.consume("readers")
    again = all_came("readers")
    assert len(again) == len(pair.sent), "a new group reads all of it, through every stretch"
    table = pair.admin("topicStatus", "-t", TOPIC)
    assert "__syslo__global__" in table or "left" in table
