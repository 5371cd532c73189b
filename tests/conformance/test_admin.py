"""mqadmin against Apache's cluster and ours: the same commands on the same state print the same.

Both clusters are prepared alike, every command runs on both, and what it printed is compared after what must differ
(addresses, times, ids, figures of the machine) was replaced by a word.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import apache
import pytest
import raw
from official import Client, CommandFailed

from aerobee.testing.eventually import eventually_sync as eventually

T = TypeVar("T")

pytestmark = pytest.mark.apache


class Pair:
    """Both clusters, prepared alike; a JVM for each, because some commands keep a client in a static field."""

    def __init__(self, clients: dict[str, Client], clusters: list[apache.Cluster]) -> None:
        self.clients = clients
        self.clusters = clusters
        self._pool = ThreadPoolExecutor(2)
        self.offset_ids: dict[str, str] = {}
        self.unique_ids: dict[str, str] = {}

    def run(self, cluster: apache.Cluster, *args: str) -> str:
        """What the command prints for one cluster; "{…}" in arguments stands for what is the cluster's own."""
        own = {
            "broker": cluster.broker_address,
            "namesrv": cluster.namesrv_address,
            "cluster": cluster.cluster_name,
            "name": cluster.broker_name,
            "offset_id": self.offset_ids.get(cluster.kind, ""),
            "unique_id": self.unique_ids.get(cluster.kind, ""),
        }
        filled = [argument.format_map(own) if "{" in argument else argument for argument in args]
        return self.clients[cluster.kind].admin(*filled, "-n", cluster.namesrv_address)

    def on_both(self, what: Callable[[apache.Cluster], T]) -> list[T]:
        """The same with Apache's cluster and with ours, at the same time."""
        return list(self._pool.map(what, self.clusters))

    def both(self, *args: str) -> tuple[str, str]:
        """Apache's output and ours, made comparable."""
        first, second = self.on_both(lambda cluster: neutral(self.run(cluster, *args), cluster))
        return first, second


REPLACED = [
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[.,]\d{3}", "TIME"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
    (r"\b1[6-9]\d{11}\b", "MILLIS"),
    (r"\b[0-9A-F]{32}\b", "MESSAGE_ID"),
    (r"127\.0\.0\.1@[^\s\"]+", "CLIENT_ID"),
    (r"127\.0\.0\.1:[345678]\d{4}", "CLIENT_ADDRESS"),
    (r"storeHost=/\S+?,", "storeHost=BROKER,"),
    (r"storeSize=\d+", "storeSize=N"),
    (r"commitLogOffset=\d+", "commitLogOffset=N"),
    (r"CommitLog Offset: +\d+", "CommitLog Offset: N"),
    (r"MESSAGE_ID@\d+", "MESSAGE_ID@N"),
    (r"preparedTransactionOffset=\d+", "preparedTransactionOffset=N"),
    (r"Consume TPS: [\d.]+", "Consume TPS: N"),
    (r"Avg RT: [\d.]+", "Avg RT: N"),
    (r"/tmp/rocketmq/\S+", "BODY_FILE"),
]


