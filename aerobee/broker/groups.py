"""Consumer groups' settings: may they consume, how often is a message retried; `subscriptionGroup.json` on disk.

A group that nobody configured is created when somebody uses it, if `autoCreateSubscriptionGroup` says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from aerobee.broker.attributes import LONG_MAX, Attribute, alter
from aerobee.broker.config_file import ConfigFile
from aerobee.broker.data_version import DataVersion
from aerobee.broker.options import BrokerOptions
from aerobee.broker.topics import QUEUES_MAX, is_light, validate_group, validate_name
from aerobee.errors import MalformedRequest, error_for
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.groups import SubscriptionGroupConfig
from aerobee.protocol.codes import ResponseCode

_log = logging.getLogger("aerobee.broker.groups")

TOOLS_GROUP: Final = "TOOLS_CONSUMER"
_SYSTEM: Final = (
    TOOLS_GROUP,
    "FILTERSRV_CONSUMER",
    "SELF_TEST_C_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PULL",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_OWNER",
    "CID_RMQ_SYS_TRANS",
)
SYSTEM_GROUP_PREFIX: Final = "CID_RMQ_SYS_"
PRIORITY_FACTOR: Final = "priority.factor"
PRIORITY_FACTOR_MAX: Final = 100
_ATTRIBUTES: Final = {
    PRIORITY_FACTOR: Attribute(range(PRIORITY_FACTOR_MAX + 1)),
    "lite.bind.topic": Attribute(),
    "lite.sub.model": Attribute(("Shared", "Exclusive")),
    "lite.sub.reset.offset.exclusive": Attribute(),
    "lite.sub.reset.offset.unsubscribe": Attribute(),
    "lite.sub.client.quota": Attribute(range(-1, LONG_MAX + 1)),
    "lite.sub.client.max.event.cnt": Attribute(range(10, LONG_MAX + 1)),
    "lite.sub.wildcard": Attribute(),
}
FORBIDDEN_READ: Final = 1 << 2


def is_system_group(group: str) -> bool:
    """A group of the broker's or of its tools."""
    return group in _SYSTEM or group.startswith(SYSTEM_GROUP_PREFIX)


def priority_factor(group: SubscriptionGroupConfig | None) -> int:
    """How many of 100 pops of a priority topic take the highest priority first."""
    text = group.attributes.get(PRIORITY_FACTOR, "") if group is not None else ""
    return int(text) if text.isdigit() else PRIORITY_FACTOR_MAX


