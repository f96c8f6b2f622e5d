"""Cancelling all bookings of an event that does not take place, however many there are.

A batch is a transaction, so a process may die at any time and another goes on. What each
booking is owed is cancelling.py's, and its steps carry it out.
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

_INTERVAL_SECONDS = 0.5
# A booking that was under way when the event was cancelled may come up late; so may the
# payment of one that had expired. The longer ago, the rarer the look.
_LOOKS_AGAIN = timedelta(minutes=1)
_LOOKS_IN_AN_AGE = 100
_RETRY = timedelta(seconds=1)


async def progress(connection: AsyncConnection, *, event_id: UUID) -> Progress:
    """Raises EVENT_NOT_FOUND, or EVENT_STATE_INVALID when the event is not cancelled."""
    event = await events.get(connection, event_id=event_id)
    found = await connection.execute(
        sa.select(event_cancellations).where(event_cancellations.c.event_id == event_id)
    )
    row = found.one_or_none()
    if row is None:
        raise DomainError(Reason.EVENT_STATE_INVALID, "the event is not cancelled")
    left = await connection.scalar(
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
    nothing = (0, 0)
    return Progress(
        event_id=event_id,
        reason=row.reason,
        bookings_found=row.bookings_found,
        bookings_cancelled=row.bookings_cancelled,
        bookings_left=left or 0,
        refunds_pending=refunds.get("PENDING", nothing)[0],
        refunds_processed=refunds.get("PROCESSED", nothing)[0],
        refunds_failed=refunds.get("FAILED", nothing)[0],
        refunded=Money(
            sum(refunds.get(status, nothing)[1] for status in ("PENDING", "PROCESSED")),
            event.currency_code,
        ),
        start_time=row.start_time,
        finish_time=row.finish_time,
    )


async def go_on(connection: AsyncConnection, *, now: datetime) -> int | None:
    """Cancels one batch of one event. Returns how many, or None when nothing is due.

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
    if not batch.left:
        next_time = now + max(_LOOKS_AGAIN, (now - row.start_time) / _LOOKS_IN_AN_AGE)
    elif not batch.cancelled:
        # Each is being worked on by somebody.
        next_time = now + _RETRY
    finish_time = row.finish_time if batch.left else row.finish_time or now
    await connection.execute(
        sa.update(event_cancellations)
        .where(table.event_id == row.event_id)
        .values(
            bookings_cancelled=table.bookings_cancelled + batch.cancelled,
            # Counted once, by the first batch that cancels any.
            bookings_found=sa.case(
                (table.bookings_cancelled == 0, batch.cancelled + batch.left),
                else_=table.bookings_found,
            ),
            next_time=next_time,
            finish_time=finish_time,
        )
    )
    return batch.cancelled


async def run_once(database: Database, clock: Clock, on_steps_enqueued: Callable[[], None]) -> None:
    """One turn of the background loop."""
    async with database.transaction() as connection:
        cancelled = await go_on(connection, now=clock())
    if cancelled:
        on_steps_enqueued()
    elif cancelled is None:
        await asyncio.sleep(_INTERVAL_SECONDS)
