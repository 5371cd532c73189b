"""The broker's tables: offsets, topics, groups, clients, locks, files."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from aerobee.broker.assignment import RequestModes
from aerobee.broker.clients import Client, ClientTable
from aerobee.broker.config_file import ConfigFile
from aerobee.broker.delay import Delay
from aerobee.broker.groups import GroupTable
from aerobee.broker.handlers.send import unpack_batch
from aerobee.broker.handlers.topics import parse_attributes
from aerobee.broker.notices import SLICE, Notices
from aerobee.broker.offsets import TAKE_UP_S, OffsetTable
from aerobee.broker.options import BrokerOptions
from aerobee.broker.order import LEASE_S, LOST_S, TRUST_S, OrderLocks
from aerobee.broker.pop_order import OrderTable
from aerobee.broker.static_topics import StaticTopics
from aerobee.broker.topics import QUEUES_MAX, TopicTable
from aerobee.clock import ManualClock
from aerobee.errors import MalformedRequest, ServerError
from aerobee.options import OptionsError
from aerobee.protocol.bodies.client import SubscriptionData
from aerobee.protocol.bodies.groups import SubscriptionGroupConfig
from aerobee.protocol.bodies.topics import TopicConfig
from aerobee.testing.eventually import eventually


def options(**values: Any) -> BrokerOptions:
    return BrokerOptions(broker_name="broker-a", **values)


# Offsets.


def test_offsets_never_go_backwards_unless_an_operator_resets_them(tmp_path: Path) -> None:
    offsets = OffsetTable(tmp_path)
    offsets.commit("g", "t", 0, 10)
    offsets.commit("g", "t", 0, 4)
    assert offsets.query("g", "t", 0) == 10 and offsets.counters["backwards"] == 1
    offsets.reset("g", "t", 0, 3)
    offsets.commit("g", "t", 0, 11)  # a consumer that does not know of the reset yet
    assert offsets.query("g", "t", 0) == 3
    assert offsets.take_reset("g", "t", 0) == 3 and offsets.take_reset("g", "t", 0) is None
    offsets.commit("g", "t", 0, 5)
    assert offsets.query("g", "t", 0) == 5


async def test_a_reset_that_nobody_takes_up_holds_commits_for_half_a_minute(tmp_path: Path) -> None:
    clock = ManualClock()
    offsets = OffsetTable(tmp_path, clock=clock)
    offsets.commit("g", "t", 0, 10)
    offsets.reset("g", "t", 0, 3)
    assert offsets.take_reset("g", "t", 0, alone=True) == 3
    await clock.advance(TAKE_UP_S - 1)
    offsets.commit("g", "t", 0, 12)
    assert offsets.query("g", "t", 0) == 3 and offsets.counters["held"] == 1
    await clock.advance(2)
    offsets.commit("g", "t", 0, 12)
    assert offsets.query("g", "t", 0) == 12


async def test_offsets_are_read_back_and_from_apaches_spelling(tmp_path: Path) -> None:
    offsets = OffsetTable(tmp_path)
    offsets.commit("g", "t", 0, 10)
    offsets.commit("g", "t", 7, 12)
    await offsets.save()
    assert '"t@g":{\n\t\t\t0:10,\n\t\t\t7:12\n\t\t}' in (tmp_path / "consumerOffset.json").read_text()
    again = OffsetTable(tmp_path)
    again.load()
    assert again.table == {"t@g": {0: 10, 7: 12}}
    again.forget_group("g")
    assert again.table == {} and again.topics_of("g") == []


async def test_offsets_with_light_queues_are_apaches_other_file_and_none_is_lost_by_the_switch(tmp_path: Path) -> None:
    plain = OffsetTable(tmp_path)
    plain.commit("g", "t", 3, 10)
    await plain.save()
    light = OffsetTable(tmp_path, light=True)
    light.load()
    light.commit("%LMQ%g", "%LMQ%t", 0, 7)
    light.commit("g", "%LMQ%t", 0, 8)
    light.commit("g", "t", 3, 11)
    await light.save()
    text = (tmp_path / "lmqConsumerOffset.json").read_text()
    assert '"lmqOffsetTable":{\n\t\t"%LMQ%t@%LMQ%g":7\n\t}' in text and '"%LMQ%t@g":{\n\t\t\t0:8' in text
    os.utime(tmp_path / "consumerOffset.json", (1, 1))
    for switched in (True, False):
        again = OffsetTable(tmp_path, light=switched)
        again.load()
        assert again.table == {"%LMQ%t@%LMQ%g": {0: 7}, "%LMQ%t@g": {0: 8}, "t@g": {3: 11}}


# Files.


async def test_a_broken_file_falls_back_to_the_one_before(tmp_path: Path) -> None:
    content = {"n": 1}
    file = ConfigFile(tmp_path / "config" / "x.json", lambda: f'{{"n":{content["n"]}}}')
    assert file.load() is None
    await file.save()
    content["n"] = 2
    await file.save()
    assert file.load() == {"n": 2}
    for broken in (b"", b'{"n":', b"\x00" * 40):
        file.path.write_bytes(broken)
        assert file.load() == {"n": 1}
    content["n"] = 3
    await file.save()
    assert file.load() == {"n": 3}
    file.path.unlink()  # as a kill in the middle of that write would have left it
    assert file.load() == {"n": 1}, "the damaged file took the place of the good backup"
    await file.save()


async def test_a_file_that_could_not_be_written_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"n": 1}
    file = ConfigFile(tmp_path / "x.json", lambda: f'{{"n":{content["n"]}}}')
    await file.save()
    content["n"] = 2

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("aerobee.broker.config_file.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            await file.save()
    assert file.behind and file.load() == {"n": 1} and os.listdir(tmp_path) == ["x.json"]
    await file.save()
    assert not file.behind and file.load() == {"n": 2}


async def test_many_saves_cost_few_writes(tmp_path: Path) -> None:
    writes = 0

    def text() -> str:
        nonlocal writes
        writes += 1
        return f"{{{writes}:1}}"

    file = ConfigFile(tmp_path / "x.json", text)
    await asyncio.gather(*(file.save() for _ in range(100)))
    assert writes <= 3


async def test_who_is_cancelled_leaves_the_write_to_itself_and_the_last_save_has_everything(tmp_path: Path) -> None:
    """A stop cancels the periodic save, which may be writing or wait for another one's write."""
    offsets = OffsetTable(tmp_path)
    begun, go_on, replace = threading.Event(), threading.Event(), offsets.file._replace

    def slow(data: bytes) -> None:
        begun.set()
        go_on.wait(30)
        replace(data)

    offsets.file._replace = slow  # type: ignore[method-assign]
    offsets.commit("g", "t", 0, 5)
    first = asyncio.create_task(offsets.save())
    await asyncio.to_thread(begun.wait, 30)
    offsets.commit("g", "t", 0, 17)
    waiting = asyncio.create_task(offsets.save())
    await eventually(lambda: not offsets.dirty)
    for task in (first, waiting):
        task.cancel()
    await asyncio.gather(first, waiting, return_exceptions=True)
    last = asyncio.create_task(offsets.save())
    go_on.set()
    await last
    again = OffsetTable(tmp_path)
    again.load()
    assert again.query("g", "t", 0) == 17