class GroupTable:
    """Settings of all groups; see the head of this file."""

    def __init__(
        self,
        options: BrokerOptions,
        config_dir: Path,
        *,
        on_change: Callable[[str, SubscriptionGroupConfig | None], None] = lambda group, config: None,
    ) -> None:
        self.file = ConfigFile(config_dir / "subscriptionGroup.json", self._to_json)
        self.version = DataVersion()
        self.table: dict[str, SubscriptionGroupConfig] = {}
        self.forbidden: dict[str, dict[str, int]] = {}
        """Group → topic → bits of what the group may not do with the topic (bit 2: read)."""
        self._options = options
        self._on_change = on_change
        self._saving: set[asyncio.Task[None]] = set()

    def load(self) -> None:
        """Reads the file and adds the groups of the tools. Raises OSError, MalformedRequest."""
        for name in _SYSTEM:
            self.table[name] = SubscriptionGroupConfig(group_name=name)
        data = self.file.load()
        if data:
            with self.file.reading():
                for name, entry in (data.get("subscriptionGroupTable") or {}).items():
                    try:
                        self.table[name] = SubscriptionGroupConfig.from_dict({"groupName": name, **entry})
                    except MalformedRequest as error:
                        raise MalformedRequest(f"group {name}: {error}") from error
                self.forbidden = {
                    group: {topic: int(bits) for topic, bits in topics.items()}
                    for group, topics in (data.get("forbiddenTable") or {}).items()
                }
                self.version = DataVersion.from_json(data.get("dataVersion"))
        for name, config in self.table.items():
            self._on_change(name, config)

    def get(self, group: str) -> SubscriptionGroupConfig | None:
        """A group's settings; those of a light queue's reader are the default's."""
        config = self.table.get(group)
        if config is None and self._options.enable_lmq and is_light(group):
            return SubscriptionGroupConfig(group_name=group)
        return config

    def find(self, group: str) -> SubscriptionGroupConfig | None:
        """A group's settings, made now if it may be; None when it may not."""
        config = self.get(group)
        if config is None and (self._options.auto_create_subscription_group or is_system_group(group)):
            if validate_group(group) is not None:
                return None
            _log.info("group %s is created because somebody uses it", group)
            config = self.table[group] = SubscriptionGroupConfig(group_name=group)
            self.version.advance()
            self._on_change(group, config)
            self._save_soon()
        return config

    async def update(self, configs: Iterable[SubscriptionGroupConfig]) -> None:
        """Creates or changes groups as an operator says, all or none.

        Raises ServerError INVALID_PARAMETER, SYSTEM_ERROR.
        """
        changed: dict[str, SubscriptionGroupConfig] = {}
        for config in configs:
            name = config.group_name or ""
            problem = validate_group(name)
            if problem is None and config.retry_queue_nums > QUEUES_MAX:
                problem = f"group {name}: retryQueueNums must be at most {QUEUES_MAX}, not {config.retry_queue_nums}"
            if problem is not None:
                raise error_for(ResponseCode.INVALID_PARAMETER, problem)
            if self._options.enable_lmq and is_light(name):
                continue
            current = changed.get(name) or self.table.get(name)
            try:
                config.attributes = alter(current.attributes if current else None, config.attributes, _ATTRIBUTES)
            except ValueError as error:
                raise error_for(ResponseCode.SYSTEM_ERROR, str(error)) from None
            changed[name] = config
        for name, config in changed.items():
            self.table[name] = config
            self._on_change(name, config)
        self.version.advance()
        await self.file.save()

    async def delete(self, group: str) -> None:
        """Forgets a group; its offsets and topics are the caller's business."""
        forbidden = self.forbidden.pop(group, None)
        if self.table.pop(group, None) is None:
            _log.warning("group %s is to be deleted, but it is not here", group)
            if forbidden is None:
                return
        self.version.advance()
        self._on_change(group, None)
        await self.file.save()

    def is_forbidden(self, group: str, topic: str) -> bool:
        """An operator has forbidden the group to read the topic."""
        return bool(self.forbidden.get(group, {}).get(topic, 0) & FORBIDDEN_READ)

    async def forbid(self, group: str, topic: str, *, readable: bool) -> None:
        """Forbids a group to read a topic, or allows it again. Raises ServerError INVALID_PARAMETER for names."""
        if not readable and (problem := validate_group(group) or validate_name(topic)) is not None:
            raise error_for(ResponseCode.INVALID_PARAMETER, problem)
        topics = self.forbidden.setdefault(group, {})
        bits = topics.get(topic, 0)
        bits = bits & ~FORBIDDEN_READ if readable else bits | FORBIDDEN_READ
        if bits:
            topics[topic] = bits
        else:
            topics.pop(topic, None)
            if not topics:
                del self.forbidden[group]
        self.version.advance()
        config = self.table.get(group)
        self._on_change(group, config)
        await self.file.save()

    async def settled(self) -> None:
        """Returns when automatic creations are on the disk."""
        while self._saving:
            await asyncio.gather(*self._saving, return_exceptions=True)

    def _save_soon(self) -> None:
        task = asyncio.ensure_future(self.file.save())
        self._saving.add(task)
        task.add_done_callback(self._saved)

    def _saved(self, task: asyncio.Task[None]) -> None:
        self._saving.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("cannot write %s: %s", self.file.path, error)

    def to_dict(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """Apache's SubscriptionGroupWrapper, of all groups or of some."""
        wanted = self.table if names is None else {name: self.table[name] for name in names}
        forbidden = self.forbidden  # also for groups that are not here yet
        if names is not None:
            forbidden = {group: topics for group, topics in forbidden.items() if group in wanted}
        return {
            "dataVersion": self.version.to_json(),
            "forbiddenTable": forbidden,
            "subscriptionGroupTable": {name: config.to_dict() for name, config in sorted(wanted.items())},
        }

    def _to_json(self) -> bytes:
        return fastjson.dumps(self.to_dict(), pretty=True)
