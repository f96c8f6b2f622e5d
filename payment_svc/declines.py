"""Declined attempts to pay, each stored once. No money moves with them.

How one changes the payment's state is payment_reports.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.ids import new_id
from payment_svc.payments import Payment
from payment_svc.providers.base import Failed
from payment_svc.tables import declined_attempts

_MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class DeclinedAttempt:
    attempt_id: UUID
    failure_code: str
    decline_time: datetime


async def record(
    connection: AsyncConnection, *, payment: Payment, report: Failed, now: datetime
) -> UUID | None:
    """Stores a declined attempt and returns its id. None when it is stored already."""
    # A webhook and a check report the same attempt at different times.
    reference = report.attempt_reference or f"{payment.payment_id}:{report.event_time.isoformat()}"
    attempt_id: UUID | None = await connection.scalar(
        postgresql.insert(declined_attempts)
        .values(
            attempt_id=new_id(),
            payment_id=payment.payment_id,
            provider=payment.order.provider,
            provider_reference=reference,
            failure_code=report.failure_code,
            decline_time=report.event_time,
            create_time=now,
        )
        .on_conflict_do_nothing(
            index_elements=[declined_attempts.c.provider, declined_attempts.c.provider_reference]
        )
        .returning(declined_attempts.c.attempt_id)
    )
    return attempt_id


async def of_payment(connection: AsyncConnection, *, payment_id: UUID) -> Sequence[DeclinedAttempt]:
    """The last declined attempts of a payment, oldest first."""
    rows = await connection.execute(
        sa.select(declined_attempts)
        .where(declined_attempts.c.payment_id == payment_id)
        .order_by(declined_attempts.c.attempt_id.desc())
        .limit(_MAX_SHOWN)
    )
    return [
        DeclinedAttempt(row.attempt_id, row.failure_code, row.decline_time)
        for row in reversed(rows.all())
    ]
