"""Pop's values: handles, retry topics, assignments, ordered queues, request bodies."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from aerobee.broker.assignment import Assignment, RequestModes, share_for_pop
from aerobee.broker.clients import Client, ClientTable
from aerobee.broker.options import BrokerOptions
from aerobee.broker.pop_names import Handle, format_handle, normal_topic, retry_flag, retry_topic, topic_of_flag
from aerobee.broker.pop_order import OrderTable
from aerobee.client.rebalance import allocate_average
from aerobee.clock import ManualClock
from aerobee.errors import MalformedRequest
from aerobee.protocol.bodies.pop import BatchAck, BatchAckMessageRequestBody, SetMessageRequestModeRequestBody
from aerobee.protocol.fastjson import MessageQueue


@pytest.mark.parametrize(("second_form", "name", "flag"), [(False, "%RETRY%g_t", "1"), (True, "%RETRY%g+t", "2")])
def test_retry_topics(second_form: bool, name: str, flag: str) -> None:
    assert retry_topic("t", "g", second_form=second_form) == name
    assert normal_topic(name, "g") == "t"
    assert retry_flag(name) == flag
    assert topic_of_flag(flag, "t", "g") == name
    assert (normal_topic("t", "g"), retry_flag("t"), topic_of_flag("0", "t", "g")) == ("t", "0", "t")


def test_handles() -> None:
    text = format_handle(5, 1000, 60, 3, "%RETRY%g_t", "broker-a", 1, 7)
    assert text == "5 1000 60 3 1 broker-a 1 7"
    handle = Handle.parse(text)
    assert (handle.start_offset, handle.pop_time, handle.invisible_time, handle.revive_queue) == (5, 1000, 60, 3)
    assert (handle.flag, handle.broker_name) == ("1", "broker-a")


@pytest.mark.parametrize("text", ["", "x", "1 2 3", "1 2 3 4 0", "a 2 3 4 0 b 1 7"])
def test_handles_that_are_none(text: str) -> None:
    with pytest.raises(MalformedRequest):
        Handle.parse(text)


def test_batch_ack_as_java_writes_it() -> None:
    body = BatchAckMessageRequestBody.from_json(
        b'{"acks":[{"b":"DQ==","c":"g","it":60000,"pt":1,"q":2,"r":"0","rq":3,"so":100,"t":"t"}],"brokerName":"a"}'
    )
    (batch,) = body.acks
    assert batch.offsets() == [100, 102, 103]
    again = BatchAck(start_offset=100)
    again.set_offsets([100, 102, 103])
    assert again.bit_set == "DQ=="
    with pytest.raises(MalformedRequest):
        BatchAck(bit_set="?").offsets()


# Assignments.

QUEUES = [MessageQueue("t", broker, queue) for broker in ("a", "b") for queue in range(4)]


@pytest.mark.parametrize("share", [-1, 0, 5])
def test_all_pop_everywhere(share: int) -> None:
    for client in ("c1", "c2", "c3"):
        shared = share_for_pop(client, QUEUES, ["c1", "c2", "c3"], allocate_average, share)
        assert shared == [MessageQueue("t", "a", -1), MessageQueue("t", "b", -1)]


def test_neighbours_share() -> None:
    clients = ["c1", "c2", "c3", "c4"]
    places = [
        (queue.broker_name, queue.queue_id) for queue in share_for_pop("c4", QUEUES, clients, allocate_average, 1)
    ]
    assert places == [("b", 2), ("b", 3), ("a", 0), ("a", 1)]
    assert share_for_pop("stranger", QUEUES, clients, allocate_average, 1) == []


def test_more_members_than_queues() -> None:
    clients = [f"c{number}" for number in range(5)]
    given = [share_for_pop(client, QUEUES[:2], clients, allocate_average, 1) for client in clients]
    assert given == [[QUEUES[0]], [QUEUES[1]], [QUEUES[0]], [QUEUES[1]], [QUEUES[0]]]


async def test_modes_are_kept_and_retries_are_pulled(tmp_path: Path) -> None:
    options = BrokerOptions(default_message_request_mode="POP", default_pop_share_queue_num=2)
    modes = RequestModes(options, tmp_path)
    assert modes.mode("t", "g").mode == "POP"
    assert modes.mode("t", "g").pop_share_queue_num == 2
    assert modes.mode("%RETRY%g", "g").mode == "PULL"
    await modes.set(SetMessageRequestModeRequestBody(topic="t", consumer_group="g", mode="PULL"))
    again = RequestModes(options, tmp_path)
    again.load()
    assert again.mode("t", "g").mode == "PULL"
    assert again.to_json() == (
        b'{"messageRequestModeMap":{"t":{"g":{"consumerGroup":"g","mode":"PULL","popShareQueueNum":0,"topic":"t"}}}}'
    )


async def test_assignment_without_members_or_strategy(tmp_path: Path) -> None:
    options = BrokerOptions()

    async def queues_of(topic: str) -> list[MessageQueue] | None:
        return list(QUEUES) if topic == "t" else None

    assignment = Assignment(options, ClientTable(ManualClock()), RequestModes(options, tmp_path), queues_of)
    assert await assignment.queues("t", "g", "c1", "AVG", "CLUSTERING") == (None, "PULL")
    assert await assignment.queues("unknown", "g", "c1", "AVG", "CLUSTERING") == (None, "PULL")
    assert await assignment.queues("t", "g", "c1", None, "BROADCASTING") == (QUEUES, "PULL")


async def test_a_strategy_that_nobody_knows_is_logged_without_the_members(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A group of thousands was spelled out, with all subscriptions, for each member that asked."""
    clients, options = ClientTable(ManualClock()), BrokerOptions()

    async def queues_of(topic: str) -> list[MessageQueue] | None:
        return list(QUEUES)

    for number in range(100):
        clients.register_consumer(
            "g",
            Client(f"c{number}", SimpleNamespace(id=number, peer=""), 0, 513),  # type: ignore[arg-type]
            consume_type="CONSUME_PASSIVELY",
            message_model="CLUSTERING",
            consume_from_where="CONSUME_FROM_LAST_OFFSET",
            subscriptions=[],
            notify=True,
        )
    caplog.clear()
    assignment = Assignment(options, clients, RequestModes(options, tmp_path), queues_of)
    assert await assignment.queues("t", "g", "c1", "NEW", "CLUSTERING") == (None, "PULL")
    assert [record.getMessage() for record in caplog.records] == [
        "no queues of t for c1 of g: strategy NEW, members 100"
    ]


