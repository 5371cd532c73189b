"""A whole broker in this process, real sockets and files: requests in, replies out, start and stop."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aerobee.broker import order
from aerobee.broker.clients import Client
from aerobee.broker.handlers.send import BATCH_MESSAGES_MAX
from aerobee.broker.listeners import Listeners
from aerobee.broker.options import BrokerOptions
from aerobee.broker.revive import SAVED_GROUP
from aerobee.broker.server import Broker
from aerobee.broker.topics import QUEUES_MAX
from aerobee.cli.doctor import examine
from aerobee.clock import ManualClock
from aerobee.errors import StoreError
from aerobee.nameserver.options import NameServerOptions
from aerobee.nameserver.server import NameServer
from aerobee.net.connection import Connection
from aerobee.net.remote import RemotePool
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.groups import SubscriptionGroupConfig
from aerobee.protocol.bodies.topics import TopicConfig
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.message import decode_records, parse_offset_message_id
from aerobee.testing.eventually import eventually


def small(tmp_path: Path, **values: Any) -> BrokerOptions:
    return BrokerOptions(
        **{
            "broker_name": "broker-a",
            "store_path_root_dir": str(tmp_path / "store"),
            "listen_port": 0,
            "mapped_file_size_commit_log": 1 << 20,
            "mapped_file_size_consume_queue": 20_000,
            "max_hash_slot_num": 1000,
            "max_index_num": 4000,
            **values,
        }
    )


class Peer:
    """A client of the broker's that speaks plain commands; `asked` has what the broker sent by itself."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked: list[RemotingCommand] = []
        self.language = 3
        self.connection: Connection
        self.pool = RemotePool(on_request=self._on_request)

    def _on_request(self, connection: Connection, command: RemotingCommand) -> None:
        self.asked.append(command)
        self.connection = connection

    async def call(self, code: int, body: bytes = b"", **fields: object) -> RemotingCommand:
        command = RemotingCommand.request(code, body=body)
        command.language = self.language
        command.ext_fields.update({name: str(value) for name, value in fields.items()})
        return await self.pool.invoke(self.address, command, 10)

    async def send(
        self, topic: str, body: bytes = b"hello", queue: int = 0, properties: str = "", **fields: object
    ) -> RemotingCommand:
        letters = dict(
            a="producers", b=topic, c="TBW102", d=4, e=queue, f=0, g=int(time.time() * 1000), h=0, i=properties, j=0
        )
        return await self.call(RequestCode.SEND_MESSAGE_V2, body, **{**letters, **fields})

    async def pull(
        self, topic: str, offset: int = 0, group: str = "g", queue: int = 0, wait_ms: int = 0, **fields: object
    ) -> RemotingCommand:
        header = dict(
            consumerGroup=group,
            topic=topic,
            queueId=queue,
            queueOffset=offset,
            maxMsgNums=32,
            sysFlag=4 | (2 if wait_ms else 0),
            commitOffset=0,
            suspendTimeoutMillis=wait_ms,
            subscription="*",
            subVersion=0,
            expressionType="TAG",
        )
        return await self.call(RequestCode.PULL_MESSAGE, **{**header, **fields})

    async def commit(self, offset: int, *, oneway: bool = True, group: str = "g", topic: str = "orders") -> None:
        """UPDATE_CONSUMER_OFFSET for queue 0, as members send it: without an answer."""
        command = RemotingCommand.request(RequestCode.UPDATE_CONSUMER_OFFSET, oneway=oneway)
        command.ext_fields.update(consumerGroup=group, topic=topic, queueId="0", commitOffset=str(offset))
        if oneway:
            await self.pool.oneway(self.address, command)
        else:
            assert (await self.pool.invoke(self.address, command, 10)).code == 0

    async def committed(self, group: str = "g", topic: str = "orders") -> int:
        """What is stored; asked on this connection, so its own commits count."""
        fields = {"consumerGroup": group, "topic": topic, "queueId": 0}
        return int((await self.call(RequestCode.QUERY_CONSUMER_OFFSET, **fields)).ext_fields["offset"])

    async def join(
        self,
        client_id: str,
        *topics: str,
        group: str = "g",
        consume_type: str = "CONSUME_PASSIVELY",
        fingerprint: int = 0,
        without_sub: bool = False,
    ) -> RemotingCommand:
        body = {
            "clientID": client_id,
            "heartbeatFingerprint": fingerprint,
            "withoutSub": without_sub,
            "producerDataSet": [{"groupName": "producers"}],
            "consumerDataSet": [
                {
                    "groupName": group,
                    "consumeType": consume_type,
                    "messageModel": "CLUSTERING",
                    "consumeFromWhere": "CONSUME_FROM_LAST_OFFSET",
                    "unitMode": False,
                    "subscriptionDataSet": [{"topic": topic, "subString": "*", "subVersion": 1} for topic in topics],
                }
            ],
        }
        return await self.call(RequestCode.HEART_BEAT, fastjson.dumps(body))


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    started = Broker(small(tmp_path))
    await started.start()
    yield started
    await started.stop()


@pytest.fixture
async def peer(broker: Broker) -> AsyncIterator[Peer]:
    client = Peer(broker.address)
    yield client
    await client.pool.close()


async def test_two_listeners_and_what_is_advertised(broker: Broker) -> None:
    main, second = (int(address.rpartition(":")[2]) for address in broker.addresses)
    assert second == main - 2 and broker.address == f"127.0.0.1:{main}"


class Nobody:
    """A service that nobody dials."""

    def connected(self, connection: Connection) -> None: ...
    def received(self, connection: Connection, data: memoryview) -> None: ...
    def disconnected(self, connection: Connection) -> None: ...


UNREACHABLE = "clients elsewhere are told to dial"


@pytest.mark.parametrize(
    ("values", "ways", "host", "warned"),
    [
        ({}, {}, "127.0.0.1", ""),
        ({"namesrv_addr": "127.0.0.1:9876"}, {}, "127.0.0.1", ""),
        ({"namesrv_addr": "127.0.0.1:9876;10.0.0.9:9876"}, {}, "127.0.0.1", "listens on 127.0.0.1 only"),
        ({"broker_ip1": "10.0.0.5"}, {}, "10.0.0.5", "listens on 127.0.0.1 only"),
        ({"bind_address": "0.0.0.0", "broker_ip1": "10.0.0.5"}, {}, "10.0.0.5", ""),
        # The name server that is on another machine says which of our addresses leads there.
        (
            {"bind_address": "0.0.0.0", "namesrv_addr": "127.0.0.1:9876;10.0.0.9:9876"},
            {"127.0.0.1:9876": "127.0.0.1", "10.0.0.9:9876": "10.0.0.5"},
            "10.0.0.5",
            "",
        ),
        # One on this machine says nothing of the others: any address that is not loopback, as Apache's broker does.
        (
            {"bind_address": "0.0.0.0", "namesrv_addr": "127.0.0.1:9876"},
            {"127.0.0.1:9876": "127.0.0.1", "192.0.2.1:9": "10.0.0.5"},
            "10.0.0.5",
            "",
        ),
        (
            {"bind_address": "0.0.0.0", "namesrv_addr": "127.0.0.1:9876"},
            {"127.0.0.1:9876": "127.0.0.1"},
            "127.0.0.1",
            "which is their own machine",
        ),
        ({"bind_address": "::", "namesrv_addr": "[fd00::9]:9876"}, {"[fd00::9]:9876": "fd00::5"}, "[fd00::5]", ""),
        ({"bind_address": "::", "namesrv_addr": "127.0.0.1:9876"}, {"[2001:db8::1]:9": "fd00::5"}, "[fd00::5]", ""),
        ({"bind_address": "::"}, {}, "[::1]", "which is their own machine"),
    ],
)
async def test_what_is_advertised_is_not_loopback_if_it_can_be_helped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    values: dict[str, str],
    ways: dict[str, str],
    host: str,
    warned: str,
) -> None:
    """`ways`: which address of this machine leads to which other one."""
    monkeypatch.setattr("aerobee.broker.listeners._leads_to", lambda family, other: ways.get(other, ""))
    listeners = Listeners(small(tmp_path, **values))
    await listeners.start(Nobody())
    try:
        assert listeners.address.rpartition(":")[0] == host
        assert listeners.store_host.rpartition(":")[0] == host
        said = [record.getMessage() for record in caplog.records if UNREACHABLE in record.getMessage()]
        assert len(said) == bool(warned) and warned in "".join(said)
    finally:
        await listeners.stop(0.0)


