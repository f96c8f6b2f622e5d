"""Records of events that moved: another start, end or venue.

A move opens a window in which bookings made before it are cancelled with a full refund.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

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


def _to_json(schedule: Schedule) -> dict[str, str | None]:
    start, end = schedule.start_time, schedule.end_time
    return {
        "start_time": None if start is None else start.isoformat(),
        "end_time": None if end is None else end.isoformat(),
        "venue_name": schedule.venue_name,
    }