async def test_how_far_delays_are_is_written_by_the_stop_when_the_write_it_cancelled_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = SimpleNamespace(log_bounds=lambda: (0, 0, 0))
    delay = Delay(store, ManualClock(), [1000], tmp_path)
    begun, go_on = threading.Event(), threading.Event()

    def full(_: int) -> None:
        begun.set()
        go_on.wait(30)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("aerobee.broker.config_file.os.fsync", full)
        delay.offsets[1], delay._dirty = 5, True
        periodic = asyncio.create_task(delay.save())
        await asyncio.to_thread(begun.wait, 30)
        periodic.cancel()
        await asyncio.gather(periodic, return_exceptions=True)
        go_on.set()
        await eventually(lambda: delay.file.behind)
    await delay.save()
    assert (delay.file.load() or {})["offsetTable"] == {"1": 5}


# Topics.


def topics(tmp_path: Path, **values: Any) -> TopicTable:
    table = TopicTable(options(**values), tmp_path)
    table.load()
    return table


def test_a_setting_that_cannot_be_one_does_not_cost_all_topics(tmp_path: Path) -> None:
    text = '{"topicConfigTable":{"a":{"perm":%s,"attributes":null},"b":{"topicName":"b"}},"dataVersion":{"counter":7}}'
    file = tmp_path / "topics.json"
    for kept in (file, tmp_path / "topics.json.bak"):
        kept.write_text(text % '"many"')
    table = TopicTable(options(), tmp_path)
    with pytest.raises(MalformedRequest, match="perm"):
        table.load()
    file.write_text("{half")  # no JSON at all: the copy is asked
    (tmp_path / "topics.json.bak").write_text(text % '"4"')
    table.load()
    assert (table.table["a"].topic_name, table.table["a"].perm, table.version.counter) == ("a", 4, 7)
    assert table.table["b"].perm == 6


