"""What brokers, clients and operators ask, one file a family. Each handler takes the parts, the connection and the
request, and returns the reply; `dispatch.py` has the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aerobee.clock import Clock
from aerobee.nameserver.kv import KvConfig
from aerobee.nameserver.options import NameServerOptions
from aerobee.nameserver.routes import MinIdChange, Routes, Rules


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
