"""Another payment in place of one that is not paid: another provider, other addresses, a closed page.

A step voids the replaced payment. Its row lets its capture win, if the customer pays it before.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import saga_steps, state_machine
from booking_svc.bookings.bookings import SYSTEM, Booking, Payment, PaymentStatus
from booking_svc.bookings.modification_store import Change
from booking_svc.bookings.saga_steps import StepKind
from booking_svc.bookings.state_machine import Transition
from booking_svc.bookings.tables import booking_changes, replaced_payments


@dataclass(frozen=True, slots=True)
class ReplacedPayment:
    """`change_id` is the change whose difference it pays; None for the booking's own price."""

    payment_id: UUID
    change_id: UUID | None
    provider: str


async def find(connection: AsyncConnection, *, payment_id: UUID) -> ReplacedPayment | None:
    row = (
        await connection.execute(
            sa.select(replaced_payments).where(replaced_payments.c.payment_id == payment_id)
        )
    ).one_or_none()
    return None if row is None else ReplacedPayment(row.payment_id, row.change_id, row.provider)


async def of_booking(
    connection: AsyncConnection, *, booking: Booking, payment: Payment, now: datetime
) -> Booking:
    """Replaces the payment of a locked booking."""
    if booking.payment is None:
        raise ValueError(f"booking {booking.booking_id} has no payment")
    await _remember(
        connection,
        booking.booking_id,
        ReplacedPayment(booking.payment.payment_id, None, booking.payment.provider),
        now,
    )
    after = replace(booking, payment=payment, update_time=now)
    return await state_machine.write(connection, Transition(booking, after, SYSTEM), now=now)


async def of_change(
    connection: AsyncConnection, *, change: Change, payment_id: UUID, provider: str, now: datetime
) -> Change:
    """Replaces the payment of a change that waits for it. The booking must be locked."""
    if change.payment_id is None or change.provider is None:
        raise ValueError(f"change {change.change_id} has no payment")
    await _remember(
        connection,
        change.booking_id,
        ReplacedPayment(change.payment_id, change.change_id, change.provider),
        now,
    )
    await connection.execute(
        sa.update(booking_changes)
        .where(booking_changes.c.change_id == change.change_id)
        .values(
            payment_id=payment_id,
            payment_provider=provider,
            payment_url=None,
            payment_client_secret=None,
            update_time=now,
        )
    )
    return replace(change, payment_id=payment_id, provider=provider)


def captured(replaced: ReplacedPayment) -> Payment:
    """A replaced payment that was captured before it could be voided."""
    return Payment(replaced.payment_id, replaced.provider, PaymentStatus.CAPTURED, None)


async def _remember(
    connection: AsyncConnection, booking_id: UUID, replaced: ReplacedPayment, now: datetime
) -> None:
    await connection.execute(
        postgresql.insert(replaced_payments)
        .values(
            payment_id=replaced.payment_id,
            booking_id=booking_id,
            change_id=replaced.change_id,
            provider=replaced.provider,
            create_time=now,
        )
        .on_conflict_do_nothing()
    )
    await saga_steps.enqueue(connection, booking_id, StepKind.VOID, replaced.payment_id, now=now)
