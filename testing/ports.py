"""Free ports for processes that tests start; each pytest-xdist worker has its own range.

All are below the system's ephemeral ports, so that no outgoing connection takes one meanwhile.
"""

import os
import random
import socket

_FIRST, _LAST = 15_000, 32_000
# For two replicas of all services with their metrics, above the port base.
_SERVICE_PORTS = 20


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports.

    Chosen at random, so that another test run on this machine is unlikely to choose the same.
    """
    ports = _range_of_this_worker()
    for _ in range(100):
        first = random.randrange(ports.start, ports.stop - count)
        if all(_is_free(first + n) for n in range(count)):
            return first
    raise OSError(f"no {count} free ports in a row")


def mesh_ports() -> tuple[int, int, int]:
    """The gateway's port, its admin port, and the port base of the services.

    A second gateway uses the next port after each of the first two.
    """
    first = free_ports(5 + _SERVICE_PORTS)
    return first, first + 2, first + 4


def _range_of_this_worker() -> range:
    """An equal share of the ports for each pytest-xdist worker; without xdist, all."""
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
