"""Locks of queues for ordered consumption: one client of a group at a time.

locked = order.lock("group", "10.0.0.7@4711", [("topic", "broker-a", 0), ("topic", "broker-a", 1)])  # what it now holds

A lock is a lease of 60 s, renewed every 20 s; clients trust one for 30 s. It ends at once when its holder unlocks the
queue, leaves the group or loses its connection: whoever asks next has it.

A client whose connection ends is dead, as a rule. It may also be alive and go on with what it has fetched; then it is
back within seconds: a Java client pulls again after three. If the queue's next holder began at once, two clients would
work on one queue side by side. So for five seconds (`LOST_S`) the next holder is an heir: the queue is its own, but its
pulls wait (`handlers/pull.py`). If the former holder comes back in that time, the queue is its again, as it believes;
the heir is given nothing until it has noticed, at its next lock or unlock. If it comes back later, the queue is the
heir's, and the former holder is given nothing until it has noticed; what it had fetched before it works off, beside
the heir.

When this broker stops, all connections end. Who held what is therefore kept in `config/orderLocks.json` (no file of
Apache's), and counts as if those clients had lost their connections when the broker is started again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aerobee.broker.config_file import ConfigFile
from aerobee.clock import Clock
from aerobee.errors import MalformedRequest
from aerobee.protocol import fastjson

_log = logging.getLogger("aerobee.broker.order")

LEASE_S: Final = 60.0
LOST_S: Final = 5.0
TRUST_S: Final = 30.0
"""How long a client acts on a lock without asking again."""
NOTICES_S: Final = 1.0

QueueKey = tuple[str, str, int]
"""Topic, broker name, queue id."""


@dataclass(slots=True)
class _Lease:
    """Monotonic times: when it was renewed, and when its holder's connection ended. `former`: the lease of a holder
    that is lost, of which this one is the heir's. `ousted`: who was its heir, or its former holder, and may not know
    that it is no more."""

    holder: str
    renewed_s: float
    lost_s: float | None = None
    former: _Lease | None = None
    ousted: str = ""
    ousted_s: float = 0.0

    def is_over(self, now_s: float) -> bool:
        if self.lost_s is not None and now_s - self.lost_s >= LOST_S:
            return True
        return now_s - self.renewed_s > LEASE_S


class OrderLocks:
    """Which client holds which queue, by group. `on_heirs(group)`: what `has_heirs` says may have changed."""

    def __init__(self, clock: Clock, config_dir: Path, *, on_heirs: Callable[[str], None] = lambda group: None) -> None:
        self._on_heirs = on_heirs
        self.file = ConfigFile(config_dir / "orderLocks.json", self._to_json)
        self._clock = clock
        self._groups: dict[str, dict[QueueKey, _Lease]] = {}
        self._changed = asyncio.Event()

    # Its holder's word.

    def lock(self, group: str, client_id: str, queues: Iterable[QueueKey]) -> list[QueueKey]:
        """Locks or renews those that are free, over, lost or already the client's; returns what it holds now."""
        now_s = self._clock.monotonic()
        held = self._groups.get(group, {})
        locked, inherited = [], False
        for queue in queues:
            lease = held.get(queue)
            if lease is not None:
                self._settle(group, lease, now_s)
            if lease is not None and lease.former is not None and lease.former.holder == client_id:
                lease = self._is_there(group, held, queue)
            former = None
            if lease is not None and lease.ousted == client_id:
                lease.ousted = ""
            if lease is not None and not lease.is_over(now_s):
                if lease.holder == client_id:
                    former = lease.former
                elif lease.lost_s is None:
                    continue
                else:
                    former, inherited = lease.former or lease, True
            if lease is None or lease.holder != client_id:
                self._changed.set()
            if lease is not None and lease.holder == client_id:
                lease.renewed_s, lease.lost_s, lease.former = now_s, None, former
            else:
                held[queue] = _Lease(client_id, now_s, former=former)
            locked.append(queue)
        if locked:
            self._groups[group] = held
        if inherited:
            self._on_heirs(group)
        return locked

    def unlock(self, group: str, client_id: str, queues: Iterable[QueueKey]) -> None:
        """Gives up those that the client holds."""
        held = self._groups.get(group, {})
        mine = []
        for queue in queues:
            lease = held.get(queue)
            if lease is not None and lease.holder == client_id:
                mine.append(queue)
            elif lease is not None and lease.former is not None and lease.former.holder == client_id:
                lease.former = None
            elif lease is not None and lease.ousted == client_id:
                lease.ousted = ""
        self._remove(group, mine)

    def release(self, group: str, client_id: str) -> None:
        """The client has left its group."""
        self.unlock(group, client_id, list(self._groups.get(group, {})))

    # What else says whether it is there.

    def lost(self, group: str, client_id: str) -> None:
        """The client's connection has ended, without a word."""
        now_s = self._clock.monotonic()
        for lease in self._groups.get(group, {}).values():
            if lease.holder == client_id and lease.lost_s is None:
                lease.lost_s = now_s

    def back(self, group: str, client_id: str) -> None:
        """The client is a member again."""
        held = self._groups.get(group, {})
        for queue, lease in list(held.items()):
            if client_id == (lease.former or lease).holder:
                self._is_there(group, held, queue)
            elif client_id == lease.holder:
                lease.lost_s = None

    def consumed(self, group: str, queue: QueueKey) -> None:
        """Somebody who is no member has committed an offset of the queue: a holder that is back. Some clients say it
        long before their next heartbeat."""
        held = self._groups.get(group, {})
        if queue in held:
            self._is_there(group, held, queue)

    def _settle(self, group: str, heir: _Lease, now_s: float) -> None:
        """Who held the queue before comes back no more: the heir has begun, and is the one who may come back if it
        loses its connection."""
        if heir.former is not None and heir.former.is_over(now_s):
            heir.ousted, heir.ousted_s, heir.former = heir.former.holder, now_s, None
            self._on_heirs(group)

    def _is_there(self, group: str, held: dict[QueueKey, _Lease], queue: QueueKey) -> _Lease:
        """The one who held the queue last is there; whose it is now."""
        heir, now_s = held[queue], self._clock.monotonic()
        self._settle(group, heir, now_s)
        lease = heir.former or heir
        if lease.lost_s is None or lease.is_over(now_s):
            return heir
        lease.lost_s = None
        if lease is not heir:
            held[queue], lease.ousted, lease.ousted_s = lease, heir.holder, now_s
        return lease

    def wait_s(self, group: str, queue: QueueKey, client_id: str) -> float:
        """How long the client is not to be given messages of the queue: it is an heir and the former holder may come
        back, or the queue has become another's, and the client may not know. A client that pulls before its first
        heartbeat (\"\") may be that one."""
        lease, now_s = self._groups.get(group, {}).get(queue), self._clock.monotonic()
        if lease is None:
            return 0.0
        if lease.former is not None and lease.former.lost_s is not None:
            return max(0.0, lease.former.lost_s + LOST_S - now_s)
        is_ousted = lease.ousted != "" and client_id in (lease.ousted, "") and lease.ousted_s + TRUST_S > now_s
        return NOTICES_S if is_ousted else 0.0

    def has_heirs(self, group: str) -> bool:
        """Whether `wait_s` is more than 0 for any queue and client."""
        return any(self.wait_s(group, queue, lease.ousted) > 0 for queue, lease in self._groups.get(group, {}).items())

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
            for lease in held.values():
                self._settle(group, lease, now_s)
                if lease.ousted and lease.ousted_s + TRUST_S <= now_s:
                    lease.ousted = ""
                    self._on_heirs(group)

    def load(self) -> None:
        """Reads who held what when this broker was last seen. Raises OSError."""
        now_s = self._clock.monotonic()
        try:
            for group, rows in (self.file.load() or {}).items():
                self._groups[group] = {
                    (row["topic"], row["brokerName"], row["queueId"]): _Lease(row["clientId"], now_s, lost_s=now_s)
                    for row in rows
                }
        except (AttributeError, KeyError, MalformedRequest, TypeError) as error:
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
        now_s = self._clock.monotonic()
        for queue in queues:
            former = held.pop(queue).former
            if former is not None and not former.is_over(now_s):
                held[queue] = former  # the heir has had nothing of it
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
