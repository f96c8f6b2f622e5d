"""The mesh under test with its accounts, and the events that scenarios sell."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from launcher import sockets
from mesh.paths import ROOT
from testing.running_mesh import ADMIN_SECRET, Api, RunningMesh, running_mesh

CAPACITY = 10_000_000
_LIMIT = 1_000_000
_SETTINGS = {
    # The limits are on, with many times the requests: one address sends all of them.
    "BOXOFFICE_RATE_LIMIT_SCALE": "100000",
    # Tokens last longer than a run.
    "BOXOFFICE_ACCESS_TOKEN_TTL_SECONDS": "86400",
}


@dataclass(frozen=True)
class World:
    """A mesh, its administrator, and its customers."""

    mesh: RunningMesh
    admin: Api
    customers: list[Api]
    sold: list[str] = field(default_factory=list)
    """The ids of events that scenarios sold, for the audit."""

    @property
    def url(self) -> str:
        return self.mesh.url

    @property
    def sockets(self) -> str:
        """The folder of PostgreSQL's socket."""
        return str(sockets.folder(self.mesh.home))

    @property
    def tokens(self) -> list[str]:
        return [str(customer.token) for customer in self.customers]

    def create_event(self, *, offers: int = 1, capacity: int = CAPACITY) -> dict[str, Any]:
        event = self.admin.create_event(
            offers=[
                {
                    "name": f"Floor {number}",
                    "price": {"currencyCode": "INR", "amountMinor": "150000"},
                    "capacity": capacity,
                    "perCustomerLimit": _LIMIT,
                }
                for number in range(offers)
            ]
        )
        self.sold.append(event["eventId"])
        return event


@contextmanager
def a_world(customers: int, checkout: Path = ROOT) -> Iterator[World]:
    """Starts a mesh of `checkout` with `customers`; stops it at the end."""
    paths = {}
    if checkout != ROOT:
        folders = (checkout, checkout / "build" / "stubs", checkout / "envoy")
        paths["PYTHONPATH"] = ":".join(map(str, folders))
    with (
        running_mesh(checkout, **_SETTINGS, **paths) as mesh,
        httpx.Client(base_url=mesh.url, timeout=60, trust_env=False) as client,
    ):
        api = Api(client)
        admin = api.sign_up(admin_secret=ADMIN_SECRET)
        with ThreadPoolExecutor(8) as pool:
            signed_up = list(pool.map(lambda _: api.sign_up(), range(customers)))
        yield World(mesh, admin, signed_up)
