"""The queue of saga steps: calls to other services that a booking needs.

A step is enqueued in the transaction that makes it necessary and deleted in the one that
records its outcome. step_runner.py runs steps; step_handlers.py has what each does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings.tables import booking_steps, is_urgent_step
from mesh.db.jobs import Backoff, JobQueue

_steps = booking_steps.c
_QUEUE = JobQueue(
    booking_steps,
    # An attempt moves due_time.
    waiting_since=sa.case((_steps.attempts == 0, _steps.due_time), else_=_steps.create_time),
    pauses=Backoff(first_seconds=0.5, max_seconds=60),
)


class StepKind(StrEnum):
    """The comments name each step's subject."""

    # The captured payment: commit the reservation, or refund the payment.
    CONFIRM = "CONFIRM"
    # The reservation that the booking no longer needs: release it.
    RELEASE = "RELEASE"
    # The payment that must not be paid any more: void it.
    VOID = "VOID"
    # The refund that payment_svc must carry out.
    REFUND = "REFUND"
    # The change whose places replace the booking's: exchange the reservations.
    EXCHANGE = "EXCHANGE"


URGENT = (StepKind.CONFIRM, StepKind.EXCHANGE)
"""A customer waits for these. The places of a paid booking are held only until its hold ends."""


@dataclass(frozen=True, slots=True)
class Step:
    booking_id: UUID
    kind: StepKind
    subject_id: UUID
    # The event of a reservation; None for other subjects.
    event_id: UUID | None
    attempts: int
    lease_end: datetime
    # The call that enqueued it (mesh.observability.request_context).
    origin: str

    @property
    def key(self) -> tuple[UUID, StepKind, UUID]:
        return self.booking_id, self.kind, self.subject_id


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
    """Enqueues a step in the caller's transaction. A step that is enqueued already stays as it is."""
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
    connection: AsyncConnection,
    *,
    now: datetime,
    limit: int,
    lease: timedelta,
    is_urgent: bool | None = None,
) -> Sequence[Step]:
    """Leases due steps to this process; only urgent ones or only others, if asked for."""
    kinds = {None: (), True: (is_urgent_step,), False: (~is_urgent_step,)}
    rows = await _QUEUE.lease(
        connection, now=now, until=now + lease, limit=limit, where=kinds[is_urgent]
    )
    return [
        Step(
            row.booking_id,
            StepKind(row.kind),
            row.subject_id,
            row.event_id,
            row.attempts,
            row.due_time,
            row.origin or "",
        )
        for row in rows
    ]


async def postpone(
    connection: AsyncConnection, step: Step, *, until: datetime | None, error: str
) -> None:
    """Makes a leased step due again."""
    await _QUEUE.reschedule(
        connection, *step.key, due_time=until, lease_end=step.lease_end, last_error=error
    )


async def retry(connection: AsyncConnection, step: Step, *, now: datetime, error: str) -> None:
    """Makes a step that failed due again after a growing pause."""
    until = _QUEUE.retry_time(step.attempts, now=now)
    await postpone(connection, step, until=until, error=error)


async def done(connection: AsyncConnection, step: Step) -> None:
    """Deletes a step in the transaction that records its outcome."""
    await _QUEUE.delete(connection, *step.key)


oldest_due = _QUEUE.oldest_due
"""When the step that waits longest fell due: in the future when no step is due."""
