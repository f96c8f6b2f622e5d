"""Waiting lists on real databases with the real ledger: the process of booking_svc of
booking_harness.py, and the calls and the job of its waiting lists."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa

from booking_svc.bookings.bookings import Booking
from booking_svc.catalogue.events import Event
from booking_svc.queueing import (
    waiting_list,
    waiting_list_claim,
    waiting_list_entries,
    waiting_list_offers,
)
from booking_svc.queueing.waiting_list import Dependencies, Terms
from booking_svc.queueing.waiting_list_entries import Entry, Item, State
from booking_svc.queueing.waiting_list_tables import waiting_lists
from mesh.ids import new_id
from stock_svc import expiry
from stock_svc.reservations import State as ReservationState
from stock_svc.tables import reservations
from testing.booking_harness import HOLD, BookingHarness

OFFER = timedelta(hours=1)
GATHER = timedelta(minutes=15)
CLAIM_URL = "https://shop.example/waiting-list"


@dataclass
class WaitingListHarness:
    """The waiting lists of a process of booking_svc."""

    process: BookingHarness
    gather: timedelta = GATHER
    woken: int = 0
    deps: Dependencies = field(init=False)

    def __post_init__(self) -> None:
        self.deps = Dependencies(
            database=self.process.database,
            stock=self.process.stock,
            clock=self.process.clock,
            terms=Terms(OFFER, self.gather, HOLD, CLAIM_URL),
            on_due=self._wake,
        )

    def _wake(self) -> None:
        self.woken += 1

    async def sell_out(self, event: Event, *, of: int = 0) -> list[Booking]:
        """Sells all places of an offer, each to another customer, unpaid."""
        offer = event.offers[of]
        return [
            await self.process.place(event, items=None, checkout=None)
            for _ in range(offer.capacity or 0)
        ]

    async def join(
        self,
        event: Event,
        quantity: int = 1,
        *,
        customer_id: UUID | None = None,
        items: Sequence[tuple[UUID, int]] = (),
    ) -> Entry:
        requested = items or [(event.offers[0].offer_id, quantity)]
        return await waiting_list.join(
            self.deps,
            customer_id=customer_id or new_id(),
            event_id=event.event_id,
            items=tuple(Item(*item) for item in requested),
        )

    async def leave(self, entry: Entry, *, owner: UUID | None = None) -> None:
        await waiting_list.leave(
            self.deps, entry_id=entry.entry_id, owner=owner or entry.customer_id
        )

    async def claim(self, entry: Entry, *, customer_id: UUID | None = None) -> Booking:
        return await waiting_list_claim.claim(
            self.deps,
            entry_id=entry.entry_id,
            customer_id=customer_id or entry.customer_id,
            encode=lambda booking: str(booking.booking_id).encode(),
        )

    async def turn(self, event: Event) -> None:
        """What the job does, once."""
        await waiting_list_offers.turn(self.deps, event_id=event.event_id)

    async def entry(self, entry: Entry) -> Entry:
        async with self.process.database.reading() as connection:
            return await waiting_list_entries.get(connection, entry_id=entry.entry_id)

    async def states(self, *entries: Entry) -> list[State]:
        return [(await self.entry(entry)).state for entry in entries]

    async def position(self, entry: Entry) -> int | None:
        async with self.process.database.reading() as connection:
            current = await waiting_list_entries.get(connection, entry_id=entry.entry_id)
            return (await waiting_list_entries.positions(connection, [current])).get(entry.entry_id)

    async def all_entries(self, event: Event) -> list[Entry]:
        async with self.process.database.reading() as connection:
            return await waiting_list_entries.select(connection, event_id=event.event_id)

    async def is_due(self, event: Event) -> bool:
        """Whether the list's job has something to do at once, or the list is idle for ever."""
        async with self.process.database.reading() as connection:
            due_time = await connection.scalar(
                sa.select(waiting_lists.c.due_time).where(
                    waiting_lists.c.event_id == event.event_id
                )
            )
        return due_time is not None and due_time <= self.process.clock()

    async def free(self, event: Event) -> tuple[int, int]:
        """How many places anybody can have, and how many are kept for the list."""
        stock = await self.process.stock.availability(event_id=event.event_id, with_seats=False)
        return (
            sum(pool.available for pool in stock.pools.values()),
            sum(pool.kept for pool in stock.pools.values()),
        )

    async def sweep(self) -> None:
        """stock_svc's sweep, and booking_svc's sweeper and steps."""
        await self.process.run_until_idle()
        await expiry.sweep(self.process.ledger, now=self.process.clock())

    async def holds(self, event: Event) -> set[UUID]:
        """The reservations that are live in the ledger."""
        async with self.process.ledger.reading() as connection:
            live = await connection.scalars(
                sa.select(reservations.c.reservation_id)
                .where(reservations.c.event_id == event.event_id)
                .where(
                    (reservations.c.state == ReservationState.COMMITTED)
                    | (reservations.c.state == ReservationState.ACTIVE)
                    & (reservations.c.expire_time > self.process.clock())
                )
            )
            return set(live)
