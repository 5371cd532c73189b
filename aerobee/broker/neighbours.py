"""The other masters: asked for what they have of a static topic, and told of a topic that a send has created here, so
that it does not stay here alone.

A broker creates an unknown topic when somebody sends to it, and only itself; from then on every client finds the topic
and sends to that one broker for ever (Apache's #2744, #6657). So the one that created it asks a name server for the
masters of its cluster and creates the topic on each that does not have it. The send is answered then, or after a
second: who looks for the topic's route next finds all of it. A neighbour that refuses or that nobody can reach is named
in the log.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aerobee.broker.options import BrokerOptions
from aerobee.broker.registration import Registration
from aerobee.errors import AerobeeError, ConnectError
from aerobee.net.remote import RemotePool
from aerobee.protocol.bodies.topics import TopicConfig
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.topics import CreateTopic

_log = logging.getLogger("aerobee.broker.neighbours")

TIMEOUT_S: Final = 3.0
SPREAD_S: Final = 1.0
"""Java's producers give up after three."""


class Neighbours:
    """See the head of this file."""

    def __init__(self, options: BrokerOptions, registration: Registration) -> None:
        self._options = options
        self._registration = registration
        self._pool = RemotePool()
        self._tasks: set[asyncio.Task[None]] = set()
        self._addresses: dict[str, str] = {}

    async def created(self, config: TopicConfig) -> None:
        """A send has created this topic here: tells the others. Returns when they have it, or after a second."""
        task = asyncio.ensure_future(self._tell(config))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait([task], timeout=SPREAD_S)

    async def ask(self, name: str, command: RemotingCommand) -> RemotingCommand:
        """What the master of that name answers. Raises RequestTimeout, and ConnectError (also for an unknown name)."""
        for attempt in range(2):
            if name not in self._addresses:
                self._addresses = await self._registration.brokers()
            address = self._addresses.get(name)
            if address is None:
                raise ConnectError(f"no name server knows a master of broker {name}")
            try:
                return await self._pool.invoke(address, command, TIMEOUT_S)
            except ConnectError:
                self._addresses.pop(name, None)  # it may have come back with another address
                if attempt:
                    raise
        raise AssertionError("two attempts end in a return or an error")

    async def stop(self) -> None:
        """Tells nobody any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pool.close()

    async def _tell(self, config: TopicConfig) -> None:
        await self._registration.told()
        masters = await self._registration.masters()
        masters.pop(self._options.broker_name, None)
        await asyncio.gather(*(self._create(name, address, config) for name, address in sorted(masters.items())))

    async def _create(self, name: str, address: str, config: TopicConfig) -> None:
        topic = config.topic_name
        question = RemotingCommand.request(RequestCode.GET_TOPIC_CONFIG)
        question.ext_fields["topic"] = topic
        header = CreateTopic(
            topic=topic,
            read_queue_nums=config.read_queue_nums,
            write_queue_nums=config.write_queue_nums,
            perm=config.perm,
            topic_sys_flag=config.topic_sys_flag,
        )
        try:
            if (await self._pool.invoke(address, question, TIMEOUT_S)).code == ResponseCode.SUCCESS:
                return
            request = RemotingCommand.request(RequestCode.UPDATE_AND_CREATE_TOPIC, header)
            reply = await self._pool.invoke(address, request, TIMEOUT_S)
            problem = None if reply.code == ResponseCode.SUCCESS else reply.remark
        except (AerobeeError, OSError) as error:
            problem = str(error)
        if problem is None:
            _log.warning("topic %s was created by a send: created on broker %s too", topic, name)
        else:
            _log.warning("topic %s was created by a send, but not on broker %s: %s", topic, name, problem)
