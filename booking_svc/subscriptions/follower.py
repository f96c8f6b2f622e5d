"""Follows what happens to bookings and queues it for the endpoints that want to hear of it."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc import tables
from booking_svc.booking_events import BookingEvent, BookingEvents
from booking_svc.subscriptions import bodies, deliveries, endpoints
from mesh.clock import Clock
from mesh.consumer import EventConsumer
from mesh.database import Database
from mesh.lock import Locks
from mesh.outbox import OutboxReader

STREAM = "webhooks"
"""The name of the cursor, and so of the lock of the process that follows."""

_FORGET_EVERY_SECONDS = 600.0


async def apply(connection: AsyncConnection, events: Sequence[BookingEvent], now: datetime) -> None:
    """Queues each event for every endpoint that is told of its type."""
    if not (told := await endpoints.enabled(connection)):
        return
    for event in events:
        event_type = bodies.event_type(event.payload)
        wanted = [each for each, types in told if not types or event_type in types]
        if wanted:
            await deliveries.enqueue(
                connection,
                message_id=event.key,
                event_type=event_type,
                body=bodies.body(event.payload),
                endpoint_ids=wanted,
                now=now,
            )


def consumer(
    database: Database, reader: OutboxReader, clock: Clock, *, on_queued: Callable[[], None]
) -> EventConsumer[BookingEvent]:
    """Follows the bookings from where the last process left off."""
    return EventConsumer(
        stream=STREAM,
        database=database,
        cursors=tables.event_cursors,
        clock=clock,
        open_stream=BookingEvents(reader).open,
        apply=apply,
        after_commit=on_queued,
    )


async def forget_old(database: Database, clock: Clock, locks: Locks) -> None:
    """One turn of a loop: one process deletes the log of long ago."""

    async def forget() -> None:
        async with database.transaction() as connection:
            await deliveries.forget(connection, now=clock())

    await locks.once("booking_svc webhook log", forget, ttl_seconds=_FORGET_EVERY_SECONDS / 2)
    await asyncio.sleep(_FORGET_EVERY_SECONDS)
