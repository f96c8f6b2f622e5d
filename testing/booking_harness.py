"""booking_svc's domain on real databases, with the real stock client, stock_svc and a manual clock.

stock_svc is its servicers on a second database, called in this process. payment_svc is a fake:
tests decide what happens to payments.
"""

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast
from uuid import UUID

import sqlalchemy as sa
from google.protobuf.message import Message

from booking_svc.bookings import (
    bookings,
    cancellation,
    event_cancellation,
    expiry,
    modification,
    payment_events,
    placement,
    tables,
)
from booking_svc.bookings import checkout as booking_checkout
from booking_svc.bookings.batch_writer import BatchWriter
from booking_svc.bookings.bookings import Actor, Booking, By, Status
from booking_svc.bookings.cancellation import StaffRefund
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.modification import BookingPatch
from booking_svc.bookings.payment_pages import Checkout
from booking_svc.bookings.pricing import NOT_SHOWN, RequestedItem, ShownPrice
from booking_svc.bookings.saga_steps import Lane
from booking_svc.bookings.step_runner import Steps
from booking_svc.catalogue import event_creation, events, productions
from booking_svc.catalogue.event_commands import EventCommands
from booking_svc.catalogue.event_creation import NewEvent, NewOffer
from booking_svc.catalogue.event_update import EventChange, OfferChange
from booking_svc.catalogue.events import Event
from booking_svc.catalogue.events import Status as EventStatus
from booking_svc.clients import ports
from booking_svc.clients.stock import StockClient
from booking_svc.tables import idempotency_records
from boxoffice.stock.v1.stock_service_pb2_grpc import StockServiceStub
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites, Key
from mesh.db.jobs import Wakeup
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import AmountLimits, Money
from mesh.outages import from_database
from mesh.rpc.errors import from_status, to_status
from mesh.rpc.validation import validate
from stock_svc import audit as stock_audit
from stock_svc import tables as stock_tables
from stock_svc.servicers.stock import StockServicer

_T = TypeVar("_T")

START = datetime(2030, 6, 1, 12, tzinfo=UTC)
HOLD = timedelta(minutes=10)
WINDOW = timedelta(minutes=15)
SANDBOX = Checkout("sandbox", "", "")
STRIPE = Checkout("stripe", "", "")
PROVIDERS: ports.Limits = {
    "sandbox": AmountLimits(1, 10**12, 1),
    "stripe": AmountLimits(50, 99_999_999, 1),
}
# As many steps at a time as the loop runs: the pool has connections for so many.
STEPS_AT_ONCE = 8


@dataclass
class Clock:
    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        self.now += by


class ProcessDiedError(BaseException):
    """The process died here: nothing that it would do on an error is done."""


@dataclass
class Crashes:
    """Dies at the n-th crash point; a call of another service has one before and one after it."""

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


class CrashPoints:
    """A client of another service whose calls have crash points around them."""

    def __init__(self, client: object, crashes: Crashes) -> None:
        self._client = client
        self.crashes = crashes

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(**arguments: Any) -> Any:
            if method == "limits":
                # From memory, but for once a minute.
                return await self._client.limits(**arguments)  # type: ignore[attr-defined]
            return await self.crashes.around(lambda: getattr(self._client, method)(**arguments))

        return call


class InProcessStub:
    """A gRPC stub that calls a servicer in this process.

    Requests are validated, and errors translated, as on the wire.
    """

    def __init__(self, servicer: object) -> None:
        self._servicer = servicer

    def __getattr__(self, method: str) -> Callable[[Message], Awaitable[Any]]:
        serve = getattr(self._servicer, method)

        async def call(request: Message) -> Any:
            sent = type(request).FromString(request.SerializeToString())
            try:
                validate(sent)
                return await serve(sent, None)
            except sa.exc.SQLAlchemyError as error:
                refusal = from_database(error)
                if refusal is None:
                    raise
            except DomainError as error:
                refusal = error
            received = from_status(to_status(refusal))
            if received is None or received.reason is Reason.INTERNAL:
                raise RuntimeError(f"{method} failed by a bug") from refusal
            raise received from refusal

        return call


def stock_stub(ledger: Database, clock: Clock) -> StockServiceStub:
    """A stub of a process of stock_svc on the database `ledger`."""
    writes = IdempotentWrites(ledger, stock_tables.idempotency_records, clock)
    return cast(StockServiceStub, InProcessStub(StockServicer(ledger, writes, clock)))


