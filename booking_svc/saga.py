"""The booking saga: what a customer starts, across booking_svc, stock_svc and payment_svc.

No transaction is open during a call to another service. Between any two steps the
process may die: each step can be repeated, and what is owed stands in booking_steps.
The steps that follow by themselves (confirm, release, refund) are in steps.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc import (
    alternatives,
    answers,
    bookings,
    cancelling,
    changes,
    events,
    lifecycle,
    owed,
    pricing,
)
from booking_svc.bookings import Actor, Booking, By, Item, PaymentStatus, Status
from booking_svc.events import Event, Said
from booking_svc.owed import StepKind
from booking_svc.ports import Payments, Reservation, Stock
from booking_svc.pricing import Wanted
from booking_svc.tables import idempotency_records
from mesh import idempotency
from mesh.clock import Clock, rfc3339
from mesh.database import Database
from mesh.errors import DomainError, Reason
from mesh.idempotency import Key
from mesh.ids import new_id


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
        is_mail_wanted: bool = False,
    ) -> bytes:
        """Holds places, once per key. Returns the answer as `encode` makes it.

        A call that finds the key's booking without an answer, because the first call
        died on its way, goes on where that one stopped.
        """
        answer = _Answer(key, encode, is_claimed=True)
        async with idempotency.running(key):
            async with self._database.reading() as connection:
                record = await idempotency.find(connection, idempotency_records, key)
                if record is not None and record.response is not None:
                    return record.response
                event = await events.get(connection, event_id=event_id)
            if record is None:
                booking = await self._hold(
                    answer, customer_id, event, wanted, checkout, is_mail_wanted
                )
            else:
                booking = await self._get(record.resource_id)
            if checkout is None:
                # Stored with the booking, here or by a call with this key that was quicker.
                return encode(booking)
            return await self._checkout_placed(booking, event, checkout, answer)

    async def checkout(
        self,
        *,
        key: Key | None,
        booking_id: UUID,
        owner: UUID | None,
        by: By,
        checkout: Checkout,
        encode: Callable[[Booking], bytes],
    ) -> bytes:
        """Starts the payment of a held booking, or returns the one that was started.

        Raises BOOKING_NOT_FOUND, HOLD_EXPIRED, ALREADY_CONFIRMED, PAYMENT_FAILED,
        BOOKING_STATE_INVALID, or what payment_svc refuses with.
        """
        if key is None:
            return encode(await self._checkout(booking_id, owner, by, checkout, None))
        async with idempotency.running(key):
            known = await answers.stored(self._database, key)
            if known is not None:
                return known
            answer = _Answer(key, encode, is_claimed=False)
            return encode(await self._checkout(booking_id, owner, by, checkout, answer))

    async def cancel(
        self,
        *,
        key: Key | None,
        booking_id: UUID,
        owner: UUID | None,
        by: By,
        reason: str,
        encode: Callable[[Booking], bytes],
    ) -> bytes:
        """Cancels a booking, as cancelling.cancel does; its steps are taken at once."""
        now = self._clock()

        async def effect(connection: AsyncConnection) -> tuple[UUID, bytes]:
            cancelled = await cancelling.cancel(
                connection, booking_id=booking_id, owner=owner, by=by, reason=reason, now=now
            )
            return booking_id, encode(cancelled)

        answer = await answers.answer_once(self._database, key, effect, now=now)
        self._on_owed()
        return answer

    async def _checkout(
        self,
        booking_id: UUID,
        owner: UUID | None,
        by: By,
        checkout: Checkout,
        answer: "_Answer | None",
    ) -> Booking:
        booking = await self._get(booking_id, owner)
        async with self._database.reading() as connection:
            event = await events.get(connection, event_id=booking.event_id)
        return await self._start_payment(booking, event, checkout, by, answer)

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
        is_mail_wanted: bool,
    ) -> Booking:
        """Claims the places, then writes booking and record; without checkout, the answer too."""
        now = self._clock()
        event.refuse_unless_on_sale(now)
        async with self._database.reading() as connection:
            items = await pricing.price(connection, event, wanted)
        is_paid = checkout is not None and any(item.unit_price.amount_minor for item in items)
        try:
            reservation = await self._stock.reserve(
                event_id=event.event_id,
                reservation_id=new_id(),
                # A retry after a crash finds the reservation that the first call made.
                request_key=answer.key.reference,
                customer_id=customer_id,
                lines=pricing.lines(items),
                # Checkout in the same call: the payment window at once, and not the hold before it.
                expire_time=now + (self._payment_window if is_paid else self._hold_ttl),
            )
        except DomainError as refusal:
            if not alternatives.exist_for(event, refusal):
                raise
            async with self._database.reading() as connection:
                raise await alternatives.named(
                    connection, event=event, refusal=refusal, now=now
                ) from None
        if reservation.expire_time <= now:
            raise DomainError(Reason.HOLD_EXPIRED, "the places were held, but not any more")
        booking = _new_booking(customer_id, event, items, reservation, now)
        by = By(Actor.CUSTOMER, customer_id)
        async with self._database.transaction() as connection:
            is_first = await idempotency.claim(
                connection,
                idempotency_records,
                answer.key,
                resource_id=booking.booking_id,
                now=now,
            )
            if is_first:
                booking = await lifecycle.insert(
                    connection,
                    booking=booking,
                    reason="placed",
                    by=by,
                    is_mail_wanted=is_mail_wanted,
                )
                if checkout is None:
                    await answer.store(connection, booking, self._clock())
                elif is_paid:
                    booking = await lifecycle.begin_payment(
                        connection,
                        booking=booking,
                        payment_id=new_id(),
                        provider=checkout.provider,
                        hold_expire_time=booking.hold_expire_time,
                        by=by,
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
                by = By(Actor.CUSTOMER, booking.customer_id)
                booking = await self._start_payment(booking, event, checkout, by, answer)
            except DomainError as refusal:
                refusal.metadata["booking_id"] = str(booking.booking_id)
                raise
            return answer.encode(booking)
        async with self._database.transaction() as connection:
            return await answer.store(connection, booking, self._clock())

    async def _start_payment(
        self,
        booking: Booking,
        event: Event,
        checkout: Checkout,
        by: By,
        answer: "_Answer | None",
    ) -> Booking:
        """From a held booking to the page where it is paid; stores the answer with its end."""
        _refuse_checkout(booking, self._clock())
        if event.said is Said.CANCELLED:
            raise DomainError(
                Reason.EVENT_STATE_INVALID, "the event is cancelled", status=event.said
            )
        if booking.total.amount_minor == 0:
            return await self._confirm_free(booking, by, answer)
        if booking.payment is None or booking.payment.provider != checkout.provider:
            booking = await self._begin_payment(booking, checkout.provider, by)
        payment = booking.payment
        if payment is None or payment.payment_url is not None:
            if answer is not None:
                async with self._database.transaction() as connection:
                    await answer.store(connection, booking, self._clock())
            return booking
        created = await self._payments.create(
            payment_id=payment.payment_id,
            booking_id=booking.booking_id,
            event_id=booking.event_id,
            customer_id=booking.customer_id,
            provider=payment.provider,
            amount=booking.total,
            description=pricing.describe(booking.items, event),
            success_url=checkout.success_url,
            cancel_url=checkout.cancel_url,
        )
        async with self._database.transaction() as connection:
            booking = await lifecycle.set_payment_url(
                connection, booking=booking, url=created.payment_url, now=self._clock()
            )
            if answer is not None:
                await answer.store(connection, booking, self._clock())
        return booking

    async def _confirm_free(self, booking: Booking, by: By, answer: "_Answer | None") -> Booking:
        await self._stock.commit(event_id=booking.event_id, reservation_id=booking.reservation_id)
        async with self._database.transaction() as connection:
            booking = await bookings.get(connection, booking_id=booking.booking_id, lock=True)
            if booking.status is not Status.CONFIRMED:
                booking = await lifecycle.move(
                    connection,
                    booking=booking,
                    to=Status.CONFIRMED,
                    reason="nothing to pay",
                    by=by,
                    now=self._clock(),
                )
            if answer is not None:
                await answer.store(connection, booking, self._clock())
        return booking

    async def _begin_payment(self, booking: Booking, provider: str, by: By) -> Booking:
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
            if await changes.find_open(connection, booking_id=locked.booking_id) is not None:
                raise DomainError(
                    Reason.BOOKING_STATE_INVALID,
                    "the booking is being changed: try again in a moment",
                    status=locked.status,
                    retry_after_seconds=1,
                )
            payment = locked.payment
            if payment is not None:
                if payment.provider == provider or payment.payment_url is not None:
                    return locked
                await owed.owe(
                    connection, locked.booking_id, StepKind.VOID, payment.payment_id, now=now
                )
            return await lifecycle.begin_payment(
                connection,
                booking=locked,
                payment_id=new_id(),
                provider=provider,
                hold_expire_time=hold_expire_time,
                by=by,
                now=now,
            )


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a key is answered with from now on, stored with the effect that it tells of.

    `is_claimed` when the key's record is there before the answer is.
    """

    key: Key
    encode: Callable[[Booking], bytes]
    is_claimed: bool

    async def store(self, connection: AsyncConnection, booking: Booking, now: datetime) -> bytes:
        response = self.encode(booking)
        if self.is_claimed:
            await idempotency.finish(connection, idempotency_records, self.key, response=response)
        else:
            await answers.store(connection, self.key, booking.booking_id, response, now=now)
        return response