# Claim: JSON of another shape stops the start with a sentence that names the file, a damaged file only costs itself.
@pytest.mark.parametrize("backup", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("topics.json", "[]"),
        ("topics.json", '{"topicConfigTable":[]}'),
        ("topics.json", '{"dataVersion":7}'),
        ("topics.json", '{"topicConfigTable":{"t":{"readQueueNums":-1}}}'),
        ("topics.json", '{"topicConfigTable":{"t":{"writeQueueNums":1099511627776}}}'),
        ("topics.json", '{"topicConfigTable":{"t":{"perm":-1}}}'),
        ("subscriptionGroup.json", '"x"'),
        ("subscriptionGroup.json", '{"subscriptionGroupTable":{"g":7}}'),
        ("subscriptionGroup.json", '{"subscriptionGroupTable":{"g":{"groupSysFlag":1099511627776}}}'),
        ("subscriptionGroup.json", '{"forbiddenTable":{"g":{"t":"x"}}}'),
        ("subscriptionGroup.json", '{"dataVersion":[1]}'),
        ("messageRequestMode.json", '{"messageRequestModeMap":7}'),
        ("topicQueueMapping.json", "7"),
        ("topicQueueMapping.json", '{"dataVersion":[1]}'),
        ("consumerOrderInfo.json", '{"table":{"t@g":{"0":[]}}}'),
        ("consumerOrderInfo.json", '{"table":[1]}'),
        ("consumerOffset.json", '{"offsetTable":{"t@g":7}}'),
        ("consumerOffset.json", '{"offsetTable":{"t@g":{"0":"x"}}}'),
        ("delayOffset.json", '{"offsetTable":{"one":1}}'),
        ("delayOffset.json", "[1]"),
    ],
)
def test_json_of_another_shape_is_one_sentence(name: str, text: str, backup: bool, tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "topics.json": lambda: TopicTable(options(), tmp_path),
        "subscriptionGroup.json": lambda: GroupTable(options(), tmp_path),
        "messageRequestMode.json": lambda: RequestModes(options(), tmp_path),
        "topicQueueMapping.json": lambda: StaticTopics("broker-a", tmp_path),
        "consumerOffset.json": lambda: OffsetTable(tmp_path),
        "consumerOrderInfo.json": lambda: OrderTable(ManualClock(), tmp_path),
        "delayOffset.json": lambda: Delay(SimpleNamespace(), ManualClock(), [1000], tmp_path),  # type: ignore[arg-type]
    }
    file = tmp_path / (name + ".bak" if backup else name)
    if backup:
        (tmp_path / name).write_text("{half")
    file.write_text(text)
    with pytest.raises(MalformedRequest) as found:
        tables[name]().load()
    assert str(found.value).startswith(f"{file} ") and "\n" not in str(found.value)


def test_locks_of_another_shape_lock_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for text in ("[]", '{"g":7}'):
        (tmp_path / "orderLocks.json").write_text(text)
        OrderLocks(ManualClock(), tmp_path).load()
        assert "orderLocks.json" in caplog.text
        caplog.clear()


async def test_automatic_topics_inherit_by_apaches_rules(tmp_path: Path) -> None:
    table = topics(tmp_path)
    made = await table.create_for_send("orders", "TBW102", 4, 0)
    assert made is not None and (made.read_queue_nums, made.write_queue_nums, made.perm) == (4, 4, 6)
    many = await table.create_for_send("many", "TBW102", 100, 0)
    assert many is not None and many.write_queue_nums == 8
    assert await table.create_for_send("x", "no-such-topic", 4, 0) is None
    assert await table.create_for_send("y", "orders", 4, 0) is None  # an ordinary topic has nothing to inherit
    again = topics(tmp_path)
    assert again.get("orders") == made


async def test_no_automatic_topics_when_switched_off(tmp_path: Path) -> None:
    assert await topics(tmp_path, auto_create_topic_enable=False).create_for_send("orders", "TBW102", 4, 0) is None


@pytest.mark.parametrize(
    "name", ["", "  ", "a b", "a/b", "tür", "x" * 128, "TBW102", "rmq_sys_x", "SCHEDULE_TOPIC_XXXX", "broker-a"]
)
async def test_names_that_tools_may_not_use(tmp_path: Path, name: str) -> None:
    with pytest.raises(ServerError) as refused:
        await topics(tmp_path).update([TopicConfig(topic_name=name)])
    assert refused.value.code == 29


# Claim: a topic that cannot be one is refused as a whole list, before anything of it is in force or written.
@pytest.mark.parametrize(
    "values",
    [
        {"read_queue_nums": -1},
        {"write_queue_nums": -1},
        {"read_queue_nums": QUEUES_MAX + 1},
        {"write_queue_nums": 2**40},
        {"perm": -1},
        {"perm": 8},
    ],
)
async def test_a_topic_that_cannot_be_is_refused_before_anything_is_put(tmp_path: Path, values: dict[str, int]) -> None:
    heard: list[str] = []
    table = TopicTable(options(), tmp_path, on_change=lambda topic, _: heard.append(topic))
    table.load()
    with pytest.raises(ServerError, match=r"topic t2: .* must be 0 to \d+, not") as refused:
        await table.update([TopicConfig(topic_name="t1"), TopicConfig(topic_name="t2", **values)])
    assert refused.value.code == 29
    assert table.get("t1") is table.get("t2") is None and not heard and not table.file.path.exists()
    await table.update([TopicConfig(topic_name="t", read_queue_nums=QUEUES_MAX, write_queue_nums=0, perm=7)])


async def test_attributes_are_added_and_removed(tmp_path: Path) -> None:
    table = topics(tmp_path)
    await table.update([TopicConfig(topic_name="t", attributes=parse_attributes("+message.type=FIFO"))])
    assert table.table["t"].attributes == {"message.type": "FIFO"}
    await table.update([TopicConfig(topic_name="t", attributes=parse_attributes("-message.type"))])
    assert table.table["t"].attributes == {}
    for wrong in ("+no.such=1", "+message.type=NONE", "-message.type", "+queue.type=BatchCQ"):
        with pytest.raises(ServerError):
            await table.update([TopicConfig(topic_name="t", attributes=parse_attributes(wrong))])
    for wrong in ("message.type=FIFO", "+message.type", "-a,-a"):
        with pytest.raises(ServerError):
            parse_attributes(wrong)


