"""Refunds: stored when requested, then carried out in the background until completed.

The calls to the provider are in provider_calls.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.jobs import Backoff, JobQueue
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id
from mesh.money import Money
from payment_svc import captures, ledger, outbox, payments
from payment_svc.captures import Capture, Verdict
from payment_svc.payments import Payment
from payment_svc.providers.amounts import up_to_step
from payment_svc.providers.base import RefundOrder, RefundProcessed, RefundRefused
from payment_svc.tables import captures as captures_table
from payment_svc.tables import payments as payments_table
from payment_svc.tables import refunds

DEFAULT_REASON = "customer_request"

StepMinor = Callable[[Payment], int]
"""The smallest amount, in minor units, that the provider of a payment can move."""

# Longer than a call to a provider may take.
_LEASE = timedelta(seconds=15)
_QUEUE = JobQueue(refunds, pauses=Backoff(first_seconds=1, max_seconds=300))

oldest_due = _QUEUE.oldest_due
"""When the oldest refund that is not processed was requested."""


class Status(StrEnum):
    PENDING = "PENDING"
    PROCESSED = "PROCESSED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund of a payment, in part or in full."""

    refund_id: UUID
    payment_id: UUID
    amount: Money
    status: Status
    reason: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class DueRefund:
    """A refund that is due now, and the number of this attempt."""

    provider: str
    order: RefundOrder
    attempt: int
    lease_end: datetime


async def request(
    connection: AsyncConnection,
    *,
    payment_id: UUID,
    amount: Money | None,
    reason: str,
    refund_id: UUID | None,
    step_minor: StepMinor,
    now: datetime,
) -> Refund:
    """Stores a refund of a paid payment; without an amount, of everything that remains.

    An amount between two steps of the provider is rounded up. A refund_id that is stored
    already returns its refund. Raises PAYMENT_NOT_FOUND, VALIDATION_FAILED, or
    PAYMENT_STATE_INVALID when nothing was captured or the amount exceeds what remains.
    """
    payment = await payments.lock(connection, payment_id=payment_id)
    if refund_id is not None:
        stored = await find_of_payment(connection, payment_id=payment_id, refund_id=refund_id)
        if stored is not None:
            return stored
    if amount is not None:
        _check_amount(amount, payment)
    capture = await captures.find_accepted(connection, payment_id=payment_id)
    if capture is None:
        raise DomainError(
            Reason.PAYMENT_STATE_INVALID,
            "nothing was captured that could be refunded",
            status=payment.status,
        )
    if amount is None:
        remaining_minor = capture.amount.amount_minor - capture.refunding.amount_minor
        amount = Money(remaining_minor, capture.amount.currency_code)
    else:
        amount = up_to_step(amount, step_minor(payment))
    if amount.amount_minor == 0 or not await captures.reserve_refund(
        connection, capture_id=capture.capture_id, amount=amount
    ):
        raise DomainError(
            Reason.PAYMENT_STATE_INVALID,
            "`amount` exceeds what can still be refunded",
            status=payment.status,
            captured=capture.amount.amount_minor,
            refunded=capture.refunding.amount_minor,
            requested=amount.amount_minor,
        )
    return await _insert(
        connection, refund_id or new_id(), capture, amount, reason or DEFAULT_REASON, now
    )


async def refund_capture(connection: AsyncConnection, *, capture: Capture, now: datetime) -> Refund:
    """Stores a refund of a whole capture that does not pay its payment."""
    if not await captures.reserve_refund(
        connection, capture_id=capture.capture_id, amount=capture.amount
    ):
        raise RuntimeError(f"capture {capture.capture_id} has a refund already")
    reason = f"capture_{capture.verdict.lower()}"
    return await _insert(connection, new_id(), capture, capture.amount, reason, now)


async def find(connection: AsyncConnection, *, refund_id: UUID, owner: UUID | None) -> Refund:
    """A refund, of the owner's payment if one is given. Raises REFUND_NOT_FOUND."""
    statement = (
        sa.select(refunds)
        .join(payments_table, payments_table.c.payment_id == refunds.c.payment_id)
        .where(refunds.c.refund_id == refund_id)
    )
    if owner is not None:
        statement = statement.where(payments_table.c.customer_id == owner)
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise DomainError(Reason.REFUND_NOT_FOUND, "no such refund", refund_id=refund_id)
    return _from_row(row)


async def find_of_payment(
    connection: AsyncConnection, *, payment_id: UUID, refund_id: UUID
) -> Refund | None:
    """A refund of this payment, if there is one."""
    row = (
        await connection.execute(
            sa.select(refunds)
            .where(refunds.c.refund_id == refund_id)
            .where(refunds.c.payment_id == payment_id)
        )
    ).one_or_none()
    return None if row is None else _from_row(row)


