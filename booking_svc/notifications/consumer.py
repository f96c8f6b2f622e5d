"""Follows the bookings and the accounts, and queues the mails that follow from them."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import outbox
from booking_svc.bookings.outbox import BookingEvent, BookingEvents
from booking_svc.clients.ports import Contact, Erased
from booking_svc.notifications import contacts, content
from booking_svc.notifications.tables import mails
from booking_svc.tables import event_cursors
from mesh.clock import Clock
from mesh.db.consumer import Batch, EventConsumer
from mesh.db.database import Database
from mesh.db.outbox import OutboxReader
from mesh.mail import queue
from mesh.redis.lock import Locks

_log = logging.getLogger(__name__)

STREAM = "booking mails"
"""The name of the cursor, and so of the lock of the process that follows."""

_FORGET_EVERY_SECONDS = 3600.0

# A rush of bookings must not wait for its mails: they take a fifth of the time at most.
_PAUSES_PER_BATCH = 4.0
_LONGEST_PAUSE_SECONDS = 2.0


async def apply(connection: AsyncConnection, events: Sequence[BookingEvent], now: datetime) -> None:
    """Queues the mails of events whose customers are known; the others wait for their address."""
    for event in events:
        if (kind := content.kind_of(event.change)) is None:
            continue
        contact = await contacts.find_or_wait(
            connection, user_id=event.customer_id, key=event.key, payload=event.payload, now=now
        )
        if contact is not None:
            await _enqueue(connection, event, kind, contact, now)


async def apply_accounts(
    connection: AsyncConnection, changes: Sequence[Contact | Erased], now: datetime
) -> None:
    """Keeps the addresses, and queues the mails that waited for one."""
    for change in changes:
        if isinstance(change, Erased):
            await contacts.erase(connection, user_id=change.user_id, now=now)
            continue
        for payload in await contacts.store(connection, contact=change, now=now):
            event = outbox.from_payload(payload)
            if (kind := content.kind_of(event.change)) is not None:
                await _enqueue(connection, event, kind, change, now)


def consumer(
    database: Database, reader: OutboxReader, clock: Clock, *, on_queued: Callable[[], None]
) -> EventConsumer[BookingEvent]:
    """Follows the bookings from where the last process left off."""
    stream = BookingEvents(reader)
    return EventConsumer(
        stream=STREAM,
        database=database,
        cursors=event_cursors,
        clock=clock,
        open_stream=lambda position: _unhurried(stream.open(position)),
        apply=apply,
        after_commit=on_queued,
    )


def accounts(
    database: Database,
    open_stream: Callable[[str], AsyncIterator[Batch[Contact | Erased]]],
    clock: Clock,
    *,
    on_queued: Callable[[], None],
) -> EventConsumer[Contact | Erased]:
    """Follows the accounts from where the last process left off."""
    return EventConsumer(
        stream="auth_svc",
        database=database,
        cursors=event_cursors,
        clock=clock,
        open_stream=open_stream,
        apply=apply_accounts,
        after_commit=on_queued,
    )


async def forget_waiting(database: Database, clock: Clock, locks: Locks) -> None:
    """One turn of a loop: one process gives up what waited too long for an address."""

    async def forget() -> None:
        async with database.transaction() as connection:
            if given_up := await contacts.forget_waiting(connection, now=clock()):
                _log.warning("no address came for mails", extra={"mails": given_up})

    await locks.once("booking_svc waiting letters", forget, ttl_seconds=_FORGET_EVERY_SECONDS / 2)
    await asyncio.sleep(_FORGET_EVERY_SECONDS)


async def _unhurried(
    batches: AsyncIterator[Batch[BookingEvent]],
) -> AsyncIterator[Batch[BookingEvent]]:
    """The batches, with pauses in which customers are served."""
    async for batch in batches:
        began = time.monotonic()
        yield batch
        busy = time.monotonic() - began
        await asyncio.sleep(min(busy * _PAUSES_PER_BATCH, _LONGEST_PAUSE_SECONDS))


async def _enqueue(
    connection: AsyncConnection, event: BookingEvent, kind: str, contact: Contact, now: datetime
) -> None:
    mail = await content.write(connection, event=event, kind=kind, contact=contact)
    await queue.enqueue(connection, mails, mail, now=now)
