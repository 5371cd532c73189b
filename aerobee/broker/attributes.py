"""Attributes of topics and groups: which there are, what they may be, and how a tool changes them.

    +queue.type=BatchCQ,-message.type        `+key=value` adds or changes, `-key` removes

Some can be given to something new only, because what is stored depends on them. Refusals are in Apache's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LONG_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute: the values it may have (none listed: any), in the order Apache's remark lists them, and whether it
    can be changed later."""

    values: tuple[str, ...] | range = ()
    changeable: bool = True

    def check(self, value: str) -> None:
        """ValueError when it cannot be this value."""
        if isinstance(self.values, range):
            try:
                number = int(value)
            except ValueError:
                raise ValueError(f'For input string: "{value}"') from None
            if number not in self.values:
                raise ValueError(f"value is not in range({self.values.start}, {self.values.stop - 1})")
        elif self.values and value not in self.values:
            raise ValueError(f"value is not in set: [{', '.join(self.values)}]")


def parse(text: str | None) -> dict[str, str]:
    """`+key=value,-key` → {"+key": "value", "-key": ""}. ValueError for anything else."""
    changes: dict[str, str] = {}
    text = (text or "").rstrip(",")
    for part in text.split(",") if text else ():
        key, separator, value = part.strip().partition("=")
        if separator and "+" not in key:
            raise ValueError(f"add/alter attribute format is wrong: {key}")
        if not separator and "-" not in key:
            raise ValueError(f"delete attribute format is wrong: {key}")
        if separator and not value:
            raise ValueError(f"kv string format wrong: {part}")
        if key in changes:
            raise ValueError(f"key duplication: {key}")
        changes[key] = value
    return changes


def alter(
    current: Mapping[str, str] | None, changes: Mapping[str, str], known: Mapping[str, Attribute]
) -> dict[str, str]:
    """The attributes after `changes` (see `parse`); `current` None: of something new. ValueError says why not."""
    result = dict(current or {})
    seen: set[str] = set()
    for signed, value in changes.items():
        sign, key = signed[:1], signed[1:]
        if current is not None and sign not in "+-" and current.get(signed) == value:
            continue  # tools send unchanged attributes back without a sign
        if not key or "+" in key or "-" in key:
            raise ValueError("kv string format wrong.")
        if key in seen:
            raise ValueError(f"alter duplication key. key: {key}")
        seen.add(key)
        if current is None and sign != "+":
            raise ValueError(f"only add attribute is supported while creating topic. key: {key}")
        if sign not in "+-":
            raise ValueError(f"wrong format key: {key}")
        if sign == "-" and current is not None and key not in current:
            raise ValueError(f"attempt to delete a nonexistent key: {key}")
        attribute = known.get(key)
        if attribute is None:
            raise ValueError(f"unsupported key: {key}")
        if current is not None and not attribute.changeable:
            raise ValueError(f"attempt to update an unchangeable attribute. key: {key}")
        if sign == "-":
            del result[key]
        else:
            attribute.check(value)
            result[key] = value
    return result
