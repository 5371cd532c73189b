"""One store directory, handed to and fro between Apache's broker and ours: each finds every byte the other wrote.

The chain: Apache writes and is killed; ours reads all, writes and is killed; Apache reads all, writes and stops; ours
reads all, writes and stops; Apache reads all. "All" is every record of every queue, byte by byte, and every answer to
queries by key, unique key and offset. What was pending goes on at the broker that has the store when its time comes:
delays by level and by time, half messages, retries, popped messages; what was done with stays done.
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
import raw
from official import Client

from aerobee.broker.records import BORN_HOST_V6, STORE_HOST_V6, Stored, parse_record
from aerobee.protocol import fastjson
from aerobee.testing.eventually import eventually_sync as eventually

pytestmark = [pytest.mark.apache, pytest.mark.timeout(480)]

NAMESRV, BROKER = "127.0.0.1:9876", "127.0.0.1:10911"
# Only retry topics may be longer than 127 bytes, and then the record is of version 2. No request makes a group with so
# long a name, its file does.
LONG_GROUP = "g" * 200
LONG_TOPIC = f"%RETRY%{LONG_GROUP}"
LONG_GROUP_FILE = {"subscriptionGroupTable": {LONG_GROUP: {"groupName": LONG_GROUP, "retryMaxTimes": 16}}}
OPTIONS = {
    "transactionTimeOut": 1000,
    "transactionCheckInterval": 2000,
    "transactionCheckMax": 1000,
    "mappedFileSizeCommitLog": 1024 * 1024,
    "reviveScanTime": 1000,
}
OPTIONS_OF: dict[str, dict[str, object]] = {
    # By default Apache's broker notes ends of transactions every 3 s only; a round of questions in between asks about
    # an ended half once more, and delivers it twice. And it forgets older messages' keys at every unclean stop.
    "apache": {**apache.NO_SPIN, "messageIndexSafe": "true"},
    "aerobee": {},
}

INVISIBLE_S = 40
"""Longer than a round takes from its pops to a kill. Apache's broker notes only every few seconds how far it is with
what comes again: killed soon after it came, whoever opens the store then, Apache's own broker too, gives it out twice.
12 s were too short."""

Snapshot = dict[str, Any]


class Exchange:
    """The store directory, the name server and the official client that stay while brokers change."""

    def __init__(self, directory: Path, client: Client) -> None:
        self.directory = directory
        self.client = client
        self.broker: apache.Process | None = None
        self.kind = ""
        self.round = 0
        self.visible_at = 0.0
        """When what the last round popped comes again."""
        self.keys: list[tuple[str, str]] = []
        self.unique: list[tuple[str, str]] = []

        config = directory / "store" / "config"
        config.mkdir(parents=True)
        (config / "subscriptionGroup.json").write_text(json.dumps(LONG_GROUP_FILE))

    def open(self, kind: str) -> None:
        """Starts Apache's or our broker on the store."""
        start: Callable[..., apache.Process] = apache.start_broker if kind == "apache" else ours.start_broker
        self.broker = start(self.directory, NAMESRV, 10911, {**OPTIONS, **OPTIONS_OF[kind]})
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
            assert raw.send(BROKER, LONG_TOPIC, f"{kind} {n} {number}".encode(), {"KEYS": "long"})["code"] == 0
        consumer: dict[str, Any] = {"namesrv": NAMESRV, "name": plain, "topic": plain, "group": f"group{n}"}
        self.client.do("consume.start", fail_times=1 if n == 1 else 0, **consumer)
        self.client.do("consume.state", name=plain, received=20, timeout_ms=3_000 if n == 1 else 10_000)
        self.client.do("consume.stop", name=plain)
        # Apache's broker writes offsets for the first time 10 s after its start; nothing is pending yet.
        eventually(lambda: self._noted(f"{plain}@group{n}") == 20, 20)
        self._transactions("commit", f"Committed{n}")
        self._transactions("rollback", f"Rolled{n}")
        self._transactions("unknown", f"Open{n}")
        self._produce(f"Soon{n}", count=2, level=1)
        self._produce(f"Later{n}", count=2, level=3, keys=f"later{n}-")
        self._produce(f"Timed{n}", count=2, delay_ms=12_000, keys=f"timed{n}-")
        self._send_back(f"Back{n}")
        self._pop(f"Popped{n}")
        time.sleep(6)  # sleeps: offsets are written every 5 s, the broker's own too

    def _noted(self, topic_and_group: str) -> int:
        """How many messages the group is through, by the store's file."""
        file = self.directory / "store" / "config" / "consumerOffset.json"
        table = fastjson.loads(file.read_bytes())["offsetTable"] if file.exists() else {}
        return sum(table.get(topic_and_group, {}).values())

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

    def _send_back(self, topic: str) -> None:
        """One message goes to its group's retry topic in 10 s, the other one to the dead letters at once."""
        self._produce(topic, count=2)
        records = [record for queue in range(2) for record in records_of(topic, queue)]
        for record, level in zip(records, ("3", "-1"), strict=True):
            fields = {"offset": str(record.position), "group": f"group{topic}", "delayLevel": level}
            fields |= {"originMsgId": record.properties["UNIQ_KEY"], "originTopic": topic, "maxReconsumeTimes": "16"}
            header, _ = apache.call(BROKER, 36, {**fields, "unitMode": "false"})
            assert header["code"] == 0, header.get("remark")

    def _pop(self, topic: str) -> None:
        """Four messages are given out, two of them are acknowledged."""
        self._produce(topic, count=4)
        self.visible_at = time.monotonic() + INVISIBLE_S
        messages = self.popped(topic, 4)
        self.ack(topic, [message for message in messages if message["properties"]["seq"] in "01"])

    def popped(self, topic: str, count: int, timeout_s: float = 60) -> list[dict[str, Any]]:
        """So many messages of the topic, and what comes with them."""
        messages: list[dict[str, Any]] = []
        deadline = time.monotonic() + timeout_s
        where: dict[str, Any] = {"broker": BROKER, "broker_name": "broker-a", "topic": topic, "group": f"group{topic}"}
        while len(messages) < count:
            assert time.monotonic() < deadline, f"{len(messages)} of {count} messages were given out"
            messages += self.client.do("pop", poll_ms=1000, invisible_ms=INVISIBLE_S * 1000, **where)["messages"]
        return messages

    def ack(self, topic: str, messages: list[dict[str, Any]]) -> None:
        handles = [message["handle"] for message in messages]
        where: dict[str, Any] = {"broker": BROKER, "topic": topic, "group": f"group{topic}"}
        statuses = self.client.do("pop.ack", handles=handles, **where)["statuses"]
        assert set(statuses) == {"OK"}

    def snapshot(self) -> Snapshot:
        """All that can be read: records by queue, answers to queries, offsets of groups."""
        found: Snapshot = {}
        topics = json.loads(apache.call(BROKER, 21)[1])["topicConfigTable"]
        names = [topic for topic in topics if topic not in VOLATILE]
        for topic in names:
            for queue in range(topics[topic]["readQueueNums"]):
                records = raw.pull(BROKER, topic, queue)
                if records:
                    found[f"queue {topic} {queue}"] = records
        for topic, key in self.keys:
            found[f"key {topic} {key}"] = raw.query(BROKER, topic, key, "K")
        for topic, unique in self.unique:
            found[f"unique {topic} {unique}"] = raw.query(BROKER, topic, unique, "U")
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
    return sum(high - low for low, high in (raw.bounds(BROKER, topic, queue) for queue in range(2)))