def _refuse_checkout(booking: Booking, now: datetime) -> None:
    if booking.status in (Status.CONFIRMED, Status.COMPLETED):
        raise DomainError(Reason.ALREADY_CONFIRMED, "the booking is confirmed already")
    paid = booking.payment is not None and booking.payment.status is PaymentStatus.CAPTURED
    if booking.status in lifecycle.UNPAID and not paid and booking.hold_expire_time <= now:
        raise DomainError(
            Reason.HOLD_EXPIRED,
            "the hold has expired",
            expired=rfc3339(booking.hold_expire_time),
        )
    if booking.status is Status.EXPIRED:
        raise DomainError(
            Reason.HOLD_EXPIRED,
            "the hold has expired",
            expired=rfc3339(booking.hold_expire_time),
        )
    if booking.status is Status.FAILED:
        raise DomainError(
            Reason.PAYMENT_FAILED,
            "the payment was refused and the places are free again: book anew",
            status=booking.status,
        )
    if booking.status not in lifecycle.UNPAID:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            f"a booking that is {booking.status} cannot be paid",
            status=booking.status,
        )


def _new_booking(
    customer_id: UUID,
    event: Event,
    items: tuple[Item, ...],
    reservation: Reservation,
    now: datetime,
) -> Booking:
    return Booking(
        booking_id=reservation.reservation_id,
        event_id=event.event_id,
        customer_id=customer_id,
        status=Status.HELD,
        items=items,
        total=pricing.total(items, event.currency_code),
        hold_expire_time=reservation.expire_time,
        reservation_id=reservation.reservation_id,
        payment=None,
        refunds=(),
        cancellation_policy=event.cancellation_policy,
        timeline=(),
        create_time=now,
        update_time=now,
        confirm_time=None,
    )
