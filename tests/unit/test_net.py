"""The net layer between real sockets: chunks and replies, garbage, back-pressure, limits, time, stops."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvloop

from aerobee.errors import ConnectError, RequestTimeout
from aerobee.net import hub as hub_module
from aerobee.net.backpressure import UNREAD_BYTES_HIGH
from aerobee.net.listener import Connection, Limits, Listener
from aerobee.net.remote import Remote, RemotePool, split_address
from aerobee.protocol.command import FrameDecoder, RemotingCommand
from aerobee.testing.eventually import eventually

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy:DeprecationWarning")


@pytest.fixture(params=["uvloop", "asyncio"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Everything here holds on both loops."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


class Frames:
    """A service that decodes frames and answers each request with what `answer` makes of it."""

    def __init__(self, answer: Callable[[Connection, RemotingCommand], object] | None = None) -> None:
        self.answer = answer or (lambda connection, command: connection.send(command.reply(body=command.body)))
        self.open: list[Connection] = []
        self.gone: list[Connection] = []
        self.requests: list[RemotingCommand] = []

    def connected(self, connection: Connection) -> None:
        connection.state = FrameDecoder()
        self.open.append(connection)

    def received(self, connection: Connection, data: memoryview) -> None:
        for command in connection.state.feed(data):
            if command.is_response:
                connection.resolve(command)
            else:
                self.requests.append(command)
                self.answer(connection, command)

    def disconnected(self, connection: Connection) -> None:
        self.open.remove(connection)
        self.gone.append(connection)


@asynccontextmanager
async def listening(service: Frames, **limits: float) -> AsyncIterator[Listener]:
    listener = Listener()
    await listener.start(service, "127.0.0.1", 0, limits=Limits(**limits))  # type: ignore[arg-type]
    try:
        yield listener
    finally:
        await listener.stop(grace_s=1)


@asynccontextmanager
async def pooling(pool: RemotePool) -> AsyncIterator[RemotePool]:
    try:
        yield pool
    finally:
        await pool.close()


def request(body: bytes = b"") -> RemotingCommand:
    return RemotingCommand.request(34, body=body)


async def dial(listener: Listener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = split_address(listener.address)
    return await asyncio.open_connection(host, port)


async def test_requests_and_responses_find_each_other() -> None:
    service = Frames()
    async with listening(service) as listener, pooling(RemotePool()) as pool:
        replies = await asyncio.gather(*(pool.invoke(listener.address, request(b"%d" % n), 5) for n in range(500)))
        assert [reply.body for reply in replies] == [b"%d" % n for n in range(500)]
        assert len(service.open) == 1
        assert listener.counters["opened"] == 1


async def test_a_frame_may_arrive_in_any_pieces() -> None:
    service = Frames()
    async with listening(service) as listener:
        reader, writer = await dial(listener)
        frame = request(b"hello").encode()
        for byte in frame:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        writer.write(frame + frame[:10])
        size = struct.unpack(">i", await reader.readexactly(4))[0]
        first = await reader.readexactly(size)
        await reader.readexactly(size + 4)
        assert first.endswith(b"hello") and len(service.requests) == 2
        writer.close()


async def test_writes_of_one_turn_leave_together() -> None:
    service = Frames()
    async with listening(service) as listener, pooling(RemotePool()) as pool:
        await pool.invoke(listener.address, request(), 5)
        connection = service.open[0]
        for n in range(5):
            connection.write(b"%d" % n)  # not while a chunk is handled: the end of this turn flushes
        assert len(connection._pieces) == 5 and connection._hub.dirty == [connection]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert connection._pieces == [] and connection._hub.dirty == []


async def test_a_write_through_waits_for_nothing_and_overtakes_nothing() -> None:
    service = Frames()
    async with listening(service) as listener:
        reader, writer = await dial(listener)
        await eventually(lambda: service.open)
        connection = service.open[0]
        connection.write_through(b"0")
        assert connection._pieces == []
        connection.write(b"1")
        connection.write_through(b"2")
        assert await reader.readexactly(3) == b"012"
        connection.close()
        connection.write_through(b"3")
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n", "http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), "tls"),
        (struct.pack(">iI", 17 * 1024 * 1024, 10) + bytes(64), "frame_too_large"),
        (struct.pack(">iI", 20, 1000) + bytes(64), "header_too_long"),
        (struct.pack(">iI", 20, 7 << 24 | 10) + bytes(64), "unknown_encoding"),
    ],
)
async def test_bytes_that_are_no_protocol_close_that_connection_only(
    data: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "aerobee.net")
    service = Frames()
    async with listening(service) as listener, pooling(RemotePool()) as pool:
        await pool.invoke(listener.address, request(), 5)
        for _ in range(4):
            reader, writer = await dial(listener)
            writer.write(data)
            assert await reader.read() == b""
            writer.close()
        assert (await pool.invoke(listener.address, request(b"alive"), 5)).body == b"alive"
        assert listener.counters[f"closed: {reason}"] == 4
        assert len([record for record in caplog.records if reason in record.getMessage()]) == 1


async def test_a_repeated_complaint_is_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "aerobee.net")
    hub = hub_module.Hub(asyncio.get_running_loop(), idle_s=0)
    now = [1000.0]
    monkeypatch.setattr("aerobee.log.time.monotonic", lambda: now[0])
    for _ in range(10):
        hub.complain("http", "closed %s", "1.2.3.4:5")
    now[0] += 61
    hub.complain("http", "closed %s", "1.2.3.4:5")
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["closed 1.2.3.4:5", "closed 1.2.3.4:5 (and 9 more since the last such line)"]


async def test_an_error_of_ours_costs_one_connection() -> None:
    def fail(connection: Connection, command: RemotingCommand) -> None:
        raise RuntimeError("ours")

    service = Frames(fail)
    async with listening(service) as listener, pooling(RemotePool()) as pool:
        with pytest.raises(ConnectError):
            await pool.invoke(listener.address, request(), 5)
        assert listener.counters["closed: internal error"] == 1


async def test_a_service_that_cannot_take_a_connection_costs_that_one(caplog: pytest.LogCaptureFixture) -> None:
    """It is closed and leaves no trace; others are served."""
    service = Frames()
    async with listening(service) as listener, pooling(RemotePool()) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(service, "connected", lambda connection: 1 / 0)
            patch.setattr(service, "disconnected", lambda connection: None)
            reader, writer = await dial(listener)
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
            await eventually(lambda: not listener.connections)
            writer.close()
        assert listener.counters["closed: internal error"] == 1
        assert (await pool.invoke(listener.address, request(b"alive"), 5)).body == b"alive"
    assert [record.name for record in caplog.records if record.levelno >= logging.ERROR] == ["aerobee.net"]


async def test_a_client_that_does_not_read_is_not_read_either() -> None:
    """Memory stays bounded: after the high-water mark no further requests of that client are accepted."""
    service = Frames(lambda connection, command: connection.send(command.reply(body=bytes(8 * 1024))))
    async with listening(service) as listener, pooling(RemotePool()) as pool:
        host, port = split_address(listener.address)
        slow = socket.create_connection((host, port))
        slow.setblocking(False)
        frame = request(bytes(1000)).encode()
        sent = 0
        for _ in range(100):
            with suppress(BlockingIOError):
                sent += slow.send((frame * 101)[sent % len(frame) :])
            await asyncio.sleep(0.001)
        await eventually(lambda: service.open and service.open[0].blocked)
        accepted = len(service.requests)
        await asyncio.sleep(0.05)
        assert len(service.requests) == accepted, "requests are accepted although replies are not read"
        connection = service.open[0]
        assert connection.transport is not None
        assert connection.transport.get_write_buffer_size() > UNREAD_BYTES_HIGH
        assert (await pool.invoke(listener.address, request(), 5)).code == 0, "others are served"

        slow.setblocking(True)
        slow.settimeout(5)
        wanted = sent // len(frame)

        def drain() -> None:
            left = wanted * 8 * 1024  # and headers, which stay unread
            while left > 0:
                data = slow.recv(1 << 20)
                assert data, "the server hung up"
                left -= len(data)

        await asyncio.to_thread(drain)
        await eventually(lambda: len(service.requests) == wanted + 1)
        assert not connection.blocked
        slow.close()


async def test_idle_connections_are_closed_and_busy_ones_are_not() -> None:
    service = Frames()
    async with listening(service, idle_s=0.4) as listener, pooling(RemotePool()) as pool:
        reader, writer = await dial(listener)
        loop = asyncio.get_running_loop()
        began = loop.time()
        quiet = asyncio.create_task(reader.read())
        while not quiet.done():
            await pool.invoke(listener.address, request(), 5)
            await asyncio.sleep(0.02)
        assert 0.35 < loop.time() - began < 2
        assert listener.counters["closed: idle"] == 1
        assert len(service.open) == 1
        writer.close()


async def test_who_reads_slowly_but_steadily_gets_everything_and_who_stops_is_cut() -> None:
    """A long reply may take many times the idle time, as long as some of it is taken."""
    size, idle_s = 4_000_000, 0.4
    service = Frames(lambda connection, command: connection.send(command.reply(body=bytes(size))))
    async with listening(service, idle_s=idle_s) as listener:
        loop = asyncio.get_running_loop()
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        slow.setblocking(False)
        await loop.sock_connect(slow, split_address(listener.address))
        await loop.sock_sendall(slow, request().encode() * 6)
        began, left = loop.time(), 4 * size  # and headers, which stay unread
        while left > 0:
            data = await asyncio.wait_for(loop.sock_recv(slow, 100_000), 5)
            assert data, f"cut off after {loop.time() - began:.1f} s with {left} bytes to read"
            left -= len(data)
            await asyncio.sleep(0.01)
        assert loop.time() - began > 3 * idle_s and not listener.counters.get("closed: peer does not read")
        await eventually(lambda: not service.open)
        assert listener.counters["closed: peer does not read"] == 1
        slow.close()


async def test_connections_over_the_limit_are_refused() -> None:
    service = Frames()
    async with listening(service, connections_max=2) as listener:
        kept = [await dial(listener) for _ in range(2)]
        await eventually(lambda: len(service.open) == 2)
        reader, writer = await dial(listener)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert listener.counters["refused"] == 1
        for _, open_writer in kept:
            open_writer.close()
        await eventually(lambda: not service.open)
        reader2, writer2 = await dial(listener)
        writer2.write(request(b"x").encode())
        assert await reader2.read(4)
        writer2.close()
        writer.close()


async def test_the_server_asks_the_client() -> None:
    service = Frames()

    def on_request(connection: Connection, command: RemotingCommand) -> None:
        if not command.is_oneway:
            connection.send(command.reply(body=b"client says " + command.body))
        seen.append(command)

    seen: list[RemotingCommand] = []
    async with listening(service) as listener, pooling(RemotePool(on_request)) as pool:
        await pool.invoke(listener.address, request(), 5)
        connection = service.open[0]
        reply = await connection.invoke(request(b"hi"), 5)
        assert reply.body == b"client says hi"
        connection.send(RemotingCommand.request(40, oneway=True))
        await eventually(lambda: len(seen) == 2)


async def test_requests_time_out_without_a_timer_each() -> None:
    service = Frames(lambda connection, command: None)
    async with listening(service) as listener, pooling(RemotePool()) as pool:
        loop = asyncio.get_running_loop()

        async def timed(timeout_s: float) -> float:
            began = loop.time()
            with pytest.raises(RequestTimeout):
                await pool.invoke(listener.address, request(), timeout_s)
            return loop.time() - began

        with pytest.raises(RequestTimeout):
            await pool.invoke(listener.address, request(), 0.05)
        took = await asyncio.gather(*(timed(0.1 + 0.1 * (n % 3)) for n in range(300)))
        for n, seconds in enumerate(took):
            assert 0.07 + 0.1 * (n % 3) <= seconds < 0.9 + 0.1 * (n % 3)
        connection = pool.remote(listener.address).connection
        assert connection is not None and not connection._waiting and not connection._hub.waiting
        assert connection._hub._deadline_timer is None


async def test_a_late_response_is_dropped() -> None:
    held: list[tuple[Connection, RemotingCommand]] = []
    service = Frames(lambda connection, command: held.append((connection, command)))
    async with listening(service) as listener, pooling(RemotePool()) as pool:
        with pytest.raises(RequestTimeout):
            await pool.invoke(listener.address, request(), 0.05)
        service.answer = lambda connection, command: connection.send(command.reply(body=b"second"))
        held[0][0].send(held[0][1].reply(body=b"late"))
        assert (await pool.invoke(listener.address, request(), 5)).body == b"second"


async def test_requests_under_way_end_with_the_connection() -> None:
    service = Frames(lambda connection, command: connection.close())
    async with listening(service) as listener, pooling(RemotePool()) as pool:
        with pytest.raises(ConnectError, match="ended"):
            await pool.invoke(listener.address, request(), 5)
        service.answer = lambda connection, command: connection.send(command.reply())
        assert (await pool.invoke(listener.address, request(), 5)).code == 0, "the next request connects again"


async def test_nobody_there_is_an_error_with_a_sentence_and_attempts_are_spaced() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    loop = asyncio.get_running_loop()
    async with pooling(RemotePool()) as pool:
        began = loop.time()
        for _ in range(4):
            with pytest.raises(ConnectError, match=f"127.0.0.1:{port}"):
                await pool.invoke(f"127.0.0.1:{port}", request(), 3)
        assert loop.time() - began > 0.08 + 0.16 + 0.32 - 0.01
        service, listener = Frames(), Listener()
        await listener.start(service, "127.0.0.1", port)
        assert (await pool.invoke(f"127.0.0.1:{port}", request(b"up"), 5)).body == b"up"
        await listener.stop()


@pytest.mark.parametrize(
    "address", ["", "host", ":1", "host:", "host:x", "host:99999", "host:\u00b2", "host:" + "9" * 5000]
)
async def test_a_wrong_address_is_said(address: str) -> None:
    with pytest.raises(ConnectError, match="host:port"):
        Remote(address)


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example.com"])
async def test_what_cannot_be_a_host_name_is_said(host: str) -> None:
    async with pooling(RemotePool()) as pool:
        with pytest.raises(ConnectError, match=f"cannot connect to {host}:9876: {host} is no host name"):
            await pool.invoke(f"{host}:9876", request(), 3)
    with pytest.raises(OSError, match=f"{host} is no host name; correct bindAddress or listeners"):
        await Listener().start(Frames(), host, 0)


async def test_stop_sends_what_was_answered() -> None:
    """A graceful stop loses no reply that was made before it."""
    service = Frames(lambda connection, command: connection.send(command.reply(body=bytes(100_000))))
    listener = Listener()
    await listener.start(service, "127.0.0.1", 0)
    reader, writer = await dial(listener)
    writer.write(b"".join(request().encode() for _ in range(50)))
    await eventually(lambda: len(service.requests) > 0)
    answered = len(service.requests)
    stop = asyncio.create_task(listener.stop(grace_s=5))
    data = await reader.read(-1)
    await stop
    assert len(data) >= answered * 100_000
    assert not service.open and len(service.gone) == 1
    with pytest.raises(OSError):
        await dial(listener)
    writer.close()


async def test_stop_cuts_those_who_do_not_read() -> None:
    service = Frames(lambda connection, command: connection.send(command.reply(body=bytes(8_000_000))))
    listener = Listener()
    await listener.start(service, "127.0.0.1", 0)
    with socket.create_connection(split_address(listener.address)) as slow:
        slow.sendall(request().encode() * 4)
        await eventually(lambda: service.open and service.open[0].blocked)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await listener.stop(grace_s=0.2)
        assert loop.time() - began < 2
        assert not service.open


async def test_a_taken_port_is_an_oserror() -> None:
    async with listening(Frames()) as listener:
        host, port = split_address(listener.address)
        with pytest.raises(OSError):
            await Listener().start(Frames(), host, port)


async def test_one_answer_for_many_who_wait_for_a_connection() -> None:
    service = Frames()
    async with listening(service) as listener, pooling(RemotePool()) as pool:
        await asyncio.gather(*(pool.invoke(listener.address, request(), 5) for _ in range(50)))
        assert listener.counters["opened"] == 1


async def test_a_waiter_that_gives_up_leaves_the_others_alone() -> None:
    service = Frames()
    async with listening(service) as listener, pooling(RemotePool()) as pool:
        first = asyncio.create_task(pool.invoke(listener.address, request(), 5))
        second = asyncio.create_task(pool.invoke(listener.address, request(b"2"), 5))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).body == b"2"


async def test_oneway_waits_for_a_server_that_does_not_read() -> None:
    service = Frames(lambda connection, command: None)
    async with listening(service) as listener, pooling(RemotePool()) as pool:
        await pool.oneway(listener.address, request())
        await eventually(lambda: len(service.requests) == 1)
        service.open[0].hold_reading(True)

        async def flood() -> None:
            for _ in range(2000):
                await pool.oneway(listener.address, request(bytes(100_000)), 0.2)

        with pytest.raises(RequestTimeout):
            await flood()
        connection = pool.remote(listener.address).connection
        assert connection is not None and connection.transport is not None
        assert connection.transport.get_write_buffer_size() < UNREAD_BYTES_HIGH + 300_000
        service.open[0].hold_reading(False)
        await pool.oneway(listener.address, request(b"last"), 5)
        await eventually(lambda: service.requests[-1].body == b"last")


def test_a_pool_moves_to_another_loop() -> None:
    pool = RemotePool()

    async def once() -> bytes:
        async with listening(Frames()) as listener:
            return (await pool.invoke(listener.address, request(b"x"), 5)).body

    assert asyncio.run(once()) == b"x"
    assert asyncio.run(once()) == b"x"
    gc.collect()


def test_a_forked_child_connects_anew_and_leaves_the_parents_connection_alone() -> None:
    """Both ends of a fork use the same pool; each reply reaches the one who asked."""

    async def parent() -> None:
        service = Frames()
        async with listening(service) as listener, pooling(RemotePool()) as pool:
            assert (await pool.invoke(listener.address, request(b"before"), 5)).body == b"before"
            child = os.fork()
            if child == 0:
                asyncio._set_running_loop(None)
                ok = False
                with suppress(BaseException):
                    ok = asyncio.run(ask(pool, listener.address)) == [b"child"] * 20
                os._exit(0 if ok else 1)
            replies = [(await pool.invoke(listener.address, request(b"parent"), 5)).body for _ in range(20)]
            assert replies == [b"parent"] * 20
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            assert status == 0
            assert (await pool.invoke(listener.address, request(b"after"), 5)).body == b"after"
            assert listener.counters["opened"] == 2

    async def ask(pool: RemotePool, address: str) -> list[bytes]:
        return [(await pool.invoke(address, request(b"child"), 5)).body for _ in range(20)]

    asyncio.run(parent())


def tls_ends() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server that has the certificate beside this file, and a client that trusts nothing else."""
    pem = Path(__file__).with_name("localhost.pem")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))


