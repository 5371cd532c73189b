"""Who answers what: one file a family, each with its own table of codes."""

from __future__ import annotations

from aerobee.broker.dispatch import Handler
from aerobee.broker.handlers import (
    ack,
    admin,
    assignment,
    groups,
    heartbeat,
    offsets,
    pop,
    pull,
    query,
    recall,
    request_reply,
    send,
    static_topics,
    topics,
    transactions,
)

_FAMILIES = (
    send,
    pull,
    pop,
    ack,
    assignment,
    offsets,
    heartbeat,
    query,
    transactions,
    request_reply,
    topics,
    static_topics,
    groups,
    admin,
    recall,
)

HANDLERS: dict[int, Handler] = {}
for _family in _FAMILIES:
    for _code, _handler in _family.HANDLERS.items():
        assert _code not in HANDLERS, f"two handlers for {_code!r}"
        HANDLERS[int(_code)] = static_topics.with_static_topics(int(_code), _handler)
