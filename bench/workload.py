"""What a workload is: a load for the generator, and the ratios to Apache's figures that it has to hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench import load
from bench.servers import Server


@dataclass(frozen=True)
class Budget:
    """Bounds for ours divided by Apache's; None is no bound."""

    rate: float | None = None
    """At least so many times Apache's messages a second."""
    cpu: float | None = None
    """At most this part of Apache's CPU a message."""
    p50: float | None = None
    p99: float | None = None
    """At most this part of Apache's latency."""


@dataclass(frozen=True)
class Workload:
    """Connections, requests each keeps open, bytes of a body; the rest as its name says."""

    name: str
    mode: str
    connections: int
    in_flight: int
    body_bytes: int
    budget: Budget
    batch: int = 1
    queues: int = 8
    options: Mapping[str, object] = field(default_factory=dict)
    """Broker settings; workloads with the same ones share a broker."""

    @property
    def topic(self) -> str:
        return "Load" + "".join(part.capitalize() for part in self.name.replace(",", " ").split() if part.isalnum())

    def run(self, server: Server, seconds: int) -> load.Figures:
        """Measures it. A pull needs something to pull, so that is sent first."""
        if self.mode == "pull":
            self._load("send", server, 4, 64, max(2, seconds // 2))
        return self._load(self.mode, server, self.connections, self.in_flight, seconds)

    def _load(self, mode: str, server: Server, connections: int, in_flight: int, seconds: int) -> load.Figures:
        numbers = (connections, in_flight, self.body_bytes, seconds, self.queues, server.pid)
        words = load.command(mode, server.address, self.topic, *numbers)
        return load.run(words, batch=self.batch)