def records_of(topic: str, queue: int = 0) -> list[Stored]:
    return [parse_record(data) for data in raw.pull(BROKER, topic, queue)]


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
            goes_on(exchange, story, exactly=steps[number - 1][1] == "stop")
        if number == len(steps) - 1:
            break
        exchange.write()
        assert len(raw.pull(BROKER, LONG_TOPIC, 0)) == 3 * exchange.round
        before, offsets = exchange.snapshot(), exchange.offsets()
        assert all(offset >= 0 for offset in offsets.values())
        assert exchange.broker is not None
        if end == "kill":
            assert time.monotonic() < exchange.visible_at, "too slow a machine: what was popped comes again already"
            exchange.broker.kill()
        else:
            exchange.broker.stop()


def goes_on(exchange: Exchange, story: str, *, exactly: bool) -> None:
    """What the last round left pending ends here, once; what it ended stays ended."""
    n = exchange.round
    checked = exchange.client.do(
        "transaction", namesrv=NAMESRV, topic="Tick", queues=1, count=1, outcome="commit", check="commit", wait_ms=5000
    )
    assert checked["checks"] >= 2, f"{story}: halves without an answer are asked about"
    assert reaches(f"Open{n}", 2) == 2, f"{story}: open halves"
    for topic, count in ((f"Later{n}", 2), (f"Timed{n}", 2), (f"%RETRY%groupBack{n}", 1)):
        # A broker notes every few seconds how far it is with delays: a kill can make it do some again.
        delivered = reaches(topic, count)
        assert delivered == count if exactly else delivered >= count, f"{story}: {topic}"
    again = exchange.popped(f"Popped{n}", 2)
    assert sorted(message["properties"]["seq"] for message in again) == ["2", "3"], f"{story}: popped messages"
    exchange.ack(f"Popped{n}", again)
    for before in range(1, n + 1):
        assert [stored(f"{topic}{before}") for topic in ("Committed", "Rolled", "Open")] == [2, 0, 2], story


