"""The broker's parts, started top to bottom and stopped bottom to top.

    broker = Broker(BrokerOptions(listen_port=0, store_path_root_dir="/data/a"))
    await broker.start()
    …
    await broker.stop()                 # unregister, finish what was accepted, flush, persist

After `kill -9` at any moment the next start repairs everything by itself: acknowledged messages are in the log, topics
and groups are on disk before they are answered, offsets are at most one interval old.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aerobee.broker import fast_path, retention
from aerobee.broker.assignment import Assignment, RequestModes
from aerobee.broker.clients import ClientTable
from aerobee.broker.compaction import Compaction
from aerobee.broker.data_version import DataVersion
from aerobee.broker.delay import Delay
from aerobee.broker.dispatch import Dispatcher
from aerobee.broker.groups import GroupTable
from aerobee.broker.handlers import HANDLERS
from aerobee.broker.handlers.static_topics import forget_empty_stretches
from aerobee.broker.inner_pulls import InnerPulls
from aerobee.broker.listeners import Listeners
from aerobee.broker.neighbours import Neighbours
from aerobee.broker.notices import Notices
from aerobee.broker.offsets import OffsetTable
from aerobee.broker.options import BrokerOptions
from aerobee.broker.order import OrderLocks
from aerobee.broker.pop import Pops
from aerobee.broker.records import Stored, encode_record
from aerobee.broker.registration import Registration
from aerobee.broker.static_topics import StaticTopics
from aerobee.broker.stats import Stats
from aerobee.broker.store import Store
from aerobee.broker.timer import Timer
from aerobee.broker.topics import PERM_READ, RETRY_PREFIX, TopicTable
from aerobee.broker.transactions import PRODUCER_GROUP, REAL_QUEUE, REAL_TOPIC, UNIQUE_KEY, Transactions
from aerobee.clock import Clock, SystemClock
from aerobee.errors import StoreError
from aerobee.log import Complaints
from aerobee.net.connection import Connection
from aerobee.protocol.bodies.topics import TopicConfig
from aerobee.protocol.codes import RequestCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.fastjson import MessageQueue
from aerobee.protocol.headers.transactions import CheckTransactionState

_log = logging.getLogger("aerobee.broker")

CLIENT_SCAN_S: Final = 10.0
STRETCHES_S: Final = 300.0
GRACE_S: Final = 5.0
FIRST_REGISTRATION_S: Final = 1.0
UNKNOWN_PERIOD_S: Final = 10.0
PRODUCER_READS_S: Final = 1.0
"""A producer that has taken none of its questions for so long is not asked more of them in this round."""


class Broker:
    """A broker in this process and event loop; see the head of this file."""

    def __init__(self, options: BrokerOptions, clock: Clock | None = None, *, look: object = None) -> None:
        """`look`: what `store.look_ahead` has begun."""
        self.options = options
        self._look = look
        self.clock: Clock = clock or SystemClock()
        self._config_dir = config_dir = options.store_dir / "config"
        self.topics = TopicTable(options, config_dir, on_change=self._topic_changed, on_register=self._topics_changed)
        self.static_topics = StaticTopics(options.broker_name, config_dir, on_change=self._mapping_changed)
        self.inner_pulls = InnerPulls(self)
        self.groups = GroupTable(options, config_dir, on_change=self._group_changed)
        self.offsets = OffsetTable(config_dir, light=options.enable_lmq, clock=self.clock, on_reset=self._group_touched)
        self.order = OrderLocks(self.clock, config_dir, on_heirs=self._group_touched)
        self.clients = ClientTable(
            self.clock,
            on_subscription=self._subscription_changed,
            notify=self._notify,
            on_join=self.order.back,
            on_leave=self.order.release,
            on_lost=self.order.lost,
        )
        self.notices = Notices(self.clients.members)
        self.request_modes = RequestModes(options, config_dir)
        self.assignment = Assignment(options, self.clients, self.request_modes, self._queues_of)
        self.listeners = Listeners(options)
        self.registration = Registration(
            options, self.topics, self.static_topics, self.listeners, on_order_topics=self.topics.set_order
        )
        self.neighbours = Neighbours(options, self.registration)
        self.config_version = DataVersion()
        self.retention_complaints = Complaints(logging.getLogger("aerobee.broker.store"))
        self.started_ms = 0
        self.store: Store
        self.compaction: Compaction
        self.delay: Delay
        self.timer: Timer
        self.transactions: Transactions
        self.pop: Pops
        self.stats: Stats
        self.dispatcher: Dispatcher
        self._tasks: list[asyncio.Task[None]] = []
        self.opened = False
        self._stopped = False

    # Life.

    async def start(self) -> None:
        """Opens the store, reads the tables, listens, registers.

        Raises StoreError when the store cannot be opened and OSError when a port is taken; nothing is left behind then.
        """
        options = self.options
        self.started_ms = self.clock.now_ms()
        self.topics.load()
        self.store = await Store.open(
            fast_path.store_settings(options, self.topics),
            self.clock,
            sync_flush=options.sync_flush,
            flush_timeout_s=options.sync_flush_timeout / 1000,
            look=self._look,
        )
        self.opened = True
        try:
            self.static_topics.load()
            self.groups.load()
            self.offsets.load()
            self.order.load()
            self.request_modes.load()
            self.compaction = Compaction(self.store, self.topics, options.store_dir)
            self.compaction.load()
            self.delay = Delay(self.store, self.clock, options.delay_levels_ms(), self._config_dir)
            self.delay.load()
            self.timer = Timer(
                self.store,
                self.clock,
                options.store_dir,
                precision_ms=options.timer_precision_ms,
                delay_max_s=options.timer_max_delay_sec,
                roll_slots=options.timer_roll_window_slot,
                log_file_bytes=options.mapped_file_size_timer_log,
            )
            await asyncio.to_thread(self.timer.load)
            self.transactions = Transactions(
                self.store,
                self.clock,
                options,
                self.offsets,
                ask=self._ask_producer,
                make_topic=self._make_internal_topic,
                place=self._place_committed,
                host=lambda: self.listeners.store_host,
            )
            self.transactions.load()
            self.pop = Pops(self)
            self.pop.load()
            self.stats = Stats(self)
            self.dispatcher = Dispatcher(self, HANDLERS)
            self.store.start(self.dispatcher.serve, self._committed)
            self.store.on_arrival = self.pop.arrived
            await self.listeners.start(self)
            fast_path.announce(self)
        except BaseException:
            await self.listeners.stop(0.0)
            await self.store.close()
            self.opened = False
            raise
        self.registration.start()
        await self.registration.first(FIRST_REGISTRATION_S)
        self._tasks.append(asyncio.create_task(self.delay.run(), name="deliver delayed messages"))
        if options.timer_wheel_enable:
            self._tasks.append(asyncio.create_task(self.timer.run(), name="deliver timed messages"))
            self._every(options.timer_flush_interval_ms / 1000, self.timer.save, "persist timers")
        self._tasks.append(asyncio.create_task(self.pop.run(), name="bring popped messages again"))
        self._tasks.append(asyncio.create_task(self.order.run(), name="persist order locks"))
        self._every(lambda: options.transaction_check_interval / 1000, self.transactions.check, "check transactions")
        self._every(options.flush_consumer_offset_interval / 1000, self._save_tables, "persist offsets")
        self._every(options.flush_delay_offset_interval / 1000, self.delay.save, "persist delay offsets")
        self._every(CLIENT_SCAN_S, self._expire_clients, "expire clients")
        self._every(options.compaction_schedule_internal / 1000, self.compaction.run, "compact")
        self._every(self.stats.sample_s, self.stats.sample, "sample statistics")
        self._every(options.clean_resource_interval / 1000, self._clean, "clean the store")
        self._every(STRETCHES_S, self._forget_stretches, "forget empty stretches of static topics")
        _log.info(
            "broker %s of %s serves on %s", options.broker_name, options.broker_cluster_name, ", ".join(self.addresses)
        )

    async def stop(self) -> None:
        """Unregisters, finishes what was accepted, flushes, persists, closes. Idempotent."""
        if self._stopped or not self.opened:
            return
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.neighbours.stop()
        await self.registration.stop()
        self.listeners.hold()
        self.pop.release()
        self.store.release()
        await self.dispatcher.drain(GRACE_S)
        await self.listeners.stop(GRACE_S)
        await self._persist()
        await self.store.close()
        counts = ", ".join(f"{what} {count}" for what, count in self.counters.items())
        _log.info("broker %s stopped; connections: %s", self.options.broker_name, counts)

    async def failed(self) -> str:
        """Returns when nobody will find this broker: it is new, without a message, and has reached no name server.

        One that holds messages goes on trying: clients that know its address are served meanwhile.
        """
        wait_s = self.options.name_server_wait_seconds
        if wait_s > 0 and self.registration.registered:
            reached = await self.registration.first(wait_s, any_will_do=True)
            if not reached and self.store.log_bounds()[2] == 0:
                reasons = "; ".join(self.registration.failures.values())
                return f"no name server can be reached: {reasons}. Start one, or correct namesrvAddr (-n)"
        forever: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await forever

    @property
    def addresses(self) -> list[str]:
        """Addresses listened on: the main one, then its second one, then further ones."""
        return self.listeners.addresses

    @property
    def address(self) -> str:
        """What clients are told to dial."""
        return self.listeners.address

    @property
    def counters(self) -> dict[str, int]:
        """Connections: opened, refused, closed by reason."""
        return self.listeners.counters

    @property
    def host(self) -> str:
        """The advertised host, as remarks name the broker."""
        return self.address.rpartition(":")[0]

    def options_changed(self, names: set[str]) -> None:
        """Settings were changed at run time: the fast path and the name servers hear of it."""
        fast_path.allow_settings(self)
        for group in self.groups.table:
            fast_path.allow_group(self, group)
        if "enableTopicMessageTypeCheck" in names:
            for topic in self.topics.table:
                fast_path.allow_topic(self, topic)
        if "autoCreateTopicEnable" in names:
            self.topics.auto_creation_changed()
        if "filterSupportRetry" in names:
            for group in self.clients.consumers:
                fast_path.subscribe(self, group, RETRY_PREFIX + group)
        if "brokerPermission" in names:
            self.topics.version.advance()
            self.registration.changed(())

    # What the tables say to each other.

    def connected(self, connection: Connection) -> None:
        """The listener's word: a connection opened."""
        self.store.connected(connection)

    def disconnected(self, connection: Connection) -> None:
        """The listener's word: a connection ended."""
        self.store.disconnected(connection)
        self.clients.disconnected(connection)
        self.pop.disconnected(connection)

    def received(self, connection: Connection, data: memoryview) -> None:
        """The listener's word: bytes; replaced by the store's own method when listening begins."""
        self.store.received(connection, data)

    async def topic_created(self, config: TopicConfig) -> None:
        """A send has created a topic: the other masters get it too (but for the moment before we know of them)."""
        await self.neighbours.created(config)

    def _topic_changed(self, topic: str, _: object) -> None:
        fast_path.allow_topic(self, topic)
        if self.opened:
            self.pop.topic_changed(topic)

    def _mapping_changed(self, topic: str) -> None:
        self.topics.version.advance()  # name servers of Apache's look at nothing else to see whether anything is new
        # At once, lest another registration brings the version without the mapping.
        self.registration.changed([topic])
        fast_path.allow_topic(self, topic)

    def _topics_changed(self, configs: list[TopicConfig]) -> None:
        self.registration.changed(config.topic_name for config in configs)

    def _group_changed(self, group: str, _: object) -> None:
        fast_path.allow_group(self, group)

    def _group_touched(self, group: str) -> None:
        fast_path.allow_group(self, group)

    def _subscription_changed(self, group: str, topic: str, _: object) -> None:
        fast_path.subscribe(self, group, topic)

    def _committed(self, group: str, topic: str, queue_id: int, offset: int) -> None:
        self.offsets.commit(group, topic, queue_id, offset, peer="pull")

    def _notify(self, group: str) -> None:
        if self.options.notify_consumer_ids_changed_enable:
            self.notices.changed(group)

    async def _ask_producer(self, half: Stored) -> bool:
        """CHECK_TRANSACTION_STATE to one producer of the half's group; False: there is none that reads."""
        producer = self.clients.producer(half.properties.get(PRODUCER_GROUP, ""))
        if producer is None:
            return False
        if producer.connection.blocked:
            try:
                async with asyncio.timeout(PRODUCER_READS_S):
                    await producer.connection.writable()
            except TimeoutError:
                return False
        unique = half.properties.get(UNIQUE_KEY)
        topic, queue_id = half.properties[REAL_TOPIC], int(half.properties[REAL_QUEUE])
        header = CheckTransactionState(
            tran_state_table_offset=half.queue_offset,
            commit_log_offset=half.position,
            topic=topic,
            msg_id=unique,
            transaction_id=unique,
            offset_msg_id=half.offset_id,
        )
        body = encode_record(half, topic=topic, queue_id=queue_id)
        producer.connection.send(
            RemotingCommand.request(RequestCode.CHECK_TRANSACTION_STATE, header, body, oneway=True)
        )
        return True

    def _place_committed(self, topic: str, queue_id: int, properties: dict[str, str]) -> tuple[str, int, int | None]:
        """A committed message that names a delay level or a time waits for it, as if it were sent now."""
        level = properties.get("DELAY", "")
        if level.isdecimal() and int(level) > 0:
            self.delay.scheduled()
            return self.delay.place(topic, queue_id, properties, int(level))
        if not self.options.timer_wheel_enable:
            return topic, queue_id, None
        self.timer.scheduled()
        return self.timer.place(topic, queue_id, properties)

    async def _make_internal_topic(self, topic: str) -> None:
        await self.topics.create_for_group(topic, 1)

    # The inside.

    async def _save_tables(self) -> None:
        """Offsets, and topics and groups whose writing has failed before (a full disk that has room again)."""
        await self.save_offsets()
        for file in (self.topics.file, self.groups.file):
            if file.behind:
                await file.save()

    async def save_offsets(self) -> None:
        """Writes the groups' offsets, with the mechanisms' progress that is among them. Raises OSError."""
        await self.pop.save()
        self.transactions.publish()
        await self.offsets.save()

    async def _queues_of(self, topic: str) -> list[MessageQueue] | None:
        """The topic's readable queues on all brokers, as the name servers know them; None: it does not exist."""
        route = await self.registration.route(topic)
        if route is not None:
            return [
                MessageQueue(topic, data.broker_name, queue)
                for data in route.queue_datas
                if data.perm & PERM_READ
                for queue in range(data.read_queue_nums)
            ]
        config = self.topics.get(topic)
        if config is None:
            return None
        return [MessageQueue(topic, self.options.broker_name, queue) for queue in range(config.read_queue_nums)]

    async def _persist(self) -> None:
        for save in (
            self.groups.settled,
            self.topics.file.save,
            self.groups.file.save,
            self._flush_log,
            self.save_offsets,
            self.order.file.save,
            self.delay.save,
            self._close_timer,
        ):
            try:
                await save()
            except OSError as error:
                _log.error("a configuration file could not be written: %s", error)

    async def _flush_log(self) -> None:
        try:
            await self.store.flush()
        except StoreError as error:
            _log.error("the log could not be flushed: %s", error)

    async def _close_timer(self) -> None:
        await asyncio.to_thread(self.timer.close)

    async def _expire_clients(self) -> None:
        self.clients.expire(self.options.channel_expired_timeout / 1000)
        self.order.expire()

    async def _clean(self) -> None:
        try:
            await retention.clean(self)
        finally:
            self.timer.clean()

    async def _forget_stretches(self) -> None:
        await forget_empty_stretches(self)

    def _every(self, period_s: float | Callable[[], float], work: Callable[[], Awaitable[None]], name: str) -> None:
        """Does it again and again. A function instead of a period: a setting that may change while we run."""
        self._tasks.append(asyncio.create_task(self._repeat(period_s, work, name), name=name))

    async def _repeat(
        self, period_s: float | Callable[[], float], work: Callable[[], Awaitable[None]], name: str
    ) -> None:
        while True:
            try:
                await self.clock.sleep(period_s() if callable(period_s) else period_s)
            except Exception:  # a time that no clock can wait for must not end the work for good
                _log.exception("cannot tell how long to wait to %s", name)
                await self.clock.sleep(UNKNOWN_PERIOD_S)
            try:
                await work()
            except (OSError, StoreError) as error:
                _log.error("could not %s: %s", name, error)
            except Exception:
                _log.exception("could not %s", name)
