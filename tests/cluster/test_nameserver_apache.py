"""Claim: asked the same, in the same order, our name server answers what Apache's answers: code, header fields, body.

Routes and cluster information are compared byte for byte, because some clients cut them apart by hand.
Not compared, as they differ on purpose: the wording of remarks; a request without a field it needs (we say which
one is missing); a setting nobody knows (we refuse it); the list of settings.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
import struct
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aerobee.nameserver.options import NameServerOptions
from aerobee.nameserver.server import NameServer
from aerobee.protocol import fastjson

pytestmark = pytest.mark.apache


def _apache() -> ModuleType:
    path = Path(__file__).parents[1] / "conformance" / "apache.py"
    spec = importlib.util.spec_from_file_location("conformance_apache", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Asker:
    """One connection that speaks frames made here, not by the code under test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def at(cls, address: str) -> Asker:
        host, _, port = address.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def ask(
        self, code: int, ext: dict[str, str] | None = None, body: bytes = b"", version: int = 513
    ) -> tuple[int, dict[str, str], bytes]:
        head = {"code": code, "language": "JAVA", "version": version, "opaque": 7, "flag": 0, "extFields": ext or {}}
        header = json.dumps(head).encode()
        self.writer.write(struct.pack(">iI", 4 + len(header) + len(body), len(header)) + header + body)
        size, marked = struct.unpack(">iI", await asyncio.wait_for(self.reader.readexactly(8), 10))
        rest = await self.reader.readexactly(size - 4)
        reply = json.loads(rest[: marked & 0xFFFFFF])
        assert reply["opaque"] == 7 and reply["flag"] & 1
        return reply["code"], reply.get("extFields") or {}, rest[marked & 0xFFFFFF :]


def topic(name: str, flag: int = 0, perm: int = 6, queues: int = 4) -> dict[str, Any]:
    return {
        "topicName": name, "readQueueNums": queues, "writeQueueNums": queues, "perm": perm,
        "topicFilterType": "SINGLE_TAG", "topicSysFlag": flag, "order": False, "attributes": {},
    }  # fmt: skip


def body(*topics: dict[str, Any], counter: int = 1, state: int = 0, servers: list[str] | None = None) -> bytes:
    wrapper = {
        "dataVersion": {"counter": counter, "stateVersion": state, "timestamp": 1700},
        "topicConfigTable": {config["topicName"]: config for config in topics},
    }
    return json.dumps({"topicConfigSerializeWrapper": wrapper, "filterServerList": servers or []}).encode()


def packed(*names: str, mappings: bool = True) -> bytes:
    def sized(data: str) -> bytes:
        return struct.pack(">i", len(data.encode())) + data.encode()

    parts = [sized('{"counter":5,"stateVersion":0,"timestamp":9}'), struct.pack(">i", len(names))]
    parts += [sized(f'{name} 3 3 6 SINGLE_TAG {{"+message.type":"NORMAL"}}') for name in names]
    parts.append(sized("[]"))
    if mappings:
        info = (
            '{"bname":"p","currIdMap":{0:1},"dirty":false,"epoch":2,"scope":"__global__","topic":"S1","totalQueues":1}'
        )
        parts += [struct.pack(">i", 1), sized(info)]
    return zlib.compress(b"".join(parts), 9)


def broker(name: str, number: int = 0, cluster: str = "c1", at: str | None = None, **more: str) -> dict[str, str]:
    address = at or f"10.0.{ord(name[-1])}.{number}:10911"
    return {
        "brokerName": name, "brokerAddr": address, "clusterName": cluster, "haServerAddr": f"{address[:-5]}10912",
        "brokerId": str(number), **more,
    }  # fmt: skip


T1, T2, UNIT, SUB, BOTH = topic("T1"), topic("T2", queues=8), topic("U", 1), topic("S", 2), topic("US", 3)
ZONES = {"__ZONE_MODE": "true", "__ZONE_NAME": "Z1"}
VERSION = b'{"counter":%d,"stateVersion":0,"timestamp":1700}'
QUEUES = b'{"queueDatas":[{"brokerName":"%s","perm":6,"readQueueNums":1,"writeQueueNums":1,"topicSysFlag":0}]}'

Step = tuple[int, dict[str, str], bytes, int]


def routes(*names: str) -> list[Step]:
    ask: list[Step] = []
    for name in names:
        ask += [(105, {"topic": name}, b"", 513), (105, {"topic": name}, b"", 317)]
    return ask


LISTS: list[Step] = [(code, {}, b"", 513) for code in (106, 206, 304, 311, 312, 313)] + [
    (224, {"cluster": "c1"}, b"", 513),
    (224, {"cluster": "nobody"}, b"", 513),
]

