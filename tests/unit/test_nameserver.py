"""The name server by itself: who leaves when, what survives a restart, what is refused. Answers are compared with
Apache's in `tests/cluster/test_nameserver_apache.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aerobee.clock import ManualClock
from aerobee.nameserver.dispatch import HANDLERS
from aerobee.nameserver.options import NameServerOptions
from aerobee.nameserver.server import NameServer
from aerobee.net.connection import Connection
from aerobee.net.listener import Listener
from aerobee.net.remote import RemotePool
from aerobee.options import OptionsError
from aerobee.protocol.bodies.route import ClusterInfo, TopicQueueMappingInfo, TopicRouteData
from aerobee.protocol.bodies.topics import (
    DataVersion,
    RegisterBrokerBody,
    TopicConfig,
    TopicConfigAndMappingSerializeWrapper,
)
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import FrameDecoder, RemotingCommand
from aerobee.protocol.headers.route import (
    DeleteKVConfig,
    DeleteTopicFromNamesrv,
    GetKVConfig,
    GetRouteInfo,
    PutKVConfig,
    RegisterBroker,
    UnRegisterBroker,
)
from aerobee.testing.eventually import eventually


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class House:
    """A name server with a clock that stands still, and ways to talk to it."""

    def __init__(self, directory: Path) -> None:
        self.kv_file = directory / "kv" / "kvConfig.json"
        self.properties = directory / "namesrv.properties"
        self.clock = ManualClock()
        self.pool = RemotePool()
        self.others: list[RemotePool] = []
        self.server = self.make()

    def make(self, **settings: bool | int | str) -> NameServer:
        paths = {"kv_config_path": str(self.kv_file), "config_store_path": str(self.properties)}
        return NameServer(NameServerOptions(**{"listen_port": 0, **paths, **settings}), self.clock)

    async def restart(self, **settings: bool | int | str) -> None:
        await self.server.stop()
        self.server = self.make(**settings)
        await self.server.start()

    async def ask(self, command: RemotingCommand, pool: RemotePool | None = None) -> RemotingCommand:
        return await (pool or self.pool).invoke(self.server.address, command, 5)

    def another(self) -> RemotePool:
        """Another process, as far as the server can see."""
        self.others.append(RemotePool())
        return self.others[-1]

    async def register(
        self,
        number: int = 0,
        pool: RemotePool | None = None,
        *,
        address: str | None = None,
        timeout_ms: int | None = None,
        acting: bool | None = None,
        counter: int = 1,
        topics: tuple[str, ...] = ("T1", "T2"),
        name: str = "a",
        cluster: str = "c",
        mapped: dict[str, int] | None = None,
        **more: str,
    ) -> RemotingCommand:
        """`mapped`: static topic → epoch of its mapping."""
        header = RegisterBroker(
            broker_name=name,
            broker_addr=address or f"10.0.0.{number}:10911",
            cluster_name=cluster,
            broker_id=number,
            ha_server_addr=f"10.0.0.{number}:10912",
            heartbeat_timeout_millis=timeout_ms,
            enable_acting_master=acting,
        )
        wrapper = TopicConfigAndMappingSerializeWrapper(
            topic_config_table={name: TopicConfig(topic_name=name) for name in topics},
            data_version=DataVersion(timestamp=1, counter=counter),
            topic_queue_mapping_info_map={
                topic: TopicQueueMappingInfo(topic=topic, bname=name, total_queues=1, epoch=epoch, curr_id_map={0: 0})
                for topic, epoch in (mapped or {}).items()
            },
        )
        data = RegisterBrokerBody(topic_config_serialize_wrapper=wrapper).encode()
        command = RemotingCommand.request(RequestCode.REGISTER_BROKER, header, data)
        command.ext_fields.update(more)
        return await self.ask(command, pool)

    async def route(self, topic: str = "T1", version: int = 513) -> TopicRouteData | None:
        command = RemotingCommand.request(RequestCode.GET_ROUTEINFO_BY_TOPIC, GetRouteInfo(topic=topic))
        command.version = version
        reply = await self.ask(command)
        if reply.code == ResponseCode.TOPIC_NOT_EXIST:
            return None
        assert reply.code == ResponseCode.SUCCESS
        return TopicRouteData.from_json(reply.body)

    async def brokers_of(self, topic: str) -> tuple[dict[str, dict[int, str]], list[str]]:
        """As the topic's route has them: broker set → id → address, and the sets that have queues of it."""
        data = await self.route(topic)
        assert data is not None
        addresses = {broker.broker_name: broker.broker_addrs for broker in data.broker_datas}
        return addresses, [queues.broker_name for queues in data.queue_datas]

    async def clusters(self) -> dict[str, dict[str, dict[int, str]]]:
        """Cluster → broker set → id → address; each set says that it is in (one of) the clusters that list it."""
        reply = await self.ask(RemotingCommand.request(RequestCode.GET_BROKER_CLUSTER_INFO))
        info = ClusterInfo.from_json(reply.body)
        sets = info.broker_addr_table
        assert all(name in info.cluster_addr_table[data.cluster] for name, data in sets.items())
        return {
            cluster: {name: sets[name].broker_addrs for name in names}
            for cluster, names in info.cluster_addr_table.items()
        }

    async def put(self, key: str, value: str) -> RemotingCommand:
        header = PutKVConfig(namespace="n", key=key, value=value)
        return await self.ask(RemotingCommand.request(RequestCode.PUT_KV_CONFIG, header))

    async def get(self, key: str) -> str | None:
        header = GetKVConfig(namespace="n", key=key)
        return (await self.ask(RemotingCommand.request(RequestCode.GET_KV_CONFIG, header))).ext_fields.get("value")

    async def change(self, text: str) -> RemotingCommand:
        return await self.ask(RemotingCommand.request(RequestCode.UPDATE_NAMESRV_CONFIG, body=text.encode()))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    await made.server.start()
    yield made
    for pool in (made.pool, *made.others):
        await pool.close()
    await made.server.stop()


