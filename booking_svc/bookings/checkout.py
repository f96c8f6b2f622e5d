"""The way of a held booking to its payment: a page where it is paid, or confirmed when it is free.

No transaction is open during a call to another service, and each step can be repeated.
What follows the payment is settling.py's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import (
    bookings,
    modification_store,
    pricing,
    saga_steps,
    state_machine,
)
from booking_svc.bookings.batch_writer import Placing
from booking_svc.bookings.bookings import Booking, By, PaymentStatus, Status
from booking_svc.bookings.saga_steps import StepKind
from booking_svc.catalogue.events import Event, StaffStatus
from booking_svc.clients.ports import Payments, Stock
from booking_svc.tables import idempotency_records
from mesh.clock import Clock, rfc3339
from mesh.db import idempotent
from mesh.db.database import Database
from mesh.db.idempotent import Key, Store
from mesh.errors import DomainError, Reason
from mesh.ids import new_id

_FREE = "nothing to pay"


@dataclass(frozen=True, slots=True)
class Checkout:
    provider: str
    success_url: str
    cancel_url: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Stores the answer of a call under its key, in the transaction of the effect.

    `claimed_key` is a key whose record was written with the booking, before its answer.
    """

    encode: Callable[[Booking], bytes]
    claimed_key: Key | None = None
    store_answer: Store | None = None

    async def store(self, connection: AsyncConnection, booking: Booking) -> bytes:
        response = self.encode(booking)
        if self.claimed_key is not None:
            await idempotent.finish(
                connection, idempotency_records, self.claimed_key, response=response
            )
        elif self.store_answer is not None:
            await self.store_answer(connection, booking.booking_id, response)
        return response


class Checkouts:
    """Starts payments, each of them once."""

    def __init__(
        self,
        *,
        database: Database,
        stock: Stock,
        payments: Payments,
        clock: Clock,
        payment_window: timedelta,
        placing: Placing,
    ) -> None:
        self._placing = placing
        self._database = database
        self._stock = stock
        self._payments = payments
        self._clock = clock
        self._payment_window = payment_window

    async def start(
        self,
        booking: Booking,
        event: Event,
        checkout: Checkout,
        by: By,
        answer: Answer,
    ) -> Booking:
        """From a held booking to the page where it is paid; stores the answer with its end."""
        _refuse_checkout(booking, self._clock())
        if event.staff_status is StaffStatus.CANCELLED:
            raise DomainError(
                Reason.EVENT_STATE_INVALID, "the event is cancelled", status=event.staff_status
            )
        if booking.total.amount_minor == 0:
            return await self._confirm_free(booking, by, answer)
        if booking.payment is None or booking.payment.provider != checkout.provider:
            booking = await self._begin_payment(booking, checkout.provider, by)
        payment = booking.payment
        if payment is None or payment.payment_url is not None:
            async with self._database.transaction() as connection:
                await answer.store(connection, booking)
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
        now = self._clock()
        if answer.claimed_key is not None:
            paged = state_machine.with_page(booking, created.payment_url, now)
            if await self._placing.open_page(answer.claimed_key, paged, answer.encode(paged)):
                return paged
        async with self._database.transaction() as connection:
            booking = await state_machine.set_payment_url(
                connection, booking=booking, url=created.payment_url, now=now
            )
            await answer.store(connection, booking)
        return booking

    async def _confirm_free(self, booking: Booking, by: By, answer: Answer) -> Booking:
        await self._stock.commit(event_id=booking.event_id, reservation_id=booking.reservation_id)
        if answer.claimed_key is not None and booking.status is Status.HELD:
            confirmed = state_machine.moved(
                booking, to=Status.CONFIRMED, reason=_FREE, by=by, now=self._clock()
            )
            response = answer.encode(confirmed)
            if await self._placing.confirm(answer.claimed_key, confirmed, by, response):
                return confirmed
        async with self._database.transaction() as connection:
            booking = await bookings.get(connection, booking_id=booking.booking_id, lock=True)
            if booking.status is not Status.CONFIRMED:
                booking = await state_machine.move(
                    connection,
                    booking=booking,
                    to=Status.CONFIRMED,
                    reason=_FREE,
                    by=by,
                    now=self._clock(),
                )
            await answer.store(connection, booking)
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
            if (
                await modification_store.find_open(connection, booking_id=locked.booking_id)
                is not None
            ):
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
                await saga_steps.enqueue(
                    connection, locked.booking_id, StepKind.VOID, payment.payment_id, now=now
                )
            return await state_machine.begin_payment(
                connection,
                booking=locked,
                payment_id=new_id(),
                provider=provider,
                hold_expire_time=hold_expire_time,
                by=by,
                now=now,
            )


def _refuse_checkout(booking: Booking, now: datetime) -> None:
    if booking.status in (Status.CONFIRMED, Status.COMPLETED):
        raise DomainError(Reason.ALREADY_CONFIRMED, "the booking is confirmed already")
    paid = booking.payment is not None and booking.payment.status is PaymentStatus.CAPTURED
    if booking.status in state_machine.UNPAID and not paid and booking.hold_expire_time <= now:
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
    if booking.status not in state_machine.UNPAID:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            f"a booking that is {booking.status} cannot be paid",
            status=booking.status,
        )
