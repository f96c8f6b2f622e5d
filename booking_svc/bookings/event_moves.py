"""Notifies the customers of an event that it moved: a domain event for each live booking.

In batches, each one transaction, so that any process can continue after a crash. Moves are recorded
by catalogue/event_moves.py; mails and webhooks follow from the domain events.
"""

import asyncio
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import bookings, outbox, state_machine
from booking_svc.bookings.outbox import EventMoved
from booking_svc.bookings.tables import bookings as bookings_table
from booking_svc.catalogue.event_moves import Schedule, refund_end
from booking_svc.catalogue.tables import event_moves
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.ids import derived_id, first_id

BATCH = 50

_INTERVAL_SECONDS = 2.0
# A booking that was being placed when the event moved may be inserted later. One more pass finds
# it; consumers know the events of the first pass by their keys.
SECOND_PASS = timedelta(minutes=1)
_LONGEST_PLACING = timedelta(minutes=15)


async def notify_batch(connection: AsyncConnection, *, now: datetime) -> int | None:
    """Writes the domain events of one batch. Returns how many, or None when no move is due.

    Safe in several processes at once.
    """
    moves, table = event_moves.c, bookings_table.c
    due = await connection.execute(
        sa.select(event_moves)
        .where(moves.next_time <= now)
        .order_by(moves.next_time)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    move = due.one_or_none()
    if move is None:
        return None
    query = (
        sa.select(table.booking_id)
        .where(table.event_id == move.event_id, table.status.in_(state_machine.LIVE))
        .where(table.create_time < move.move_time)
        .order_by(table.booking_id)
        .limit(BATCH)
    )
    if move.notified_booking_id is not None:
        query = query.where(table.booking_id > move.notified_booking_id)
    booking_ids = (await connection.scalars(query)).all()
    before, after = Schedule.from_json(move.before), Schedule.from_json(move.after)
    until = refund_end(move.move_time, after.start_time)
    for booking_id in booking_ids:
        booking = await bookings.get(connection, booking_id=booking_id)
        change = EventMoved(before, after, until, derived_id(move.move_id, of=booking_id))
        await outbox.append(connection, booking=booking, change=change, now=now)
    second_pass = move.move_time + SECOND_PASS
    if len(booking_ids) == BATCH:
        progress = {"next_time": now, "notified_booking_id": booking_ids[-1]}
    elif move.next_time < second_pass:
        progress = {
            "next_time": second_pass,
            "notified_booking_id": first_id(move.move_time - _LONGEST_PLACING),
        }
    else:
        progress = {"next_time": None, "notified_booking_id": None}
    await connection.execute(
        sa.update(event_moves).where(moves.move_id == move.move_id).values(**progress)
    )
    return len(booking_ids)


async def run_once(database: Database, clock: Clock) -> None:
    """One turn of the background loop."""
    async with database.transaction() as connection:
        notified = await notify_batch(connection, now=clock())
    if notified is None:
        await asyncio.sleep(_INTERVAL_SECONDS)
