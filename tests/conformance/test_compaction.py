"""Compaction topics through the official client against both brokers, and on a store that changes hands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache
import ours
import pytest
from official import Client, Reply

pytestmark = [pytest.mark.apache, pytest.mark.timeout(300)]

KEYS = [f"key-{number}" for number in range(10)]
FILE_UNITS = 50
"""Of which the last ends the file."""
OPTIONS = {
    "compactionMappedFileSize": 20 * FILE_UNITS * 46,  # the other is full first
    "compactionCqMappedFileSize": FILE_UNITS * 46,
    "compactionScheduleInternal": 1000,
}
START: dict[str, Callable[..., apache.Process]] = {"apache": apache.start_broker, "aerobee": ours.start_broker}


class Room:
    """A broker with small compaction files, and one topic with one queue."""

    def __init__(self, client: Client, directory: Path, port: int, name: str) -> None:
        self.client, self.directory, self.port, self.name = client, directory, port, name
        self.namesrv, self.address = f"127.0.0.1:{port + 1000}", f"127.0.0.1:{port}"
        self._namesrv = ours.start_namesrv(directory, port + 1000)
        self.broker: apache.Process | None = None
        self.sent = 0

    def start(self, kind: str) -> None:
        self.broker = START[kind](self.directory, self.namesrv, self.port, OPTIONS)

    def kill(self) -> None:
        if self.broker is not None:
            self.broker.kill()
            self.broker = None

    def close(self) -> None:
        self.kill()
        self._namesrv.kill()

    def create(self, attributes: str = "+cleanup.policy=COMPACTION") -> str:
        return self.client.admin(
            *("updateTopic", "-b", self.address, "-t", self.name, "-r", "1", "-w", "1"),
            *("-a", attributes, "-n", self.namesrv),
        )

    def send(self, count: int, **arguments: Any) -> Reply:
        full = {"count": count, "from": self.sent, "size": 60, **arguments}
        reply = self.client.do("produce", namesrv=self.namesrv, topic=self.name, **full)
        if reply["errors"] == {}:
            self.sent += count
        return reply

    def pull(self, offset: int = 0, **arguments: Any) -> Reply:
        full = {"topic": self.name, "queue": 0, "group": "readers", "broker": "broker-a", "offset": offset}
        return self.client.do("pull", namesrv=self.namesrv, **{**full, **arguments})

    def read(self, offset: int = 0, **arguments: Any) -> list[tuple[int, str]]:
        """Offset and key of all messages from an offset on; each must be the one that was sent there."""
        found: list[tuple[int, str]] = []
        while (reply := self.pull(offset, **arguments))["status"] == "FOUND":
            for message in reply["messages"]:
                assert message["properties"]["seq"] == str(message["queue_offset"])
                found.append((message["queue_offset"], message["properties"]["KEYS"]))
            offset = reply["next"]
        return found

    def files(self) -> dict[str, list[str]]:
        """Names of the files of either kind."""
        root = self.directory / "store/compaction"
        return {
            kind: sorted(path.name for path in (root / kind / self.name / "0").iterdir() if path.is_file())
            for kind in ("compactionLog", "compactionCq")
        }

    def settled(self) -> list[tuple[int, str]]:
        """What is left when all full files are compacted; sent were all keys in turn."""
        full = self.sent // (FILE_UNITS - 1) * (FILE_UNITS - 1)
        expected = [(offset, KEYS[offset % len(KEYS)]) for offset in range(full - len(KEYS), self.sent)]
        eventually(lambda: self.read() == expected, lambda: f"{self.read()} is not {expected}")
        return expected


@pytest.fixture(params=["apache", "aerobee"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def room(client: Client, private_network: None, tmp_path: Path) -> Iterator[Room]:
    opened = Room(client, tmp_path, 30915, "newest_of_each")
    yield opened
    opened.close()


def test_the_newest_of_each_key_is_kept(room: Room, kind: str) -> None:
    # Claim: who comes later sees each key's newest message, at its offset and in order, also after kill -9; who
    # follows sees everything.
    room.start(kind)
    room.create()
    refused = room.send(1)
    assert list(refused["errors"]) and "Required message key is missing" in next(iter(refused["errors"]))
    waiting = room.client.start(
        *("pull",),
        **{"namesrv": room.namesrv, "topic": room.name, "queue": 0, "group": "readers", "broker": "broker-a"},
        **{"offset": 0, "wait": True},
    )
    first = room.send(1, key_list=KEYS)["results"][0]
    assert [message["queue_offset"] for message in waiting.result(30)["messages"]] == [0]
    assert first["queue_offset"] == 0
    room.send(139, key_list=KEYS, tags=["a", "b"])
    kept = room.settled()
    assert room.read(120) == [message for message in kept if message[0] >= 120], "a consumer in the middle of it"
    reply = room.pull()
    assert (reply["min"], reply["max"]) == (0, room.sent), "the queue itself keeps its bounds"
    assert room.pull(5)["messages"][0]["queue_offset"] == kept[0][0], (
        "an offset that is gone leads to the next there is"
    )
    assert room.pull(room.sent)["status"] == "NO_NEW_MSG"
    status = room.client.admin("topicStatus", "-t", room.name, "-n", room.namesrv)
    assert [line.split()[:4] for line in status.splitlines() if line.startswith("broker-a")] == [
        ["broker-a", "0", "0", str(room.sent)]
    ]

    room.kill()
    room.start(kind)
    eventually(lambda: room.pull()["max"] == room.sent)
    assert room.read() == kept
    room.client.do("consume.start", namesrv=room.namesrv, topic=room.name, name=room.name, group="late", list=100)
    room.client.do("consume.state", name=room.name, received=len(kept), timeout_ms=30_000)
    room.send(25, key_list=KEYS)
    expected = [*(offset for offset, _ in kept), *range(room.sent - 25, room.sent)]
    seen: list[int] = []

    def followed() -> bool:
        state = room.client.do("consume.state", name=room.name)
        seen[:] = sorted(message["queue_offset"] for message in state["messages"])
        return seen[-1] == expected[-1]

    eventually(followed)
    room.client.do("consume.stop", name=room.name)
    if kind == "apache":  # passes over the message that begins a new file, in every third run
        expected = [offset for offset in expected if offset in seen or offset != 3 * (FILE_UNITS - 1)]
    assert seen == expected
    room.send(60, key_list=KEYS)
    room.settled()


@pytest.mark.slow
def test_a_store_goes_to_and_fro(room: Room) -> None:
    # Claim: what one broker has kept, the other reads and goes on with, also after a kill.
    for number, kind in enumerate(("apache", "aerobee", "apache", "aerobee")):
        room.start(kind)
        if number == 0:
            room.create()
        eventually(lambda: room.pull()["max"] == room.sent)
        if number > 0:
            room.settled()
        room.send(125, key_list=KEYS)
        kept = room.settled()
        room.kill()
        files = room.files()
        assert files["compactionLog"] == files["compactionCq"] and len(files["compactionLog"]) == 2
        assert kept[-1][0] == room.sent - 1
        first = room.directory / "store/compaction/compactionLog" / room.name / "0" / files["compactionLog"][0]
        dumped = room.client.admin("dumpCompactionLog", "-f", str(first))
        assert dumped.count("MessageExt [") == len(KEYS), (kind, dumped)


@pytest.mark.slow
def test_a_store_that_was_stopped_goes_to_and_fro(room: Room) -> None:
    # Claim: the same after a clean stop, and a deleted topic leaves nothing that a new one of its name would read.
    for number, kind in enumerate(("aerobee", "apache", "aerobee")):
        room.start(kind)
        if number == 0:
            room.create()
        eventually(lambda: room.pull()["max"] == room.sent)
        room.send(60, key_list=KEYS)
        room.settled()
        assert room.broker is not None
        room.broker.stop()
        room.broker = None
    room.start("aerobee")
    room.client.admin("deleteTopic", "-t", room.name, "-c", "DefaultCluster", "-n", room.namesrv)
    eventually(lambda: apache.call(room.namesrv, 105, {"topic": room.name})[0]["code"] != 0)
    assert not (room.directory / "store/compaction/compactionLog" / room.name).exists()
    room.sent = 0
    room.create()
    room.send(60, key_list=KEYS)
    room.settled()


def eventually(true: Callable[[], bool], why: Callable[[], str] = lambda: "", timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, why()
        time.sleep(0.1)
