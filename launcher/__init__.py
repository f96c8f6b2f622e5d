"""Runs the whole mesh on one machine, for `make up`, `make demo` and the tests.

Processes, certificates and generated files belong here. The behaviour of running services
belongs to the services and to mesh/.
"""
