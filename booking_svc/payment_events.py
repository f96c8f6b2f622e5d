"""What happens to a booking when something happens to its payment.

Each event has its effect in one transaction with the stream's cursor. Calls to other
services follow as steps.
"""

import logging
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc import bookings, lifecycle
from booking_svc.bookings import Booking, PaymentStatus, Refund, Status
from booking_svc.lifecycle import StepKind
from mesh.errors import DomainError
from mesh.money import Money

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Captured:
    booking_id: UUID
    payment_id: UUID
    amount: Money


@dataclass(frozen=True, slots=True)
class Failed:
    booking_id: UUID
    payment_id: UUID
    failure_code: str


@dataclass(frozen=True, slots=True)
class Refunded:
    booking_id: UUID
    payment_id: UUID
    refund_id: UUID
    amount: Money


PaymentEvent = Captured | Failed | Refunded


async def apply(connection: AsyncConnection, *, event: PaymentEvent, now: datetime) -> None:
    """Makes an event's effect. An event of an unknown booking is logged: it is nobody's money."""
    try:
        booking = await bookings.get(connection, booking_id=event.booking_id, lock=True)
    except DomainError:
        _log.error("an event of a payment without a booking", extra={"event": repr(event)})
        return
    is_own = booking.payment is not None and booking.payment.payment_id == event.payment_id
    if isinstance(event, Captured):
        await _captured(connection, booking, event, is_own=is_own, now=now)
    elif not is_own:
        await lifecycle.note(
            connection, booking=booking, reason=f"other payment: {type(event).__name__}", now=now
        )
    elif isinstance(event, Failed):
        await _failed(connection, booking, event, now=now)
    else:
        await _refunded(connection, booking, event, now=now)


async def _captured(
    connection: AsyncConnection, booking: Booking, event: Captured, *, is_own: bool, now: datetime
) -> None:
    if is_own:
        booking = await lifecycle.set_payment_status(
            connection, booking=booking, status=PaymentStatus.CAPTURED, now=now
        )
    if is_own and event.amount == booking.total:
        await lifecycle.owe(
            connection, booking.booking_id, StepKind.CONFIRM, event.payment_id, now=now
        )
        return
    # Never confirmed by the wrong money: another payment than the booking's, or another amount.
    _log.error("a payment does not fit its booking", extra={"event": repr(event)})
    await lifecycle.note(
        connection, booking=booking, reason="a payment did not fit, it is refunded", now=now
    )
    await lifecycle.owe(connection, booking.booking_id, StepKind.REFUND, event.payment_id, now=now)


async def _failed(
    connection: AsyncConnection, booking: Booking, event: Failed, *, now: datetime
) -> None:
    if booking.payment is None or booking.payment.status is not PaymentStatus.CREATED:
        return
    booking = await lifecycle.set_payment_status(
        connection, booking=booking, status=PaymentStatus.FAILED, now=now
    )
    if booking.status is Status.PENDING_PAYMENT:
        await lifecycle.end_unpaid(
            connection,
            booking=booking,
            to=Status.FAILED,
            reason=f"payment failed: {event.failure_code}",
            now=now,
        )


async def _refunded(
    connection: AsyncConnection, booking: Booking, event: Refunded, *, now: datetime
) -> None:
    booking = await lifecycle.set_refund(
        connection,
        booking=booking,
        refund=Refund(event.refund_id, event.amount, "PROCESSED"),
        now=now,
    )
    if event.amount == booking.total:
        booking = await lifecycle.set_payment_status(
            connection, booking=booking, status=PaymentStatus.REFUNDED, now=now
        )
    await lifecycle.note(connection, booking=booking, reason="refunded", now=now)
