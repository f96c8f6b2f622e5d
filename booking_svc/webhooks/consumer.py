"""Follows what happens to bookings and queues it for the endpoints that want to hear of it."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings.outbox import BookingEvent, BookingEvents
from booking_svc.tables import event_cursors
from booking_svc.webhooks import deliveries, endpoints, payload
from booking_svc.webhooks.encryption import SecretBox
from mesh.clock import Clock
from mesh.db.consumer import EventConsumer
from mesh.db.database import Database
from mesh.db.outbox import OutboxReader
from mesh.redis.lock import Locks

_log = logging.getLogger(__name__)

STREAM = "webhooks"
"""The name of the cursor, and so of the lock of the process that follows."""

_TIDY_EVERY_SECONDS = 600.0


async def apply(connection: AsyncConnection, events: Sequence[BookingEvent], now: datetime) -> None:
    """Queues each event for every endpoint that is told of its type."""
    if not (told := await endpoints.enabled(connection)):
        return
    for event in events:
        event_type = payload.event_type(event.payload)
        wanted = [each for each, types in told if not types or event_type in types]
        if wanted:
            await deliveries.enqueue(
                connection,
                message_id=event.key,
                event_type=event_type,
                body=payload.body(event.payload),
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
        cursors=event_cursors,
        clock=clock,
        open_stream=BookingEvents(reader).open,
        apply=apply,
        after_commit=on_queued,
    )


async def tidy(database: Database, clock: Clock, seal: SecretBox, locks: Locks) -> None:
    """One turn of a loop: one process deletes the log of long ago, and seals what is not."""

    async def tidy_up() -> None:
        async with database.transaction() as connection:
            await deliveries.forget(connection, now=clock())
        async with database.transaction() as connection:
            if resealed := await endpoints.reseal(connection, seal=seal):
                _log.info("sealed with the newest key", extra={"secrets": resealed})

    await locks.once("booking_svc webhook log", tidy_up, ttl_seconds=_TIDY_EVERY_SECONDS / 2)
    await asyncio.sleep(_TIDY_EVERY_SECONDS)
