"""`eventually` and the proxy that misbehaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aerobee.testing import ChaosProxy, eventually, eventually_sync


async def test_eventually_returns_what_was_true() -> None:
    count = 0

    async def third() -> int:
        nonlocal count
        count += 1
        assert count > 1
        return 7 if count == 3 else 0

    assert await eventually(third) == 7
    assert eventually_sync(lambda: "x") == "x"


async def test_eventually_says_what_was_missing() -> None:
    with pytest.raises(AssertionError, match="last value: 0"):
        await eventually(lambda: 0, timeout_s=0.05)
    with pytest.raises(AssertionError, match="KeyError"):
        await eventually(lambda: {}["k"], timeout_s=0.05)
    with pytest.raises(AssertionError, match="last value: None"):
        eventually_sync(lambda: None, timeout_s=0.05)


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[ChaosProxy]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with ChaosProxy(f"127.0.0.1:{port}") as proxy:
        yield proxy
    server.close()


async def talk(proxy: ChaosProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def test_bytes_pass_in_order_delayed_and_halved(proxy: ChaosProxy) -> None:
    reader, writer = await talk(proxy)
    writer.write(b"plain")
    assert await reader.readexactly(5) == b"plain"
    proxy.delay_s = 0.05
    began = time.monotonic()
    writer.write(b"late")
    assert await reader.readexactly(4) == b"late"
    assert time.monotonic() - began >= 0.1, "both ways"
    proxy.delay_s, proxy.halve = 0.0, True
    data = bytes(range(256)) * 100
    writer.write(data)
    assert await reader.readexactly(len(data)) == data
    writer.close()


async def test_drop_is_silence(proxy: ChaosProxy) -> None:
    reader, writer = await talk(proxy)
    proxy.drop = True
    writer.write(b"lost")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.read(1)
    proxy.drop = False
    writer.write(b"back")
    assert await reader.readexactly(4) == b"back"
    writer.close()


async def test_cut_and_refuse(proxy: ChaosProxy) -> None:
    reader, writer = await talk(proxy)
    writer.write(b"x")
    await reader.readexactly(1)
    assert proxy.cut() == 2
    with pytest.raises(ConnectionError):
        if not await reader.read(1):
            raise ConnectionResetError
    proxy.refuse = True
    reader, writer = await talk(proxy)
    with pytest.raises(ConnectionError):
        if not await reader.read(1):
            raise ConnectionResetError
