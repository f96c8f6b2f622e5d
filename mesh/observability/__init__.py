"""Logs, metrics, traces, health probes and bug reports of a process."""
