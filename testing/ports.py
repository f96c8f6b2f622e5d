"""Free ports for what the tests start. Workers that run beside each other have ranges of their own.

All lie below those that the system gives to outgoing connections: a service that starts late
in a test must not find its port taken by one.
"""

import os
import random
import socket

_FIRST, _LAST = 15_000, 32_000
# A mesh of two replicas: every service and its metrics, in ports above the base.
_SERVICE_PORTS = 20


def free_ports(count: int) -> int:
    """The first of so many free ports in a row.

    Anywhere, so that another run on this machine, which has not yet taken its own, finds others.
    """
    ports = _range_of_this_worker()
    for _ in range(100):
        first = random.randrange(ports.start, ports.stop - count)
        if all(_is_free(first + n) for n in range(count)):
            return first
    raise OSError(f"no {count} free ports in a row")


def mesh_ports() -> tuple[int, int, int]:
    """A port for the gateway, one for its admin page, and a base for the services.

    A second gateway has the next port after each of the first two.
    """
    first = free_ports(5 + _SERVICE_PORTS)
    return first, first + 2, first + 4


def _range_of_this_worker() -> range:
    """An equal part of all for each of pytest-xdist's workers; without it, all."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    width = (_LAST - _FIRST) // workers
    return range(_FIRST + worker * width, _FIRST + (worker + 1) * width)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
