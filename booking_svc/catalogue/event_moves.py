"""Records of events that moved: another start, end, venue or auditorium.

A move opens a window in which bookings made before it are cancelled with a full refund. Their
customers are notified by bookings/event_moves.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue.events import Event
from booking_svc.catalogue.tables import auditoriums, event_moves
from mesh.ids import new_id

WINDOW = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When and where an event takes place."""

    start_time: datetime | None
    end_time: datetime | None
    venue_name: str | None
    auditorium_id: UUID | None = None
    auditorium_name: str | None = None

    @classmethod
    def of(cls, event: Event, auditorium_names: Mapping[UUID, str]) -> Self:
        name = None if event.auditorium_id is None else auditorium_names.get(event.auditorium_id)
        return cls(event.start_time, event.end_time, event.venue_name, event.auditorium_id, name)

    @classmethod
    def from_json(cls, values: Mapping[str, str | None]) -> Self:
        """The schedule of a recorded move."""
        start, end = values["start_time"], values["end_time"]
        auditorium_id = values.get("auditorium_id")
        return cls(
            None if start is None else datetime.fromisoformat(start),
            None if end is None else datetime.fromisoformat(end),
            values["venue_name"],
            None if auditorium_id is None else UUID(auditorium_id),
            values.get("auditorium_name"),
        )


async def record(
    connection: AsyncConnection, *, before: Event, after: Event, now: datetime
) -> tuple[Schedule, Schedule] | None:
    """Records a move, if the change is one, and returns the old and the new schedule.

    Call it in the transaction of the change.
    """
    names = await _auditorium_names(connection, before, after)
    old, new = Schedule.of(before, names), Schedule.of(after, names)
    if old == new or before.is_draft:
        return None
    await connection.execute(
        event_moves.insert().values(
            move_id=new_id(),
            event_id=after.event_id,
            before=_to_json(old),
            after=_to_json(new),
            move_time=now,
            next_time=now,
        )
    )
    return old, new


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
    end = refund_end(moved, event.start_time)
    return end if now <= end else None


def refund_end(move_time: datetime, start_time: datetime | None) -> datetime:
    """The end of the window of a move, for an event that starts at `start_time`."""
    end = move_time + WINDOW
    return end if start_time is None else min(end, start_time)


async def _auditorium_names(connection: AsyncConnection, *of: Event) -> Mapping[UUID, str]:
    ids = {event.auditorium_id for event in of if event.auditorium_id is not None}
    if not ids:
        return {}
    rows = await connection.execute(
        sa.select(auditoriums.c.auditorium_id, auditoriums.c.name).where(
            auditoriums.c.auditorium_id.in_(ids)
        )
    )
    return {row.auditorium_id: row.name for row in rows}


def _to_json(schedule: Schedule) -> dict[str, str | None]:
    start, end = schedule.start_time, schedule.end_time
    return {
        "start_time": None if start is None else start.isoformat(),
        "end_time": None if end is None else end.isoformat(),
        "venue_name": schedule.venue_name,
        "auditorium_id": None if schedule.auditorium_id is None else str(schedule.auditorium_id),
        "auditorium_name": schedule.auditorium_name,
    }
