"""Who is connected: producers and consumers by group, as their heartbeats say, and what each consumer subscribes to.

A client lives until it unregisters, its connection ends, or nothing was heard of it for `channelExpiredTimeout`.
Members of a clustering group hear of every change, see `notices.py`. Thousands of clients come and go all at once:
nothing here walks the others when one does.

A group's subscription to a topic is the newest one (by version) among its members, and it stays while any member has
it. Apache replaces the whole set with every heartbeat, so that members with different sets take each other's topics
away in turn; here nobody loses a topic, and the mismatch is logged (once per change), counted, and kept in
`ConsumerGroup.mismatch` for the console.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from aerobee.broker.subscriptions import Subscriptions
from aerobee.clock import Clock
from aerobee.net.connection import Connection
from aerobee.protocol.bodies.client import SubscriptionData
from aerobee.protocol.command import LANGUAGE_NAMES

_log = logging.getLogger("aerobee.broker.clients")

K = TypeVar("K")
CPP = LANGUAGE_NAMES.index("CPP")
PUSH = "CONSUME_PASSIVELY"
PULL = "CONSUME_ACTIVELY"
CLUSTERING = "CLUSTERING"
BROADCASTING = "BROADCASTING"


@dataclass(slots=True)
class Client:
    """A member of a group. `heard_s`: monotonic time of its last heartbeat; `last_ms`: the same for people; `place`:
    its number in the group, by the order in which members came (consumers only)."""

    client_id: str
    connection: Connection
    language: int
    version: int
    heard_s: float = 0.0
    last_ms: int = 0
    place: int = 0
    subscriptions: dict[str, SubscriptionData] = field(default_factory=dict)
    """Topic → subscription (consumers only)."""


@dataclass(slots=True)
class ConsumerGroup:
    """The members of a consumer group that are connected now."""

    name: str
    consume_type: str = PUSH
    message_model: str = CLUSTERING
    consume_from_where: str = "CONSUME_FROM_LAST_OFFSET"
    notify: bool = True
    members: dict[int, Client] = field(default_factory=dict)
    """Connection id → member; `admit` and `dismiss` change it."""
    wanted: Subscriptions = field(default_factory=Subscriptions)
    """What they subscribe to, by `Client.place`."""
    fingerprint: int = 0
    committers: dict[tuple[str, int], int] = field(default_factory=dict)
    """Topic and queue → id of the connection that committed last; of groups that pull."""
    _places: int = 0
    _of_id: dict[str, dict[int, Client]] = field(default_factory=dict)
    """Client id → its members by connection: an old connection may outlive the new one's heartbeat."""

    @property
    def subscriptions(self) -> dict[str, SubscriptionData]:
        """Topic → the subscription in force."""
        return self.wanted.in_force

    @property
    def mismatch(self) -> str:
        """How the members' subscriptions differ; empty when they do not."""
        return self.wanted.mismatch

    def client_ids(self) -> list[str]:
        """Ids of the members, in the order in which they came."""
        return [member.client_id for member in self.members.values()]

    def find(self, client_id: str) -> Client | None:
        """The member with this id."""
        return next(iter(self._of_id.get(client_id, {}).values()), None)

    def admit(self, member: Client) -> None:
        """A member came, whose subscriptions are not known yet; it takes the place of another one on its connection."""
        connection_id = member.connection.id
        before = self.members.get(connection_id)
        if before is None:
            self._places += 1
            member.place = self._places
        else:
            member.place = before.place
            _take_out(self._of_id, before.client_id, connection_id)
        self.members[connection_id] = member
        self._of_id.setdefault(member.client_id, {})[connection_id] = member
        self.wanted.put(member.place, member.client_id, member.subscriptions)

    def dismiss(self, connection_id: int) -> Client | None:
        """Whoever spoke through this connection is no member any more."""
        member = self.members.pop(connection_id, None)
        if member is not None:
            _take_out(self._of_id, member.client_id, connection_id)
            self.wanted.drop(member.place)
        return member


