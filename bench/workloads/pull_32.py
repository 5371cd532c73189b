"""Reads of 32 messages from queues that were just written."""

from bench.workload import Budget, Workload

WORKLOAD = Workload("pull in 32s, 4×2", "pull", 4, 2, 1024, Budget(rate=2.2, cpu=1 / 3.5, p99=1 / 2))
