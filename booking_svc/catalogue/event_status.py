"""The status of an event: changes by the staff and transitions by time.

Column `status` is set by the staff; `current_status` is derived from it, the clock and the stock.
Lists read `current_status`, which lags the clock by at most one run of the periodic job.
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

INTERVAL_SECONDS = 2.0
_BATCH = 500

# The status changes that the staff may request, by current status. After publishing (DRAFT to
# UPCOMING) and resuming (PAUSED to ON_SALE), clock and stock decide the status that clients see. A
# sold-out sale is paused so that places which come back are neither sold nor offered.
MOVES: dict[Status, dict[Status, StaffStatus]] = {
    Status.DRAFT: {Status.UPCOMING: StaffStatus.OPEN},
    Status.UPCOMING: {Status.CANCELLED: StaffStatus.CANCELLED},
    Status.ON_SALE: {Status.PAUSED: StaffStatus.PAUSED, Status.CANCELLED: StaffStatus.CANCELLED},
    Status.SOLD_OUT: {Status.PAUSED: StaffStatus.PAUSED, Status.CANCELLED: StaffStatus.CANCELLED},
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
    """Changes the status of an event. Setting the current status again changes nothing.

    Cancelling also cancels all bookings of the event, with `reason`.
    Raises EVENT_NOT_FOUND, or EVENT_STATE_INVALID with the allowed statuses.
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
            f"the status cannot change from {status} to {to}, only to "
            + (", ".join(allowed) or "none"),
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
    """Applies a batch of status transitions whose time has come. Returns how many.

    Any number of processes may call it at the same time.
    """
    due = (
        sa.select(events_table.c.event_id)
        .where(events_table.c.next_transition_time <= now)
        .order_by(events_table.c.next_transition_time)
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
    )
    updated = await connection.execute(
        sa.update(events_table)
        .where(events_table.c.event_id.in_(due))
        .values(**derived_columns(now))
    )
    return updated.rowcount


def derived_columns(now: datetime) -> dict[str, sa.ColumnElement[object]]:
    """`Event.status_at` and `Event.next_transition_after` in SQL, for an update of many events."""
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
    """Applies a batch of due transitions; waits if none may be left. For a background loop."""
    async with database.transaction() as connection:
        transitions = await apply_due_transitions(connection, now=clock())
    if transitions < _BATCH:
        await asyncio.sleep(INTERVAL_SECONDS)
