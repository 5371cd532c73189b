"""One producer that waits for each answer: the way there and back."""

from bench.workload import Budget, Workload

WORKLOAD = Workload("send 1 KiB, 1×1", "send", 1, 1, 1024, Budget(rate=1.4, cpu=1 / 3, p50=0.7))
