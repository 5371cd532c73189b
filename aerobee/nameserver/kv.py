"""The KV configuration: namespace → key → value, in one file that Apache's name server reads and writes too.

A change is on disk before it is visible and before it is answered; a file that cannot be written refuses the change.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from aerobee.options import write_atomically

ORDER_TOPIC_CONFIG: Final = "ORDER_TOPIC_CONFIG"
"""The namespace in which the order configuration of topics lives: topic → `broker-a:4;broker-b:4`."""

_log = logging.getLogger("aerobee.nameserver.kv")

Table = dict[str, dict[str, str]]


class _File(msgspec.Struct):
    """`kvConfig.json`."""

    configTable: Table = {}


class KvConfig:
    """The table and its file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._table: Table = {}
        self.generation = 0
        """Grows with every change."""

    def load(self) -> None:
        """Reads the file. One that cannot be understood is set aside under another name, with a line in the log."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        try:
            self._table = msgspec.json.decode(data, type=_File).configTable if data.strip() else {}
        except msgspec.DecodeError as error:
            aside = self._path.with_name(self._path.name + ".damaged")
            self._path.replace(aside)
            _log.error("%s is damaged (%s); it is now %s, the KV configuration is empty", self._path, error, aside.name)

    def check(self) -> None:
        """Raises OSError when the file could not be written. Nothing is made: the first change does that."""
        place = next(parent for parent in self._path.absolute().parents if parent.exists())
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))

    def get(self, namespace: str, key: str) -> str | None:
        """One value, or None."""
        return self._table.get(namespace, {}).get(key)

    def namespace(self, namespace: str) -> Mapping[str, str] | None:
        """All values of a namespace, or None if nothing was ever put there."""
        return self._table.get(namespace)

    async def put(self, namespace: str, key: str, value: str) -> None:
        """Sets a value. Raises OSError, and changes nothing, when the file cannot be written."""
        async with self._lock:
            await self._replace({**self._table, namespace: {**self._table.get(namespace, {}), key: value}})

    async def delete(self, namespace: str, key: str) -> None:
        """Removes a value if it is there; the namespace stays. Raises OSError as `put` does."""
        async with self._lock:
            values = self._table.get(namespace)
            if values is not None and key in values:
                left = {name: value for name, value in values.items() if name != key}
                await self._replace({**self._table, namespace: left})

    async def _replace(self, table: Table) -> None:
        data = msgspec.json.format(msgspec.json.encode(_File(table)), indent=1)
        await asyncio.to_thread(self._write, data)  # it waits for the disk, other requests do not
        self._table = table
        self.generation += 1

    def _write(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, data)
