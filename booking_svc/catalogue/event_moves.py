"""Records of events that moved: another start, end or venue. The bookings package tells customers.

A move opens a window in which bookings made before it are cancelled with a full refund.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue.events import Event
from booking_svc.catalogue.tables import event_moves
from mesh.ids import new_id

WINDOW = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When and where an event takes place."""

    start_time: datetime | None
    end_time: datetime | None
    venue_name: str | None

    @classmethod
    def of(cls, event: Event) -> Self:
        return cls(event.start_time, event.end_time, event.venue_name)


@dataclass(frozen=True, slots=True)
class Move:
    move_id: UUID
    event_id: UUID
    before: Schedule
    after: Schedule
    move_time: datetime
    # The last booking whose customer was told; None before the first.
    told_booking_id: UUID | None


async def record(
    connection: AsyncConnection, *, before: Event, after: Event, now: datetime
) -> None:
    """Records a move, if the change is one. Call it in the transaction of the change."""
    old, new = Schedule.of(before), Schedule.of(after)
    if old == new:
        return
    await connection.execute(
        event_moves.insert().values(
            move_id=new_id(),
            event_id=after.event_id,
            before=_to_json(old),
            after=_to_json(new),
            move_time=now,
            due_time=now,
        )
    )


async def full_refund_until(
    connection: AsyncConnection, *, event: Event, booked_time: datetime, now: datetime
) -> datetime | None:
    """Until when a booking of that time can be cancelled with a full refund; None if not now.

    For 7 days after each move, but not after the start.
    """
    moved: datetime | None = await connection.scalar(
        sa.select(sa.func.max(event_moves.c.move_time))
        .where(event_moves.c.event_id == event.event_id)
        .where(event_moves.c.move_time > booked_time)
    )
    if moved is None:
        return None
    end = moved + WINDOW
    if event.start_time is not None:
        end = min(end, event.start_time)
    return end if now <= end else None


async def take_due(connection: AsyncConnection, *, now: datetime) -> Move | None:
    """A move whose customers are still to be told, locked; None without one."""
    row = (
        await connection.execute(
            sa.select(event_moves)
            .where(event_moves.c.due_time <= now)
            .order_by(event_moves.c.due_time)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
    ).one_or_none()
    if row is None:
        return None
    return Move(
        row.move_id,
        row.event_id,
        _from_json(row.before),
        _from_json(row.after),
        row.move_time,
        row.told_booking_id,
    )


async def record_told(
    connection: AsyncConnection, *, move_id: UUID, told_booking_id: UUID | None, is_done: bool
) -> None:
    """Records the last booking whose customer was told, and whether it was the last of all."""
    values: dict[str, Any] = {"told_booking_id": told_booking_id} if told_booking_id else {}
    if is_done:
        values["due_time"] = None
    await connection.execute(
        sa.update(event_moves).where(event_moves.c.move_id == move_id).values(**values)
    )


def _to_json(schedule: Schedule) -> dict[str, str | None]:
    start, end = schedule.start_time, schedule.end_time
    return {
        "start_time": None if start is None else start.isoformat(),
        "end_time": None if end is None else end.isoformat(),
        "venue_name": schedule.venue_name,
    }


def _from_json(stored: dict[str, Any]) -> Schedule:
    start, end = stored["start_time"], stored["end_time"]
    return Schedule(
        start and datetime.fromisoformat(start),
        end and datetime.fromisoformat(end),
        stored["venue_name"],
    )
