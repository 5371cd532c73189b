"""What a workload is: a load for the generator, and the ratios to Apache's figures that it has to hold."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench import load
from bench.servers import Server

MADV_POPULATE_WRITE = 23
MEMORY_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
        """Measures it once. A pull needs something to pull: both brokers get the same to begin with."""
        if self.mode == "pull":
            self._load("send", server, 4, 8, 1, batch=32, rate=6000)
        # Batches write 7 GB in a run, of which the host takes some back meanwhile; the others write at most two.
        settle(12 << 30 if self.batch > 1 else 3 << 30)
        return self._load(self.mode, server, self.connections, self.in_flight, seconds, batch=self.batch)

    def _load(
        self, mode: str, server: Server, connections: int, in_flight: int, seconds: int, *, batch: int, rate: int = 0
    ) -> load.Figures:
        numbers = (connections, in_flight, self.body_bytes, seconds, self.queues, server.pid)
        words = load.command(mode, server.address, self.topic, *numbers)
        return load.run(words, batch=batch, rate=rate, warm_s=1)


def settle(touched_bytes: int = 3 << 30) -> None:
    """The same state of the machine before every run: nothing dirty, and memory that the next files will need was
    touched a moment ago. In a virtual machine the first touch of a page that its host has taken back costs several µs,
    more than all the rest of a message; who runs first must not pay it for the other."""
    os.sync()
    with mmap.mmap(-1, min(touched_bytes, MEMORY_BYTES // 2), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(MADV_POPULATE_WRITE)