@dataclass
class Payments:
    """ports.Payments: a payment_svc whose payments and refunds the test can read and set."""

    opened: dict[UUID, Money] = field(default_factory=dict)
    paid: dict[UUID, Money] = field(default_factory=dict)
    refused: set[UUID] = field(default_factory=set)
    voided: set[UUID] = field(default_factory=set)
    refunds: dict[UUID, tuple[UUID, Money]] = field(default_factory=dict)
    # Provider, success and cancel URL of each payment; providers that reject every payment.
    terms: dict[UUID, tuple[str, str, str, bool]] = field(default_factory=dict)
    contacts: dict[UUID, ports.Contact | None] = field(default_factory=dict)
    refusing: set[str] = field(default_factory=set)
    booking_of: dict[UUID, UUID] = field(default_factory=dict)
    is_away: bool = False
    # Raised by the next calls of `create`, in this order.
    failures: list[Reason] = field(default_factory=list)

    async def limits(self, *, currency_code: str) -> ports.Limits:
        if self.is_away:
            raise DomainError(Reason.DEPENDENCY_UNAVAILABLE, "payment_svc is unavailable")
        return PROVIDERS

    async def create(
        self,
        *,
        payment_id: UUID,
        booking_id: UUID,
        provider: str,
        amount: Money,
        success_url: str,
        cancel_url: str,
        is_embedded: bool = False,
        contact: ports.Contact | None = None,
        **_: Any,
    ) -> ports.Payment:
        if provider not in PROVIDERS:
            raise DomainError(Reason.PROVIDER_NOT_FOUND, "no such payment provider")
        if self.failures:
            raise DomainError(self.failures.pop(0), "not now")
        self.contacts[payment_id] = contact
        terms = (provider, success_url, cancel_url, is_embedded)
        if self.terms.setdefault(payment_id, terms) != terms:
            raise DomainError(Reason.PAYMENT_STATE_INVALID, "the id was used with other terms")
        if provider in self.refusing:
            raise DomainError(Reason.PAYMENT_FAILED, "rejected", code="account_closed")
        self.opened.setdefault(payment_id, amount)
        self.booking_of[payment_id] = booking_id
        status = "VOIDED" if payment_id in self.voided else "CREATED"
        if is_embedded:
            return ports.Payment(payment_id, status, "", f"secret of {payment_id}")
        return ports.Payment(payment_id, status, f"https://pay.example/{payment_id}")

    async def offers_embedded(self, *, provider: str) -> bool:
        return provider == "sandbox"

    async def void(self, *, payment_id: UUID) -> ports.Payment:
        if payment_id not in self.opened:
            raise DomainError(Reason.PAYMENT_NOT_FOUND, "no such payment")
        if payment_id in self.paid:
            return ports.Payment(payment_id, "CAPTURED", "")
        self.voided.add(payment_id)
        return ports.Payment(payment_id, "VOIDED", "")

    async def refund(
        self, *, refund_id: UUID, payment_id: UUID, amount: Money, reason: str
    ) -> None:
        if refund_id in self.refunds:
            assert self.refunds[refund_id] == (payment_id, amount)
            return
        if payment_id not in self.paid:
            raise DomainError(Reason.PAYMENT_STATE_INVALID, "nothing was paid")
        captured, refunded = self.paid[payment_id].amount_minor, self.refunded_minor(payment_id)
        if captured - refunded < amount.amount_minor:
            raise DomainError(
                Reason.PAYMENT_STATE_INVALID,
                "less than requested is refundable",
                captured=captured,
                refunded=refunded,
                refundable=captured - refunded,
                requested=amount.amount_minor,
            )
        self.refunds[refund_id] = (payment_id, amount)

    async def outcome(
        self, *, booking_id: UUID, payment_id: UUID
    ) -> ports.Captured | ports.Failed | ports.Voided | None:
        if payment_id not in self.opened:
            raise DomainError(Reason.PAYMENT_NOT_FOUND, "no such payment")
        if payment_id in self.refused:
            return ports.Failed(booking_id, payment_id, "card_declined", attempt_id=payment_id)
        if payment_id in self.voided:
            return ports.Voided(booking_id, payment_id)
        paid = self.paid.get(payment_id)
        return None if paid is None else ports.Captured(booking_id, payment_id, paid)

    async def refunded(self, *, booking_id: UUID, refund_id: UUID) -> ports.Refunded | None:
        if refund_id not in self.refunds:
            raise DomainError(Reason.REFUND_NOT_FOUND, "no such refund")
        payment_id, amount = self.refunds[refund_id]
        return ports.Refunded(booking_id, payment_id, refund_id, amount)

    def refunded_minor(self, payment_id: UUID) -> int:
        """The refunded amount of a payment."""
        return sum(m.amount_minor for paid, m in self.refunds.values() if paid == payment_id)


