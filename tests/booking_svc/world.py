"""booking_svc's domain on real databases, with the real ledger and a clock that tests move.

The ledger is stock_svc's own domain, called without gRPC in between. Payments are
played by a small stand-in: what happens to them is each test's subject.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from booking_svc import bookings, events, payment_events, ports, sweeper
from booking_svc.bookings import Booking
from booking_svc.events import Event, NewEvent, NewOffer
from booking_svc.saga import Checkout, Saga, Wanted
from booking_svc.steps import Steps
from mesh.database import Database
from mesh.errors import DomainError, Reason
from mesh.idempotency import Key
from mesh.ids import new_id
from mesh.money import Money
from stock_svc import audit as stock_audit
from stock_svc import reservations, stock
from stock_svc.demand import Line

_T = TypeVar("_T")

START = datetime(2030, 6, 1, 12, tzinfo=UTC)
HOLD = timedelta(minutes=10)
WINDOW = timedelta(minutes=15)
SANDBOX = Checkout("sandbox", "", "")


@dataclass
class Clock:
    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        self.now += by


class ProcessDiedError(Exception):
    """The process died here."""


@dataclass
class Crashes:
    """Dies at the n-th point that is passed; a call has one before it and one after it."""

    at: int | None = None
    passed: int = 0

    async def around(self, call: Callable[[], Awaitable[_T]]) -> _T:
        self._point()
        result = await call()
        self._point()
        return result

    def _point(self) -> None:
        self.passed += 1
        if self.passed == self.at:
            raise ProcessDiedError


class LedgerStock:
    """ports.Stock over stock_svc's domain: a transaction each, as its servicer does it."""

    def __init__(self, database: Database, clock: Clock, crashes: Crashes) -> None:
        self._database = database
        self._clock = clock
        self._crashes = crashes

    async def _run(self, call: Callable[..., Awaitable[Any]], **arguments: Any) -> Any:
        async def transact() -> Any:
            async with self._database.transaction() as connection:
                return await call(connection, **arguments, now=self._clock())

        return await self._crashes.around(transact)

    async def define(
        self,
        *,
        event_id: UUID,
        pools: Sequence[ports.PoolStock],
        offers: Sequence[ports.OfferStock],
        seats: Mapping[UUID, UUID],
    ) -> None:
        defined = stock.Stock(
            [stock.Pool(pool.pool_id, pool.capacity) for pool in pools],
            [stock.Offer(o.offer_id, o.pool_id, o.per_customer_limit) for o in offers],
            [stock.Seat(seat_id, offer_id) for seat_id, offer_id in seats.items()],
        )
        await self._run(stock.define, event_id=event_id, stock=defined)

    async def left(self, *, event_id: UUID, with_seats: bool) -> ports.Left:
        left = await self._run(stock.left, event_id=event_id, with_seats=with_seats)
        return ports.Left(
            left.version,
            {offer.offer_id: offer.available for offer in left.offers},
            {seat.seat_id: seat.state for seat in left.seats},
            sum(pool.capacity for pool in left.pools),
            sum(pool.available for pool in left.pools),
        )

    async def reserve(
        self,
        *,
        event_id: UUID,
        reservation_id: UUID,
        request_key: str,
        customer_id: UUID,
        lines: Sequence[ports.Line],
        expire_time: datetime,
    ) -> ports.Reservation:
        made = await self._run(
            reservations.reserve,
            event_id=event_id,
            reservation_id=reservation_id,
            request_key=request_key,
            customer_id=customer_id,
            lines=[Line(line.offer_id, line.quantity, line.seat_id) for line in lines],
            expire_time=expire_time,
        )
        return ports.Reservation(made.reservation_id, made.expire_time)

    async def extend(
        self, *, event_id: UUID, reservation_id: UUID, expire_time: datetime
    ) -> ports.Reservation:
        made = await self._run(
            reservations.extend,
            event_id=event_id,
            reservation_id=reservation_id,
            expire_time=expire_time,
        )
        return ports.Reservation(made.reservation_id, made.expire_time)

    async def commit(self, *, event_id: UUID, reservation_id: UUID) -> None:
        await self._run(reservations.commit, event_id=event_id, reservation_id=reservation_id)

    async def release(self, *, event_id: UUID, reservation_id: UUID) -> None:
        await self._run(reservations.release, event_id=event_id, reservation_id=reservation_id)


@dataclass
class Payments:
    """ports.Payments: remembers what was opened, voided and given back."""

    crashes: Crashes
    opened: dict[UUID, Money] = field(default_factory=dict)
    voided: set[UUID] = field(default_factory=set)
    refunds: dict[str, tuple[UUID, ports.Refund]] = field(default_factory=dict)

    async def create(
        self, *, payment_id: UUID, provider: str, amount: Money, **_: Any
    ) -> ports.Payment:
        async def open_it() -> ports.Payment:
            if provider != "sandbox":
                raise DomainError(Reason.PROVIDER_NOT_FOUND, "no such payment provider")
            self.opened.setdefault(payment_id, amount)
            return ports.Payment(payment_id, "CREATED", f"https://pay.example/{payment_id}")

        return await self.crashes.around(open_it)

    async def void(self, *, payment_id: UUID) -> ports.Payment:
        async def void_it() -> ports.Payment:
            if payment_id not in self.opened:
                raise DomainError(Reason.PAYMENT_NOT_FOUND, "no such payment")
            self.voided.add(payment_id)
            return ports.Payment(payment_id, "VOIDED", "")

        return await self.crashes.around(void_it)

    async def refund(self, *, payment_id: UUID, key: str, reason: str) -> ports.Refund:
        async def refund_it() -> ports.Refund:
            refund = ports.Refund(new_id(), self.opened.get(payment_id, Money(1, "INR")))
            return self.refunds.setdefault(key, (payment_id, refund))[1]

        return await self.crashes.around(refund_it)


