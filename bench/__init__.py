"""Benchmarks: `make bench`, and `python -m bench.<name>` for single questions.

Never part of `make test`.
"""
