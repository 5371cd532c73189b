"""What a consumer wants of a topic: everything, tags (`a || b`), or an SQL92 condition over properties.

The engine keeps the Java hash of each message's tag in the queue, so a broker filters by hash and the client compares
the text again: two tags may share a hash.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from aerobee.protocol.bodies.client import SubscriptionData
from aerobee.protocol.message import java_hash

ALL: Final = "*"
TAG: Final = "TAG"
SQL92: Final = "SQL92"


@dataclass(frozen=True, slots=True)
class Sql:
    """An SQL92 condition, such as `price > 5 AND region IN ('eu', 'us')`. Brokers have to allow it."""

    condition: str

    def __post_init__(self) -> None:
        if not self.condition.strip():
            raise ValueError("an SQL92 condition must not be empty")


def is_tag_kind(kind: str | None) -> bool:
    """Filtering by tags, which is also what no kind means."""
    return not kind or kind == TAG


def parse_tags(expression: str | None) -> list[str] | None:
    """The tags in `a || b`, each once, in order; None: everything. ValueError when there are only bars."""
    if not expression or expression == ALL:
        return None
    if not expression.replace("||", ""):
        raise ValueError(f"the tag expression {expression!r} names no tag")
    return list(dict.fromkeys(tag for part in expression.split("||") if (tag := part.strip())))


def tag_codes(expression: str | None) -> list[int] | None:
    """The Java hashes of the tags in `a || b`; None: everything. ValueError like `parse_tags`."""
    tags = parse_tags(expression)
    return None if tags is None else [java_hash(tag) for tag in tags]


def subscription(topic: str, expression: str | Sql = ALL, *, version_ms: int | None = None) -> SubscriptionData:
    """The subscription as heartbeats say it; a newer `version_ms` (left out: now) takes an older one's place."""
    version = time.time_ns() // 1_000_000 if version_ms is None else version_ms
    if isinstance(expression, Sql):
        return SubscriptionData(
            topic=topic, sub_string=expression.condition, expression_type=SQL92, sub_version=version
        )
    tags = parse_tags(expression) or []
    return SubscriptionData(
        topic=topic,
        sub_string=expression or ALL,
        tags_set=tags,
        code_set=[java_hash(tag) for tag in tags],
        sub_version=version,
    )


def is_wanted(tag: str | None, tags: list[str] | None) -> bool:
    """Whether a message with that tag passes; the exact comparison that a client makes after the broker's."""
    return tags is None or (tag or "") in tags
