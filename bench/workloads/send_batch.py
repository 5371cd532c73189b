"""Batches of 32."""

from bench.workload import Budget, Workload

WORKLOAD = Workload("batches of 32, 4×8", "send", 4, 8, 1024, Budget(rate=4, cpu=1 / 6), batch=32)
