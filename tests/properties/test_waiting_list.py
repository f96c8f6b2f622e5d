"""Any sequence of joins, purchases, cancellations, expiry, restocks, claims and deaths of the
process: no place is held for nobody, none is kept for longer than places gather, kept places are
not sold to others, and the order is kept.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any, TypeVar

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

from booking_svc.bookings.bookings import Booking, Status
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.bookings.state_machine import LIVE as LIVE_BOOKINGS
from booking_svc.queueing.waiting_list_entries import LIVE, WAITING, Entry, State
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc import restocking
from testing.booking_harness import START, BookingHarness, ProcessDiedError, an_offer
from testing.waiting_list_harness import GATHER, OFFER, WaitingListHarness

_T = TypeVar("_T")

REFUSALS = {
    Reason.SOLD_OUT,
    Reason.PLACES_AVAILABLE,
    Reason.WAITING_LIST_STATE_INVALID,
    Reason.HOLD_EXPIRED,
    Reason.BOOKING_STATE_INVALID,
    Reason.ALREADY_CANCELLED,
    Reason.CANCELLATION_CLOSED,
    Reason.VALIDATION_FAILED,
}


class WaitingListMachine(RuleBasedStateMachine):
    runner: asyncio.Runner
    lists: WaitingListHarness

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
        self.process.clock.now = START
        self.capacity = capacity
        self.event = self.run(self.process.an_event(an_offer(capacity=capacity)))
        self.bookings: list[Booking] = []
        self.entries: list[Entry] = []
        # The first turn since which places have been kept, without a moment in which none was.
        self.kept_since: datetime | None = None

    @property
    def process(self) -> BookingHarness:
        return self.lists.process

    @rule(quantity=st.integers(1, 3))
    def join(self, quantity: int) -> None:
        before, _ = self._free()
        entry = self.try_(self.lists.join(self.event, quantity))
        assert (entry is None) == (before >= quantity or quantity > self.capacity)
        if entry is not None:
            self.entries.append(entry)

    @rule(quantity=st.integers(1, 3))
    def buy(self, quantity: int) -> None:
        """An ordinary purchase gets what is open to all, and nothing that is kept."""
        available, kept = self._free()
        booking = self.try_(self.process.place(self.event, quantity=quantity))
        assert (booking is not None) == (available >= quantity)
        if booking is not None:
            self.bookings.append(booking)
            assert self._free() == (available - quantity, kept)

    @rule(index=st.integers(0, 9))
    def pay(self, index: int) -> None:
        booking = self._booking(index)
        if booking is not None and booking.status is Status.PENDING_PAYMENT:
            self.run(self.process.capture(booking))
            self.run(self.process.run_until_idle())

    @rule(index=st.integers(0, 9))
    def cancel(self, index: int) -> None:
        booking = self._booking(index)
        if booking is not None:
            self._return(self._cancel(booking))

    async def _cancel(self, booking: Booking) -> None:
        await self.process.cancel(booking.booking_id)
        await self.process.run_until_idle()

    @rule(index=st.integers(0, 9))
    def cancel_partly(self, index: int) -> None:
        booking = self._booking(index)
        if booking is None or booking.status is not Status.CONFIRMED:
            return
        if (quantity := booking.items[0].quantity) > 1:
            self._return(self._shrink(booking, quantity - 1))

    async def _shrink(self, booking: Booking, quantity: int) -> None:
        offer_id = self.event.offers[0].offer_id
        await self.process.update(booking, items=[RequestedItem(offer_id, quantity, None)])
        await self.process.run_until_idle()

    @rule(index=st.integers(0, 9))
    def grow(self, index: int) -> None:
        """One place more takes it from what is open to all."""
        booking = self._booking(index)
        if booking is None or booking.status is not Status.HELD:
            return
        available, kept = self._free()
        if self.try_(self._grow(booking)) is not None:
            assert available >= 1
            assert self._free() == (available - 1, kept)

    async def _grow(self, booking: Booking) -> bool:
        offer_id = self.event.offers[0].offer_id
        quantity = booking.items[0].quantity + 1
        await self.process.update(booking, items=[RequestedItem(offer_id, quantity, None)])
        return True

    @rule(quantity=st.integers(1, 2))
    def restock(self, quantity: int) -> None:
        self._return(self._restock(quantity))

    async def _restock(self, quantity: int) -> None:
        async with self.process.ledger.transaction() as connection:
            await restocking.restock(
                connection,
                event_id=self.event.event_id,
                pool_id=self.event.offers[0].pool_id,
                quantity=quantity,
                now=self.process.clock(),
            )
        self.capacity += quantity

    @rule(minutes=st.sampled_from([4, 11, 16, 61]))
    def wait(self, minutes: int) -> None:
        async def sweep() -> None:
            self.process.clock.advance(timedelta(minutes=minutes))
            await self.lists.sweep()

        self._return(sweep())

    @rule(index=st.integers(0, 9))
    def claim(self, index: int) -> None:
        if (entry := self._entry(index)) is None:
            return
        booking = self.try_(self.lists.claim(entry))
        is_open = entry.state is State.OFFERED and self.process.clock() < (
            entry.offer_expire_time or START
        )
        assert (booking is not None) == (is_open or entry.state is State.CLAIMED)
        if booking is not None:
            assert booking.reservation_id == entry.reservation_id
            assert sum(item.quantity for item in booking.items) == entry.items[0].quantity
            if entry.state is not State.CLAIMED:
                self.bookings.append(booking)

    @rule(index=st.integers(0, 9))
    def claim_anothers(self, index: int) -> None:
        if (entry := self._entry(index)) is not None:
            with pytest.raises(DomainError, match="no such entry"):
                self.run(self.lists.claim(entry, customer_id=new_id()))

    @rule(index=st.integers(0, 9))
    def leave(self, index: int) -> None:
        if (entry := self._entry(index)) is None:
            return
        left = self.try_(self._leave(entry))
        assert (left is not None) == (entry.state is not State.CLAIMED)

    async def _leave(self, entry: Entry) -> bool:
        await self.lists.leave(entry)
        return True

    @rule(index=st.integers(0, 9))
    def leave_and_rejoin(self, index: int) -> None:
        """What could keep a pool for a group in front that is never the same."""
        entry = self._entry(index)
        if entry is None or entry.state not in LIVE:
            return
        self.leave(index)
        self.join(entry.items[0].quantity)

    @rule()
    def turn(self) -> None:
        self._turn(self.lists.turn(self.event))
        now = self.process.clock()
        if self._free()[1]:
            self.kept_since = self.kept_since or now
            assert now < self.kept_since + GATHER

    @rule()
    def turns_of_two_processes(self) -> None:
        other = WaitingListHarness(self.process.another_process())

        async def both() -> None:
            await asyncio.gather(self.lists.turn(self.event), other.turn(self.event))

        self._turn(both())

    @rule(at=st.integers(1, 10), seconds=st.sampled_from([0, 61, 4000]))
    def turn_in_a_process_that_dies(self, at: int, seconds: int) -> None:
        """It dies before or after one of its calls of the ledger."""
        crashes = self.process.crashes

        async def dying() -> None:
            crashes.passed, crashes.at = 0, at
            try:
                await self.lists.turn(self.event)
            except ProcessDiedError:
                self.process.clock.advance(timedelta(seconds=seconds))
            finally:
                crashes.at = None

        self._turn(dying())

    def _turn(self, work: Coroutine[Any, Any, None]) -> None:
        before = {entry.entry_id: entry.state for entry in self._all()}
        if not before:
            work.close()
            return
        self.run(work)
        after = self._all()
        offered = [
            entry
            for entry in after
            if entry.state is State.OFFERED and before[entry.entry_id] is not State.OFFERED
        ]
        waiting = [entry for entry in after if entry.state is State.WAITING]
        for passed in waiting:
            for entry in offered:
                # In order: only a smaller group gets places before one in front.
                is_behind = entry.number > passed.number
                assert not is_behind or passed.items[0].quantity > entry.items[0].quantity

    def _return(self, work: Coroutine[Any, Any, object]) -> None:
        """Places come back: those who do not wait cannot get them while others do."""
        before = self._free()
        is_kept = self._is_kept()
        self.try_(work)
        if is_kept and self._is_kept():
            assert self._free()[0] <= before[0]

    def _is_kept(self) -> bool:
        return any(entry.state in WAITING for entry in self._all())

    def _all(self) -> list[Entry]:
        return self.run(self.lists.all_entries(self.event))

    def _free(self) -> tuple[int, int]:
        return self.run(self.lists.free(self.event))

    def _booking(self, index: int) -> Booking | None:
        if not self.bookings:
            return None
        return self.run(self.process.booking(self.bookings[index % len(self.bookings)].booking_id))

    def _entry(self, index: int) -> Entry | None:
        if not self.entries:
            return None
        return self.run(self.lists.entry(self.entries[index % len(self.entries)]))

    @invariant()
    def see_whether_places_are_kept(self) -> None:
        if not hasattr(self, "event") or not self._free()[1]:
            self.kept_since = None

    @invariant()
    def the_ledger_is_consistent(self) -> None:
        if hasattr(self, "event"):
            assert not self.run(self.process.audit(self.event))

    @invariant()
    def nobody_is_offered_twice(self) -> None:
        if hasattr(self, "event"):
            held = [e.reservation_id for e in self._all() if e.state is State.OFFERED]
            assert len(held) == len(set(held))
            assert set(held) <= self.run(self.lists.holds(self.event)) | self._lapsed()

    def _lapsed(self) -> set[Any]:
        """Offers whose end no turn has seen yet: their hold may have expired, too."""
        now = self.process.clock()
        return {
            entry.reservation_id
            for entry in self._all()
            if entry.offer_expire_time is not None and entry.offer_expire_time <= now
        }

    @invariant()
    def every_hold_is_somebodys(self) -> None:
        """A booking's, an offer's, or one that the next turn repeats or releases."""
        if not hasattr(self, "event"):
            return
        owners = {
            entry.reservation_id
            for entry in self._all()
            if entry.state in LIVE or entry.is_release_due
        }
        bookings = self.run(self.process.all_bookings(self.event))
        owners |= {b.reservation_id for b in bookings if b.status in LIVE_BOOKINGS}
        assert self.run(self.lists.holds(self.event)) <= owners

    def teardown(self) -> None:
        """When all offers have ended and nobody waits, every place is sold or open to all."""
        if not hasattr(self, "event"):
            return
        for entry in self._all():
            if entry.state in WAITING:
                self.run(self.lists.leave(entry))
        for _ in range(3):
            self.process.clock.advance(OFFER)
            if self.entries:
                self.run(self.lists.turn(self.event))
            self.run(self.lists.sweep())
        bookings = self.run(self.process.all_bookings(self.event))
        sold = {b.reservation_id for b in bookings if b.status in LIVE_BOOKINGS}
        assert self.run(self.lists.holds(self.event)) == sold
        places = sum(
            item.quantity for b in bookings if b.status in LIVE_BOOKINGS for item in b.items
        )
        stock = self.run(
            self.process.stock.availability(event_id=self.event.event_id, with_seats=False)
        )
        assert self._free() == (stock.capacity - places, 0)
        super().teardown()


@pytest.mark.timeout(3600)
def test_no_place_is_held_for_nobody(open_database: Any, is_long: bool) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def open_both() -> tuple[Database, Database]:
            return (
                await stack.enter_async_context(open_database("booking_svc")),
                await stack.enter_async_context(open_database("stock_svc")),
            )

        database, ledger = runner.run(open_both())

        class Machine(WaitingListMachine):
            def __init__(self) -> None:
                super().__init__()
                self.runner = runner
                self.lists = WaitingListHarness(BookingHarness(database, ledger))

        try:
            run_state_machine_as_test(
                Machine,
                settings=settings(
                    max_examples=200 if is_long else 12,
                    stateful_step_count=40 if is_long else 25,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(stack.aclose())