async def test_a_silent_broker_leaves_after_120_seconds(house: House) -> None:
    await house.register()
    await house.clock.advance(119)
    assert await house.route() is not None
    await house.register()
    await house.clock.advance(119)
    assert await house.route() is not None
    await house.clock.advance(10)
    await eventually(house_has_no_route(house))
    assert house.server.counters["closed: broker expired"] == 1


def house_has_no_route(house: House):  # type: ignore[no-untyped-def]
    async def check() -> bool:
        return await house.route() is None

    return check


async def test_a_broker_says_how_long_its_silence_may_last(house: House) -> None:
    await house.register(timeout_ms=1000)
    await house.clock.advance(10)
    await eventually(house_has_no_route(house))


async def test_a_broken_connection_takes_its_broker_along_at_once(house: House) -> None:
    broker = house.another()
    await house.register(0, broker)
    assert await house.route() is not None
    await broker.close()
    await eventually(house_has_no_route(house))


async def test_a_broker_that_came_back_stays_when_its_old_connection_ends(house: House) -> None:
    old, new = house.another(), house.another()
    await house.register(0, old)
    await house.register(0, new)
    await old.close()
    await eventually(lambda: house.server.counters.get("closed: peer closed"))
    assert await house.route() is not None


async def test_a_broker_that_comes_back_under_another_name_has_left_the_former(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Its host lost power, so the name server still sees the old connection: each queue would be routed twice."""
    dead = house.another()
    await house.register(0, dead, name="old")
    await house.register(0, name="new", topics=("T1", "T3"))
    assert await house.brokers_of("T1") == ({"new": {0: "10.0.0.0:10911"}}, ["new"])
    assert await house.route("T2") is None, "only the former name had it"
    assert [line for line in caplog.messages if "no longer" in line] == [
        "the broker at 10.0.0.0:10911 is new of cluster c now, no longer old of cluster c"
    ]
    header = UnRegisterBroker(broker_name="old", broker_addr="10.0.0.0:10911", cluster_name="c", broker_id=0)
    await house.ask(RemotingCommand.request(RequestCode.UNREGISTER_BROKER, header))
    await dead.close()
    await eventually(lambda: house.server.counters.get("closed: peer closed"))
    assert await house.brokers_of("T1") == ({"new": {0: "10.0.0.0:10911"}}, ["new"])
    await house.clock.advance(130)
    await eventually(house_has_no_route(house))


async def test_a_broker_that_moves_to_another_cluster_leaves_with_its_last_connection(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """The new process is there before the old one leaves; a set that remembers its first cluster would never go."""
    old, new = house.another(), house.another()
    await house.register(0, old)
    await house.register(0, new, address="10.0.0.9:10911", cluster="d")
    header = UnRegisterBroker(broker_name="a", broker_addr="10.0.0.0:10911", cluster_name="c", broker_id=0)
    await house.ask(RemotingCommand.request(RequestCode.UNREGISTER_BROKER, header), old)
    await old.close()
    assert await house.clusters() == {"d": {"a": {0: "10.0.0.9:10911"}}}
    await new.close()
    await eventually(house_has_no_route(house))
    assert await house.clusters() == {}
    assert not warnings_in(caplog)


async def test_a_broker_that_comes_back_in_another_cluster_at_its_address_stays(house: House) -> None:
    dead = house.another()
    await house.register(0, dead)
    await house.register(0, cluster="d")
    assert await house.clusters() == {"d": {"a": {0: "10.0.0.0:10911"}}}
    await dead.close()
    await eventually(lambda: house.server.counters.get("closed: peer closed"))
    assert await house.clusters() == {"d": {"a": {0: "10.0.0.0:10911"}}}


async def test_members_of_two_clusters_under_one_name_leave_one_by_one(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = house.another(), house.another()
    await house.register(0, one)
    await house.register(1, two, cluster="d")
    await house.register(1, two, cluster="d")
    [warning] = warnings_in(caplog)
    assert "a of cluster d registers under a name that cluster c uses" in warning
    assert (await house.clusters())["c"] == {"a": {0: "10.0.0.0:10911", 1: "10.0.0.1:10911"}}
    await one.close()

    async def only_the_other() -> bool:
        return await house.clusters() == {"d": {"a": {1: "10.0.0.1:10911"}}}

    await eventually(only_the_other)
    await two.close()
    await eventually(house_has_no_route(house))
    assert await house.clusters() == {}


async def test_two_brokers_of_one_name_and_id_are_named(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """As two hosts with one configuration: they take each other out of the routes."""
    one, two = house.another(), house.another()
    await house.register(0, one)
    for _ in range(3):
        await house.register(0, two, address="10.0.0.7:10911")
        await house.register(0, one)
    [warning] = warnings_in(caplog)
    assert "two brokers are called a with id 0, at 10.0.0.0:10911 and at 10.0.0.7:10911" in warning


@pytest.mark.parametrize("how", ["its connection ended", "it died without a word", "it was elected"])
async def test_a_broker_that_only_moved_is_no_second_one(
    house: House, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = house.another(), house.another()
    await house.register(0, one)
    if how == "its connection ended":
        await one.close()
        await eventually(house_has_no_route(house))
    if how == "it was elected":
        await house.register(1, two, address="10.0.0.7:10911")
    for _ in range(2):
        await house.register(0, two, address="10.0.0.7:10911")
    assert await house.brokers_of("T1") == ({"a": {0: "10.0.0.7:10911"}}, ["a"])
    if how == "it was elected":
        await house.register(1, one, address="10.0.0.0:10911")
    assert not warnings_in(caplog)


async def test_several_brokers_on_one_connection_leave_together(house: House) -> None:
    shared = house.another()
    await house.register(0, shared)
    await house.register(1, shared)
    await shared.close()
    await eventually(house_has_no_route(house))


async def test_a_route_that_was_answered_before_follows_every_change(house: House) -> None:
    """Answers are kept; a kept one must never outlive what it says."""
    await house.register()
    first = await house.route()
    assert first is not None and first.broker_datas[0].broker_addrs == {0: "10.0.0.0:10911"}
    await house.register(1)
    second = await house.route()
    assert second is not None and second.broker_datas[0].broker_addrs == {0: "10.0.0.0:10911", 1: "10.0.0.1:10911"}
    await house.register(0, address="10.0.0.7:10911")
    third = await house.route()
    assert third is not None and third.broker_datas[0].broker_addrs[0] == "10.0.0.7:10911"
    await house.register(0, address="10.0.0.7:10911", counter=2, topics=("T1", "T2", "T3"))
    assert await house.route("T3") is not None
    assert await house.change("deleteTopicWithBrokerRegistration=true") is not None
    await house.register(0, address="10.0.0.7:10911", counter=3, topics=("T2", "T3"))
    assert await house.route("T1") is None


async def test_a_registration_of_what_changed_drops_nothing_else(house: House) -> None:
    """A broker announces a new topic alone, and says that it does."""
    await house.restart(delete_topic_with_broker_registration=True)
    await house.register(topics=("T1", "T2", "T3"))
    await house.register(counter=2, topics=("T4",), changedTopicsOnly="true")
    assert [topic for topic in ("T1", "T2", "T3", "T4") if await house.route(topic)] == ["T1", "T2", "T3", "T4"]
    await house.register(counter=3, topics=("T2", "T4"))
    assert [topic for topic in ("T1", "T2", "T3", "T4") if await house.route(topic)] == ["T2", "T4"]


async def test_a_mapping_is_taken_when_it_is_another_whatever_the_version(house: House) -> None:
    """A registration of something else may have brought the version; a deleted topic comes back with the broker's next
    registration, and clients that saw it without its mapping would take its queues for those of an ordinary one."""

    async def epoch() -> int | None:
        data = await house.route("T1")
        mapped = data.topic_queue_mapping_by_broker if data is not None else None
        return mapped["a"].epoch if mapped else None

    await house.register(mapped={"T1": 1})
    assert await epoch() == 1
    await house.register(counter=2, topics=("T3",), changedTopicsOnly="true")
    await house.register(counter=2, mapped={"T1": 2})
    assert await epoch() == 2
    header = DeleteTopicFromNamesrv(topic="T1")
    await house.ask(RemotingCommand.request(RequestCode.DELETE_TOPIC_IN_NAMESRV, header))
    assert await house.route("T1") is None
    await house.register(counter=2, mapped={"T1": 2})
    assert await epoch() == 2


async def test_who_asks_through_a_listener_gets_the_address_for_it(house: House) -> None:
    """Clients inside and outside are each told an address they can reach; brokers that say nothing have only one."""
    await house.restart(listeners="outside://127.0.0.1:0;other://127.0.0.1:0")
    await house.register(
        0, topics=("T", "U"), advertisedListeners="main://10.0.0.0:10911;outside://mq.example.com:30911"
    )

    async def seen(listener: str) -> list[str]:
        address = house.server.listeners[listener].address
        command = RemotingCommand.request(RequestCode.GET_ROUTEINFO_BY_TOPIC, GetRouteInfo(topic="T"))
        route = TopicRouteData.from_json((await house.pool.invoke(address, command, 5)).body)
        command = RemotingCommand.request(RequestCode.GET_BROKER_CLUSTER_INFO)
        cluster = ClusterInfo.from_json((await house.pool.invoke(address, command, 5)).body)
        return [route.broker_datas[0].broker_addrs[0], cluster.broker_addr_table["a"].broker_addrs[0]]

    assert await seen("main") == await seen("other") == ["10.0.0.0:10911"] * 2
    assert await seen("outside") == ["mq.example.com:30911"] * 2
    await house.register(0, topics=("T", "U"), advertisedListeners="other://10.9.9.9:1")
    assert await seen("outside") == ["10.0.0.0:10911"] * 2
    assert await seen("other") == ["10.9.9.9:1"] * 2
    assert (await house.register(0, advertisedListeners="nonsense")).code == ResponseCode.SYSTEM_ERROR


async def test_after_a_restart_one_registration_brings_everything_back(house: House) -> None:
    await house.register()
    before = await house.route()
    await house.restart()
    assert await house.route() is None
    await house.register()
    assert await house.route() == before


async def test_kv_survives_a_restart_in_apaches_file(house: House) -> None:
    assert (await house.put("k", "v")).code == ResponseCode.SUCCESS
    assert (await house.put("öl", "☃")).code == ResponseCode.SUCCESS
    assert json.loads(house.kv_file.read_text()) == {"configTable": {"n": {"k": "v", "öl": "☃"}}}
    await house.restart()
    assert (await house.get("k"), await house.get("öl")) == ("v", "☃")
    header = DeleteKVConfig(namespace="n", key="k")
    await house.ask(RemotingCommand.request(RequestCode.DELETE_KV_CONFIG, header))
    await house.restart()
    assert (await house.get("k"), await house.get("öl")) == (None, "☃")


async def test_concurrent_kv_changes_lose_none(house: House) -> None:
    await asyncio.gather(*(house.put(f"k{n}", str(n)) for n in range(30)))
    await house.restart()
    assert [await house.get(f"k{n}") for n in range(30)] == [str(n) for n in range(30)]


async def test_a_kv_file_that_cannot_be_written_refuses_the_change(house: House) -> None:
    house.kv_file.parent.write_text("a file where the directory should be")
    reply = await house.put("k", "v")
    assert reply.code == ResponseCode.SYSTEM_ERROR and reply.remark
    assert await house.get("k") is None


async def test_a_kv_file_that_cannot_be_written_is_said_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: one that was named keeps the name server from starting, one that nobody asked for does not.
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    named = tmp_path / "not" / "yet" / "there" / "kv.json"
    with pytest.raises(PermissionError) as refused:
        await NameServer(NameServerOptions(listen_port=0, kv_config_path=str(named))).start()
    assert refused.value.filename == str(tmp_path)
    assert not os.listdir(tmp_path)
    server = NameServer(NameServerOptions(listen_port=0))
    await server.start()
    await server.stop()
    assert f"{tmp_path} cannot be written" in caplog.text
    with pytest.raises(OptionsError, match="kvConfigPath must not be empty"):
        NameServerOptions(kv_config_path="")


@pytest.mark.parametrize("content", ["{", '{"configTable": 3}', "\x00\x01"])
async def test_a_damaged_kv_file_is_set_aside(house: House, content: str, caplog: pytest.LogCaptureFixture) -> None:
    await house.server.stop()
    house.kv_file.parent.mkdir()
    house.kv_file.write_text(content)
    house.server = house.make()
    await house.server.start()
    assert house.kv_file.with_name("kvConfig.json.damaged").read_text() == content
    assert "is damaged" in caplog.text
    assert (await house.put("k", "v")).code == ResponseCode.SUCCESS


@pytest.mark.parametrize(
    "text",
    [
        "kvConfigPath=/etc/passwd",
        "configStorePath=/etc/cron.d/x",
        "rocketmqHome=/tmp",
        "configBlackList=",
        "bindAddress=0.0.0.0",
        "listenPort=1",
        "supportActingMaster=true\nkvConfigPath=/tmp/x",
        "kvConfigPath\\u0020=x",
    ],
)
async def test_nothing_that_names_a_path_changes_over_the_wire(house: House, text: str) -> None:
    """CVE-2023-37582: a remote caller must not choose where files are written."""
    reply = await house.change(text)
    assert reply.code in (ResponseCode.NO_PERMISSION, ResponseCode.SYSTEM_ERROR)
    assert house.server.options.kv_config_path == str(house.kv_file)
    assert not house.server.options.support_acting_master, "all or nothing"
    assert not house.properties.exists()


async def test_every_setting_that_holds_text_is_refused_remotely(house: House) -> None:
    for row in NameServerOptions.ROWS.values():
        assert not (row.kind is str and row.remote), f"{row.name}: free text must not be changed over the wire"


async def test_settings_change_live_and_are_kept(house: House) -> None:
    assert (await house.change("enableAllTopicList=false\n")).code == ResponseCode.SUCCESS
    reply = await house.ask(RemotingCommand.request(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER))
    assert reply.code == ResponseCode.SYSTEM_ERROR and reply.remark == "disable"
    assert "enableAllTopicList=false" in house.properties.read_text()
    listed = await house.ask(RemotingCommand.request(RequestCode.GET_NAMESRV_CONFIG))
    assert "enableAllTopicList=false" in listed.body.decode().splitlines()


async def test_a_change_that_no_file_keeps_is_not_passed_off_as_kept(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await house.restart(config_store_path="")
    told = await house.change("enableAllTopicList=false")
    lost = "until the next start only: no file was given at the start (-c) to keep it in"
    assert (told.code, told.remark) == (ResponseCode.SUCCESS, f"changed {lost}") and lost in caplog.text
    assert not house.server.options.enable_all_topic_list

    file = tmp_path / "gone" / "namesrv.properties"
    await house.restart(config_store_path=str(file))
    told = await house.change("enableAllTopicList=false")
    assert told.code == ResponseCode.SUCCESS and not house.server.options.enable_all_topic_list
    assert told.remark == f"changed until the next start only: {file} could not be written (No such file or directory)"
    file.parent.mkdir()
    assert (await house.change("enableAllTopicList=true")).remark is None
    assert file.read_text() == "enableAllTopicList=true\n"


async def test_an_unknown_setting_is_named(house: House) -> None:
    reply = await house.change("orderMesageEnable=true")
    assert reply.code == ResponseCode.SYSTEM_ERROR
    assert "orderMessageEnable" in (reply.remark or "")


async def test_the_operators_black_list_counts_too(house: House) -> None:
    await house.restart(config_black_list="orderMessageEnable;enableTopicList")
    assert (await house.change("enableTopicList=false")).code == ResponseCode.NO_PERMISSION
    assert (await house.change("enableAllTopicList=false")).code == ResponseCode.SUCCESS


async def test_brokers_are_told_who_has_the_smallest_id(house: House) -> None:
    await house.restart(notify_min_broker_id_changed=True)
    told: list[RemotingCommand] = []

    class Replica:
        def connected(self, connection: Connection) -> None:
            connection.state = FrameDecoder()

        def received(self, connection: Connection, data: memoryview) -> None:
            told.extend(connection.state.feed(data))

        def disconnected(self, connection: Connection) -> None: ...

    listener = Listener()
    await listener.start(Replica(), "127.0.0.1", 0)
    await house.register(0, acting=True)
    await house.register(2, address=listener.address, acting=True)
    header = UnRegisterBroker(broker_name="a", broker_addr="10.0.0.0:10911", cluster_name="c", broker_id=0)
    await house.ask(RemotingCommand.request(RequestCode.UNREGISTER_BROKER, header))
    await eventually(lambda: told)
    assert told[0].code == RequestCode.NOTIFY_MIN_BROKER_ID_CHANGE and told[0].is_oneway
    assert told[0].ext_fields["minBrokerId"] == "2"
    assert told[0].ext_fields["offlineBrokerAddr"] == "10.0.0.0:10911"
    await listener.stop()


@pytest.mark.parametrize("code", sorted(HANDLERS))
async def test_rubbish_in_header_and_body_gets_an_answer(house: House, code: int) -> None:
    """Every code answers every nonsense, and the connection goes on."""
    await house.register()
    for fields in (
        {},
        {"topic": "", "brokerId": "x", "namespace": "\x00"},
        {"brokerId": str(2**70), "compressed": "true"},
    ):
        for body in (b"", b"{", b"\x00\xff" * 50, b"[]", b'{"topicConfigSerializeWrapper":7}', b"null"):
            command = RemotingCommand(code, ext_fields=dict(fields), body=body)
            reply = await house.ask(command)
            assert reply.is_response
    assert len(house.server.listeners["main"].connections) == 1


async def test_oneway_requests_are_served_and_not_answered(house: House) -> None:
    await house.register()
    header = UnRegisterBroker(broker_name="a", broker_addr="10.0.0.0:10911", cluster_name="c", broker_id=0)
    command = RemotingCommand.request(RequestCode.UNREGISTER_BROKER, header, oneway=True)
    await house.pool.oneway(house.server.address, command)
    await eventually(house_has_no_route(house))


async def test_stop_answers_what_was_accepted(house: House) -> None:
    await house.put("first", "v")
    puts = [asyncio.create_task(house.put(f"k{n}", "v")) for n in range(5)]
    await eventually(lambda: len(house.server._dispatch._waiting) == 5, interval_s=0)
    await house.server.stop()
    assert [reply.code for reply in await asyncio.gather(*puts)] == [0] * 5
    house.server = house.make()
    await house.server.start()
