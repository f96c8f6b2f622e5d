"""What is broken: the plan, faults of processes, and proxies between them."""