@dataclass
class World:
    database: Database
    ledger: Database
    clock: Clock = field(default_factory=Clock)
    crashes: Crashes = field(default_factory=Crashes)

    def __post_init__(self) -> None:
        self.stock = LedgerStock(self.ledger, self.clock, self.crashes)
        self.payments = Payments(self.crashes)
        self.steps = Steps(
            database=self.database, stock=self.stock, payments=self.payments, clock=self.clock
        )
        self.saga = Saga(
            database=self.database,
            stock=self.stock,
            payments=self.payments,
            clock=self.clock,
            hold_ttl=HOLD,
            payment_window=WINDOW,
            on_owed=lambda: None,
        )

    async def an_event(self, *offers: NewOffer, **changes: Any) -> Event:
        """An event that is on sale, of one offer with 10 places unless told otherwise."""
        new = replace(a_new_event(), **changes)
        if offers:
            new = replace(new, offers=offers)
        async with self.database.transaction() as connection:
            plan = await events.plan(connection, new=new, now=self.clock())
            await events.insert(connection, event=plan.event)
        await self.stock.define(
            event_id=plan.event.event_id, pools=plan.pools, offers=plan.offers, seats=plan.seats
        )
        return plan.event

    async def place(
        self,
        event: Event,
        *,
        quantity: int = 1,
        key: str | None = None,
        customer_id: UUID | None = None,
        checkout: Checkout | None = SANDBOX,
        wanted: Sequence[Wanted] | None = None,
    ) -> Booking:
        customer = customer_id or new_id()
        lines = wanted or [Wanted(event.offers[0].offer_id, quantity, None)]
        fingerprint = repr((event.event_id, lines, checkout)).encode()
        answer = await self.saga.place(
            key=Key(f"PlaceBooking:{customer}", key or str(new_id()), fingerprint),
            customer_id=customer,
            event_id=event.event_id,
            wanted=lines,
            checkout=checkout,
            encode=lambda booking: str(booking.booking_id).encode(),
        )
        return await self.booking(UUID(answer.decode()))

    async def booking(self, booking_id: UUID) -> Booking:
        async with self.database.transaction() as connection:
            return await bookings.get(connection, booking_id=booking_id)

    async def happen(self, event: payment_events.PaymentEvent) -> None:
        """Something happened to a payment, and booking_svc has heard of it."""
        async with self.database.transaction() as connection:
            await payment_events.apply(connection, event=event, now=self.clock())

    async def capture(self, booking: Booking, amount: Money | None = None) -> None:
        assert booking.payment is not None
        await self.happen(
            payment_events.Captured(
                booking.booking_id, booking.payment.payment_id, amount or booking.total
            )
        )

    async def settle(self) -> None:
        """Lets everything that is due run to its end: sweeper and steps."""
        for _ in range(20):
            expired = await sweeper.sweep(self.database, self.clock)
            taken = await self.take_steps()
            if not expired and not taken:
                return
        raise AssertionError("there is always something left to do")

    async def take_steps(self) -> int:
        """Takes the steps that are due, once each. Returns how many there were."""
        due = await self.steps.claim(limit=100)
        await asyncio.gather(*(self.steps.attempt(step) for step in due))
        return len(due)

    async def available(self, event: Event) -> int:
        left = await self.stock.left(event_id=event.event_id, with_seats=False)
        return left.available

    async def audit(self, event: Event) -> Sequence[str]:
        """Differences that the ledger finds in itself."""
        async with self.ledger.transaction() as connection:
            audit = await stock_audit.audit(connection, event_id=event.event_id)
        return audit.differences


def an_offer(**changes: Any) -> NewOffer:
    offer = NewOffer(
        name="Floor",
        price=Money(150_000, "INR"),
        pool="floor",
        capacity=10,
        seat_type=None,
        per_customer_limit=0,
        max_per_booking=0,
    )
    return replace(offer, **changes)


def a_new_event(**changes: Any) -> NewEvent:
    event = NewEvent(
        name="Monsoon Nights",
        description="",
        production_id=None,
        auditorium_id=None,
        venue_name=None,
        time_zone="Asia/Kolkata",
        start_time=START + timedelta(days=30),
        end_time=START + timedelta(days=30, hours=3),
        sale_start_time=START - timedelta(days=1),
        sale_end_time=None,
        currency_code="INR",
        offers=(an_offer(),),
        cancellation_policy=None,
    )
    return replace(event, **changes)
