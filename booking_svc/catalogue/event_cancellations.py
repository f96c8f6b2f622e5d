"""Records of cancelled events. The bookings package cancels and refunds their bookings."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue.tables import event_cancellations
from mesh.money import Money

DEFAULT_REASON = "the event does not take place"


class State(StrEnum):
    """CANCELLING while live bookings remain, REFUNDING while refunds are pending, then DONE."""

    CANCELLING = "CANCELLING"
    REFUNDING = "REFUNDING"
    DONE = "DONE"


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of an event's cancellation. `bookings_found` is 0 before its first batch."""

    event_id: UUID
    reason: str
    bookings_found: int
    bookings_cancelled: int
    bookings_left: int
    refunds_pending: int
    refunds_processed: int
    refunds_failed: int
    refunded: Money
    start_time: datetime
    finish_time: datetime | None

    @property
    def state(self) -> State:
        if self.finish_time is None or self.bookings_left:
            return State.CANCELLING
        return State.REFUNDING if self.refunds_pending else State.DONE


async def count_late(connection: AsyncConnection, *, event_id: UUID) -> str:
    """Counts a booking that was paid after its event was cancelled. Returns the reason to give."""
    table = event_cancellations.c
    reason = await connection.scalar(
        sa.update(event_cancellations)
        .where(table.event_id == event_id)
        .values(
            bookings_cancelled=table.bookings_cancelled + 1,
            bookings_found=sa.func.greatest(table.bookings_found, table.bookings_cancelled + 1),
        )
        .returning(table.reason)
    )
    return reason or DEFAULT_REASON


async def begin(connection: AsyncConnection, *, event_id: UUID, reason: str, now: datetime) -> None:
    """Records that all bookings of an event must be cancelled. Repeating it changes nothing.

    Call it in the transaction that cancels the event.
    """
    await connection.execute(
        postgresql.insert(event_cancellations)
        .values(
            event_id=event_id,
            reason=reason or DEFAULT_REASON,
            bookings_found=0,
            bookings_cancelled=0,
            start_time=now,
            next_time=now,
        )
        .on_conflict_do_nothing()
    )
