"""Any order of calls, payments, messages, clock moves and deaths, against a small model.

Messages of payment_svc come twice, in any order, late or never; money comes twice or does
not fit; organisers cancel events; the process dies at any call to another service and
between any two turns of its loops. After every step only legal moves stand in the
timelines. At the end stock, bookings and money agree, with the fees as the model counts
them.
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
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.bookings.state_machine import MOVES
from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Captured, Failed, PaymentEvent
from booking_svc.tables import metadata
from mesh.db.database import Database
from mesh.errors import DomainError
from mesh.ids import new_id
from mesh.money import Money
from testing.booking_harness import SANDBOX, START, BookingHarness, ProcessDiedError, an_offer
from testing.databases import open_patiently

_T = TypeVar("_T")

CAPACITIES = (8, 6, 6)
PRICES = (150_000, 100_001, 200_000)
DAYS = (30, 35, 40)
# One is always left to move to.
MAX_CANCELLED = len(CAPACITIES) - 1
EMPTY = f"TRUNCATE {', '.join(metadata.tables)}"


class Loop(Enum):
    """What booking_svc does by itself, one turn after another in any order."""

    STEPS = "steps"
    SWEEPER = "sweeper"
    RECONCILIATION = "reconciliation"
    COMPLETION = "completion"
    CANCELLATION = "cancellation"


@dataclass
class Life:
    """What the model knows of a booking: fees that were kept, for sure or perhaps."""

    booking: Booking
    fees: int = 0
    perhaps: list[int] = field(default_factory=list)

    def may_keep(self, amount: int) -> bool:
        """Whether so much may be kept beyond what the booking costs."""
        return any(
            self.fees + sum(some) == amount
            for count in range(len(self.perhaps) + 1)
            for some in combinations(self.perhaps, count)
        )


class LifeMachine(RuleBasedStateMachine):
    runner: asyncio.Runner
    databases: tuple[Database, Database]

    lives = Bundle[Life]("lives")

    def __init__(self) -> None:
        super().__init__()
        self.model: list[Life] = []
        self.messages: list[PaymentEvent] = []
        self.cancelled: set[UUID] = set()
        self.harness = BookingHarness(*self.databases)
        self.events = self.do(self.start())

    async def start(self) -> list[Event]:
        """Tables as empty as a new process's; the ledger keeps its own, of other events."""
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
        """The answer, or the kind of error: a refusal, or the death of the process."""
        try:
            return self.do(work)
        except (DomainError, ProcessDiedError) as error:
            return type(error)
        finally:
            self.harness.crashes.at = None

    def now_of(self, life: Life) -> Booking:
        return self.do(self.harness.booking(life.booking.booking_id))

    def percent(self, booking: Booking) -> int | None:
        """The standard tiers, said once more; None when cancelling is closed."""
        if booking.event_id in self.cancelled:
            return 100
        start = next(e.start_time for e in self.events if e.event_id == booking.event_id)
        assert start is not None
        left = start - self.harness.clock()
        granted = (
            97
            if left > timedelta(days=14)
            else 50
            if left >= timedelta(days=7)
            else 0
            if left >= timedelta(hours=48)
            else None
        )
        return None if granted is None else min(granted, booking.max_refund_percent)

    def fee(self, booking: Booking, given_up: int) -> int:
        percent = self.percent(booking) or 0
        return given_up - (given_up * percent + 50) // 100

    @rule(target=lives, event=st.integers(0, 2), quantity=st.integers(1, 4), pays=st.booleans())
    def place(self, event: int, quantity: int, pays: bool) -> Life | MultipleResults[Life]:
        chosen = self.events[event]
        how = SANDBOX if pays else None
        answer = self.attempt(self.harness.place(chosen, quantity=quantity, checkout=how))
        if not isinstance(answer, Booking):
            return multiple()
        life = Life(answer)
        self.model.append(life)
        return life

    @initialize(target=lives, event=st.integers(0, 2), quantity=st.integers(1, 4))
    def buy_first(self, event: int, quantity: int) -> Life:
        return self.bought(event, quantity)

    @rule(target=lives, event=st.integers(0, 2), quantity=st.integers(1, 2))
    def buy(self, event: int, quantity: int) -> Life | MultipleResults[Life]:
        """All goes well, as it mostly does: most of what can go wrong comes after that."""
        try:
            return self.bought(event, quantity)
        except DomainError:
            return multiple()

    def bought(self, event: int, quantity: int) -> Life:
        harness = self.harness
        harness.crashes.at = None
        life = Life(self.do(harness.place(self.events[event], quantity=quantity)))
        self.model.append(life)
        self.do(harness.capture(life.booking))
        self.do(harness.run_steps())
        return life

    @rule(life=lives)
    def checkout(self, life: Life) -> None:
        self.attempt(self.harness.checkout(life.booking.booking_id))

    @rule(life=lives, off=st.sampled_from([0, 0, 0, 1]), is_refused=st.booleans())
    def pay(self, life: Life, off: int, is_refused: bool) -> None:
        """The customer pays the booking, on the page that is open, if it takes money."""
        payment = self.now_of(life).payment
        if payment is not None:
            self.pay_for(life, payment.payment_id, off=off, is_refused=is_refused)

    @rule(life=lives, off=st.sampled_from([0, 0, 0, -1]))
    def pay_difference(self, life: Life, off: int) -> None:
        change = self.now_of(life).change
        if change is not None:
            self.pay_for(life, change.payment_id, off=off)

    @rule(life=lives, off=st.sampled_from([0, 0, -1, 1]), currency=st.sampled_from(["INR", "EUR"]))
    def pay_otherwise(self, life: Life, off: int, currency: str) -> None:
        """Money that nobody asked for: a second payment, perhaps of another amount."""
        booking = self.now_of(life)
        amount = Money(booking.total.amount_minor + off, currency)
        payment_id = new_id()
        self.harness.payments.paid[payment_id] = amount
        self.messages.append(Captured(booking.booking_id, payment_id, amount))

    def pay_for(
        self, life: Life, payment_id: UUID, *, off: int = 0, is_refused: bool = False
    ) -> None:
        payments = self.harness.payments
        amount = payments.opened.get(payment_id)
        if amount is None or payment_id in payments.paid or payment_id in payments.voided:
            return
        booking_id = life.booking.booking_id
        if is_refused:
            payments.refused.add(payment_id)
            self.messages.append(Failed(booking_id, payment_id, "declined"))
        else:
            payments.refused.discard(payment_id)
            paid = Money(amount.amount_minor + off, amount.currency_code)
            payments.paid[payment_id] = paid
            self.messages.append(Captured(booking_id, payment_id, paid))

    @rule(number=st.integers(0, 20), again=st.booleans(), is_lost=st.booleans())
    def a_message_comes(self, number: int, again: bool, is_lost: bool) -> None:
        """Any of those under way, perhaps to come again; or it never comes."""
        if not self.messages:
            return
        message = self.messages[number % len(self.messages)]
        if not is_lost:
            self.do(self.harness.deliver(message))
        if is_lost or not again:
            self.messages.remove(message)

    @rule(life=lives)
    def cancel(self, life: Life) -> None:
        before = self.now_of(life)
        fee = self.fee(before, before.total.amount_minor)
        answer = self.attempt(self.harness.cancel(life.booking.booking_id))
        if isinstance(answer, Booking) and before.status is Status.CONFIRMED:
            assert self.percent(before) is not None
            life.fees += fee

    @rule(life=lives, quantity=st.integers(1, 4))
    def update(self, life: Life, quantity: int) -> None:
        before = self.now_of(life)
        event = next(e for e in self.events if e.event_id == before.event_id)
        given_up = before.total.amount_minor - quantity * before.items[0].unit_price.amount_minor
        is_sold = before.status is Status.CONFIRMED
        fee = self.fee(before, given_up) if is_sold and given_up > 0 else 0
        wanted = [RequestedItem(event.offers[0].offer_id, quantity, None)]
        answer = self.attempt(self.harness.update(before, items=wanted))
        if isinstance(answer, Booking):
            life.fees += fee
        elif answer is ProcessDiedError:
            life.perhaps.append(fee)

    @rule(life=lives, event=st.integers(0, 2))
    def reschedule(self, life: Life, event: int) -> None:
        """What it costs less goes back in full: no fee."""
        self.attempt(self.harness.reschedule(life.booking, self.events[event]))

    @precondition(lambda self: len(self.cancelled) < MAX_CANCELLED)
    @rule(life=lives, is_customer_quick=st.booleans())
    def the_organiser_cancels(self, life: Life, is_customer_quick: bool) -> None:
        """From then on nobody loses anything by it, whoever then cancels the booking."""
        event_id = self.now_of(life).event_id
        event = next(each for each in self.events if each.event_id == event_id)
        if self.attempt(self.harness.cancel_event(event)) is None:
            self.cancelled.add(event_id)
        if is_customer_quick:
            self.cancel(life)

    @rule(call=st.integers(1, 6))
    def the_process_will_die(self, call: int) -> None:
        self.harness.crashes.at = self.harness.crashes.passed + call

    @rule(minutes=st.sampled_from([1, 6, 16, 60, 24 * 60, 8 * 24 * 60]))
    def time_goes_by(self, minutes: int) -> None:
        self.harness.clock.advance(timedelta(minutes=minutes))

    @rule(loop=st.sampled_from(Loop))
    def a_loop_turns(self, loop: Loop) -> None:
        self.attempt(self.turn(loop))

    @rule()
    def all_loops_turn(self) -> None:
        self.attempt(self.turn(*Loop))

    async def turn(self, *loops: Loop) -> int:
        """Returns how much there was to do."""
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
        """The status of each booking, and those that its timeline names."""
        entries = tables.booking_timeline.c
        async with self.harness.database.reading() as connection:
            found = await connection.execute(
                sa.select(
                    tables.bookings.c.status,
                    sa.func.array_agg(
                        postgresql.aggregate_order_by(entries.status, entries.entry_id)
                    ),
                )
                .join_from(tables.bookings, tables.booking_timeline)
                .group_by(tables.bookings.c.booking_id)
            )
        return [(Status(status), [Status(each) for each in past]) for status, past in found]

    def teardown(self) -> None:
        self.do(self.the_end())

    async def the_end(self) -> None:
        """Everybody is alive again, and all that is under way comes to its end."""
        harness = self.harness
        harness.crashes.at = None
        for message in self.messages:
            await harness.deliver(message)
        # Days in the end: the longer ago an event was cancelled, the rarer it is looked at again.
        for minutes in (20, 20, 4 * 24 * 60, 20):
            harness.clock.advance(timedelta(minutes=minutes))
            while await self.turn(*Loop):
                pass
        await harness.process_refunds()
        assert await reconciliation.compare_stock(harness.deps) == 0
        for life in self.model:
            await self.is_right(life)
        for event, capacity in zip(self.events, CAPACITIES, strict=True):
            assert await harness.audit(event) == ()
            assert await harness.available(event) == capacity - await harness.sold_places(event)

    async def is_right(self, life: Life) -> None:
        booking = await self.harness.booking(life.booking.booking_id)
        assert booking.change is None
        kept = await self.harness.net_payments(booking)
        match booking.status:
            case Status.CONFIRMED | Status.COMPLETED:
                assert booking.event_id not in self.cancelled, booking
                assert life.may_keep(kept - booking.total.amount_minor), (booking, kept)
            case Status.CANCELLED:
                assert life.may_keep(kept), (booking, kept)
            case Status.EXPIRED | Status.FAILED:
                assert kept == 0, booking
            case _:
                raise AssertionError(f"{booking.booking_id} is {booking.status} for ever")
        assert all(refund.status == "PROCESSED" for refund in booking.refunds)


# Half a minute on an idle machine, and an hour at full length.
@pytest.mark.timeout(7_200)
def test_the_life_is_the_model(new_database: Callable[[str], str], is_long: bool) -> None:
    resources = AsyncExitStack()
    with asyncio.Runner() as runner:
        LifeMachine.runner = runner
        LifeMachine.databases = runner.run(
            opened(resources, new_database("booking_svc"), new_database("stock_svc"))
        )
        try:
            run_state_machine_as_test(
                LifeMachine,
                settings=settings(
                    max_examples=2_000 if is_long else 100,
                    stateful_step_count=40 if is_long else 15,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow],
                ),
            )
        finally:
            runner.run(resources.aclose())


async def opened(resources: AsyncExitStack, booking: str, stock: str) -> tuple[Database, Database]:
    """For all examples: connecting takes as long as an example."""
    return (
        await resources.enter_async_context(open_patiently(booking)),
        await resources.enter_async_context(open_patiently(stock)),
    )
