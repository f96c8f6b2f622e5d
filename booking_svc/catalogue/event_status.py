"""The life of an event: what the staff may make of it, and how it follows the clock.

`events.status` is what was said, `events.current_status` what holds: the latter is kept
for lists, and at most one turn of the loop behind.
"""

import asyncio
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import event_cancellations, events
from booking_svc.catalogue.events import Event, StaffStatus, Status
from booking_svc.catalogue.tables import events as events_table
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.errors import DomainError, Reason

INTERVAL_SECONDS = 0.5
_BATCH = 500

# What the staff may make of an event, by what it is now. Published and resumed, an event
# is what the clock and the stock make of it then.
MOVES: dict[Status, dict[Status, StaffStatus]] = {
    Status.DRAFT: {Status.UPCOMING: StaffStatus.OPEN},
    Status.UPCOMING: {Status.CANCELLED: StaffStatus.CANCELLED},
    Status.ON_SALE: {Status.PAUSED: StaffStatus.PAUSED, Status.CANCELLED: StaffStatus.CANCELLED},
    Status.SOLD_OUT: {Status.CANCELLED: StaffStatus.CANCELLED},
    Status.PAUSED: {Status.ON_SALE: StaffStatus.OPEN, Status.CANCELLED: StaffStatus.CANCELLED},
    Status.ENDED: {},
    Status.CANCELLED: {},
}


async def set_status(
    connection: AsyncConnection,
    *,
    event_id: UUID,
    to: Status,
    available: int,
    reason: str = "",
    now: datetime,
) -> Event:
    """Does what the staff says; the status that the event has already changes nothing.

    Cancelling has all its bookings cancelled too, for `reason`.

    Raises EVENT_NOT_FOUND, or EVENT_STATE_INVALID that names the legal ones.
    """
    event = await events.get(connection, event_id=event_id, lock=True)
    status = event.status_at(now, available=available)
    if status is to:
        return event
    staff_status = MOVES[status].get(to)
    if staff_status is None:
        allowed = sorted(MOVES[status])
        raise DomainError(
            Reason.EVENT_STATE_INVALID,
            f"an event that is {status} cannot become {to}, but "
            + (", ".join(allowed) or "nothing"),
            status=status,
            allowed=",".join(allowed),
        )
    changed = replace(
        event, staff_status=staff_status, revision=event.revision + 1, update_time=now
    )
    await connection.execute(
        sa.update(events_table)
        .where(events_table.c.event_id == event_id)
        .values(
            status=staff_status,
            revision=changed.revision,
            update_time=now,
            current_status=changed.status_at(now, available=available),
            next_transition_time=changed.next_transition_after(now),
        )
    )
    if staff_status is StaffStatus.CANCELLED:
        await event_cancellations.begin(connection, event_id=event_id, reason=reason, now=now)
    return changed


async def apply_due_transitions(connection: AsyncConnection, *, now: datetime) -> int:
    """Turns the events whose time has come, a batch of them. Returns how many.

    Safe in several processes at once.
    """
    due = (
        sa.select(events_table.c.event_id)
        .where(events_table.c.next_transition_time <= now)
        .order_by(events_table.c.next_transition_time)
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
    )
    turned = await connection.execute(
        sa.update(events_table)
        .where(events_table.c.event_id.in_(due))
        .values(**derived_columns(now))
    )
    return turned.rowcount


def derived_columns(now: datetime) -> dict[str, sa.ColumnElement[object]]:
    """`Event.status_at` and `Event.turn_after` in SQL, for many events at once."""
    table = events_table.c
    is_fixed = table.status.in_([StaffStatus.CANCELLED, StaffStatus.DRAFT])
    is_over = sa.and_(table.sale_end_time.is_not(None), table.sale_end_time <= now)
    is_early = sa.and_(table.status == StaffStatus.OPEN, table.sale_start_time > now)
    return {
        "current_status": sa.case(
            (is_fixed, table.status),
            (is_over, Status.ENDED),
            (table.status == StaffStatus.PAUSED, Status.PAUSED),
            (is_early, Status.UPCOMING),
            (table.is_sold_out, Status.SOLD_OUT),
            else_=Status.ON_SALE,
        ),
        "next_transition_time": sa.case(
            (sa.or_(is_fixed, is_over), sa.null()),
            (is_early, table.sale_start_time),
            else_=table.sale_end_time,
        ),
    }


async def run_once(database: Database, clock: Clock) -> None:
    """One turn of the background loop."""
    async with database.transaction() as connection:
        turned = await apply_due_transitions(connection, now=clock())
    if turned < _BATCH:
        await asyncio.sleep(INTERVAL_SECONDS)
