"""Pulls of the broker's own: the engine answers (or parks) them as it does a client's; who asked gets the reply.

The engine knows connections by their session; this is one without a socket.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
from typing import TYPE_CHECKING, cast

from aerobee.net.connection import Connection
from aerobee.protocol.command import FrameDecoder, RemotingCommand

if TYPE_CHECKING:
    from aerobee.broker.dispatch import Handler
    from aerobee.broker.server import Broker


class InnerPulls:
    """See the head of this file. To the store it is a connection that never blocks and never closes."""

    id = 0
    """No connection's, so it is a member of no group."""
    peer = "127.0.0.1:0"
    blocked = False
    closed = False

    def __init__(self, broker: Broker) -> None:
        self.session = 0
        self._broker = broker
        self._opaques = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[RemotingCommand]] = {}
        self._decoder = FrameDecoder()

    async def pull(self, handler: Handler, request: RemotingCommand) -> RemotingCommand:
        """What the handler or, later, the engine answers."""
        connection = cast(Connection, self)
        if not self.session:
            self._broker.store.connected(connection)
        request.opaque = opaque = next(self._opaques) & 0x7FFFFFFF
        waiting = self._waiting[opaque] = asyncio.get_running_loop().create_future()
        try:
            answer = handler(self._broker, connection, request)
            reply = await answer if inspect.isawaitable(answer) else answer
            return reply if reply is not None else await waiting
        finally:
            del self._waiting[opaque]

    def write(self, data: bytes) -> None:
        """Replies, as the store writes them."""
        for reply in self._decoder.feed(data):
            waiting = self._waiting.get(reply.opaque)
            if waiting is not None and not waiting.done():
                waiting.set_result(reply)

    write_through = write
