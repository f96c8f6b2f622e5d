"""Consumes the outbox and queues a message for each endpoint that subscribes to its type."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.clients.ports import InboundWebhook
from booking_svc.tables import event_cursors
from booking_svc.webhooks import deliveries, endpoints, payload
from booking_svc.webhooks.encryption import SecretBox
from booking_svc.webhooks.payload import WebhookMessage
from mesh.clock import Clock
from mesh.db.consumer import Batch, EventConsumer
from mesh.db.database import Database
from mesh.db.outbox import Event, OutboxReader
from mesh.redis.lock import Locks

_log = logging.getLogger(__name__)

STREAM = "webhooks"
"""Name of the cursor, and of the lock of the consuming process."""

_CLEAN_UP_EVERY_SECONDS = 600.0


async def apply(connection: AsyncConnection, events: Sequence[Event], now: datetime) -> None:
    """Queues each domain event for every enabled endpoint that subscribes to its type."""
    await _queue(
        connection, (payload.from_outbox(event.event_type, event.payload) for event in events), now
    )


async def apply_inbound(
    connection: AsyncConnection, webhooks: Sequence[InboundWebhook], now: datetime
) -> None:
    """Queues webhooks of other senders, as `apply`."""
    if webhooks:
        await _queue(connection, map(payload.of_inbound, webhooks), now)


async def _queue(
    connection: AsyncConnection, messages: Iterable[WebhookMessage], now: datetime
) -> None:
    if not (subscriptions := await endpoints.subscriptions(connection)):
        return
    for message in messages:
        endpoint_ids = [
            endpoint_id
            for endpoint_id, event_types in subscriptions
            if not event_types or message.event_type in event_types
        ]
        if endpoint_ids:
            await deliveries.enqueue(
                connection,
                message_id=message.message_id,
                event_type=message.event_type,
                body=message.body,
                endpoint_ids=endpoint_ids,
                now=now,
            )


def consumer(
    database: Database, reader: OutboxReader, clock: Clock, *, on_queued: Callable[[], None]
) -> EventConsumer[Event]:
    """The consumer of domain events, which resumes at the stored cursor."""

    async def batches(after_position: str) -> AsyncIterator[Batch[Event]]:
        async for events in reader.stream(after_position):
            yield events[-1].position, events

    return EventConsumer(
        stream=STREAM,
        database=database,
        cursors=event_cursors,
        clock=clock,
        open_stream=batches,
        apply=apply,
        after_commit=on_queued,
    )


async def clean_up(database: Database, clock: Clock, secret_box: SecretBox, locks: Locks) -> None:
    """Deletes old deliveries and re-encrypts old secrets, in one process; then waits 10 minutes."""

    async def delete_and_encrypt() -> None:
        async with database.transaction() as connection:
            await deliveries.forget(connection, now=clock())
        async with database.transaction() as connection:
            if count := await endpoints.encrypt_with_newest_key(connection, secret_box=secret_box):
                _log.info("secrets were encrypted with the newest key", extra={"secrets": count})

    await locks.once(
        "booking_svc webhook log", delete_and_encrypt, ttl_seconds=_CLEAN_UP_EVERY_SECONDS / 2
    )
    await asyncio.sleep(_CLEAN_UP_EVERY_SECONDS)
