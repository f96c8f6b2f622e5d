"""Any sequence of actions of staff and customers, legal or not, keeps catalogue and ledger equal.

After each step the catalogue has the ledger's capacity and seats, nothing is oversold, and the
status is the one that a model smaller than the code expects.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue import event_listing, event_status, events
from booking_svc.catalogue.event_commands import EventCommands
from booking_svc.catalogue.event_listing import Filters, Totals
from booking_svc.catalogue.event_status import MOVES
from booking_svc.catalogue.event_update import EventChange, OfferChange
from booking_svc.catalogue.events import Event, Status
from booking_svc.catalogue.stock_projection import apply
from booking_svc.clients.ports import PoolChange, StockChange
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.money import Money
from testing.booking_harness import START, BookingHarness, an_offer
from tests.booking_svc.catalogue.test_catalogue import an_auditorium

_T = TypeVar("_T")

OPENS, CLOSES = START, START + timedelta(hours=4)
REFUSALS = {
    Reason.VALIDATION_FAILED,
    Reason.EVENT_STATE_INVALID,
    Reason.EVENT_CHANGED,
    Reason.SOLD_OUT,
    Reason.SEAT_UNAVAILABLE,
    Reason.SEAT_NOT_FOUND,
    Reason.SALE_NOT_ACTIVE,
    Reason.PURCHASE_LIMIT_EXCEEDED,
}
LEGAL = {before: set(after) for before, after in MOVES.items()}


class CatalogueMachine(RuleBasedStateMachine):
    runner: asyncio.Runner
    harness: BookingHarness

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.runner.run(work)

    def try_(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """The result, or None for one of the expected refusals."""
        try:
            return self.run(work)
        except DomainError as refusal:
            if refusal.reason not in REFUSALS:
                raise
            return None

    @initialize(capacity=st.integers(1, 4))
    def begin(self, capacity: int) -> None:
        self.harness.clock.now = START - timedelta(hours=1)
        auditorium = self.run(an_auditorium(self.harness))
        self.seats = [seat.seat_id for row in auditorium.rows for seat in row.seats]
        self.event: Event = self.run(
            self.harness.an_event(
                an_offer(name="Floor", capacity=capacity),
                an_offer(name="Regular", pool="r", capacity=None, seat_type="REGULAR"),
                an_offer(name="Premium", pool="p", capacity=None, seat_type="PREMIUM"),
                auditorium_id=auditorium.auditorium_id,
                sale_start_time=OPENS,
                sale_end_time=CLOSES,
            )
        )
        self.commands = EventCommands(
            database=self.harness.database,
            writes=self.harness.writes,
            stock=self.harness.stock,
            payments=self.harness.payments,
            clock=self.harness.clock,
        )
        self.capacity = capacity
        self.on_sale = set(self.seats)
        self.staff_status: str | None = None
        self.bookings: list[UUID] = []

    @rule(quantity=st.integers(1, 3))
    def book_places(self, quantity: int) -> None:
        offer = self.event.offers[0]
        self._book([RequestedItem(offer.offer_id, quantity, None)])

    @rule(index=st.integers(0, 3))
    def book_a_seat(self, index: int) -> None:
        self._book([RequestedItem(None, 1, self.seats[index])])

    def _book(self, items: list[RequestedItem]) -> None:
        booking = self.try_(self.harness.place(self.event, items=items, checkout=None))
        if booking is not None:
            assert self._status() is Status.ON_SALE or self._stock().available == 0
            self.bookings.append(booking.booking_id)

    @rule(index=st.integers(0, 9))
    def cancel(self, index: int) -> None:
        if self.bookings:
            booking_id = self.bookings.pop(index % len(self.bookings))
            self.try_(self._cancel(booking_id))

    async def _cancel(self, booking_id: UUID) -> None:
        with suppress(DomainError):
            # The booking may have expired, or been cancelled with the event.
            await self.harness.cancel(booking_id)
        await self.harness.run_until_idle()

    @rule(capacity=st.integers(1, 6))
    def resize(self, capacity: int) -> None:
        change = EventChange(offers=(OfferChange(name="Floor", capacity=capacity),))
        if self._change(change):
            self.capacity = capacity

    @rule(index=st.integers(0, 3), add=st.booleans())
    def move_a_seat(self, index: int, add: bool) -> None:
        seat = self.seats[index]
        change = EventChange(
            add_seat_ids=(seat,) if add else (), remove_seat_ids=() if add else (seat,)
        )
        if self._change(change):
            (self.on_sale.add if add else self.on_sale.discard)(seat)

    @rule(name=st.sampled_from(["Rain", "Sun"]), price=st.integers(0, 3))
    def rename(self, name: str, price: int) -> None:
        self._change(
            EventChange(name=name, offers=(OfferChange(name="Floor", price=Money(price, "INR")),))
        )

    @rule()
    def violate(self) -> None:
        """A change with one violation changes nothing."""
        assert not self._change(
            EventChange(
                sale_end_time=OPENS - timedelta(days=9),
                offers=(OfferChange(name="Floor", capacity=1_000),),
            )
        )

    def _change(self, change: EventChange) -> bool:
        made = self.try_(
            self.commands.update(event_id=self.event.event_id, change=change, etag=None)
        )
        if made is not None:
            self.event = made[0]
        return made is not None

    @rule(to=st.sampled_from(Status))
    def set_status(self, to: Status) -> None:
        before = self._status()
        made = self.try_(self.commands.set_status(event_id=self.event.event_id, to=to))
        assert (made is not None) == (to is before or to in LEGAL[before])
        if made is not None and to is not before:
            self.event = made[0]
            self.staff_status = {Status.PAUSED: "PAUSED", Status.CANCELLED: "CANCELLED"}.get(to)

    @rule(minutes=st.sampled_from([1, 11, 61, 300]))
    def wait(self, minutes: int) -> None:
        self.harness.clock.advance(timedelta(minutes=minutes))
        self.run(self.harness.run_until_idle())

    def _stock(self) -> Any:
        return self.run(
            self.harness.stock.availability(event_id=self.event.event_id, with_seats=True)
        )

    def _status(self) -> Status:
        """The status of the model."""
        now = self.harness.clock()
        if self.staff_status == "CANCELLED":
            return Status.CANCELLED
        if now >= CLOSES:
            return Status.ENDED
        if self.staff_status == "PAUSED":
            return Status.PAUSED
        if now < OPENS:
            return Status.UPCOMING
        return Status.ON_SALE if self._stock().available else Status.SOLD_OUT

    @invariant()
    def the_ledger_equals_the_catalogue(self) -> None:
        stock = self._stock()
        assert stock.capacity == self.capacity + len(self.on_sale)
        assert set(stock.seats) == self.on_sale
        event = self.run(self._read())
        assert event.offers[0].capacity == self.capacity
        assert 0 <= stock.available <= stock.capacity
        assert not self.run(self.harness.audit(event))
        assert event.status_at(self.harness.clock(), available=stock.available) is self._status()

    @invariant()
    def lists_equal_the_ledger_once_updated(self) -> None:
        stock = self._stock()
        page = self.run(self._list(stock))
        [listed] = [entry for entry in page.events if entry.event.event_id == self.event.event_id]
        assert (listed.availability.capacity, listed.availability.available) == (
            stock.capacity,
            stock.available,
        )

    async def _read(self) -> Event:
        async with self.harness.database.reading() as connection:
            return await events.get(connection, event_id=self.event.event_id)

    async def _list(self, stock: Any) -> event_listing.Page:
        """A page of the list, after the ledger's stream and the status transitions."""
        pools = tuple(
            # Expired holds change availability without a new version: send a higher one.
            PoolChange(pool_id, pool.capacity, pool.available, pool.version + 1_000_000 + n, False)
            for n, (pool_id, pool) in enumerate(stock.pools.items(), start=self._next_version())
        )
        now = self.harness.clock()
        async with self.harness.database.transaction() as connection:
            await apply(connection, [StockChange(self.event.event_id, pools, {})], now)
            await event_status.apply_due_transitions(connection, now=now)
            return await event_listing.list_page(
                connection,
                filters=Filters(status=self._status_of(stock)),
                page_size=100,
                page_token="",
                totals=Totals(),
                now=now,
            )

    def _status_of(self, stock: Any) -> Status:
        return self.event.status_at(self.harness.clock(), available=stock.available)

    def _next_version(self) -> int:
        self.versions = getattr(self, "versions", 0) + 10
        return self.versions


@pytest.mark.timeout(3600)
def test_catalogue_and_stock_stay_equal(open_database: Any, is_long: bool) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def open_both() -> tuple[Database, Database]:
            return (
                await stack.enter_async_context(open_database("booking_svc")),
                await stack.enter_async_context(open_database("stock_svc")),
            )

        database, ledger = runner.run(open_both())

        class Machine(CatalogueMachine):
            def __init__(self) -> None:
                super().__init__()
                self.runner, self.harness = runner, BookingHarness(database, ledger)

        try:
            run_state_machine_as_test(
                Machine,
                settings=settings(
                    max_examples=100 if is_long else 8,
                    stateful_step_count=40 if is_long else 20,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(stack.aclose())