async def test_the_kind_of_queue_is_chosen_when_a_topic_is_made(tmp_path: Path) -> None:
    table = topics(tmp_path)
    batch = {"+queue.type": "BatchCQ"}
    await table.update([TopicConfig(topic_name="t", attributes=batch)])
    await table.update([TopicConfig(topic_name="t", read_queue_nums=8)])
    for change in (batch, {"+queue.type": "SimpleCQ"}, {"-queue.type": ""}):
        with pytest.raises(ServerError, match="unchangeable"):
            await table.update([TopicConfig(topic_name="t", attributes=dict(change))])
    assert table.with_batch_queues() == ["t"] and topics(tmp_path).with_batch_queues() == ["t"]


async def test_light_queues_and_their_groups_need_not_be_made(tmp_path: Path) -> None:
    table = topics(tmp_path, enable_lmq=True)
    found = table.get("%LMQ%x")
    assert found is not None and (found.read_queue_nums, found.write_queue_nums, found.perm) == (1, 1, 6)
    await table.update([TopicConfig(topic_name="%LMQ%x", read_queue_nums=8)])
    assert table.get("%LMQ%x") == found and "%LMQ%x" not in table.table
    groups = GroupTable(options(enable_lmq=True, auto_create_subscription_group=False), tmp_path)
    assert groups.find("%LMQ%g") is not None and groups.find("g") is None and not groups.table
    assert topics(tmp_path).get("%LMQ%x") is None


# Groups.


async def test_what_a_group_that_does_not_exist_yet_may_not_read_survives(tmp_path: Path) -> None:
    table = GroupTable(options(), tmp_path)
    await table.forbid("later", "t", readable=False)
    again = GroupTable(options(), tmp_path)
    again.load()
    assert again.is_forbidden("later", "t")
    await again.delete("later")
    again = GroupTable(options(), tmp_path)
    again.load()
    assert not again.is_forbidden("later", "t")


async def test_groups_that_cannot_be_are_refused_before_any_is_put(tmp_path: Path) -> None:
    table = GroupTable(options(), tmp_path)
    for wrong in (
        SubscriptionGroupConfig(group_name="b", attributes={"+no.such": "1"}),
        SubscriptionGroupConfig(group_name="b", retry_queue_nums=QUEUES_MAX + 1),
        SubscriptionGroupConfig(group_name="b d"),
    ):
        with pytest.raises(ServerError):
            await table.update([SubscriptionGroupConfig(group_name="a", consume_enable=False), wrong])
        assert not table.table and not table.file.path.exists()


@pytest.mark.parametrize("field", ["groupSysFlag", "retryQueueNums", "retryMaxTimes", "brokerId"])
def test_numbers_that_java_cannot_read_are_no_group(field: str) -> None:
    with pytest.raises(MalformedRequest, match=field):
        SubscriptionGroupConfig.from_json(f'{{"groupName":"g","{field}":{2**63}}}')


async def test_a_groups_retry_topic_has_a_possible_number_of_queues(tmp_path: Path) -> None:
    table = topics(tmp_path)
    assert (await table.create_for_group("%RETRY%a", -1)).read_queue_nums == 0
    assert (await table.create_for_group("%RETRY%b", 2**31 - 1)).write_queue_nums == QUEUES_MAX
    topics(tmp_path)


async def test_groups_appear_when_used_and_survive(tmp_path: Path) -> None:
    table = GroupTable(options(), tmp_path)
    table.load()
    assert table.find("bad name") is None
    assert table.find("g") is not None
    await table.settled()
    await table.update([SubscriptionGroupConfig(group_name="g", retry_max_times=3)])
    await table.forbid("g", "t", readable=False)
    again = GroupTable(options(auto_create_subscription_group=False), tmp_path)
    again.load()
    assert again.table["g"].retry_max_times == 3 and again.is_forbidden("g", "t")
    assert again.find("other") is None and again.find("CID_RMQ_SYS_X") is not None
    await again.settled()


# Clients.