class ClientTable:
    """Producers and consumers; see the head of this file.

    `on_subscription(group, topic, subscription or None)` hears of every subscription in force that changes;
    `notify(group)` has its members told; before it, `on_join(group, client id)`, `on_leave` and `on_lost` hear of a
    member that comes, says goodbye, or has no connection any more.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        on_subscription: Callable[[str, str, SubscriptionData | None], None] = lambda group, topic, subscription: None,
        notify: Callable[[str], None] = lambda group: None,
        on_join: Callable[[str, str], None] = lambda group, client_id: None,
        on_leave: Callable[[str, str], None] = lambda group, client_id: None,
        on_lost: Callable[[str, str], None] = lambda group, client_id: None,
    ) -> None:
        self.consumers: dict[str, ConsumerGroup] = {}
        self.producers: dict[str, dict[int, Client]] = {}
        self.counters: Counter[str] = Counter()
        """`mismatches`, `expired`, `disconnected`."""
        self._clock = clock
        self._on_subscription = on_subscription
        self._notify = notify
        self._on_join = on_join
        self._on_leave = on_leave
        self._on_lost = on_lost
        self._of_connection: dict[int, tuple[set[str], set[str]]] = {}
        """Connection id → (consumer groups, producer groups)."""
        self._producers_of_id: dict[str, dict[tuple[str, int], Client]] = {}
        """Client id → its producers by group and connection id, the newest last."""

    # Coming.

    def register_consumer(
        self,
        name: str,
        client: Client,
        *,
        consume_type: str,
        message_model: str,
        consume_from_where: str,
        subscriptions: Iterable[SubscriptionData] | None,
        notify: bool,
    ) -> bool:
        """A consumer's heartbeat. `subscriptions` None: as last time (heartbeat V2). True when the group changed."""
        group = self.consumers.get(name)
        if group is None:
            group = self.consumers[name] = ConsumerGroup(name)
        group.consume_type, group.message_model, group.consume_from_where = (
            consume_type,
            message_model,
            consume_from_where,
        )
        group.notify = notify
        member = group.members.get(client.connection.id)
        joined = member is None or member.client_id != client.client_id
        if member is None or joined:
            member = client
            group.admit(member)
            self._groups_of(client.connection)[0].add(name)
            _log.info("consumer %s (%s) joined group %s", client.client_id, client.connection.peer, name)
            self._on_join(name, client.client_id)
        self._heard(member)
        changed = False
        if subscriptions is not None:
            new = {subscription.topic: subscription for subscription in subscriptions}
            if joined or _versions(new) != _versions(member.subscriptions):
                member.subscriptions = new
                group.wanted.put(member.place, member.client_id, new)
                changed = self._update_subscriptions(group)
        if joined or changed:
            self._tell(group)
        return joined or changed

    def register_producer(self, name: str, client: Client) -> None:
        """A producer's heartbeat."""
        members = self.producers.setdefault(name, {})
        member = members.get(client.connection.id)
        if member is None or member.client_id != client.client_id:
            key = name, client.connection.id
            if member is not None:
                _take_out(self._producers_of_id, member.client_id, key)
            member = members[client.connection.id] = client
            self._producers_of_id.setdefault(client.client_id, {})[key] = client
            self._groups_of(client.connection)[1].add(name)
            _log.info("producer %s (%s) joined group %s", client.client_id, client.connection.peer, name)
        self._heard(member)

    # Going.

    def unregister_consumer(self, name: str, connection: Connection) -> None:
        """A consumer leaves its group."""
        self._groups_of(connection)[0].discard(name)
        self._remove_consumer(name, connection.id)

    def unregister_producer(self, name: str, connection: Connection) -> None:
        """A producer leaves its group."""
        self._groups_of(connection)[1].discard(name)
        self._remove_producer(name, connection.id)

    def disconnected(self, connection: Connection) -> None:
        """A connection ended: everybody who spoke through it is gone."""
        consumers, producers = self._of_connection.pop(connection.id, ((), ()))
        for name in consumers:
            self.counters["disconnected"] += 1
            self._remove_consumer(name, connection.id, lost=True)
        for name in producers:
            self._remove_producer(name, connection.id)

    def expire(self, timeout_s: float) -> None:
        """Forgets (and disconnects) clients that have been silent for longer."""
        oldest = self._clock.monotonic() - timeout_s
        silent: dict[int, Client] = {}
        for group in self.consumers.values():
            silent.update({key: member for key, member in group.members.items() if member.heard_s < oldest})
        for members in self.producers.values():
            silent.update({key: member for key, member in members.items() if member.heard_s < oldest})
        for member in silent.values():
            self.counters["expired"] += 1
            _log.warning(
                "client %s (%s) is silent for %d s and was disconnected",
                member.client_id,
                member.connection.peer,
                timeout_s,
            )
            self.disconnected(member.connection)
            member.connection.close("client expired")

    # Asking.

    def groups_of_topic(self, topic: str) -> list[str]:
        """Consumer groups that subscribe to the topic now."""
        return sorted(name for name, group in self.consumers.items() if topic in group.subscriptions)

    def subscription(self, group: str, topic: str) -> SubscriptionData | None:
        """The subscription in force."""
        found = self.consumers.get(group)
        return found.subscriptions.get(topic) if found is not None else None

    def producer(self, group: str) -> Client | None:
        """A producer of the group that can be asked about its transactions; each call another one. One that does not
        read what it is sent is the last choice."""
        members = self.producers.get(group, {})
        deaf = None
        for _ in range(len(members)):
            key = next(iter(members))
            member = members[key] = members.pop(key)  # to the end of the row
            if member.connection.closed:
                continue
            if not member.connection.blocked:
                return member
            deaf = deaf or member
        return deaf

    def producer_by_client_id(self, client_id: str) -> Client | None:
        """A connected producer with this client id, of whatever group; the one that came last, as at Apache's: earlier
        connections of the same client may be dead."""
        for member in reversed(self._producers_of_id.get(client_id, {}).values()):
            if not member.connection.closed:
                return member
        return None

    def members(self, group: str) -> Collection[Client]:
        """The members of a consumer group."""
        found = self.consumers.get(group)
        return found.members.values() if found is not None else ()

    # The inside.

    def _groups_of(self, connection: Connection) -> tuple[set[str], set[str]]:
        found = self._of_connection.get(connection.id)
        if found is None:
            found = self._of_connection[connection.id] = (set(), set())
        return found

    def _heard(self, member: Client) -> None:
        member.heard_s = self._clock.monotonic()
        member.last_ms = self._clock.now_ms()

    def _remove_consumer(self, name: str, connection_id: int, *, lost: bool = False) -> None:
        group = self.consumers.get(name)
        member = group.dismiss(connection_id) if group is not None else None
        if group is None or member is None:
            return
        _log.info("consumer %s (%s) left group %s", member.client_id, member.connection.peer, name)
        if group.find(member.client_id) is None:  # else it is here again, on another connection
            (self._on_lost if lost else self._on_leave)(name, member.client_id)
        self._update_subscriptions(group)
        if group.members:
            self._tell(group, anyway=lost)
        else:
            del self.consumers[name]

    def _remove_producer(self, name: str, connection_id: int) -> None:
        members = self.producers.get(name)
        member = members.pop(connection_id, None) if members is not None else None
        if member is not None:
            _take_out(self._producers_of_id, member.client_id, (name, connection_id))
            _log.info("producer %s (%s) left group %s", member.client_id, member.connection.peer, name)
        if members is not None and not members:
            del self.producers[name]

    def _update_subscriptions(self, group: ConsumerGroup) -> bool:
        """Has everybody know which subscriptions are in force; True when topics came or went."""
        mismatch = group.mismatch
        changes, came_or_went = group.wanted.settle()
        for topic, subscription in changes.items():
            self._on_subscription(group.name, topic, subscription)
        if group.mismatch and group.mismatch != mismatch:
            self.counters["mismatches"] += 1
            _log.warning(
                "members of consumer group %s subscribe to different things, messages will be missed: %s",
                group.name,
                group.mismatch,
            )
        return came_or_went

    def _tell(self, group: ConsumerGroup, *, anyway: bool = False) -> None:
        """`anyway`: a group that wants no notices of who comes and goes hears of whom it has lost, as at Apache's."""
        if (group.notify or anyway) and group.message_model != BROADCASTING and group.members:
            self._notify(group.name)


def _versions(subscriptions: dict[str, SubscriptionData]) -> dict[str, int]:
    return {topic: subscription.sub_version for topic, subscription in subscriptions.items()}


def _take_out(table: dict[str, dict[K, Client]], name: str, key: K) -> None:
    inner = table[name]
    del inner[key]
    if not inner:
        del table[name]
