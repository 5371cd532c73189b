"""One workload a file; each has a WORKLOAD."""
