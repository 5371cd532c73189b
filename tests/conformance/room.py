"""A room of its own for a test: a topic and groups that nobody else uses, in one cluster, with the commands on them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import apache
from official import Client, Program, Reply

from aerobee.testing.eventually import eventually_sync as eventually


class Room:
    """One test's topic and groups in one cluster, and the commands on them.

    `client` sends and consumes; `tools` is mqadmin, where that is another program than the Java one.
    """

    def __init__(self, client: Program, cluster: apache.Cluster, topic: str, tools: Client | None = None) -> None:
        self.client = client
        self._tools = tools
        self.cluster = cluster
        self.topic = topic
        self.group = f"{topic}_group"
        self._consumers: list[str] = []

    def create(self, queues: int, perm: int = 6, topic: str | None = None, attributes: str = "") -> None:
        """Makes the topic with so many queues, and waits until the name server tells of it."""
        topic = topic or self.topic
        fields = {"topic": topic, "defaultTopic": "TBW102", "perm": str(perm), "topicFilterType": "SINGLE_TAG"}
        fields |= {"readQueueNums": str(queues), "writeQueueNums": str(queues), "order": "false"}
        fields |= {"attributes": attributes} if attributes else {}
        self.call(17, fields)
        self.is_known(topic)

    def is_known(self, topic: str) -> None:
        """Waits until the name server tells of the topic."""
        eventually(lambda: apache.call(self.cluster.namesrv_address, 105, {"topic": topic})[0]["code"] == 0)

    def create_group(self, name: str | None = None, **settings: object) -> None:
        """Makes the group (or another one), or changes it, with settings under Apache's names."""
        self.call(200, body=json.dumps({"groupName": name or self.group, **settings}).encode())

    def change_settings(self, **settings: object) -> None:
        """Changes settings of the broker while it runs, under Apache's names."""
        self.call(25, body="".join(f"{name}={value}\n" for name, value in settings.items()).encode())

    def call(self, code: int, fields: Mapping[str, str] | None = None, body: bytes = b"") -> tuple[Reply, bytes]:
        """A plain request to the broker that must succeed; the reply's header and body."""
        header, answer = apache.call(self.cluster.broker_address, code, fields, body)
        assert header["code"] == 0, header
        return header, answer

    def operate(self, call: str, **arguments: Any) -> Reply:
        """Something the official admin client asks or orders; see java/.../Admin.java."""
        cluster = self.cluster
        own = {"broker": cluster.broker_address, "broker_name": cluster.broker_name, "group": self.group}
        return self.do("operate", call=call, **{**own, **arguments})

    def admin(self, *args: str) -> str:
        tools = self._tools or self.client
        assert isinstance(tools, Client)
        return tools.admin(*args, "-n", self.cluster.namesrv_address)

    def do(self, command: str, **arguments: Any) -> Reply:
        return self.client.do(command, **{"namesrv": self.cluster.namesrv_address, "topic": self.topic, **arguments})

    def produce(self, count: int, **arguments: Any) -> Reply:
        reply = self.do("produce", count=count, **arguments)
        assert reply["errors"] == {}
        return reply

    def consume(self, name: str = "one", **arguments: Any) -> None:
        """Starts a push consumer, stopped when the test ends."""
        full = f"{self.topic}/{name}"
        self.do("consume.start", **{"name": full, "group": self.group, **arguments})
        self._consumers.append(full)

    def state(self, name: str = "one", received: int = 0, timeout_s: float = 20.0, **arguments: Any) -> Reply:
        """The consumer's counts, once it has received so many or the time is over."""
        return self.do(
            "consume.state",
            name=f"{self.topic}/{name}",
            received=received,
            timeout_ms=int(timeout_s * 1000),
            **arguments,
        )

    def noted(self) -> int:
        """The sum of the offsets that the group's members know of their queues, kept at the broker or not yet."""
        total = 0
        for member in json.loads(self.call(38, {"consumerGroup": self.group})[1])["consumerIdList"]:
            fields = {"consumerGroup": self.group, "clientId": member, "jstackEnable": "false"}
            _, body = self.call(307, fields)
            # A map whose keys are objects: no JSON but Fastjson's.
            total += sum(int(offset) for offset in re.findall(rb'"commitOffset":(\d+)', body))
        return total

    def know_retries(self) -> None:
        """Has the group's retry topic made, as its first member does: that member looks for it every 30 s only."""
        self.consume("first")
        self.is_known(f"%RETRY%{self.group}")
        self.stop("first")
        # Who counts it as a member still, leaves it a share: for 20 s at the Go client, which looks no sooner.
        members = {"consumerGroup": self.group}
        eventually(lambda: apache.call(self.cluster.broker_address, 38, members)[0]["code"] != 0)

    def stop(self, name: str = "one") -> Reply:
        full = f"{self.topic}/{name}"
        self._consumers.remove(full)
        return self.do("consume.stop", name=full)

    def close(self) -> None:
        stopping: list[Future[Reply]] = [self.client.start("consume.stop", name=name) for name in self._consumers]
        for future in stopping:
            future.result(30)
