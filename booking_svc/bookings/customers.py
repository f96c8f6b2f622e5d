"""Contact details of customers, as auth_svc's event stream gave them, and their search."""

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings.tables import contacts
from booking_svc.catalogue import search
from booking_svc.clients.ports import Contact


async def find(connection: AsyncConnection, *, user_id: UUID) -> Contact | None:
    """None if the account was erased, or its event has not arrived yet."""
    rows = await connection.execute(
        sa.select(
            contacts.c.user_id, contacts.c.email, contacts.c.full_name, contacts.c.phone
        ).where(contacts.c.user_id == user_id)
    )
    row = rows.one_or_none()
    return None if row is None else Contact(*row)


def words(contact: Contact) -> sa.ColumnElement[object]:
    """The value of the column `search`."""
    return search.vector(search.words_of(contact.full_name, contact.email))


def named(query: str) -> sa.Select[UUID]:
    """The customers whose name or address has words that begin with each word of a text."""
    return sa.select(contacts.c.user_id).where(search.has_prefixes(contacts.c.search, query))
