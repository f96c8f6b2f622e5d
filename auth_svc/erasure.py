"""Erasing an account: deletes its personal data. The row stays, because others refer to its id."""

from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import outbox, sessions, tables
from auth_svc.accounts import User, get_user
from auth_svc.tables import (
    email_confirmations,
    email_verification_requests,
    idempotency_records,
    mails,
    password_reset_requests,
    users,
)
from auth_svc.users import end_links, lock_with_admins, refuse_last_admin
from mesh.mail.queue import withdraw
from mesh.text import email_key

NAME = "Erased user"
DOMAIN = "erased.invalid"
"""Reserved by RFC 2606: no mail can be delivered to it."""


async def erase(
    connection: AsyncConnection,
    *,
    user_id: UUID,
    unusable_hash: str,
    access_lifetime: timedelta,
    now: datetime,
) -> User:
    """Deletes an account's personal data, ends its sessions and publishes the erasure.

    Id, role and times stay; the account is deleted. Repeating it changes nothing. Raises USER_NOT_FOUND or LAST_ADMIN.
    """
    user, admins = await lock_with_admins(connection, user_id=user_id)
    if user.erase_time is not None:
        return user
    erased_email = f"{user_id}@{DOMAIN}"
    refuse_last_admin(user, admins)
    await connection.execute(
        sa.update(users)
        .where(users.c.user_id == user_id)
        .values(
            email=erased_email,
            email_key=erased_email,
            full_name=NAME,
            phone="",
            address="",
            is_active=False,
            password_hash=unusable_hash,
            password_change_time=now,
            email_verify_time=None,
            erase_time=now,
            delete_time=sa.func.coalesce(users.c.delete_time, now),
            update_time=sa.func.greatest(users.c.update_time, now),
        )
    )
    await sessions.end_all(connection, user_id=user_id, access_lifetime=access_lifetime, now=now)
    await _delete_copies(connection, user, now=now)
    await outbox.user_erased(connection, user_id=user_id, now=now)
    return await get_user(connection, user_id=user_id)


async def _delete_copies(connection: AsyncConnection, user: User, *, now: datetime) -> None:
    """Deletes the personal data in the tables other than users."""
    pending = await connection.scalars(
        sa.select(email_confirmations.c.email).where(email_confirmations.c.user_id == user.user_id)
    )
    for address in {user.email, *pending}:
        await withdraw(connection, mails, to=address, now=now)
    await end_links(connection, user_id=user.user_id)
    for requests in (password_reset_requests, email_verification_requests):
        await connection.execute(
            sa.delete(requests).where(requests.c.email_key == email_key(user.email))
        )
    await connection.execute(
        sa.delete(idempotency_records).where(idempotency_records.c.resource_id == user.user_id)
    )
    await connection.execute(
        sa.delete(tables.outbox)
        .where(tables.outbox.c.aggregate_id == user.user_id)
        .where(tables.outbox.c.event_type == outbox.USER_CHANGED)
    )