async def lease_due(
    connection: AsyncConnection, *, now: datetime, limit: int
) -> Sequence[DueRefund]:
    """Leases due refunds to this process."""
    rows = await _QUEUE.lease(
        connection,
        now=now,
        until=now + _LEASE,
        limit=limit,
        joined_on=[
            refunds.c.capture_id == captures_table.c.capture_id,
            refunds.c.payment_id == payments_table.c.payment_id,
        ],
        returning=[
            *refunds.c,
            captures_table.c.provider_reference.label("capture_reference"),
            payments_table.c.provider,
            payments_table.c.provider_reference.label("session_reference"),
        ],
    )
    return [
        DueRefund(
            provider=row.provider,
            order=RefundOrder(
                refund_id=row.refund_id,
                payment_id=row.payment_id,
                session_reference=row.session_reference,
                capture_reference=row.capture_reference,
                amount=Money(row.amount_minor, row.currency_code),
                refusals=row.refusals,
                attempt=row.attempts,
            ),
            attempt=row.attempts,
            lease_end=row.due_time,
        )
        for row in rows
    ]


async def postpone(connection: AsyncConnection, *, due: DueRefund, now: datetime) -> None:
    """Makes a refund due again later: the provider gave no answer, or none that is final."""
    await _QUEUE.reschedule(
        connection,
        due.order.refund_id,
        due_time=_QUEUE.retry_time(due.attempt, now=now),
        lease_end=due.lease_end,
        update_time=now,
    )


async def complete(
    connection: AsyncConnection, *, payment: Payment, report: RefundProcessed, now: datetime
) -> bool:
    """PENDING or FAILED → PROCESSED, with its ledger entry and event. The payment is locked.

    False when it is PROCESSED already.
    """
    row = (
        await connection.execute(
            sa.update(refunds)
            .where(refunds.c.refund_id == report.refund_id)
            .where(refunds.c.status != Status.PROCESSED)
            .values(
                status=Status.PROCESSED,
                provider_reference=report.refund_reference,
                event_time=report.event_time,
                failure_code=None,
                due_time=None,
                update_time=now,
            )
            .returning(refunds.c.refund_id, refunds.c.capture_id)
        )
    ).one_or_none()
    if row is None:
        return False
    verdict = await captures.record_refunded(
        connection, capture_id=row.capture_id, amount=report.amount
    )
    await ledger.post_refund(
        connection,
        payment=payment,
        refund_id=row.refund_id,
        amount=report.amount,
        is_accepted=verdict is Verdict.ACCEPTED,
        now=now,
    )
    # The refund of another capture changes neither the payment nor the booking.
    if verdict is Verdict.ACCEPTED:
        refunded = await payments.record_refund(
            connection, payment_id=payment.payment_id, amount=report.amount, now=now
        )
        await outbox.refund_processed(
            connection, refunded, refund_id=row.refund_id, amount=report.amount, now=now
        )
    return True


async def record_refusal(
    connection: AsyncConnection, *, report: RefundRefused, now: datetime
) -> bool:
    """PENDING → FAILED. It is retried under a new key, after a growing pause."""
    refused = await connection.execute(
        sa.update(refunds)
        .where(refunds.c.refund_id == report.refund_id)
        .where(refunds.c.status != Status.PROCESSED)
        # A repeated refusal must not change the key of an attempt that is in progress.
        .where(refunds.c.refusals == report.refusals)
        .values(
            status=Status.FAILED,
            refusals=report.refusals + 1,
            failure_code=report.failure_code,
            due_time=_QUEUE.retry_time(report.refusals + 1, now=now),
            update_time=now,
        )
    )
    return refused.rowcount == 1


def _check_amount(amount: Money, payment: Payment) -> None:
    if amount.amount_minor <= 0:
        raise invalid(FieldViolation("amount.amount_minor", "must be more than 0"))
    if amount.currency_code != payment.amount.currency_code:
        raise invalid(
            FieldViolation(
                "amount.currency_code",
                f"must be {payment.amount.currency_code}, the currency of the payment",
            )
        )


async def _insert(
    connection: AsyncConnection,
    refund_id: UUID,
    capture: Capture,
    amount: Money,
    reason: str,
    now: datetime,
) -> Refund:
    row = (
        await connection.execute(
            sa.insert(refunds)
            .values(
                refund_id=refund_id,
                payment_id=capture.payment_id,
                capture_id=capture.capture_id,
                status=Status.PENDING,
                amount_minor=amount.amount_minor,
                currency_code=amount.currency_code,
                reason=reason,
                due_time=now,
                create_time=now,
                update_time=now,
            )
            .returning(refunds)
        )
    ).one()
    return _from_row(row)


def _from_row(row: sa.Row[Any]) -> Refund:
    return Refund(
        refund_id=row.refund_id,
        payment_id=row.payment_id,
        amount=Money(row.amount_minor, row.currency_code),
        status=Status(row.status),
        reason=row.reason,
        create_time=row.create_time,
    )
