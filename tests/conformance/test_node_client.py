"""What a program on ali-ons, a client for Node, sees, the same against Apache's broker and ours."""

from __future__ import annotations

from collections.abc import Iterator

import apache
import nodejs
import pytest
from official import Client
from room import Room

pytestmark = [pytest.mark.apache, pytest.mark.node]


@pytest.fixture(scope="module")
def node_client(cluster: apache.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[nodejs.Client]:
    started = nodejs.Client(tmp_path_factory.mktemp("node"))
    yield started
    started.close()


@pytest.fixture
def room(
    node_client: nodejs.Client, client: Client, cluster: apache.Cluster, request: pytest.FixtureRequest
) -> Iterator[Room]:
    opened = Room(node_client, cluster, "node_" + request.node.originalname.removeprefix("test_"), tools=client)
    yield opened
    opened.close()


def test_produce_and_consume(room: Room) -> None:
    room.create(4)
    sent = room.produce(40, keys="k", tags=["TagA", "TagB"], properties={"colour": "grün \u4e2d"})
    assert sent["statuses"] == {"SEND_OK": 40}
    assert sorted(sent["queues"]) == ["0", "1", "2", "3"]
    room.consume(list=40)
    state = room.state(received=40)
    assert (state["received"], state["distinct"], state["duplicates"]) == (40, 40, 0)
    results = {(result["queue"], result["queue_offset"]) for result in sent["results"]}
    assert {(message["queue"], message["queue_offset"]) for message in state["messages"]} == results
    for message in state["messages"]:
        assert message["properties"]["colour"] == "grün \u4e2d"
        assert message["keys"] == f"k{message['properties']['seq']}"
        assert message["topic"] == room.topic


def test_tags_and_order(room: Room) -> None:
    room.create(4)
    room.produce(60, tags=["TagA", "TagB", "TagC"], shards=3)
    room.consume(tags="TagA || TagC")
    state = room.state(received=40)
    assert (state["received"], state["distinct"], state["disorder"]) == (40, 40, 0)


def test_compressed_bodies_pass_through(room: Room) -> None:
    room.create(1)
    room.produce(3, size=20_000)
    room.consume(list=3)
    assert [message["body_size"] for message in room.state(received=3)["messages"]] == [20_000] * 3


def test_a_delayed_message(room: Room) -> None:
    room.create(1)
    room.consume(list=10)
    room.produce(3, level=1)
    messages = room.state(received=3)["messages"]
    assert len(messages) == 3
    for message in messages:
        assert 900 <= message["stored"] - message["born"] <= 3000, "milliseconds in the schedule topic"


def test_members_share_and_hand_over(room: Room) -> None:
    room.create(4)
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
    room.create(4)
    for name in ("one", "two"):
        room.consume(name, model="broadcasting")
        assert len(room.state(name, queues=4)["assigned"]) == 4
    room.produce(40)
    for name in ("one", "two"):
        state = room.state(name, received=40)
        assert (state["received"], state["distinct"]) == (40, 40)


def test_a_failing_message_comes_back(room: Room) -> None:
    room.create(1)
    room.know_retries()
    room.produce(1, tags=["TagA"])
    room.consume(fail_times=1, list=10)
    state = room.state(received=1, timeout_s=30)
    assert state["received"] == 1
    first, second = state["messages"]
    assert (first["reconsume_times"], second["reconsume_times"]) == (0, 1)
    assert second["properties"]["RETRY_TOPIC"] == room.topic
    assert 9_500 <= second["stored"] - first["received"] <= 13_000


def test_offsets_are_kept_over_a_restart_of_the_consumer(room: Room) -> None:
    room.create(4)
    room.produce(40)
    room.consume()
    assert room.state(received=40)["received"] == 40
    room.stop()
    room.produce(10, **{"from": 40})
    room.consume("again", list=20)
    state = room.state("again", received=10)
    assert {int(message["properties"]["seq"]) for message in state["messages"]} == set(range(40, 50))
    assert room.stop("again")["received"] == 10
