"""Erasing an account: deletes its personal data. The row stays, because others refer to its id."""

from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import outbox, sessions, tables
from auth_svc.accounts import User, email_key, get_user
from auth_svc.tables import (
    idempotency_records,
    mails,
    password_reset_requests,
    password_resets,
    users,
)
from auth_svc.users import lock_with_admins, refuse_last_admin
from mesh.mail.queue import withdraw

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

    Id, role and times stay. Repeating it changes nothing. Raises USER_NOT_FOUND or LAST_ADMIN.
    """
    user, admins = await lock_with_admins(connection, user_id=user_id)
    erased_email = f"{user_id}@{DOMAIN}"
    if user.email == erased_email:
        return user
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
            erase_time=now,
            update_time=sa.func.greatest(users.c.update_time, now),
        )
    )
    await sessions.end_all(connection, user_id=user_id, access_lifetime=access_lifetime, now=now)
    await _delete_copies(connection, user, now=now)
    await outbox.user_erased(connection, user_id=user_id, now=now)
    return await get_user(connection, user_id=user_id)


async def _delete_copies(connection: AsyncConnection, user: User, *, now: datetime) -> None:
    """Deletes the personal data in the tables other than users."""
    await withdraw(connection, mails, to=user.email, now=now)
    await connection.execute(
        sa.delete(password_resets).where(password_resets.c.user_id == user.user_id)
    )
    await connection.execute(
        sa.delete(password_reset_requests).where(
            password_reset_requests.c.email_key == email_key(user.email)
        )
    )
    await connection.execute(
        sa.delete(idempotency_records).where(idempotency_records.c.resource_id == user.user_id)
    )
    await connection.execute(
        sa.delete(tables.outbox)
        .where(tables.outbox.c.aggregate_id == user.user_id)
        .where(tables.outbox.c.event_type == outbox.USER_CHANGED)
    )
