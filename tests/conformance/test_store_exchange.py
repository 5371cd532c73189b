"""One store directory, handed to and fro between Apache's broker and ours: each finds every byte the other wrote.

The chain: Apache writes and is killed; ours reads all, writes and is killed; Apache reads all, writes and stops; ours
reads all, writes and stops; Apache reads all. "All" is every record of every queue, byte by byte, and every answer to
queries by key, unique key and offset. What was pending (a delayed message, a half message, a retry) goes on at the
broker that has the store when its time comes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache
import network
import ours
import pytest
from official import Client

pytestmark = [pytest.mark.apache, pytest.mark.timeout(300)]

NAMESRV, BROKER = "127.0.0.1:9876", "127.0.0.1:10911"
# Only retry topics may be longer than 127 bytes, and then the record is of version 2. No request makes a group with so
# long a name, its file does.
LONG_GROUP = "g" * 200
LONG_TOPIC = f"%RETRY%{LONG_GROUP}"
LONG_GROUP_FILE = {"subscriptionGroupTable": {LONG_GROUP: {"groupName": LONG_GROUP, "retryMaxTimes": 16}}}
# By default Apache's broker notes ends of transactions every 3 s only; a round of questions in between asks about an
# ended half once more, and delivers it twice.
OPTIONS = {
    "transactionTimeOut": 1000,
    "transactionCheckInterval": 2000,
    **apache.NO_SPIN,
    "mappedFileSizeCommitLog": 1024 * 1024,
}

Snapshot = dict[str, Any]


class Exchange:
    """The store directory, the name server and the official client that stay while brokers change."""

    def __init__(self, directory: Path, client: Client) -> None:
        self.directory = directory
        self.client = client
        self.broker: apache.Process | None = None
        self.kind = ""
        self.round = 0
        self.keys: list[tuple[str, str]] = []
        self.unique: list[tuple[str, str]] = []

        config = directory / "store" / "config"
        config.mkdir(parents=True)
        (config / "subscriptionGroup.json").write_text(json.dumps(LONG_GROUP_FILE))

    def open(self, kind: str) -> None:
        """Starts Apache's or our broker on the store."""
        start: Callable[..., apache.Process] = apache.start_broker if kind == "apache" else ours.start_broker
        # Without this Apache's broker forgets the keys of older messages at every unclean stop, its own ones too.
        safe = {"messageIndexSafe": "true"} if kind == "apache" else {}
        self.broker = start(self.directory, NAMESRV, 10911, {**OPTIONS, **safe})
        self.kind = kind

    def write(self) -> None:
        """Every kind of record, in topics of this round; waits until offsets of consumers are in their file."""
        self.round += 1
        n, kind = self.round, self.kind
        plain = f"Plain{n}"
        self._produce(plain, count=20, tags=["TagA", "TagB"], keys=f"plain{n}-", properties={"colour": "grün \u4e2d"})
        self._produce(f"Batch{n}", count=12, mode="batch", batch=4, keys=f"batch{n}-", tags=["TagA"])
        self._produce(f"Packed{n}", count=3, size=20_000, compress_type="LZ4", keys=f"packed{n}-")
        # Bodies that fill files: the log rolls in every round.
        self._produce(f"Large{n}", count=12, size=100_000, compress_over=4_000_000, keys=f"large{n}-")
        for number in range(3):
            self._raw_send(LONG_TOPIC, f"{kind} {n} {number}".encode())
        consumer = {"namesrv": NAMESRV, "name": plain, "topic": plain, "group": f"group{n}"}
        self.client.do("consume.start", fail_times=1 if n == 1 else 0, **consumer)
        self.client.do("consume.state", name=plain, received=20, timeout_ms=3_000 if n == 1 else 10_000)
        self.client.do("consume.stop", name=plain)
        self._transactions("commit", f"Committed{n}")
        self._transactions("rollback", f"Rolled{n}")
        self._transactions("unknown", f"Open{n}")
        self._produce(f"Soon{n}", count=2, level=1)
        self._produce(f"Later{n}", count=2, level=3, keys=f"later{n}-")
        time.sleep(6)  # sleeps: offsets are written every 5 s

    def _produce(self, topic: str, **arguments: Any) -> None:
        sent = self.client.do("produce", namesrv=NAMESRV, topic=topic, queues=2, **arguments)
        assert sent["errors"] == {}
        for result in sent["results"][:2]:
            self.unique += [(topic, unique) for unique in result["msg_id"].split(",")[:1]]
        if "keys" in arguments:
            self.keys += [(topic, f"{arguments['keys']}{number}") for number in (0, arguments["count"] - 1)]

    def _transactions(self, outcome: str, topic: str) -> None:
        self.client.do(
            "transaction", namesrv=NAMESRV, topic=topic, queues=2, count=2, outcome=outcome, keys=f"{topic}-"
        )

    def _raw_send(self, topic: str, body: bytes) -> None:
        fields = {"a": "raw", "b": topic, "c": "TBW102", "d": "1", "e": "0", "f": "0", "g": "1700000000000", "h": "7"}
        fields |= {"i": "KEYS\x01long\x02TAGS\x01TagL\x02", "j": "0", "k": "false", "l": "16", "m": "false"}
        header, _ = apache.call(BROKER, 310, fields, body)
        assert header["code"] == 0, header.get("remark")

    def snapshot(self) -> Snapshot:
        """All that can be read: records by queue, answers to queries, offsets of groups."""
        found: Snapshot = {}
        topics = json.loads(apache.call(BROKER, 21)[1])["topicConfigTable"]
        names = [topic for topic in topics if topic not in VOLATILE]
        for topic in names:
            for queue in range(topics[topic]["readQueueNums"]):
                records = pull(topic, queue)
                if records:
                    found[f"queue {topic} {queue}"] = records
        for topic, key in self.keys:
            found[f"key {topic} {key}"] = query(topic, key, "K")
        for topic, unique in self.unique:
            found[f"unique {topic} {unique}"] = query(topic, unique, "U")
        return found

    def offsets(self) -> dict[str, int]:
        """Committed offsets of this exchange's groups."""
        found = {}
        for n in range(1, self.round + 1):
            for queue in range(2):
                fields = {"consumerGroup": f"group{n}", "topic": f"Plain{n}", "queueId": str(queue)}
                header, _ = apache.call(BROKER, 14, fields)
                found[f"group{n} {queue}"] = int(header["extFields"]["offset"]) if header["code"] == 0 else -1
        return found