def neutral(text: str, cluster: apache.Cluster) -> str:
    """The output with addresses, times and ids replaced, and trailing blanks cut."""
    text = text.replace(cluster.broker_address, "BROKER").replace(cluster.namesrv_address, "NAMESRV")
    text = text.replace(str(cluster.directory), "DIRECTORY")
    for pattern, word in REPLACED:
        text = re.sub(pattern, word, text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def columns(text: str) -> list[list[str]]:
    """Rows of words; header lines begin with #."""
    return [line.split() for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def pair(
    client: Client,
    apache_cluster: apache.Cluster,
    aerobee_cluster: apache.Cluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    clusters = [apache_cluster, aerobee_cluster]
    other = Client(tmp_path_factory.mktemp("admin"))
    made = Pair({apache_cluster.kind: client, aerobee_cluster.kind: other}, clusters)
    try:
        made.on_both(lambda cluster: prepare(made, cluster))
        yield made
    finally:
        # After a failure, too: a member that stays would take a share of what the next try waits for.
        for of in (client, other):
            with contextlib.suppress(CommandFailed):
                of.do("consume.stop", name="tools")
        other.close()


def prepare(pair: Pair, cluster: apache.Cluster) -> None:
    """Topic Tools with two queues, ten messages (0 to 4 in queue 0, the rest in queue 1), a live group, an idle one."""
    pair.run(cluster, "updateTopic", "-c", "{cluster}", "-t", "Tools", "-r", "2", "-w", "2")
    namesrv, client = cluster.namesrv_address, pair.clients[cluster.kind]
    eventually(lambda: apache.call(namesrv, 105, {"topic": "Tools"})[0]["code"] == 0)
    tried_before = raw.bounds(cluster.broker_address, "Tools", 0)[1] > 0  # and failed: this fixture is made again
    for queue in range(2):
        arguments = {"topic": "Tools", "mode": "queue", "broker": cluster.broker_name, "queue": queue, "keys": "tool-"}
        sent = client.do("produce", namesrv=namesrv, count=5, tags=["TagA", "TagB"], **{**arguments, "from": 5 * queue})
        assert sent["errors"] == {}
        pair.offset_ids.setdefault(cluster.kind, sent["results"][0]["offset_msg_id"])
        pair.unique_ids.setdefault(cluster.kind, sent["results"][0]["msg_id"])

    consumer = {"namesrv": namesrv, "name": "tools", "topic": "Tools", "group": "tools_group"}
    client.do("consume.start", **consumer)
    # A member whose first look at the topic or the group fails looks again after 30 s or 20 s.
    received = client.do("consume.state", name="tools", received=10, timeout_ms=60_000)["received"]
    # A member commits when it goes, otherwise 10 s after it came; and for its retry queue, which is empty, after the
    # first pull there, which waits for 15 s.
    client.do("consume.stop", name="tools")
    assert received >= 10 if tried_before else received == 10, f"{received} at {cluster.kind}"
    retry = {"consumerGroup": "tools_group", "topic": "%RETRY%tools_group", "queueId": "0", "commitOffset": "0"}
    assert apache.call(cluster.broker_address, 15, retry)[0]["code"] == 0

    def progress() -> bool:
        printed = pair.run(cluster, "consumerProgress", "-g", "tools_group")
        return "%RETRY%tools_group" in printed and re.search(r"Consume Diff Total: 0\s", printed) is not None

    eventually(progress, 40)
    client.do("consume.start", **consumer)
    assert len(client.do("consume.state", name="tools", queues=2, timeout_ms=20_000)["assigned"]) == 2
    pair.run(cluster, "updateSubGroup", "-c", "{cluster}", "-g", "idle_group", "-r", "3", "-q", "2")
    send_back(pair, cluster)


def send_back(pair: Pair, cluster: apache.Cluster) -> None:
    """The first message waits in the retry topic of back_group, and lies among its dead letters."""
    pair.run(cluster, "updateSubGroup", "-b", "{broker}", "-g", "back_group")
    position = str(int(pair.offset_ids[cluster.kind][16:], 16))
    for level, topic in (("1", "%RETRY%back_group"), ("-1", "%DLQ%back_group")):
        if raw.bounds(cluster.broker_address, topic, 0)[1] > 0:  # by an earlier try
            continue
        fields = {"group": "back_group", "offset": position, "delayLevel": level, "originTopic": "Tools"}
        assert apache.call(cluster.broker_address, 36, {**fields, "maxReconsumeTimes": "16"})[0]["code"] == 0
        eventually(lambda topic=topic: raw.bounds(cluster.broker_address, topic, 0) == (0, 1))  # type: ignore[misc]
        eventually(lambda topic=topic: apache.call(cluster.namesrv_address, 105, {"topic": topic})[0]["code"] == 0)  # type: ignore[misc]


@dataclass(frozen=True)
class Case:
    """One command and how its output is made comparable further."""

    args: tuple[str, ...]
    reduce: Callable[[str], object] = lambda text: text


def case(*args: str, reduce: Callable[[str], object] = lambda text: text) -> Case:
    return Case(args, reduce)


def first_columns(*wanted: int) -> Callable[[str], object]:
    """Only these columns of every row: the others are figures that differ from run to run."""
    return lambda text: [[row[n] for n in wanted if n < len(row)] for row in columns(text)]


def keys(text: str) -> list[str]:
    """The names before ':' or '=', without what a JVM or RocksDB says of itself."""
    found = {re.split(r"\s*[:=]", line, maxsplit=1)[0].strip() for line in text.splitlines() if line.strip()}
    return sorted(found)


def rows_of(*topics: str) -> Callable[[str], object]:
    """Header rows and the rows that begin with one of these words."""
    return lambda text: [row for row in columns(text) if row[0].startswith("#") or row[0] in topics]


def without_rate(text: str) -> object:
    """The rows of consumerProgress for this test's group, but for the messages a second."""
    return [row[:5] + row[6:] for row in columns(text) if row[0] == "tools_group"]


def sorted_lines(text: str) -> object:
    return sorted(text.splitlines())


EXACT = {
    "topicRoute": case("topicRoute", "-t", "Tools"),
    "topicRoute -l": case("topicRoute", "-t", "Tools", "-l"),
    "topicRoute of nothing": case("topicRoute", "-t", "Nothing", reduce=lambda text: "CODE: 17" in text),
    "topicStatus": case("topicStatus", "-t", "Tools"),
    "topicClusterList": case("topicClusterList", "-t", "Tools"),
    "clusterList": case("clusterList", reduce=first_columns(0, 1, 2, 3, 4)),
    "clusterList -m": case("clusterList", "-m", reduce=first_columns(0, 1)),
    "updateTopic": case("updateTopic", "-c", "{cluster}", "-t", "Made", "-r", "3", "-w", "5", "-p", "6"),
    "updateTopic again": case("updateTopic", "-b", "{broker}", "-t", "Made", "-r", "6", "-w", "6"),
    "topicRoute of made": case("topicRoute", "-t", "Made"),
    "updateTopicPerm": case("updateTopicPerm", "-b", "{broker}", "-t", "Made", "-p", "4"),
    "updateTopic attributes": case("updateTopic", "-b", "{broker}", "-t", "Typed", "-a", "+message.type=FIFO"),
    "updateTopic bad name": case(
        "updateTopic", "-b", "{broker}", "-t", "bad name", reduce=lambda text: "CODE: 29" in text
    ),
    "updateTopic order": case("updateTopic", "-c", "{cluster}", "-t", "Ordered", "-r", "2", "-w", "2", "-o", "true"),
    "updateOrderConf get": case("updateOrderConf", "-t", "Ordered", "-m", "get"),
    "deleteTopic": case("deleteTopic", "-c", "{cluster}", "-t", "Made"),
    "topicRoute of deleted": case("topicRoute", "-t", "Made", reduce=lambda text: "CODE: 17" in text),
    "consumerProgress": case("consumerProgress", "-g", "tools_group"),
    "consumerProgress -s": case("consumerProgress", "-g", "tools_group", "-s", "true"),
    "consumerProgress of all": case("consumerProgress", reduce=without_rate),
    "consumerProgress of nobody": case(
        "consumerProgress", "-g", "nobody", reduce=lambda text: re.findall(r"CODE: \d+", text)
    ),
    "consumerConnection": case("consumerConnection", "-g", "tools_group"),
    "consumerConnection of nobody": case("consumerConnection", "-g", "nobody", reduce=lambda text: "CODE: 206" in text),
    "producerConnection of nobody": case(
        "producerConnection", "-g", "no", "-t", "Tools", reduce=lambda t: t[:200].splitlines()[:1]
    ),
    "consumerStatus": case("consumerStatus", "-g", "tools_group", reduce=lambda text: columns(text)[:2]),
    "getConsumerConfig": case("getConsumerConfig", "-g", "idle_group"),
    "updateSubGroup": case(
        "updateSubGroup", "-b", "{broker}", "-g", "made_group", "-s", "true", "-m", "false", "-d", "false"
    ),
    "getConsumerConfig of made": case("getConsumerConfig", "-g", "made_group"),
    "deleteSubGroup": case("deleteSubGroup", "-b", "{broker}", "-g", "made_group"),
    "brokerConsumeStats": case("brokerConsumeStats", "-b", "{broker}", reduce=rows_of("Tools", "%RETRY%tools_group")),
    "queryMsgById": case("queryMsgById", "-t", "Tools", "-i", "{offset_id}"),
    "queryMsgByUniqueKey": case("queryMsgByUniqueKey", "-t", "Tools", "-i", "{unique_id}"),
    "queryMsgByKey": case("queryMsgByKey", "-t", "Tools", "-k", "tool-3"),
    "queryMsgByKey of nothing": case(
        "queryMsgByKey", "-t", "Tools", "-k", "none", reduce=lambda t: re.findall(r"CODE: \d+", t)
    ),
    "queryMsgByOffset": case("queryMsgByOffset", "-t", "Tools", "-b", "{name}", "-i", "0", "-o", "1"),
    "queryCq": case("queryCq", "-t", "Tools", "-q", "0", "-i", "0", "-c", "3", "-b", "{broker}", reduce=keys),
    "printMsg": case("printMsg", "-t", "Tools", "-d", "true", reduce=sorted_lines),
    "printMsgByQueue": case(
        "printMsgByQueue", "-t", "Tools", "-a", "{name}", "-i", "0", "-p", "true", "-d", "true", "-f", "true"
    ),
    "consumeMessage": case("consumeMessage", "-t", "Tools", reduce=sorted_lines),
    "consumeMessage of a queue": case("consumeMessage", "-t", "Tools", "-b", "{name}", "-i", "1", "-o", "2", "-c", "2"),
    **{
        f"{args[0]} of retries": case(args[0], "-t", "%RETRY%back_group", *args[1:], reduce=sorted_lines)
        for args in (("topicStatus",), ("printMsg", "-d", "true"), ("queryMsgByKey", "-k", "tool-0"))
    },
    **{
        f"{args[0]} of dead letters": case(args[0], "-t", "%DLQ%back_group", *args[1:], reduce=sorted_lines)
        for args in (
            ("topicRoute",),
            ("printMsg", "-d", "true"),
            ("queryMsgByKey", "-k", "tool-0"),
            ("queryMsgByUniqueKey", "-i", "{unique_id}"),
            ("queryMsgByOffset", "-b", "{name}", "-i", "0", "-o", "0"),
            ("consumeMessage", "-b", "{name}", "-i", "0", "-o", "0", "-c", "1"),
        )
    },
    "consumerProgress of what is sent back": case("consumerProgress", "-g", "back_group"),
    "sendMessage": case(
        "sendMessage", "-t", "Tools", "-p", "hello", "-k", "key", "-c", "TagA", "-b", "{name}", "-i", "1"
    ),
    "checkMsgSendRT": case("checkMsgSendRT", "-t", "Tools", "-a", "3", "-s", "10", reduce=first_columns(0, 1, 2)),
    "cloneGroupOffset": case("cloneGroupOffset", "-s", "tools_group", "-d", "cloned_group", "-t", "Tools"),
    "consumerProgress of clone": case("consumerProgress", "-g", "cloned_group"),
    "resetOffsetByTime offline": case("resetOffsetByTime", "-g", "cloned_group", "-t", "Tools", "-s", "0"),
    "skipAccumulatedMessage": case("skipAccumulatedMessage", "-g", "cloned_group", "-t", "Tools", "-f", "true"),
    "statsAll": case("statsAll", "-t", "Tools", reduce=first_columns(0, 1)),
    "allocateMQ": case("allocateMQ", "-t", "Tools", "-i", "10.0.0.1,10.0.0.2"),
    "producer": case("producer", "-b", "{broker}", reduce=lambda text: text.splitlines()[:1]),
    "updateKvConfig": case("updateKvConfig", "-s", "SPACE", "-k", "key", "-v", "value"),
    "deleteKvConfig": case("deleteKvConfig", "-s", "SPACE", "-k", "key"),
    "getNamesrvConfig": case("getNamesrvConfig", reduce=lambda text: "kvConfigPath" in text and "listenPort" in text),
    "updateNamesrvConfig": case("updateNamesrvConfig", "-k", "clusterTest", "-v", "false"),
    "updateNamesrvConfig of a path": case(
        "updateNamesrvConfig", "-k", "kvConfigPath", "-v", "/x", reduce=lambda t: "CODE: 16" in t
    ),
    "updateBrokerConfig": case("updateBrokerConfig", "-b", "{broker}", "-k", "autoCreateTopicEnable", "-v", "true"),
    "cleanExpiredCQ": case("cleanExpiredCQ", "-b", "{broker}"),
    "cleanUnusedTopic": case("cleanUnusedTopic", "-b", "{broker}"),
    "deleteExpiredCommitLog": case("deleteExpiredCommitLog", "-b", "{broker}"),
    "setConsumeMode": case("setConsumeMode", "-b", "{broker}", "-t", "Tools", "-g", "idle_group", "-m", "PULL"),
    "wipeWritePerm": case("wipeWritePerm", "-b", "{name}", reduce=lambda text: re.sub(r"\d+", "N", text)),
    "topicRoute after wiping": case("topicRoute", "-t", "Tools"),
    "addWritePerm": case("addWritePerm", "-b", "{name}", reduce=lambda text: re.sub(r"\d+", "N", text)),
    "topicRoute after adding": case("topicRoute", "-t", "Tools"),
    "haStatus": case("haStatus", "-b", "{broker}", reduce=lambda text: columns(text)[:1]),
    "help": case("help", "clusterList"),
}


@pytest.mark.parametrize("name", EXACT)
def test_prints_the_same(pair: Pair, name: str) -> None:
    theirs, ours = pair.both(*EXACT[name].args)
    assert EXACT[name].reduce(ours) == EXACT[name].reduce(theirs)


def test_topic_list_has_every_topic(pair: Pair) -> None:
    for cluster in pair.clusters:
        names = set(pair.run(cluster, "topicList").split())
        system = {"TBW102", "SELF_TEST_TOPIC", "BenchmarkTest", "OFFSET_MOVED_EVENT", "SCHEDULE_TOPIC_XXXX"}
        system |= {"DefaultCluster", "broker-a", "RMQ_SYS_TRANS_HALF_TOPIC", "RMQ_SYS_TRANS_OP_HALF_TOPIC"}
        system |= {"rmq_sys_REVIVE_LOG_DefaultCluster", "DefaultCluster_REPLY_TOPIC"}
        assert {"Tools", "%RETRY%tools_group"} | system <= names, cluster.kind


def test_broker_status_has_every_figure(pair: Pair) -> None:
    theirs, ours = (set(keys(text)) for text in pair.both("brokerStatus", "-b", "{broker}"))
    assert theirs <= ours


def test_broker_status_says_since_when_there_are_messages(pair: Pair) -> None:
    for cluster in pair.clusters:
        status = figures(pair.run(cluster, "brokerStatus", "-b", "{broker}"))
        assert time.time() - 3600 < int(status["earliestMessageTimeStamp"]) / 1000 < time.time()


def figures(status: str) -> dict[str, str]:
    """What brokerStatus prints, by name."""
    pairs = (line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


@pytest.mark.parametrize("key", ["brokerConfigPath", "rocketmqHome", "configBlackList"])
def test_what_names_a_path_is_not_changed_from_outside(pair: Pair, key: str) -> None:
    for cluster in pair.clusters:
        assert apache.call(cluster.broker_address, 25, {}, f"{key}=/tmp/x".encode())[0]["code"] == 16, cluster.kind


def test_topic_list_with_groups(pair: Pair) -> None:
    theirs, ours = (
        [row for row in columns(neutral(pair.run(cluster, "topicList", "-c"), cluster)) if row[1:2] == ["Tools"]]
        for cluster in pair.clusters
    )
    assert ours
    assert ours == theirs


HONOURED = (
    "brokerName brokerClusterName brokerId brokerIP1 listenPort namesrvAddr storePathRootDir storePathCommitLog "
    "flushDiskType brokerRole brokerPermission autoCreateTopicEnable autoCreateSubscriptionGroup deleteWhen "
    "defaultTopicQueueNums fileReservedTime maxMessageSize messageDelayLevel mappedFileSizeCommitLog "
    "mappedFileSizeConsumeQueue"
).split()


def test_broker_config_tells_the_same_of_what_is_honoured(pair: Pair) -> None:
    told = []
    for cluster in pair.clusters:
        text = neutral(pair.run(cluster, "getBrokerConfig", "-b", "{broker}"), cluster)
        pairs = (re.split(r"\s+=\s+", line.strip(), maxsplit=1) for line in text.splitlines() if " = " in line)
        told.append({pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs})
    theirs, ours = told
    own_places = {"listenPort", "namesrvAddr", "storePathRootDir", "storePathCommitLog"}
    assert set(HONOURED) <= set(ours)
    assert {key: ours[key] for key in HONOURED if key not in own_places} == {
        key: theirs[key] for key in HONOURED if key not in own_places
    }
