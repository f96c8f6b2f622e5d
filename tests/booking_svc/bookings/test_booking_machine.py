"""Any order of calls, payments, messages, clock moves and crashes, against a small model.

Messages of payment_svc arrive twice, in any order, late or never; payments are made twice or
with another amount; organisers cancel events; the process dies at any call of another service
and between any two turns of its loops. After every step the timelines have legal moves only. At
the end stock, bookings and payments agree, with the fees that the model expects.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from itertools import combinations, pairwise
from typing import TypeVar
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.dialects import postgresql

from booking_svc.bookings import completion, expiry, reconciliation, tables
from booking_svc.bookings.bookings import Booking, Status
from booking_svc.bookings.payment_pages import Checkout
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.bookings.state_machine import MOVES
from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Captured, Failed, PaymentEvent, Voided
from booking_svc.tables import metadata
from mesh.db.database import Database
from mesh.errors import DomainError
from mesh.ids import new_id
from mesh.money import Money
from testing.booking_harness import (
    SANDBOX,
    START,
    STRIPE,
    BookingHarness,
    ProcessDiedError,
    an_offer,
)
from testing.databases import open_patiently

_T = TypeVar("_T")

CAPACITIES = (8, 6, 6)
PRICES = (150_000, 100_001, 200_000)
DAYS = (30, 35, 40)
# At least one event stays to reschedule to.
MAX_CANCELLED = len(CAPACITIES) - 1
EMPTY = f"TRUNCATE {', '.join(metadata.tables)} CASCADE"


class Loop(Enum):
    """The background loops of booking_svc, whose turns run in any order."""

    STEPS = "steps"
    SWEEPER = "sweeper"
    RECONCILIATION = "reconciliation"
    COMPLETION = "completion"
    CANCELLATION = "cancellation"


@dataclass
class ModelBooking:
    """A booking in the model. `perhaps` are fees of calls during which the process died."""

    booking: Booking
    fees: int = 0
    perhaps: list[int] = field(default_factory=list)

    def may_keep(self, amount: int) -> bool:
        """Whether the fees can add up to `amount`."""
        return any(
            self.fees + sum(some) == amount
            for count in range(len(self.perhaps) + 1)
            for some in combinations(self.perhaps, count)
        )


class BookingMachine(RuleBasedStateMachine):
    runner: asyncio.Runner
    databases: tuple[Database, Database]

    model_bookings = Bundle[ModelBooking]("model_bookings")

    def __init__(self) -> None:
        super().__init__()
        self.model: list[ModelBooking] = []
        self.messages: list[PaymentEvent] = []
        self.cancelled: set[UUID] = set()
        self.harness = BookingHarness(*self.databases)
        self.events = self.do(self.start())

    async def start(self) -> list[Event]:
        """Empties the tables of booking_svc. The ledger keeps the events of earlier examples."""
        harness, production = self.harness, new_id()
        async with harness.database.transaction() as connection:
            await connection.execute(sa.text(EMPTY))
        return [
            await harness.an_event(
                an_offer(capacity=capacity, price=Money(price, "INR")),
                production_id=production,
                start_time=START + timedelta(days=days),
                end_time=START + timedelta(days=days, hours=3),
            )
            for capacity, price, days in zip(CAPACITIES, PRICES, DAYS, strict=True)
        ]

    def do(self, work: Awaitable[_T]) -> _T:
        async def run() -> _T:
            return await work

        return self.runner.run(run())

    def attempt(self, work: Awaitable[_T]) -> _T | type[BaseException]:
        """The answer, or the type of the error: a refusal, or the death of the process."""
        try:
            return self.do(work)
        except (DomainError, ProcessDiedError) as error:
            return type(error)
        finally:
            self.harness.crashes.at = None

    def current(self, model_booking: ModelBooking) -> Booking:
        return self.do(self.harness.booking(model_booking.booking.booking_id))

    def percent(self, booking: Booking) -> int | None:
        """The standard tiers, implemented a second time; None when cancellation is closed."""
        if booking.event_id in self.cancelled:
            return 100
        start = next(e.start_time for e in self.events if e.event_id == booking.event_id)
        assert start is not None
        remaining = start - self.harness.clock()
        percent = (
            97
            if remaining > timedelta(days=14)
            else 50
            if remaining >= timedelta(days=7)
            else 0
            if remaining >= timedelta(hours=48)
            else None
        )
        return None if percent is None else min(percent, booking.max_refund_percent)

    def fee(self, booking: Booking, removed: int) -> int:
        percent = self.percent(booking) or 0
        return removed - (removed * percent + 50) // 100

    @rule(
        target=model_bookings,
        event=st.integers(0, 2),
        quantity=st.integers(1, 4),
        pays=st.booleans(),
    )
    def place(
        self, event: int, quantity: int, pays: bool
    ) -> ModelBooking | MultipleResults[ModelBooking]:
        chosen = self.events[event]
        checkout = SANDBOX if pays else None
        answer = self.attempt(self.harness.place(chosen, quantity=quantity, checkout=checkout))
        if not isinstance(answer, Booking):
            return multiple()
        model_booking = ModelBooking(answer)
        self.model.append(model_booking)
        return model_booking

    @initialize(target=model_bookings, event=st.integers(0, 2), quantity=st.integers(1, 4))
    def buy_first(self, event: int, quantity: int) -> ModelBooking:
        return self.bought(event, quantity)

    @rule(target=model_bookings, event=st.integers(0, 2), quantity=st.integers(1, 2))
    def buy(self, event: int, quantity: int) -> ModelBooking | MultipleResults[ModelBooking]:
        """A booking that is placed, paid and confirmed: most failures happen after that."""
        try:
            return self.bought(event, quantity)
        except DomainError:
            return multiple()

    def bought(self, event: int, quantity: int) -> ModelBooking:
        harness = self.harness
        harness.crashes.at = None
        model_booking = ModelBooking(self.do(harness.place(self.events[event], quantity=quantity)))
        self.model.append(model_booking)
        self.do(harness.capture(model_booking.booking))
        self.do(harness.run_steps())
        return model_booking

    @rule(model_booking=model_bookings, checkout=st.sampled_from([SANDBOX, SANDBOX, STRIPE]))
    def checkout(self, model_booking: ModelBooking, checkout: Checkout) -> None:
        """Also of a price difference. Another provider opens a new page."""
        self.attempt(self.harness.checkout(model_booking.booking.booking_id, checkout=checkout))

    @rule(model_booking=model_bookings, number=st.integers(0, 5))
    def pay_on_a_page(self, model_booking: ModelBooking, number: int) -> None:
        """The customer pays on any page of the booking that is open, also a replaced one."""
        payments, booking_id = self.harness.payments, model_booking.booking.booking_id
        pages = [payment for payment, of in payments.booking_of.items() if of == booking_id]
        if pages:
            self.pay_for(model_booking, pages[number % len(pages)])

    @rule(model_booking=model_bookings)
    def leave(self, model_booking: ModelBooking) -> None:
        """The customer closes the page of the booking for good."""
        payment, payments = self.current(model_booking).payment, self.harness.payments
        if payment is None or payment.payment_id in payments.paid:
            return
        payments.voided.add(payment.payment_id)
        self.messages.append(Voided(model_booking.booking.booking_id, payment.payment_id))

    @rule(model_booking=model_bookings, off=st.sampled_from([0, 0, 0, 1]), is_refused=st.booleans())
    def pay(self, model_booking: ModelBooking, off: int, is_refused: bool) -> None:
        """The customer pays the booking, if its payment is open."""
        payment = self.current(model_booking).payment
        if payment is not None:
            self.pay_for(model_booking, payment.payment_id, off=off, is_refused=is_refused)

    @rule(model_booking=model_bookings, off=st.sampled_from([0, 0, 0, -1]))
    def pay_difference(self, model_booking: ModelBooking, off: int) -> None:
        change = self.current(model_booking).change
        if change is not None:
            self.pay_for(model_booking, change.payment_id, off=off)

    @rule(
        model_booking=model_bookings,
        off=st.sampled_from([0, 0, -1, 1]),
        currency=st.sampled_from(["INR", "EUR"]),
    )
    def pay_otherwise(self, model_booking: ModelBooking, off: int, currency: str) -> None:
        """A second payment of the booking, perhaps with another amount or currency."""
        booking = self.current(model_booking)
        amount = Money(booking.total.amount_minor + off, currency)
        payment_id = new_id()
        self.harness.payments.paid[payment_id] = amount
        self.messages.append(Captured(booking.booking_id, payment_id, amount))

    def pay_for(
        self,
        model_booking: ModelBooking,
        payment_id: UUID,
        *,
        off: int = 0,
        is_refused: bool = False,
    ) -> None:
        payments = self.harness.payments
        amount = payments.opened.get(payment_id)
        if amount is None or payment_id in payments.paid or payment_id in payments.voided:
            return
        booking_id = model_booking.booking.booking_id
        if is_refused:
            payments.refused.add(payment_id)
            self.messages.append(Failed(booking_id, payment_id, "declined", new_id()))
        else:
            payments.refused.discard(payment_id)
            paid = Money(amount.amount_minor + off, amount.currency_code)
            payments.paid[payment_id] = paid
            self.messages.append(Captured(booking_id, payment_id, paid))

    @rule(number=st.integers(0, 20), again=st.booleans(), is_lost=st.booleans())
    def a_message_arrives(self, number: int, again: bool, is_lost: bool) -> None:
        """Any undelivered message arrives, perhaps again later, or never."""
        if not self.messages:
            return
        message = self.messages[number % len(self.messages)]
        if not is_lost:
            self.do(self.harness.deliver(message))
        if is_lost or not again:
            self.messages.remove(message)

    @rule(model_booking=model_bookings)
    def cancel(self, model_booking: ModelBooking) -> None:
        before = self.current(model_booking)
        fee = self.fee(before, before.total.amount_minor)
        answer = self.attempt(self.harness.cancel(model_booking.booking.booking_id))
        if isinstance(answer, Booking) and before.status is Status.CONFIRMED:
            assert self.percent(before) is not None
            model_booking.fees += fee
        elif answer is ProcessDiedError and before.status is Status.CONFIRMED:
            model_booking.perhaps.append(fee)

    @rule(model_booking=model_bookings, quantity=st.integers(1, 4))
    def update(self, model_booking: ModelBooking, quantity: int) -> None:
        before = self.current(model_booking)
        event = next(e for e in self.events if e.event_id == before.event_id)
        removed = before.total.amount_minor - quantity * before.items[0].unit_price.amount_minor
        is_sold = before.status is Status.CONFIRMED
        fee = self.fee(before, removed) if is_sold and removed > 0 else 0
        items = [RequestedItem(event.offers[0].offer_id, quantity, None)]
        answer = self.attempt(self.harness.update(before, items=items))
        if isinstance(answer, Booking):
            model_booking.fees += fee
        elif answer is ProcessDiedError:
            model_booking.perhaps.append(fee)

    @rule(model_booking=model_bookings, event=st.integers(0, 2))
    def reschedule(self, model_booking: ModelBooking, event: int) -> None:
        """Of a lower price, the policy's percentage of the difference is refunded."""
        before = self.current(model_booking)
        places = sum(item.quantity for item in before.items)
        lower_by = before.total.amount_minor - places * PRICES[event]
        is_sold = before.status is Status.CONFIRMED
        fee = self.fee(before, lower_by) if is_sold and lower_by > 0 else 0
        answer = self.attempt(self.harness.reschedule(model_booking.booking, self.events[event]))
        if isinstance(answer, Booking):
            model_booking.fees += fee
        elif answer is ProcessDiedError:
            model_booking.perhaps.append(fee)

    @precondition(lambda self: len(self.cancelled) < MAX_CANCELLED)
    @rule(model_booking=model_bookings, cancels_first=st.booleans())
    def the_organiser_cancels(self, model_booking: ModelBooking, cancels_first: bool) -> None:
        """From then on every cancellation is refunded in full, also the customer's own."""
        event_id = self.current(model_booking).event_id
        event = next(e for e in self.events if e.event_id == event_id)
        if self.attempt(self.harness.cancel_event(event)) is None:
            self.cancelled.add(event_id)
        if cancels_first:
            self.cancel(model_booking)

    @rule(call=st.integers(1, 6))
    def the_process_will_die(self, call: int) -> None:
        self.harness.crashes.at = self.harness.crashes.passed + call

    @rule(minutes=st.sampled_from([1, 6, 16, 60, 24 * 60, 8 * 24 * 60]))
    def time_passes(self, minutes: int) -> None:
        self.harness.clock.advance(timedelta(minutes=minutes))

    @rule(loop=st.sampled_from(Loop))
    def a_loop_turns(self, loop: Loop) -> None:
        self.attempt(self.run_loops(loop))

    @rule()
    def all_loops_turn(self) -> None:
        self.attempt(self.run_loops(*Loop))

    async def run_loops(self, *loops: Loop) -> int:
        """Returns the number of rows and steps that were due."""
        return sum([await self.turn_one(loop) for loop in loops])

    async def turn_one(self, loop: Loop) -> int:
        harness = self.harness
        match loop:
            case Loop.STEPS:
                return await harness.run_steps()
            case Loop.SWEEPER:
                return await expiry.sweep(harness.database, harness.clock)
            case Loop.RECONCILIATION:
                return await reconciliation.ask_payments(harness.deps)
            case Loop.COMPLETION:
                async with harness.database.transaction() as connection:
                    return await completion.complete(connection, now=harness.clock(), limit=50)
            case Loop.CANCELLATION:
                return await harness.cancel_batch() or 0

    @invariant()
    def only_legal_moves(self) -> None:
        for status, timeline in self.do(self.timelines()):
            for before, after in pairwise(timeline):
                assert before is after or after in MOVES[before], timeline
            assert timeline[-1] is status

    async def timelines(self) -> list[tuple[Status, list[Status]]]:
        """The status of each booking, and the statuses of its timeline."""
        entries = tables.booking_timeline.c
        async with self.harness.database.reading() as connection:
            rows = await connection.execute(
                sa.select(
                    tables.bookings.c.status,
                    sa.func.array_agg(
                        postgresql.aggregate_order_by(entries.status, entries.entry_id)
                    ),
                )
                .join_from(tables.bookings, tables.booking_timeline)
                .group_by(tables.bookings.c.booking_id)
            )
        return [(Status(status), list(map(Status, past))) for status, past in rows]

    def teardown(self) -> None:
        self.do(self.finish())

    async def finish(self) -> None:
        """All messages arrive, and the loops run until nothing is due."""
        harness = self.harness
        harness.crashes.at = None
        for message in self.messages:
            await harness.deliver(message)
        # Days: the pause between the checks of a cancelled event grows with its age.
        for minutes in (20, 20, 4 * 24 * 60, 20):
            harness.clock.advance(timedelta(minutes=minutes))
            while await self.run_loops(*Loop):
                pass
        await harness.process_refunds()
        assert await reconciliation.compare_stock(harness.deps) == 0
        for model_booking in self.model:
            await self.check(model_booking)
        for event, capacity in zip(self.events, CAPACITIES, strict=True):
            assert await harness.audit(event) == ()
            assert await harness.available(event) == capacity - await harness.sold_places(event)

    async def check(self, model_booking: ModelBooking) -> None:
        booking = await self.harness.booking(model_booking.booking.booking_id)
        assert booking.change is None
        kept = await self.harness.net_payments(booking)
        match booking.status:
            case Status.CONFIRMED | Status.COMPLETED:
                assert booking.event_id not in self.cancelled, booking
                assert model_booking.may_keep(kept - booking.total.amount_minor), (booking, kept)
            case Status.CANCELLED:
                assert model_booking.may_keep(kept), (booking, kept)
            case Status.EXPIRED | Status.FAILED:
                assert kept == 0, booking
            case _:
                raise AssertionError(f"{booking.booking_id} stays {booking.status}")
        assert all(refund.status == "PROCESSED" for refund in booking.refunds)


# Under a minute on an idle machine, and an hour with --long.
@pytest.mark.timeout(7_200)
def test_bookings_follow_the_model(new_database: Callable[[str], str], is_long: bool) -> None:
    resources = AsyncExitStack()
    with asyncio.Runner() as runner:
        BookingMachine.runner = runner
        BookingMachine.databases = runner.run(
            opened(resources, new_database("booking_svc"), new_database("stock_svc"))
        )
        try:
            run_state_machine_as_test(
                BookingMachine,
                settings=settings(
                    max_examples=2_000 if is_long else 50,
                    stateful_step_count=40 if is_long else 15,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow],
                ),
            )
        finally:
            runner.run(resources.aclose())


async def opened(resources: AsyncExitStack, booking: str, stock: str) -> tuple[Database, Database]:
    """Opened once for all examples: connecting takes as long as an example."""
    return (
        await resources.enter_async_context(open_patiently(booking)),
        await resources.enter_async_context(open_patiently(stock)),
    )
