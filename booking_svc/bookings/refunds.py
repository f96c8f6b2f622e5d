"""A booking's money: what came in by which payment, and what goes back of it.

A refund is promised here with its id, in the transaction of what it is for; a REFUND
step has payment_svc carry it out. Never more is promised than a payment has brought.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import saga_steps
from booking_svc.bookings.bookings import Booking, Refund, RefundStatus
from booking_svc.bookings.saga_steps import StepKind
from booking_svc.bookings.tables import booking_payments, booking_refunds
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money

# A provider may take its time for a refund; after this, reconciliation.py asks.
_FIRST_CHECK = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Paid:
    """A payment that was captured, and what is left of it."""

    payment_id: UUID
    left: Money


async def captured(
    connection: AsyncConnection, *, booking: Booking, payment_id: UUID, amount: Money, now: datetime
) -> bool:
    """Notes that money came by a payment. False when that is known already."""
    noted = await connection.execute(
        postgresql.insert(booking_payments)
        .values(
            payment_id=payment_id,
            booking_id=booking.booking_id,
            captured_minor=amount.amount_minor,
            currency_code=amount.currency_code,
            create_time=now,
        )
        .on_conflict_do_nothing()
    )
    return noted.rowcount == 1


async def refund(
    connection: AsyncConnection, *, booking: Booking, amount: Money, reason: str, now: datetime
) -> tuple[Booking, Money]:
    """Owes an amount of what a locked booking has brought, its newest payments first.

    Returns how much is owed: less, when the staff has given some back already.
    """
    missing = amount.amount_minor
    for paid in reversed(await _payments(connection, booking)):
        part = min(missing, paid.left.amount_minor)
        if part > 0 and paid.left.currency_code == amount.currency_code:
            booking = await _promise(
                connection, booking, paid, Money(part, amount.currency_code), reason, now
            )
            missing -= part
    return booking, Money(amount.amount_minor - missing, amount.currency_code)


async def refund_payment(
    connection: AsyncConnection, *, booking: Booking, payment_id: UUID, reason: str, now: datetime
) -> Booking:
    """Owes all that is left of one payment of a locked booking; nothing when nothing is."""
    for paid in await _payments(connection, booking):
        if paid.payment_id == payment_id and paid.left.amount_minor > 0:
            return await _promise(connection, booking, paid, paid.left, reason, now)
    return booking


async def find(connection: AsyncConnection, *, refund_id: UUID) -> Refund:
    """A refund that was promised. Raises REFUND_NOT_FOUND."""
    row = (
        await connection.execute(
            sa.select(booking_refunds).where(booking_refunds.c.refund_id == refund_id)
        )
    ).one_or_none()
    if row is None:
        raise DomainError(Reason.REFUND_NOT_FOUND, "no such refund")
    return Refund(
        row.refund_id,
        row.payment_id,
        Money(row.amount_minor, row.currency_code),
        RefundStatus(row.status),
        row.reason,
    )


async def processed(
    connection: AsyncConnection, *, booking: Booking, refund: Refund, now: datetime
) -> bool:
    """Records that money went back, also what others than the booking have given back.

    False when that is known already.
    """
    recorded = await connection.execute(
        postgresql.insert(booking_refunds)
        .values(**_columns(booking, replace(refund, status=RefundStatus.PROCESSED), now))
        .on_conflict_do_update(
            index_elements=[booking_refunds.c.refund_id],
            set_={
                "status": RefundStatus.PROCESSED,
                "amount_minor": refund.amount.amount_minor,
                "update_time": now,
                "check_time": None,
            },
            where=booking_refunds.c.status != RefundStatus.PROCESSED,
        )
    )
    return recorded.rowcount == 1


async def is_all_back(connection: AsyncConnection, *, payment_id: UUID) -> bool:
    """Whether all that came by a payment has gone back."""
    came = sa.select(booking_payments.c.captured_minor).where(
        booking_payments.c.payment_id == payment_id
    )
    went = (
        sa.select(sa.cast(sa.func.sum(booking_refunds.c.amount_minor), sa.BigInteger))
        .where(booking_refunds.c.payment_id == payment_id)
        .where(booking_refunds.c.status == RefundStatus.PROCESSED)
    )
    return bool(
        await connection.scalar(sa.select(came.scalar_subquery() <= went.scalar_subquery()))
    )


async def failed(connection: AsyncConnection, *, refund_id: UUID, now: datetime) -> None:
    """Records that the provider refused for now; it is tried again over there."""
    await connection.execute(
        sa.update(booking_refunds)
        .where(booking_refunds.c.refund_id == refund_id)
        .where(booking_refunds.c.status == RefundStatus.PENDING)
        .values(status=RefundStatus.FAILED, update_time=now)
    )


async def lower(
    connection: AsyncConnection, *, refund_id: UUID, amount: Money, now: datetime
) -> None:
    """Less is left of the payment than was promised; nothing when nothing is."""
    is_it = booking_refunds.c.refund_id == refund_id
    if amount.amount_minor <= 0:
        await connection.execute(sa.delete(booking_refunds).where(is_it))
        return
    await connection.execute(
        sa.update(booking_refunds)
        .where(is_it)
        .values(amount_minor=amount.amount_minor, update_time=now)
    )


async def _payments(connection: AsyncConnection, booking: Booking) -> Sequence[Paid]:
    """A booking's payments, oldest first."""
    rows = await connection.execute(
        sa.select(
            booking_payments.c.payment_id,
            booking_payments.c.currency_code,
            (booking_payments.c.captured_minor - sa.func.coalesce(_promised(), 0)).label("left"),
        )
        .where(booking_payments.c.booking_id == booking.booking_id)
        .order_by(booking_payments.c.create_time, booking_payments.c.payment_id)
    )
    return [Paid(row.payment_id, Money(row.left, row.currency_code)) for row in rows]


def _promised() -> sa.ScalarSelect[int]:
    return (
        sa.select(sa.cast(sa.func.sum(booking_refunds.c.amount_minor), sa.BigInteger))
        .where(booking_refunds.c.payment_id == booking_payments.c.payment_id)
        .scalar_subquery()
    )


async def _promise(
    connection: AsyncConnection,
    booking: Booking,
    paid: Paid,
    amount: Money,
    reason: str,
    now: datetime,
) -> Booking:
    refund = Refund(new_id(), paid.payment_id, amount, RefundStatus.PENDING, reason)
    await connection.execute(booking_refunds.insert().values(**_columns(booking, refund, now)))
    await saga_steps.enqueue(
        connection, booking.booking_id, StepKind.REFUND, refund.refund_id, now=now
    )
    return replace(booking, refunds=(*booking.refunds, refund))


def _columns(booking: Booking, refund: Refund, now: datetime) -> dict[str, object]:
    return {
        "refund_id": refund.refund_id,
        "booking_id": booking.booking_id,
        "payment_id": refund.payment_id,
        "amount_minor": refund.amount.amount_minor,
        "currency_code": refund.amount.currency_code,
        "status": refund.status,
        "reason": refund.reason,
        "create_time": now,
        "update_time": now,
        "check_time": None if refund.status is RefundStatus.PROCESSED else now + _FIRST_CHECK,
    }
