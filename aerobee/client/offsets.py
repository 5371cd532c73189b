"""Where a consumer's offsets are kept: at the broker (clustering) or in a local file (broadcasting)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from aerobee.client import calls
from aerobee.client.client import STATIC_BROKER
from aerobee.client.process_queue import ProcessQueue
from aerobee.client.results import ConsumeFrom
from aerobee.errors import AerobeeError, ServerError
from aerobee.protocol import message as wire
from aerobee.protocol.message import MessageQueue

if TYPE_CHECKING:
    from aerobee.client.consumer import Consumer

_log = logging.getLogger("aerobee.client.offsets")


async def first_offset(consumer: Consumer, queue: MessageQueue) -> int:
    """Where a group starts in a queue that it has no offset of."""
    client = consumer.client
    if queue.topic.startswith(wire.RETRY_TOPIC_PREFIX):
        return 0  # whatever the group put there is for the group
    if consumer.start_from is ConsumeFrom.LAST_OFFSET:
        return await calls.max_offset(client, queue)
    if consumer.start_from is ConsumeFrom.FIRST_OFFSET:
        return await calls.min_offset(client, queue)
    return await calls.offset_by_time(client, queue, consumer.start_timestamp_ms)


class BrokerOffsets:
    """Offsets of a group, shared by its members, at the broker that has the queue."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._untold: dict[MessageQueue, ProcessQueue] = {}
        """Queues that were given up while their broker could not be told how far they are: it may come back."""

    async def start(self, queue: MessageQueue) -> int:
        """Where to go on in a queue that was just taken. Raises AerobeeError when the broker cannot say."""
        committed = await calls.query_offset(self._consumer.client, self._consumer.group, queue)
        untold = self._untold.pop(queue, None)
        if untold is not None:
            # All in front of it was finished here, whoever had the queue meanwhile.
            return max(untold.committable, committed or 0)
        return committed if committed is not None else await first_offset(self._consumer, queue)

    def forget(self, queues: Iterable[MessageQueue]) -> None:
        """What the broker could not be told of these does not count any more: others have them, or they were reset."""
        for queue in queues:
            self._untold.pop(queue, None)

    def with_pull(self, process_queue: ProcessQueue) -> int:
        """The offset to commit along with a pull, -1 for none (only a master takes it)."""
        if process_queue.queue.broker_name.startswith(STATIC_BROKER):
            return -1  # Apache's broker would note a logical offset as if it were its own
        return process_queue.committable if process_queue.read_from == 0 and process_queue.committable > 0 else -1

    async def commit(self, process_queues: Iterable[ProcessQueue], *, last: bool = False) -> None:
        """Tells the brokers what changed since the last time; failures are logged and tried again the next time.

        The last time they are told everything: one that was killed since may have lost what it knew.
        """
        at_brokers: dict[tuple[str, str], list[ProcessQueue]] = {}
        for process_queue in process_queues:
            if last or process_queue.committable != process_queue.persisted:
                queue = process_queue.queue
                at_brokers.setdefault((self._consumer.client.host(queue), queue.topic), []).append(process_queue)
        await asyncio.gather(*(self._commit_topic(queues, again=last) for queues in at_brokers.values()))
        if last:
            self._untold.clear()

    async def _commit_topic(self, process_queues: list[ProcessQueue], *, again: bool) -> None:
        """The first alone: where a group's table of a topic is not there yet, Apache's broker makes one for each of
        several commits that come together, and keeps one of them. The last time it is told once more, in case it met a
        pull that commits."""
        first, *others = process_queues
        failure = await self._commit(first)
        if failure is None or isinstance(failure, ServerError):
            await asyncio.gather(*map(self._commit, process_queues if again else others))
            return
        for process_queue in others:  # one that does not answer is not waited for again
            self._not_committed(process_queue, failure)

    async def _commit(self, process_queue: ProcessQueue) -> AerobeeError | None:
        offset = process_queue.committable
        try:
            await calls.update_offset(self._consumer.client, self._consumer.group, process_queue.queue, offset)
        except AerobeeError as error:
            self._not_committed(process_queue, error)
            return error
        process_queue.persisted = offset
        return None

    def _not_committed(self, process_queue: ProcessQueue, error: AerobeeError) -> None:
        _log.warning("offset %d of %s not committed: %s", process_queue.committable, process_queue.queue, error)
        queue = process_queue.queue
        if process_queue.dropped and self._consumer.queues.get(queue) is process_queue:  # else it was reset meanwhile
            self._untold[queue] = process_queue


class LocalOffsets:
    """Offsets of one broadcasting member, in `directory/client id/group/offsets.json`, replaced atomically."""

    def __init__(self, consumer: Consumer, directory: str | Path | None) -> None:
        self._consumer = consumer
        root = Path(directory) if directory is not None else Path.home() / ".rocketmq_offsets"
        self._path = root / consumer.client.client_id / consumer.group / "offsets.json"
        self._table: dict[str, int] | None = None
        # Of threads: a commit that is cancelled leaves its thread writing.
        self._writing = threading.Lock()

    async def start(self, queue: MessageQueue) -> int:
        """Where to go on; see `BrokerOffsets.start`."""
        if self._table is None:
            self._table = await asyncio.to_thread(self._read)
        offset = self._table.get(_key(queue))
        return offset if offset is not None else await first_offset(self._consumer, queue)

    def forget(self, queues: Iterable[MessageQueue]) -> None:
        pass  # the table has every queue's

    def with_pull(self, process_queue: ProcessQueue) -> int:
        return -1

    async def commit(self, process_queues: Iterable[ProcessQueue], *, last: bool = False) -> None:
        """Writes the file when anything changed."""
        changed = [p for p in process_queues if p.committable != p.persisted]
        if not changed:
            return
        if self._table is None:
            self._table = {}
        for process_queue in changed:
            self._table[_key(process_queue.queue)] = process_queue.committable
        try:
            written = await asyncio.to_thread(self._write, self._table)
        except OSError as error:
            _log.warning("offsets not written to %s: %s", self._path, error)
            return
        for process_queue in changed:
            process_queue.persisted = written[_key(process_queue.queue)]

    def _read(self) -> dict[str, int]:
        try:
            table = json.loads(self._path.read_text())["offsets"]
            table = {str(key): int(offset) for key, offset in table.items()}
            wrong = [offset for offset in table.values() if not 0 <= offset < 1 << 63]
            if wrong:
                raise ValueError(f"{wrong[0]} is no offset")
            return table
        except FileNotFoundError:
            return {}
        except Exception as error:  # whatever JSON may hold in place of the table and its numbers
            _log.warning("%s cannot be read, starting without it: %r", self._path, error)
            return {}

    def _write(self, table: dict[str, int]) -> dict[str, int]:
        """Returns what is in the file now: copied when it is our turn, so that no older table replaces a newer one."""
        with self._writing:
            table = table.copy()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside = self._path.with_suffix(".tmp")
            beside.write_text(json.dumps({"offsets": table}, indent=1, sort_keys=True))
            os.replace(beside, self._path)
        return table


def _key(queue: MessageQueue) -> str:
    return f"{queue.topic}@{queue.broker_name}@{queue.queue_id}"
