"""For tests, ours and yours: real clusters, a proxy that misbehaves, and one way to wait."""

from aerobee.testing.chaos_proxy import ChaosProxy
from aerobee.testing.cluster import Cluster, Server
from aerobee.testing.eventually import eventually, eventually_sync

__all__ = ["ChaosProxy", "Cluster", "Server", "eventually", "eventually_sync"]
