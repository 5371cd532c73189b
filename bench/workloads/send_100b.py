"""Small sends with a deep window: the cost of a message, not of its bytes."""

from bench.workload import Budget, Workload

WORKLOAD = Workload("send 100 B, 4×64", "send", 4, 64, 100, Budget(rate=5, cpu=1 / 7, p99=1 / 5))
