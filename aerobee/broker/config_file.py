"""JSON files under `config/` as Apache RocketMQ keeps them: replaced as a whole, the former one kept as `.bak`.

Reading falls back to the `.bak` file when the file is missing, empty or broken. Writing takes place in a worker
thread; requests that come while a write is under way share the next one, so a thousand new topics cost a few writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from aerobee.errors import MalformedRequest
from aerobee.protocol import fastjson

_log = logging.getLogger("aerobee.broker.config")


class ConfigFile:
    """One such file. `text` makes its content; it is called on the loop's thread."""

    def __init__(self, path: Path, text: Callable[[], str | bytes]) -> None:
        self.path = path
        self.backup = path.with_name(path.name + ".bak")
        self._text = text
        self._lock = asyncio.Lock()
        self._asked = 0
        self._written = 0
        self._last = b""
        self._read = path
        """Where what is good is: the file, or its backup when that was loaded."""

    def load(self, read: Callable[[bytes], Any] = fastjson.loads) -> Any | None:
        """What `read` makes of the content, or of the backup's if that is MalformedRequest; None when there is neither.

        Raises OSError, and MalformedRequest when it is JSON and no object.
        """
        for path in (self.path, self.backup):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            if not data.strip():
                _log.warning("%s is empty; the next best copy is used", path)
                continue
            try:
                content = read(data)
            except MalformedRequest as error:
                _log.error("%s is damaged (%s); the next best copy is used", path, error)
                continue
            if content is not None and not isinstance(content, dict | msgspec.Struct):
                raise MalformedRequest(f"{path} holds no JSON object")
            self._read = path
            return content
        return None

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around what makes sense of the content: raises MalformedRequest, with the file's name, where it has another
        shape than a broker writes."""
        try:
            yield
        except (MalformedRequest, msgspec.ValidationError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise MalformedRequest(f"{self._read} is not as a broker writes it: {error}") from error

    def written_at(self) -> float:
        """When the file was last replaced, in seconds; 0: there is none."""
        try:
            return self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    async def save(self) -> None:
        """Returns when what is in memory now is on the disk. Raises OSError.

        Who is cancelled meanwhile leaves the write to itself: two of them would share the temporary file.
        """
        self._asked += 1
        await asyncio.shield(self._save(self._asked))

    async def _save(self, wanted: int) -> None:
        async with self._lock:
            if self._written >= wanted:
                return
            version, data = self._asked, self._data()
            await asyncio.to_thread(self._replace, data)
            self._written = version

    @property
    def behind(self) -> bool:
        """A write has failed: what is in memory is not on the disk."""
        return self._written < self._asked and not self._lock.locked()

    def save_now(self) -> None:
        """`save` on the calling thread, for the end of the process. Raises OSError."""
        self._replace(self._data())

    def _data(self) -> bytes:
        text = self._text()
        return text.encode() if isinstance(text, str) else text

    def _replace(self, data: bytes) -> None:
        if data == self._last:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)  # on a full disk it takes the room that is missing
            raise
        if self._read != self.backup and self.path.exists():  # else the file is damaged, and the backup what is good
            # The former content gets its second name before it loses the first, so one of them is always there.
            with contextlib.suppress(FileNotFoundError):
                self.backup.unlink()
            try:
                os.link(self.path, self.backup)
            except OSError:
                self.backup.write_bytes(self.path.read_bytes())
        os.replace(temporary, self.path)
        self._read = self.path
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # the new name is on the disk too
        finally:
            os.close(directory)
        self._last = data
