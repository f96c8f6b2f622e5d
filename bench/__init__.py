"""Benchmarks: `python -m bench.<name>`. Never part of `make test`."""
