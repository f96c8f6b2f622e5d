"""Changes of users to their own profile."""

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import outbox
from auth_svc.accounts import User, get_user
from auth_svc.tables import users


async def update_profile(
    connection: AsyncConnection,
    *,
    user_id: UUID,
    full_name: str | None,
    phone: str | None,
    address: str | None,
    now: datetime,
) -> User:
    """Changes the values that are not None; an empty phone or address is deleted.

    Returns the changed account. Raises USER_NOT_FOUND.
    """
    values = {"full_name": full_name, "phone": phone, "address": address}
    changes = {name: value for name, value in values.items() if value is not None}
    if changes:
        await connection.execute(
            sa.update(users)
            .where(users.c.user_id == user_id)
            # The clocks of two processes differ: update_time must not decrease.
            .values(**changes, update_time=sa.func.greatest(users.c.update_time, now))
        )
    user = await get_user(connection, user_id=user_id)
    if full_name is not None or phone is not None:
        await outbox.user_changed(
            connection,
            user_id=user_id,
            email=user.email,
            full_name=user.full_name,
            phone=user.phone,
            now=now,
        )
    return user
