"""What a subscription's expression means to the engine: tag hashes, or an SQL92 text it compiles itself."""

from __future__ import annotations

from collections.abc import Iterable

from aerobee.broker.store import Store
from aerobee.protocol.bodies.client import SubscriptionData
from aerobee.protocol.message import java_hash


def is_tag_kind(kind: str | None) -> bool:
    """Filtering by tags, which is also what no kind means."""
    return not kind or kind == "TAG"


def tag_codes(expression: str | None) -> list[int] | None:
    """Java hashes of the tags in `a || b`; None: everything."""
    if not expression or expression == "*":
        return None
    return [java_hash(tag.strip()) for tag in expression.split("||") if tag.strip()]


def is_only_bars(expression: str) -> bool:
    """A tag expression without even a blank between its bars: Apache's broker refuses to read it."""
    return expression != "" and not any(expression.split("||"))


def of_retries(store: Store, subscriptions: Iterable[SubscriptionData]) -> str:
    """SQL92 for a group's retry topic: each message by the expression of the topic it comes from, if that has one."""
    by_topic = {
        wanted.topic: wanted.sub_string or ""
        for wanted in subscriptions
        if not is_tag_kind(wanted.expression_type) and store.check_sql(wanted.sub_string or "") is None
    }
    known = ", ".join(f"'{topic}'" for topic in by_topic)
    others = f"RETRY_TOPIC IS NULL OR RETRY_TOPIC NOT IN ({known})" if known else "TRUE"
    return " OR ".join([others, *(f"(RETRY_TOPIC = '{topic}' AND ({text}\n))" for topic, text in by_topic.items())])