async def test_both_ends_speak_tls() -> None:
    """The same bytes in a tunnel: long bodies both ways, oneway requests, the peer's address, a stop that sends all."""
    server, client = tls_ends()
    service, listener = Frames(), Listener()
    await listener.start(service, "127.0.0.1", 0, tls=server)
    port = split_address(listener.address)[1]
    try:
        async with pooling(RemotePool(tls=client)) as pool:
            for address in (f"127.0.0.1:{port}", f"localhost:{port}"):
                for size in (0, 10, 3 << 20):
                    body = os.urandom(size)
                    assert (await pool.invoke(address, request(body), 10)).body == body
            await pool.oneway(f"localhost:{port}", request(b"oneway"))
            await eventually(lambda: service.requests[-1].body == b"oneway")
            assert service.open[0].peer.startswith("127.0.0.1:")
    finally:
        await listener.stop(grace_s=1)


async def joined(listener: Listener, service: Frames) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Connection]:
    """A connection that stays open, from both of its ends."""
    reader, writer = await dial(listener)
    await eventually(lambda: bool(service.open))
    return reader, writer, service.open[-1]


async def test_a_connection_gives_its_socket_only_to_read_what_arrives_there() -> None:
    """A chunk's handler may read on from the socket of a plain connection that is open, from none that carries TLS."""
    server, client = tls_ends()
    told: list[tuple[int, bytes]] = []

    def answer(connection: Connection, command: RemotingCommand) -> None:
        fd = connection.fileno()
        told.append((fd, os.read(fd, 100) if fd >= 0 and command.body == b"read on" else b""))
        connection.send(command.reply())

    tunnel, service = Listener(), Frames(answer)
    await tunnel.start(Frames(answer), "127.0.0.1", 0, tls=server)
    try:
        async with listening(service) as plain, pooling(RemotePool(tls=client)) as pool:
            await pool.invoke(tunnel.address, request(), 10)
            assert told.pop() == (-1, b"")
            reader, writer, loop_side = await joined(plain, service)
            # One frame fills the buffer to its last byte; behind it there is more.
            frame = request(b"read on").encode()
            loop_side._view = loop_side._view[: len(frame)]
            writer.write(frame + b"the rest")
            await reader.readexactly(4)
            fd, rest = told.pop()
            assert fd >= 0 and rest == b"the rest"
            loop_side.abort("over")
            assert loop_side.fileno() == -1
            writer.close()
    finally:
        await tunnel.stop(grace_s=1)


