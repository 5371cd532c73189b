"""A producer in front of a slow disk: it is slowed down, others are served, and memory stays where it is.

The disk is as slow as the test says: the store has no flusher of its own, and what reaches the disk does so when the
test flushes. The engine's side of it, with a simulated disk, is in `rust/engine/tests/session.rs`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aerobee.broker import dispatch, fast_path
from aerobee.broker.options import BrokerOptions
from aerobee.broker.records import parse_record
from aerobee.broker.server import Broker
from aerobee.broker.topics import TopicTable
from aerobee.errors import StoreError
from aerobee.net.remote import RemotePool
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import FrameDecoder, RemotingCommand
from aerobee.protocol.message import parse_offset_message_id
from aerobee.testing.eventually import eventually
from tests.unit.test_abuse import healthy, place, pull, request, send
from tests.unit.test_broker_server import small

UNFLUSHED_MAX = 1 << 20
CHUNK = 64 * 1024
"""What one connection may bring past the limit: a read of the socket."""
BODY = 10_000
COUNT = 2000


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **values: object) -> AsyncIterator[Broker]:
    """A broker whose disk does nothing but when the test flushes, with the topic `orders`."""
    original = fast_path.store_settings

    def settings(options: BrokerOptions, topics: TopicTable) -> dict[str, object]:
        return {**original(options, topics), "background": False, "unflushed_bytes_max": UNFLUSHED_MAX}

    monkeypatch.setattr(fast_path, "store_settings", settings)
    started = Broker(small(tmp_path, mapped_file_size_commit_log=64 << 20, **values))
    starting = asyncio.ensure_future(started.start())
    while not starting.done():
        await asyncio.sleep(0.01)
        with contextlib.suppress(AttributeError):
            await started.store.flush()
    await starting
    await started.topics.create_for_group("orders", 4)
    yield started
    await started.stop()


@pytest.fixture(params=["asynchronous", "synchronous"])
async def broker(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Broker]:
    flush = "SYNC_FLUSH" if request.param == "synchronous" else "ASYNC_FLUSH"
    async with serving(tmp_path, monkeypatch, flush_disk_type=flush, sync_flush_timeout=60_000) as started:
        yield started


async def _flood(broker: Broker, writer: asyncio.StreamWriter) -> None:
    for opaque in range(COUNT):
        writer.write(send("orders", b"x" * BODY, opaque=opaque))
        await writer.drain()


def _unflushed(broker: Broker) -> int:
    _, flushed, end = broker.store.log_bounds()
    return end - flushed


async def test_the_sender_waits_others_are_served_and_all_is_stored_once(broker: Broker) -> None:
    # Claim: while the disk stands still a producer gets no further than the limit, and is told nothing that is not
    # true; readers and requests of others are answered at once; when the disk goes on, every message is stored once,
    # in order, and answered.
    reader, writer = await asyncio.open_connection(*place(broker))
    flood = asyncio.ensure_future(_flood(broker, writer))
    await eventually(lambda: bool(broker.store._held_back))
    for _ in range(20):
        await healthy(broker)
    assert not flood.done() and _unflushed(broker) <= UNFLUSHED_MAX + 2 * CHUNK
    stood = broker.store.log_bounds()[2]
    pool = RemotePool()
    asked = FrameDecoder().feed(pull("orders"))[0]
    assert (await pool.invoke(broker.address, asked, 5)).code in (0, 19)
    late = FrameDecoder().feed(send("orders", b"late"))[0]
    also = asyncio.ensure_future(pool.invoke(broker.address, late, 30))
    await eventually(lambda: len(broker.store._held_back) == 2)
    assert broker.store.log_bounds()[2] == stood

    codes: dict[int, int] = {}
    offsets: list[int] = []
    decoder = FrameDecoder()
    async with asyncio.timeout(60):
        while len(codes) < COUNT:
            flushing = asyncio.ensure_future(broker.store.flush())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    while True:
                        for reply in decoder.feed(await reader.read(1 << 20)):
                            assert reply.opaque not in codes
                            codes[reply.opaque] = reply.code
                            offsets.append(int(reply.ext_fields["queueOffset"]))
            await flushing
            assert _unflushed(broker) <= UNFLUSHED_MAX + 2 * CHUNK
    await flood
    assert set(codes.values()) == {0} and offsets == sorted(set(offsets))
    while not also.done():
        await broker.store.flush()
        await asyncio.sleep(0.01)
    assert (await also).code == 0
    assert broker.store.bounds("orders", 0) == (0, COUNT + 1)
    await pool.close()
    writer.close()


async def test_a_sender_that_waits_may_go_and_the_broker_may_stop(broker: Broker) -> None:
    # Claim: who waits for the disk leaves nothing behind when he goes, and holds up no stop.
    writers = []
    floods = []
    for _ in range(2):
        _, writer = await asyncio.open_connection(*place(broker))
        writers.append(writer)
        floods.append(asyncio.ensure_future(_flood(broker, writer)))
    await eventually(lambda: len(broker.store._held_back) == 2)
    writers[0].transport.abort()
    while len(broker.store._connections) == 2:  # the end of a connection is seen when it is read again
        await broker.store.flush()
        await asyncio.sleep(0.02)
    await eventually(lambda: bool(broker.store._held_back))
    async with asyncio.timeout(20):
        await broker.stop()
    for flood in floods:
        flood.cancel()
    await asyncio.gather(*floods, return_exceptions=True)
    writers[1].close()


async def test_what_policy_stores_waits_as_well(broker: Broker) -> None:
    # Claim: delayed messages, send-backs and ends of transactions are no way around the limit.
    _, flood_writer = await asyncio.open_connection(*place(broker))
    flood = asyncio.ensure_future(_flood(broker, flood_writer))
    await eventually(lambda: bool(broker.store._held_back))
    before = broker.dispatcher.counters.total()
    fields = dict(a="p", b="orders", c="TBW102", d=4, e=0, f=0, g=1, h=0, i="DELAY\x013\x02", j=0)
    delayed = RemotingCommand.request(RequestCode.SEND_MESSAGE_V2, body=b"x").code
    parts = [
        request(delayed, b"x", **fields),
        request(RequestCode.CONSUMER_SEND_MSG_BACK, offset=0, group="g", delayLevel=0, originMsgId=""),
        request(RequestCode.END_TRANSACTION, producerGroup="p", tranStateTableOffset=0, commitLogOffset=0,
                commitOrRollback=8, fromTransactionCheck="false", msgId="", transactionId=""),
    ]  # fmt: skip
    writers = []
    for part in parts:
        _, writer = await asyncio.open_connection(*place(broker))
        writer.write(part)
        writers.append(writer)
    await eventually(lambda: len(broker.store._held_back) == 4)
    assert broker.dispatcher.counters.total() == before
    flood.cancel()
    await asyncio.gather(flood, return_exceptions=True)
    for writer in [*writers, flood_writer]:
        writer.transport.abort()


REPLY = "REPLY_TO_CLIENT\x01nobody\x02CORRELATION_ID\x011\x02"
SENDS = {
    "hot": ({"b": "orders"}, "orders"),
    "delayed": ({"b": "orders", "i": "DELAY\x013\x02"}, "SCHEDULE_TOPIC_XXXX"),
    "timed": ({"b": "orders", "i": "TIMER_DELAY_SEC\x01100\x02"}, "rmq_sys_wheel_timer"),
    "half": ({"b": "orders", "i": "TRAN_MSG\x01true\x02PGROUP\x01p\x02"}, "RMQ_SYS_TRANS_HALF_TOPIC"),
    "batch": ({"b": "orders", "m": "true"}, "orders"),
    "reply": ({"b": "DefaultCluster_REPLY_TOPIC", "e": 0, "i": REPLY}, "DefaultCluster_REPLY_TOPIC"),
}


def _sending(kind: str) -> RemotingCommand:
    fields, _ = SENDS[kind]
    code, body = RequestCode.SEND_MESSAGE_V2, b"x"
    if kind == "batch":
        code = RequestCode.SEND_BATCH_MESSAGE
        inner = b"DELAY\x010\x02"  # policy looks at these
        body = struct.pack(">iiiii", 22 + 1 + len(inner), 0, 0, 0, 1) + b"x" + struct.pack(">h", len(inner)) + inner
    elif kind == "reply":
        code = RequestCode.SEND_REPLY_MESSAGE_V2
    letters = dict(a="p", c="TBW102", d=4, e=2, f=0, g=1, h=0, i="", j=0)
    return FrameDecoder().feed(request(code, body, **{**letters, **fields}))[0]


@pytest.mark.parametrize("kind", SENDS)
async def test_a_flush_that_takes_too_long_is_told_with_where_the_message_is(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: FLUSH_DISK_TIMEOUT says that the message is stored, and where, whoever served the send; what waits for its
    # time is looked at when the disk has caught up, although its sender is not there any more.
    options = dict(flush_disk_type="SYNC_FLUSH", sync_flush_timeout=100)
    async with serving(tmp_path, monkeypatch, **options) as broker:
        woken: list[str] = []
        monkeypatch.setattr(broker.delay, "scheduled", lambda: woken.append("delayed"))
        monkeypatch.setattr(broker.timer, "scheduled", lambda: woken.append("timed"))
        pool = RemotePool()
        reply = await pool.invoke(broker.address, _sending(kind), 20)
        if kind != "reply":  # its code says whether the reply was pushed
            assert reply.code == ResponseCode.FLUSH_DISK_TIMEOUT
        _, topic = SENDS[kind]
        assert reply.ext_fields["queueOffset"] == "0" and reply.ext_fields["queueId"].isdecimal()
        assert not woken
        await broker.store.flush()
        wanted = [kind] if kind in ("delayed", "timed") else []
        await eventually(lambda: woken == wanted)
        data = broker.store.record(parse_offset_message_id(reply.ext_fields["msgId"])[1])
        assert data is not None and (stored := parse_record(data)).topic == topic
        assert stored.queue_offset == 0 and broker.store.bounds(topic, stored.queue_id) == (0, 1)
        await pool.close()


@pytest.mark.parametrize("limit", ["UNDER_WAY_MAX", "UNDER_WAY_TOTAL_MAX"])
@pytest.mark.parametrize("kind", ["delayed", "timed", "half"])
async def test_what_waits_for_its_flush_is_not_refused_when_it_is_much(
    kind: str, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: a producer that sends ahead what waits for its time is not read above the limit, and none of it is refused;
    # others are served meanwhile. Each message is stored once, in the order of its connection, and answered.
    monkeypatch.setattr(dispatch, limit, 10)
    count = 300
    options = dict(flush_disk_type="SYNC_FLUSH", sync_flush_timeout=60_000)
    async with serving(tmp_path, monkeypatch, **options) as broker:
        reader, writer = await asyncio.open_connection(*place(broker))
        _, gone = await asyncio.open_connection(*place(broker))
        for opaque in range(count):
            command = _sending(kind)
            command.opaque = opaque
            writer.write(command.encode())
        gone.write(_sending(kind).encode() * 20)
        await eventually(lambda: broker.dispatcher.storing >= 10 and len(broker.dispatcher._laden) == 2)
        for _ in range(20):
            await healthy(broker)
        assert broker.dispatcher.storing == (20 if limit == "UNDER_WAY_MAX" else 11)
        gone.transport.abort()
        replies, decoder = list[RemotingCommand](), FrameDecoder()
        async with asyncio.timeout(60):
            while len(replies) < count:
                await broker.store.flush()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.01):
                        replies += decoder.feed(await reader.read(1 << 20))
        assert [reply.opaque for reply in replies] == list(range(count)) and {reply.code for reply in replies} == {0}
        while broker.dispatcher.storing:
            await broker.store.flush()
            await asyncio.sleep(0.01)
        dispatcher = broker.dispatcher
        assert not dispatcher._laden and not dispatcher._storing and not dispatcher._bytes
        writer.close()


def _take_device_away(log: Path) -> None:
    """What is written to the log from now on goes nowhere and cannot be synced."""
    null = os.open(os.devnull, os.O_RDWR)
    for each in os.listdir("/proc/self/fd"):
        if os.path.realpath(f"/proc/self/fd/{each}") == str(log):
            os.dup2(null, int(each))
    os.close(null)


@pytest.mark.parametrize("kind", ["hot", "delayed", "batch"])
async def test_a_flush_that_fails_is_told_at_once(kind: str, tmp_path: Path) -> None:
    # Claim: when the device does not take what it was given, senders that wait for it hear so at once, and why.
    broker = Broker(small(tmp_path, flush_disk_type="SYNC_FLUSH", sync_flush_timeout=60_000))
    await broker.start()
    await broker.topics.create_for_group("orders", 4)
    pool = RemotePool()
    assert (await pool.invoke(broker.address, _sending("hot"), 5)).code == ResponseCode.SUCCESS
    _take_device_away(tmp_path / "store" / "commitlog" / f"{0:020}")
    for _ in range(2):  # the first waits for the flush that fails
        reply = await pool.invoke(broker.address, _sending(kind), 5)
        assert reply.code == ResponseCode.SERVICE_NOT_AVAILABLE and "restart to recover" in (reply.remark or "")
    await pool.close()
    with contextlib.suppress(StoreError):
        await broker.stop()
