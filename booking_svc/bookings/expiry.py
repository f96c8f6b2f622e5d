"""Ends unpaid bookings and unpaid changes whose hold has expired.

stock_svc frees the places of an expired reservation by itself.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import bookings, modification_store, state_machine
from booking_svc.bookings.bookings import ChangeState, PaymentStatus, Status
from booking_svc.bookings.tables import booking_changes
from booking_svc.bookings.tables import bookings as bookings_table
from mesh.clock import Clock
from mesh.db.database import Database

INTERVAL_SECONDS = 3.0
_BATCH = 100


async def sweep(database: Database, clock: Clock) -> int:
    """Expires a batch of bookings and a batch of changes. Returns the number of rows it read.

    Safe in several processes at once.
    """
    now = clock()
    bookings_read = await _expire_each(database, _lapsed_bookings(now), _expire_booking, now)
    return bookings_read + await _expire_each(database, _lapsed_changes(now), _expire_change, now)


async def run_once(database: Database, clock: Clock, on_steps_enqueued: Callable[[], None]) -> None:
    """One turn of the background loop."""
    expired = await sweep(database, clock)
    if expired:
        on_steps_enqueued()
    if expired < _BATCH:
        await asyncio.sleep(INTERVAL_SECONDS)


async def _expire_each(
    database: Database,
    lapsed: sa.Select[UUID],
    expire: Callable[[AsyncConnection, UUID, datetime], Awaitable[None]],
    now: datetime,
) -> int:
    """One transaction for each booking: a long one would make payments wait for its locks."""
    async with database.reading() as connection:
        booking_ids = (await connection.scalars(lapsed.limit(_BATCH))).all()
    for booking_id in booking_ids:
        async with database.transaction() as connection:
            await expire(connection, booking_id, now)
    return len(booking_ids)


async def _expire_booking(connection: AsyncConnection, booking_id: UUID, now: datetime) -> None:
    """Ends a booking, unless its hold no longer lapses or another transaction has locked it."""
    locked = await connection.execute(
        _lapsed_bookings(now)
        .where(bookings_table.c.booking_id == booking_id)
        .with_for_update(skip_locked=True)
    )
    if locked.one_or_none() is None:
        return
    booking = await bookings.get(connection, booking_id=booking_id)
    to, reason = Status.EXPIRED, "not paid in time"
    if booking.was_declined:
        to, reason = Status.FAILED, "payment declined, and not paid in time"
    await state_machine.end_unpaid(connection, booking=booking, to=to, reason=reason, now=now)


async def _expire_change(connection: AsyncConnection, booking_id: UUID, now: datetime) -> None:
    """Ends the open change of a booking, if it still waits for its payment and its time is over."""
    booking = await bookings.get(connection, booking_id=booking_id, lock=True)
    change = await modification_store.find_open(connection, booking_id=booking_id)
    if (
        change is not None
        and change.state is ChangeState.PENDING_PAYMENT
        and change.expire_time <= now
    ):
        await modification_store.end_unpaid(
            connection, booking=booking, change=change, to=ChangeState.EXPIRED, now=now
        )


def _lapsed_bookings(now: datetime) -> sa.Select[UUID]:
    columns = bookings_table.c
    return (
        sa.select(columns.booking_id)
        .where(columns.status.in_(state_machine.UNPAID))
        .where(columns.hold_expire_time <= now)
        .where(columns.payment_status.is_distinct_from(PaymentStatus.CAPTURED))
        .order_by(columns.hold_expire_time)
    )


def _lapsed_changes(now: datetime) -> sa.Select[UUID]:
    columns = booking_changes.c
    return (
        sa.select(columns.booking_id)
        .where(columns.state == ChangeState.PENDING_PAYMENT)
        .where(columns.expire_time <= now)
        .order_by(columns.expire_time)
    )
