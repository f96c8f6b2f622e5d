"""Any order of calls, payments, messages, clock moves and deaths, against a small model.

Messages of payment_svc come twice, in any order, late or never; the process dies at any
call to another service. After every step only legal moves stand in the timelines. At the
end stock, bookings and money agree, with the fees as the model counts them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import combinations, pairwise
from typing import TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from booking_svc import completion
from booking_svc.bookings import Booking, Status
from booking_svc.events import Event
from booking_svc.lifecycle import MOVES
from booking_svc.ports import Captured, Failed, PaymentEvent
from booking_svc.pricing import Wanted
from mesh.database import Database
from mesh.errors import DomainError
from mesh.ids import new_id
from mesh.money import Money
from tests.booking_svc.world import SANDBOX, START, ProcessDiedError, World, an_offer

_T = TypeVar("_T")

CAPACITIES = (8, 6, 6)
PRICES = (150_000, 100_001, 200_000)
DAYS = (30, 35, 40)


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
    urls: tuple[str, str]

    lives = Bundle[Life]("lives")

    def __init__(self) -> None:
        super().__init__()
        self.resources = AsyncExitStack()
        self.model: list[Life] = []
        self.messages: list[PaymentEvent] = []
        self.world, self.events = self.do(self.open())

    async def open(self) -> tuple[World, list[Event]]:
        databases = [
            await self.resources.enter_async_context(Database.open(url, pool_size=4))
            for url in self.urls
        ]
        world, production = World(databases[0], databases[1]), new_id()
        events = [
            await world.an_event(
                an_offer(capacity=capacity, price=Money(price, "INR")),
                production_id=production,
                start_time=START + timedelta(days=days),
                end_time=START + timedelta(days=days, hours=3),
            )
            for capacity, price, days in zip(CAPACITIES, PRICES, DAYS, strict=True)
        ]
        return world, events

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
            self.world.crashes.at = None

    def now_of(self, life: Life) -> Booking:
        return self.do(self.world.booking(life.booking.booking_id))

    def percent(self, booking: Booking) -> int | None:
        """The standard tiers, said once more; None when cancelling is closed."""
        start = next(e.start_time for e in self.events if e.event_id == booking.event_id)
        assert start is not None
        left = start - self.world.clock()
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
        answer = self.attempt(self.world.place(chosen, quantity=quantity, checkout=how))
        if not isinstance(answer, Booking):
            return multiple()
        life = Life(answer)
        self.model.append(life)
        return life

    @rule(life=lives)
    def checkout(self, life: Life) -> None:
        self.attempt(self.world.checkout(life.booking.booking_id))

    @rule(life=lives, is_refused=st.booleans())
    def pay(self, life: Life, is_refused: bool) -> None:
        """The customer pays the booking, on the page that is open, if it takes money."""
        payment = self.now_of(life).payment
        if payment is not None:
            self.pay_for(life, payment.payment_id, is_refused)

    @rule(life=lives)
    def pay_difference(self, life: Life) -> None:
        change = self.now_of(life).change
        if change is not None:
            self.pay_for(life, change.payment_id, False)

    def pay_for(self, life: Life, payment_id: UUID, is_refused: bool) -> None:
        payments = self.world.payments
        amount = payments.opened.get(payment_id)
        if amount is None or payment_id in payments.paid or payment_id in payments.voided:
            return
        booking_id = life.booking.booking_id
        if is_refused:
            payments.refused.add(payment_id)
            self.messages.append(Failed(booking_id, payment_id, "declined"))
        else:
            payments.refused.discard(payment_id)
            payments.paid[payment_id] = amount
            self.messages.append(Captured(booking_id, payment_id, amount))

    @rule(number=st.integers(0, 20), again=st.booleans(), is_lost=st.booleans())
    def a_message_comes(self, number: int, again: bool, is_lost: bool) -> None:
        """Any of those under way, perhaps to come again; or it never comes."""
        if not self.messages:
            return
        message = self.messages[number % len(self.messages)]
        if not is_lost:
            self.do(self.world.happen(message))
        if is_lost or not again:
            self.messages.remove(message)

    @rule(life=lives)
    def cancel(self, life: Life) -> None:
        before = self.now_of(life)
        fee = self.fee(before, before.total.amount_minor)
        answer = self.attempt(self.world.cancel(life.booking.booking_id))
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
        wanted = [Wanted(event.offers[0].offer_id, quantity, None)]
        answer = self.attempt(self.world.update(before, items=wanted))
        if isinstance(answer, Booking):
            life.fees += fee
        elif answer is ProcessDiedError:
            life.perhaps.append(fee)

    @rule(life=lives, event=st.integers(0, 2))
    def reschedule(self, life: Life, event: int) -> None:
        """What it costs less goes back in full: no fee."""
        self.attempt(self.world.reschedule(life.booking, self.events[event]))

    @rule(call=st.integers(1, 6))
    def the_process_will_die(self, call: int) -> None:
        self.world.crashes.at = self.world.crashes.passed + call

    @rule(minutes=st.sampled_from([1, 6, 16, 60, 24 * 60, 8 * 24 * 60]))
    def time_goes_by(self, minutes: int) -> None:
        self.world.clock.advance(timedelta(minutes=minutes))

    @rule()
    def the_loops_turn(self) -> None:
        self.attempt(self.loops())

    async def loops(self) -> int:
        done = await self.world.turn()
        done += await self.world.reconciliation.ask_payments()
        async with self.world.database.transaction() as connection:
            done += await completion.complete(connection, now=self.world.clock(), limit=50)
        return done

    @invariant()
    def only_legal_moves(self) -> None:
        for life in self.model:
            booking = self.now_of(life)
            statuses = [entry.status for entry in booking.timeline]
            for before, after in pairwise(statuses):
                assert before is after or after in MOVES[before], statuses
            assert statuses[-1] is booking.status

    def teardown(self) -> None:
        try:
            self.do(self.the_end())
        finally:
            self.do(self.resources.aclose())

    async def the_end(self) -> None:
        """Everybody is alive again, and all that is under way comes to its end."""
        world = self.world
        world.crashes.at = None
        for message in self.messages:
            await world.happen(message)
        for _ in range(5):
            world.clock.advance(timedelta(minutes=20))
            while await self.loops():
                pass
            if world.payments.refunds:
                await world.process_refunds()
        for life in self.model:
            await self.is_right(life)
        for event, capacity in zip(self.events, CAPACITIES, strict=True):
            assert await world.audit(event) == ()
            assert await world.available(event) == capacity - await world.owned(event)

    async def is_right(self, life: Life) -> None:
        booking = await self.world.booking(life.booking.booking_id)
        assert booking.change is None
        kept = await self.world.net(booking)
        match booking.status:
            case Status.CONFIRMED | Status.COMPLETED:
                assert life.may_keep(kept - booking.total.amount_minor), (booking, kept)
            case Status.CANCELLED:
                assert life.may_keep(kept), (booking, kept)
            case Status.EXPIRED | Status.FAILED:
                assert kept == 0, booking
            case _:
                raise AssertionError(f"{booking.booking_id} is {booking.status} for ever")
        assert all(refund.status == "PROCESSED" for refund in booking.refunds)


# A minute on an idle machine, and an hour at full length.
@pytest.mark.timeout(7_200)
def test_the_life_is_the_model(new_database: Callable[[str], str], is_long: bool) -> None:
    with asyncio.Runner() as runner:
        LifeMachine.runner = runner
        LifeMachine.urls = (new_database("booking_svc"), new_database("stock_svc"))
        run_state_machine_as_test(
            LifeMachine,
            settings=settings(
                max_examples=2_000 if is_long else 100,
                stateful_step_count=40 if is_long else 15,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],
            ),
        )
