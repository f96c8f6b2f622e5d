"""The mesh under test with its accounts, and the events that scenarios sell."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from bench.fill import Filler
from bench.load import Plan
from launcher import sockets
from mesh.ids import new_id
from mesh.paths import ROOT
from testing.running_mesh import ADMIN_SECRET, Api, RunningMesh, running_mesh

CAPACITY = 10_000_000
_LIMIT = 1_000_000
_READERS = 64
_CROWD = 20_000
_SETTINGS = {
    # The limits are on, with many times the requests: one address sends all of them.
    "BOXOFFICE_RATE_LIMIT_SCALE": "100000",
    # Tokens last longer than a run.
    "BOXOFFICE_ACCESS_TOKEN_TTL_SECONDS": "86400",
}


@dataclass
class World:
    """A mesh, its administrator, its customers, and readers, who only have bookings filled by SQL.

    `seats` is the size of the seated event, `bookings` the number of bookings in the full table.
    `echo` has the requests of the echo, once it runs. `sold` has the ids of events that scenarios
    sold, for the audit.
    """

    mesh: RunningMesh
    admin: Api
    customers: list[Api]
    readers: list[Api]
    seats: int
    bookings: int
    echo: Plan = field(init=False)
    sold: list[str] = field(default_factory=list)
    _filled: int = 0

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

    @cached_property
    def filler(self) -> Filler:
        return Filler(self.sockets)

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

    def create_seated_event(self, *, rows: int, seats: int) -> tuple[dict[str, Any], list[str]]:
        """An event of `rows` × `seats` seats, and the ids of its seats."""
        layout = [
            {
                "label": f"R{row}",
                "seats": [
                    {"number": str(seat), "seatType": "REGULAR"} for seat in range(1, seats + 1)
                ],
            }
            for row in range(1, rows + 1)
        ]
        venue = self._created("/api/v1/venues", {"name": "Arena", "timeZone": "Asia/Kolkata"})
        path = f"/api/v1/venues/{venue['venueId']}/auditoriums"
        auditorium = self._created(path, {"name": "Hall", "rows": layout})
        event = self.admin.create_event(
            auditoriumId=auditorium["auditoriumId"],
            endTime="2099-07-04T17:00:00Z",
            offers=[
                {
                    "name": "Seat",
                    "price": {"currencyCode": "INR", "amountMinor": "150000"},
                    "seatType": "REGULAR",
                    "perCustomerLimit": _LIMIT,
                }
            ],
        )
        self.sold.append(event["eventId"])
        ids = [seat["seatId"] for row in auditorium["rows"] for seat in row["seats"]]
        return event, ids

    def fill_bookings(self, count: int) -> None:
        """Fills the table up to `count`; the first ones are the readers', the others a crowd's."""
        event, offer = self._booked_event
        if missing := max(0, count - self._filled):
            owners = [str(new_id()) for _ in range(_CROWD)] if self._filled else self._reader_ids
            self.filler.bookings(missing, event=event, offer=offer, customers=owners)
            self._filled += missing

    def filled_bookings(self, count: int) -> list[tuple[str, str]]:
        """Readers and their bookings, at random."""
        return self.filler.booking_ids(self._booked_event[0], self._reader_ids, count)

    @cached_property
    def _booked_event(self) -> tuple[str, str]:
        # Not for the audit: the ledger has none of the filled bookings.
        event = self.admin.create_event(name="Filled by SQL")
        return event["eventId"], event["offers"][0]["offerId"]

    @property
    def _reader_ids(self) -> list[str]:
        return [reader.user_id for reader in self.readers]

    def _created(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.admin.post(path, body)
        created: dict[str, Any] = answer.raise_for_status().json()
        return created


@contextmanager
def a_world(customers: int, *, seats: int, bookings: int, checkout: Path = ROOT) -> Iterator[World]:
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
            signed_up = list(pool.map(lambda _: api.sign_up(), range(_READERS + customers)))
        readers, others = signed_up[:_READERS], signed_up[_READERS:]
        yield World(mesh, admin, others, readers, seats=seats, bookings=bookings)
