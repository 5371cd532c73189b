"""A producer in front of a slow disk: it is slowed down, others are served, and memory stays where it is.

The disk is as slow as the test says: the store has no flusher of its own, and what reaches the disk does so when the
test flushes. The engine's side of it, with a simulated disk, is in `rust/engine/tests/session.rs`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aerobee.broker import fast_path
from aerobee.broker.options import BrokerOptions
from aerobee.broker.server import Broker
from aerobee.broker.topics import TopicTable
from aerobee.net.remote import RemotePool
from aerobee.protocol.codes import RequestCode
from aerobee.protocol.command import FrameDecoder, RemotingCommand
from aerobee.testing.eventually import eventually
from tests.unit.test_abuse import healthy, place, pull, request, send
from tests.unit.test_broker_server import small

UNFLUSHED_MAX = 1 << 20
CHUNK = 64 * 1024
"""What one connection may bring past the limit: a read of the socket."""
BODY = 10_000
COUNT = 2000


@pytest.fixture(params=["asynchronous", "synchronous"])
async def broker(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Broker]:
    original = fast_path.store_settings

    def settings(options: BrokerOptions, topics: TopicTable) -> dict[str, object]:
        return {**original(options, topics), "background": False, "unflushed_bytes_max": UNFLUSHED_MAX}

    monkeypatch.setattr(fast_path, "store_settings", settings)
    flush = "SYNC_FLUSH" if request.param == "synchronous" else "ASYNC_FLUSH"
    options = small(tmp_path, flush_disk_type=flush, mapped_file_size_commit_log=64 << 20, sync_flush_timeout=60_000)
    started = Broker(options)
    starting = asyncio.ensure_future(started.start())
    while not starting.done():
        await asyncio.sleep(0.01)
        with contextlib.suppress(AttributeError):
            await started.store.flush()
    await starting
    await started.topics.create_for_group("orders", 4)
    yield started
    await started.stop()


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
