"""What users change of their own account. Signing in and up is accounts.py's part."""

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
    """Changes what is not None; empty forgets the phone or the address.

    Returns the account as it is then. Raises USER_NOT_FOUND.
    """
    wanted = {"full_name": full_name, "phone": phone, "address": address}
    changes = {name: value for name, value in wanted.items() if value is not None}
    if changes:
        await connection.execute(
            sa.update(users)
            .where(users.c.user_id == user_id)
            # Clocks of two processes differ: a later change is never dated before an earlier one.
            .values(**changes, update_time=sa.func.greatest(users.c.update_time, now))
        )
    user = await get_user(connection, user_id=user_id)
    if full_name is not None:
        await outbox.user_changed(
            connection, user_id=user_id, email=user.email, full_name=full_name, now=now
        )
    return user