async def test_further_listeners_and_what_each_advertises(tmp_path: Path) -> None:
    """Each listener has its second port; its clients are told its own address, or the one that the settings name."""
    started = Broker(
        small(
            tmp_path,
            listeners="inside://127.0.0.1:0; outside://127.0.0.1:0",
            advertised_listeners="outside://mq.example.com:30911;main://127.0.0.2:20911",
        )
    )
    await started.start()
    try:
        ports = [int(address.rpartition(":")[2]) for address in started.addresses]
        assert len(ports) == 6 and all(
            second == first - 2 for first, second in zip(ports[::2], ports[1::2], strict=True)
        )
        inside = f"127.0.0.1:{ports[2]}"
        assert started.listeners.advertised == {
            "main": "127.0.0.2:20911", "inside": inside, "outside": "mq.example.com:30911",
        }  # fmt: skip
        for port in ports:
            client = Peer(f"127.0.0.1:{port}")
            assert (await client.send("orders", b"x")).code == ResponseCode.SUCCESS
            await client.pool.close()
    finally:
        await started.stop()


@pytest.mark.parametrize(
    ("name", "stored_at"), [("localhost", "127.0.0.1"), ("broker.invalid", "127.0.0.1"), ("a..b", "127.0.0.1")]
)
async def test_an_advertised_name(tmp_path: Path, name: str, stored_at: str) -> None:
    """Clients get the name as it is; records and message ids, which have room for numbers only, what it stands for."""
    started = Broker(small(tmp_path, broker_ip1=name))
    await started.start()
    client = Peer(started.addresses[0])
    try:
        assert started.address.startswith(f"{name}:")
        reply = await client.send("orders", b"x")
        port = started.address.rpartition(":")[2]
        assert parse_offset_message_id(reply.ext_fields["msgId"])[0] == f"{stored_at}:{port}"
    finally:
        await client.pool.close()
        await started.stop()


async def test_a_first_send_makes_the_topic_and_a_pull_reads_it(broker: Broker, peer: Peer) -> None:
    sent = await peer.send("orders", queue=2, properties="KEYS\x01k\x02")
    assert sent.code == 0 and sent.ext_fields["queueId"] == "2" and sent.ext_fields["queueOffset"] == "0"
    again = await peer.send("orders", queue=2)
    assert again.ext_fields["queueOffset"] == "1"
    pulled = await peer.pull("orders", queue=2)
    messages = decode_records(pulled.body)
    assert [message.body for message in messages] == [b"hello", b"hello"]
    assert messages[0].properties["CLUSTER"] == "DefaultCluster" and messages[0].properties["UNIQ_KEY"]
    (viewed,) = decode_records((await peer.call(RequestCode.VIEW_MESSAGE_BY_ID, offset=0)).body)
    assert viewed.properties["KEYS"] == "k"


async def test_the_slow_way_and_the_fast_way_write_the_same_message(broker: Broker, peer: Peer) -> None:
    # Claim: which way a message takes through the broker cannot be seen in it.
    await peer.send(
        "orders", properties="UNIQ_KEY\x01u\x02TAGS\x01t\x02POP_CK\x01x\x02"
    )  # makes the topic: policy stores it
    await peer.send("orders", properties="UNIQ_KEY\x01u\x02TAGS\x01t\x02POP_CK\x01x\x02")  # the engine stores it
    slow, fast = decode_records((await peer.pull("orders")).body)
    assert slow.properties == fast.properties and "POP_CK" not in slow.properties
    assert (slow.sys_flag, slow.body, slow.born_host) == (fast.sys_flag, fast.body, fast.born_host)


@pytest.mark.parametrize(
    ("topic", "fields", "code"),
    [
        ("a b", {}, ResponseCode.INVALID_PARAMETER),
        ("x" * 128, {}, ResponseCode.INVALID_PARAMETER),
        ("SCHEDULE_TOPIC_XXXX", {}, ResponseCode.NO_PERMISSION),
        ("unknown", {"c": "no-default"}, ResponseCode.TOPIC_NOT_EXIST),
        ("orders", {"e": 99}, ResponseCode.INVALID_PARAMETER),
        ("orders", {"i": "DELAY\x01many\x02"}, ResponseCode.MESSAGE_ILLEGAL),
        ("orders", {"i": "x\x01" + "y" * 33000 + "\x02"}, ResponseCode.MESSAGE_ILLEGAL),
        ("orders", {"e": "one"}, ResponseCode.INVALID_PARAMETER),
    ],
)
async def test_refused_sends(broker: Broker, peer: Peer, topic: str, fields: dict[str, Any], code: int) -> None:
    reply = await peer.send(topic, **fields)
    assert reply.code == code and reply.remark


async def test_a_body_over_the_limit(broker: Broker, peer: Peer) -> None:
    assert (await peer.send("orders", b"x" * ((4 << 20) + 1))).code == ResponseCode.MESSAGE_ILLEGAL


async def test_unknown_codes_and_malformed_requests_are_answered(broker: Broker, peer: Peer) -> None:
    assert (await peer.call(12345)).code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
    missing = await peer.call(RequestCode.QUERY_CONSUMER_OFFSET, topic="t")
    assert missing.code == ResponseCode.INVALID_PARAMETER and "consumerGroup" in (missing.remark or "")
    assert (await peer.call(RequestCode.HEART_BEAT, b"not json")).code == ResponseCode.INVALID_PARAMETER


async def test_a_waiting_pull_is_answered_by_the_message(broker: Broker, peer: Peer) -> None:
    await peer.send("orders")
    waiting = asyncio.ensure_future(peer.pull("orders", offset=1, wait_ms=10_000))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await peer.send("orders", b"second")
    assert [message.body for message in decode_records((await waiting).body)] == [b"second"]


async def test_a_pull_of_a_group_that_only_subscribed_by_heartbeat(broker: Broker, peer: Peer) -> None:
    await peer.send("orders")
    unknown = await peer.pull("orders", sysFlag=0)
    assert unknown.code == ResponseCode.SUBSCRIPTION_NOT_EXIST
    await peer.join("c1", "orders")
    assert (await peer.pull("orders", sysFlag=0, subVersion=1)).code == 0
    newer = await peer.pull("orders", sysFlag=0, subVersion=2)  # its heartbeat is still to come
    assert newer.code == 0 and newer.body
    assert (await peer.pull("orders", sysFlag=0, subVersion=2, expressionType="SQL92")).code == (
        ResponseCode.SUBSCRIPTION_NOT_LATEST
    )


async def test_heartbeats_that_leave_out_what_has_not_changed(broker: Broker, peer: Peer) -> None:
    async def beat(fingerprint: int, *topics: str, client: Peer = peer) -> str:
        reply = await client.join(f"c{id(client)}", *topics, fingerprint=fingerprint, without_sub=not topics)
        assert reply.code == 0 and reply.ext_fields["IS_SUPPORT_HEART_BEAT_V2"] == "true"
        return reply.ext_fields["IS_SUB_CHANGE"]

    assert await beat(0, "orders") == "true", "version 1 is sent whole each time"
    assert await beat(7, "orders") == "false"
    await peer.send("orders")
    assert await beat(7) == "false"
    assert (await peer.pull("orders", sysFlag=0, subVersion=1)).code == 0, "what was subscribed stays"
    other = Peer(broker.address)
    assert await beat(8, "orders", "more", client=other) == "true", "another member subscribes to something else"
    assert await beat(7) == "true"
    await other.pool.close()
    await peer.pool.close()
    await eventually(lambda: not broker.clients.consumers)
    again = Peer(broker.address)
    assert await beat(7, client=again) == "true", "nothing is known of it: it must tell all"
    assert await beat(7, "orders", client=again) == "false"
    assert (await again.pull("orders", sysFlag=0, subVersion=1)).code == 0
    await again.pool.close()


