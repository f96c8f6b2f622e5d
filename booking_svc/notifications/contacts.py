"""Mail addresses of accounts, from auth_svc's event stream.

A booking's event can arrive before its customer's address. It then waits here for the address,
WAIT_AT_MOST.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import customers
from booking_svc.bookings.tables import contacts
from booking_svc.clients.ports import Contact
from booking_svc.notifications.tables import mails, mails_without_address
from mesh.mail import queue

WAIT_AT_MOST = timedelta(days=3)


async def find_or_defer(
    connection: AsyncConnection, *, user_id: UUID, key: UUID, payload: bytes, now: datetime
) -> Contact | None:
    """The contact; or None, after storing the booking event `key` until the contact arrives."""
    if (contact := await customers.find(connection, user_id=user_id)) is not None:
        return contact
    # Another transaction may be storing the contact: wait for its end.
    await _lock(connection, user_id)
    if (contact := await customers.find(connection, user_id=user_id)) is not None:
        return contact
    await connection.execute(
        postgresql.insert(mails_without_address)
        .values(event_key=key, user_id=user_id, payload=payload, create_time=now)
        .on_conflict_do_nothing()
    )
    return None


async def store(connection: AsyncConnection, *, contact: Contact, now: datetime) -> Sequence[bytes]:
    """Stores an address. Returns the payloads of the booking events that waited for it."""
    await _lock(connection, contact.user_id)
    values = {
        "email": contact.email,
        "full_name": contact.full_name,
        "phone": contact.phone,
        "search": customers.words(contact),
        "update_time": now,
    }
    await connection.execute(
        postgresql.insert(contacts)
        .values(user_id=contact.user_id, **values)
        .on_conflict_do_update(index_elements=["user_id"], set_=values)
    )
    waited = await connection.execute(
        sa.delete(mails_without_address)
        .where(mails_without_address.c.user_id == contact.user_id)
        .returning(mails_without_address.c.event_key, mails_without_address.c.payload)
    )
    # UUIDv7 keys sort by time.
    return [row.payload for row in sorted(waited, key=lambda row: row.event_key)]


async def erase(connection: AsyncConnection, *, user_id: UUID, now: datetime) -> None:
    """Deletes an address and withdraws the queued mails to it."""
    await _lock(connection, user_id)
    deleted = await connection.execute(
        sa.delete(contacts).where(contacts.c.user_id == user_id).returning(contacts.c.email)
    )
    await connection.execute(
        sa.delete(mails_without_address).where(mails_without_address.c.user_id == user_id)
    )
    for email in deleted.scalars():
        await queue.withdraw(connection, mails, to=email, now=now)


async def delete_expired(connection: AsyncConnection, *, now: datetime) -> int:
    """Deletes events that waited longer than WAIT_AT_MOST for an address. Returns how many."""
    deleted = await connection.execute(
        sa.delete(mails_without_address).where(
            mails_without_address.c.create_time < now - WAIT_AT_MOST
        )
    )
    return deleted.rowcount


async def _lock(connection: AsyncConnection, user_id: UUID) -> None:
    await connection.execute(
        sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(str(user_id), 0)))
    )
