"""The captured payments of a booking and their refunds.

A refund is promised with its id in the transaction of its cause; a REFUND step starts it in
payment_svc. Whatever is promised or shown is limited by `refundable`.
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
from mesh.db.pipeline import Statement, columns, run_together
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money

# Reconciliation asks for a refund that is not processed by then.
_FIRST_CHECK = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class CapturedPayment:
    """A captured payment, and what is left of it: neither refunded, promised nor disputed."""

    payment_id: UUID
    refundable: Money


async def captured(
    connection: AsyncConnection, *, booking: Booking, payment_id: UUID, amount: Money, now: datetime
) -> bool:
    """Records a captured payment. False if it is already recorded."""
    return payment_id in await all_captured(connection, [(booking, payment_id, amount)], now=now)


async def all_captured(
    connection: AsyncConnection,
    payments: Sequence[tuple[Booking, UUID, Money]],
    *,
    now: datetime,
) -> set[UUID]:
    """Records captured payments of bookings. Returns the ids of those that were not recorded yet."""
    rows = [
        (payment_id, booking.booking_id, amount.amount_minor, amount.currency_code)
        for booking, payment_id, amount in payments
    ]
    [inserted] = await run_together(connection, [Statement(_CAPTURE, (now, *columns(rows, 4)))])
    return {payment_id for (payment_id,) in inserted.rows}


_CAPTURE = """
INSERT INTO booking_payments
    (create_time, payment_id, booking_id, captured_minor, currency_code)
SELECT %s::timestamptz, given.*
FROM unnest(%s::uuid[], %s::uuid[], %s::bigint[], %s::text[]) AS given
ON CONFLICT DO NOTHING RETURNING payment_id
"""


async def refundable(
    connection: AsyncConnection, *, booking: Booking, keep_minor: int = 0
) -> Money:
    """The bound of every refund of a booking: captured − refunded − disputed − kept.

    Promised refunds count as refunded, whoever requested them. `keep_minor` is the price of the
    items that the booking keeps.
    """
    left = sum(payment.refundable.amount_minor for payment in await _payments(connection, booking))
    return Money(max(0, left - keep_minor), booking.total.currency_code)


async def refund(
    connection: AsyncConnection,
    *,
    booking: Booking,
    amount: Money,
    reason: str,
    now: datetime,
    keep_minor: int = 0,
) -> tuple[Booking, Money]:
    """Promises a refund of a locked booking's payments, the newest first.

    Returns the promised amount, which is less if less is `refundable`.
    """
    bound = await refundable(connection, booking=booking, keep_minor=keep_minor)
    currency = amount.currency_code
    amount = Money(min(amount.amount_minor, bound.amount_minor), currency)
    missing = amount.amount_minor
    for payment in reversed(await _payments(connection, booking)):
        part = min(missing, payment.refundable.amount_minor)
        if part > 0 and payment.refundable.currency_code == currency:
            booking = await _promise(
                connection, booking, payment.payment_id, Money(part, currency), reason, now
            )
            missing -= part
    return booking, Money(amount.amount_minor - missing, currency)


async def refund_payment(
    connection: AsyncConnection, *, booking: Booking, payment_id: UUID, reason: str, now: datetime
) -> Booking:
    """Promises a refund of all that is refundable of one payment of a locked booking."""
    for payment in await _payments(connection, booking):
        if payment.payment_id == payment_id and payment.refundable.amount_minor > 0:
            return await _promise(connection, booking, payment_id, payment.refundable, reason, now)
    return booking


async def find(connection: AsyncConnection, *, refund_id: UUID) -> Refund:
    """A promised refund. Raises REFUND_NOT_FOUND."""
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
    """Records a processed refund, including one that staff made. False if it is already recorded."""
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


async def updated(
    connection: AsyncConnection, *, booking: Booking, refund: Refund, now: datetime
) -> bool:
    """Records a refund's state other than PROCESSED. False if it is already recorded.

    One that this service did not promise is inserted while it is pending.
    """
    if refund.status is RefundStatus.PENDING:
        inserted = await connection.execute(
            postgresql.insert(booking_refunds)
            .values(**_columns(booking, refund, now))
            .on_conflict_do_nothing()
        )
        return inserted.rowcount == 1
    changed = await connection.execute(
        sa.update(booking_refunds)
        .where(booking_refunds.c.refund_id == refund.refund_id)
        .where(booking_refunds.c.status != refund.status)
        .values(status=refund.status, update_time=now)
    )
    return changed.rowcount == 1


async def set_disputed(connection: AsyncConnection, *, payment_id: UUID, amount: Money) -> None:
    """Records what disputes have taken of a payment."""
    await connection.execute(
        sa.update(booking_payments)
        .where(booking_payments.c.payment_id == payment_id)
        .where(booking_payments.c.currency_code == amount.currency_code)
        .values(disputed_minor=amount.amount_minor)
    )


async def is_refunded(connection: AsyncConnection, *, payment_id: UUID) -> bool:
    """Whether the whole captured amount of a payment has been refunded."""
    captured_minor = sa.select(booking_payments.c.captured_minor).where(
        booking_payments.c.payment_id == payment_id
    )
    refunded_minor = (
        sa.select(sa.cast(sa.func.sum(booking_refunds.c.amount_minor), sa.BigInteger))
        .where(booking_refunds.c.payment_id == payment_id)
        .where(booking_refunds.c.status == RefundStatus.PROCESSED)
    )
    return bool(
        await connection.scalar(
            sa.select(captured_minor.scalar_subquery() <= refunded_minor.scalar_subquery())
        )
    )


async def lower(
    connection: AsyncConnection, *, refund_id: UUID, amount: Money, now: datetime
) -> None:
    """Lowers a promised refund to `amount`, or cancels it if that is not positive."""
    is_possible = amount.amount_minor > 0
    await connection.execute(
        sa.update(booking_refunds)
        .where(booking_refunds.c.refund_id == refund_id)
        .values(
            {"amount_minor": amount.amount_minor, "update_time": now}
            if is_possible
            else {"status": RefundStatus.CANCELLED, "update_time": now, "check_time": None}
        )
    )


async def _payments(connection: AsyncConnection, booking: Booking) -> Sequence[CapturedPayment]:
    """A booking's captured payments, oldest first."""
    rows = await connection.execute(
        sa.select(
            booking_payments.c.payment_id,
            booking_payments.c.currency_code,
            sa.func.greatest(
                booking_payments.c.captured_minor
                - booking_payments.c.disputed_minor
                - sa.func.coalesce(_promised(), 0),
                0,
            ).label("refundable"),
        )
        .where(booking_payments.c.booking_id == booking.booking_id)
        .order_by(booking_payments.c.create_time, booking_payments.c.payment_id)
    )
    return [
        CapturedPayment(row.payment_id, Money(row.refundable, row.currency_code)) for row in rows
    ]


def _promised() -> sa.ScalarSelect[int]:
    return (
        sa.select(sa.cast(sa.func.sum(booking_refunds.c.amount_minor), sa.BigInteger))
        .where(booking_refunds.c.payment_id == booking_payments.c.payment_id)
        .where(booking_refunds.c.status != RefundStatus.CANCELLED)
        .scalar_subquery()
    )


async def _promise(
    connection: AsyncConnection,
    booking: Booking,
    payment_id: UUID,
    amount: Money,
    reason: str,
    now: datetime,
) -> Booking:
    refund = Refund(new_id(), payment_id, amount, RefundStatus.PENDING, reason)
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
