"""Broken, foreign and hostile peers, against both servers: they cost themselves a connection and others nothing."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from aerobee.broker import dispatch, request_reply
from aerobee.broker.options import BrokerOptions
from aerobee.broker.server import Broker
from aerobee.nameserver.options import NameServerOptions
from aerobee.nameserver.server import NameServer
from aerobee.net.connection import Connection
from aerobee.net.remote import RemotePool
from aerobee.protocol.bodies.admin import KVTable
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import FLAG_RESPONSE, FrameDecoder, RemotingCommand
from aerobee.testing.eventually import eventually

Server = Broker | NameServer


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    made = Broker(
        BrokerOptions(
            broker_name="a",
            store_path_root_dir=str(tmp_path / "store"),
            listen_port=0,
            mapped_file_size_commit_log=16 << 20,
            mapped_file_size_consume_queue=20_000,
            max_hash_slot_num=1000,
            max_index_num=4000,
        )
    )
    await made.start()
    yield made
    await made.stop()


def make(kind: str, tmp_path: Path, **values: Any) -> Server:
    """A broker or a name server that is to be started."""
    if kind == "name server":
        return NameServer(NameServerOptions(listen_port=0, kv_config_path=str(tmp_path / "kvConfig.json"), **values))
    return Broker(
        BrokerOptions(
            broker_name="a",
            store_path_root_dir=str(tmp_path / "store"),
            listen_port=0,
            mapped_file_size_commit_log=1 << 20,
            mapped_file_size_consume_queue=20_000,
            max_hash_slot_num=1000,
            max_index_num=4000,
            **values,
        )
    )


KINDS = ["broker", "name server"]


@pytest.fixture(params=KINDS)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    made = make(request.param, tmp_path)
    await made.start()
    yield made
    await made.stop()


def place(server: Server) -> tuple[str, int]:
    host, _, port = server.address.rpartition(":")
    return host, int(port)


async def healthy(server: Server) -> None:
    """A well-behaved client is answered at once."""
    pool = RemotePool()
    code = RequestCode.GET_BROKER_RUNTIME_INFO if isinstance(server, Broker) else RequestCode.GET_BROKER_CLUSTER_INFO
    began = time.monotonic()
    reply = await pool.invoke(server.address, RemotingCommand.request(code), 10)
    assert reply.code == 0 and time.monotonic() - began < 2
    await pool.close()


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def request(code: int, body: bytes = b"", *, oneway: bool = False, opaque: int = 1, **fields: object) -> bytes:
    command = RemotingCommand.request(code, body=body, oneway=oneway)
    command.opaque = opaque
    command.ext_fields.update({name: str(value) for name, value in fields.items()})
    return command.encode()


def send(topic: str, body: bytes, *, oneway: bool = False, opaque: int = 1) -> bytes:
    letters = dict(a="p", b=topic, c="TBW102", d=4, e=0, f=0, g=1, h=0, i="", j=0)
    return request(RequestCode.SEND_MESSAGE_V2, body, oneway=oneway, opaque=opaque, **letters)


def pull(topic: str, opaque: int = 1, **values: object) -> bytes:
    fields = dict(
        consumerGroup="g", topic=topic, queueId=0, queueOffset=0, maxMsgNums=32, sysFlag=4, commitOffset=0,
        suspendTimeoutMillis=0, subscription="*", subVersion=0, expressionType="TAG",
    )  # fmt: skip
    return request(RequestCode.PULL_MESSAGE, opaque=opaque, **{**fields, **values})


GARBAGE = {
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "a frame over 16 MiB": struct.pack(">II", (16 << 20) + 1, 100),
    "a frame of 4 GiB": b"\xff" * 8,
    "a frame of no bytes": struct.pack(">II", 0, 0),
    "a header longer than its frame": struct.pack(">II", 20, 100) + bytes(16),
    "an unknown encoding": struct.pack(">II", 20, (7 << 24) | 16) + bytes(16),
    "a header that is no JSON": struct.pack(">II", 20, 16) + b"x" * 16,
    "a header of deep JSON": struct.pack(">II", 60_004, 60_000) + b'{"extFields":' + b"[" * 59_987,
}


async def test_who_sends_much_and_hangs_up_has_all_of_it_stored_and_answered(broker: Broker) -> None:
    # Claim: what comes faster than it is handled is taken in the order it came, in few writes, up to the last byte
    # before the end of the connection; a request of another kind in the middle is served too.
    await broker.topics.create_for_group("orders", 4)
    count = 3000
    sends = [send("orders", b"%05d" % number + bytes(995), opaque=number) for number in range(count)]
    sends.insert(count // 2, request(RequestCode.GET_BROKER_RUNTIME_INFO, opaque=count))
    commits = broker.store.engine.stats()["commits"]
    reader, writer = await asyncio.open_connection(*place(broker))
    writer.write(b"".join(sends))
    writer.write_eof()
    decoder, replies = FrameDecoder(), list[RemotingCommand]()
    async with asyncio.timeout(20):
        while data := await reader.read(1 << 20):
            replies += decoder.feed(data)
    writer.close()
    assert len(replies) == count + 1 and {reply.code for reply in replies} == {0}
    stored = {reply.opaque: int(reply.ext_fields["queueOffset"]) for reply in replies if reply.opaque < count}
    assert stored == {number: number for number in range(count)}
    assert broker.store.engine.stats()["commits"] - commits < count / 10


@pytest.mark.parametrize("kind", GARBAGE)
async def test_what_is_no_protocol_ends_that_connection(
    server: Server, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Claim: foreign bytes are answered by the end of the connection and one line in the log, without a trace of ours.
    reader, writer = await asyncio.open_connection(*place(server))
    writer.write(GARBAGE[kind])
    async with asyncio.timeout(5):
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass
    writer.close()
    await healthy(server)
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


async def test_a_kind_of_garbage_is_one_line_and_one_counter(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    # Claim: whoever varies what he sends fills neither the log nor the table of counters; an operator sees how often.
    for size in range(17 << 20, (17 << 20) + 20):
        reader, writer = await asyncio.open_connection(*place(server))
        writer.write(struct.pack(">II", size, 100))
        assert await reader.read() == b""
        writer.close()
    closed = {name: count for name, count in server.counters.items() if name.startswith("closed: ")}
    assert closed.pop("closed: frame_too_large") == 20
    assert set(closed) <= {"closed: peer closed", "closed: connection reset"}
    assert len([record for record in caplog.records if "frame_too_large" in record.getMessage()]) == 1
    if isinstance(server, Broker):
        pool = RemotePool()
        reply = await pool.invoke(server.address, RemotingCommand.request(RequestCode.GET_BROKER_RUNTIME_INFO), 10)
        await pool.close()
        assert KVTable.from_json(reply.body).table["connections closed: frame_too_large"] == "20"


async def test_a_thousand_half_frames_held_open(server: Server) -> None:
    # Claim: what was announced costs nothing before it arrives: 1000 connections that owe 16 MB each are small.
    before = resident_bytes()
    half = struct.pack(">II", 16_000_000, 100) + b'{"code":10,"extFields":{'
    sockets = await idle(server, 1000, half)
    assert resident_bytes() - before < 64 << 20
    await healthy(server)
    for each in sockets:
        each.close()
    await eventually(lambda: connections(server) == 0)


async def idle(server: Server, count: int, first: bytes = b"") -> list[socket.socket]:
    """`count` open connections that said `first`, accepted by the server."""
    loop = asyncio.get_running_loop()
    sockets = []
    for _ in range(count):
        each = socket.socket()
        each.setblocking(False)
        await loop.sock_connect(each, place(server))
        if first:
            await loop.sock_sendall(each, first)
        sockets.append(each)
    await eventually(lambda: connections(server) == count)
    return sockets


def open_connections(server: Server) -> list[Connection]:
    listeners = server.listeners.all if isinstance(server, Broker) else server.listeners.values()
    return [connection for listener in listeners for connection in listener.connections.values()]


def connections(server: Server) -> int:
    return len(open_connections(server))


async def test_an_idle_connection_costs_at_most_20_kib(server: Server) -> None:
    # Claim: ten thousand idle connections cost at most 20 KiB each (a tenth of them here, both ends in this process).
    warm = await idle(server, 50)
    for each in warm:
        each.close()
    await eventually(lambda: connections(server) == 0)
    gc.collect()
    before = resident_bytes()
    sockets = await idle(server, 1000)
    assert (resident_bytes() - before) / 1000 <= 20 * 1024
    for each in sockets:
        each.close()


@pytest.mark.parametrize("spelled", ["::1", "[::1]"])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_ipv6_address_to_listen_on_may_have_brackets(kind: str, spelled: str, tmp_path: Path) -> None:
    # Claim: bindAddress takes an address of IPv6 as `listeners` spells it, and without its brackets.
    server = make(kind, tmp_path, bind_address=spelled, listeners="inner://[::1]:0")
    try:
        await server.start()
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            pytest.skip("there is no IPv6 here")
        raise
    assert all(address.startswith("[::1]:") for address in server.addresses)
    await healthy(server)
    await server.stop()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_of_connections_is_one_for_all_ports(kind: str, loop: str, tmp_path: Path) -> None:
    # Claim: however many ports a server listens on, and however many clients come at the same moment, it has no more
    # connections than connectionsMax; who goes makes room, at whichever port.
    async def program() -> None:
        server = make(kind, tmp_path, connections_max=10, listeners="inner://127.0.0.1:0")
        await server.start()
        places = [(host, int(port)) for host, _, port in (each.rpartition(":") for each in server.addresses)]
        assert len(places) >= 2
        sockets = [socket.create_connection(places[n % len(places)]) for n in range(40)]  # the loop sees none of them
        await eventually(lambda: server.counters["opened"] + server.counters["refused"] == 40)
        assert connections(server) == 10 and server.counters["refused"] == 30
        for each in sockets:
            each.close()
        await eventually(lambda: connections(server) == 0)
        sockets = [socket.create_connection(places[-1]) for _ in range(10)]
        await eventually(lambda: connections(server) == 10)
        for each in sockets:
            each.close()
        await server.stop()

    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(program())


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_that_is_reset_before_it_is_accepted_leaves_nothing(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Claim: whoever is gone before the server looks is no connection of its: none stays open, and nothing is logged.
    # On the loop that daemons have: asyncio's own knows the peer's address all the same.
    async def program() -> None:
        server = make(kind, tmp_path)
        await server.start()
        for _ in range(50):
            with socket.create_connection(place(server)) as gone:
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await eventually(lambda: server.counters["opened"] == 50)
        await healthy(server)
        await eventually(lambda: connections(server) == 0)
        assert server.counters["closed: connection reset"] == 50
        assert not isinstance(server, Broker) or not server.store._connections
        await server.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(program())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_reader_that_never_reads_big_pulls(broker: Broker) -> None:
    # Claim: a client that asks for much in one chunk and does not read it costs a few megabytes, and then reads it all.
    reader, writer = await asyncio.open_connection(*place(broker))
    decoder = FrameDecoder()
    for opaque in range(32):
        writer.write(send("big", bytes(100_000), opaque=opaque))
    sent = 0
    while sent < 32:
        sent += len(decoder.feed(await reader.read(65536)))
    slow_reader, slow_writer = await asyncio.open_connection(*place(broker), limit=4096)
    before, count = resident_bytes(), 300
    slow_writer.write(b"".join(pull("big", opaque) for opaque in range(count)))
    for _ in range(20):
        await healthy(broker)
    assert resident_bytes() - before < 16 << 20
    opaques: list[int] = []
    async with asyncio.timeout(60):
        while len(opaques) < count:
            opaques += [command.opaque for command in decoder.feed(await slow_reader.read(1 << 20))]
    assert opaques == list(range(count))
    writer.close()
    slow_writer.close()


async def test_many_readers_that_never_read(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: what all clients together do not read is bounded; who has most unread is cut off, who reads is not.
    monkeypatch.setattr("aerobee.net.backpressure.UNREAD_BYTES_TOTAL_MAX", 4 << 20)
    reader, writer = await asyncio.open_connection(*place(broker))
    decoder = FrameDecoder()
    for opaque in range(4):
        writer.write(send("big", bytes(1_000_000), opaque=opaque))
    sent = 0
    while sent < 4:
        sent += len(decoder.feed(await reader.read(65536)))
    slow = [await asyncio.open_connection(*place(broker), limit=4096) for _ in range(8)]
    for _, slow_writer in slow:
        slow_writer.write(b"".join(pull("big", opaque) for opaque in range(8)))
    cut = "closed: too many peers do not read"
    await eventually(lambda: broker.counters.get(cut, 0) > 0)
    for _ in range(20):
        await healthy(broker)
        assert sum(c.unread_bytes() for c in open_connections(broker)) <= 4 << 20
    assert broker.counters[cut] < 8 and sum(c.blocked for c in open_connections(broker)) > 0
    writer.write(pull("big", 9))
    answers: list[RemotingCommand] = []
    while not answers:
        answers = decoder.feed(await reader.read(65536))
    assert answers[0].opaque == 9 and len(answers[0].body) > 1_000_000
    for _, one in [(reader, writer), *slow]:
        one.close()


async def test_one_message_for_many_waiting_pulls_of_a_reader_that_does_not_read(broker: Broker) -> None:
    # Claim: pulls that wait cost a few megabytes a connection when a large message comes for all of them and nobody
    # reads; whoever reads then gets every answer, once.
    await broker.topics.create_for_group("big", 1)
    count, size = 60, 4_000_000
    slow_reader, slow_writer = await asyncio.open_connection(*place(broker), limit=4096)
    slow_writer.write(b"".join(pull("big", opaque, sysFlag=6, suspendTimeoutMillis=2000) for opaque in range(count)))
    await eventually(lambda: broker.store.counters()["pulls_parked"] == count)
    (slow,) = open_connections(broker)
    pool = RemotePool()
    (large,) = FrameDecoder().feed(send("big", bytes(size)))
    assert (await pool.invoke(broker.address, large, 20)).code == 0
    await eventually(lambda: slow.blocked)
    before = resident_bytes()
    began = time.monotonic()
    while time.monotonic() - began < 3:  # also when their time is over
        await healthy(broker)
        assert slow.transport is not None and slow.transport.get_write_buffer_size() < 4 * size
    assert resident_bytes() - before < 4 * size
    (small,) = FrameDecoder().feed(send("big", b"small"))
    assert (await pool.invoke(broker.address, small, 20)).code == 0
    decoder, opaques = FrameDecoder(), list[int]()
    async with asyncio.timeout(60):
        while len(opaques) < count:
            for command in decoder.feed(await slow_reader.read(1 << 20)):
                assert command.code == 0 and len(command.body) > size
                opaques.append(command.opaque)
    assert sorted(opaques) == list(range(count))
    await pool.close()
    slow_writer.close()


async def test_responses_nobody_asked_for(server: Server) -> None:
    # Claim: unasked responses are dropped, and the connection goes on.
    reader, writer = await asyncio.open_connection(*place(server))
    unasked = RemotingCommand(0, flag=FLAG_RESPONSE, opaque=77, body=b"surprise")
    writer.write(unasked.encode() * 10_000 + request(999_999, opaque=5))
    decoder = FrameDecoder()
    async with asyncio.timeout(10):
        replies: list[RemotingCommand] = []
        while not replies:
            replies = decoder.feed(await reader.read(65536))
    assert [reply.opaque for reply in replies] == [5]
    assert replies[0].code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
    writer.close()


async def test_a_flood_of_oneway_requests_is_answered_by_nothing(server: Server) -> None:
    # Claim: a oneway request gets no answer, whatever it is; others are served meanwhile.
    reader, writer = await asyncio.open_connection(*place(server))
    codes = (RequestCode.HEART_BEAT, RequestCode.GET_ROUTEINFO_BY_TOPIC, 999_999, RequestCode.UNREGISTER_CLIENT)
    writer.write(b"".join(request(codes[i % 4], oneway=True, opaque=i) for i in range(20_000)))
    await healthy(server)
    writer.write(request(999_999, opaque=1 << 20))
    decoder = FrameDecoder()
    async with asyncio.timeout(20):
        replies: list[RemotingCommand] = []
        while not replies:
            replies = decoder.feed(await reader.read(65536))
    assert [reply.opaque for reply in replies] == [1 << 20]
    writer.close()


async def test_a_flood_of_oneway_sends_is_stored(broker: Broker) -> None:
    # Claim: oneway sends are slowed down by the connection, not dropped.
    _, writer = await asyncio.open_connection(*place(broker))
    writer.write(send("flood", b"x"))
    await eventually(lambda: broker.store.bounds("flood", 0)[1] == 1)
    for _ in range(20):
        writer.write(send("flood", b"x" * 100, oneway=True) * 500)
        await writer.drain()
    await eventually(lambda: broker.store.bounds("flood", 0)[1] == 10_001)
    writer.close()


@pytest.mark.parametrize("limit", ["UNDER_WAY_MAX", "UNDER_WAY_TOTAL_MAX"])
async def test_broker_busy_says_why(broker: Broker, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    # Claim: SYSTEM_BUSY names the limit that was reached, and there is one for a connection and one for all.
    monkeypatch.setattr(dispatch, limit, 10)
    gate = asyncio.Event()

    async def wait(broker: Broker, connection: object, command: RemotingCommand) -> RemotingCommand:
        await gate.wait()
        return command.reply()

    broker.dispatcher._handlers[4242] = wait
    pools = [RemotePool() for _ in range(3)]
    calls = [
        asyncio.ensure_future(pools[0].invoke(broker.address, RemotingCommand.request(4242), 20)) for _ in range(10)
    ]
    await eventually(lambda: len(broker.dispatcher._tasks) == 10)
    busy = await pools[0].invoke(broker.address, RemotingCommand.request(4242), 10)
    assert busy.code == ResponseCode.SYSTEM_BUSY and "10 requests under way" in (busy.remark or "")
    if limit == "UNDER_WAY_TOTAL_MAX":
        busy = await pools[1].invoke(broker.address, RemotingCommand.request(4242), 10)
        assert busy.code == ResponseCode.SYSTEM_BUSY and "the broker has 10 requests under way" in (busy.remark or "")
    gate.set()
    assert [(await call).code for call in calls] == [0] * 10
    assert (await pools[2].invoke(broker.address, RemotingCommand.request(4242), 10)).code == 0
    for pool in pools:
        await pool.close()


@pytest.mark.parametrize("limit", ["UNDER_WAY_BYTES_MAX", "UNDER_WAY_BYTES_TOTAL_MAX"])
async def test_what_waits_for_others_is_bounded_in_bytes(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    # Claim: who has a megabyte of requests that wait for something is not read further until they are answered; all
    # that was sent is answered then, in order. Others are served meanwhile.
    monkeypatch.setattr(dispatch, limit, 1 << 20)
    gate = asyncio.Event()

    async def wait(broker: Broker, connection: object, command: RemotingCommand) -> RemotingCommand:
        await gate.wait()
        return command.reply()

    broker.dispatcher._handlers[4242] = wait
    floods = []
    for _ in range(3):
        reader, writer = await asyncio.open_connection(*place(broker))
        writer.write(b"".join(request(4242, bytes(100_000), opaque=opaque) for opaque in range(100)))
        floods.append((reader, writer))
    each = 11 if limit == "UNDER_WAY_BYTES_MAX" else 4  # of the total, somebody's last one may be above it
    await eventually(lambda: len(broker.dispatcher._tasks) >= 11)
    for _ in range(20):
        await healthy(broker)
    if limit == "UNDER_WAY_BYTES_MAX":
        assert len(broker.dispatcher._tasks) == 3 * each
    else:
        assert 11 <= len(broker.dispatcher._tasks) <= 13
    writer.transport.abort()  # the last one's memory is given free when it is done
    gate.set()
    for reader, writer in floods[:2]:
        decoder, opaques = FrameDecoder(), list[int]()
        async with asyncio.timeout(20):
            while len(opaques) < 100:
                opaques += [command.opaque for command in decoder.feed(await reader.read(1 << 20))]
        assert opaques == list(range(100))
        writer.close()
    await eventually(lambda: not broker.dispatcher._tasks)
    assert not broker.dispatcher._bytes and not broker.dispatcher._laden and not broker.dispatcher.under_way_bytes


async def test_replies_for_a_requester_that_does_not_read(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Claim: replies that cannot be pushed wait in bounded memory, their senders hear so in the end, and the log has
    # one line.
    monkeypatch.setattr(dispatch, "UNDER_WAY_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(request_reply, "PUSH_TIMEOUT_S", 0.5)
    slow_reader, slow_writer = await asyncio.open_connection(*place(broker))
    beat = {"clientID": "slow", "producerDataSet": [{"groupName": "pg"}], "consumerDataSet": []}
    slow_writer.write(request(RequestCode.HEART_BEAT, json.dumps(beat).encode()))
    await slow_reader.readexactly(4)
    slow_writer.transport.pause_reading()  # type: ignore[attr-defined]
    (slow,) = open_connections(broker)
    letters = dict(a="p", b="DefaultCluster_REPLY_TOPIC", c="TBW102", d=4, e=0, f=0, g=1, h=0, j=0)
    letters["i"] = "REPLY_TO_CLIENT\x01slow\x02CORRELATION_ID\x011\x02"

    reader, writer = await asyncio.open_connection(*place(broker))
    count = 60
    for opaque in range(count):
        writer.write(request(RequestCode.SEND_REPLY_MESSAGE_V2, bytes(200_000), opaque=opaque, **letters))
    most, replies, decoder = 0, list[RemotingCommand](), FrameDecoder()
    async with asyncio.timeout(60):
        while len(replies) < count:
            replies += decoder.feed(await reader.read(1 << 20))
            most = max(most, broker.dispatcher.under_way_bytes)
    assert slow.blocked and most <= (1 << 20) + 200_000
    assert {reply.code for reply in replies} == {ResponseCode.SYSTEM_ERROR}
    assert len([record for record in caplog.records if "could not be pushed" in record.getMessage()]) == 1
    slow_writer.transport.abort()
    writer.close()
