"""Headers: the typed form of a command's ext fields, one file a family.

Names are ours (`queue_id`); on the wire they are RocketMQ's (`queueId`), and every value is text. A missing field that
official clients always send, or one that cannot be read, raises MalformedRequest with its wire name. Fields that the
class does not know (`ns`, `nsd`, `bname`, `oway`, `lo` come with many requests) are ignored. None is not written.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Self

import msgspec

from aerobee.errors import MalformedRequest

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
TIME_MAX: Final = 2**61
Milliseconds = Annotated[int, msgspec.Meta(ge=-TIME_MAX, le=TIME_MAX)]
"""A span that is added to a time and has to stay a Java long then: 73 million years."""


class Header(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """Base of all headers."""

    @classmethod
    def from_fields(cls, fields: dict[str, str]) -> Self:
        """Reads ext fields. Raises MalformedRequest."""
        try:
            return msgspec.convert(fields, cls, strict=False)
        except msgspec.ValidationError as error:
            raise MalformedRequest(_explain(cls, error)) from None

    def to_fields(self) -> dict[str, str]:
        """Writes ext fields as Java does: `true` and `false`, decimal numbers, nothing for None."""
        fields = {}
        for name, wire_name in _names(type(self)):
            value = getattr(self, name)
            if value is None:
                continue
            if value is True:
                value = "true"
            elif value is False:
                value = "false"
            fields[wire_name] = value if type(value) is str else str(value)
        return fields


_NAMES: dict[type, tuple[tuple[str, str], ...]] = {}


def _names(cls: type[Header]) -> tuple[tuple[str, str], ...]:
    names = _NAMES.get(cls)
    if names is None:
        names = _NAMES[cls] = tuple(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    return names


def _explain(cls: type[Any], error: msgspec.ValidationError) -> str:
    """msgspec says "Object missing required field `topic`" or "Expected `int`, got `str` - at `$.queueId`"."""
    text = str(error)
    what, _, where = text.partition(" - at `$.")
    if where:
        return f"field {where.rstrip('`')} of the {cls.__name__} request cannot be read: {what}"
    field = what.partition("`")[2].rstrip("`")
    return f"the {cls.__name__} request has no field {field}" if field else f"{cls.__name__}: {what}"
