"""The queue of saga steps: calls to other services that a booking needs.

A step is enqueued in the transaction that makes it necessary and deleted in the one that
records its outcome. step_runner.py runs steps; step_handlers.py has what each does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings.tables import booking_steps, is_urgent_step
from mesh.db.database import Database
from mesh.db.jobs import Backoff, JobQueue
from mesh.db.pipeline import Statement, columns, run_together
from mesh.observability import request_context

_steps = booking_steps.c


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


class Lane(Enum):
    """Steps that are run apart from the others, so that they do not wait for these.

    A customer waits for the URGENT ones, and the places of a paid booking are held only until its
    hold ends. FIRST_CONFIRMATIONS, which are CONFIRM steps before their first attempt, form batches.
    """

    FIRST_CONFIRMATIONS = "FIRST_CONFIRMATIONS"
    URGENT = "URGENT"
    OTHERS = "OTHERS"


URGENT = (StepKind.CONFIRM, StepKind.EXCHANGE)
"""The kinds of urgent steps; the others are what remains to do for bookings that have ended."""

_is_first_confirmation = (_steps.kind == sa.literal_column("'CONFIRM'")) & (_steps.attempts == 0)
_QUEUE = JobQueue(
    booking_steps,
    # An attempt moves due_time.
    waiting_since=sa.case((_steps.attempts == 0, _steps.due_time), else_=_steps.create_time),
    pauses=Backoff(first_seconds=0.5, max_seconds=60),
    lanes={
        Lane.FIRST_CONFIRMATIONS: [is_urgent_step, _is_first_confirmation],
        Lane.URGENT: [is_urgent_step, ~_is_first_confirmation],
        Lane.OTHERS: [~is_urgent_step],
    },
)


@dataclass(frozen=True, slots=True)
class NewStep:
    """A step to enqueue; see Step."""

    booking_id: UUID
    kind: StepKind
    subject_id: UUID
    origin: str
    event_id: UUID | None = None


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
    step = NewStep(booking_id, kind, subject_id, request_context.origin(), event_id)
    await run_together(connection, [enqueueing([step], now=now, due_in=due_in)])


def enqueueing(
    steps: Sequence[NewStep], *, now: datetime, due_in: timedelta = timedelta(0)
) -> Statement:
    """Enqueues steps as `enqueue` does, with the origins of their causes."""
    rows = [
        (step.booking_id, step.kind.value, step.subject_id, step.event_id, step.origin)
        for step in steps
    ]
    return Statement(_ENQUEUE, (now + due_in, now, *columns(rows, 5)))


async def lease(
    connection: AsyncConnection,
    *,
    now: datetime,
    limit: int,
    lease: timedelta,
    lane: Lane | None = None,
) -> Sequence[Step]:
    """Leases due steps to this process, of one lane or of all."""
    rows = await _QUEUE.lease(connection, now=now, until=now + lease, limit=limit, lane=lane)
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
    await run_together(connection, [deleting([step])])


def deleting(steps: Sequence[Step]) -> Statement:
    """Deletes steps as `done` does."""
    rows = [(step.booking_id, step.kind.value, step.subject_id) for step in steps]
    return Statement(_DELETE, columns(rows, 3))


async def finish(database: Database, step: Step) -> None:
    """Deletes a step that has nothing to record."""
    async with database.transaction() as connection:
        await done(connection, step)


oldest_due = _QUEUE.oldest_due
"""When the step that waits longest fell due: in the future when no step is due."""

_ENQUEUE = """
INSERT INTO booking_steps
    (due_time, create_time, booking_id, kind, subject_id, event_id, origin)
SELECT %s::timestamptz, %s::timestamptz, given.*
FROM unnest(%s::uuid[], %s::text[], %s::uuid[], %s::uuid[], %s::text[]) AS given
ON CONFLICT DO NOTHING
"""
_DELETE = """
DELETE FROM booking_steps WHERE (booking_id, kind, subject_id) IN (
    SELECT * FROM unnest(%s::uuid[], %s::text[], %s::uuid[]))
"""