async def test_who_leaves_while_its_first_heartbeat_waits_for_the_disk_is_no_member(broker: Broker, peer: Peer) -> None:
    await peer.join("c", "orders")
    begun, go_on, replace = threading.Event(), threading.Event(), broker.topics.file._replace

    def slow(data: bytes) -> None:
        begun.set()
        go_on.wait(30)
        replace(data)

    broker.topics.file._replace = slow  # type: ignore[method-assign]
    joining = asyncio.create_task(peer.join("c", "orders", group="quick"))
    await asyncio.to_thread(begun.wait, 30)
    left = await peer.call(RequestCode.UNREGISTER_CLIENT, clientID="c", consumerGroup="quick")
    go_on.set()
    assert left.code == 0 and (await joining).code == 0
    assert "quick" not in broker.clients.consumers and "g" in broker.clients.consumers
    assert broker.topics.get("%RETRY%quick") is not None


async def test_what_all_groups_are_behind_is_told_of_one_look_at_the_counters(
    broker: Broker, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at for each group and topic, ten thousand of them took half a minute in which nobody else was served."""
    for group in ("g1", "g2", "g3"):
        await peer.join("c", "orders", "parcels", group=group)
        for topic in ("orders", "parcels"):
            await peer.send(topic)
            await peer.commit(1, oneway=False, group=group, topic=topic)
    looks, counters = [], broker.store.counters
    monkeypatch.setattr(broker.store, "counters", lambda: looks.append(1) or counters())
    monkeypatch.setattr(broker.offsets, "topics_of", lambda group: pytest.fail("a walk over all offsets"))
    reply = await peer.call(RequestCode.GET_BROKER_CONSUME_STATS, isOrder="false")
    stats = {name: of for entry in fastjson.loads(reply.body)["consumeStatsList"] for name, of in entry.items()}
    assert {len(stats[group]) for group in ("g1", "g2", "g3")} == {2} and len(looks) == 1


async def test_what_a_group_is_behind_on_many_queues_is_told_with_others_served_meanwhile(
    broker: Broker, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"t{number}" for number in range(4)]
    await broker.topics.update([TopicConfig(topic_name=name, read_queue_nums=QUEUES_MAX // 4) for name in names])
    for name in names:
        broker.offsets.commit("g", name, 0, 0)
    looks, counters, turns = [], broker.store.counters, 0
    monkeypatch.setattr(broker.store, "counters", lambda: looks.append(1) or counters())
    asked = asyncio.ensure_future(peer.call(RequestCode.GET_CONSUME_STATS, consumerGroup="g"))
    bounds = broker.store.bounds
    seen = []

    def look(topic: str, queue: int) -> tuple[int, int]:
        if topic in names:
            seen.append(turns)
        return bounds(topic, queue)

    monkeypatch.setattr(broker.store, "bounds", look)
    while not asked.done():
        turns += 1
        await asyncio.sleep(0)
    reply = await asked
    assert reply.code == 0 and len(fastjson.loads(reply.body)["offsetTable"]) == len(seen) == QUEUES_MAX
    assert len(looks) == 1 and max(seen.count(turn) for turn in set(seen)) <= 512


async def test_members_hear_within_a_second_that_one_is_gone(broker: Broker, peer: Peer) -> None:
    other = Peer(broker.address)
    await peer.join("c1", "orders")
    await other.join("c2", "orders")
    await eventually(lambda: len(peer.asked) == 2)
    listed = await peer.call(RequestCode.GET_CONSUMER_LIST_BY_GROUP, consumerGroup="g")
    assert fastjson.loads(listed.body)["consumerIdList"] == ["c1", "c2"]
    began = time.monotonic()
    await other.pool.close()
    await eventually(lambda: len(peer.asked) == 3)
    assert time.monotonic() - began < 1
    assert peer.asked[-1].code == RequestCode.NOTIFY_CONSUMER_IDS_CHANGED
    assert peer.asked[-1].ext_fields == {"consumerGroup": "g"}


async def test_a_large_group_is_told_once_of_many_that_go_at_once_and_within_a_second(
    broker: Broker, peer: Peer
) -> None:
    heard: list[bytes] = []

    def member(number: int) -> Any:
        return SimpleNamespace(
            id=-number,
            peer="",
            closed=False,
            write=heard.append,
            send=lambda command: heard.append(command.encode()),
            close=lambda reason: None,
        )

    await peer.join("c", "orders")
    crowd = [member(number) for number in range(1, 1000)]
    for connection in crowd:
        broker.clients.register_consumer(
            "g",
            Client(f"c{connection.id}", connection, 0, 513),
            consume_type="CONSUME_PASSIVELY",
            message_model="CLUSTERING",
            consume_from_where="CONSUME_FROM_LAST_OFFSET",
            subscriptions=None,
            notify=True,
        )
    await eventually(lambda: len(peer.asked) >= 2)
    told, began = len(peer.asked), time.monotonic()
    heard.clear()
    for connection in crowd[:-100]:
        broker.clients.disconnected(connection)
    await eventually(lambda: len(peer.asked) > told and len(heard) >= 100)
    assert time.monotonic() - began < 1
    assert len(peer.asked) == told + 1 and len(heard) == 100
    for connection in crowd[-100:]:
        broker.clients.disconnected(connection)


async def test_queues_in_order_are_free_when_their_owner_disconnects(
    broker: Broker, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, again = Peer(broker.address), Peer(broker.address)
    queue = {"topic": "orders", "brokerName": broker.options.broker_name, "queueId": 0}

    async def locked(who: Peer, client_id: str) -> int:
        body = fastjson.dumps({"consumerGroup": "g", "clientId": client_id, "mqSet": [queue]})
        return len(fastjson.loads((await who.call(RequestCode.LOCK_BATCH_MQ, body)).body)["lockOKMQSet"])

    await peer.join("c1", "orders")
    await other.join("c2", "orders")
    assert (await locked(other, "c2"), await locked(peer, "c1")) == (1, 0)
    await again.join("c2", "orders")  # the same client on a new connection, before the old one has ended
    told = len(peer.asked)
    await other.pool.close()
    await eventually(lambda: len(peer.asked) > told)
    assert await locked(peer, "c1") == 0, "its owner is still here"
    told = len(peer.asked)
    await again.pool.close()
    await eventually(lambda: len(peer.asked) > told)
    await peer.send("orders")
    assert await locked(peer, "c1") == 1
    began = time.monotonic()
    monkeypatch.setattr(order, "LOST_S", 0.5)
    assert (await peer.pull("orders", wait_ms=15_000)).code == ResponseCode.PULL_NOT_FOUND, "its owner may be back"
    assert (await peer.pull("orders", wait_ms=15_000)).code == 0
    assert time.monotonic() - began < 1
    await peer.call(RequestCode.UNREGISTER_CLIENT, clientID="c1", consumerGroup="g")
    assert await locked(peer, "c2") == 1, "who says goodbye is gone at once"


async def test_runtime_info_says_what_users_sent_and_since_when_there_are_messages(broker: Broker, peer: Peer) -> None:
    before_ms = int(time.time() * 1000)
    await peer.send("orders")
    await peer.send("orders", properties="DELAY\x0118\x02")  # kept in a topic of the broker's own
    await peer.pull("orders")
    table = fastjson.loads((await peer.call(RequestCode.GET_BROKER_RUNTIME_INFO)).body)["table"]
    assert (table["msgPutTotalTodayNow"], table["putMessageTimesTotal"], table["msgGetTotalTodayNow"]) == (
        "1",
        "2",
        "1",
    )
    assert before_ms <= int(table["earliestMessageTimeStamp"]) <= time.time() * 1000


async def test_what_the_broker_keeps_in_the_shape_of_an_offset_is_no_group(broker: Broker, peer: Peer) -> None:
    await peer.send("orders")
    await peer.pull("orders")
    for group in ("g", SAVED_GROUP):
        broker.offsets.commit(group, "orders", 0, 1)
    told = await peer.call(RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, topic="orders")
    assert fastjson.loads(told.body)["groupList"] == ["g"]


async def test_locks_that_nobody_could_hold_are_refused(broker: Broker, peer: Peer) -> None:
    def lock(queues: tuple[tuple[str, int], ...] = (("orders", 0),), **body: str) -> Awaitable[RemotingCommand]:
        mq_set = [{"topic": topic, "brokerName": "broker-a", "queueId": queue} for topic, queue in queues]
        return peer.call(RequestCode.LOCK_BATCH_MQ, fastjson.dumps({**body, "mqSet": mq_set}))

    whole = {"consumerGroup": "g", "clientId": "c"}
    for body in ({"consumerGroup": "g"}, {"clientId": "c"}, {**whole, "clientId": "c" * 600}):
        assert (await lock(**body)).code == ResponseCode.INVALID_PARAMETER
    for queue in (("orders", 2**40), ("orders", -1), ("o" * 600, 0)):
        assert (await lock((queue,), **whole)).code == ResponseCode.INVALID_PARAMETER
    assert not broker.order.any_held("g") and not broker.order.any_held("")
    reply = await lock((("orders", 0), ("orders", 0)), **whole)
    assert len(fastjson.loads(reply.body)["lockOKMQSet"]) == 1


async def test_a_tools_commit_is_no_sign_of_life_of_a_lost_holder(broker: Broker, peer: Peer) -> None:
    queue = ("orders", broker.options.broker_name, 0)
    await peer.send("orders")
    await peer.pull("orders")
    broker.order.lock("g", "a", [queue])
    broker.order.lost("g", "a")
    other = Peer(broker.address)
    await other.commit(1, oneway=False)
    assert broker.order.lock("g", "b", [queue]) == [queue]
    await other.commit(1)
    await eventually(lambda: broker.order.lock("g", "b", [queue]) == [])
    await other.pool.close()


async def test_a_reset_is_handed_out_once_and_cannot_be_undone_meanwhile(broker: Broker, peer: Peer) -> None:
    for _ in range(5):
        await peer.send("orders")
    await peer.pull("orders")
    commit = dict(consumerGroup="g", topic="orders", queueId=0)
    assert (await peer.call(RequestCode.UPDATE_CONSUMER_OFFSET, **commit, commitOffset=5)).code == 0
    reset = await peer.call(
        RequestCode.INVOKE_BROKER_TO_RESET_OFFSET,
        group="g",
        topic="orders",
        queueId=0,
        offset=2,
        timestamp=0,
        isForce="true",
    )
    assert reset.code == 0
    await peer.call(RequestCode.UPDATE_CONSUMER_OFFSET, **commit, commitOffset=5)
    assert (await peer.call(RequestCode.QUERY_CONSUMER_OFFSET, **commit)).ext_fields["offset"] == "2"
    moved = await peer.pull("orders", offset=5)
    assert moved.code == ResponseCode.PULL_OFFSET_MOVED and moved.ext_fields["nextBeginOffset"] == "2"
    assert (await peer.pull("orders", offset=2)).code == 0


@pytest.mark.parametrize("fields", [{}, {"setZeroIfNotFound": "true"}])
async def test_the_offset_of_a_queue_that_cannot_be_is_not_found(
    broker: Broker, peer: Peer, fields: dict[str, Any]
) -> None:
    await peer.send("orders")
    asked = await peer.call(
        RequestCode.QUERY_CONSUMER_OFFSET, consumerGroup="new", topic="orders", queueId=-1, **fields
    )
    assert asked.code == ResponseCode.QUERY_NOT_FOUND


async def test_only_who_means_it_commits_a_smaller_offset(broker: Broker, peer: Peer) -> None:
    other = Peer(broker.address)
    try:
        for _ in range(12):
            await peer.send("orders")
        await peer.join("c1", "orders")
        await peer.commit(10)
        await peer.commit(4)
        assert await peer.committed() == 10, "a member that pushes: a stale copy"
        await other.commit(4)
        assert await other.committed() == 10, "a client that comes back and has not said yet who it is"
        await other.commit(4, oneway=False)
        assert await other.committed() == 4, "a tool"
        broker.offsets.overwrite("g", "orders", 0, 99)
        await peer.commit(12)
        assert await peer.committed() == 12, "what is stored lies beyond the end"

        await peer.join("c1", "orders", group="pulls", consume_type="CONSUME_ACTIVELY")
        await peer.commit(10, group="pulls")
        await peer.commit(4, group="pulls")
        assert await peer.committed("pulls") == 4, "an application that has sought back"
        await other.join("c2", "orders", group="pulls", consume_type="CONSUME_ACTIVELY")
        await other.commit(8, group="pulls")
        assert await other.committed("pulls") == 8
        await peer.commit(5, group="pulls")
        assert await peer.committed("pulls") == 8, "the queue is another one's now"
    finally:
        await other.pool.close()
    await eventually(lambda: len(broker.clients.consumers["pulls"].members) == 1)
    await peer.commit(5, group="pulls")
    assert await peer.committed("pulls") == 5, "which is gone"


async def test_members_that_push_commit_nothing_else_until_they_have_taken_up_a_reset(
    broker: Broker, peer: Peer
) -> None:
    for _ in range(12):
        await peer.send("orders")
    await peer.join("c1", "orders")
    reset = dict(group="g", topic="orders", queueId=0, offset=2, timestamp=0, isForce="true")

    async def handed_out() -> None:
        await peer.commit(10)
        assert (await peer.call(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, **reset)).code == 0
        moved = await peer.pull("orders", offset=10, sysFlag=0, subVersion=1)
        assert (moved.code, moved.ext_fields["nextBeginOffset"]) == (ResponseCode.PULL_OFFSET_MOVED, "2")
        await peer.commit(11)

    def stored() -> int:
        return broker.offsets.query("g", "orders", 0)

    await handed_out()
    await peer.call(RequestCode.QUERY_CONSUMER_OFFSET, consumerGroup="tool", topic="orders", queueId=0)
    assert stored() == 2, "what was committed before it stopped is dropped"
    await peer.commit(2)
    await peer.commit(3)
    assert await peer.committed() == 3
    await handed_out()
    assert await peer.committed() == 2, "it asks where to begin"
    await peer.commit(5)
    assert await peer.committed() == 5


async def test_clients_are_told_to_reset_each_in_its_language(broker: Broker, peer: Peer) -> None:
    cpp = Peer(broker.address)
    cpp.language = 1
    for _ in range(12):
        await peer.send("orders")
    await peer.join("java", "orders")
    await cpp.join("cpp", "orders")
    broker.options.change({"useServerSideResetOffset": "false"})
    ask = dict(group="g", topic="orders", timestamp=0, isForce="true", queueId=0, offset=3)
    unknown = await peer.call(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, **ask)
    assert (unknown.code, unknown.remark) == (1, "THe consumer group <g> not exist")
    await peer.commit(10)
    told = await peer.call(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, **ask)
    assert told.code == 0
    asked = [await orders_of(who, RequestCode.RESET_CONSUMER_CLIENT_OFFSET) for who in (peer, cpp)]
    queue = {"topic": "orders", "brokerName": "broker-a", "queueId": 0}
    assert fastjson.loads(asked[0].body) == fastjson.loads(told.body)
    assert list(fastjson.loads(asked[0].body)["offsetTable"].values()) == [3]
    assert fastjson.loads(asked[1].body) == {"offsetTable": [{**queue, "offset": 3}]}
    assert (asked[0].ext_fields["group"], asked[0].is_oneway) == ("g", True)
    await peer.commit(11)
    assert await peer.committed() == 11, "the queue may be another one's: it goes on"
    await peer.commit(3)
    assert await peer.committed() == 3
    await peer.commit(2)
    assert await peer.committed() == 3
    await cpp.pool.close()


async def orders_of(who: Peer, code: int) -> RemotingCommand:
    await eventually(lambda: any(command.code == code for command in who.asked))
    return next(command for command in who.asked if command.code == code)


async def test_members_that_do_not_answer_do_not_hide_those_who_do(
    broker: Broker, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aerobee.broker.handlers.admin.ASK_MEMBERS_TIMEOUT_S", 0.2)
    silent = Peer(broker.address)
    await silent.join("c0", "orders")
    await peer.join("c1", "orders")
    asking = asyncio.ensure_future(
        peer.call(RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS, group="g", topic="orders")
    )
    asked = await orders_of(peer, RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT)
    body = b'{"messageQueueTable":{{"brokerName":"broker-a","queueId":0,"topic":"orders"}:7}}'
    peer.connection.write(asked.reply(body=body).encode())
    table = fastjson.loads((await asking).body)["consumerTable"]
    assert {name: list(offsets.values()) for name, offsets in table.items()} == {"c1": [7]}
    await silent.pool.close()


async def test_doctor_says_which_listener_it_cannot_dial(tmp_path: Path) -> None:
    server = NameServer(NameServerOptions(listen_port=0, kv_config_path=str(tmp_path / "kv.json")))
    await server.start()
    settings = {"listeners": "inside://127.0.0.1:0;outside://0.0.0.0:0;mapped://0.0.0.0:0"}
    settings["advertised_listeners"] = "mapped://127.0.0.1:1"
    started = Broker(small(tmp_path, namesrv_addr=server.address, **settings))
    await started.start()
    try:
        await eventually(lambda: started.registration.first(5))
        lines = (await examine(server.address)).lines
        assert [sentence for kind, sentence in lines if kind == "note" and "advertisedListeners" in sentence] == [
            f"broker-a, listener {name}, is not dialled: what its clients are told is not in the broker's settings "
            f"({at}). Set advertisedListeners to have it looked at"
            for name, at in (("inside", "127.0.0.1:0"), ("outside", "0.0.0.0:0"))
        ]
        assert any(kind == "warn" and "listener mapped, advertises 127.0.0.1:1" in said for kind, said in lines)
    finally:
        await started.stop()
        await server.stop()


async def test_settings_can_be_changed_but_no_path(broker: Broker, peer: Peer) -> None:
    refused = await peer.call(RequestCode.UPDATE_BROKER_CONFIG, b"storePathRootDir=/etc\nautoCreateTopicEnable=false\n")
    assert refused.code == ResponseCode.NO_PERMISSION and broker.options.auto_create_topic_enable
    assert (await peer.call(RequestCode.UPDATE_BROKER_CONFIG, b"maxMessageSize=2048\n")).code == 0
    assert (await peer.send("BenchmarkTest", b"x" * 3000)).code == ResponseCode.MESSAGE_ILLEGAL
    told = await peer.call(RequestCode.GET_BROKER_CONFIG)
    assert b"maxMessageSize=2048\n" in told.body


async def test_a_change_that_no_file_keeps_is_not_passed_off_as_kept(
    broker: Broker, peer: Peer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = await peer.call(RequestCode.UPDATE_BROKER_CONFIG, b"maxMessageSize=2048\n")
    lost = "until the next start only: no file was given at the start (-c) to keep it in"
    assert (told.code, told.remark) == (ResponseCode.SUCCESS, f"changed {lost}")
    assert broker.options.max_message_size == 2048 and lost in caplog.text
    refused = await peer.call(RequestCode.UPDATE_BROKER_CONFIG, b"maxMessageSize=4096\nmaxMsgsNumBatch=1\nfastPort=0\n")
    assert refused.code == ResponseCode.NO_PERMISSION
    refused = await peer.call(RequestCode.UPDATE_BROKER_CONFIG, b"maxMessageSize=4096\ntraceTopicEnable=true\n")
    assert refused.code == ResponseCode.NO_PERMISSION
    assert refused.remark == (
        "Can not update config: traceTopicEnable would count from the next start only, and no file was given at the "
        "start (-c) to keep it in"
    )
    assert broker.options.max_message_size == 2048
    assert b"traceTopicEnable=false\n" in (await peer.call(RequestCode.GET_BROKER_CONFIG)).body

    broker.options.file = tmp_path / "gone" / "broker.properties"
    told = await peer.call(RequestCode.UPDATE_BROKER_CONFIG, b"maxMessageSize=4096\n")
    assert told.code == ResponseCode.SUCCESS and broker.options.max_message_size == 4096
    assert told.remark == (
        f"changed until the next start only: {broker.options.file} could not be written (No such file or directory)"
    )
    refused = await peer.call(RequestCode.UPDATE_BROKER_CONFIG, b"traceTopicEnable=true\n")
    assert refused.code == ResponseCode.NO_PERMISSION and "could not be written" in (refused.remark or "")

    broker.options.file.parent.mkdir()
    told = await peer.call(RequestCode.UPDATE_BROKER_CONFIG, b"traceTopicEnable=true\nmaxMessageSize=8192\n")
    assert (told.code, told.remark) == (ResponseCode.SUCCESS, "traceTopicEnable takes effect at the next start")
    assert broker.options.file.read_text() == "maxMessageSize=8192\ntraceTopicEnable=true\n"


async def test_the_share_of_the_disk_that_may_be_used_changes_at_once(
    broker: Broker, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The lowest share that may be asked for could be above what this machine's disk uses; 0 never is.
    name = "diskSpaceWarningLevelRatio"
    monkeypatch.setitem(BrokerOptions.ROWS, name, dataclasses.replace(BrokerOptions.ROWS[name], low=0))

    async def change(percent: int) -> None:
        assert (await peer.call(RequestCode.UPDATE_BROKER_CONFIG, b"%s=%d\n" % (name.encode(), percent))).code == 0

    async def sent(code: int) -> RemotingCommand | None:
        reply = await peer.send("orders")
        return reply if reply.code == code else None

    await change(100)
    await eventually(lambda: sent(ResponseCode.SUCCESS))
    await change(0)
    refused = await eventually(lambda: sent(ResponseCode.SERVICE_NOT_AVAILABLE))
    assert "writes stop at 0.0 %" in (refused.remark or "")
    await change(100)
    await eventually(lambda: sent(ResponseCode.SUCCESS))


async def test_a_refused_topic_or_group_leaves_the_next_start_and_the_next_change_alone(
    broker: Broker, peer: Peer, tmp_path: Path
) -> None:
    topic = dict(topic="t", readQueueNums=4, writeQueueNums=4, perm=6, topicFilterType="SINGLE_TAG", order="false")
    listed = [{"topicName": "l1"}, {"topicName": "l2", "readQueueNums": 2**40}]
    answers = [
        await peer.call(RequestCode.UPDATE_AND_CREATE_TOPIC, **{**topic, "readQueueNums": -1}),
        await peer.call(RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, fastjson.dumps({"topicConfigList": listed})),
        await peer.call(
            RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
            fastjson.dumps({"groupName": "huge", "groupSysFlag": 2**40}),
        ),
    ]
    assert [answer.code for answer in answers] == [ResponseCode.INVALID_PARAMETER] * 3
    retried = {"groupName": "g", "retryQueueNums": -1}  # as in Apache's: nothing comes again
    assert (await peer.call(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, fastjson.dumps(retried))).code == 0
    assert (await peer.join("c1", "t")).code == (await peer.join("c1", "t")).code == 0
    assert (await peer.call(RequestCode.UPDATE_AND_CREATE_TOPIC, **topic)).code == 0
    assert (await peer.call(RequestCode.UPDATE_BROKER_CONFIG, b"enableTopicMessageTypeCheck=true")).code == 0
    await broker.stop()
    again = Broker(small(tmp_path))
    await again.start()
    await again.stop()
    assert {"t", "l1", "l2"} & again.topics.table.keys() == {"t"} and "huge" not in again.groups.table


async def test_what_tools_ask_of_the_largest_topic_fits_into_an_answer(tmp_path: Path) -> None:
    broker = Broker(small(tmp_path, broker_name="b" * 127))
    await broker.start()
    peer = Peer(broker.address)
    try:
        name = "t" * 127
        made = await peer.call(
            RequestCode.UPDATE_AND_CREATE_TOPIC, topic=name, readQueueNums=QUEUES_MAX, writeQueueNums=QUEUES_MAX, perm=6
        )
        assert made.code == 0
        asked = RequestCode.GET_TOPIC_STATS_INFO, RequestCode.GET_CONSUME_STATS, RequestCode.QUERY_CONSUME_TIME_SPAN
        for code in asked:
            answer = await peer.call(code, topic=name, consumerGroup="g", group="g")
            # Each queue's four numbers may have twenty digits.
            assert answer.code == 0 and len(answer.body) + QUEUES_MAX * 4 * 20 < 16 << 20
    finally:
        await peer.pool.close()
        await broker.stop()


async def test_with_every_setting_at_its_upper_bound_a_broker_starts_and_serves(tmp_path: Path) -> None:
    highest = {row.attribute: row.high for row in BrokerOptions.ROWS.values() if row.remote and row.kind is int}
    broker = Broker(small(tmp_path, **highest))
    await broker.start()
    peer = Peer(broker.address)
    try:
        assert (await peer.send("orders")).code == 0
        assert (await peer.pull("orders")).code == 0
        live = [row for row in BrokerOptions.ROWS.values() if row.attribute in highest and row.live]
        changes = "".join(f"{row.name}={row.high}\n" for row in live)
        assert (await peer.call(RequestCode.UPDATE_BROKER_CONFIG, changes.encode())).code == 0
        assert (await peer.pull("orders", offset=1)).code == ResponseCode.PULL_NOT_FOUND
        assert not [task for task in broker._tasks if task.done()]
    finally:
        await peer.pool.close()
        await broker.stop()


async def test_a_period_that_cannot_be_waited_for_ends_no_mechanism(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker(small(tmp_path), clock := ManualClock())
    periods = [10**400, 5.0]
    done: list[float] = []

    async def work() -> None:
        done.append(clock.monotonic())

    task = asyncio.ensure_future(broker._repeat(lambda: periods.pop(0) / 1000 if periods else 5.0, work, "do it"))
    await clock.advance(60)
    task.cancel()
    assert len(done) > 3 and "do it" in caplog.text


async def test_automatic_topics_can_be_switched_on_and_off_while_the_broker_runs(tmp_path: Path) -> None:
    name_server = NameServer(NameServerOptions(listen_port=0, kv_config_path=str(tmp_path / "kv.json")))
    await name_server.start()
    broker = Broker(small(tmp_path, auto_create_topic_enable=False, namesrv_addr=name_server.address))
    await broker.start()
    peer = Peer(broker.address)

    async def default_route() -> RemotingCommand:
        command = RemotingCommand.request(RequestCode.GET_ROUTEINFO_BY_TOPIC)
        command.ext_fields["topic"] = "TBW102"
        return await peer.pool.invoke(name_server.address, command, 10)

    async def has_route() -> bool:
        return (await default_route()).code == 0

    try:
        assert (await peer.send("orders")).code == (await default_route()).code == ResponseCode.TOPIC_NOT_EXIST
        assert (await peer.call(RequestCode.UPDATE_BROKER_CONFIG, b"autoCreateTopicEnable=true")).code == 0
        assert (await peer.send("orders")).code == 0
        await eventually(has_route)  # where a producer learns that it may send to a topic that is not there
        assert (await peer.call(RequestCode.UPDATE_BROKER_CONFIG, b"autoCreateTopicEnable=false")).code == 0
        assert (await peer.send("parcels")).code == ResponseCode.TOPIC_NOT_EXIST
    finally:
        await peer.pool.close()
        await broker.stop()
        await name_server.stop()


async def test_who_asks_for_a_group_has_it_made_if_groups_are_automatic(broker: Broker, peer: Peer) -> None:
    answer = await peer.call(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, group="new")
    assert answer.code == 0 and SubscriptionGroupConfig.from_json(answer.body).group_name == "new"
    assert "new" in broker.groups.table
    assert (await peer.call(RequestCode.UPDATE_BROKER_CONFIG, b"autoCreateSubscriptionGroup=false")).code == 0
    answers = [await peer.call(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, group=name) for name in ("newer", "new")]
    assert [answer.code for answer in answers] == [ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, 0]
    assert "newer" not in broker.groups.table


async def test_a_deleted_topic_is_gone(broker: Broker, peer: Peer) -> None:
    await peer.send("orders")
    await peer.call(RequestCode.UPDATE_CONSUMER_OFFSET, consumerGroup="g", topic="orders", queueId=0, commitOffset=1)
    assert (await peer.call(RequestCode.DELETE_TOPIC_IN_BROKER, topic="orders")).code == 0
    assert (await peer.pull("orders")).code == ResponseCode.TOPIC_NOT_EXIST
    assert broker.offsets.groups_of("orders") == []
    assert (await peer.call(RequestCode.DELETE_TOPIC_IN_BROKER, topic="TBW102")).code == ResponseCode.INVALID_PARAMETER


async def test_a_delayed_message_and_a_returned_one(broker: Broker, peer: Peer) -> None:
    sent = await peer.send("orders", properties="DELAY\x011\x02")
    assert sent.code == 0 and (await peer.pull("orders")).code == ResponseCode.PULL_NOT_FOUND
    await eventually(lambda: broker.store.bounds("orders", 0) == (0, 1), timeout_s=5)
    (message,) = decode_records((await peer.pull("orders")).body)
    back = await peer.call(
        RequestCode.CONSUMER_SEND_MSG_BACK,
        offset=message.commit_log_offset,
        group="g",
        delayLevel=1,
        maxReconsumeTimes=16,
    )
    assert back.code == 0
    await eventually(lambda: broker.store.bounds("%RETRY%g", 0) == (0, 1), timeout_s=5)
    (retried,) = decode_records((await peer.pull("%RETRY%g")).body)
    assert retried.reconsume_times == 1 and retried.properties["RETRY_TOPIC"] == "orders"
    assert retried.properties["WAIT"] == "false", "as Apache's"
    dead = await peer.call(
        RequestCode.CONSUMER_SEND_MSG_BACK, offset=retried.commit_log_offset, group="g", delayLevel=-1
    )
    assert dead.code == 0 and broker.store.bounds("%DLQ%g", 0) == (0, 1)


async def test_what_was_there_is_there_after_a_stop(tmp_path: Path) -> None:
    first = Broker(small(tmp_path))
    await first.start()
    peer = Peer(first.address)
    await peer.send("orders")
    await peer.call(
        RequestCode.UPDATE_CONSUMER_OFFSET, consumerGroup="CID_ONSAPI_PULL", topic="orders", queueId=0, commitOffset=1
    )
    await peer.pool.close()
    await first.stop()
    assert not (tmp_path / "store" / "abort").exists()
    second = Broker(small(tmp_path))
    await second.start()
    try:
        assert second.topics.get("orders") is not None
        assert second.offsets.query("CID_ONSAPI_PULL", "orders", 0) == 1
        assert second.store.bounds("orders", 0) == (0, 1)
    finally:
        await second.stop()


async def test_a_store_has_one_broker(broker: Broker, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        await Broker(small(tmp_path)).start()


async def test_a_taken_port_leaves_nothing_behind(broker: Broker, tmp_path: Path) -> None:
    port = int(broker.address.rpartition(":")[2])
    options = small(tmp_path, store_path_root_dir=str(tmp_path / "other"), listen_port=port)
    with pytest.raises(OSError):
        await Broker(options).start()
    again = Broker(small(tmp_path, store_path_root_dir=str(tmp_path / "other")))
    await again.start()
    await again.stop()


async def test_synchronous_flush_answers_both_ways(tmp_path: Path) -> None:
    broker = Broker(small(tmp_path, flush_disk_type="SYNC_FLUSH"))
    await broker.start()
    peer = Peer(broker.address)
    try:
        for _ in range(3):
            assert (await peer.send("orders")).code == 0  # the first through policy, the others through the engine
        assert (await peer.send("orders", properties="DELAY\x011\x02")).code == 0
        assert len(decode_records((await peer.pull("orders")).body)) == 3
    finally:
        await peer.pool.close()
        await broker.stop()


async def test_who_made_a_topic_finds_its_route_at_once(tmp_path: Path) -> None:
    """Apache's broker answers when the name servers know. Who sends to a topic of one queue with the route of the
    default topic, which is what there is until then, is refused by the queues it has not got."""
    name_server = NameServer(NameServerOptions(listen_port=0, kv_config_path=str(tmp_path / "kv.json")))
    await name_server.start()
    broker = Broker(small(tmp_path, namesrv_addr=f"{name_server.address};127.0.0.1:9"))
    await broker.start()
    peer = Peer(broker.address)

    async def is_known(topic: str) -> bool:
        asked = RemotingCommand.request(RequestCode.GET_ROUTEINFO_BY_TOPIC)
        asked.ext_fields["topic"] = topic
        return (await peer.pool.invoke(name_server.address, asked, 5)).code == 0

    made = dict(readQueueNums=1, writeQueueNums=1, perm=6, topicFilterType="SINGLE_TAG", order="false")
    for number in range(8):
        assert (await peer.call(RequestCode.UPDATE_AND_CREATE_TOPIC, topic=f"t{number}", **made)).code == 0
        assert await is_known(f"t{number}")
    many = [peer.call(RequestCode.UPDATE_AND_CREATE_TOPIC, topic=f"m{number}", **made) for number in range(20)]
    listed = fastjson.dumps({"topicConfigList": [{"topicName": "l1"}, {"topicName": "l2"}]})
    await asyncio.gather(*many, peer.call(RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, listed))
    assert all([await is_known(topic) for topic in ("l1", "l2", *(f"m{number}" for number in range(20)))])
    started = time.monotonic()
    await name_server.stop()
    assert (await peer.call(RequestCode.UPDATE_AND_CREATE_TOPIC, topic="alone", **made)).code == 0
    assert time.monotonic() - started < 2.5, "nobody waits for name servers that are gone"
    await peer.pool.close()
    await broker.stop()


async def test_a_stop_takes_the_broker_out_of_the_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: a broker that stops says so (#7182, #1589); that its connection ends need reach nobody. Clients are sent
    # elsewhere before it answers them no more.
    monkeypatch.setattr(NameServer, "disconnected", lambda self, connection: None)
    servers = [NameServer(NameServerOptions(listen_port=0, kv_config_path=str(tmp_path / name))) for name in "ab"]
    for server in servers:
        await server.start()
    broker = Broker(small(tmp_path, namesrv_addr=";".join(server.address for server in servers)))
    await broker.start()
    assert await broker.registration.first(5)
    routes, hold, gone_before = [server._parts.routes for server in servers], broker.listeners.hold, []

    def holds() -> None:
        gone_before.append(not any(known.brokers or known.topics for known in routes))
        hold()

    monkeypatch.setattr(broker.listeners, "hold", holds)
    assert all(known.brokers for known in routes)
    await broker.stop()
    assert gone_before == [True]
    for server in servers:
        await server.stop()


async def test_a_stop_at_the_moment_of_a_registration(tmp_path: Path) -> None:
    # A name server that stops with its broker ends their connection, and that wakes the registration: whichever step
    # of it the stop meets, it ends.
    name_server = NameServer(NameServerOptions(listen_port=0, kv_config_path=str(tmp_path / "kvConfig.json")))
    await name_server.start()
    for steps in range(6):
        broker = Broker(small(tmp_path / str(steps), namesrv_addr=name_server.address))
        await broker.start()
        assert await broker.registration.first(5)
        await asyncio.sleep(0.01)  # it waits for the next time
        broker.registration.changed([])
        for _ in range(steps):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await broker.registration.stop()
        await broker.stop()
    await name_server.stop()


async def test_a_new_topic_takes_no_other_from_a_name_server_that_drops_what_is_not_mentioned(tmp_path: Path) -> None:
    options = NameServerOptions(
        listen_port=0, kv_config_path=str(tmp_path / "kvConfig.json"), delete_topic_with_broker_registration=True
    )
    name_server = NameServer(options)
    await name_server.start()
    broker = Broker(small(tmp_path, namesrv_addr=name_server.address))
    await broker.start()
    peer = Peer(broker.address)
    assert await broker.registration.first(5)
    for topic in ("T1", "T2"):
        assert (await peer.send(topic)).code == 0
        await eventually(lambda topic=topic: broker.registration.route(topic))
    assert await broker.registration.route("T1") is not None
    await peer.call(RequestCode.DELETE_TOPIC_IN_BROKER, topic="T1")
    await eventually(lambda: gone(broker, "T1"))
    assert await broker.registration.route("T2") is not None
    await peer.pool.close()
    await broker.stop()
    await name_server.stop()


async def test_everything_is_told_in_time_also_while_topics_keep_changing(tmp_path: Path) -> None:
    name_server = NameServer(NameServerOptions(listen_port=0, kv_config_path=str(tmp_path / "kvConfig.json")))
    await name_server.start()
    broker = Broker(small(tmp_path, namesrv_addr=name_server.address, register_name_server_period=1000))
    await broker.start()
    peer = Peer(name_server.address)
    await broker.topics.create_for_group("T", 1)
    await eventually(lambda: broker.registration.route("T"))
    assert (await peer.call(RequestCode.DELETE_TOPIC_IN_NAMESRV, topic="T")).code == 0
    assert await gone(broker, "T")
    numbers = itertools.count()

    async def is_back() -> bool:
        topic = f"U{next(numbers)}"
        await broker.topics.create_for_group(topic, 1)
        await eventually(lambda: broker.registration.route(topic))
        return not await gone(broker, "T")

    await eventually(is_back, timeout_s=5, interval_s=0)
    assert next(numbers) > 2, "it was not the first of them that brought it"
    await peer.pool.close()
    await broker.stop()
    await name_server.stop()


@pytest.mark.parametrize("broken", [False, True])
async def test_why_no_name_server_can_be_reached(tmp_path: Path, broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> None:
        raise ValueError("no such thing")

    broker = Broker(small(tmp_path, namesrv_addr="a..b:9876", name_server_wait_seconds=1))
    if broken:
        monkeypatch.setattr(broker.registration, "_register", fails)
    await broker.start()
    async with asyncio.timeout(10):
        reason = await broker.failed()
    await broker.stop()
    assert ("internal error while registering at a..b:9876: ValueError('no such thing')" in reason) is broken
    assert ("cannot connect to a..b:9876: a..b is no host name" in reason) is not broken


async def gone(broker: Broker, topic: str) -> bool:
    return await broker.registration.route(topic) is None


async def test_light_queues(tmp_path: Path) -> None:
    broker = Broker(small(tmp_path, enable_lmq=True, enable_multi_dispatch=True))
    await broker.start()
    peer = Peer(broker.address)
    dispatch = "INNER_MULTI_DISPATCH\x01%LMQ%a,%LMQ%b\x02INNER_MULTI_QUEUE_OFFSET\x019,9\x02"
    for _ in range(2):  # the first one makes the topic, by policy; the second is the engine's own
        assert (await peer.send("parent", properties=dispatch)).code == 0
    reply = await peer.pull("%LMQ%b", group="%LMQ%g", commitOffset=1, sysFlag=5)
    [first, second] = decode_records(reply.body)
    assert [m.properties["INNER_MULTI_QUEUE_OFFSET"] for m in (first, second)] == ["0,0", "1,1"]
    assert broker.offsets.query("%LMQ%g", "%LMQ%b", 0) == 1
    refused = await peer.send("parent", properties="INNER_MULTI_DISPATCH\x01%LMQ%a,b\x02")
    assert refused.code == ResponseCode.MESSAGE_ILLEGAL
    for code, names in ((0, "INNER_MULTI_DISPATCH\x01%LMQ%a\x02"), (ResponseCode.MESSAGE_ILLEGAL, dispatch)):
        reply = await peer.send("parent", inner(b"x", names.encode()), m="true")
        assert reply.code == code, "what is in a batch is in no light queue"
    assert broker.store.bounds("%LMQ%a", 0) == (0, 2)
    queues = await peer.call(RequestCode.GET_TOPIC_STATS_INFO, topic="%LMQ%a")
    assert queues.code == 0 and b'"maxOffset":2' in queues.body
    await peer.pool.close()
    await broker.stop()


def inner(body: bytes, properties: bytes = b"") -> bytes:
    """One message of a batch."""
    size = 22 + len(body) + len(properties)
    return struct.pack(">iiiii", size, 0, 0, 0, len(body)) + body + struct.pack(">h", len(properties)) + properties


async def test_a_field_of_a_pull_that_is_no_whole_number_is_named(
    broker: Broker, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await peer.send("t")).code == (await peer.join("c", "t")).code == 0
    for name in ("commitOffset", "queueOffset", "maxMsgNums", "suspendTimeoutMillis", "subVersion", "maxMsgBytes"):
        reply = await peer.pull("t", **{name: "1e3"})
        assert reply.code == ResponseCode.INVALID_PARAMETER, (name, reply.remark)
        assert reply.remark == f"field {name} of the PullMessage request cannot be read: '1e3' is no whole number"
    assert "bug" not in caplog.text


async def test_a_batch_is_read_by_the_lengths_in_it_and_not_by_the_size_it_says(broker: Broker, peer: Peer) -> None:
    wrong = struct.pack(">iiiii", 7, 0, 0, 0, 1) + b"x" + struct.pack(">h", 0)
    assert (await peer.send("t", b"first")).code == 0
    for fast in (True, False):
        broker.store.allow(fast=fast)
        assert (await peer.send("t", inner(b"y") + wrong, m="true")).code == 0, fast
    assert [message.body for message in decode_records((await peer.pull("t")).body)] == [b"first", *[b"y", b"x"] * 2]


async def test_of_a_batch_with_a_message_that_fits_no_log_file_nothing_is_stored(broker: Broker, peer: Peer) -> None:
    assert (await peer.send("t", b"first")).code == 0
    for fast in (True, False):
        broker.store.allow(fast=fast)
        refused = await peer.send("t", inner(b"one") + inner(bytes(1_200_000)), m="true")
        assert refused.code == ResponseCode.MESSAGE_ILLEGAL and "log file" in (refused.remark or ""), fast
        assert broker.store.bounds("t", 0) == (0, 1), fast


async def test_a_batch_whose_reply_nobody_could_read_is_refused(tmp_path: Path) -> None:
    broker = Broker(small(tmp_path, max_message_size=15 << 20, mapped_file_size_commit_log=32 << 20))
    await broker.start()
    peer = Peer(broker.address)
    assert (await peer.send("t", b"first")).code == 0
    for fast in (True, False):
        broker.store.allow(fast=fast)
        refused = await peer.send("t", inner(b"x") * (BATCH_MESSAGES_MAX + 1), m="true")
        assert refused.code == ResponseCode.MESSAGE_ILLEGAL and "262144 messages" in (refused.remark or ""), fast
        refused = await peer.send("t", inner(b"x"), m="true", properties="UNIQ_KEY\x01" + "U" * 32_760)
        assert refused.code == ResponseCode.MESSAGE_ILLEGAL and "32KB" in (refused.remark or ""), fast
    assert broker.store.bounds("t", 0) == (0, 1)
    await peer.pool.close()
    await broker.stop()


async def test_batch_queues(tmp_path: Path) -> None:
    broker = Broker(small(tmp_path))
    await broker.start()
    peer = Peer(broker.address)
    made = dict(readQueueNums=1, writeQueueNums=1, perm=6, order=False, defaultTopic="TBW102", topicSysFlag=0)
    kind = dict(topicFilterType="SINGLE_TAG", attributes="+queue.type=BatchCQ")
    assert (await peer.call(RequestCode.UPDATE_AND_CREATE_TOPIC, topic="batches", **made, **kind)).code == 0
    three = b"".join(inner(b"%d" % number) for number in range(3))
    reply = await peer.send("batches", three, m="true", properties="UNIQ_KEY\x01U\x02TAGS\x01TagA\x02")
    assert reply.code == 0 and reply.ext_fields["batchUniqId"] == "U" and reply.ext_fields["queueOffset"] == "0"
    assert (await peer.send("batches", b"single")).ext_fields["queueOffset"] == "3"
    assert (await peer.send("batches", three, m="true")).ext_fields["queueOffset"] == "4", (
        "without a key it is taken apart"
    )
    assert broker.store.counters()["puts"]["batches"][0] == 7, "messages, as where they are read"
    [whole, single, *apart] = decode_records((await peer.pull("batches", offset=1)).body)
    assert (whole.body, whole.sys_flag & 0xC0, single.body, len(apart)) == (three, 0xC0, b"single", 3)
    assert (whole.properties["INNER_NUM"], whole.properties["INNER_BASE"]) == ("3", "0")
    for wrong in ({"f": 0x80}, {"properties": "INNER_NUM\x013\x02"}):
        assert (await peer.send("plain", b"x", **wrong)).code == ResponseCode.MESSAGE_ILLEGAL
    claims = (b"INNER_NUM\x015\x02", b"INNER_BASE\x010\x02", b"INNER_NUM\x015\x02INNER_BASE\x010\x02")
    for topic in ("batches", "plain"):
        for claim in (*claims, b"INNER_MULTI_QUEUE_OFFSET\x015\x02"):
            refused = await peer.send(topic, inner(b"x") + inner(b"y", claim), m="true")
            assert refused.code == ResponseCode.MESSAGE_ILLEGAL and "INNER_" in (refused.remark or ""), (topic, claim)
    wrong = inner(b"x")[:3] + b"\x07" + inner(b"x")[4:]
    refused = await peer.send("batches", wrong, m="true", properties="UNIQ_KEY\x01V\x02")
    assert refused.code == ResponseCode.MESSAGE_ILLEGAL, "stored whole, it is counted by its sizes"
    value = inner(b"x", b"note\x01about INNER_NUM and INNER_BASE\x02")
    assert (await peer.send("plain", value, m="true")).code == 0
    await peer.pool.close()
    await broker.stop()
    again = Broker(small(tmp_path))
    await again.start()
    assert again.store.bounds("batches", 0) == (0, 7)
    assert again.store.store_time("batches", 0, 1) == again.store.store_time("batches", 0, 0) > 0
    await again.stop()