STORIES: dict[str, list[Step]] = {
    "empty": [*LISTS, *routes("T1"), (99, {}, b"", 513), (901, {"clusterName": "c", "brokerName": "b"}, b"", 513)],
    "registration": [
        (103, broker("a"), body(T1, T2, UNIT, SUB, BOTH), 513),
        *routes("T1", "U", "nothing"),
        *LISTS,
        (103, broker("a", 1), body(T1, T2), 513),
        *routes("T1"),
        (901, {"clusterName": "c1", "brokerName": "a"}, b"", 513),
        (105, {"topic": "T1", "acceptStandardJsonOnly": "true"}, b"", 100),
    ],
    "one topic first is refused": [
        (103, broker("a"), body(T1), 513),
        *routes("T1"),
        (103, broker("a"), body(T1, T2), 513),
        (103, broker("a"), body(topic("T3"), counter=2), 513),
        *routes("T1", "T3"),
    ],
    "unchanged version keeps what is there": [
        (103, broker("a"), body(T1, T2), 513),
        (205, {"brokerName": "a"}, b"", 513),
        *routes("T1"),
        (103, broker("a"), body(T1, T2), 513),
        *routes("T1"),
        (103, broker("a"), body(T1, T2, counter=2), 513),
        *routes("T1"),
        (205, {"brokerName": "a"}, b"", 513),
        (327, {"brokerName": "a"}, b"", 513),
        (205, {"brokerName": "nobody"}, b"", 513),
        *routes("T1"),
    ],
    "checksum": [
        (103, broker("a", bodyCrc32="1"), body(T1, T2), 513),
        (103, broker("a", bodyCrc32=str(zlib.crc32(body(T1, T2)) & 0x7FFFFFFF)), body(T1, T2), 513),
        *routes("T1"),
    ],
    "compressed": [
        (103, broker("p", compressed="true"), packed("P1", "S1"), 513),
        (103, broker("q", compressed="true"), packed("P1", "P2", mappings=False), 401),
        *routes("P1", "S1"),
        (322, broker("p"), b'{"counter":5,"stateVersion":0,"timestamp":9}', 513),
    ],
    "data version": [
        (322, broker("a"), VERSION % 1, 513),
        (103, broker("a"), body(T1, T2), 513),
        (322, broker("a"), VERSION % 1, 513),
        (322, broker("a"), VERSION % 2, 513),
        (904, broker("a"), b"", 513),
        (904, broker("nobody"), b"", 513),
    ],
    "replica becomes master": [
        (103, broker("a"), body(T1, T2), 513),
        (103, broker("a", 1), body(T1, T2), 513),
        (104, broker("a"), b"", 513),
        *routes("T1"),
        (103, broker("a", 0, at="10.0.97.1:10911"), body(T1, T2, counter=3), 513),
        *routes("T1"),
        (106, {}, b"", 513),
    ],
    "acting master": [
        (103, broker("a", enableActingMaster="true"), body(T1, T2), 513),
        (103, broker("a", 2, enableActingMaster="true"), body(T1, T2), 513),
        (103, broker("a", 1, enableActingMaster="true"), body(T1, T2), 513),
        *routes("T1"),
        (104, broker("a"), b"", 513),
        *routes("T1"),
        (103, broker("a", 1, enableActingMaster="true"), body(T1, T2, counter=7), 513),
        *routes("T1"),
        (103, broker("a", enableActingMaster="true"), body(T1, T2, counter=8), 513),
        *routes("T1"),
    ],
    "older state version is ignored": [
        (103, broker("a"), body(T1, T2, state=5), 513),
        (103, broker("a", 0, at="10.9.9.9:10911"), body(T1, T2, topic("T3"), state=4), 513),
        *routes("T1", "T3"),
        (103, broker("a", 0, at="10.9.9.9:10911"), body(T1, T2, topic("T3"), state=6), 513),
        *routes("T1", "T3"),
    ],
    "zones": [
        (103, broker("a", __ZONE_NAME="z1"), body(T1, T2), 513),
        (103, broker("b", __ZONE_NAME="z2"), body(T1, T2), 513),
        *routes("T1"),
        (105, {"topic": "T1", **ZONES}, b"", 317),
        (105, {"topic": "T1", **ZONES, "__ZONE_NAME": " "}, b"", 317),
    ],
    "filter servers": [(103, broker("a"), body(T1, T2, servers=["10.0.0.9:1"]), 513), *routes("T1")],
    "topics by hand": [
        (103, broker("a"), body(T1, T2), 513),
        (103, broker("b", cluster="c2"), body(T1, T2), 513),
        (217, {"topic": "T9"}, QUEUES % b"a", 513),
        (217, {"topic": "T9"}, QUEUES % b"b", 513),
        (217, {"topic": "T8"}, QUEUES % b"nobody", 513),
        (217, {"topic": "T7"}, b"", 513),
        *routes("T9", "T8"),
        (216, {"topic": "T9", "clusterName": "nobody"}, b"", 513),
        (216, {"topic": "T9", "clusterName": "c2"}, b"", 513),
        *routes("T9"),
        (216, {"topic": "T9"}, b"", 513),
        (216, {"topic": "T9"}, b"", 513),
        *LISTS,
        (104, broker("b", cluster="c2"), b"", 513),
        *LISTS,
        *routes("T1"),
    ],
    "key-value configuration": [
        (219, {"namespace": "ORDER_TOPIC_CONFIG"}, b"", 513),
        (100, {"namespace": "ORDER_TOPIC_CONFIG", "key": "T1", "value": "a:4;b:4"}, b"", 513),
        (103, broker("a"), body(T1, T2), 513),
        *routes("T1", "T2"),
        (101, {"namespace": "ORDER_TOPIC_CONFIG", "key": "T1"}, b"", 513),
        (101, {"namespace": "ORDER_TOPIC_CONFIG", "key": "no"}, b"", 513),
        (219, {"namespace": "ORDER_TOPIC_CONFIG"}, b"", 513),
        (102, {"namespace": "ORDER_TOPIC_CONFIG", "key": "T1"}, b"", 513),
        (102, {"namespace": "nothing", "key": "T1"}, b"", 513),
        (219, {"namespace": "ORDER_TOPIC_CONFIG"}, b"", 513),
        *routes("T1"),
    ],
    "settings": [
        (318, {}, b"kvConfigPath=/tmp/x\n", 513),
        (318, {}, b"rocketmqHome=/tmp/x\n", 513),
        (318, {}, b"configStorePath=/tmp/x\norderMessageEnable=false\n", 513),
        (318, {}, b"orderMessageEnable=true\n", 513),
        (318, {}, b"", 513),
    ],
}


