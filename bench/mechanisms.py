"""What one message costs the broker in each of its mechanisms, beside Apache's: broker CPU µs, and how many a second.

    .venv/bin/python -m bench.mechanisms [seconds]

The generator is Python, keeps 64 requests open on each of two connections, and shares the cores with the broker; where
the broker is quick, the rate is the generator's. What the broker itself costs is its CPU time.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aerobee.protocol.bodies.route import LogicQueueMappingItem, TopicQueueMappingDetail
from bench import extras
from bench.servers import KINDS, Server, server
from bench.wire import Reply, Request, Wire, cpu_s

SEND, PULL, QUERY, SEND_BACK, END_TRANSACTION, HEARTBEAT, LOCK, MAX_OFFSET = 310, 11, 12, 36, 37, 34, 41, 30
COMMIT_OFFSET, CREATE_TOPIC, SEND_BATCH, SEND_REPLY, CREATE_STATIC_TOPIC = 15, 17, 320, 325, 513
PIPELINE = 64
CONNECTIONS = 2
QUEUES = 4
SETTINGS = {
    "enablePropertyFilter": "true",
    "enableLmq": "true",
    "enableMultiDispatch": "true",
    "waitTimeMillsInSendQueue": 60_000,
}
"""SQL92 and light queues on; and Apache's broker does not refuse what had to wait 200 ms on a shared machine."""
COMMIT = 8
LIGHT_QUEUES = ("%LMQ%one", "%LMQ%two", "%LMQ%three")


