"""Sends of 1 KiB with a deep window: what one broker can take in."""

from bench.workload import Budget, Workload

WORKLOAD = Workload("send 1 KiB, 4×64", "send", 4, 64, 1024, Budget(rate=4, cpu=1 / 6, p99=1 / 5))