async def test_replies_leave_at_once_or_with_the_round_when_the_buffer_was_full() -> None:
    """Who fills the buffer and gets its reply while it is still read goes on in the same round, before others."""
    service = Frames()
    async with listening(service) as listener:
        reader, _, connection = await joined(listener, service)
        frame = request(b"one").encode()
        for room, held in ((len(frame) + 1, []), (len(frame), [connection])):
            connection._view = memoryview(bytearray(frame) + bytes(room - len(frame)))
            connection.buffer_updated(len(frame))
            assert connection._hub.dirty == held
            length = int.from_bytes(await reader.readexactly(4))
            await reader.readexactly(length)


async def test_a_connection_that_gives_way_is_read_again_in_the_next_round() -> None:
    """It is not read in this round; in the next it is, unless somebody holds it for another reason by then."""
    service = Frames()
    async with listening(service) as listener:
        reader, writer, connection = await joined(listener, service)
        transport = connection.transport
        assert transport is not None
        connection.give_way()
        connection.give_way()
        assert not transport.is_reading()
        writer.write(request(b"one").encode())
        await reader.readexactly(4)
        assert transport.is_reading()
        connection.give_way()
        connection.hold_reading(True)
        for _ in range(3):
            await asyncio.sleep(0)  # a round of the loop
        assert not transport.is_reading()
        connection.hold_reading(False)
        assert transport.is_reading()
        connection.abort("over")
        connection.give_way()
        writer.close()


async def test_tls_and_plain_ends_part_with_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    """A stranger's certificate, plain bytes on a TLS port, TLS on a plain one: each ends at once, others go on."""
    server, client = tls_ends()
    listener = Listener()
    await listener.start(Frames(), "127.0.0.1", 0, tls=server)
    plain = Frames()
    try:
        async with listening(plain) as other, pooling(RemotePool(tls=client)) as pool:
            async with pooling(RemotePool(tls=ssl.create_default_context())) as stranger:
                with pytest.raises(ConnectError, match=r"(?i)certificate.verify.failed"):
                    await stranger.invoke(listener.address, request(), 5)
            with pytest.raises(ConnectError):
                await pool.invoke(other.address, request(), 5)
            assert other.counters["closed: tls"] == 1 and not plain.requests
            reader, writer = await dial(listener)
            writer.write(request().encode())
            with suppress(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 5)
            writer.close()
            assert (await pool.invoke(listener.address, request(b"alive"), 5)).body == b"alive"
    finally:
        await listener.stop(grace_s=1)