@dataclass
class BookingHarness:
    """A process of booking_svc, with its databases and the services it calls."""

    database: Database
    ledger: Database
    clock: Clock = field(default_factory=Clock)
    crashes: Crashes = field(default_factory=Crashes)
    payments: Payments = field(default_factory=Payments)

    def __post_init__(self) -> None:
        stub = stock_stub(self.ledger, self.clock)
        self.stock = cast(ports.Stock, CrashPoints(StockClient(stub), self.crashes))
        self.payment_client = CrashPoints(self.payments, self.crashes)
        self.writes = IdempotentWrites(self.database, idempotency_records, self.clock)
        steps_enqueued = Wakeup()
        self.deps = Dependencies(
            database=self.database,
            writes=self.writes,
            stock=self.stock,
            payments=cast(ports.Payments, self.payment_client),
            clock=self.clock,
            hold_ttl=HOLD,
            payment_window=WINDOW,
            on_steps_enqueued=steps_enqueued.ring,
            batch_writer=BatchWriter(self.database, self.clock),
            default_provider="sandbox",
        )
        self.steps = Steps(self.deps, steps_enqueued)

    def another_process(self) -> "BookingHarness":
        """A second process of booking_svc: the same databases and payment_svc, its own memory."""
        return BookingHarness(self.database, self.ledger, self.clock, payments=self.payments)

    async def die_at(self, point: int, work: Awaitable[object]) -> None:
        """Runs `work` until the process dies at a crash point, and fails if it does not die."""
        self.crashes.passed, self.crashes.at = 0, point
        try:
            await work
        except ProcessDiedError:
            return
        finally:
            self.crashes.at = None
        raise AssertionError(f"it passed {self.crashes.passed} crash points and did not die")

    async def a_production(self) -> UUID:
        texts = ("title", "description", "poster_url", "age_rating", "language")
        async with self.database.transaction() as connection:
            production = await productions.create(
                connection, values={**dict.fromkeys(texts, ""), "tags": []}, now=self.clock()
            )
        return production.production_id

    async def an_event(self, *offers: NewOffer, **changes: Any) -> Event:
        """An event that is on sale. By default it has one offer with 10 places."""
        new = replace(a_new_event(), **changes)
        if offers:
            new = replace(new, offers=offers)
        async with self.database.transaction() as connection:
            plan = await event_creation.plan(
                connection, new=new, limits=PROVIDERS, now=self.clock()
            )
            await events.insert(
                connection, event=plan.event, capacities=plan.capacities(), now=self.clock()
            )
        await self.stock.define(
            event_id=plan.event.event_id,
            pools=plan.pools,
            offers=plan.offers,
            seats=plan.seats,
            per_customer_limit=plan.event.per_customer_limit,
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
        items: Sequence[RequestedItem] | None = None,
        is_mail_wanted: bool = False,
        shown: ShownPrice = NOT_SHOWN,
        admission_token: str = "",
        is_staff: bool = False,
    ) -> Booking:
        customer = customer_id or new_id()
        lines = items or [RequestedItem(event.offers[0].offer_id, quantity, None)]
        fingerprint = repr((event.event_id, lines, checkout)).encode()
        answer = await placement.place(
            self.deps,
            key=Key(f"PlaceBooking:{customer}", key or str(new_id()), fingerprint),
            customer_id=customer,
            event_id=event.event_id,
            items=lines,
            checkout=checkout,
            encode=lambda booking: str(booking.booking_id).encode(),
            is_mail_wanted=is_mail_wanted,
            shown=shown,
            admission_token=admission_token,
            is_staff=is_staff,
        )
        return await self.booking(UUID(answer.decode()))

    async def cancel(
        self,
        booking_id: UUID,
        *,
        owner: UUID | None = None,
        by: By | None = None,
        reason: str = "",
        staff_refund: StaffRefund | None = None,
        key: str | None = None,
    ) -> Booking:
        """Cancels as the customer, unless `by` says otherwise."""
        answer = await cancellation.cancel_booking(
            self.deps,
            key=a_key("CancelBooking", key, booking_id, reason),
            booking_id=booking_id,
            owner=owner,
            by=by or By(Actor.CUSTOMER),
            reason=reason,
            staff_refund=staff_refund,
            encode=pickle.dumps,
        )
        return answered(answer)

    async def update(
        self,
        booking: Booking,
        *,
        items: Sequence[RequestedItem] = (),
        attendees: Sequence[str] | None = None,
        note: str | None = None,
        staff_refund: StaffRefund | None = None,
        by: By | None = None,
        owner: UUID | None = None,
        key: str | None = None,
        checkout: Checkout | None = None,
        shown: ShownPrice = NOT_SHOWN,
        admission_token: str = "",
    ) -> Booking:
        answer = await modification.update(
            self.deps,
            key=a_key("UpdateBooking", key, booking.booking_id, items, attendees, note),
            booking_id=booking.booking_id,
            owner=owner,
            by=by or By(Actor.CUSTOMER),
            patch=BookingPatch(items, attendees, note, staff_refund),
            checkout=checkout,
            encode=pickle.dumps,
            shown=shown,
            admission_token=admission_token,
        )
        return answered(answer)

    async def reschedule(
        self,
        booking: Booking,
        event: Event,
        *,
        items: Sequence[RequestedItem] = (),
        checkout: Checkout | None = SANDBOX,
        staff_refund: StaffRefund | None = None,
        by: By | None = None,
        key: str | None = None,
        shown: ShownPrice = NOT_SHOWN,
        admission_token: str = "",
    ) -> Booking:
        answer = await modification.reschedule(
            self.deps,
            key=a_key("RescheduleBooking", key, booking.booking_id, event.event_id, items),
            booking_id=booking.booking_id,
            owner=None,
            by=by or By(Actor.CUSTOMER),
            event_id=event.event_id,
            items=items,
            checkout=checkout,
            staff_refund=staff_refund,
            encode=pickle.dumps,
            shown=shown,
            admission_token=admission_token,
        )
        return answered(answer)

    async def checkout(
        self,
        booking_id: UUID,
        *,
        owner: UUID | None = None,
        checkout: Checkout = SANDBOX,
        key: str | None = None,
    ) -> Booking:
        answer = await booking_checkout.start(
            self.deps,
            key=a_key("CheckoutBooking", key, booking_id, checkout),
            booking_id=booking_id,
            owner=owner,
            by=By(Actor.CUSTOMER),
            checkout=checkout,
            encode=pickle.dumps,
        )
        return answered(answer)

    async def booking(self, booking_id: UUID) -> Booking:
        async with self.database.reading() as connection:
            return await bookings.get(connection, booking_id=booking_id)

    async def deliver(self, *events: ports.PaymentEvent) -> None:
        """Applies events of payment_svc as one batch of its stream, once they are true there."""
        for event in events:
            if isinstance(event, ports.Captured):
                self.payments.paid.setdefault(event.payment_id, event.amount)
        async with self.database.transaction() as connection:
            await payment_events.apply_all(connection, events, self.clock())

    async def capture(self, booking: Booking, amount: Money | None = None) -> None:
        assert booking.payment is not None
        await self.deliver(
            ports.Captured(booking.booking_id, booking.payment.payment_id, amount or booking.total)
        )

    async def capture_payment(self, booking: Booking, payment_id: UUID, amount: Money) -> None:
        """Captures a payment that is not the booking's own, e.g. a price difference."""
        await self.deliver(ports.Captured(booking.booking_id, payment_id, amount))

    async def process_refunds(self) -> None:
        """Delivers the event of every refund that payment_svc has started."""
        for refund_id, (payment_id, amount) in self.payments.refunds.items():
            booking_id = await self._booking_of(refund_id)
            await self.deliver(ports.Refunded(booking_id, payment_id, refund_id, amount))

    async def _booking_of(self, refund_id: UUID) -> UUID:
        async with self.database.reading() as connection:
            booking_id = await connection.scalar(
                sa.select(tables.booking_refunds.c.booking_id).where(
                    tables.booking_refunds.c.refund_id == refund_id
                )
            )
        assert isinstance(booking_id, UUID)
        return booking_id

    async def run_until_idle(self) -> None:
        """Runs sweeper and steps until none is due."""
        for _ in range(20):
            if not await self.run_loops():
                return
        raise AssertionError("sweeper and steps still have work after 20 turns")

    async def run_loops(self) -> int:
        """One turn of sweeper and steps. Returns the number of rows and steps that were due."""
        expired = await expiry.sweep(self.database, self.clock)
        return expired + await self.run_steps()

    async def run_steps(self) -> int:
        """Runs the due steps, once each. Returns how many there were."""
        batch = await self.steps.claim(limit=100, lane=Lane.FIRST_CONFIRMATIONS)
        due = await self.steps.claim(limit=100)
        if batch:
            await self.steps.confirm_together(batch)
        for first in range(0, len(due), STEPS_AT_ONCE):
            outcomes = await asyncio.gather(
                *(self.steps.attempt(step) for step in due[first : first + STEPS_AT_ONCE]),
                return_exceptions=True,
            )
            for error in outcomes:
                if error is not None:
                    raise error
        return len(batch) + len(due)

    @property
    def commands(self) -> EventCommands:
        return EventCommands(
            database=self.database,
            writes=self.writes,
            stock=self.stock,
            payments=self.payments,
            clock=self.clock,
        )

    async def cancel_event(self, event: Event, reason: str = "") -> None:
        """Cancels an event; `cancel_batch` cancels its bookings."""
        await self.commands.set_status(
            event_id=event.event_id, to=EventStatus.CANCELLED, reason=reason
        )

    async def reprice(self, event: Event, price: Money) -> None:
        """Changes the price of an event's first offer."""
        change = EventChange(offers=(OfferChange(offer_id=event.offers[0].offer_id, price=price),))
        await self.commands.update(event_id=event.event_id, change=change, etag=None)

    async def cancel_batch(self) -> int | None:
        """One turn of the loop that cancels bookings of cancelled events."""
        async with self.database.transaction() as connection:
            return await event_cancellation.cancel_batch(connection, now=self.clock())

    async def available(self, event: Event) -> int:
        availability = await self.stock.availability(event_id=event.event_id, with_seats=False)
        return availability.available

    async def all_bookings(self, *of: Event) -> list[Booking]:
        """All bookings of some events."""
        async with self.database.reading() as connection:
            booking_ids = await connection.scalars(
                sa.select(tables.bookings.c.booking_id).where(
                    tables.bookings.c.event_id.in_([event.event_id for event in of])
                )
            )
            return [
                await bookings.get(connection, booking_id=booking_id) for booking_id in booking_ids
            ]

    async def sold_places(self, event: Event) -> int:
        """The number of places of an event's confirmed and completed bookings."""
        return sum(
            item.quantity
            for booking in await self.all_bookings(event)
            if booking.status in (Status.CONFIRMED, Status.COMPLETED)
            for item in booking.items
        )

    async def net_payments(self, booking: Booking) -> int:
        """What payment_svc has captured for a booking and not refunded, in minor units."""
        async with self.database.reading() as connection:
            payment_ids = await connection.scalars(
                sa.select(tables.booking_payments.c.payment_id).where(
                    tables.booking_payments.c.booking_id == booking.booking_id
                )
            )
        return sum(
            self.payments.paid[payment_id].amount_minor - self.payments.refunded_minor(payment_id)
            for payment_id in payment_ids
        )

    async def audit(self, event: Event) -> Sequence[str]:
        """The differences that the ledger's audit of an event finds."""
        async with self.ledger.transaction() as connection:
            audit = await stock_audit.audit(connection, event_id=event.event_id)
        return audit.differences


def a_key(method: str, key: str | None, *request: object) -> Key | None:
    """The idempotency key of a request; None if the client sends none."""
    return None if key is None else Key(method, key, repr(request).encode())


def answered(answer: bytes) -> Booking:
    booking = pickle.loads(answer)  # noqa: S301 - our own
    assert isinstance(booking, Booking)
    return booking


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
