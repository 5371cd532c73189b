"""Many producers that wait for each answer: nothing to gather within a connection."""

from bench.workload import Budget, Workload

WORKLOAD = Workload("send 1 KiB, 64×1", "send", 64, 1, 1024, Budget(rate=1.8, cpu=1 / 3, p99=1 / 2))
