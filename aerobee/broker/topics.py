"""Topics: names, permissions, queue counts; who may create them and how. Kept as Apache's `topics.json`.

    unknown ──send──▶ inherits from its default topic (TBW102), if that has the inherit bit and auto-creation is on
    %RETRY%g ──heartbeat, send back──▶ retryQueueNums queues, read + write
    %DLQ%g ──too many retries──▶ 1 queue, read + write
    any ──updateTopic──▶ as the operator says; a system topic only by the broker itself
    %LMQ%name ──enableLmq──▶ always there with one queue, read + write; in no table and no route

Every change is passed on: to the fast path at once (`on_change`), to the name servers (`on_register`), to the file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from aerobee.broker.attributes import LONG_MAX, Attribute, alter
from aerobee.broker.config_file import ConfigFile
from aerobee.broker.data_version import DataVersion
from aerobee.broker.options import BrokerOptions
from aerobee.errors import MalformedRequest, error_for
from aerobee.options import JAVA_INT_MAX
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.topics import TopicConfig, TopicConfigSerializeWrapper
from aerobee.protocol.codes import ResponseCode

_log = logging.getLogger("aerobee.broker.topics")

PERM_READ: Final = 4
PERM_WRITE: Final = 2
PERM_INHERIT: Final = 1
READ_WRITE: Final = PERM_READ | PERM_WRITE

RETRY_PREFIX: Final = "%RETRY%"
DLQ_PREFIX: Final = "%DLQ%"
LIGHT_PREFIX: Final = "%LMQ%"
AUTO_CREATE_TOPIC: Final = "TBW102"
SCHEDULE_TOPIC: Final = "SCHEDULE_TOPIC_XXXX"
HALF_TOPIC: Final = "RMQ_SYS_TRANS_HALF_TOPIC"
OP_HALF_TOPIC: Final = "RMQ_SYS_TRANS_OP_HALF_TOPIC"
CHECK_MAX_TIME_TOPIC: Final = "TRANS_CHECK_MAX_TIME_TOPIC"
SELF_TEST_TOPIC: Final = "SELF_TEST_TOPIC"
OFFSET_MOVED_TOPIC: Final = "OFFSET_MOVED_EVENT"
BENCHMARK_TOPIC: Final = "BenchmarkTest"
TRACE_TOPIC: Final = "RMQ_SYS_TRACE_TOPIC"
TIMER_TOPIC: Final = "rmq_sys_wheel_timer"
SYSTEM_PREFIX: Final = "rmq_sys_"
QUEUES_MAX: Final = 16_384
"""Queues of a topic: what tools ask of one is a single answer, which so many fill by two thirds in the worst case."""
SCHEDULE_QUEUES: Final = 18
REVIVE_QUEUES: Final = 8

_SYSTEM: Final = frozenset(
    {
        AUTO_CREATE_TOPIC,
        SCHEDULE_TOPIC,
        BENCHMARK_TOPIC,
        HALF_TOPIC,
        TRACE_TOPIC,
        OP_HALF_TOPIC,
        CHECK_MAX_TIME_TOPIC,
        SELF_TEST_TOPIC,
        OFFSET_MOVED_TOPIC,
        "CHECKPOINT_TOPIC",
        "RMQ_SYS_ROCKSDB_TRANS_HALF_TOPIC",
        "RMQ_SYS_ROCKSDB_TRANS_OP_HALF_TOPIC",
    }
)
NOT_SENDABLE: Final = frozenset(
    {
        SCHEDULE_TOPIC,
        HALF_TOPIC,
        OP_HALF_TOPIC,
        CHECK_MAX_TIME_TOPIC,
        SELF_TEST_TOPIC,
        OFFSET_MOVED_TOPIC,
        "RMQ_SYS_ROCKSDB_TRANS_HALF_TOPIC",
        "RMQ_SYS_ROCKSDB_TRANS_OP_HALF_TOPIC",
    }
)
"""System topics that no client may send to."""

_LEGAL: Final = re.compile(r"[%|a-zA-Z0-9_-]+")
NAME_LENGTH_MAX: Final = 127
RETRY_NAME_LENGTH_MAX: Final = 255
GROUP_LENGTH_MAX: Final = 120
SEE_FAQ: Final = "\nSee https://rocketmq.apache.org/docs/bestPractice/06FAQ for further details."
"""Apache appends this to several remarks; tools show it to people."""

_ATTRIBUTES: Final = {
    "queue.type": Attribute(("SimpleCQ", "BatchCQ"), changeable=False),
    "cleanup.policy": Attribute(("DELETE", "COMPACTION"), changeable=False),
    "message.type": Attribute(
        ("UNSPECIFIED", "MIXED", "TRANSACTION", "PRIORITY", "FIFO", "DELAY", "LITE", "NORMAL"),
    ),
    "reserve.time": Attribute(range(-1, LONG_MAX + 1)),
    "lite.topic.expiration": Attribute(range(-1, 30 * 24 * 60 + 1)),
}
_UNSERVED: Final = {"message.type": "LITE"}


def validate_name(topic: str) -> str | None:
    """Why a name cannot be a topic's, in Apache's words; None when it can."""
    if not topic.strip():
        return "The specified topic is blank."
    if not _LEGAL.fullmatch(topic):
        return f"The specified topic: {topic}, contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$"
    if topic.startswith((RETRY_PREFIX, DLQ_PREFIX)):
        if len(topic) > RETRY_NAME_LENGTH_MAX:
            return (
                f"The specified topic is DLQ or Retry topic: {topic}, and it's longer than topic max length: "
                f"{RETRY_NAME_LENGTH_MAX}"
            )
    elif len(topic) > NAME_LENGTH_MAX:
        return f"The specified topic: {topic}, is longer than topic max length: {NAME_LENGTH_MAX}"
    return None


def is_light(name: str) -> bool:
    """The name of a light queue (as a topic), or of a group that reads one: neither has to be made."""
    return name.startswith(LIGHT_PREFIX)


def validate_group(group: str) -> str | None:
    """Why a name cannot be a group's, in Apache's words; None when it can."""
    if not group.strip():
        return "The specified group is blank."
    if not _LEGAL.fullmatch(group):
        return f"The specified group: {group}, contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$"
    if len(group) > GROUP_LENGTH_MAX:
        return f"The specified group: {group}, is longer than group max length: {GROUP_LENGTH_MAX}"
    return None


def has_batch_queues(config: TopicConfig) -> bool:
    """A sender's batch stays one record in this topic, with an offset for each of its messages."""
    return config.attributes.get("queue.type") == "BatchCQ"


