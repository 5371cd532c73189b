"""A proxy that writes down every frame, and the recordings of the official clients against Apache's servers.

    python tests/conformance/record.py            makes tests/wire/recordings/*.jsonl again

The broker advertises 127.0.0.2, where the proxy listens on the broker's ports; the name server's proxy is there too,
and the broker itself registers through it. So clients need no change, and every frame both ways is seen. One file a
scenario; one JSON object a line, in the order of arrival at the proxy:

    link     number of the connection within the file
    server   "namesrv", "broker" or "broker-fast" (the port two below)
    from     "client" or "server" (the side that sent the frame)
    code     request or response code;  reply: whether the response bit is set;  opaque
    hex      the whole frame, length field included
"""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import apache
import golang
import nodejs
from network import private_network
from official import Client, Program

from aerobee.protocol.codes import RequestCode
from aerobee.testing.eventually import eventually_sync as eventually

RECORDINGS = apache.ROOT / "tests" / "wire" / "recordings"
PROXY_HOST = "127.0.0.2"


class Recorder:
    """Forwards connections and keeps their frames while a scenario is open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: list[dict[str, Any]] | None = None
        self._links: dict[int, int] = {}
        self._count = 0

    def listen(self, server: str, port: int, target: tuple[str, int]) -> None:
        """Forwards 127.0.0.2:`port` to `target` until the process ends."""
        listener = socket.create_server((PROXY_HOST, port))
        threading.Thread(target=self._accept, args=(server, listener, target), daemon=True).start()

    def begin(self) -> None:
        with self._lock:
            self._lines, self._links = [], {}

    def end(self) -> list[dict[str, Any]]:
        with self._lock:
            lines, self._lines = self._lines or [], None
            return lines

    def saw(self, code: int, reply: bool = True) -> None:
        """Waits until a request of this code has gone by since `begin`, and its reply, if it has one."""

        def gone_by() -> bool:
            with self._lock:
                lines = list(self._lines or ())
            asked = {(line["link"], line["opaque"]) for line in lines if line["code"] == code and not line["reply"]}
            answered = {(line["link"], line["opaque"]) for line in lines if line["reply"]}
            return bool(asked & answered if reply else asked)

        eventually(gone_by, 30)

    def _accept(self, server: str, listener: socket.socket, target: tuple[str, int]) -> None:
        while True:
            client, _ = listener.accept()
            upstream = socket.create_connection(target)
            with self._lock:
                self._count += 1
                number = self._count
            for source, sink, side in ((client, upstream, "client"), (upstream, client, "server")):
                client_side = (source, sink, server, number, side)
                threading.Thread(target=self._pump, args=client_side, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, server: str, number: int, side: str) -> None:
        data = bytearray()
        try:
            while chunk := source.recv(65536):
                data += chunk
                while len(data) >= 4 and len(data) >= 4 + struct.unpack_from(">I", data)[0]:
                    size = 4 + struct.unpack_from(">I", data)[0]
                    self._frame(server, number, side, bytes(data[:size]))
                    del data[:size]
                sink.sendall(chunk)
        except OSError:
            pass
        for sock in (source, sink):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _frame(self, server: str, number: int, side: str, frame: bytes) -> None:
        code, opaque, flag = _summary(frame)
        with self._lock:
            if self._lines is None:
                return
            link = self._links.setdefault(number, len(self._links) + 1)
            self._lines.append(
                {
                    "link": link,
                    "server": server,
                    "from": side,
                    "code": code,
                    "reply": bool(flag & 1),
                    "opaque": opaque,
                    "hex": frame.hex(),
                }
            )


def _summary(frame: bytes) -> tuple[int, int, int]:
    """Code, opaque and flag of a frame of either encoding."""
    word = struct.unpack_from(">I", frame, 4)[0]
    header = frame[8 : 8 + (word & 0xFFFFFF)]
    if word >> 24 == 0:
        fields = json.loads(header)
        return fields["code"], fields["opaque"], fields["flag"]
    code, _language, _version, opaque, flag = struct.unpack_from(">hbhii", header)
    return code, opaque, flag


Scenario = Callable[[Client, str], object]


def scenarios(recorder: Recorder) -> dict[str, Scenario]:
    """Name of the file, and what the official Java client does meanwhile."""

    def admin(*args: str) -> Scenario:
        return lambda client, namesrv: client.admin(*args, "-n", namesrv)

    def produce(**arguments: Any) -> Scenario:
        return lambda client, namesrv: client.do("produce", namesrv=namesrv, **arguments)

    def push(client: Client, namesrv: str) -> None:
        consume = {"name": "r", "namesrv": namesrv, "topic": "Recorded", "group": "recorded_group"}
        client.do("consume.start", tags="TagA || TagB", **consume)
        client.do("consume.state", name="r", received=6, timeout_ms=15_000)
        client.do("produce", namesrv=namesrv, topic="Recorded", count=2, tags=["TagA", "TagC"], **{"from": 100})
        client.do("consume.state", name="r", received=7, timeout_ms=5_000)
        recorder.saw(RequestCode.UPDATE_CONSUMER_OFFSET, reply=False)
        client.do("consume.stop", name="r")

    def orderly(client: Client, namesrv: str) -> None:
        consume = {"name": "o", "namesrv": namesrv, "topic": "Recorded", "group": "recorded_orderly"}
        client.do("consume.start", orderly=True, **consume)
        client.do("consume.state", name="o", received=8, timeout_ms=15_000)
        client.do("consume.stop", name="o")

    def retry(client: Client, namesrv: str) -> None:
        client.do("produce", namesrv=namesrv, topic="Failing", count=1)
        client.do("consume.start", name="f", namesrv=namesrv, topic="Failing", group="failing_group", fail_times=1)
        client.do("consume.state", name="f", received=1, timeout_ms=25_000)
        client.do("consume.stop", name="f")

    def connections(client: Client, namesrv: str) -> None:
        client.do("consume.start", name="c", namesrv=namesrv, topic="Recorded", group="recorded_group")
        recorder.saw(RequestCode.HEART_BEAT)
        client.admin("consumerConnection", "-g", "recorded_group", "-n", namesrv)
        client.admin("consumerProgress", "-g", "recorded_group", "-n", namesrv)
        client.admin("consumerStatus", "-g", "recorded_group", "-n", namesrv)
        client.do("consume.stop", name="c")

    def binary(client: Client, namesrv: str) -> None:
        other = Client(client.log.parent / "binary", jvm=(*apache.SMALL_JVM, "-Drocketmq.serialize.type=ROCKETMQ"))
        try:
            other.do("produce", namesrv=namesrv, topic="RecordedBinary", count=3, tags=["TagA"], keys="k")
            other.do(
                "litepull", namesrv=namesrv, topic="RecordedBinary", group="binary_group", assign=[0, 1, 2, 3], expect=3
            )
        finally:
            other.close()

    lite = {"topic": "Recorded", "group": "recorded_lite", "assign": [0, 1, 2, 3], "seek": 0, "commit": True}
    return {
        "produce_creates_topic": produce(topic="Recorded", count=8, tags=["TagA", "TagB", "TagC", "TagA"], keys="key-"),
        "produce_batch": produce(topic="RecordedBatch", mode="batch", count=6, batch=3, tags=["TagA"], keys="b-"),
        "produce_async": produce(topic="Recorded", mode="async", count=3, **{"from": 20}),
        "produce_oneway": produce(topic="RecordedOneway", mode="oneway", count=2),
        "produce_compressed": produce(topic="Recorded", count=1, size=6000, **{"from": 30}),
        "produce_delayed": produce(topic="RecordedDelay", count=1, level=1),
        "transaction": lambda client, namesrv: client.do(
            "transaction", namesrv=namesrv, topic="RecordedTransaction", count=1, outcome="commit"
        ),
        "push_consumer": push,
        "push_orderly": orderly,
        "push_retry": retry,
        "lite_pull": lambda client, namesrv: client.do("litepull", namesrv=namesrv, expect=6, **lite),
        "query": lambda client, namesrv: client.do("query", namesrv=namesrv, topic="Recorded", key="key-1"),
        "offsets": lambda client, namesrv: client.do("offsets", namesrv=namesrv, topic="Recorded", at_ms=1),
        "binary_encoding": binary,
        "admin_clusterList": admin("clusterList"),
        "admin_topicList": admin("topicList", "-c"),
        "admin_topicRoute": admin("topicRoute", "-t", "Recorded"),
        "admin_topicStatus": admin("topicStatus", "-t", "Recorded"),
        "admin_updateTopic": admin("updateTopic", "-c", "DefaultCluster", "-t", "Made", "-r", "4", "-w", "4"),
        "admin_deleteTopic": admin("deleteTopic", "-c", "DefaultCluster", "-t", "Made"),
        "admin_brokerStatus": admin("brokerStatus", "-c", "DefaultCluster"),
        "admin_getBrokerConfig": admin("getBrokerConfig", "-c", "DefaultCluster"),
        "admin_updateSubGroup": admin("updateSubGroup", "-c", "DefaultCluster", "-g", "made_group"),
        "admin_getConsumerConfig": admin("getConsumerConfig", "-g", "made_group"),
        "admin_consumer": connections,
        "admin_sendMessage": admin("sendMessage", "-t", "Recorded", "-p", "hello", "-k", "adminkey", "-c", "TagA"),
        "admin_queryMsgByKey": admin("queryMsgByKey", "-t", "Recorded", "-k", "adminkey"),
        "admin_queryMsgByOffset": admin("queryMsgByOffset", "-t", "Recorded", "-b", "broker-a", "-i", "0", "-o", "0"),
        "admin_consumeMessage": admin("consumeMessage", "-t", "RecordedBatch"),
        "admin_queryCq": admin("queryCq", "-t", "Recorded", "-q", "0", "-i", "0", "-c", "2"),
        "admin_statsAll": admin("statsAll", "-t", "Recorded"),
        "admin_getNamesrvConfig": admin("getNamesrvConfig"),
        "admin_updateKvConfig": admin(
            "updateKvConfig", "-s", "ORDER_TOPIC_CONFIG", "-k", "Recorded", "-v", "broker-a:4"
        ),
        "admin_wipeWritePerm": admin("wipeWritePerm", "-b", "broker-a"),
        "admin_addWritePerm": admin("addWritePerm", "-b", "broker-a"),
    }


def scenarios_of_others(go: Program, node: Program, namesrv: str) -> dict[str, Callable[[], object]]:
    """The same for the Go client and the one for Node."""

    def consume(program: Program, topic: str, received: int, **arguments: Any) -> None:
        program.do("consume.start", name=topic, namesrv=namesrv, topic=topic, group=f"{topic}Group", **arguments)
        program.do("consume.state", name=topic, received=received, timeout_ms=30_000)
        program.do("consume.stop", name=topic)

    def go_does(do: str, **arguments: Any) -> Callable[[], object]:
        return lambda: go.do(do, namesrv=namesrv, **arguments)

    def transaction() -> None:
        go.do("transaction", namesrv=namesrv, topic="GoTransaction", name="t", outcome="commit")
        consume(go, "GoTransaction", 1)  # the answer to the broker is oneway: it has arrived when the message comes
        go.do("transaction.stop", name="t")

    broker = {"broker_address": f"{PROXY_HOST}:10911"}
    many: dict[str, Any] = {"tags": ["TagA", "TagB"], "keys": "key-", "count": 4}
    pulled = {"topic": "Go", "group": "GoPull", "broker": "broker-a", "queue": 0, "offset": 0}
    return {
        "go_topic_create": lambda: [
            go.do("topic.create", namesrv=namesrv, topic=topic, queues=1, **broker) for topic in ("Go", "Node")
        ],
        "go_produce": go_does("produce", topic="Go", **many),
        "go_produce_creates_topic": go_does("produce", topic="GoAuto", **many),
        "go_produce_async": go_does("produce", topic="Go", mode="async", **many),
        "go_produce_oneway": go_does("produce", topic="Go", mode="oneway", **many),
        "go_produce_batch": go_does("produce", topic="Go", mode="batch", batch=2, **many),
        "go_produce_compressed": go_does("produce", topic="Go", size=6000),
        "go_produce_delayed": go_does("produce", topic="GoDelay", level=1),
        "go_transaction": transaction,
        "go_push_consumer": lambda: consume(go, "Go", 8, tags="TagA || TagB"),
        "go_push_orderly": lambda: consume(go, "GoAuto", 4, orderly=True),
        "go_push_retry": lambda: consume(go, "GoDelay", 0, fail_times=1, level=1),
        "go_pull": go_does("pull", commit=4, **pulled),
        "go_topic_list": go_does("topic.list", **broker),
        "go_topic_delete": go_does("topic.delete", topic="GoAuto", **broker),
        "node_produce": lambda: node.do("produce", namesrv=namesrv, topic="Node", **many),
        "node_push_consumer": lambda: consume(node, "Node", 4, tags="TagA || TagB"),
        "node_push_retry": lambda: consume(node, "Node", 4, fail_times=1, tags="TagA || TagB"),
    }


def main() -> None:
    wanted = re.compile(sys.argv[1] if len(sys.argv) > 1 else ".")
    for reason in (golang.unavailable(), nodejs.unavailable()):
        if reason:
            sys.exit(reason)
    RECORDINGS.mkdir(parents=True, exist_ok=True)
    recorder = Recorder()

    def keep(title: str) -> None:
        lines = recorder.end()
        if wanted.search(title):
            save(title, lines)

    with tempfile.TemporaryDirectory(prefix="record-") as name, private_network():
        directory = Path(name)
        recorder.listen("namesrv", 9876, ("127.0.0.1", 9876))
        for server, port in (("broker", 10911), ("broker-fast", 10909)):
            recorder.listen(server, port, ("127.0.0.1", port))
        namesrv = apache.start_namesrv(directory)
        recorder.begin()
        options = {"brokerIP1": PROXY_HOST, "registerNameServerPeriod": 10_000}

        def ready() -> bool:
            return apache.registered("127.0.0.1:9876", "broker-a", f"{PROXY_HOST}:10911", "127.0.0.1:10911")

        broker = apache.start_broker(directory, f"{PROXY_HOST}:9876", options=options, ready=ready)
        recorder.saw(RequestCode.REGISTER_BROKER)
        keep("broker_registers")
        client, go, node = Client(directory), golang.Client(directory), nodejs.Client(directory)
        for title, scenario in scenarios(recorder).items():
            recorder.begin()
            scenario(client, f"{PROXY_HOST}:9876")
            keep(title)
        for title, other in scenarios_of_others(go, node, f"{PROXY_HOST}:9876").items():
            recorder.begin()
            other()
            keep(title)
        go.close()
        node.close()
        recorder.begin()
        client.close()
        broker.stop()
        recorder.saw(RequestCode.UNREGISTER_BROKER)
        keep("broker_stops")
        namesrv.kill()


def save(title: str, lines: list[dict[str, Any]]) -> None:
    """Writes one scenario; a frame that repeats (same side, code and ext fields) is kept at most six times."""
    seen: dict[object, int] = {}
    kept = []
    dropped: set[tuple[int, int]] = set()
    for line in lines:
        if not line["reply"]:
            key = (line["server"], line["from"], line["code"])
            seen[key] = seen.get(key, 0) + 1
            if seen[key] > 6:
                dropped.add((line["link"], line["opaque"]))
                continue
        elif (line["link"], line["opaque"]) in dropped:
            continue
        kept.append(line)
    out: IO[str]
    with (RECORDINGS / f"{title}.jsonl").open("w") as out:
        for line in kept:
            out.write(json.dumps(line) + "\n")
    print(f"{title}: {len(kept)} of {len(lines)} frames")


if __name__ == "__main__":
    main()
