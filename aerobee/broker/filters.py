"""What a subscription's expression means to the engine: tag hashes, or an SQL92 text it compiles itself."""

from __future__ import annotations

from aerobee.protocol.message import java_hash


def is_tag_kind(kind: str | None) -> bool:
    """Filtering by tags, which is also what no kind means."""
    return not kind or kind == "TAG"


def tag_codes(expression: str | None) -> list[int] | None:
    """Java hashes of the tags in `a || b`; None: everything."""
    if not expression or expression == "*":
        return None
    return [java_hash(tag.strip()) for tag in expression.split("||") if tag.strip()]
