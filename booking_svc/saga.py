"""The booking saga: what a customer starts, across booking_svc, stock_svc and payment_svc.

No transaction is open during a call to another service. Between any two steps the
process may die: each step can be repeated, and what is owed stands in booking_steps.
The steps that follow by themselves (confirm, release, refund) are in steps.py.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc import bookings, events, lifecycle, venues
from booking_svc.bookings import Booking, Item, PaymentStatus, Status
from booking_svc.events import Event
from booking_svc.lifecycle import StepKind
from booking_svc.money import Money
from booking_svc.ports import Line, Payments, Stock
from booking_svc.tables import idempotency_records
from mesh import idempotency
from mesh.clock import Clock
from mesh.database import Database
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.idempotency import Key
from mesh.ids import new_id


@dataclass(frozen=True, slots=True)
class Wanted:
    """One line of a request: places of an offer, or a seat."""

    offer_id: UUID | None
    quantity: int
    seat_id: UUID | None


@dataclass(frozen=True, slots=True)
class Checkout:
    provider: str
    success_url: str
    cancel_url: str


class Saga:
    """`on_owed` is called when steps were written down, so that they are taken at once."""

    def __init__(
        self,
        *,
        database: Database,
        stock: Stock,
        payments: Payments,
        clock: Clock,
        hold_ttl: timedelta,
        payment_window: timedelta,
        on_owed: Callable[[], None],
    ) -> None:
        self._database = database
        self._stock = stock
        self._payments = payments
        self._clock = clock
        self._hold_ttl = hold_ttl
        self._payment_window = payment_window
        self._on_owed = on_owed

    async def place(
        self,
        *,
        key: Key,
        customer_id: UUID,
        event_id: UUID,
        wanted: Sequence[Wanted],
        checkout: Checkout | None,
        encode: Callable[[Booking], bytes],
    ) -> bytes:
        """Holds places, once per key. Returns the answer as `encode` makes it.

        A call that finds the key's booking without an answer, because the first call
        died on its way, goes on where that one stopped.
        """
        async with idempotency.running(key):
            record = await self._find(key)
            if record is None:
                record = await self._hold(
                    key, customer_id, event_id, wanted, None if checkout else encode
                )
            if record.response is not None:
                return record.response
            booking = await self._get(record.resource_id)
            if checkout is not None:
                booking = await self._checkout_placed(booking, checkout)
            response = encode(booking)
            async with self._database.transaction() as connection:
                await idempotency.finish(connection, idempotency_records, key, response=response)
            return response

    async def checkout(
        self, *, booking_id: UUID, owner: UUID | None, checkout: Checkout
    ) -> Booking:
        """Starts the payment of a held booking, or returns the one that was started.

        Raises BOOKING_NOT_FOUND, HOLD_EXPIRED, ALREADY_CONFIRMED, BOOKING_STATE_INVALID,
        or what payment_svc refuses with.
        """
        booking = await self._get(booking_id, owner)
        _refuse_checkout(booking, self._clock())
        if booking.total.amount_minor == 0:
            return await self._confirm_free(booking)
        if booking.payment is not None and booking.payment.payment_url is not None:
            return booking
        booking = await self._begin_payment(booking, checkout.provider)
        payment = booking.payment
        if payment is None or payment.payment_url is not None:
            return booking
        async with self._database.transaction() as connection:
            event = await events.get(connection, event_id=booking.event_id)
        created = await self._payments.create(
            payment_id=payment.payment_id,
            booking_id=booking.booking_id,
            customer_id=booking.customer_id,
            provider=payment.provider,
            amount=booking.total,
            description=_describe(booking, event),
            success_url=checkout.success_url,
            cancel_url=checkout.cancel_url,
        )
        async with self._database.transaction() as connection:
            await lifecycle.set_payment_url(
                connection,
                booking_id=booking_id,
                payment_id=payment.payment_id,
                url=created.payment_url,
                now=self._clock(),
            )
            return await bookings.get(connection, booking_id=booking_id)

    async def cancel(self, *, booking_id: UUID, owner: UUID | None, reason: str) -> Booking:
        """Cancels a booking that is not paid.

        Raises BOOKING_NOT_FOUND, ALREADY_CANCELLED, or BOOKING_STATE_INVALID.
        """
        async with self._database.transaction() as connection:
            booking = await bookings.get(connection, booking_id=booking_id, owner=owner, lock=True)
            if booking.status is Status.CANCELLED:
                raise DomainError(Reason.ALREADY_CANCELLED, "the booking is cancelled already")
            if booking.status not in lifecycle.UNPAID:
                raise DomainError(
                    Reason.BOOKING_STATE_INVALID,
                    f"a booking that is {booking.status} cannot be cancelled",
                    status=booking.status,
                )
            cancelled = await lifecycle.end_unpaid(
                connection,
                booking=booking,
                to=Status.CANCELLED,
                reason=reason or "cancelled by the customer",
                now=self._clock(),
            )
        self._on_owed()
        return cancelled

    async def _find(self, key: Key) -> idempotency.Record | None:
        async with self._database.transaction() as connection:
            return await idempotency.find(connection, idempotency_records, key)

    async def _get(self, booking_id: UUID, owner: UUID | None = None) -> Booking:
        async with self._database.transaction() as connection:
            return await bookings.get(connection, booking_id=booking_id, owner=owner)

    async def _hold(
        self,
        key: Key,
        customer_id: UUID,
        event_id: UUID,
        wanted: Sequence[Wanted],
        encode: Callable[[Booking], bytes] | None,
    ) -> idempotency.Record:
        """Claims the places, then writes booking and record; with `encode`, the answer too."""
        now = self._clock()
        async with self._database.transaction() as connection:
            event = await events.get(connection, event_id=event_id)
            event.refuse_unless_on_sale(now)
            items = await _price(connection, event, wanted)
        booking_id = new_id()
        reservation = await self._stock.reserve(
            event_id=event_id,
            reservation_id=booking_id,
            # A retry after a crash finds the reservation that the first call made.
            request_key=key.reference,
            customer_id=customer_id,
            lines=_lines(items),
            expire_time=now + self._hold_ttl,
        )
        if reservation.expire_time <= now:
            raise DomainError(Reason.HOLD_EXPIRED, "the places were held, but not any more")
        booking_id = reservation.reservation_id
        booking = _new_booking(booking_id, customer_id, event, items, reservation.expire_time, now)
        async with self._database.transaction() as connection:
            claimed = await idempotency.claim(
                connection, idempotency_records, key, resource_id=booking_id, now=now
            )
            if claimed:
                booking = await lifecycle.insert(connection, booking=booking, reason="placed")
                response = encode(booking) if encode else None
                if response is not None:
                    await idempotency.finish(
                        connection, idempotency_records, key, response=response
                    )
                return idempotency.Record(booking_id, response)
        record = await self._find(key)
        if record is None:
            raise DomainError(
                Reason.IDEMPOTENCY_IN_PROGRESS,
                "a call with this idempotency key is still running",
                retry_after_seconds=1,
            )
        return record

    async def _checkout_placed(self, booking: Booking, checkout: Checkout) -> Booking:
        """Checkout within place: a retry may find it done, and a refusal names the booking."""
        if booking.status not in lifecycle.UNPAID:
            return booking
        try:
            return await self.checkout(booking_id=booking.booking_id, owner=None, checkout=checkout)
        except DomainError as refusal:
            refusal.metadata["booking_id"] = str(booking.booking_id)
            raise

    async def _confirm_free(self, booking: Booking) -> Booking:
        await self._stock.commit(event_id=booking.event_id, reservation_id=booking.reservation_id)
        async with self._database.transaction() as connection:
            locked = await bookings.get(connection, booking_id=booking.booking_id, lock=True)
            if locked.status is Status.CONFIRMED:
                return locked
            return await lifecycle.move(
                connection,
                booking=locked,
                to=Status.CONFIRMED,
                reason="nothing to pay",
                now=self._clock(),
            )

    async def _begin_payment(self, booking: Booking, provider: str) -> Booking:
        """Extends the hold, once, and gives the booking a payment, not yet known to payment_svc."""
        now = self._clock()
        reservation = await self._stock.extend(
            event_id=booking.event_id,
            reservation_id=booking.reservation_id,
            expire_time=now + self._payment_window,
        )
        async with self._database.transaction() as connection:
            locked = await bookings.get(connection, booking_id=booking.booking_id, lock=True)
            _refuse_checkout(locked, now)
            payment = locked.payment
            if payment is not None and payment.provider == provider:
                return locked
            if payment is not None and payment.payment_url is not None:
                return locked
            if payment is not None:
                # The first provider gave no page; this one takes its place.
                await lifecycle.owe(
                    connection, locked.booking_id, StepKind.VOID, payment.payment_id, now=now
                )
            return await lifecycle.begin_payment(
                connection,
                booking=locked,
                payment_id=new_id(),
                provider=provider,
                hold_expire_time=reservation.expire_time,
                now=now,
            )


def _refuse_checkout(booking: Booking, now: datetime) -> None:
    if booking.status in (Status.CONFIRMED, Status.COMPLETED):
        raise DomainError(Reason.ALREADY_CONFIRMED, "the booking is confirmed already")
    paid = booking.payment is not None and booking.payment.status is PaymentStatus.CAPTURED
    if booking.status in lifecycle.UNPAID and not paid and booking.hold_expire_time <= now:
        raise DomainError(
            Reason.HOLD_EXPIRED,
            "the hold has expired",
            expired=booking.hold_expire_time.isoformat(),
        )
    if booking.status is Status.EXPIRED:
        raise DomainError(
            Reason.HOLD_EXPIRED,
            "the hold has expired",
            expired=booking.hold_expire_time.isoformat(),
        )
    if booking.status not in lifecycle.UNPAID:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            f"a booking that is {booking.status} cannot be paid",
            status=booking.status,
        )


async def _price(
    connection: AsyncConnection, event: Event, wanted: Sequence[Wanted]
) -> tuple[Item, ...]:
    """The items of a request at today's prices.

    Raises OFFER_NOT_FOUND, SEAT_NOT_FOUND, or VALIDATION_FAILED that names every line
    which is more than the offer allows in one booking, or asks for a seat again.
    """
    sold_by = {offer.seat_type: offer for offer in event.offers if offer.seat_type is not None}
    seat_ids = [line.seat_id for line in wanted if line.seat_id is not None]
    seat_types = (
        await venues.seat_types(
            connection, auditorium_id=event.auditorium_id, seat_ids=set(seat_ids)
        )
        if event.auditorium_id is not None and seat_ids
        else {}
    )
    asked: Counter[UUID] = Counter()
    seen: set[UUID] = set()
    items, faults = [], []
    for index, line in enumerate(wanted):
        if line.seat_id is not None:
            offer = sold_by.get(seat_types.get(line.seat_id, ""))
            if offer is None:
                raise DomainError(
                    Reason.SEAT_NOT_FOUND, "the event sells no such seat", seat_id=line.seat_id
                )
            if line.seat_id in seen:
                faults.append(FieldViolation(f"items[{index}].seat_id", "is asked for twice"))
            seen.add(line.seat_id)
            quantity, field = 1, f"items[{index}].seat_id"
        else:
            if line.offer_id is None:
                raise ValueError("a line has neither offer nor seat")
            offer = event.offer(line.offer_id)
            quantity, field = line.quantity, f"items[{index}].quantity"
            if offer.seat_type is not None:
                faults.append(
                    FieldViolation(f"items[{index}].offer_id", "sells seats: give their seat_id")
                )
        asked[offer.offer_id] += quantity
        if asked[offer.offer_id] > offer.max_per_booking:
            faults.append(
                FieldViolation(
                    field, f"at most {offer.max_per_booking} of {offer.name!r} per booking"
                )
            )
        items.append(Item(offer.offer_id, line.seat_id, quantity, offer.price))
    if faults:
        raise invalid(*faults)
    return tuple(items)


def _lines(items: Sequence[Item]) -> list[Line]:
    return [Line(item.offer_id, item.quantity, item.seat_id) for item in items]


def _new_booking(
    booking_id: UUID,
    customer_id: UUID,
    event: Event,
    items: tuple[Item, ...],
    hold_expire_time: datetime,
    now: datetime,
) -> Booking:
    total = sum(item.unit_price.amount_minor * item.quantity for item in items)
    return Booking(
        booking_id=booking_id,
        event_id=event.event_id,
        customer_id=customer_id,
        status=Status.HELD,
        items=items,
        total=Money(event.currency_code, total),
        hold_expire_time=hold_expire_time,
        reservation_id=booking_id,
        payment=None,
        refund=None,
        cancellation_policy=event.cancellation_policy,
        timeline=(),
        create_time=now,
        update_time=now,
        confirm_time=None,
    )


def _describe(booking: Booking, event: Event) -> str:
    """E.g. `2 × North Stand, 1 × Early bird – Monsoon Nights`, for the payment page."""
    names = {offer.offer_id: offer.name for offer in event.offers}
    places: Counter[str] = Counter()
    for item in booking.items:
        places[names[item.offer_id]] += item.quantity
    listed = ", ".join(f"{quantity} × {name}" for name, quantity in places.items())
    return f"{listed} – {event.name}"[:500]
