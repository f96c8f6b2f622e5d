"""CONFIRMED → COMPLETED for bookings whose event is over.

Bookings of a cancelled event are event_cancellation.py's. One process at a time runs the loop.
"""

import asyncio
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import bookings, state_machine
from booking_svc.bookings.bookings import Status
from booking_svc.bookings.tables import bookings as bookings_table
from booking_svc.catalogue.events import StaffStatus
from booking_svc.catalogue.tables import events
from mesh.clock import Clock
from mesh.db.database import Database

INTERVAL_SECONDS = 15.0
_BATCH = 100
# Of an event that has a start and no end.
_LENGTH = timedelta(hours=24)


async def complete(connection: AsyncConnection, *, now: datetime, limit: int) -> int:
    """Completes up to `limit` bookings and returns how many. Skips locked bookings."""
    end = sa.func.coalesce(events.c.end_time, events.c.start_time + _LENGTH)
    over = await connection.execute(
        sa.select(bookings_table.c.booking_id)
        .join(events, events.c.event_id == bookings_table.c.event_id)
        .where(bookings_table.c.status == Status.CONFIRMED, end <= now)
        .where(events.c.status != StaffStatus.CANCELLED)
        .limit(limit)
        .with_for_update(of=bookings_table, skip_locked=True)
    )
    booking_ids = over.scalars().all()
    for booking_id in booking_ids:
        booking = await bookings.get(connection, booking_id=booking_id)
        await state_machine.move(
            connection, booking=booking, to=Status.COMPLETED, reason="the event is over", now=now
        )
    return len(booking_ids)


async def run_once(database: Database, clock: Clock) -> None:
    """One turn of the background loop."""
    async with database.transaction() as connection:
        completed = await complete(connection, now=clock(), limit=_BATCH)
    if completed < _BATCH:
        await asyncio.sleep(INTERVAL_SECONDS)
