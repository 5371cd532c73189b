"""Who of a group consumes which queues, and how: for clients that leave both to the broker (`clientRebalance=false`).

    mode PULL   the strategy's share of the topic's queues on all brokers
    mode POP    every broker once, queue -1 (pop from whatever queue), or, with `popShareQueueNum` n, the queues of a
                member and of the n members behind it

Modes by topic and group are Apache's `messageRequestMode.json`; retry topics are always pulled.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from aerobee.broker.clients import BROADCASTING, ClientTable
from aerobee.broker.config_file import ConfigFile
from aerobee.broker.options import BrokerOptions
from aerobee.broker.topics import RETRY_PREFIX
from aerobee.client.rebalance import STRATEGIES, AllocateStrategy, queue_order
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.pop import MessageRequestModeSerializeWrapper, SetMessageRequestModeRequestBody
from aerobee.protocol.fastjson import MessageQueue

_log = logging.getLogger("aerobee.broker.pop")

POP: Final = "POP"
PULL: Final = "PULL"


class RequestModes:
    """How each group consumes each topic; see the head of this file."""

    def __init__(self, options: BrokerOptions, config_dir: Path) -> None:
        self.file = ConfigFile(config_dir / "messageRequestMode.json", self._to_json)
        self.table: dict[str, dict[str, SetMessageRequestModeRequestBody]] = {}
        """Topic → group → mode."""
        self._options = options

    def load(self) -> None:
        """Reads the file, if there is one. Raises OSError, MalformedRequest."""
        data = self.file.load()
        if data:
            with self.file.reading():
                self.table = MessageRequestModeSerializeWrapper.from_dict(data).message_request_mode_map

    def mode(self, topic: str, group: str) -> SetMessageRequestModeRequestBody:
        """The mode that was set, or the default."""
        found = self.table.get(topic, {}).get(group)
        if found is not None:
            return found
        mode = PULL if topic.startswith(RETRY_PREFIX) else self._options.default_message_request_mode
        share = self._options.default_pop_share_queue_num if mode == POP else 0
        return SetMessageRequestModeRequestBody(topic=topic, consumer_group=group, mode=mode, pop_share_queue_num=share)

    async def set(self, mode: SetMessageRequestModeRequestBody) -> None:
        """Sets and writes a mode. Raises OSError."""
        self.table.setdefault(mode.topic, {})[mode.consumer_group] = mode
        await self.file.save()

    def to_json(self) -> bytes:
        """What GET_ALL_MESSAGE_REQUEST_MODE answers."""
        return MessageRequestModeSerializeWrapper(message_request_mode_map=self.table).to_json()

    def _to_json(self) -> bytes:
        wrapper = MessageRequestModeSerializeWrapper(message_request_mode_map=self.table)
        return fastjson.dumps(wrapper.to_dict(), pretty=True)


class Assignment:
    """The answers to QUERY_ASSIGNMENT. `queues_of(topic)`: the readable queues on all brokers; None: no such topic."""

    def __init__(
        self,
        options: BrokerOptions,
        clients: ClientTable,
        modes: RequestModes,
        queues_of: Callable[[str], Awaitable[list[MessageQueue] | None]],
    ) -> None:
        self._options = options
        self._clients = clients
        self._modes = modes
        self._queues_of = queues_of

    async def queues(
        self, topic: str, group: str, client_id: str, strategy_name: str | None, message_model: str | None
    ) -> tuple[list[MessageQueue] | None, str]:
        """(the member's queues, how to consume them); None: not known now, the client keeps what it has."""
        mode = self._modes.mode(topic, group)
        queues = await self._queues_of(topic)
        if queues is None or message_model == BROADCASTING or not self._options.server_load_balancer_enable:
            return queues, mode.mode
        members = self._clients.consumers.get(group)
        strategy = STRATEGIES.get(strategy_name or "")
        if members is None or strategy is None:
            count = len(members.members) if members is not None else 0
            _log.warning(
                "no queues of %s for %s of %s: strategy %s, members %d", topic, client_id, group, strategy_name, count
            )
            return None, mode.mode
        queues.sort(key=queue_order)
        client_ids = sorted(members.client_ids())
        if mode.mode == POP:
            return share_for_pop(client_id, queues, client_ids, strategy, mode.pop_share_queue_num), mode.mode
        return strategy(client_id, queues, client_ids), mode.mode


def share_for_pop(
    client_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str], strategy: AllocateStrategy, share: int
) -> list[MessageQueue]:
    """A popping member's queues; -1 stands for all queues of a broker."""
    if share <= 0 or share >= len(client_ids) - 1:
        return sorted({MessageQueue(queue.topic, queue.broker_name, -1) for queue in queues})
    if client_id not in client_ids or not queues:
        return []
    index = client_ids.index(client_id)
    if len(client_ids) > len(queues):
        return [queues[index % len(queues)]]
    mine: list[MessageQueue] = []
    for step in range(share + 1):
        mine += strategy(client_ids[(index + step) % len(client_ids)], queues, client_ids)
    return list(dict.fromkeys(mine))
