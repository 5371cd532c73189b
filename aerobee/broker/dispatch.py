"""From a command to its handler, and the only place that refuses for reasons other than a request's content:

who may (access), what is known (codes), whether the broker takes requests at all (starting, stopping), and how many one
connection may have under way. Where they wait for the disk nothing is refused: a connection that has too many of them,
or too long ones of any kind, is not read until some are answered. Handlers only do the thing; errors they raise become
responses in `protocol/reply`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

from aerobee.net.connection import Connection
from aerobee.protocol.body_limits import check_body
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.reply import error_reply

if TYPE_CHECKING:
    from aerobee._engine import CommandTuple
    from aerobee.broker.server import Broker

_log = logging.getLogger("aerobee.broker.dispatch")

Answer = RemotingCommand | None
Handler = Callable[["Broker", Connection, RemotingCommand], Answer | Awaitable[Answer]]
"""Answers a request: a response, None when there is nothing to say (or the engine says it), or something to await."""

STORING: Final = frozenset(
    {
        RequestCode.SEND_MESSAGE, RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE,
        RequestCode.CONSUMER_SEND_MSG_BACK, RequestCode.END_TRANSACTION, RequestCode.RECALL_MESSAGE,
        RequestCode.ACK_MESSAGE, RequestCode.BATCH_ACK_MESSAGE, RequestCode.CHANGE_MESSAGE_INVISIBLETIME,
    }
)  # fmt: skip
"""What waits for the disk alone. What waits for a client is not among it, as a reply pushed to its requester: the
answer may have to come through the connection that is not read."""

UNDER_WAY_MAX: Final = 4096
"""Requests of one connection that may wait at a time: so many of `STORING`, and so many others."""

UNDER_WAY_TOTAL_MAX: Final = 65_536
"""The same of all connections together."""

UNDER_WAY_BYTES_MAX: Final = 16 * 1024 * 1024
"""Bodies of those requests of one connection: above this it is not read until some are answered."""

UNDER_WAY_BYTES_TOTAL_MAX: Final = 128 * 1024 * 1024
"""The same of all connections together: above this no connection is read that has any."""


class Dispatcher:
    """The table of codes; see the head of this file."""

    def __init__(self, broker: Broker, handlers: Mapping[int, Handler]) -> None:
        self._broker = broker
        self._handlers = dict(handlers)
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: Counter[int] = Counter()
        self._storing: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()
        self._laden: dict[int, Connection] = {}
        self.under_way_bytes = 0
        """Bodies of all requests that wait."""
        self.storing = 0
        """Requests of `STORING` that wait."""
        self.accepting = True
        """False once the broker stops: what was accepted is finished, nothing else is begun."""
        self.counters: Counter[int] = Counter()
        """Requests by code, other than those the engine answers alone."""

    def serve(self, connection: Connection, frame: CommandTuple) -> None:
        """One command that the engine did not answer."""
        command = RemotingCommand.from_tuple(frame)
        if command.is_response:
            connection.resolve(command)
            return
        self.counters[command.code] += 1
        handler = self._handlers.get(command.code)
        refusal = self._refuse(connection, command, handler)
        if refusal is not None or handler is None:
            self._send(connection, command, refusal)
            return
        try:
            check_body(command.code, command.body)
            answer = handler(self._broker, connection, command)
        except Exception as error:
            self._send(connection, command, self._failed(connection, command, error))
            return
        if inspect.isawaitable(answer):
            task = asyncio.ensure_future(self._finish(connection, command, answer))
            self._tasks.add(task)
            self._take_on(connection, command)
            task.add_done_callback(self._tasks.discard)
        else:
            self._send(connection, command, answer)

    def _take_on(self, connection: Connection, command: RemotingCommand) -> None:
        number = connection.id
        if command.code in STORING:
            self._storing[number] += 1
            self.storing += 1
        else:
            self._under_way[number] += 1
        if command.body:
            self._bytes[number] += len(command.body)
            self.under_way_bytes += len(command.body)
        if not self._may_read(number):
            self._laden[number] = connection
            connection.load(True)

    def _let_off(self, connection: Connection, command: RemotingCommand) -> None:
        number, was_full = connection.id, self._is_full
        if command.code in STORING:
            _subtract(self._storing, number, 1)
            self.storing -= 1
        else:
            _subtract(self._under_way, number, 1)
        if command.body:
            _subtract(self._bytes, number, len(command.body))
            self.under_way_bytes -= len(command.body)
        if not self._laden:
            return
        for_all = was_full and not self._is_full
        for number in list(self._laden) if for_all else [connection.id]:
            if number in self._laden and self._may_read(number):
                self._laden.pop(number).load(False)

    @property
    def _is_full(self) -> bool:
        """All together have as much under way as they may: no connection is read that has a part in it."""
        return self.under_way_bytes > UNDER_WAY_BYTES_TOTAL_MAX or self.storing >= UNDER_WAY_TOTAL_MAX

    def _may_read(self, number: int) -> bool:
        size, count = self._bytes[number], self._storing[number]
        if size > UNDER_WAY_BYTES_MAX or count >= UNDER_WAY_MAX:
            return False
        return (size == 0 and count == 0) or not self._is_full

    def _refuse(self, connection: Connection, command: RemotingCommand, handler: Handler | None) -> Answer:
        if handler is None:
            return command.reply(
                ResponseCode.REQUEST_CODE_NOT_SUPPORTED, remark=f" request type {command.code} not supported"
            )
        if not self.accepting:
            return command.reply(ResponseCode.SERVICE_NOT_AVAILABLE, remark="the broker is stopping")
        if command.code in STORING:
            return None
        if self._under_way[connection.id] >= UNDER_WAY_MAX:
            return command.reply(
                ResponseCode.SYSTEM_BUSY,
                remark=f"this connection has {UNDER_WAY_MAX} requests under way, which is the limit",
            )
        if len(self._tasks) - self.storing >= UNDER_WAY_TOTAL_MAX:
            return command.reply(
                ResponseCode.SYSTEM_BUSY,
                remark=f"the broker has {UNDER_WAY_TOTAL_MAX} requests under way, which is the limit",
            )
        return None

    async def _finish(self, connection: Connection, command: RemotingCommand, answer: Awaitable[Answer]) -> None:
        try:
            reply = await answer
        except Exception as error:
            reply = self._failed(connection, command, error)
        finally:
            self._let_off(connection, command)
        self._send(connection, command, reply)

    def _failed(self, connection: Connection, command: RemotingCommand, error: Exception) -> RemotingCommand:
        return error_reply(command, error)

    @staticmethod
    def _send(connection: Connection, command: RemotingCommand, reply: Answer) -> None:
        if reply is not None and not command.is_oneway:
            connection.write(reply.encode())

    async def drain(self, grace_s: float) -> None:
        """Begins nothing more and waits for what was accepted, at most `grace_s` seconds."""
        self.accepting = False
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)


def _subtract(counter: Counter[int], number: int, amount: int) -> None:
    counter[number] -= amount
    if counter[number] <= 0:
        del counter[number]