class Clients:
    """A client table, what it said to whom, and connections that are only numbers."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.notices: list[tuple[str, list[str]]] = []
        self.subscriptions: dict[tuple[str, str], str | None] = {}
        self.table = ClientTable(
            self.clock,
            on_subscription=self.on_subscription,
            notify=lambda group: self.notices.append((group, self.table.consumers[group].client_ids())),
        )

    def on_subscription(self, group: str, topic: str, subscription: SubscriptionData | None) -> None:
        self.subscriptions[group, topic] = None if subscription is None else subscription.sub_string

    def connection(self, number: int) -> Any:
        return SimpleNamespace(id=number, peer=f"10.0.0.{number}:1", closed=False, close=lambda reason: None)

    def join(self, name: str, connection: Any, *subscriptions: tuple[str, str, int], model: str = "CLUSTERING") -> bool:
        return self.table.register_consumer(
            "g",
            Client(name, connection, 0, 513),
            consume_type="CONSUME_PASSIVELY",
            message_model=model,
            consume_from_where="CONSUME_FROM_LAST_OFFSET",
            subscriptions=[SubscriptionData(topic=t, sub_string=s, sub_version=v) for t, s, v in subscriptions],
            notify=True,
        )


def test_members_hear_of_every_change_and_only_of_changes() -> None:
    clients = Clients()
    one, two = clients.connection(1), clients.connection(2)
    clients.join("a", one, ("t", "*", 1))
    clients.join("b", two, ("t", "*", 2))
    assert clients.notices == [("g", ["a"]), ("g", ["a", "b"])]
    clients.join("a", one, ("t", "*", 1))
    assert len(clients.notices) == 2
    clients.table.disconnected(two)
    assert clients.notices[-1] == ("g", ["a"])
    clients.table.unregister_consumer("g", one)
    assert "g" not in clients.table.consumers and clients.subscriptions == {("g", "t"): None}


def test_members_that_differ_do_not_take_each_others_topics_away_and_are_noticed() -> None:
    # Claim: with different subscriptions in a group nobody loses a topic, and an operator can see it.
    clients = Clients()
    one, two = clients.connection(1), clients.connection(2)
    clients.join("a", one, ("orders", "*", 1))
    clients.join("b", two, ("bills", "*", 1))
    clients.join("a", one, ("orders", "*", 1))
    group = clients.table.consumers["g"]
    assert set(group.subscriptions) == {"orders", "bills"}
    assert "orders" in group.mismatch and "bills" in group.mismatch
    assert clients.table.counters["mismatches"] == 1
    clients.join("a", one, ("bills", "*", 2))
    assert group.mismatch == ""
    clients.join("a", one, ("bills", "new || paid", 3))
    assert "new || paid" in group.mismatch and clients.table.counters["mismatches"] == 2
    clients.join("b", two, ("bills", "paid||new", 4))
    assert group.mismatch == "", "the same tags in another spelling"
    clients.join("b", two, ("bills", "paid||new", 4), ("%RETRY%g_bills", "*", 5))
    assert group.mismatch == "", "which retry topics a member reads differs while a group changes between pull and pop"


def test_the_newest_subscription_is_in_force() -> None:
    clients = Clients()
    one, two = clients.connection(1), clients.connection(2)
    clients.join("a", one, ("t", "x", 5))
    clients.join("b", two, ("t", "y", 3))
    assert clients.subscriptions["g", "t"] == "x"
    clients.join("b", two, ("t", "y", 9))
    assert clients.subscriptions["g", "t"] == "y"


def test_silent_clients_are_forgotten() -> None:
    clients = Clients()
    closed: list[str] = []
    connection = clients.connection(1)
    connection.close = closed.append
    clients.join("a", connection, ("t", "*", 1))
    clients.table.register_producer("p", Client("a", connection, 0, 513))
    clients.table.expire(120)
    assert "g" in clients.table.consumers
    asyncio.run(clients.clock.advance(121))
    clients.table.expire(120)
    assert clients.table.consumers == {} and clients.table.producers == {} and closed


def test_broadcasting_members_are_not_told() -> None:
    clients = Clients()
    clients.join("a", clients.connection(1), ("t", "*", 1), model="BROADCASTING")
    assert clients.notices == []


def steps(work: Callable[[], object]) -> int:
    """How many lines of Python that is, loops counted through."""
    count = 0

    def line(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return line

    before = sys.gettrace()
    sys.settrace(line)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_whoever_comes_or_goes_costs_no_more_in_a_large_group() -> None:
    """A walk over all members each time held everybody else up for seconds when a thousand clients came at once."""

    def cost(size: int) -> list[int]:
        clients = Clients()
        clients.table._notify = lambda group: None  # what hearing of it costs is another matter
        for number in range(size):
            clients.join(f"c{number}", clients.connection(number), ("t", "*" if number % 3 else "x", 1))
        last = clients.connection(size)
        return [
            steps(lambda: clients.join("new", last, ("t", "y", 1))),
            steps(lambda: clients.join("new", last, ("t", "z", 2), ("u", "*", 1))),
            steps(lambda: clients.table.unregister_consumer("g", clients.connection(0))),
            steps(lambda: clients.table.disconnected(clients.connection(size - 1))),
        ]

    assert all(large <= 1.5 * small for small, large in zip(cost(10), cost(500), strict=True))


def test_what_a_group_subscribes_to_is_what_a_walk_over_its_members_says() -> None:
    """Claim: whatever comes, changes and goes, in whatever order, in force is the newest (of equal ones the first
    member's), and the first members that differ are named."""
    dice = random.Random(4)
    for _ in range(30):
        clients = Clients()
        wanted: dict[int, tuple[str, list[tuple[str, str, int]]]] = {}
        numbers = [clients.connection(number) for number in range(12)]
        for _ in range(60):
            connection, name = dice.choice(numbers), f"c{dice.randrange(8)}"
            if connection.id in wanted and dice.random() < 0.4:
                clients.table.unregister_consumer("g", connection)
                del wanted[connection.id]
            else:
                topics = dice.sample(["t", "u", "v"], dice.randrange(1, 4))
                mine = [(topic, dice.choice(["*", "x"]), dice.randrange(3)) for topic in topics]
                clients.join(name, connection, *mine)
                before = wanted.get(connection.id)
                if (
                    before is None
                    or before[0] != name
                    or {(t, v) for t, _, v in before[1]} != {(t, v) for t, _, v in mine}
                ):
                    wanted[connection.id] = (name, mine)
            in_force: dict[str, tuple[int, str]] = {}
            kinds: dict[tuple[tuple[str, str], ...], str] = {}
            for name, mine in wanted.values():
                for topic, expression, version in mine:
                    if topic not in in_force or version > in_force[topic][0]:
                        in_force[topic] = version, expression
                kinds.setdefault(tuple(sorted((topic, expression) for topic, expression, _ in mine)), name)
            described = [
                f"{name}: " + ", ".join(f"{topic} TAG {expression!r}" for topic, expression in kind)
                for kind, name in list(kinds.items())[:3]
            ]
            group = clients.table.consumers.get("g")
            if not wanted:
                assert group is None and set(clients.subscriptions.values()) == {None}
                continue
            assert group is not None
            assert group.mismatch == ("; ".join(described) if len(kinds) > 1 else "")
            assert group.client_ids() == [name for name, _ in wanted.values()]
            assert {topic: wanted.sub_string for topic, wanted in group.subscriptions.items()} == {
                topic: expression for topic, (_, expression) in in_force.items()
            }
            assert {topic: said for topic, said in clients.subscriptions.items() if said is not None} == {
                ("g", topic): expression for topic, (_, expression) in in_force.items()
            }
            for name in {name for name, _ in wanted.values()}:
                found = group.find(name)
                assert found is not None and found.client_id == name and wanted[found.connection.id][0] == name
            assert all(group.find(f"c{n}") is None for n in range(8) if f"c{n}" not in group.client_ids())


class Counted(dict[Any, Any]):
    """A dictionary that says how many of its keys were looked at in turn."""

    looks = 0

    def __iter__(self) -> Iterator[Any]:
        for key in super().__iter__():
            self.looks += 1
            yield key

    def keys(self) -> Any:
        return list(self)

    def values(self) -> Any:
        return [self[key] for key in self]


def test_a_producer_is_found_without_a_look_at_all_others() -> None:
    table = Clients().table
    table.producers = groups = Counted()
    for number in range(100):
        connection = SimpleNamespace(id=number, peer="", closed=False, blocked=False)
        for group in ("p", f"p{number}"):
            members = groups.setdefault(group, Counted())
            table.register_producer(group, Client(f"c{number}", connection, 0, 513))  # type: ignore[arg-type]
    members = groups["p"]
    groups.looks = members.looks = 0
    found = table.producer_by_client_id("c77")
    assert found is not None and found.connection.id == 77 and table.producer_by_client_id("x") is None
    asked = [table.producer("p") for _ in range(200)]
    assert [member.client_id for member in asked if member] == [f"c{number}" for number in range(100)] * 2
    assert groups.looks == 0 and members.looks <= 200


def test_the_producer_that_came_last_gets_the_replies_while_it_is_connected() -> None:
    def connection(number: int) -> Any:
        return SimpleNamespace(id=number, peer="", closed=False)

    def found() -> int | None:
        producer = table.producer_by_client_id("c")
        return None if producer is None else producer.connection.id

    table = Clients().table
    one, two = connection(1), connection(2)
    for group, at in (("p", one), ("q", one), ("p", two)):
        table.register_producer(group, Client("c", at, 0, 513))
    assert found() == 2
    two.closed = True
    assert found() == 1
    table.unregister_producer("p", one)
    assert found() == 1, "it still is a producer of another group"
    table.register_producer("q", Client("other", one, 0, 513))
    assert found() is None, "the connection speaks for another client now"
    table.disconnected(one)
    table.disconnected(two)
    assert found() is None and not table.producers and not table._producers_of_id


class Hearers:
    """Members that write down what they hear."""

    def __init__(self, **sizes: int) -> None:
        self.heard: dict[str, list[bytes]] = {}
        self.groups = {group: [self.member(f"{group}{n}") for n in range(size)] for group, size in sizes.items()}
        self.notices = Notices(lambda group: self.groups[group])

    def member(self, name: str) -> Any:
        self.heard[name] = []
        return SimpleNamespace(connection=SimpleNamespace(write=self.heard[name].append))


async def test_one_notice_says_all_that_changed_in_a_turn() -> None:
    hearers = Hearers(small=3, large=10 * SLICE, gone=1)
    for _ in range(1000):
        for group in hearers.groups:
            hearers.notices.changed(group)
    hearers.groups["small"].append(hearers.member("late"))
    hearers.groups["gone"].clear()
    await eventually(lambda: hearers.notices.written == 4 + 10 * SLICE)
    assert {name: len(frames) for name, frames in hearers.heard.items()} == {
        name: int(name != "gone0") for name in hearers.heard
    }
    assert len({id(frames[0]) for name, frames in hearers.heard.items() if name.startswith("large")}) == 1
    hearers.notices.changed("small")
    await eventually(lambda: hearers.notices.written == 8 + 10 * SLICE)


async def test_what_changes_in_a_large_group_is_gathered_for_a_moment() -> None:
    hearers = Hearers(large=3000)
    for _ in range(20):
        hearers.notices.changed("large")
        await asyncio.sleep(0)
    await eventually(lambda: hearers.notices.written >= 3000)
    assert {len(frames) for frames in hearers.heard.values()} == {1}


async def test_others_have_their_turn_while_thousands_are_told() -> None:
    hearers = Hearers(large=50 * SLICE, small=3)
    hearers.notices.changed("large")
    turns, before, small_at = [], 0, 0
    while before < 50 * SLICE + 3:
        await asyncio.sleep(0)
        told, before = hearers.notices.written - before, hearers.notices.written
        if told:
            turns.append(told)
            if len(turns) == 1:
                hearers.notices.changed("small")
            if hearers.heard["small2"] and not small_at:
                small_at = len(turns)
    assert max(turns) <= SLICE and len(turns) > 50
    assert small_at <= 5, "a small group does not wait for the end of a large one"
    assert all(len(frames) == 1 for frames in hearers.heard.values())


# Locks.


async def test_one_owner_a_queue_until_its_lease_is_over(tmp_path: Path) -> None:
    clock = ManualClock()
    locks = OrderLocks(clock, tmp_path)
    queue = ("t", "broker-a", 0)
    assert locks.lock("g", "a", [queue]) == [queue] and locks.lock("g", "b", [queue]) == []
    assert locks.any_held("g")
    await clock.advance(LEASE_S - 1)
    assert locks.lock("g", "a", [queue]) == [queue]
    await clock.advance(LEASE_S + 1)
    assert not locks.any_held("g") and locks.lock("g", "b", [queue]) == [queue]
    locks.unlock("g", "a", [queue])
    assert locks.lock("g", "a", [queue]) == []
    locks.unlock("g", "b", [queue])
    assert locks.lock("g", "a", [queue]) == [queue]


async def test_who_is_gone_holds_no_queue(tmp_path: Path) -> None:
    locks = OrderLocks(ManualClock(), tmp_path)
    first, second = ("t", "broker-a", 0), ("t", "broker-a", 1)
    locks.lock("g", "a", [first])
    locks.lock("g", "b", [second])
    locks.lock("other", "a", [first])
    locks.release("g", "a")
    locks.release("unknown", "a")
    assert locks.lock("g", "b", [first, second]) == [first, second]
    assert locks.lock("other", "b", [first]) == [], "of that group it is still a member"
    locks.forget_group("other")
    assert locks.lock("other", "b", [first]) == [first]


async def test_whose_connection_ended_has_an_heir_and_may_come_back(tmp_path: Path) -> None:
    clock = ManualClock()
    told: list[bool] = []
    locks = OrderLocks(clock, tmp_path, on_heirs=lambda group: told.append(locks.has_heirs(group)))
    queue = ("t", "broker-a", 0)
    signs = (
        lambda: locks.back("g", "a"),
        lambda: locks.consumed("g", queue),
        lambda: locks.lock("g", "a", [queue]),
    )
    for sign_of_life in signs:
        locks.lock("g", "a", [queue])
        locks.lost("g", "a")
        assert locks.wait_s("g", queue, "b") == 0, "nobody else wants it"
        assert locks.lock("g", "b", [queue]) == [queue] and told.pop(), "free at once"
        await clock.advance(1)
        assert locks.lock("g", "b", [queue]) == [queue]
        assert locks.lock("g", "c", [queue]) == []
        assert locks.wait_s("g", queue, "b") == LOST_S - 1, "the former holder may go on with what it has fetched"
        sign_of_life()
        assert locks.wait_s("g", queue, "a") == 0 < locks.wait_s("g", queue, "b") and locks.has_heirs("g")
        assert locks.lock("g", "b", [queue]) == [], "it is back: the lease goes on"
        assert locks.wait_s("g", queue, "b") == 0 and not locks.has_heirs("g"), "the heir has noticed"
    locks.lost("g", "a")
    assert locks.lock("g", "b", [queue]) == [queue]
    await clock.advance(LOST_S + 1)
    assert locks.wait_s("g", queue, "b") == 0
    told.clear()
    for sign_of_life in signs[:2]:
        sign_of_life()  # too late
    assert told == [True] and locks.wait_s("g", queue, "b") == 0
    assert locks.wait_s("g", queue, "a") > 0 < locks.wait_s("g", queue, ""), (
        "it may not know, and may not have said who it is"
    )
    assert locks.lock("g", "a", [queue]) == [], "that is another's now"
    assert locks.wait_s("g", queue, "a") == 0 and not locks.has_heirs("g"), "it knows"
    assert locks.lock("g", "b", [queue]) == [queue]


async def test_a_former_holder_that_says_nothing_is_forgotten_when_it_trusts_its_lock_no_more(tmp_path: Path) -> None:
    clock = ManualClock()
    told: list[bool] = []
    locks = OrderLocks(clock, tmp_path, on_heirs=lambda group: told.append(locks.has_heirs(group)))
    queue = ("t", "broker-a", 0)
    locks.lock("g", "a", [queue])
    locks.lost("g", "a")
    locks.lock("g", "b", [queue])
    await clock.advance(LOST_S)
    told.clear()
    locks.expire()
    assert told == [True] and locks.wait_s("g", queue, "a") > 0
    await clock.advance(TRUST_S)
    locks.lock("g", "b", [queue])
    locks.expire()
    assert told == [True, False] and locks.wait_s("g", queue, "a") == 0


async def test_an_heir_that_goes_leaves_the_queue_to_whom_it_was_inherited_from(tmp_path: Path) -> None:
    clock = ManualClock()
    locks = OrderLocks(clock, tmp_path)
    queue = ("t", "broker-a", 0)

    def inherited() -> None:
        locks.lock("g", "a", [queue])
        locks.lost("g", "a")
        assert locks.lock("g", "b", [queue]) == [queue]

    inherited()
    locks.unlock("g", "b", [queue])
    assert locks.lock("g", "c", [queue]) == [queue] and locks.wait_s("g", queue, "b") == LOST_S
    locks.lost("g", "c")
    assert locks.lock("g", "b", [queue]) == [queue] and locks.wait_s("g", queue, "b") == LOST_S, "it is still a's"
    locks.lost("g", "b")
    locks.back("g", "b")
    assert locks.wait_s("g", queue, "b") == LOST_S, "the heir's connection says nothing of the former holder"
    locks.release("g", "a")
    assert locks.wait_s("g", queue, "b") == 0, "it says itself that it is gone"
    locks.release("g", "b")
    inherited()
    locks.unlock("g", "a", [queue])
    assert locks.wait_s("g", queue, "b") == 0 and locks.lock("g", "b", [queue]) == [queue]


@pytest.mark.parametrize("began_s", [LOST_S, LOST_S + 0.5])
async def test_an_heirs_heir_waits_for_the_one_that_has_begun(tmp_path: Path, began_s: float) -> None:
    """Claim: an heir that has begun and loses its connection is a former holder like any other."""
    clock = ManualClock()
    told: list[bool] = []
    locks = OrderLocks(clock, tmp_path, on_heirs=lambda group: told.append(locks.has_heirs(group)))
    queue = ("t", "broker-a", 0)

    async def begun() -> None:
        locks.lock("g", "a", [queue])
        locks.lost("g", "a")
        assert locks.lock("g", "b", [queue]) == [queue]
        await clock.advance(began_s)
        assert locks.wait_s("g", queue, "b") == 0, "it works now"
        locks.lost("g", "b")

    await begun()
    assert locks.lock("g", "c", [queue]) == [queue]
    assert locks.wait_s("g", queue, "c") == LOST_S and told[-1]
    locks.back("g", "b")
    assert locks.lock("g", "c", [queue]) == [] and locks.lock("g", "b", [queue]) == [queue]
    locks.forget_group("g")

    await begun()
    locks.consumed("g", queue)  # by whom it works now: it is back
    assert locks.lock("g", "c", [queue]) == [] and locks.wait_s("g", queue, "b") == 0 < locks.wait_s("g", queue, "a")
    locks.forget_group("g")

    await begun()
    assert locks.lock("g", "a", [queue]) == [queue]
    assert locks.wait_s("g", queue, "a") == LOST_S, "who was the first is an heir like any other"
    await clock.advance(LOST_S)
    told.clear()
    locks.expire()
    assert told == [True] and locks.wait_s("g", queue, "a") == 0, "nobody need have asked"


async def test_who_held_a_queue_is_known_after_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()
    locks = OrderLocks(clock, tmp_path)
    first, second, third = (("t", "broker-a", number) for number in range(3))
    writing = asyncio.create_task(locks.run())
    locks.lock("g", "a", [first, second])
    locks.lock("g", "b", [third])
    locks.lock("over", "c", [first])
    await clock.advance(LEASE_S)
    locks.lock("g", "a", [first, second])
    locks.lock("g", "b", [third])
    await clock.advance(1)
    locks.expire()
    await eventually(lambda: b"over" not in (locks.file.path.read_bytes() if locks.file.path.exists() else b"over"))
    writing.cancel()

    again = OrderLocks(clock, tmp_path)
    again.load()
    assert again.lock("over", "d", [first]) == [first]
    assert again.lock("g", "b", [first, second, third]) == [first, second, third]
    assert [again.wait_s("g", queue, "b") for queue in (first, second, third)] == [LOST_S, LOST_S, 0]
    again.back("g", "a")
    assert again.lock("g", "b", [first, second, third]) == [third]

    locks.file.path.write_text('{"g": [{}]}')
    odd = OrderLocks(clock, tmp_path)
    odd.load()
    assert odd.lock("g", "b", [first]) == [first]


# Batches and options.


def test_batches_that_lie_about_their_lengths_are_refused() -> None:
    good = bytes.fromhex("0000001b 00000000 00000000 00000007 00000001 61 0004 61016202".replace(" ", ""))
    assert list(unpack_batch(good + good)) == [(7, b"a", b"a\x01b\x02")] * 2
    for broken in (good[:-1], good[:10], good[:3] + b"\x1c" + good[4:], good[:16] + b"\x7f" + good[17:]):
        with pytest.raises(ServerError) as refused:
            list(unpack_batch(broken))
        assert refused.value.code == 13


@pytest.mark.parametrize(
    "values",
    [
        {"message_delay_level": "1s 2x"},
        {"delete_when": "25"},
        {"mapped_file_size_consume_queue": 6_000_001},
        {"broker_id": 1},
        {"broker_role": "SYNC_MASTER"},
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(OptionsError):
        options(**values)


def test_nothing_that_names_a_place_can_be_changed_remotely() -> None:
    texts = {name for name, row in BrokerOptions.ROWS.items() if row.kind is str and row.remote}
    assert texts == {"regionId", "deleteWhen", "msgTraceTopicName", "defaultMessageRequestMode"}
    with pytest.raises(OptionsError):
        options().change({"storePathRootDir": "/etc"})
