"""Locks of queues for ordered consumption: one client of a group at a time.

locked = order.lock("group", "10.0.0.7@4711", [("topic", "broker-a", 0), ("topic", "broker-a", 1)])  # what it now holds

A lock is a lease of 60 s, renewed every 20 s; clients trust one for 30 s. It ends at once when its holder says so, by
unlocking the queue or leaving the group. A client whose connection merely ends may be alive. It goes on with what it
has fetched, and is heard of within seconds: it pulls again after three, writes its offsets every five. If its queues
were free meanwhile, two clients would consume one queue side by side. So they stay its own for ten seconds more; then
it counts as dead, and who waits for them gets them.

When this broker stops, all connections end. Who held what is therefore kept in `config/orderLocks.json` (no file of
Apache's), and counts as if those clients had lost their connections when the broker is started again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aerobee.broker.config_file import ConfigFile
from aerobee.clock import Clock
from aerobee.protocol import fastjson

_log = logging.getLogger("aerobee.broker.order")

LEASE_S: Final = 60.0
LOST_S: Final = 10.0

QueueKey = tuple[str, str, int]
"""Topic, broker name, queue id."""


@dataclass(slots=True)
class _Lease:
    """Monotonic times: when it was renewed, and when its holder's connection ended."""

    holder: str
    renewed_s: float
    lost_s: float | None = None

    def is_over(self, now_s: float) -> bool:
        if self.lost_s is not None and now_s - self.lost_s > LOST_S:
            return True
        return now_s - self.renewed_s > LEASE_S


class OrderLocks:
    """Which client holds which queue, by group."""

    def __init__(self, clock: Clock, config_dir: Path) -> None:
        self.file = ConfigFile(config_dir / "orderLocks.json", self._to_json)
        self._clock = clock
        self._groups: dict[str, dict[QueueKey, _Lease]] = {}
        self._changed = asyncio.Event()

    # Its holder's word.

    def lock(self, group: str, client_id: str, queues: Iterable[QueueKey]) -> list[QueueKey]:
        """Locks or renews those that are free, over or already the client's; returns what it holds now."""
        now_s = self._clock.monotonic()
        held = self._groups.get(group, {})
        locked = []
        for queue in queues:
            lease = held.get(queue)
            if lease is None or lease.holder != client_id:
                if lease is not None and not lease.is_over(now_s):
                    continue
                self._changed.set()
            held[queue] = _Lease(client_id, now_s)
            locked.append(queue)
        if locked:
            self._groups[group] = held
        return locked

    def unlock(self, group: str, client_id: str, queues: Iterable[QueueKey]) -> None:
        """Gives up those that the client holds."""
        held = self._groups.get(group, {})
        self._remove(group, [queue for queue in queues if queue in held and held[queue].holder == client_id])

    def release(self, group: str, client_id: str) -> None:
        """The client has left its group."""
        held = self._groups.get(group, {})
        self._remove(group, [queue for queue, lease in held.items() if lease.holder == client_id])

    # What else says whether it is there.

    def lost(self, group: str, client_id: str) -> None:
        """The client's connection has ended, without a word."""
        now_s = self._clock.monotonic()
        for lease in self._groups.get(group, {}).values():
            if lease.holder == client_id and lease.lost_s is None:
                lease.lost_s = now_s

    def back(self, group: str, client_id: str) -> None:
        """The client is a member again."""
        for lease in self._groups.get(group, {}).values():
            if lease.holder == client_id:
                self._is_there(lease)

    def consumed(self, group: str, queue: QueueKey) -> None:
        """Somebody has committed an offset of the queue: that is its holder. Some clients say it long before their next
        heartbeat."""
        lease = self._groups.get(group, {}).get(queue)
        if lease is not None:
            self._is_there(lease)

    def _is_there(self, lease: _Lease) -> None:
        if lease.lost_s is not None and not lease.is_over(self._clock.monotonic()):
            lease.lost_s = None

    # Asking, forgetting, keeping.

    def any_held(self, group: str) -> bool:
        """Somebody in the group holds a lock that is not over: it consumes in order."""
        now_s = self._clock.monotonic()
        return any(not lease.is_over(now_s) for lease in self._groups.get(group, {}).values())

    def forget_group(self, group: str) -> None:
        """The group was deleted."""
        self._remove(group, list(self._groups.get(group, {})))

    def expire(self) -> None:
        """Forgets what is over."""
        now_s = self._clock.monotonic()
        for group, held in list(self._groups.items()):
            self._remove(group, [queue for queue, lease in held.items() if lease.is_over(now_s)])

    def load(self) -> None:
        """Reads who held what when this broker was last seen. Raises OSError."""
        now_s = self._clock.monotonic()
        try:
            for group, rows in (self.file.load() or {}).items():
                self._groups[group] = {
                    (row["topic"], row["brokerName"], row["queueId"]): _Lease(row["clientId"], now_s, lost_s=now_s)
                    for row in rows
                }
        except (AttributeError, KeyError, TypeError) as error:
            _log.error("%s is not what this broker writes (%r): no queue is locked", self.file.path, error)

    async def run(self) -> None:
        """Writes every change, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self.file.save()
            except OSError as error:
                _log.error("who holds which queue could not be written: %s", error)

    def _remove(self, group: str, queues: Iterable[QueueKey]) -> None:
        held = self._groups.get(group)
        if held is None:
            return
        for queue in queues:
            del held[queue]
            self._changed.set()
        if not held:
            del self._groups[group]

    def _to_json(self) -> bytes:
        table = {
            group: [
                {"topic": topic, "brokerName": name, "queueId": queue_id, "clientId": lease.holder}
                for (topic, name, queue_id), lease in held.items()
            ]
            for group, held in self._groups.items()
        }
        return fastjson.dumps(table, pretty=True)