def is_compacted(config: TopicConfig) -> bool:
    """Of each key only the newest message is kept in this topic."""
    return config.attributes.get("cleanup.policy") == "COMPACTION"


def possible_queues(count: int) -> int:
    """The nearest number of queues that a topic may have."""
    return max(0, min(QUEUES_MAX, count))


def _problem(config: TopicConfig, queues_max: int) -> str | None:
    """Why no topic can be like this, or None. What Java's types cannot hold, the body's refuse."""
    for name, value, high in (
        ("readQueueNums", config.read_queue_nums, queues_max),
        ("writeQueueNums", config.write_queue_nums, queues_max),
        ("perm", config.perm, PERM_READ | PERM_WRITE | PERM_INHERIT),
    ):
        if not 0 <= value <= high:
            return f"topic {config.topic_name}: {name} must be 0 to {high}, not {value}"
    return None


def _read(data: bytes) -> Any:
    """The table; the plain tree, if it is JSON but no table. Raises MalformedRequest when it is not even that."""
    try:
        return TopicConfigSerializeWrapper.from_json(data)
    except MalformedRequest:
        return fastjson.loads(data)


class TopicTable:
    """All topics of this broker; see the head of this file."""

    def __init__(
        self,
        options: BrokerOptions,
        config_dir: Path,
        *,
        on_change: Callable[[str, TopicConfig | None], None] = lambda topic, config: None,
        on_register: Callable[[list[TopicConfig]], None] = lambda configs: None,
    ) -> None:
        self.file = ConfigFile(config_dir / "topics.json", self._to_json)
        self.version = DataVersion()
        self.table: dict[str, TopicConfig] = {}
        self._options = options
        self._on_change = on_change
        self._on_register = on_register
        self._own_system: set[str] = set()

    def load(self) -> None:
        """Reads the file and adds the system topics; nobody is told of them one by one.

        Raises OSError, and MalformedRequest at a setting that cannot be one: to go on without topics would be worse.
        """
        for config in self._system_topics():
            self._own_system.add(config.topic_name)
            self.table[config.topic_name] = config
        kept = self.file.load(_read)
        if kept is not None:
            with self.file.reading():
                if isinstance(kept, dict):
                    kept = TopicConfigSerializeWrapper.from_dict(kept)  # raises, and says what is wrong
                for name, config in kept.topic_config_table.items():
                    config.topic_name = config.topic_name or name
                    # One with more queues than may be asked for today stays as it is.
                    if (problem := _problem(config, JAVA_INT_MAX)) is not None:
                        raise MalformedRequest(problem)
            self.table.update(kept.topic_config_table)
            self.version = DataVersion.from_json(kept.data_version.to_dict())
        if not self._options.auto_create_topic_enable:
            self.table.pop(AUTO_CREATE_TOPIC, None)

    def get(self, topic: str) -> TopicConfig | None:
        """A topic, if it exists here."""
        config = self.table.get(topic)
        if config is None and self._options.enable_lmq and is_light(topic):
            return TopicConfig(topic_name=topic, read_queue_nums=1, write_queue_nums=1, perm=READ_WRITE)
        return config

    def is_order(self, topic: str) -> bool:
        """The topic is marked as ordered."""
        config = self.table.get(topic)
        return config is not None and config.order

    def is_system(self, topic: str) -> bool:
        """The broker's own topic, which tools may not change."""
        return topic in _SYSTEM or topic in self._own_system or topic.startswith(SYSTEM_PREFIX)

    def system_topics(self) -> list[str]:
        """Names of the broker's own topics."""
        return sorted(_SYSTEM | self._own_system)

    # Creation and change.

    def auto_creation_changed(self) -> None:
        """`autoCreateTopicEnable` was changed: what is inherited from is there when it is on.

        Switched off it stays until the next start; nothing is inherited from it. The file need not hear of it: a start
        looks at the setting.
        """
        if self._options.auto_create_topic_enable and AUTO_CREATE_TOPIC not in self.table:
            self.table[AUTO_CREATE_TOPIC] = config = self._parent_of_all()
            self._on_change(AUTO_CREATE_TOPIC, config)
            self.version.advance()
            self._on_register([config])

    async def create_for_send(
        self, topic: str, default_topic: str, queue_nums: int, sys_flag: int
    ) -> TopicConfig | None:
        """A topic that somebody sends to: inherits from its default topic. None when it may not be created."""
        found = self.get(topic)
        if found is not None:
            return found
        parent = self.table.get(default_topic)
        if parent is None:
            _log.warning("topic %s is not created: its default topic %s does not exist", topic, default_topic)
            return None
        if not parent.perm & PERM_INHERIT or (
            default_topic == AUTO_CREATE_TOPIC and not self._options.auto_create_topic_enable
        ):
            _log.warning("topic %s is not created: nothing may be inherited from %s", topic, default_topic)
            return None
        count = max(0, min(queue_nums, parent.write_queue_nums))
        _log.warning(
            "topic %s is created with %d queues because somebody sent to it; the other masters of the cluster are told",
            topic,
            count,
        )
        config = TopicConfig(
            topic_name=topic,
            read_queue_nums=count,
            write_queue_nums=count,
            perm=parent.perm & ~PERM_INHERIT,
            topic_filter_type=parent.topic_filter_type,
            topic_sys_flag=sys_flag,
        )
        await self._put(config)
        return config

    async def create_for_group(
        self, topic: str, queue_nums: int, *, order: bool = False, sys_flag: int = 0
    ) -> TopicConfig:
        """A retry, dead-letter or internal topic, readable and writable; `order` follows what the group consumes.

        A group's settings may ask for any number of queues: it gets the nearest possible one.
        """
        found = self.table.get(topic)
        if found is not None:
            return found
        queue_nums = possible_queues(queue_nums)
        config = TopicConfig(
            topic_name=topic,
            read_queue_nums=queue_nums,
            write_queue_nums=queue_nums,
            perm=READ_WRITE,
            topic_sys_flag=sys_flag,
            order=order,
        )
        await self._put(config)
        return config

    async def make_or_widen(self, topic: str, queue_nums: int) -> None:
        """A retry topic of at least so many queues."""
        found = await self.create_for_group(topic, queue_nums)
        if found.write_queue_nums < queue_nums:
            await self._put(msgspec.structs.replace(found, read_queue_nums=queue_nums, write_queue_nums=queue_nums))

    async def update(self, configs: Iterable[TopicConfig]) -> None:
        """Creates or changes topics as an operator says. `attributes` holds `+key`/`-key` changes.

        Raises ServerError INVALID_PARAMETER for names and numbers, and SYSTEM_ERROR for attributes that cannot be;
        nothing is changed then.
        """
        changed = []
        for config in configs:
            self.check(config)
            if self._options.enable_lmq and is_light(config.topic_name):
                continue  # it is as it is
            current = self.table.get(config.topic_name)
            try:
                attributes = alter(current.attributes if current else None, config.attributes, _ATTRIBUTES)
            except ValueError as error:
                raise error_for(ResponseCode.SYSTEM_ERROR, str(error)) from None
            for key, value in _UNSERVED.items():
                if attributes.get(key) == value:
                    raise error_for(ResponseCode.SYSTEM_ERROR, f"{key}={value} is not served by this broker")
            if attributes.get("queue.type") == "BatchCQ" and attributes.get("cleanup.policy") == "COMPACTION":
                raise error_for(ResponseCode.SYSTEM_ERROR, "batches that stay one message cannot be compacted by key")
            if attributes.get("message.type") == "MIXED" and not self._options.enable_mixed_message_type:
                raise error_for(ResponseCode.INVALID_PARAMETER, "MIXED message type is not supported.")
            config.attributes = attributes
            if config != current:
                changed.append(config)
        if changed:
            await self._put(*changed)

    def check(self, config: TopicConfig) -> None:
        """ServerError INVALID_PARAMETER when a tool may not make the topic, or not like this."""
        self.check_changeable(config.topic_name)
        if (problem := _problem(config, QUEUES_MAX)) is not None:
            raise error_for(ResponseCode.INVALID_PARAMETER, problem)

    def check_changeable(self, topic: str) -> None:
        """ServerError INVALID_PARAMETER when a tool may not create, change or delete such a topic."""
        problem = validate_name(topic)
        if problem is None and self._options.validate_system_topic_when_update_topic and self.is_system(topic):
            problem = f"The topic[{topic}] is conflict with system topic."
        if problem is not None:
            raise error_for(ResponseCode.INVALID_PARAMETER, problem)

    async def delete(self, topic: str) -> None:
        """Forgets a topic; its data is the caller's business."""
        if self.table.pop(topic, None) is None:
            _log.warning("topic %s is to be deleted, but it is not here", topic)
            return
        self.version.advance()
        self._on_change(topic, None)
        self._on_register([])
        await self.file.save()

    async def set_order(self, topics: Iterable[str]) -> None:
        """Marks topics as ordered, as the name server's configuration says."""
        changed = False
        for topic in topics:
            config = self.table.get(topic)
            if config is not None and not config.order:
                config.order = True
                changed = True
        if changed:
            self.version.advance()
            await self.file.save()

    async def _put(self, *configs: TopicConfig) -> None:
        for config in configs:
            self.table[config.topic_name] = config
            self._on_change(config.topic_name, config)
        self.version.advance()
        self._on_register(list(configs))
        await self.file.save()

    def with_batch_queues(self) -> list[str]:
        """Topics with batch queues; the store has to know them when it is opened."""
        return sorted(name for name, config in self.table.items() if has_batch_queues(config))

    def compacted(self) -> list[str]:
        """Compaction topics, if they are served."""
        if not self._options.enable_compaction:
            return []
        return sorted(name for name, config in self.table.items() if is_compacted(config))

    # The file, and what replicas and tools are told.

    def to_dict(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """Apache's TopicConfigSerializeWrapper, of all topics or of some."""
        table = self.table if names is None else {name: self.table[name] for name in names}
        return {
            "dataVersion": self.version.to_json(),
            "topicConfigTable": dict(sorted(table.items())),
        }

    def _to_json(self) -> bytes:
        return fastjson.dumps_table(self.to_dict(), pretty=True)

    def _parent_of_all(self) -> TopicConfig:
        queues = self._options.default_topic_queue_nums
        return TopicConfig(
            topic_name=AUTO_CREATE_TOPIC,
            read_queue_nums=queues,
            write_queue_nums=queues,
            perm=PERM_INHERIT | READ_WRITE,
        )

    def _system_topics(self) -> list[TopicConfig]:
        options = self._options

        def own(name: str, queues: int, perm: int = READ_WRITE) -> TopicConfig:
            return TopicConfig(topic_name=name, read_queue_nums=queues, write_queue_nums=queues, perm=perm)

        topics = [
            own(SELF_TEST_TOPIC, 1),
            own(BENCHMARK_TOPIC, 1024),
            own(options.broker_cluster_name, 16, PERM_INHERIT | (READ_WRITE if options.cluster_topic_enable else 0)),
            own(options.broker_name, 1, PERM_INHERIT | (READ_WRITE if options.broker_topic_enable else 0)),
            own(OFFSET_MOVED_TOPIC, 1),
            own(SCHEDULE_TOPIC, SCHEDULE_QUEUES),
            own(f"{options.broker_cluster_name}_REPLY_TOPIC", 1),
            own(f"{SYSTEM_PREFIX}REVIVE_LOG_{options.broker_cluster_name}", REVIVE_QUEUES),
            own(f"{SYSTEM_PREFIX}SYNC_BROKER_MEMBER_{options.broker_name}", 1, PERM_INHERIT),
            own(HALF_TOPIC, 1),
            own(OP_HALF_TOPIC, 1),
            own(TIMER_TOPIC, 1),
        ]
        if options.auto_create_topic_enable:
            topics.append(self._parent_of_all())
        if options.trace_topic_enable:
            topics.append(own(options.msg_trace_topic_name, 1))
        return topics