@pytest.fixture(scope="module")
def apache_address(tmp_path_factory: pytest.TempPathFactory) -> Any:
    apache = _apache()
    reason = apache.unavailable()
    if reason:
        pytest.skip(reason)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    options = {"orderMessageEnable": "true", "supportActingMaster": "true"}
    process = apache.start_namesrv(tmp_path_factory.mktemp("namesrv"), port, options)
    yield f"127.0.0.1:{port}"
    process.kill()


@pytest.fixture
async def our_address(tmp_path: Path) -> AsyncIterator[str]:
    options = NameServerOptions(
        listen_port=0,
        kv_config_path=str(tmp_path / "kvConfig.json"),
        order_message_enable=True,
        support_acting_master=True,
    )
    server = NameServer(options)
    await server.start()
    yield server.address
    await server.stop()


def comparable(reply: bytes) -> Any:
    """Lists in Java come in the order of a hash table, so order does not count; everything else does."""

    def unordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: unordered(item) for key, item in value.items()}
        if isinstance(value, list):
            return sorted((unordered(item) for item in value), key=repr)
        return value

    return unordered(fastjson.loads(reply)) if reply else None


async def cleared(asker: Asker, story: list[Step]) -> None:
    """Apache's server is shared by the stories: take the brokers off, and the key-value configuration."""
    for code, ext, _, _ in story:
        if code == 103:
            await asker.ask(104, ext)
    for _ in range(250):
        if b'"brokerAddrTable":{}' in (await asker.ask(106))[2]:
            break
        await asyncio.sleep(0.02)
    for name in fastjson.loads((await asker.ask(206))[2])["topicList"]:
        await asker.ask(216, {"topic": name})


@pytest.mark.parametrize("story", STORIES)
async def test_same_answers(story: str, apache_address: str, our_address: str) -> None:
    theirs, ours = await Asker.at(apache_address), await Asker.at(our_address)
    for number, (code, ext, data, version) in enumerate(STORIES[story]):
        wanted = await theirs.ask(code, ext, data, version)
        if code == 104:
            await asyncio.sleep(0.2)  # sleeps: Apache's server takes brokers off in the background
        got = await ours.ask(code, ext, data, version)
        step = f"step {number}: {code} {ext}"
        assert got[:2] == wanted[:2], step
        assert comparable(got[2]) == comparable(wanted[2]), step
        if code in (105, 106) and comparable(wanted[2]) == fastjson.loads(wanted[2] or b"null"):
            assert len(got[2]) == len(wanted[2]), f"{step}: {got[2]!r} is not spelled as {wanted[2]!r}"
    await cleared(theirs, STORIES[story])


async def test_a_broken_connection_takes_its_broker_along(apache_address: str, our_address: str) -> None:
    for address in (apache_address, our_address):
        asker, registering = await Asker.at(address), await Asker.at(address)
        assert (await registering.ask(103, broker("gone"), body(T1, T2)))[0] == 0
        assert (await asker.ask(105, {"topic": "T1"}))[0] == 0
        registering.writer.transport.abort()
        for _ in range(250):
            code, _, _ = await asker.ask(105, {"topic": "T1"})
            if code == 17:
                break
            await asyncio.sleep(0.02)
        assert code == 17
