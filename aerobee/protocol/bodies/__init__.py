"""Bodies: what commands carry as JSON, as typed values, one file a family.

Names are ours (`queue_id`), on the wire they are RocketMQ's (`queueId`). Fields have defaults: senders leave out what
is null, and old ones do not know all fields. Those without which a request asks for nothing have none, as at Apache's.
Unknown fields are ignored.
"""

from __future__ import annotations

from typing import Any, Self

import msgspec

from aerobee.errors import MalformedRequest
from aerobee.protocol import fastjson


class Body(msgspec.Struct, rename="camel", kw_only=True):
    """Base of all bodies and their parts. Values may be changed."""

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Reads JSON in any of Fastjson's spellings. Raises MalformedRequest."""
        if (b"$ref" if isinstance(data, bytes) else "$ref") not in data:  # type: ignore[operator]
            try:
                return msgspec.json.decode(data, type=cls, strict=False)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                pass
        return cls.from_dict(fastjson.loads(data))

    @classmethod
    def from_dict(cls, tree: Any) -> Self:
        """Reads what `fastjson.loads` gives; nulls count as left out. Raises MalformedRequest."""
        try:
            return msgspec.convert(tree, cls, strict=False)
        except msgspec.ValidationError:
            pass  # maybe a null is in the way
        try:
            return msgspec.convert(_without_nulls(tree), cls, strict=False)
        except msgspec.ValidationError as error:
            raise MalformedRequest(f"{cls.__name__}: {error}") from None

    def to_json(self, *, standard: bool = False) -> bytes:
        """Writes as Java does; `standard`: numbers that are keys get quotes, for readers of strict JSON."""
        return fastjson.dumps(self, bare_keys=not standard)

    def to_dict(self) -> dict[str, Any]:
        """As plain values under wire names, None left out."""
        tree = _plain(self)
        assert isinstance(tree, dict)
        return tree


def _without_nulls(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_nulls(item) for key, item in tree.items() if item is not None}
    if isinstance(tree, list):
        return [_without_nulls(item) for item in tree if item is not None]
    return tree


_NAMES: dict[type, list[tuple[str, str]]] = {}


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if isinstance(value, Body):
        names = _NAMES.get(kind)
        if names is None:
            names = _NAMES[kind] = sorted((f.encode_name, f.name) for f in msgspec.structs.fields(kind))
        return {wire: _plain(item) for wire, name in names if (item := getattr(value, name)) is not None}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | set | tuple):
        return [_plain(item) for item in value]
    return value
