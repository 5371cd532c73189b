"""Synchronous flush, one producer that waits: one flush a message."""

from bench.workload import Budget, Workload

WORKLOAD = Workload(
    "SYNC_FLUSH 1 KiB, 1×1", "send", 1, 1, 1024, Budget(p50=1 / 2), options={"flushDiskType": "SYNC_FLUSH"}
)
