"""Accounts as admins list and change them. Changes by the users themselves are in profile.py."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import outbox, sessions
from auth_svc.accounts import USER_COLUMNS, Role, User, get_user, no_such_user, to_user
from auth_svc.tables import email_confirmations, password_resets, sign_in_addresses, users
from mesh import paging
from mesh.errors import DomainError, Reason

_DELETED_DOMAIN = "deleted.invalid"
# Links and addresses that end with an account.
_ENDING_WITH_ACCOUNT = (password_resets, email_confirmations, sign_in_addresses)


@dataclass(frozen=True, slots=True)
class UserPage:
    """Accounts, newest first. `next_page_token` is empty on the last page."""

    users: tuple[User, ...]
    next_page_token: str
    total_size: int


async def list_page(
    connection: AsyncConnection,
    *,
    role: Role | None,
    is_active: bool | None,
    show_deleted: bool = False,
    page_size: int,
    page_token: str,
) -> UserPage:
    """A page of the accounts with this role and activity; None matches any. Deleted ones are
    left out unless `show_deleted`.

    Raises VALIDATION_FAILED for a `page_token` of another list.
    """
    matching: sa.ColumnElement[bool] = sa.true() if show_deleted else users.c.delete_time.is_(None)
    if role is not None:
        matching &= users.c.role == role
    if is_active is not None:
        matching &= users.c.is_active == is_active
    total = await connection.execute(sa.select(sa.func.count()).select_from(users).where(matching))
    after = paging.id_from_token(page_token)
    # UUIDv7 sorts by creation time.
    beyond = sa.true() if after is None else users.c.user_id < after
    rows = await connection.execute(
        sa.select(*USER_COLUMNS)
        .where(matching, beyond)
        .order_by(users.c.user_id.desc())
        .limit(page_size + 1)
    )
    listed = [to_user(row) for row in rows]
    shown = tuple(listed[:page_size])
    more = len(listed) > page_size
    return UserPage(
        shown, paging.to_token(str(shown[-1].user_id)) if more else "", total.scalar_one()
    )


async def update_user(
    connection: AsyncConnection,
    *,
    user_id: UUID,
    role: Role | None,
    is_active: bool | None,
    access_lifetime: timedelta,
    now: datetime,
) -> User:
    """Changes the values that are not None. Deactivation ends the user's sessions.

    A new role revokes the access tokens with the old one; the sessions continue. Returns the
    changed account. Raises USER_NOT_FOUND, also for a deleted account, or LAST_ADMIN.
    """
    values = {"role": role, "is_active": is_active}
    changes = {name: value for name, value in values.items() if value is not None}
    # The row stays locked to the end: a concurrent sign-in either precedes the lock and is ended
    # here, or follows and is refused.
    before, admins = await lock_with_admins(connection, user_id=user_id)
    if before.delete_time is not None:
        raise no_such_user()
    if is_active is False or role not in (None, Role.ADMIN):
        refuse_last_admin(before, admins)
    if changes:
        await connection.execute(
            sa.update(users)
            .where(users.c.user_id == user_id)
            .values(**changes, update_time=sa.func.greatest(users.c.update_time, now))
        )
    if is_active is False:
        await sessions.end_all(
            connection, user_id=user_id, access_lifetime=access_lifetime, now=now
        )
    elif role is not None and role is not before.role:
        await sessions.revoke_access(
            connection, user_id=user_id, access_lifetime=access_lifetime, now=now
        )
    return await get_user(connection, user_id=user_id)


async def delete_user(
    connection: AsyncConnection, *, user_id: UUID, access_lifetime: timedelta, now: datetime
) -> None:
    """Deletes an account softly, and ends its sessions and links. Repeating it changes nothing.

    Its data stays. Its e-mail address is free for a new account. Raises USER_NOT_FOUND or
    LAST_ADMIN.
    """
    user, admins = await lock_with_admins(connection, user_id=user_id)
    if user.delete_time is not None:
        return
    refuse_last_admin(user, admins)
    await connection.execute(
        sa.update(users)
        .where(users.c.user_id == user_id)
        .values(
            email_key=f"{user_id}@{_DELETED_DOMAIN}",
            is_active=False,
            delete_time=now,
            update_time=sa.func.greatest(users.c.update_time, now),
        )
    )
    await sessions.end_all(connection, user_id=user_id, access_lifetime=access_lifetime, now=now)
    await end_links(connection, user_id=user_id)
    await outbox.user_deleted(connection, user_id=user_id, now=now)


async def end_links(connection: AsyncConnection, *, user_id: UUID) -> None:
    """Deletes an account's mailed links and known addresses."""
    for table in _ENDING_WITH_ACCOUNT:
        await connection.execute(sa.delete(table).where(table.c.user_id == user_id))


async def lock_with_admins(
    connection: AsyncConnection, *, user_id: UUID
) -> tuple[User, frozenset[UUID]]:
    """Locks an account and all active admins until the transaction ends. Returns both.

    One statement locks in one order: of two admins who demote each other concurrently, the second
    one finds that it is the last. Raises USER_NOT_FOUND.
    """
    is_admin = (users.c.role == Role.ADMIN) & users.c.is_active
    rows = await connection.execute(
        sa.select(*USER_COLUMNS)
        .where(is_admin | (users.c.user_id == user_id))
        .order_by(users.c.user_id)
        .with_for_update(key_share=True)
    )
    locked = {row.user_id: to_user(row) for row in rows}
    if user_id not in locked:
        raise no_such_user()
    admins = [user for user in locked.values() if user.role is Role.ADMIN and user.is_active]
    return locked[user_id], frozenset(user.user_id for user in admins)


def refuse_last_admin(user: User, admins: frozenset[UUID]) -> None:
    """Raises LAST_ADMIN if this account is the only active admin."""
    if admins == {user.user_id}:
        raise DomainError(
            Reason.LAST_ADMIN, "this is the only active admin; make another account an admin first"
        )
