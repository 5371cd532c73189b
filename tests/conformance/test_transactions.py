"""Transactions against both brokers: what every END_TRANSACTION is answered, and what becomes of all kinds of
transactions of the official client while the broker is killed.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import apache
import ours
import pytest
import raw
from official import Client

from aerobee.broker.records import Stored, parse_record

pytestmark = [pytest.mark.apache, pytest.mark.timeout(300)]

NOTHING, COMMIT, ROLLBACK = 0, 8, 12
HALF, PARKED = "RMQ_SYS_TRANS_HALF_TOPIC", "TRANS_CHECK_MAX_TIME_TOPIC"
_numbers = itertools.count()


class Halves:
    """Half messages of one topic, sent and ended with bare requests."""

    def __init__(self, cluster: apache.Cluster) -> None:
        self.broker = cluster.broker_address
        self.topic = f"halves{next(_numbers)}"

    def send(self, age_s: float = 0, **properties: str) -> tuple[int, int]:
        """A half message of group `g`; its queue offset and position."""
        unique = f"{time.time_ns():032X}"
        born_ms = int((time.time() - age_s) * 1000)
        every = {"TRAN_MSG": "true", "PGROUP": "g", "UNIQ_KEY": unique, **properties}
        reply = raw.send(self.broker, self.topic, b"half", every, group="g", sys_flag=4, born_ms=born_ms)
        assert reply["code"] == 0, reply
        fields = reply["extFields"]
        assert fields["transactionId"] == unique
        return int(fields["queueOffset"]), int(fields["msgId"][16:], 16)

    def end(self, place: tuple[int, int], decision: int, *, group: str = "g", from_check: bool = False) -> int | None:
        """The reply's code; None: there was none."""
        fields = {"producerGroup": group, "tranStateTableOffset": str(place[0]), "commitLogOffset": str(place[1])}
        fields |= {"commitOrRollback": str(decision), "fromTransactionCheck": str(from_check).lower()}
        try:
            header, _ = apache.call(self.broker, 37, fields, timeout_s=1)
        except TimeoutError:
            return None
        code: int = header["code"]
        return code

    @property
    def delivered(self) -> list[Stored]:
        return [parse_record(data) for data in raw.pull(self.broker, self.topic, 0)]


@pytest.fixture
def halves(cluster: apache.Cluster) -> Halves:
    return Halves(cluster)


def test_a_commit_makes_the_message_visible(halves: Halves) -> None:
    half = halves.send(KEYS="k", TAGS="t", own="grün \u4e2d")
    assert halves.delivered == []
    assert halves.end(half, COMMIT) == 0
    (message,) = halves.delivered
    assert (message.sys_flag, message.flag, message.prepared_offset) == (COMMIT, 7, half[1])
    assert message.properties["own"] == "grün \u4e2d" and message.properties["TRAN_MSG"] == "true"
    assert message.properties["__transactionId__"] == message.properties["UNIQ_KEY"]
    assert not {"REAL_TOPIC", "REAL_QID"} & set(message.properties)
    found = raw.query(halves.broker, halves.topic, "k", "K")
    assert [parse_record(data).position for data in found] == [message.position]


def test_wrong_ends_are_refused_and_change_nothing(halves: Halves, cluster: apache.Cluster) -> None:
    half = halves.send()
    assert halves.end(half, COMMIT, group="other") == 1
    assert halves.end((half[0] + 1, half[1]), COMMIT) == 1
    for position in (half[1] + 1, half[1] + 1_000_000, -1):
        assert halves.end((half[0], position), COMMIT) == 1
    for decision in (4, 99, -1):
        assert halves.end(half, decision) == 1
    # Apache's broker says nothing to this one, also to who waits for it.
    assert halves.end(half, NOTHING) == (None if cluster.kind == "apache" else 0)
    assert halves.delivered == []
    assert halves.end(half, COMMIT) == 0
    (message,) = halves.delivered
    assert halves.end((message.queue_offset, message.position), COMMIT) == 1, "a message that is no half"


def test_ends_that_contradict_each_other(halves: Halves, cluster: apache.Cluster) -> None:
    """A commit counts, whatever was said before or is said after it."""
    first, second = halves.send(), halves.send()
    assert [halves.end(first, decision) for decision in (ROLLBACK, COMMIT)] == [0, 0]
    assert [halves.end(second, decision) for decision in (COMMIT, ROLLBACK)] == [0, 0]
    assert [message.prepared_offset for message in halves.delivered] == [first[1], second[1]]
    assert [halves.end(half, COMMIT) for half in (first, second)] == [0, 0]
    assert len(halves.delivered) == (4 if cluster.kind == "apache" else 2), "ours delivers once"


LATE = [
    ("1", 2, 0),  # transactionTimeOut (6 s) is the least
    ("1", 7, 604),
    ("0", 7, 604),
    ("-1", 7, 604),
    ("soon", 7, 604),
    ("", 7, 0),
    ("10", 7, 0),
    ("10", 11, 604),
]


