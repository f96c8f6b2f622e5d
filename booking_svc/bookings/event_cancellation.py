"""Cancellation of all bookings of a cancelled event, in batches.

Each batch is one transaction, so that any process can continue after a crash. How a booking is
cancelled and refunded is cancellation.py's.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import cancellation, state_machine
from booking_svc.bookings.tables import booking_refunds, bookings
from booking_svc.catalogue import events
from booking_svc.catalogue.event_cancellations import Progress
from booking_svc.catalogue.tables import event_cancellations
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.money import Money

BATCH = 50

_INTERVAL_SECONDS = 2.0
# A booking that was in flight when the event was cancelled may be inserted later, and an expired
# one confirmed by a late payment. The pause until the next check grows with the age.
_LEAST_PAUSE = timedelta(minutes=1)
_CHECKS_PER_AGE = 100
_RETRY = timedelta(seconds=1)


async def progress(connection: AsyncConnection, *, event_id: UUID) -> Progress:
    """Raises EVENT_NOT_FOUND, or EVENT_STATE_INVALID if the event is not cancelled."""
    event = await events.get(connection, event_id=event_id)
    row = (
        await connection.execute(
            sa.select(event_cancellations).where(event_cancellations.c.event_id == event_id)
        )
    ).one_or_none()
    if row is None:
        raise DomainError(Reason.EVENT_STATE_INVALID, "the event is not cancelled")
    remaining = await connection.scalar(
        sa.select(sa.func.count())
        .select_from(bookings)
        .where(bookings.c.event_id == event_id, bookings.c.status.in_(state_machine.LIVE))
    )
    refunds = {
        status: (count, int(amount))
        for status, count, amount in await connection.execute(
            sa.select(
                booking_refunds.c.status,
                sa.func.count(),
                sa.func.sum(booking_refunds.c.amount_minor),
            )
            .join(bookings, bookings.c.booking_id == booking_refunds.c.booking_id)
            .where(bookings.c.event_id == event_id)
            .where(booking_refunds.c.create_time >= row.start_time)
            .group_by(booking_refunds.c.status)
        )
    }
    none = (0, 0)
    return Progress(
        event_id=event_id,
        reason=row.reason,
        bookings_found=row.bookings_found,
        bookings_cancelled=row.bookings_cancelled,
        bookings_left=remaining or 0,
        refunds_pending=refunds.get("PENDING", none)[0],
        refunds_processed=refunds.get("PROCESSED", none)[0],
        refunds_failed=refunds.get("FAILED", none)[0],
        refunded=Money(
            sum(refunds.get(status, none)[1] for status in ("PENDING", "PROCESSED")),
            event.currency_code,
        ),
        start_time=row.start_time,
        finish_time=row.finish_time,
    )


async def cancel_batch(connection: AsyncConnection, *, now: datetime) -> int | None:
    """Cancels one batch of one event. Returns how many bookings, or None when no event is due.

    Safe in several processes at once.
    """
    table = event_cancellations.c
    due = await connection.execute(
        sa.select(table.event_id, table.reason, table.start_time, table.finish_time)
        .where(table.next_time <= now)
        .order_by(table.next_time)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = due.one_or_none()
    if row is None:
        return None
    batch = await cancellation.cancel_for_event(
        connection, event_id=row.event_id, reason=row.reason, limit=BATCH, now=now
    )
    next_time = now
    if not batch.remaining:
        next_time = now + max(_LEAST_PAUSE, (now - row.start_time) / _CHECKS_PER_AGE)
    elif not batch.cancelled:
        # All of them are locked or being exchanged.
        next_time = now + _RETRY
    finish_time = row.finish_time if batch.remaining else row.finish_time or now
    await connection.execute(
        sa.update(event_cancellations)
        .where(table.event_id == row.event_id)
        .values(
            bookings_cancelled=table.bookings_cancelled + batch.cancelled,
            # Grows with those that were placed or paid at the same time.
            bookings_found=sa.func.greatest(
                table.bookings_found,
                table.bookings_cancelled + batch.cancelled + batch.remaining,
            ),
            next_time=next_time,
            finish_time=finish_time,
        )
    )
    return batch.cancelled


async def run_once(database: Database, clock: Clock, on_steps_enqueued: Callable[[], None]) -> None:
    """One turn of the background loop."""
    async with database.transaction() as connection:
        cancelled = await cancel_batch(connection, now=clock())
    if cancelled:
        on_steps_enqueued()
    elif cancelled is None:
        await asyncio.sleep(_INTERVAL_SECONDS)
