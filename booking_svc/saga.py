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
from booking_svc.ports import Line, Payments, Reservation, Stock
from booking_svc.tables import idempotency_records
from mesh import idempotency
from mesh.clock import Clock
from mesh.database import Database
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.idempotency import Key
from mesh.ids import new_id
from mesh.money import Money


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
        answer = _Answer(key, encode)
        async with idempotency.running(key):
            async with self._database.reading() as connection:
                record = await idempotency.find(connection, idempotency_records, key)
                if record is not None and record.response is not None:
                    return record.response
                event = await events.get(connection, event_id=event_id)
            if record is None:
                booking = await self._hold(answer, customer_id, event, wanted, checkout)
            else:
                booking = await self._get(record.resource_id)
            if checkout is None:
                # Stored with the booking, here or by a call with this key that was quicker.
                return encode(booking)
            return await self._checkout_placed(booking, event, checkout, answer)

    async def checkout(
        self, *, booking_id: UUID, owner: UUID | None, checkout: Checkout
    ) -> Booking:
        """Starts the payment of a held booking, or returns the one that was started.

        Raises BOOKING_NOT_FOUND, HOLD_EXPIRED, ALREADY_CONFIRMED, BOOKING_STATE_INVALID,
        or what payment_svc refuses with.
        """
        booking = await self._get(booking_id, owner)
        async with self._database.reading() as connection:
            event = await events.get(connection, event_id=booking.event_id)
        return await self._start_payment(booking, event, checkout, None)

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

    async def _get(self, booking_id: UUID, owner: UUID | None = None) -> Booking:
        async with self._database.reading() as connection:
            return await bookings.get(connection, booking_id=booking_id, owner=owner)

    async def _hold(
        self,
        answer: "_Answer",
        customer_id: UUID,
        event: Event,
        wanted: Sequence[Wanted],
        checkout: Checkout | None,
    ) -> Booking:
        """Claims the places, then writes booking and record; without checkout, the answer too."""
        now = self._clock()
        event.refuse_unless_on_sale(now)
        async with self._database.reading() as connection:
            items = await _price(connection, event, wanted)
        is_paid = checkout is not None and any(item.unit_price.amount_minor for item in items)
        reservation = await self._stock.reserve(
            event_id=event.event_id,
            reservation_id=new_id(),
            # A retry after a crash finds the reservation that the first call made.
            request_key=answer.key.reference,
            customer_id=customer_id,
            lines=_lines(items),
            # Checkout in the same call: the payment window at once, and not the hold before it.
            expire_time=now + (self._payment_window if is_paid else self._hold_ttl),
        )
        if reservation.expire_time <= now:
            raise DomainError(Reason.HOLD_EXPIRED, "the places were held, but not any more")
        booking = _new_booking(customer_id, event, items, reservation, now)
        async with self._database.transaction() as connection:
            is_first = await idempotency.claim(
                connection,
                idempotency_records,
                answer.key,
                resource_id=booking.booking_id,
                now=now,
            )
            if is_first:
                booking = await lifecycle.insert(connection, booking=booking, reason="placed")
                if checkout is None:
                    await answer.store(connection, booking)
                elif is_paid:
                    booking = await lifecycle.begin_payment(
                        connection,
                        booking=booking,
                        payment_id=new_id(),
                        provider=checkout.provider,
                        hold_expire_time=booking.hold_expire_time,
                        now=now,
                    )
                return booking
        # Another process was quicker with this key: its booking is the one.
        return await self._get(booking.booking_id)

    async def _checkout_placed(
        self, booking: Booking, event: Event, checkout: Checkout, answer: "_Answer"
    ) -> bytes:
        """Checkout within place: a retry may find it done, and a refusal names the booking."""
        is_open = booking.status in lifecycle.UNPAID
        if is_open and (booking.payment is None or booking.payment.payment_url is None):
            try:
                booking = await self._start_payment(booking, event, checkout, answer)
            except DomainError as refusal:
                refusal.metadata["booking_id"] = str(booking.booking_id)
                raise
            return answer.encode(booking)
        async with self._database.transaction() as connection:
            return await answer.store(connection, booking)

    async def _start_payment(
        self, booking: Booking, event: Event, checkout: Checkout, answer: "_Answer | None"
    ) -> Booking:
        """From a held booking to the page where it is paid; stores the answer with its end."""
        _refuse_checkout(booking, self._clock())
        if booking.total.amount_minor == 0:
            return await self._confirm_free(booking, answer)
        if booking.payment is None or booking.payment.provider != checkout.provider:
            booking = await self._begin_payment(booking, checkout.provider)
        payment = booking.payment
        if payment is None or payment.payment_url is not None:
            return booking
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
            booking = await lifecycle.set_payment_url(
                connection, booking=booking, url=created.payment_url, now=self._clock()
            )
            if answer is not None:
                await answer.store(connection, booking)
        return booking

    async def _confirm_free(self, booking: Booking, answer: "_Answer | None") -> Booking:
        await self._stock.commit(event_id=booking.event_id, reservation_id=booking.reservation_id)
        async with self._database.transaction() as connection:
            booking = await bookings.get(connection, booking_id=booking.booking_id, lock=True)
            if booking.status is not Status.CONFIRMED:
                booking = await lifecycle.move(
                    connection,
                    booking=booking,
                    to=Status.CONFIRMED,
                    reason="nothing to pay",
                    now=self._clock(),
                )
            if answer is not None:
                await answer.store(connection, booking)
        return booking

    async def _begin_payment(self, booking: Booking, provider: str) -> Booking:
        """Gives a booking a payment, not yet known to payment_svc, and the time to pay it, once.

        A booking that has one already, with a page, keeps it; without a page, the new
        provider takes the place of the one that gave none.
        """
        now = self._clock()
        hold_expire_time = booking.hold_expire_time
        if booking.status is Status.HELD:
            reservation = await self._stock.extend(
                event_id=booking.event_id,
                reservation_id=booking.reservation_id,
                expire_time=now + self._payment_window,
            )
            hold_expire_time = reservation.expire_time
        async with self._database.transaction() as connection:
            locked = await bookings.get(connection, booking_id=booking.booking_id, lock=True)
            _refuse_checkout(locked, now)
            payment = locked.payment
            if payment is not None:
                if payment.provider == provider or payment.payment_url is not None:
                    return locked
                await lifecycle.owe(
                    connection, locked.booking_id, StepKind.VOID, payment.payment_id, now=now
                )
            return await lifecycle.begin_payment(
                connection,
                booking=locked,
                payment_id=new_id(),
                provider=provider,
                hold_expire_time=hold_expire_time,
                now=now,
            )


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a key is answered with from now on, stored with the effect that it tells of."""

    key: Key
    encode: Callable[[Booking], bytes]

    async def store(self, connection: AsyncConnection, booking: Booking) -> bytes:
        response = self.encode(booking)
        await idempotency.finish(connection, idempotency_records, self.key, response=response)
        return response


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
    customer_id: UUID,
    event: Event,
    items: tuple[Item, ...],
    reservation: Reservation,
    now: datetime,
) -> Booking:
    total = sum(item.unit_price.amount_minor * item.quantity for item in items)
    return Booking(
        booking_id=reservation.reservation_id,
        event_id=event.event_id,
        customer_id=customer_id,
        status=Status.HELD,
        items=items,
        total=Money(total, event.currency_code),
        hold_expire_time=reservation.expire_time,
        reservation_id=reservation.reservation_id,
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