@pytest.mark.parametrize(("immunity", "age_s", "code"), LATE)
def test_an_answer_after_the_immunity_time(halves: Halves, immunity: str, age_s: int, code: int) -> None:
    half = halves.send(age_s, CHECK_IMMUNITY_TIME_IN_SECONDS=immunity)
    assert halves.end(half, COMMIT) == code
    assert len(halves.delivered) == (code == 0)
    assert halves.end(half, ROLLBACK, from_check=True) == 0, "the answer to a question is never late"


def test_topics_that_are_not_there(halves: Halves) -> None:
    """A half message makes its topic as every message does; if that goes in between, it is committed all the same."""
    half = halves.send()
    assert apache.call(halves.broker, 215, {"topic": halves.topic})[0]["code"] == 0
    assert halves.end(half, COMMIT) == 0
    eventually(lambda: raw.bounds(halves.broker, halves.topic, 0) == (0, 1))


# The official client.

SETTINGS = {"transactionTimeOut": 1000, "transactionCheckInterval": 1000}
PLAN = ["commit/commit", "rollback/rollback", "unknown/commit", "unknown/rollback", "unknown/unknown", "unknown/commit"]
IMMUNITY_S = [0, 0, 0, 0, 0, 4]


@pytest.fixture(params=["apache", "aerobee"])
def own_cluster(request: pytest.FixtureRequest, private_network: None, tmp_path: Path) -> Iterator[apache.Cluster]:
    """A cluster that asks early, with a broker that may be killed."""
    if request.param == "apache":
        cluster = apache.start(tmp_path, {**SETTINGS, **apache.NO_SPIN}, namesrv_port=39876, port=31911)
    else:
        cluster = ours.start(tmp_path, SETTINGS, namesrv_port=39876, port=31911)
    yield cluster
    cluster.discard()


@pytest.mark.slow
def test_every_transaction_ends_as_its_producer_says_through_kills(own_cluster: apache.Cluster, client: Client) -> None:
    """Claim: with two kills and one producer of two gone, nothing committed is lost, nothing rolled back is seen, and
    what nobody answers is asked about fifteen times and set aside."""
    cluster, topic = own_cluster, "transactions"
    where = {"namesrv": cluster.namesrv_address, "name": topic}
    client.do(
        "transactions.start",
        topic=topic,
        group="senders",
        plan=PLAN,
        immunity_s=IMMUNITY_S,
        pause_ms=10,
        queues=1,
        **where,
    )

    def executed() -> set[int]:
        return set(client.do("transactions.state", **where)["executed"])

    for kill in (1, 2):
        seen = len(executed())
        eventually(lambda seen=seen: len(executed()) >= seen + 60)  # type: ignore[misc]
        cluster.kill_broker()
        cluster.start_broker()
        if kill == 1:
            client.do("transactions.hush", **where)
    seen = len(executed())
    eventually(lambda: len(executed()) >= seen + 60)
    sent = client.do("transactions.quiet", **where)
    ran = set(sent["executed"])
    kinds = {number: PLAN[number % len(PLAN)] for number in ran}
    committed = {number for number, kind in kinds.items() if kind.endswith("/commit")}
    open_for_ever = {number for number, kind in kinds.items() if kind.endswith("/unknown")}

    broker = cluster.broker_address
    eventually(lambda: committed <= set(numbers(broker, topic)), 60)
    eventually(lambda: open_for_ever <= set(numbers(broker, PARKED)), 60)
    visible, parked = numbers(broker, topic), numbers(broker, PARKED)
    assert set(visible) == committed
    assert set(parked) == open_for_ever
    if cluster.kind == "aerobee":
        # Apache's broker loses up to 5 s of its notes when it is killed.
        assert max(visible.values()) == 1 and max(parked.values()) == 1
    times = {parse_record(data).properties["TRANSACTION_CHECK_TIMES"] for data in raw.pull(broker, PARKED, 0)}
    assert times == {"15"}

    state = client.do("transactions.stop", **where)
    youngest = {int(number): age_ms for number, age_ms in state["youngest"].items()}
    for number, age_ms in youngest.items():
        immunity_s = IMMUNITY_S[number % len(PLAN)]
        assert age_ms > 1000 * max(1, immunity_s), f"{PLAN[number % len(PLAN)]} was asked about too early"
    asked = Counter({int(number): count for number, count in state["asked"].items()})
    assert {PLAN[number % len(PLAN)].split("/")[0] for number in asked if number in ran} >= {"unknown"}
    assert max(asked.values()) <= 15 or cluster.kind == "apache"


def numbers(broker: str, topic: str) -> Counter[int]:
    """How often each number is in the topic's first queue."""
    try:
        records = raw.pull(broker, topic, 0)
    except (KeyError, OSError):
        return Counter()  # there is no such topic yet, or no broker
    return Counter(int(parse_record(data).properties["seq"]) for data in records)


def eventually(check: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.1)
