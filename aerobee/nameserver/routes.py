"""Who is there and what they carry: clusters, brokers, topics. No socket, no clock: time and connections are arguments.

A broker set is known by its name alone (Apache's clients know no more); its members by id, 0 the master. A member
leaves when it says so, when its connection ends, or when it has not been heard of for its own time-out. With the last
member goes the set, with the set go its queues. An address is one process: once it registers under another name, it has
left the set of the former one. A set belongs to the clusters that its members name, as a rule one.

`generation` grows with every change that a client could see, so answers made before may be kept until it does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from aerobee.errors import ServerSystemError
from aerobee.log import Complaints
from aerobee.protocol.bodies.route import BrokerData, QueueData, TopicQueueMappingInfo, TopicRouteData
from aerobee.protocol.bodies.topics import DataVersion, TopicConfig

MASTER_ID: Final = 0
EXPIRY_MS: Final = 120_000
PERM_WRITE: Final = 2
PERM_READ: Final = 4
UNIT_FLAG: Final = 1
UNIT_SUB_FLAG: Final = 2
SYNC_MEMBERS_PREFIX: Final = "rmq_sys_SYNC_BROKER_MEMBER_"

_log = logging.getLogger("aerobee.nameserver.routes")

Key = tuple[str, str]
"""Cluster and address of a broker."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that decide what a registration and a route look like."""

    acting_master: bool = False
    drop_unmentioned_topics: bool = False


@dataclass(frozen=True, slots=True)
class Registration:
    """What a broker says about itself. `acting_master` None: a broker too old to know about it."""

    cluster: str
    name: str
    broker_id: int
    address: str
    ha_address: str | None = None
    zone: str | None = None
    timeout_ms: int | None = None
    acting_master: bool | None = None
    version: DataVersion = field(default_factory=DataVersion)
    topics: Mapping[str, TopicConfig] = field(default_factory=dict)
    mappings: Mapping[str, TopicQueueMappingInfo] = field(default_factory=dict)
    filter_servers: list[str] | None = None
    listeners: Mapping[str, str] = field(default_factory=dict)
    """What clients dial that ask through a listener of this name, where it is not `address`."""
    partial: bool = False
    """Only topics that changed are in it, and the broker says so. Apache's brokers do not say it."""


@dataclass(frozen=True, slots=True)
class MinIdChange:
    """The smallest broker id of a set changed: `tell` are the addresses of members to be told."""

    name: str
    broker_id: int
    address: str
    tell: list[str]
    offline_address: str | None = None
    ha_address: str | None = None


@dataclass(frozen=True, slots=True)
class Registered:
    """The answer to a registration; a replica learns where its master is."""

    master_address: str | None = None
    ha_address: str | None = None
    changes: list[MinIdChange] = field(default_factory=list)


@dataclass(slots=True)
class _Live:
    """The last word of a broker. `name` is that of its set."""

    name: str
    last_ms: int
    timeout_ms: int
    version: DataVersion
    connection: int
    ha_address: str | None
    listeners: Mapping[str, str]


