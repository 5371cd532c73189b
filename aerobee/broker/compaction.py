"""Compaction topics (`+cleanup.policy=COMPACTION`): of every key the newest message stays as long as the topic exists.

The engine does it (rust/engine/src/compaction.rs): for each queue it keeps a log beside the commit log, and reads that.
Here is when: every `compactionScheduleInternal`, one queue after the other, in a thread. How far each queue has been
compared is in Apache's `compaction/position-checkpoint`; a stale one costs only that it is compared again.

A message without a key cannot be kept, so it is refused; one without a body deletes its key.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aerobee.broker.config_file import ConfigFile
from aerobee.broker.store import Store
from aerobee.errors import ServerError, StoreError
from aerobee.protocol import fastjson
from aerobee.protocol.codes import ResponseCode

if TYPE_CHECKING:
    from aerobee.broker.topics import TopicTable

_log = logging.getLogger("aerobee.broker.compaction")

KEYS: Final = "KEYS"


def check_key(properties: dict[str, str]) -> None:
    """Raises ServerError MESSAGE_ILLEGAL for a message that a compaction topic cannot keep."""
    if not properties.get(KEYS, "").strip():
        raise ServerError(ResponseCode.MESSAGE_ILLEGAL, "Required message key is missing")


class Compaction:
    """What has been compacted, and the work itself."""

    def __init__(self, store: Store, topics: TopicTable, store_dir: Path) -> None:
        self._store = store
        self._topics = topics
        self.file = ConfigFile(store_dir / "compaction" / "position-checkpoint", self._to_json)
        self.positions: dict[str, int] = {}
        """`topic_queue` → newest offset that was compared by its key."""

    def load(self) -> None:
        """Reads the positions. Raises OSError, MalformedRequest."""
        data = self.file.load()
        if data:
            with self.file.reading():
                self.positions = {queue: int(offset) for queue, offset in (data.get("queueOffsetMap") or {}).items()}

    async def run(self) -> None:
        """Compacts every queue that has something to compact. Raises OSError."""
        queues = self._store.topics()
        for topic in self._topics.compacted():
            for queue_id in queues.get(topic, []):
                await self._compact(topic, queue_id)

    async def _compact(self, topic: str, queue_id: int) -> None:
        name = f"{topic}_{queue_id}"
        try:
            done = await asyncio.to_thread(self._store.engine.compact, topic, queue_id, self.positions.get(name, -1))
        except StoreError as error:
            _log.error("%s queue %d could not be compacted: %s", topic, queue_id, error)
            return
        if done is None:
            return
        position, before, after = done
        _log.info("%s queue %d: of %d messages up to offset %d %d are kept", topic, queue_id, before, position, after)
        if topic in self._topics.compacted():  # it may have been deleted meanwhile
            self.positions[name] = position
            await self.file.save()

    def forget_topic(self, topic: str) -> None:
        """The topic was deleted; the file hears of it with the next position."""
        for name in [name for name in self.positions if name.rpartition("_")[0] == topic]:
            del self.positions[name]

    def _to_json(self) -> bytes:
        return fastjson.dumps({"queueOffsetMap": self.positions})