def send(topic: str, number: int, properties: str = "") -> Request:
    """A message of 256 bytes."""
    fields = {"a": "bench", "b": topic, "c": "TBW102", "d": str(QUEUES), "e": str(number % QUEUES), "f": "0", "h": "0"}
    fields |= {"g": str(time.time_ns() // 1_000_000), "j": "0", "k": "false", "l": "16", "m": "false"}
    fields["i"] = f"UNIQ_KEY\x01{number:032X}\x02WAIT\x01true\x02{properties}"
    return SEND, fields, b"x" * 256


def position(reply: Reply) -> str:
    """Where the record lies, out of the message id."""
    return str(int(reply.fields["msgId"][-16:], 16))


class Mechanism:
    """One mechanism: `prepare` once a broker, `step` again and again on every connection, `finish` before the clock is
    read. `step` returns how many messages it was about."""

    name = ""

    def prepare(self, wire: Wire) -> None:
        """Topics, messages, subscriptions."""

    def step(self, wire: Wire, number: int) -> int:
        """Number: of the first message, never used twice."""
        return 0

    def finish(self, wire: Wire, sent: int) -> None:
        """Waits for what the broker still has to do."""


class Transactions(Mechanism):
    """Half message and commit."""

    name = "a transaction: half message and commit"

    def step(self, wire: Wire, number: int) -> int:
        half = "TRAN_MSG\x01true\x02PGROUP\x01bench\x02"
        halves = wire.do_all([send("Transactions", number + at, half) for at in range(PIPELINE)])
        ends: list[Request] = []
        for at, reply in enumerate(halves):
            fields = {"producerGroup": "bench", "tranStateTableOffset": reply.fields["queueOffset"]}
            fields |= {"commitLogOffset": position(reply), "commitOrRollback": str(COMMIT)}
            fields |= {"fromTransactionCheck": "false", "msgId": f"{number + at:032X}", "topic": "Transactions"}
            ends.append((END_TRANSACTION, fields, b""))
        wire.do_all(ends)
        return PIPELINE


class Sends(Mechanism):
    """Messages of a kind, made by their properties (`{n}` is a number below 1000) or by their topic's attributes.

    `delivered`: they come to their topic later, and that is waited for."""

    def __init__(
        self, name: str, topic: str, properties: str = "", *, attributes: str = "", delivered: bool = False
    ) -> None:
        self.name, self.topic, self.properties, self.attributes = name, topic, properties, attributes
        self.delivered = delivered
        self._sent = 0

    def prepare(self, wire: Wire) -> None:
        if self.attributes:
            wire.do_all([(CREATE_TOPIC, {**topic_fields(self.topic), "attributes": self.attributes}, b"")])

    def step(self, wire: Wire, number: int) -> int:
        properties = (self.properties.format(n=(number + at) % 1000) for at in range(PIPELINE))
        wire.do_all([send(self.topic, number + at, each) for at, each in enumerate(properties)])
        return PIPELINE

    def finish(self, wire: Wire, sent: int) -> None:
        self._sent += sent
        deadline = time.monotonic() + 120
        while self.delivered and stored(wire, self.topic) < self._sent:
            if time.monotonic() > deadline:
                raise RuntimeError("not all messages were delivered")
            time.sleep(0.1)


class BatchQueues(Sends):
    """Batches of 32 that stay one unit of their queue."""

    def step(self, wire: Wire, number: int) -> int:
        inner = struct.pack(">iiiii", 22 + 256, 0, 0, 0, 256) + b"x" * 256 + struct.pack(">h", 0)
        batches = (send(self.topic, number + at) for at in range(PIPELINE // 4))
        wire.do_all([(SEND_BATCH, {**fields, "m": "true"}, inner * 32) for _, fields, _ in batches])
        return PIPELINE // 4 * 32


class StaticQueues(Sends):
    """Messages to the logical queues of a static topic that has not moved."""

    def prepare(self, wire: Wire) -> None:
        hosted = {number: [LogicQueueMappingItem(queue_id=number, bname="broker-a")] for number in range(QUEUES)}
        detail = TopicQueueMappingDetail(
            topic=self.topic, total_queues=QUEUES, bname="broker-a", epoch=1, hosted_queues=hosted
        )
        wire.do_all([(CREATE_STATIC_TOPIC, {**topic_fields(self.topic), "force": "false"}, detail.to_json())])


class Replies(Mechanism):
    """A request is sent, answered, and its answer pushed to who asked."""

    name = "a request and its reply"

    def step(self, wire: Wire, number: int) -> int:
        client = f"asking@{id(wire)}"
        body = {"clientID": client, "producerDataSet": [{"groupName": "asking"}], "consumerDataSet": []}
        wire.do_all([(HEARTBEAT, {}, json.dumps(body).encode())])
        about = [f"REPLY_TO_CLIENT\x01{client}\x02CORRELATION_ID\x01{number + at}\x02" for at in range(PIPELINE)]
        wire.do_all([send("Asked", number + at, f"{each}TTL\x013000\x02") for at, each in enumerate(about)])
        replies = (send("DefaultCluster_REPLY_TOPIC", 0, f"{each}MSG_TYPE\x01reply\x02") for each in about)
        wire.do_all([(SEND_REPLY, fields, body) for _, fields, body in replies])
        return PIPELINE


class Groups(Mechanism):
    """What every member of a group says each 30 s."""

    name = "a heartbeat of a consumer of three topics"

    def step(self, wire: Wire, number: int) -> int:
        body = heartbeat(f"member@{id(wire)}", "many", [subscription(f"Topic{n}") for n in range(3)])
        wire.do_all([(HEARTBEAT, {}, body)] * PIPELINE)
        return PIPELINE


class Offsets(Mechanism):
    """An offset that a consumer commits."""

    name = "an offset committed"

    def prepare(self, wire: Wire) -> None:
        wire.do_all([send("Committed", number) for number in range(40)])
        wire.do_all([(HEARTBEAT, {}, heartbeat("committing@1", "committing", [subscription("Committed")]))])

    def step(self, wire: Wire, number: int) -> int:
        fields = {"consumerGroup": "committing", "topic": "Committed", "commitOffset": "7"}
        wire.do_all([(COMMIT_OFFSET, {**fields, "queueId": str(at % QUEUES)}, b"") for at in range(PIPELINE)])
        return PIPELINE


class SendBacks(Mechanism):
    """A message is sent, fails, and is given back for a retry."""

    name = "a message sent and given back for a retry"

    def step(self, wire: Wire, number: int) -> int:
        sent = wire.do_all([send("Failing", number + at) for at in range(PIPELINE)])
        backs: list[Request] = []
        for at, reply in enumerate(sent):
            fields = {"offset": position(reply), "group": "failing", "delayLevel": "18", "originTopic": "Failing"}
            fields |= {"originMsgId": f"{number + at:032X}", "unitMode": "false", "maxReconsumeTimes": "16"}
            backs.append((SEND_BACK, fields, b""))
        wire.do_all(backs)
        return PIPELINE


class Filtered(Mechanism):
    """Pulls that choose one message of ten; counted are the messages looked at."""

    def __init__(self, name: str, kind: str, expression: str, tags: list[str]) -> None:
        self.name = name
        self.topic = f"Filtered{kind}"
        self.group = f"filtering{kind}"
        self.kind, self.expression, self.tags = kind, expression, tags
        self.messages = 20_000
        self.version = str(time.time_ns() // 1_000_000)

    def prepare(self, wire: Wire) -> None:
        for start in range(0, self.messages, 500):
            numbers = range(start, start + 500)
            wire.do_all(
                [send(self.topic, n, f"TAGS\x01tag{n % 10}\x02a\x01{n % 10}\x02b\x01eu-{n % 7}\x02") for n in numbers]
            )
        wanted = subscription(self.topic, self.expression, self.tags, self.kind, int(self.version))
        wire.do_all([(HEARTBEAT, {}, heartbeat(f"{self.group}@1", self.group, [wanted]))])

    def step(self, wire: Wire, number: int) -> int:
        each = self.messages // QUEUES
        requests: list[Request] = []
        for at in range(PIPELINE // 4):
            fields = {"consumerGroup": self.group, "topic": self.topic, "queueId": str(at % QUEUES)}
            fields |= {"queueOffset": str((number + at * 320) % (each - 400)), "maxMsgNums": "32", "sysFlag": "0"}
            fields |= {"commitOffset": "0", "suspendTimeoutMillis": "0", "subscription": self.expression}
            fields |= {"subVersion": self.version, "expressionType": self.kind}
            requests.append((PULL, fields, b""))
        looked = 0
        for (_, fields, _), reply in zip(requests, wire.ask_all(requests), strict=True):
            if reply.code not in (0, 20):  # 20: none of the 32 matched
                raise RuntimeError(f"a pull was refused with {reply.code}: {reply.remark}")
            looked += int(reply.fields["nextBeginOffset"]) - int(fields["queueOffset"])
        return looked


class Queries(Mechanism):
    """By key; each finds one message."""

    name = "a query by key"

    def prepare(self, wire: Wire) -> None:
        for start in range(0, 20_000, 500):
            wire.do_all([send("Queried", n, f"KEYS\x01key{n}\x02") for n in range(start, start + 500)])
        time.sleep(2)  # Apache's index is built behind the log

    def step(self, wire: Wire, number: int) -> int:
        fields = {"topic": "Queried", "maxNum": "32", "beginTimestamp": "0", "endTimestamp": str(1 << 62)}
        wire.do_all([(QUERY, {**fields, "key": f"key{(number + at) % 20_000}"}, b"") for at in range(PIPELINE)])
        return PIPELINE


class Locks(Mechanism):
    """An ordered consumer's lock of four queues."""

    name = "an order lock of four queues"

    def step(self, wire: Wire, number: int) -> int:
        queues = [{"topic": "Ordered", "brokerName": "broker-a", "queueId": queue} for queue in range(QUEUES)]
        body = json.dumps({"consumerGroup": "ordered", "clientId": "me", "mqSet": queues, "onlyThisBroker": False})
        wire.do_all([(LOCK, {}, body.encode())] * PIPELINE)
        return PIPELINE


def mechanisms() -> list[Mechanism]:
    """All, anew for each broker."""
    return [
        Transactions(),
        Sends("delay level 1: sent and delivered", "Delays", "DELAY\x011\x02", delivered=True),
        Sends("an exact time, in a second: sent and delivered", "Timed", "TIMER_DELAY_SEC\x011\x02", delivered=True),
        SendBacks(),
        Replies(),
        Filtered("pull filtered by tag, a message looked at", "TAG", "tag3", ["tag3"]),
        Filtered("pull filtered by SQL92, a message looked at", "SQL92", "a = 3 AND b <> 'x'", []),
        Queries(),
        Locks(),
        Groups(),
        Offsets(),
        Sends("a message for three light queues", "Light", f"INNER_MULTI_DISPATCH\x01{','.join(LIGHT_QUEUES)}\x02"),
        BatchQueues("batches of 32 in a batch queue, a message", "Batches", attributes="+queue.type=BatchCQ"),
        Sends("a message to a compaction topic", "Kept", "KEYS\x01key{n}\x02", attributes="+cleanup.policy=COMPACTION"),
        StaticQueues("a message to a static topic", "Static"),
    ]


def subscription(
    topic: str, expression: str = "*", tags: Sequence[str] = (), kind: str = "TAG", version: int = 1
) -> dict[str, object]:
    """What a consumer wants of a topic, as its heartbeat says it."""
    return {
        "topic": topic, "subString": expression, "tagsSet": tags, "codeSet": [], "subVersion": version,
        "expressionType": kind, "classFilterMode": False,
    }  # fmt: skip


def heartbeat(client: str, group: str, subscriptions: list[dict[str, object]]) -> bytes:
    """The body of a consumer's."""
    data = {
        "groupName": group, "consumeType": "CONSUME_PASSIVELY", "messageModel": "CLUSTERING",
        "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET", "subscriptionDataSet": subscriptions, "unitMode": False,
    }  # fmt: skip
    return json.dumps({"clientID": client, "producerDataSet": [], "consumerDataSet": [data]}).encode()


def topic_fields(topic: str) -> dict[str, str]:
    """The header of a topic's creation."""
    counts = {"readQueueNums": str(QUEUES), "writeQueueNums": str(QUEUES), "perm": "6", "topicSysFlag": "0"}
    return {**counts, "topic": topic, "defaultTopic": "TBW102", "topicFilterType": "SINGLE_TAG", "order": "false"}


def stored(wire: Wire, topic: str) -> int:
    """Messages in the topic's queues."""
    asked: list[Request] = [(MAX_OFFSET, {"topic": topic, "queueId": str(queue)}, b"") for queue in range(QUEUES)]
    return sum(int(reply.fields["offset"]) for reply in wire.do_all(asked))


@dataclass
class _Worker:
    address: str
    mechanism: Mechanism
    first: int
    until: float
    count: int = 0
    errors: list[BaseException] = field(default_factory=list)

    def run(self) -> None:
        try:
            wire = Wire(self.address)
            number = self.first
            while time.monotonic() < self.until:
                self.count += self.mechanism.step(wire, number)
                number += PIPELINE
            wire.close()
        except BaseException as error:
            self.errors.append(error)


def measure(one: Server, mechanism: Mechanism, seconds: float, first: int) -> tuple[float, float]:
    """Messages a second and broker CPU µs a message."""
    cpu, began = cpu_s(one.pid), time.monotonic()
    workers = [_Worker(one.address, mechanism, first + (at << 32), began + seconds) for at in range(CONNECTIONS)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for worker in workers:
        for error in worker.errors:
            raise error
    count = sum(worker.count for worker in workers)
    rate = count / (time.monotonic() - began)
    wire = Wire(one.address)
    mechanism.finish(wire, count)
    wire.close()
    return rate, 1e6 * (cpu_s(one.pid) - cpu) / max(1, count)


def rows(directory: Path, seconds: float) -> list[extras.Row]:
    """Every mechanism on both brokers; a JVM gets time to compile what is hot, uncounted."""
    found: dict[str, list[tuple[float, float]]] = {}
    for kind in KINDS:
        with server(kind, directory / kind, SETTINGS) as one:
            for mechanism in mechanisms():
                wire = Wire(one.address)
                mechanism.prepare(wire)
                measure(one, mechanism, 6 if kind == "apache" else 1, 1)
                found.setdefault(mechanism.name, []).append(measure(one, mechanism, seconds, 1 << 40))
                wire.close()
    table: list[extras.Row] = []
    for name, ((their_rate, their_cpu), (rate, cpu)) in found.items():
        held = extras.verdict(cpu <= their_cpu)
        table += [
            (f"{name}: CPU, µs", f"{their_cpu:.2f}", f"{cpu:.2f}", "≤ Apache's", held),
            (f"{name}: a second", f"{their_rate:,.0f}", f"{rate:,.0f}", "", ""),
        ]
    return table


def main() -> None:
    """Both brokers, one after the other."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory(prefix="mechanisms-") as directory:
        for row in rows(Path(directory), seconds):
            print(" | ".join(row))


if __name__ == "__main__":
    main()
