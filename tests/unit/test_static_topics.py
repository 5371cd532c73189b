"""Static topics: the arithmetic, what a mapping must be, and two brokers between which queues move under a client."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import aerobee.client.consumer as consumer_module
from aerobee import ConsumeFrom, Consumer, Message, MessageExt, MessageQueue, Producer, PullConsumer, Retry
from aerobee.broker.handlers.static_topics import forget_empty_stretches
from aerobee.broker.server import Broker
from aerobee.broker.static_topics import StaticTopics, find, following, led_queues, to_logical, to_physical
from aerobee.errors import MalformedRequest, ServerError
from aerobee.nameserver.options import NameServerOptions
from aerobee.nameserver.server import NameServer
from aerobee.net.remote import RemotePool
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.route import LogicQueueMappingItem, TopicQueueMappingDetail, TopicRouteData
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.message import decode_records
from aerobee.testing.eventually import eventually
from tests.unit.test_broker_server import Peer, small

TOPIC = "static"


def item(gen: int, queue: int, broker: str, logic: int, start: int = 0, end: int = -1) -> LogicQueueMappingItem:
    return LogicQueueMappingItem(
        gen=gen, queue_id=queue, bname=broker, logic_offset=logic, start_offset=start, end_offset=end
    )


def detail(broker: str, queues: dict[int, list[LogicQueueMappingItem]], epoch: int = 1) -> TopicQueueMappingDetail:
    return TopicQueueMappingDetail(
        topic=TOPIC, total_queues=len(queues), bname=broker, epoch=epoch, hosted_queues=queues
    )


# Values.


def test_offsets_go_from_stretch_to_stretch() -> None:
    old, new, undecided = item(0, 1, "a", 0), item(1, 0, "b", 10_000), item(2, 3, "a", -1)
    items = [old, new, undecided]
    assert [find(items, offset) for offset in (-1, 0, 9_999, 10_000, 1 << 60)] == [old, old, old, new, new]
    assert find([undecided], 0) is None
    assert following(items, old) is new and following(items, new) is None
    assert (to_logical(old, 7), to_logical(new, 7), to_logical(undecided, 7)) == (7, 10_007, -1)
    assert (to_physical(old, 7), to_physical(new, 10_007)) == (7, 7)
    ended = item(0, 1, "a", 100, start=10, end=20)
    assert [to_logical(ended, offset) for offset in (0, 10, 15, 20, 99)] == [100, 100, 105, 110, 110]


def test_queues_are_led_here_when_their_last_stretch_is_here_and_decided() -> None:
    mapping = detail(
        "a",
        {
            0: [item(0, 1, "a", 0)],
            1: [item(0, 1, "b", 0), item(1, 2, "a", 10_000, start=5)],
            2: [item(0, 1, "a", 0), item(1, 2, "b", 10_000)],
            3: [item(0, 3, "b", 0), item(1, 3, "a", -1)],
            4: [item(0, 4, "a", 0, start=0, end=9)],
            5: [],
        },
    )
    assert led_queues(mapping) == [(0, 1, 0, 0), (1, 2, 10_000, 5)]


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([item(0, -1, "a", 0)], "should not be negative"),
        ([item(0, 1 << 31, "a", 0)], "queueId must be 0 to 2147483647, not 2147483648"),
        ([item(1 << 31, 0, "a", 0)], "gen must be 0 to 2147483647"),
        ([item(0, 0, "a", (1 << 63) - 1)], "logicOffset must be -1 to 4611686018427387904"),
        ([item(0, 0, "a", -2)], "logicOffset must be -1 to"),
        ([item(0, 0, "a", 0, start=(1 << 63) - 1)], "startOffset must be 0 to"),
        ([item(0, 0, "a", 0, end=(1 << 63) - 1)], "endOffset must be -1 to"),
        ([item(0, 0, "a", -1), item(1, 0, "b", 5)], "non-latest item has negative"),
        ([item(0, 0, "a", 0, start=5, end=3)], "smaller than the start"),
        ([item(1, 0, "a", 0), item(1, 0, "b", 5)], "gen does not increase"),
        ([item(0, 0, "a", 9), item(1, 0, "b", 5)], "base logic offset does not increase"),
        ([item(0, 0, "a", 0, end=7), item(1, 0, "b", 5)], "max logic offset does not increase"),
    ],
)
async def test_a_mapping_that_cannot_be(tmp_path: Path, items: list[LogicQueueMappingItem], sentence: str) -> None:
    table = StaticTopics("a", tmp_path)
    for force in (False, True):
        with pytest.raises(ServerError, match=sentence):
            await table.put(detail("a", {0: items}), force=force)
    assert table.get(TOPIC) is None and not table.file.path.exists()


@pytest.mark.parametrize(
    ("number", "total", "sentence"),
    [
        (-3, 1, "logical queue must be 0 to 65535, not -3"),
        (1, 1, "there is no logical queue 1, totalQueues is 1"),
        (0, 0, "there is no logical queue 0"),
        (0, -1, "totalQueues must be 0 to 65536"),
        (0, 2_000_000_000, "totalQueues must be 0 to 65536"),
    ],
)
async def test_a_logical_queue_that_cannot_be(tmp_path: Path, number: int, total: int, sentence: str) -> None:
    table = StaticTopics("a", tmp_path)
    mapping = detail("a", {number: [item(0, 0, "a", 0)]})
    mapping.total_queues = total
    with pytest.raises(ServerError, match=sentence):
        await table.put(mapping, force=True)
    assert table.get(TOPIC) is None and not table.file.path.exists()


async def test_a_mapping_that_contradicts_what_is_known(tmp_path: Path) -> None:
    table = StaticTopics("a", tmp_path)
    await table.put(detail("a", {0: [item(0, 0, "a", 0)], 1: [item(0, 1, "a", 0)]}, epoch=5), force=False)
    for bad, sentence in [
        (detail("b", {}, epoch=6), "this is a"),
        (detail("a", {}, epoch=4), "small epoch 4 < 5"),
        (detail("a", {0: [item(0, 0, "a", 0)]}, epoch=5), "equal epoch with null data"),
        (detail("a", {0: [item(0, 3, "a", 0)]}, epoch=6), "cannot change"),
        (detail("a", {0: [item(0, 0, "a", 0), item(1, 0, "b", 9)], 1: [item(0, 1, "a", 0)]}, epoch=5), "new leader"),
    ]:
        with pytest.raises(ServerError, match=sentence):
            await table.put(bad, force=False)
    await table.put(detail("a", {0: [item(0, 0, "a", 0), item(1, 0, "b", -1)]}, epoch=6), force=False)
    await table.put(detail("a", {0: [item(0, 0, "a", 0), item(1, 0, "b", 9)]}, epoch=7), force=False)
    found = table.get(TOPIC)
    assert found is not None and found.hosted_queues[1] == [item(0, 1, "a", 0)], "what is not mentioned stays"
    await table.put(detail("a", {0: [item(0, 3, "a", 0)]}, epoch=1), force=True)
    again = StaticTopics("a", tmp_path)
    again.load()
    assert again.table == table.table and again.version == table.version
    assert again.infos()[TOPIC].curr_id_map == {0: 3, 1: 1}


# Two brokers.


class Pair:
    """Brokers a and b of one cluster, and a tool that maps as mqadmin does."""

    def __init__(self, name_server: NameServer, brokers: dict[str, Broker]) -> None:
        self.name_server = name_server
        self.brokers = brokers
        self.peers = {name: Peer(broker.address) for name, broker in brokers.items()}
        self.epoch = 0

    async def map(self, broker: str, queues: dict[int, list[LogicQueueMappingItem]], count: int) -> RemotingCommand:
        """UPDATE_AND_CREATE_STATIC_TOPIC at one broker, with that many physical queues."""
        mapping = detail(broker, queues, self.epoch)
        mapping.total_queues = len(self.brokers)
        return await self.peers[broker].call(
            RequestCode.UPDATE_AND_CREATE_STATIC_TOPIC, mapping.to_json(), topic=TOPIC,
            defaultTopic="TBW102", readQueueNums=count, writeQueueNums=count, perm=6, topicFilterType="SINGLE_TAG",
            topicSysFlag=0, order="false", force="false",
        )  # fmt: skip

    async def create(self) -> None:
        """Logical queue 0 at a (physical 0), 1 at b (physical 0)."""
        self.epoch += 1
        for number, name in enumerate(self.brokers):
            assert (await self.map(name, {number: [item(0, 0, name, 0)]}, 1)).code == 0

    async def move(self, between: Any = None, *, decided: int = 10_000) -> None:
        """Queue 0 goes from a to b (physical 1), in mqadmin's steps; `between` runs before the offset is decided."""
        self.epoch += 1
        items = [item(0, 0, "a", 0), item(1, 1, "b", -1)]
        assert (await self.map("b", {0: items, 1: [item(0, 0, "b", 0)]}, 2)).code == 0
        assert (await self.map("a", {0: items}, 1)).code == 0
        if between is not None:
            await between()
        items = [item(0, 0, "a", 0), item(1, 1, "b", decided)]
        assert (await self.map("b", {0: items, 1: [item(0, 0, "b", 0)]}, 2)).code == 0

    async def route(self) -> TopicRouteData:
        peer = Peer(self.name_server.address)
        reply = await peer.call(RequestCode.GET_ROUTEINFO_BY_TOPIC, topic=TOPIC)
        await peer.pool.close()
        return TopicRouteData.from_json(reply.body)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    name_server = NameServer(NameServerOptions(listen_port=0, kv_config_path=str(tmp_path / "kv.json")))
    await name_server.start()
    brokers = {}
    for name in ("a", "b"):
        brokers[name] = Broker(small(tmp_path / name, broker_name=name, namesrv_addr=name_server.address))
        await brokers[name].start()
    made = Pair(name_server, brokers)
    await made.create()
    yield made
    for peer in made.peers.values():
        await peer.pool.close()
    for broker in brokers.values():
        await broker.stop()
    await name_server.stop()


