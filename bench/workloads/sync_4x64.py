"""Synchronous flush with a deep window: how well flushes are shared."""

from bench.workload import Budget, Workload

WORKLOAD = Workload(
    "SYNC_FLUSH 1 KiB, 4×64", "send", 4, 64, 1024, Budget(rate=2.5, cpu=1 / 4), options={"flushDiskType": "SYNC_FLUSH"}
)
