"""A TCP proxy that misbehaves on request, to see how both ends take it.

    async with ChaosProxy("127.0.0.1:10911") as proxy:
        client = Producer(...)          # made to connect to proxy.address
        proxy.delay_s = 0.2             # every chunk, both ways, arrives late
        proxy.halve = True              # every chunk arrives in two pieces
        proxy.drop = True               # bytes vanish, connections stay: a network that went silent
        proxy.cut()                     # all connections end at once, with a reset
        proxy.refuse = True             # new connections are closed as soon as they are made

Faults apply from the next chunk on and may be changed at any time. Order of bytes is always kept: TCP does that too.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Self

CHUNK_BYTES = 65536
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


class ChaosProxy:
    """Stands at `address` in front of `target` ("host:port")."""

    def __init__(self, target: str, *, port: int = 0) -> None:
        self.target = target
        self.address = ""
        self.delay_s = 0.0
        self.halve = False
        self.drop = False
        self.refuse = False
        self.connections_made = 0
        self.bytes_passed = 0
        self._port = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> Self:
        """Listens on loopback; from here on `address` is where clients should connect."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        return self

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> int:
        """Resets every connection, on both sides; returns how many ends there were."""
        count = len(self._writers)
        for writer in tuple(self._writers):
            sock = writer.get_extra_info("socket")
            if sock is not None:
                try:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                except OSError:
                    pass  # it ended on its own in this moment
            writer.transport.abort()
        return count

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_made += 1
        if self.refuse:
            writer.transport.abort()
            return
        host, _, port = self.target.rpartition(":")
        try:
            there, there_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there_writer}
        for source, sink in ((reader, there_writer), (there, writer)):
            task = asyncio.ensure_future(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(CHUNK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.drop:
                    continue
                self.bytes_passed += len(data)
                middle = len(data) // 2
                if self.halve and middle:
                    sink.write(data[:middle])
                    await sink.drain()
                    await asyncio.sleep(0.001)  # long enough to leave in a segment of its own
                    data = data[middle:]
                sink.write(data)
                await sink.drain()
        except OSError:
            pass  # one side was cut; the other is closed below
        finally:
            self._writers.discard(sink)
            sink.close()