class Routes:
    """The tables; see the head of this file."""

    def __init__(self) -> None:
        self.generation = 0
        self.brokers: dict[str, BrokerData] = {}
        """Broker set by name."""
        self.clusters: dict[str, set[str]] = {}
        """Names of the broker sets of a cluster."""
        self.topics: dict[str, dict[str, QueueData]] = {}
        """Topic → name of the broker set → its queues."""
        self._live: dict[Key, _Live] = {}
        self._filter_servers: dict[Key, list[str]] = {}
        self._mappings: dict[str, dict[str, TopicQueueMappingInfo]] = {}
        self._complaints = Complaints(_log)

    # Brokers come.

    def register(self, said: Registration, connection: int, now_ms: int, rules: Rules) -> Registered:
        """Takes a broker's word. Raises ServerSystemError for a first registration with a single topic."""
        key = (said.cluster, said.address)
        changes = self._leave_former(key, said.name)
        data = self.brokers.get(said.name)
        addresses = data.broker_addrs if data is not None else {}
        holder = addresses.get(said.broker_id)
        if holder is not None and holder != said.address and self._is_stale(said, holder):
            self._live.pop(key, None)
            return Registered(changes=changes)
        moved = [broker_id for broker_id, at in addresses.items() if at == said.address and broker_id != said.broker_id]
        if holder is None and len(said.topics) == 1:
            # Brokers announce one new topic this way; before they have announced themselves it would be all they have.
            raise ServerSystemError("register broker failed")

        first = data is None or holder is None
        smallest_before = min(addresses) if addresses else 0
        if data is None:
            data = self.brokers[said.name] = BrokerData(
                cluster=said.cluster, broker_name=said.name, broker_addrs=addresses
            )
        self.clusters.setdefault(said.cluster, set()).add(said.name)
        for broker_id in moved:  # a replica became master, or the other way round
            del addresses[broker_id]
        seen_before = (data.enable_acting_master, data.zone_name, holder)
        data.enable_acting_master = bool(said.acting_master)
        data.zone_name = said.zone
        addresses[said.broker_id] = said.address
        if moved or seen_before != (data.enable_acting_master, data.zone_name, said.address):
            self.generation += 1

        leads = said.broker_id == MASTER_ID or (said.acting_master is not None and said.broker_id == min(addresses))
        if leads:
            self._take_topics(said, data, first or self.version(*key) != said.version, rules)
        known = self._live.get(key)
        if known is not None and holder is not None and holder != said.address and not moved:
            self._look_for_two(said, holder, connection)
        if known is not None and known.listeners != said.listeners:
            self.generation += 1
        if known is None:
            _log.info(
                "broker %s, id %d, cluster %s registered at %s", said.name, said.broker_id, said.cluster, said.address
            )
        timeout_ms = EXPIRY_MS if said.timeout_ms is None else said.timeout_ms
        self._live[key] = _Live(
            said.name, now_ms, timeout_ms, said.version, connection, said.ha_address, said.listeners
        )
        self._take_filter_servers(key, said.filter_servers)
        self._settle_clusters(data)
        if data.cluster != said.cluster:
            self._complaints.warn(
                f"clusters {said.name}",
                "broker %s of cluster %s registers under a name that cluster %s uses: clients see one broker set",
                said.name, said.cluster, data.cluster,
            )  # fmt: skip

        if said.broker_id < smallest_before:
            tell = [at for broker_id, at in addresses.items() if len(addresses) == 1 or broker_id != said.broker_id]
            changes.append(MinIdChange(said.name, said.broker_id, said.address, tell, ha_address=said.ha_address))
        master = addresses.get(MASTER_ID) if said.broker_id != MASTER_ID else None
        live = self._live.get((said.cluster, master)) if master is not None else None
        if live is None:
            return Registered(changes=changes)
        return Registered(master, live.ha_address, changes)

    def _leave_former(self, key: Key, name: str) -> list[MinIdChange]:
        """A broker that died without a word, or says it late, may be back under another name (clients that were told of
        both would read and write each of its queues twice) or in another cluster."""
        cluster, address = key
        former = [
            at for at, live in self._live.items()
            if at[1] == address and (at[0] == cluster) != (live.name == name)
        ]  # fmt: skip
        for at in former:
            self._complaints.warn(
                f"former {at}", "the broker at %s is %s of cluster %s now, no longer %s of cluster %s",
                address, name, cluster, self._live[at].name, at[0],
            )  # fmt: skip
        return self._leave(former)

    def _look_for_two(self, said: Registration, holder: str, connection: int) -> None:
        """A broker that was here has lost its place to another one and says that it is alive: there are two of them.
        One that has only moved does not come back at its old address."""
        other = next((live for (_, at), live in self._live.items() if live.name == said.name and at == holder), None)
        if other is not None and other.connection != connection:
            self._complaints.warn(
                f"two {said.name} {said.broker_id}",
                "two brokers are called %s with id %d, at %s and at %s: each registration takes the other out of the "
                "routes. Give one another brokerName",
                said.name, said.broker_id, *sorted((said.address, holder)),
            )  # fmt: skip

    def _settle_clusters(self, data: BrokerData) -> None:
        """A set belongs to the clusters that living members of it name: a broker may have moved to another one."""
        name, addresses = data.broker_name, data.broker_addrs.values()
        living = {
            cluster for (cluster, address), live in self._live.items() if live.name == name and address in addresses
        }
        if not living:
            return
        if data.cluster not in living:
            data.cluster = min(living)
            self.generation += 1
        self._leave_clusters([cluster for cluster in self.clusters if cluster not in living], name)

    def _leave_clusters(self, clusters: list[str], name: str) -> None:
        for cluster in clusters:
            self.clusters[cluster].discard(name)
            if not self.clusters[cluster]:
                del self.clusters[cluster]

    def _is_stale(self, said: Registration, holder: str) -> bool:
        """Two members claim one id: the one that was elected later keeps it."""
        live = self._live.get((said.cluster, holder))
        if live is None or live.version.state_version <= said.version.state_version:
            return False
        _log.warning(
            "broker %s: id %d is held by %s (state version %d), the registration of %s (%d) is ignored",
            said.name, said.broker_id, holder, live.version.state_version, said.address, said.version.state_version,
        )  # fmt: skip
        return True

    def _take_topics(self, said: Registration, data: BrokerData, changed: bool, rules: Rules) -> None:
        if rules.drop_unmentioned_topics and not said.mappings and not said.partial:
            for topic in [
                topic for topic, sets in self.topics.items() if said.name in sets and topic not in said.topics
            ]:
                self._drop(topic, said.name)
        wipe = said.broker_id != MASTER_ID and data.enable_acting_master
        for config in said.topics.values():
            sets = self.topics.get(config.topic_name)
            if not changed and sets and said.name in sets:
                continue
            queues = QueueData(
                broker_name=said.name,
                read_queue_nums=config.read_queue_nums,
                write_queue_nums=config.write_queue_nums,
                perm=config.perm & ~PERM_WRITE if wipe else config.perm,
                topic_sys_flag=config.topic_sys_flag,
            )
            if sets is None:
                sets = self.topics[config.topic_name] = {}
            if sets.get(said.name) != queues:
                sets[said.name] = queues
                self.generation += 1
        # Not only when the version changed: a registration in between may have brought that, and an operator may have
        # deleted the topic here (216). Brokers tell all mappings each time.
        for topic, mapping in said.mappings.items():
            held = self._mappings.setdefault(topic, {})
            name = mapping.bname or said.name
            if held.get(name) != mapping:
                held[name] = mapping
                self.generation += 1

    def _take_filter_servers(self, key: Key, servers: list[str] | None) -> None:
        if servers is None or servers == self._filter_servers.get(key, []):
            return
        if servers:
            self._filter_servers[key] = servers
        else:
            self._filter_servers.pop(key, None)
        self.generation += 1

    # Brokers are heard of.

    def version(self, cluster: str, address: str) -> DataVersion | None:
        """The version of the topics that this broker registered last, None if it is not registered."""
        live = self._live.get((cluster, address))
        return live.version if live is not None else None

    def touch(self, cluster: str, address: str, now_ms: int) -> None:
        """A light heartbeat."""
        live = self._live.get((cluster, address))
        if live is not None:
            live.last_ms = now_ms

    # Brokers go.

    def unregister(self, cluster: str, name: str, broker_id: int | None, address: str) -> MinIdChange | None:
        """A member leaves, by its own word or by ours."""
        key = (cluster, address)
        live = self._live.get(key)
        if live is None or live.name == name:  # else it is somebody else there by now
            self._live.pop(key, None)
            if self._filter_servers.pop(key, None) is not None:
                self.generation += 1
        data = self.brokers.get(name)
        if data is None:
            return None
        addresses = data.broker_addrs
        was_smallest = bool(addresses) and broker_id == min(addresses)
        gone = [member for member, at in addresses.items() if at == address]
        for member in gone:
            del addresses[member]
        if gone:
            self.generation += 1
            _log.info("broker %s, id %s, cluster %s left: %s", name, gone[0], cluster, address)
        if not addresses:
            self._forget(name, data)
            return None
        self._settle_clusters(data)
        smallest = min(addresses)
        if data.enable_acting_master and smallest != MASTER_ID:
            for sets in self.topics.values():
                queues = sets.get(name)
                if queues is not None and queues.perm & PERM_WRITE:
                    queues.perm &= ~PERM_WRITE
                    self.generation += 1
        if gone and was_smallest and data.enable_acting_master:
            return MinIdChange(name, smallest, addresses[smallest], list(addresses.values()), offline_address=address)
        return None

    def _forget(self, name: str, data: BrokerData) -> None:
        del self.brokers[name]
        self._leave_clusters(list(self.clusters), name)
        for topic in [topic for topic, sets in self.topics.items() if name in sets]:
            self._drop(topic, name)
        self.generation += 1

    def _drop(self, topic: str, name: str) -> None:
        """One topic is not on that broker set any more."""
        sets = self.topics[topic]
        del sets[name]
        if not sets:
            del self.topics[topic]
        mappings = self._mappings.get(topic)
        if mappings is not None:
            mappings.pop(name, None)
            if not mappings:
                del self._mappings[topic]
        self.generation += 1

    def disconnected(self, connection: int) -> list[MinIdChange]:
        """A connection ended: every broker that registered over it is gone, unless it came back over another one."""
        return self._leave([key for key, live in self._live.items() if live.connection == connection])

    def expire(self, now_ms: int) -> tuple[list[MinIdChange], list[int]]:
        """Brokers that fell silent leave; returns whom to tell, and connections that carry no broker any more."""
        silent = [key for key, live in self._live.items() if live.last_ms + live.timeout_ms < now_ms]
        connections = {self._live[key].connection for key in silent}
        for cluster, address in silent:
            live = self._live[cluster, address]
            _log.warning(
                "broker at %s, cluster %s: no word for %d ms, it is taken for gone", address, cluster, live.timeout_ms
            )
        changes = self._leave(silent)
        return changes, sorted(connections - {live.connection for live in self._live.values()})

    def _leave(self, keys: list[Key]) -> list[MinIdChange]:
        changes = []
        for cluster, address in keys:
            name = self._live.pop((cluster, address)).name
            data = self.brokers.get(name)
            for broker_id in [member for member, at in data.broker_addrs.items() if at == address] if data else ():
                change = self.unregister(cluster, name, broker_id, address)
                if change is not None:
                    changes.append(change)
        return changes

    # Topics and permissions, by hand.

    def register_topic(self, topic: str, queues: list[QueueData]) -> None:
        """Adds a topic on known broker sets; with an unknown one among them nothing happens."""
        unknown = [entry.broker_name for entry in queues if entry.broker_name not in self.brokers]
        if unknown or not queues:
            _log.warning("topic %s is not registered: broker %s is unknown", topic, ", ".join(unknown) or "(none)")
            return
        self.topics.setdefault(topic, {}).update({entry.broker_name: entry for entry in queues})
        self.generation += 1

    def delete_topic(self, topic: str, cluster: str | None = None) -> None:
        """Forgets a topic, everywhere or in one cluster. A broker that still has it restores it."""
        names = list(self.topics.get(topic, ()))
        for name in names:
            if not cluster or name in self.clusters.get(cluster, ()):
                self._drop(topic, name)

    def set_write_permission(self, name: str, allowed: bool) -> int:
        """Takes the right to write from all queues of a broker set, or gives both; returns how many topics."""
        count = 0
        for sets in self.topics.values():
            queues = sets.get(name)
            if queues is not None:
                queues.perm = PERM_READ | PERM_WRITE if allowed else queues.perm & ~PERM_WRITE
                count += 1
        self.generation += 1
        return count

    # Questions.

    def route(self, topic: str, rules: Rules, zone: str | None = None, listener: str = "") -> TopicRouteData | None:
        """Where a topic lives, None if nowhere. With `zone`: broker sets of that zone and those without a master.
        `listener`: through which one the question came; addresses are those that the brokers advertise for it."""
        sets = self.topics.get(topic)
        brokers = [_copy(self.brokers[name]) for name in sets or () if name in self.brokers]
        if not sets or not brokers:
            return None
        if rules.acting_master and not topic.startswith(SYNC_MEMBERS_PREFIX):
            for data in brokers:
                _show_acting_master(data, sets[data.broker_name])
        queues = list(sets.values())
        if zone is not None:
            other = {data.broker_name for data in brokers if not _is_near(data, zone)}
            brokers = [data for data in brokers if data.broker_name not in other]
            queues = [entry for entry in queues if entry.broker_name not in other]
        filters: dict[str, list[str]] = {}
        if self._filter_servers:
            for data in brokers:
                for address in data.broker_addrs.values():
                    servers = self._filter_servers.get((data.cluster, address))
                    if servers:
                        filters[address] = servers
        return TopicRouteData(
            queue_datas=queues,
            broker_datas=[self._seen_through(data, listener) for data in brokers],
            filter_server_table=filters,
            topic_queue_mapping_by_broker=self._mappings.get(topic),
        )

    def brokers_seen(self, listener: str) -> dict[str, BrokerData]:
        """All broker sets, with the addresses that they advertise for this listener of ours."""
        if not listener:
            return self.brokers
        return {name: self._seen_through(_copy(data), listener) for name, data in self.brokers.items()}

    def _seen_through(self, data: BrokerData, listener: str) -> BrokerData:
        if listener:
            for broker_id, address in data.broker_addrs.items():
                live = self._live.get((data.cluster, address))
                if live is not None:
                    data.broker_addrs[broker_id] = live.listeners.get(listener, address)
        return data

    def topics_of_cluster(self, cluster: str) -> list[str]:
        """Topics with queues in a cluster."""
        names = self.clusters.get(cluster, set())
        return [topic for topic, sets in self.topics.items() if not names.isdisjoint(sets)]

    def topics_with_flags(self, wanted: int, unwanted: int = 0) -> list[str]:
        """Topics whose system flag has all bits of `wanted` and none of `unwanted`."""
        return [topic for topic, flag in self._flags() if flag & wanted == wanted and not flag & unwanted]

    def _flags(self) -> Iterator[tuple[str, int]]:
        for topic, sets in self.topics.items():
            for queues in sets.values():
                yield topic, queues.topic_sys_flag
                break

    def system_names(self) -> tuple[list[str], str | None]:
        """Names of clusters and brokers (each is a topic too), and the address of some broker."""
        names = [name for cluster, brokers in self.clusters.items() for name in (cluster, *sorted(brokers))]
        address = next((at for data in self.brokers.values() for at in data.broker_addrs.values()), None)
        return names, address


def _copy(data: BrokerData) -> BrokerData:
    return BrokerData(
        cluster=data.cluster,
        broker_name=data.broker_name,
        broker_addrs=dict(data.broker_addrs),
        zone_name=data.zone_name,
        enable_acting_master=data.enable_acting_master,
    )


def _show_acting_master(data: BrokerData, queues: QueueData) -> None:
    """Without a master, the member with the smallest id takes its place, once nobody may write there."""
    addresses = data.broker_addrs
    if data.enable_acting_master and addresses and MASTER_ID not in addresses and not queues.perm & PERM_WRITE:
        addresses[MASTER_ID] = addresses.pop(min(addresses))


def _is_near(data: BrokerData, zone: str) -> bool:
    return MASTER_ID not in data.broker_addrs or (data.zone_name or "").lower() == zone.lower()
