"""Checkout: from a held booking to the URL where it is paid, or to CONFIRMED if it is free.

No transaction is open during a call to another service, and every step can be repeated. What
follows the payment belongs to payment_events.py and step_handlers.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import (
    bookings,
    modification_store,
    pricing,
    saga_steps,
    state_machine,
)
from booking_svc.bookings.bookings import Booking, By, Payment, PaymentStatus, Status
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.saga_steps import StepKind
from booking_svc.catalogue import events
from booking_svc.catalogue.events import Event, StaffStatus
from booking_svc.tables import idempotency_records
from mesh.clock import rfc3339
from mesh.db import idempotent
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

    `claimed_key` is a key whose record was inserted with the booking, before its answer.
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


async def start(
    deps: Dependencies,
    *,
    key: Key | None,
    booking_id: UUID,
    owner: UUID | None,
    by: By,
    checkout: Checkout,
    encode: Callable[[Booking], bytes],
) -> bytes:
    """Starts the payment of a held booking, or returns the booking if it was started before.

    Raises BOOKING_NOT_FOUND, HOLD_EXPIRED, ALREADY_CONFIRMED, PAYMENT_FAILED,
    BOOKING_STATE_INVALID, EVENT_STATE_INVALID, and as stock_svc and payment_svc do.
    """

    async def write(store: Store) -> bytes:
        async with deps.database.reading() as connection:
            booking = await bookings.get(connection, booking_id=booking_id, owner=owner)
            event = await events.get(connection, event_id=booking.event_id)
        answer = Answer(encode, store_answer=store)
        return encode(await confirm_or_open_payment(deps, booking, event, checkout, by, answer))

    return await deps.writes.run_steps_once(key, write)


async def confirm_or_open_payment(
    deps: Dependencies,
    booking: Booking,
    event: Event,
    checkout: Checkout,
    by: By,
    answer: Answer,
) -> Booking:
    """Confirms a free booking, or opens the payment of another; stores the answer.

    Raises as `start` does.
    """
    _refuse_checkout(booking, deps.clock())
    if event.staff_status is StaffStatus.CANCELLED:
        raise DomainError(
            Reason.EVENT_STATE_INVALID, "the event is cancelled", status=event.staff_status
        )
    if booking.total.amount_minor == 0:
        return await _confirm_free(deps, booking, by, answer)
    if booking.payment is None or booking.payment.provider != checkout.provider:
        booking = await _begin_payment(deps, booking, checkout.provider, by)
    payment = booking.payment
    if payment is None or payment.payment_url is not None:
        async with deps.database.transaction() as connection:
            await answer.store(connection, booking)
        return booking
    created = await deps.payments.create(
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
    return await _open_payment(deps, booking, payment, created.payment_url, answer)


async def _open_payment(
    deps: Dependencies, booking: Booking, payment: Payment, url: str, answer: Answer
) -> Booking:
    """Stores the URL of a payment, unless the booking has another payment by now."""
    now = deps.clock()
    if answer.claimed_key is not None:
        opened = state_machine.payment_opened(booking, url, now)
        response = answer.encode(opened.after)
        if await deps.batch_writer.write(answer.claimed_key, opened, response):
            return opened.after
    async with deps.database.transaction() as connection:
        booking = await bookings.get(connection, booking_id=booking.booking_id, lock=True)
        if booking.payment is not None and booking.payment.payment_id == payment.payment_id:
            opened = state_machine.payment_opened(booking, url, now)
            booking = await state_machine.write(connection, opened, now=now)
        await answer.store(connection, booking)
    return booking


async def _confirm_free(deps: Dependencies, booking: Booking, by: By, answer: Answer) -> Booking:
    await deps.stock.commit(event_id=booking.event_id, reservation_id=booking.reservation_id)
    now = deps.clock()
    if answer.claimed_key is not None:
        confirmed = state_machine.moved(booking, to=Status.CONFIRMED, reason=_FREE, by=by, now=now)
        response = answer.encode(confirmed.after)
        if await deps.batch_writer.write(answer.claimed_key, confirmed, response):
            return confirmed.after
    async with deps.database.transaction() as connection:
        booking = await bookings.get(connection, booking_id=booking.booking_id, lock=True)
        if booking.status is not Status.CONFIRMED:
            booking = await state_machine.move(
                connection, booking=booking, to=Status.CONFIRMED, reason=_FREE, by=by, now=now
            )
        await answer.store(connection, booking)
    return booking


async def _begin_payment(deps: Dependencies, booking: Booking, provider: str, by: By) -> Booking:
    """Gives a booking a payment, not yet created in payment_svc, and the time to pay it, once.

    A payment that has a URL stays. One without a URL is replaced if it has another provider.
    """
    now = deps.clock()
    hold_expire_time = booking.hold_expire_time
    if booking.status is Status.HELD:
        reservation = await deps.stock.extend(
            event_id=booking.event_id,
            reservation_id=booking.reservation_id,
            expire_time=now + deps.payment_window,
        )
        hold_expire_time = reservation.expire_time
    async with deps.database.transaction() as connection:
        locked = await bookings.get(connection, booking_id=booking.booking_id, lock=True)
        _refuse_checkout(locked, now)
        if await modification_store.find_open(connection, booking_id=locked.booking_id) is not None:
            raise modification_store.in_progress(locked)
        payment = locked.payment
        if payment is not None:
            if payment.provider == provider or payment.payment_url is not None:
                return locked
            await saga_steps.enqueue(
                connection, locked.booking_id, StepKind.VOID, payment.payment_id, now=now
            )
        begun = state_machine.payment_begun(
            locked,
            payment_id=new_id(),
            provider=provider,
            hold_expire_time=hold_expire_time,
            by=by,
            now=now,
        )
        return await state_machine.write(connection, begun, now=now)


def _refuse_checkout(booking: Booking, now: datetime) -> None:
    if booking.status in (Status.CONFIRMED, Status.COMPLETED):
        raise DomainError(Reason.ALREADY_CONFIRMED, "the booking is already confirmed")
    is_unpaid = booking.status in state_machine.UNPAID
    is_captured = booking.payment is not None and booking.payment.status is PaymentStatus.CAPTURED
    has_lapsed = is_unpaid and not is_captured and booking.hold_expire_time <= now
    if has_lapsed or booking.status is Status.EXPIRED:
        raise DomainError(
            Reason.HOLD_EXPIRED,
            "the hold has expired",
            expired=rfc3339(booking.hold_expire_time),
        )
    if booking.status is Status.FAILED:
        raise DomainError(
            Reason.PAYMENT_FAILED,
            "the payment failed and the places were released: place a new booking",
            status=booking.status,
        )
    if not is_unpaid:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            f"a booking that is {booking.status} cannot be paid",
            status=booking.status,
        )
