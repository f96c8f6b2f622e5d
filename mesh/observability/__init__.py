"""Logs, metrics, traces, probes and error reports of a process."""
