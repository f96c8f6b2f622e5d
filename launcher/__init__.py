"""Runs the whole mesh on one machine: `make up`, `make demo` and the tests stand on it.

Here belong starting and stopping processes, certificates, and generated files.
What a service does once it runs belongs to the service or to mesh/.
"""
