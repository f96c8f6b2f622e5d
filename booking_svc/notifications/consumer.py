"""Consumes the events of bookings and accounts, and queues the mails about bookings."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import outbox
from booking_svc.bookings.outbox import OF_WAITING_LIST, BookingEvent
from booking_svc.catalogue import favourites
from booking_svc.catalogue.outbox import PREFIX as OF_CATALOGUE
from booking_svc.clients.ports import AccountChange, Contact, Deleted, Erased
from booking_svc.notifications import contacts, content, waiting_list_mails
from booking_svc.notifications.tables import mails
from booking_svc.notifications.waiting_list_mails import WaitingListEvent
from booking_svc.tables import event_cursors
from mesh import outages
from mesh.clock import Clock
from mesh.db.consumer import Batch, EventConsumer
from mesh.db.database import Database
from mesh.db.outbox import OutboxReader
from mesh.mail import queue
from mesh.mail.queue import Mail
from mesh.redis.lock import Locks

_log = logging.getLogger(__name__)

STREAM = "booking mails"
"""Name of the cursor, and of the lock of the consuming process."""

_DELETE_EVERY_SECONDS = 3600.0

# Queueing mails must not slow down a burst of bookings: it takes a fifth of the time at most.
_PAUSES_PER_BATCH = 4.0
_LONGEST_PAUSE_SECONDS = 2.0


MailedEvent = BookingEvent | WaitingListEvent


async def apply(connection: AsyncConnection, events: Sequence[MailedEvent], now: datetime) -> None:
    """Queues the mails of events; an event of a customer without an address waits for it.

    An event whose mail cannot be written is logged as an error and has none: it must not keep back
    those behind it.
    """
    for event in events:
        if _kind_of(event) is None:
            continue
        contact = await contacts.find_or_defer(
            connection, user_id=event.customer_id, key=event.key, payload=event.payload, now=now
        )
        if contact is not None:
            await _enqueue(connection, event, contact, now)


def from_payload(payload: bytes) -> MailedEvent:
    """The event of a stored payload."""
    return waiting_list_mails.from_payload(payload) or outbox.from_payload(payload)


async def apply_accounts(
    connection: AsyncConnection, changes: Sequence[AccountChange], now: datetime
) -> None:
    """Stores and erases addresses, and queues the mails that waited for a stored one.

    An erased account loses its favourites, too. A deleted one keeps both: it has bookings.
    """
    for change in changes:
        if isinstance(change, Deleted):
            continue
        if isinstance(change, Erased):
            await contacts.erase(connection, user_id=change.user_id, now=now)
            await favourites.erase(connection, user_id=change.user_id)
            continue
        for payload in await contacts.store(connection, contact=change, now=now):
            event = from_payload(payload)
            if _kind_of(event) is not None:
                await _enqueue(connection, event, change, now)


def booking_consumer(
    database: Database, reader: OutboxReader, clock: Clock, *, on_queued: Callable[[], None]
) -> EventConsumer[MailedEvent]:
    """The consumer of the events of bookings and waiting lists, which resumes at the stored cursor."""

    async def stream(position: str) -> AsyncIterator[Batch[MailedEvent]]:
        async for batch in reader.stream(position):
            yield (
                batch[-1].position,
                [
                    from_payload(event.payload)
                    if event.event_type.startswith(OF_WAITING_LIST)
                    else outbox.from_payload(event.payload)
                    for event in batch
                    if not event.event_type.startswith(OF_CATALOGUE)
                ],
            )

    return EventConsumer(
        stream=STREAM,
        database=database,
        cursors=event_cursors,
        clock=clock,
        open_stream=lambda position: _paced(stream(position)),
        apply=apply,
        after_commit=on_queued,
    )


def account_consumer(
    database: Database,
    open_stream: Callable[[str], AsyncIterator[Batch[AccountChange]]],
    clock: Clock,
    *,
    on_queued: Callable[[], None],
    apply: Callable[
        [AsyncConnection, Sequence[AccountChange], datetime], Awaitable[None]
    ] = apply_accounts,
) -> EventConsumer[AccountChange]:
    """The consumer of account events, which resumes at the stored cursor."""
    return EventConsumer(
        stream="auth_svc",
        database=database,
        cursors=event_cursors,
        clock=clock,
        open_stream=open_stream,
        apply=apply,
        after_commit=on_queued,
    )


async def delete_expired(database: Database, clock: Clock, locks: Locks) -> None:
    """Deletes events that waited too long for an address, in one process; then waits an hour."""

    async def delete() -> None:
        async with database.transaction() as connection:
            if deleted := await contacts.delete_expired(connection, now=clock()):
                _log.warning("mails were dropped: no address arrived", extra={"mails": deleted})

    await locks.once(
        "booking_svc mails without address", delete, ttl_seconds=_DELETE_EVERY_SECONDS / 2
    )
    await asyncio.sleep(_DELETE_EVERY_SECONDS)


async def _paced(
    batches: AsyncIterator[Batch[MailedEvent]],
) -> AsyncIterator[Batch[MailedEvent]]:
    """The batches, with a pause after each in proportion to its duration."""
    async for batch in batches:
        start = time.monotonic()
        yield batch
        busy = time.monotonic() - start
        await asyncio.sleep(min(busy * _PAUSES_PER_BATCH, _LONGEST_PAUSE_SECONDS))


def _kind_of(event: MailedEvent) -> str | None:
    if isinstance(event, WaitingListEvent):
        return waiting_list_mails.kind_of(event)
    return content.kind_of(event.change)


async def _enqueue(
    connection: AsyncConnection, event: MailedEvent, contact: Contact, now: datetime
) -> None:
    try:
        mail = await _write(connection, event, contact)
    except SQLAlchemyError:
        # Not of this event only, and the transaction has failed.
        raise
    except Exception as error:
        if outages.is_outage(error):
            raise
        _log.exception(
            "a mail was dropped: it could not be written",
            extra={"event_key": str(event.key), "kind": _kind_of(event)},
        )
        return
    await queue.enqueue(connection, mails, mail, now=now)


async def _write(connection: AsyncConnection, event: MailedEvent, contact: Contact) -> Mail:
    if isinstance(event, WaitingListEvent):
        return await waiting_list_mails.write(connection, event=event, contact=contact)
    kind = content.kind_of(event.change) or ""
    return await content.write(connection, event=event, kind=kind, contact=contact)