# What goes on by itself while one looks: checks of halves are written at the tail again.
VOLATILE = {"RMQ_SYS_TRANS_HALF_TOPIC", "RMQ_SYS_TRANS_OP_HALF_TOPIC", "rmq_sys_wheel_timer"}


def stored(topic: str) -> int:
    """How many messages the topic's two queues have."""
    return sum(high - low for low, high in (bounds(topic, queue) for queue in range(2)))


def bounds(topic: str, queue: int) -> tuple[int, int]:
    place = {"topic": topic, "queueId": str(queue)}
    low, high = (apache.call(BROKER, code, place)[0]["extFields"]["offset"] for code in (31, 30))
    return int(low), int(high)


def pull(topic: str, queue: int) -> list[bytes]:
    """Every record of a queue, as it lies in the log."""
    offset, end = bounds(topic, queue)
    records: list[bytes] = []
    while offset < end:
        fields = {"consumerGroup": "TOOLS_CONSUMER", "topic": topic, "queueId": str(queue), "queueOffset": str(offset)}
        fields |= {"maxMsgNums": "32", "sysFlag": "4", "commitOffset": "0", "suspendTimeoutMillis": "0"}
        fields |= {"subscription": "*", "subVersion": "0", "expressionType": "TAG"}
        header, body = apache.call(BROKER, 11, fields)
        assert header["code"] == 0, (topic, queue, offset, end, header)
        records += split(body)
        offset = int(header["extFields"]["nextBeginOffset"])
    return records


def query(topic: str, key: str, kind: str) -> list[bytes]:
    fields = {"topic": topic, "key": key, "maxNum": "32", "beginTimestamp": "0", "endTimestamp": str(2**62)}
    fields |= {"indexType": kind}
    if kind == "U":
        fields["_UNIQUE_KEY_QUERY"] = "true"
    header, body = apache.call(BROKER, 12, fields)
    # By time of storing, then place: the order within an answer is the walk through the index, newest first.
    assert header["code"] in (0, 22), header
    return sorted(split(body))


def split(body: bytes) -> list[bytes]:
    records, at = [], 0
    while at < len(body):
        size = int.from_bytes(body[at : at + 4], "big")
        records.append(body[at : at + size])
        at += size
    return records


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[Exchange]:
    with network.private_network():
        namesrv = apache.start_namesrv(tmp_path)
        client = Client(tmp_path)
        made = Exchange(tmp_path, client)
        yield made
        client.close()
        if made.broker is not None:
            made.broker.kill()
        namesrv.kill()


@pytest.mark.slow
def test_a_store_goes_to_and_fro(exchange: Exchange) -> None:
    steps = [("apache", "kill"), ("aerobee", "kill"), ("apache", "stop"), ("aerobee", "stop"), ("apache", "kill")]
    before: Snapshot = {}
    offsets: dict[str, int] = {}
    for number, (kind, end) in enumerate(steps):
        exchange.open(kind)
        story = f"step {number}: {kind} opens what {steps[number - 1][0]} left after {steps[number - 1][1]}"
        if number:
            now = exchange.snapshot()
            for place, records in before.items():
                found = now.get(place, [])
                if place.startswith("queue"):
                    # It may have grown meanwhile, a delayed message came due: the front must be what it was.
                    assert found[: len(records)] == records, f"{story}: {place}"
                else:
                    assert set(records) <= set(found), f"{story}: {place}"
            assert exchange.offsets() == offsets, story
            later = f"Later{exchange.round}"
            # A broker notes every few seconds how far it is with delays and halves: a kill makes it do some again.
            exactly = steps[number - 1][1] == "stop"
            assert reaches(later, 2) == 2 if exactly else reaches(later, 2) >= 2, f"{story}: delayed messages"
            checked = exchange.client.do(
                "transaction",
                namesrv=NAMESRV,
                topic="Tick",
                queues=1,
                count=1,
                outcome="commit",
                check="commit",
                wait_ms=5000,
            )
            opened = f"Open{exchange.round}"
            assert checked["checks"] >= 2, f"{story}: halves without an answer are asked about"
            committed = reaches(opened, 2)
            assert committed == 2 if exactly else committed >= 2, f"{story}: {committed} of 2 open halves"
        if number == len(steps) - 1:
            break
        exchange.write()
        assert len(pull(LONG_TOPIC, 0)) == 3 * exchange.round
        before, offsets = exchange.snapshot(), exchange.offsets()
        assert all(offset >= 0 for offset in offsets.values())
        assert exchange.broker is not None
        exchange.broker.kill() if end == "kill" else exchange.broker.stop()


def reaches(topic: str, count: int, timeout_s: float = 20.0) -> int:
    """How many messages the topic has, once there are so many or the time is over."""
    deadline = time.monotonic() + timeout_s
    while stored(topic) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return stored(topic)