# Order.


def test_ordered_queue(tmp_path: Path) -> None:
    clock = ManualClock()
    orders = OrderTable(clock, tmp_path)
    now = clock.now_ms()
    orders.give_out("t", "g", 0, [10, 12, 13], now, 1000, "one")
    assert orders.is_blocked("t", "g", 0, "two", 1000)
    assert not orders.is_blocked("t", "g", 0, "one", 1000)
    assert not orders.is_blocked("t", "g", 1, "two", 1000)
    assert orders.acknowledge("t", "g", 0, 12, now) == 10
    assert orders.acknowledge("t", "g", 0, 11, now) == -1
    assert orders.acknowledge("t", "g", 0, 10, now + 1) == -2
    assert orders.acknowledge("t", "g", 0, 10, now) == 13
    info = orders.give_out("t", "g", 0, [13, 14], now + 1000, 1000, "two")
    assert info.oc == {13: 1}
    assert orders.acknowledge("t", "g", 0, 13, now + 1000) == 14
    assert orders.acknowledge("t", "g", 0, 14, now + 1000) == 15
    assert info.free_at() == 0
    assert orders.acknowledge("t", "g", 7, 41, now) == 42, "nothing is known: as if it had been alone"


async def test_ordered_queues_are_kept_as_apache_keeps_them(tmp_path: Path) -> None:
    clock = ManualClock()
    orders = OrderTable(clock, tmp_path)
    orders.give_out("t", "g", 0, [10, 12], clock.now_ms(), 1000, "one")
    orders.hide_on("t", "g", 0, 12, clock.now_ms(), clock.now_ms() + 5000)
    await orders.file.save()
    again = OrderTable(clock, tmp_path)
    again.load()
    assert again.table == orders.table
    apaches = tmp_path / "apache"
    apaches.mkdir()
    (apaches / "consumerOrderInfo.json").write_text(
        '{"orderedConsumptionLevel":"QUEUE","table":{"t@g":{0:{"a":"x","cm":1,"i":60000,"l":1,"o":[4,1],"oc":{4:2},"popTime":9}}}}'
    )
    other = OrderTable(clock, apaches)
    other.load()
    info = other.find("t", "g", 0)
    assert info is not None
    assert (info.offsets(), info.next_offset(), info.oc, info.pop_time) == ([4, 5], 5, {4: 2}, 9)
    orders.forget_topic("t")
    again.forget_group("g")
    assert orders.table == again.table == {}
