"""Sends promised refunds to payment_svc before the answer that promises them.

The client can then read them there at once. The REFUND steps repeat what fails here.
"""

import asyncio
from contextlib import suppress
from uuid import UUID

from booking_svc.bookings import bookings
from booking_svc.bookings.bookings import RefundStatus
from booking_svc.bookings.dependencies import Dependencies
from mesh.errors import DomainError

# Part of the 4.5 s of CancelBooking.
_SECONDS = 2.0


async def send(deps: Dependencies, booking_id: UUID) -> None:
    """Requests the pending refunds of a booking, once each by their ids."""
    async with deps.database.reading() as connection:
        booking = await bookings.get(connection, booking_id=booking_id)
    pending = [refund for refund in booking.refunds if refund.status is RefundStatus.PENDING]
    with suppress(DomainError, TimeoutError):
        async with asyncio.timeout(_SECONDS):
            for refund in pending:
                await deps.payments.refund(
                    refund_id=refund.refund_id,
                    payment_id=refund.payment_id,
                    amount=refund.amount,
                    reason=refund.reason,
                )
