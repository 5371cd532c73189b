"""Locks of queues for ordered consumption: one client of a group at a time, renewed every 20 s, kept for 60 s
or until the client leaves its group or loses its connection.

locked = order.lock("group", "10.0.0.7@4711", [("topic", 0), ("topic", 1)])     # those that it now holds
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aerobee.clock import Clock

LEASE_S: Final = 60.0

QueueKey = tuple[str, str, int]
"""Topic, broker name, queue id."""


class OrderLocks:
    """Which client holds which queue, by group."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._groups: dict[str, dict[QueueKey, tuple[str, float]]] = {}

    def lock(self, group: str, client_id: str, queues: Iterable[QueueKey]) -> list[QueueKey]:
        """Locks or renews those that are free, expired or already the client's; returns what it holds now."""
        now = self._clock.monotonic()
        held = self._groups.setdefault(group, {})
        locked = []
        for queue in queues:
            owner, since = held.get(queue, (client_id, now))
            if owner == client_id or now - since > LEASE_S:
                held[queue] = (client_id, now)
                locked.append(queue)
        return locked

    def unlock(self, group: str, client_id: str, queues: Iterable[QueueKey]) -> None:
        """Gives up those that the client holds."""
        held = self._groups.get(group, {})
        for queue in queues:
            if held.get(queue, ("", 0.0))[0] == client_id:
                del held[queue]
        if not held:
            self._groups.pop(group, None)

    def any_held(self, group: str) -> bool:
        """Somebody in the group holds a lock that has not expired: it consumes in order."""
        now = self._clock.monotonic()
        return any(now - since <= LEASE_S for _, since in self._groups.get(group, {}).values())

    def release(self, group: str, client_id: str) -> None:
        """The client is gone: others take its queues over at once instead of when its lease is over."""
        held = self._groups.get(group)
        if held is None:
            return
        kept = {queue: lease for queue, lease in held.items() if lease[0] != client_id}
        if kept:
            self._groups[group] = kept
        else:
            del self._groups[group]

    def forget_group(self, group: str) -> None:
        """The group was deleted."""
        self._groups.pop(group, None)
