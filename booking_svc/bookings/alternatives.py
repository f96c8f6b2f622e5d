"""Alternatives to an event without enough places: other events of its production."""

import json
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings.dependencies import Dependencies
from booking_svc.catalogue import events
from booking_svc.catalogue.events import Event, Status
from booking_svc.catalogue.tables import events as events_table
from booking_svc.catalogue.tables import stock_levels
from mesh.clock import rfc3339
from mesh.errors import DomainError, Reason

MOST = 5

_SOLD_OUT = (Reason.SOLD_OUT, Reason.SLOT_CONFLICT, Reason.SEAT_UNAVAILABLE)


async def named(
    connection: AsyncConnection, *, event: Event, refusal: DomainError, now: datetime
) -> DomainError:
    """The refusal with up to five other events that have enough places, if any may have them.

    Events that start later come first, then earlier ones. The refusal of a full time slot becomes
    SLOT_CONFLICT.
    """
    if not exist_for(event, refusal):
        return refusal
    reason = refusal.reason
    if is_slot(event) and reason is Reason.SOLD_OUT and refusal.metadata.get("available") == "0":
        reason = Reason.SLOT_CONFLICT
    quantity = int(refusal.metadata.get("requested", "1"))
    metadata: dict[str, Any] = {
        **refusal.metadata,
        "alternatives": json.dumps(await _next(connection, event, quantity, now)),
    }
    return DomainError(reason, refusal.message, **metadata)


async def for_move(
    deps: Dependencies, *, from_event_id: UUID, to_event_id: UUID, refusal: DomainError
) -> DomainError:
    """The refusal of a move to another event, as `named` makes it; that of new items as it is."""
    if to_event_id == from_event_id:
        return refusal
    async with deps.database.reading() as connection:
        event = await events.get(connection, event_id=to_event_id)
        return await named(connection, event=event, refusal=refusal, now=deps.clock())


async def for_missing(
    connection: AsyncConnection, *, event: Event, refusal: DomainError, quantity: int, now: datetime
) -> DomainError:
    """The refusal of a move from a time slot, `event`, to one that does not exist."""
    if refusal.reason is not Reason.EVENT_NOT_FOUND or not is_slot(event):
        return refusal
    return DomainError(
        Reason.SLOT_CONFLICT,
        "there is no such time slot",
        alternatives=json.dumps(await _next(connection, event, quantity, now)),
    )


def exist_for(event: Event, refusal: DomainError) -> bool:
    """Whether other events may have places after this refusal."""
    return refusal.reason in _SOLD_OUT and event.production_id is not None


def is_slot(event: Event) -> bool:
    """Whether an event is a time slot: a dated event of a production with one unseated pool."""
    is_seated = any(offer.seat_type is not None for offer in event.offers)
    return (
        event.production_id is not None
        and event.start_time is not None
        and event.end_time is not None
        and not is_seated
        and len({offer.pool_id for offer in event.offers}) == 1
    )


async def _next(
    connection: AsyncConnection, event: Event, quantity: int, now: datetime
) -> list[dict[str, object]]:
    available = (
        sa.select(sa.func.coalesce(sa.func.sum(stock_levels.c.available), 0))
        .where(stock_levels.c.event_id == events_table.c.event_id)
        .scalar_subquery()
    )
    rows = await connection.execute(
        sa.select(events_table.c.event_id, events_table.c.start_time, available.label("available"))
        .where(events_table.c.production_id == event.production_id)
        .where(events_table.c.event_id != event.event_id)
        .where(events_table.c.current_status == Status.ON_SALE)
        .where(events_table.c.start_time > now, available >= quantity)
        .order_by(
            events_table.c.start_time < (event.start_time or now),
            events_table.c.sort_time,
            events_table.c.event_id,
        )
        .limit(MOST)
    )
    return [
        {
            "eventId": str(row.event_id),
            "startTime": rfc3339(row.start_time),
            "available": int(row.available),
        }
        for row in rows
    ]
