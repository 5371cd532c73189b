"""Delays through the official client against both brokers, and pending ones on a store that changes hands."""

from __future__ import annotations

import base64
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache
import ours
import pytest
from official import Client, CommandFailed

pytestmark = [pytest.mark.apache, pytest.mark.timeout(300)]

RECALL = {"recallMessageEnable": "true"}
BY_TIMER = {"TIMER_OUT_MS", "TIMER_ENQUEUE_MS", "TIMER_DEQUEUE_MS", "REAL_TOPIC", "REAL_QID"}
_numbers = itertools.count()


@pytest.fixture(scope="module", params=["apache", "aerobee"])
def delays(
    request: pytest.FixtureRequest, private_network: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[apache.Cluster]:
    """A cluster of each kind that lets messages be recalled."""
    directory = tmp_path_factory.mktemp(f"delays-{request.param}")
    if request.param == "apache":
        cluster = apache.start(directory, RECALL, namesrv_port=9976, port=11911)
    else:
        cluster = ours.start(directory, RECALL, namesrv_port=19976, port=21911)
    yield cluster
    cluster.discard()


class Topic:
    """A topic of its own with a consumer that lists what comes."""

    def __init__(self, client: Client, namesrv: str) -> None:
        self.client, self.namesrv = client, namesrv
        self.name = f"delays{next(_numbers)}"
        self.sent = 0

    def produce(self, count: int = 1, **arguments: Any) -> list[dict[str, Any]]:
        reply = self.client.do(
            "produce",
            namesrv=self.namesrv,
            topic=self.name,
            count=count,
            queues=1,
            **{"from": self.sent, **arguments},
        )
        assert reply["errors"] == {}
        self.sent += count
        results: list[dict[str, Any]] = reply["results"]
        return results

    def consume(self) -> None:
        self.client.do(
            "consume.start", namesrv=self.namesrv, topic=self.name, name=self.name, group=f"g-{self.name}", list=1000
        )

    def state(self, received: int, timeout_s: float = 20) -> dict[str, Any]:
        return self.client.do("consume.state", name=self.name, received=received, timeout_ms=int(timeout_s * 1000))

    def stop(self) -> None:
        self.client.do("consume.stop", name=self.name)


@pytest.fixture
def topic(client: Client, delays: apache.Cluster) -> Iterator[Topic]:
    made = Topic(client, delays.namesrv_address)
    made.produce(1)
    made.consume()
    made.state(received=1)
    yield made
    made.stop()


@pytest.mark.parametrize("asked", [{"deliver_ms": 2500}, {"delay_ms": 2500}, {"delay_s": 3}, {"level": 1}])
def test_delivered_in_time_and_not_before(topic: Topic, asked: dict[str, int]) -> None:
    topic.produce(3, **asked)
    messages = [m for m in topic.state(received=4)["messages"] if m["properties"]["seq"] != "0"]
    assert len(messages) == 3
    [(kind, amount)] = asked.items()
    wanted_ms = amount * 1000 if kind in ("delay_s", "level") else amount
    for message in messages:
        assert -20 <= message["stored"] - message["born"] - wanted_ms <= (1100 if kind != "level" else 400)
        properties = set(message["properties"])
        if kind == "level":
            assert {"DELAY", "REAL_TOPIC", "REAL_QID"} <= properties and not BY_TIMER - {
                "REAL_TOPIC",
                "REAL_QID",
            } & properties
        else:
            assert properties >= BY_TIMER
            assert int(message["properties"]["TIMER_OUT_MS"]) % 1000 == 0


def test_a_level_wins_over_a_time(topic: Topic) -> None:
    topic.produce(1, level=1, delay_s=60)
    messages = topic.state(received=2)["messages"]
    assert "TIMER_DELAY_SEC" not in messages[1]["properties"]


def test_the_past_is_now(topic: Topic) -> None:
    topic.produce(1, deliver_ms=-5000)
    message = topic.state(received=2)["messages"][1]
    assert message["stored"] - message["born"] < 500
    assert "TIMER_OUT_MS" not in message["properties"]


def test_too_far_away(client: Client, delays: apache.Cluster, topic: Topic) -> None:
    reply = client.do("produce", namesrv=delays.namesrv_address, topic=topic.name, delay_s=259_300)
    [error] = reply["errors"]
    assert "CODE: 13  DESC: timer message illegal, the delay time should not be bigger than the max delay" in error


def test_recall(client: Client, delays: apache.Cluster, topic: Topic) -> None:
    kept = topic.produce(1, delay_s=5)
    [gone] = topic.produce(1, delay_s=5)
    words = base64.urlsafe_b64decode(gone["recall_handle"]).decode().split(" ")
    assert words[:3] == ["v1", topic.name, "broker-a"] and words[4] == gone["msg_id"]
    reply = client.do("recall", namesrv=delays.namesrv_address, topic=topic.name, handle=gone["recall_handle"])
    assert reply["msg_id"] == gone["msg_id"]
    topic.state(received=2)
    time.sleep(1.5)  # sleeps: what was recalled would come within this time
    received = [m["msg_id"] for m in topic.state(received=0)["messages"]]
    assert kept[0]["msg_id"] in received and gone["msg_id"] not in received
    with pytest.raises(CommandFailed, match="recall failed, timestamp invalid"):
        client.do("recall", namesrv=delays.namesrv_address, topic=topic.name, handle=gone["recall_handle"])
    with pytest.raises(CommandFailed, match="recall handle is invalid"):
        client.do("recall", namesrv=delays.namesrv_address, topic=topic.name, handle="djEgeA==")


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("apache", "aerobee"), ("aerobee", "apache"), ("aerobee", "aerobee")])
@pytest.mark.parametrize("end", ["kill", "stop"])
def test_pending_messages_go_on_at_the_next_broker(
    first: str, second: str, end: str, client: Client, private_network: None, tmp_path: Path
) -> None:
    # Claim: what waits at one broker, by level or by time, comes once and in time from the other, on the same store;
    # what was delivered does not come again.
    start: dict[str, Callable[..., apache.Process]] = {"apache": apache.start_broker, "aerobee": ours.start_broker}
    namesrv = ours.start_namesrv(tmp_path, 29876)
    broker = start[first](tmp_path, "127.0.0.1:29876", 30911)
    topic = Topic(client, "127.0.0.1:29876")
    try:
        topic.produce(1)
        topic.consume()
        topic.produce(10, delay_ms=1500)
        topic.produce(10, level=1)
        topic.produce(40, delay_s=30)
        topic.produce(40, deliver_ms=30_000)
        topic.produce(40, level=4)
        assert topic.state(received=21)["received"] == 21
        time.sleep(2.5)  # sleeps: Apache syncs its timer files every second, ours have theirs in the page cache at once
        topic.stop()
        if end == "kill":
            broker.kill()
        else:
            broker.stop()
        broker = start[second](tmp_path, "127.0.0.1:29876", 30911)
        topic.consume()
        state = topic.state(received=141, timeout_s=60)
        time.sleep(1.5)  # sleeps: whatever comes twice would come within this time
        state = topic.state(received=0)
        late = [m for m in state["messages"] if int(m["properties"]["seq"]) > 20]
        assert {int(m["properties"]["seq"]) for m in late} == set(range(21, 141))
        assert all(29_900 <= m["stored"] - m["born"] <= 32_500 for m in late)
        numbers = [int(m["properties"]["seq"]) for m in late]
        assert len(numbers) == len(set(numbers))
    finally:
        topic.stop()
        broker.kill()
        namesrv.kill()