def reaches(topic: str, count: int, timeout_s: float = 30.0) -> int:
    """How many messages the topic has, once there are so many or the time is over."""
    deadline = time.monotonic() + timeout_s
    while stored(topic) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return stored(topic)


V6_BROKER = "[::1]:10911"


@pytest.mark.slow
@pytest.mark.parametrize(("first", "end", "second"), [("apache", "kill", "aerobee"), ("aerobee", "stop", "apache")])
def test_hosts_of_ipv6(first: str, end: str, second: str, tmp_path: Path) -> None:
    """Claim: records whose hosts are IPv6 addresses are read, found by id, moved and ended by the other broker."""

    def start(kind: str) -> apache.Process:
        open_: Callable[..., apache.Process] = apache.start_broker if kind == "apache" else ours.start_broker
        settings = {**OPTIONS, **OPTIONS_OF[kind], "bindAddress": "::1", "brokerIP1": "::1", "brokerIP2": "::1"}
        return open_(tmp_path, NAMESRV, 10911, settings, ready=lambda: apache.call(V6_BROKER, 28)[0]["code"] == 0)

    def sent(topic: str, sys_flag: int = 0, **properties: str) -> dict[str, str]:
        every = {"KEYS": topic, "own": "grün \u4e2d", **properties}
        header = raw.send(V6_BROKER, topic, topic.encode(), every, group="g", sys_flag=sys_flag)
        assert header["code"] == 0, header
        fields: dict[str, str] = header["extFields"]
        return fields

    with network.private_network():
        namesrv = ours.start_namesrv(tmp_path, 9876)
        broker = start(first)
        try:
            plain = sent("Plain")
            half = sent("Ended", 4, TRAN_MSG="true", PGROUP="g", UNIQ_KEY="unique")
            sent("Later", DELAY="2")
            before = raw.pull(V6_BROKER, "Plain", 0)
            time.sleep(1.5)  # sleeps: Apache's broker flushes its files every second
            broker.kill() if end == "kill" else broker.stop()
            broker = start(second)
            assert raw.pull(V6_BROKER, "Plain", 0) == before
            record = parse_record(before[0])
            assert record.sys_flag & (BORN_HOST_V6 | STORE_HOST_V6) == BORN_HOST_V6 | STORE_HOST_V6
            assert record.store_host == V6_BROKER and record.born_host.startswith("[::1]:")
            assert raw.query(V6_BROKER, "Plain", "Plain", "K") == before
            position = str(int(plain["msgId"][-16:], 16))
            assert len(plain["msgId"]) == 56
            assert apache.call(V6_BROKER, 33, {"topic": "Plain", "offset": position})[1] == before[0]
            fields = {"producerGroup": "g", "tranStateTableOffset": half["queueOffset"], "commitOrRollback": "8"}
            fields["commitLogOffset"] = str(int(half["msgId"][-16:], 16))
            assert apache.call(V6_BROKER, 37, fields)[0]["code"] == 0
            deadline = time.monotonic() + 30
            for topic in ("Ended", "Later"):
                while raw.bounds(V6_BROKER, topic, 0) == (0, 0):
                    assert time.monotonic() < deadline, f"{topic} did not come"
                    time.sleep(0.1)
                (moved,) = [parse_record(data) for data in raw.pull(V6_BROKER, topic, 0)]
                assert moved.body == topic.encode() and moved.properties["own"] == "grün \u4e2d"
                assert moved.born_host.startswith("[::1]:") and moved.store_host == V6_BROKER
        finally:
            broker.kill()
            namesrv.kill()
