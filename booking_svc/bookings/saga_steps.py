"""What bookings owe to the other services, as durable steps.

A step is written in the transaction that makes it necessary and deleted in the one that
records its outcome, so a crash loses none. Who takes them is steps.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings.tables import booking_steps


class StepKind(StrEnum):
    """What a booking can owe, and what the step's subject is."""

    # The payment that was captured: sell the places, or give the money back.
    CONFIRM = "CONFIRM"
    # The reservation that the booking needs no longer: free its places.
    RELEASE = "RELEASE"
    # The payment that nobody must pay any more.
    VOID = "VOID"
    # The refund that payment_svc must carry out.
    REFUND = "REFUND"
    # The change whose places are to be had for the booking's.
    EXCHANGE = "EXCHANGE"


@dataclass(frozen=True, slots=True)
class Step:
    booking_id: UUID
    kind: StepKind
    subject_id: UUID
    # Of a reservation; None for what is no reservation.
    event_id: UUID | None
    attempts: int
    # The call that made it necessary (mesh.rpc.call.origin).
    origin: str = ""


async def enqueue(
    connection: AsyncConnection,
    booking_id: UUID,
    kind: StepKind,
    subject_id: UUID,
    *,
    now: datetime,
    event_id: UUID | None = None,
    due_in: timedelta = timedelta(0),
) -> None:
    """Writes down a step to be taken once this transaction is durable; owing it twice is once."""
    await connection.execute(
        postgresql.insert(booking_steps)
        .values(
            booking_id=booking_id,
            kind=kind,
            subject_id=subject_id,
            event_id=event_id,
            due_time=now + due_in,
            create_time=now,
        )
        .on_conflict_do_nothing()
    )


async def lease(
    connection: AsyncConnection, *, now: datetime, limit: int, lease: timedelta
) -> Sequence[Step]:
    """Takes due steps for one process: nobody else gets them before the lease is over."""
    key = (booking_steps.c.booking_id, booking_steps.c.kind, booking_steps.c.subject_id)
    due = (
        sa.select(*key)
        .where(booking_steps.c.due_time <= now)
        .order_by(booking_steps.c.due_time)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    claimed = await connection.execute(
        sa.update(booking_steps)
        .where(sa.tuple_(*key).in_(due))
        .values(due_time=now + lease, attempts=booking_steps.c.attempts + 1)
        .returning(*key, booking_steps.c.event_id, booking_steps.c.attempts, booking_steps.c.origin)
    )
    return [
        Step(
            row.booking_id,
            StepKind(row.kind),
            row.subject_id,
            row.event_id,
            row.attempts,
            row.origin or "",
        )
        for row in claimed
    ]


async def postpone(connection: AsyncConnection, step: Step, *, until: datetime, error: str) -> None:
    """Makes a step that failed due again later."""
    await connection.execute(
        sa.update(booking_steps).where(*_is(step)).values(due_time=until, last_error=error)
    )


async def done(connection: AsyncConnection, step: Step) -> None:
    """Forgets a step in the transaction that records its outcome."""
    await connection.execute(sa.delete(booking_steps).where(*_is(step)))


async def oldest_due(connection: AsyncConnection) -> datetime | None:
    """Since when the step that waits longest should have been taken; None when nothing is owed.

    In the future while all of them are for later.
    """
    columns = booking_steps.c
    # One that was tried is due again later, but it waits since the beginning.
    since = sa.case((columns.attempts == 0, columns.due_time), else_=columns.create_time)
    oldest: datetime | None = await connection.scalar(sa.select(sa.func.min(since)))
    return oldest


def _is(step: Step) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        booking_steps.c.booking_id == step.booking_id,
        booking_steps.c.kind == step.kind,
        booking_steps.c.subject_id == step.subject_id,
    )
