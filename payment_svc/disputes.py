"""Disputes: captures that the customer's bank contests. Stored and shown to staff.

An open dispute limits refunds. When it is lost, ledger.py posts its amount. An inquiry of the
bank does neither; customers do not see it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.ids import new_id
from mesh.money import Money
from payment_svc import captures, ledger, outbox, refunds
from payment_svc.payments import Payment
from payment_svc.providers.base import Disputed, DisputeStatus
from payment_svc.tables import disputes

MOVES: dict[DisputeStatus, frozenset[DisputeStatus]] = {
    DisputeStatus.INQUIRY: frozenset(
        {
            DisputeStatus.INQUIRY_CLOSED,
            DisputeStatus.OPEN,
            DisputeStatus.WON,
            DisputeStatus.LOST,
        }
    ),
    # A dispute can still follow.
    DisputeStatus.INQUIRY_CLOSED: frozenset(
        {DisputeStatus.OPEN, DisputeStatus.WON, DisputeStatus.LOST}
    ),
    DisputeStatus.OPEN: frozenset({DisputeStatus.WON, DisputeStatus.LOST}),
    DisputeStatus.WON: frozenset(),
    DisputeStatus.LOST: frozenset(),
}

_INQUIRIES = frozenset({DisputeStatus.INQUIRY, DisputeStatus.INQUIRY_CLOSED})
# The bank has the money.
_TAKEN = (DisputeStatus.OPEN, DisputeStatus.LOST)

MAX_PER_PAYMENT = 50

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Dispute:
    dispute_id: UUID
    payment_id: UUID
    status: DisputeStatus
    amount: Money
    reason: str
    create_time: datetime
    update_time: datetime


async def record(
    connection: AsyncConnection, *, payment: Payment, report: Disputed, now: datetime
) -> bool:
    """Stores a dispute, or moves it along MOVES. False when nothing changed."""
    inserted = await connection.execute(
        postgresql.insert(disputes)
        .values(
            dispute_id=new_id(),
            payment_id=payment.payment_id,
            provider=payment.order.provider,
            provider_reference=report.dispute_reference,
            capture_reference=report.capture_reference,
            status=report.status,
            amount_minor=report.amount.amount_minor,
            currency_code=report.amount.currency_code,
            reason=report.reason,
            create_time=now,
            update_time=now,
        )
        .on_conflict_do_nothing(index_elements=["provider", "provider_reference"])
    )
    before = [state for state, moves in MOVES.items() if report.status in moves]
    moved = await connection.execute(
        sa.update(disputes)
        .where(disputes.c.provider == payment.order.provider)
        .where(disputes.c.provider_reference == report.dispute_reference)
        .where(disputes.c.status.in_(before))
        .values(status=report.status, update_time=now)
    )
    if inserted.rowcount == 0 and moved.rowcount == 0:
        return False
    dispute = await _find(connection, payment.order.provider, report.dispute_reference)
    if dispute.status in _INQUIRIES:
        return True
    capture = await captures.set_disputed(
        connection,
        provider=payment.order.provider,
        reference=report.capture_reference,
        taken=_TAKEN,
    )
    if dispute.status is DisputeStatus.LOST:
        await ledger.post_dispute_loss(
            connection,
            payment=payment,
            dispute_id=dispute.dispute_id,
            amount=dispute.amount,
            now=now,
        )
    await outbox.disputed(
        connection,
        payment,
        dispute_id=dispute.dispute_id,
        status=dispute.status,
        amount=dispute.amount,
        reason=dispute.reason,
        disputed=await _disputed(connection, payment),
        now=now,
    )
    if capture is not None:
        await refunds.fit(connection, payment=payment, capture_id=capture.capture_id, now=now)
    _log.error(
        "a payment is disputed",
        extra={
            "payment_id": str(payment.payment_id),
            "dispute": report.dispute_reference,
            "status": dispute.status,
        },
    )
    return True


async def of_payment(connection: AsyncConnection, *, payment_id: UUID) -> Sequence[Dispute]:
    """The disputes of a payment, oldest first."""
    rows = await connection.execute(
        sa.select(disputes)
        .where(disputes.c.payment_id == payment_id)
        .order_by(disputes.c.dispute_id)
        .limit(MAX_PER_PAYMENT)
    )
    return [_from_row(row) for row in rows]


async def _disputed(connection: AsyncConnection, payment: Payment) -> Money:
    """What disputes have taken of the capture that paid a payment."""
    capture = await captures.find_accepted(connection, payment_id=payment.payment_id)
    return Money(0, payment.amount.currency_code) if capture is None else capture.disputed


async def _find(connection: AsyncConnection, provider: str, reference: str) -> Dispute:
    row = (
        await connection.execute(
            sa.select(disputes)
            .where(disputes.c.provider == provider)
            .where(disputes.c.provider_reference == reference)
        )
    ).one()
    return _from_row(row)


def _from_row(row: sa.Row[Any]) -> Dispute:
    return Dispute(
        dispute_id=row.dispute_id,
        payment_id=row.payment_id,
        status=DisputeStatus(row.status),
        amount=Money(row.amount_minor, row.currency_code),
        reason=row.reason,
        create_time=row.create_time,
        update_time=row.update_time,
    )
