"""What brokers, clients and operators ask, one file a family. Each handler takes the parts, the connection and the
request, and returns the reply; `dispatch.py` has the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from aerobee.clock import Clock
from aerobee.errors import MalformedRequest
from aerobee.nameserver.kv import KvConfig
from aerobee.nameserver.options import NameServerOptions
from aerobee.nameserver.routes import MinIdChange, Routes, Rules

NAME_LENGTH_MAX: Final = 255


def check_name(what: str, name: str) -> None:
    """MalformedRequest when nothing can be called so. What a broker's topic may be called is the broker's business;
    brokers are called like their hosts, or as somebody likes."""
    if not name.strip() or not name.isprintable() or len(name) > NAME_LENGTH_MAX:
        raise MalformedRequest(f"{what} cannot be {name[:NAME_LENGTH_MAX]!r}: {len(name)} characters")


@dataclass(slots=True)
class Parts:
    """What handlers work with. `tell` sends word to brokers of a set whose smallest id changed."""

    options: NameServerOptions
    clock: Clock
    routes: Routes
    kv: KvConfig
    tell: Callable[[MinIdChange], None]
    started_ms: int
    route_replies: dict[tuple[str, bool, str], bytes] = field(default_factory=dict)
    """Encoded routes of the present `generation`, by topic, spelling and listener."""
    generation: tuple[int, int] = (-1, -1)

    @property
    def rules(self) -> Rules:
        """The settings in force, as the route tables want them."""
        options = self.options
        return Rules(options.support_acting_master, options.delete_topic_with_broker_registration)