async def test_the_route_says_who_leads_which_queue(pair: Pair) -> None:
    async def leaders() -> dict[str, dict[int, int]]:
        mapped = (await pair.route()).topic_queue_mapping_by_broker or {}
        return {name: info.curr_id_map for name, info in mapped.items()}

    async def are(expected: dict[str, dict[int, int]]) -> bool:
        return await leaders() == expected

    await eventually(lambda: are({"a": {0: 0}, "b": {1: 0}}))
    await pair.move()
    await eventually(lambda: are({"a": {}, "b": {0: 1, 1: 0}}))
    told = await pair.peers["b"].call(RequestCode.GET_TOPIC_CONFIG, topic=TOPIC, lo="true")
    mapping = fastjson.loads(told.body)["mappingDetail"]
    assert [stretch["bname"] for stretch in mapping["hostedQueues"]["0"]] == ["a", "b"]
    told = await pair.peers["b"].call(RequestCode.GET_TOPIC_CONFIG, topic=TOPIC)
    assert "mappingDetail" not in fastjson.loads(told.body)
    listed = fastjson.loads((await pair.peers["b"].call(RequestCode.GET_ALL_TOPIC_CONFIG)).body)
    assert TOPIC in listed["topicQueueMappingDetailMap"]


async def test_a_mapping_is_told_with_the_version_that_it_makes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the mapping is on its way to the disk a registration of something else may take that version along."""
    broker = pair.brokers["a"]
    written = asyncio.Event()
    save = broker.static_topics.file.save

    async def slow() -> None:
        await written.wait()
        await save()

    monkeypatch.setattr(broker.static_topics.file, "save", slow)
    pair.epoch += 1
    mapping = asyncio.create_task(pair.map("a", {0: [item(0, 0, "a", 0), item(1, 1, "b", -1)]}, 1))

    async def is_told() -> bool:
        return ((await pair.route()).topic_queue_mapping_by_broker or {})["a"].curr_id_map == {}

    try:
        await eventually(is_told, timeout_s=5)
    finally:
        written.set()
        assert (await mapping).code == 0


async def test_one_after_the_other_through_a_move(pair: Pair) -> None:
    # Claim: a reader that follows the offsets it is told gets every message of a logical queue once, in order, from
    # before and after its move; logical offsets only grow; the former leader takes nothing any more.
    a, b = pair.peers["a"], pair.peers["b"]
    for number in range(5):
        sent = await a.send(TOPIC, str(number).encode(), queue=0)
        assert (sent.code, sent.ext_fields["queueId"], sent.ext_fields["queueOffset"]) == (0, "0", str(number))

    async def between() -> None:
        refused = await a.send(TOPIC, b"x", queue=0)
        assert refused.code == ResponseCode.NOT_LEADER_FOR_QUEUE
        sent = await b.send(TOPIC, b"5", queue=0)
        assert sent.code == 0 and sent.ext_fields["queueOffset"] == "-1", "its place is not decided yet"
        pulled = await b.pull(TOPIC, offset=5, queue=0)
        assert pulled.code == ResponseCode.PULL_NOT_FOUND and pulled.ext_fields["nextBeginOffset"] == "5"

    await pair.move(between)
    for number in range(6, 9):
        sent = await b.send(TOPIC, str(number).encode(), queue=0)
        assert sent.ext_fields["queueOffset"] == str(10_000 + number - 5)
    assert (await a.pull(TOPIC, queue=0)).code == ResponseCode.NOT_LEADER_FOR_QUEUE

    offset, read, offsets = 0, [], []
    for _ in range(20):
        pulled = await b.pull(TOPIC, offset=offset, queue=0, maxMsgNums=2)
        if pulled.code == 0:
            delta = int(pulled.ext_fields["offsetDelta"])
            for message in decode_records(pulled.body):
                read.append(int(message.body))
                offsets.append(message.queue_offset + delta)
        else:
            assert pulled.code in (ResponseCode.PULL_RETRY_IMMEDIATELY, ResponseCode.PULL_NOT_FOUND)
        assert int(pulled.ext_fields["nextBeginOffset"]) >= offset
        offset = int(pulled.ext_fields["nextBeginOffset"])
        if pulled.code == ResponseCode.PULL_NOT_FOUND:
            break
    assert read == list(range(9))
    assert offsets == [0, 1, 2, 3, 4, 10_000, 10_001, 10_002, 10_003] and offset == 10_004

    async def ask(code: int, field: str = "offset", **fields: object) -> int:
        return int((await b.call(code, topic=TOPIC, queueId=0, **fields)).ext_fields[field])

    assert await ask(RequestCode.GET_MIN_OFFSET) == 0 and await ask(RequestCode.GET_MAX_OFFSET) == 10_004
    assert await ask(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, timestamp=0) == 0
    assert await ask(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, timestamp=1 << 45) == 10_004
    later = int(decode_records((await b.pull(TOPIC, offset=10_001, queue=0)).body)[0].store_timestamp)
    assert 10_000 <= await ask(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, timestamp=later) <= 10_001
    assert await ask(RequestCode.GET_EARLIEST_MSG_STORETIME, "timestamp") > 0


async def test_a_groups_offset_is_where_its_stretch_is(pair: Pair) -> None:
    # Claim: a group continues where it was, wherever that lies now, also when it committed with a pull.
    a, b = pair.peers["a"], pair.peers["b"]
    for number in range(5):
        await a.send(TOPIC, str(number).encode(), queue=0)
    await a.pull(TOPIC, queue=0, group="other")  # makes the group

    async def commit(peer: Peer, offset: int, group: str = "g") -> int:
        return (
            await peer.call(
                RequestCode.UPDATE_CONSUMER_OFFSET, consumerGroup=group, topic=TOPIC, queueId=0, commitOffset=offset
            )
        ).code

    async def query(peer: Peer, group: str = "g") -> int:
        reply = await peer.call(RequestCode.QUERY_CONSUMER_OFFSET, consumerGroup=group, topic=TOPIC, queueId=0)
        return int(reply.ext_fields["offset"]) if reply.code == 0 else -reply.code

    await a.pull(TOPIC, queue=0)
    await b.pull(TOPIC, queue=1)
    assert await commit(a, 3) == 0 and await query(a) == 3
    await pair.move()
    assert await query(b) == 3, "asked of the former leader"
    assert await query(a) == -ResponseCode.NOT_LEADER_FOR_QUEUE
    assert await commit(b, 4) == 0 and await query(b) == 4
    assert pair.brokers["a"].offsets.query("g", TOPIC, 0) == 4
    await b.send(TOPIC, b"5", queue=0)
    pulled = await b.pull(TOPIC, offset=10_000, queue=0, sysFlag=4 | 1, commitOffset=10_000)
    assert pulled.code == 0 and await query(b) == 10_000
    assert pair.brokers["b"].offsets.query("g", TOPIC, 1) == 0
    stats = await b.call(RequestCode.GET_CONSUME_STATS, consumerGroup="nobody", topic=TOPIC)
    assert stats.code == 0


async def test_a_pull_waits_at_the_leader(pair: Pair) -> None:
    # Claim: long polling works for logical queues as for any other, and a stop does not wait for it.
    b = pair.peers["b"]
    await pair.move()
    waiting = asyncio.ensure_future(b.pull(TOPIC, offset=10_000, queue=0, wait_ms=15_000))
    await eventually(lambda: bool(pair.brokers["b"].inner_pulls._waiting))
    await b.send(TOPIC, b"x", queue=0)
    pulled = await asyncio.wait_for(waiting, 5)
    assert pulled.code == 0 and pulled.ext_fields["nextBeginOffset"] == "10001"
    waiting = asyncio.ensure_future(b.pull(TOPIC, offset=10_001, queue=0, wait_ms=15_000))
    await eventually(lambda: bool(pair.brokers["b"].inner_pulls._waiting))
    async with asyncio.timeout(5):
        await pair.brokers["b"].stop()
        assert (await waiting).code == ResponseCode.PULL_NOT_FOUND


async def test_what_is_mapped_is_there_after_a_kill(pair: Pair, tmp_path: Path) -> None:
    # Claim: an acknowledged mapping is on the disk, and the engine serves nothing of a static topic by itself.
    await pair.move()
    await pair.peers["b"].send(TOPIC, b"x", queue=0)
    shutil.copytree(tmp_path / "b" / "store", tmp_path / "killed" / "store", ignore=shutil.ignore_patterns("lock"))
    again = Broker(small(tmp_path / "killed", broker_name="b"))
    await again.start()
    peer = Peer(again.address)
    try:
        sent = await peer.send(TOPIC, b"y", queue=0)
        assert (sent.ext_fields["queueId"], sent.ext_fields["queueOffset"]) == ("0", "10001")
        assert (await peer.send(TOPIC, b"y", queue=7)).code == ResponseCode.NOT_LEADER_FOR_QUEUE
        anywhere = await peer.send(TOPIC, b"z", queue=-1)
        assert anywhere.code == 0 and anywhere.ext_fields["queueId"] in ("0", "1")
        lost = await peer.pull(TOPIC, offset=0, queue=0)
        assert lost.code == ResponseCode.SYSTEM_ERROR and "broker a" in (lost.remark or "")
        deleted = await peer.call(RequestCode.DELETE_TOPIC_IN_BROKER, topic=TOPIC)
        assert deleted.code == 0 and again.static_topics.get(TOPIC) is None
    finally:
        await peer.pool.close()
        await again.stop()


async def test_a_stretch_of_which_nothing_is_left_is_forgotten(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: once retention has taken the last message of a queue's first stretch, its broker is not asked any more.
    for _ in range(3):
        await pair.peers["a"].send(TOPIC, b"x", queue=0)
    await pair.move()
    await pair.peers["b"].send(TOPIC, b"y", queue=0)
    leader = pair.brokers["b"]

    def stretches() -> list[str]:
        found = leader.static_topics.get(TOPIC)
        return [each.bname for each in found.hosted_queues[0]] if found else []

    await forget_empty_stretches(leader)
    assert stretches() == ["a", "b"]
    store = pair.brokers["a"].store
    monkeypatch.setattr(store, "bounds", lambda topic, queue_id: (3, 3))
    await forget_empty_stretches(leader)
    assert stretches() == ["b"]
    low = await pair.peers["b"].call(RequestCode.GET_MIN_OFFSET, topic=TOPIC, queueId=0)
    assert low.ext_fields["offset"] == "10000"
    pulled = await pair.peers["b"].pull(TOPIC, offset=0, queue=0)
    assert (pulled.code, pulled.ext_fields["nextBeginOffset"]) == (ResponseCode.PULL_OFFSET_MOVED, "10000")


@pytest.mark.parametrize(
    ("mapping", "sentence"),
    [
        ('"totalQueues":1,"hostedQueues":{-3:[{"bname":"a"}]}', "logical queue must be 0 to 65535, not -3"),
        ('"totalQueues":1,"hostedQueues":{0:[{"bname":"a","queueId":-1}]}', "queueId must be 0 to 2147483647, not -1"),
        ('"totalQueues":1,"hostedQueues":{0:[{"bname":"a","queueId":99999999999}]}', "queueId"),
        ('"totalQueues":1,"hostedQueues":{0:[{"bname":"a","logicOffset":9223372036854775807}]}', "logicOffset must be"),
        ('"totalQueues":-1,"hostedQueues":{}', "totalQueues must be 0 to 65536, not -1"),
    ],
)
def test_numbers_in_the_file_that_cannot_be_are_one_sentence(tmp_path: Path, mapping: str, sentence: str) -> None:
    table = StaticTopics("a", tmp_path)
    table.file.path.write_text(
        f'{{"topicQueueMappingInfoMap":{{"static":{{"topic":"static","bname":"a",{mapping}}}}}}}'
    )
    with pytest.raises(MalformedRequest, match=sentence) as found:
        table.load()
    assert str(found.value).startswith(f"{table.file.path} ") and "\n" not in str(found.value)


async def test_mappings_that_are_refused(pair: Pair) -> None:
    refused = await pair.map("a", {0: [item(0, -5, "a", 0)]}, 1)
    assert refused.code == ResponseCode.SYSTEM_ERROR and "negative" in (refused.remark or "")
    wrong = await pair.peers["a"].call(
        RequestCode.UPDATE_AND_CREATE_STATIC_TOPIC, b"", topic=TOPIC, readQueueNums=1, writeQueueNums=1, perm=6
    )
    assert wrong.code == ResponseCode.INVALID_PARAMETER and "mapping" in (wrong.remark or "")
    assert (await pair.peers["a"].send(TOPIC, b"x", queue=0)).code == 0


# Our own client.


async def test_the_client_follows_a_queue_that_moves(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: producer and consumers know a static topic by its logical queues. A queue moves under them: what was
    # refused at the former leader is sent to the new one, once, also to a chosen queue, without waiting for the next
    # look at the route; the consumer gets everything once and in order, and its group goes on where it was.
    monkeypatch.setattr(consumer_module, "HOLD_MS", 300)  # the last pull at the former leader
    names = pair.name_server.address
    await eventually(lambda: leads(pair, {"a": [0], "b": [1]}))
    got: list[MessageExt] = []

    async def read(consumer: Consumer) -> None:
        async for message in consumer:
            got.append(message)

    def bodies(queue: int) -> list[int]:
        return [int(message.body) for message in got if message.queue_id == queue]

    def consumer(**options: Any) -> Consumer:
        return Consumer(
            names, group="g", subscriptions=[TOPIC], start_from=ConsumeFrom.FIRST_OFFSET, orderly=True, **options
        )

    async with Producer(names, retry_times=0) as producer, consumer() as reader, PullConsumer(names, group="p") as pull:
        reading = asyncio.create_task(read(reader))
        moving, staying = await producer.queues(TOPIC)
        assert (moving, staying) == tuple(MessageQueue(TOPIC, "__syslo__global__", number) for number in (0, 1))
        sent = [await producer.send(Message(TOPIC, b"%d" % number), queue=moving) for number in range(3)]
        assert [(result.queue, result.queue_offset) for result in sent] == [(moving, number) for number in range(3)]
        batch = await producer.send_batch([Message(TOPIC, b"3"), Message(TOPIC, b"4")], queue=moving)
        assert batch.queue == moving and batch.queue_offset == 3
        spread = [await producer.send(Message(TOPIC, b"%d" % number)) for number in (5, 6)]
        assert {result.queue for result in spread} == {moving, staying}
        await eventually(lambda: len(got) == 7)
        assert await pull.max_offset(moving) == 6

        async def between() -> None:
            result = await producer.send(Message(TOPIC, b"7"), queue=moving)
            assert (result.queue, result.queue_offset) == (moving, -1), "its place is not decided yet"

        await pair.move(between)
        await reader.client.refresh_routes()  # as every 30 s
        locks = pair.brokers["b"].order._groups["g"]
        await eventually(lambda: (TOPIC, moving.broker_name, 0) in locks)
        posted = [await producer.post(Message(TOPIC, b"%d" % number), queue=moving) for number in range(8, 40)]
        assert [(await result).queue_offset for result in posted] == list(range(10_001, 10_033))
        await eventually(lambda: len(got) == 40)
        assert len(set(bodies(0))) == 39 and bodies(0) == sorted(bodies(0))
        offsets = [message.queue_offset for message in got if message.queue_id == 0]
        assert offsets == [*range(6), *range(10_000, 10_033)]
        assert {message.broker_name for message in got} == {moving.broker_name}
        # `pull` knows of the former leader, and was never at the new one.
        assert (await pull.min_offset(moving), await pull.max_offset(moving)) == (0, 10_033)
        assert await pull.offset_by_time(moving, 0) == 0
        found = await pull.pull(moving, 10_000)
        assert [(m.queue_id, m.queue_offset) for m in found.messages[:2]] == [(0, 10_000), (0, 10_001)]
        await pull.commit(moving, 10_007)
        assert await pull.committed(moving) == 10_007
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        reader.ack(got[-1])
    assert pair.brokers["b"].offsets.query("g", TOPIC, 1) == 33

    async with Producer(names) as producer, consumer() as reader:
        assert set(await producer.queues(TOPIC)) == {moving, staying}
        await producer.send(Message(TOPIC, b"40"), queue=moving)
        async for message in reader:
            assert (message.body, message.queue_offset) == (b"40", 10_033)
            break


async def test_what_the_client_writes_of_a_static_queue(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: as with the official client a send names the broker it goes to, every other request the logical one; no
    # offset travels with a pull (Apache's broker would take it for a physical one).
    await eventually(lambda: leads(pair, {"a": [0], "b": [1]}))
    names = pair.name_server.address
    seen: list[dict[str, str]] = []
    invoke = RemotePool.invoke

    async def noted(pool: RemotePool, address: str, command: RemotingCommand, timeout_s: float) -> RemotingCommand:
        seen.append(command.ext_fields)
        return await invoke(pool, address, command, timeout_s)

    monkeypatch.setattr(RemotePool, "invoke", noted)
    async with (
        Producer(names) as producer,
        Consumer(names, group="g", subscriptions=[TOPIC], start_from=ConsumeFrom.FIRST_OFFSET) as reader,
    ):
        for queue in 2 * await producer.queues(TOPIC):
            await producer.send(Message(TOPIC, b"x"), queue=queue)
            async for message in reader:
                reader.ack(message)
                break
        await eventually(lambda: sum(fields.get("queueOffset") == "2" for fields in seen) == 2)
    assert [fields["n"] for fields in seen if "n" in fields] == ["a", "b"] * 2
    asked = [fields for fields in seen if "bname" in fields and fields["topic"] == TOPIC]
    assert {fields["bname"] for fields in asked} == {"__syslo__global__"}
    assert not any(int(fields["sysFlag"]) & 1 for fields in asked if "sysFlag" in fields)


async def test_what_failed_comes_again_and_ends_as_a_dead_letter(pair: Pair) -> None:
    # Claim: a message of a static topic that failed is sent to the retry topic, with what was asked for: the level, the
    # count that grows, the dead letter queue at once or when it was tried often enough.
    await eventually(lambda: leads(pair, {"a": [0], "b": [1]}))
    names = pair.name_server.address
    tried: list[tuple[bytes, int]] = []
    consumer = Consumer(names, group="g", start_from=ConsumeFrom.FIRST_OFFSET, max_reconsume_times=1)

    @consumer.on(TOPIC)
    async def handle(message: MessageExt) -> None:
        tried.append((message.body, message.reconsume_times))
        raise Retry(delay_level=-1 if message.body == b"bad" else 1)

    async with Producer(names) as producer, consumer:
        await producer.send(Message(TOPIC, b"bad"))
        await producer.send(Message(TOPIC, b"good"))

        async def dead() -> bool:
            route = await pull.client.route("%DLQ%g", fresh=True)
            found = [await pull.pull(queue, 0) for queue in route.write_queues]
            return sorted(m.body for result in found for m in result.messages) == [b"bad", b"good"]

        async with PullConsumer(names, group="p") as pull:
            await eventually(dead, 15)
    assert sorted(tried) == [(b"bad", 0), (b"good", 0), (b"good", 1)]


async def leads(pair: Pair, expected: dict[str, list[int]]) -> bool:
    """Whether the name server says that these brokers lead these queues."""
    mapped = (await pair.route()).topic_queue_mapping_by_broker or {}
    return {name: sorted(info.curr_id_map) for name, info in mapped.items()} == expected
