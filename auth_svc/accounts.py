"""Accounts as they are stored, and the credentials that passwords are checked against.

Sign-up and sign-in are in sign_up.py and sign_in.py.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import outbox
from auth_svc.tables import users
from mesh.errors import DomainError, Reason
from mesh.text import email_key


class Role(StrEnum):
    """The permissions of an account. Stored with the account, never taken from the client."""

    CUSTOMER = "CUSTOMER"
    STAFF = "STAFF"
    ADMIN = "ADMIN"


@dataclass(frozen=True, slots=True)
class User:
    """An account as its owner sees it; `phone` and `address` are empty when unknown.

    Its access tokens carry `access_version`; tokens with a lower version are revoked.
    """

    user_id: UUID
    email: str
    full_name: str
    phone: str
    address: str
    role: Role
    is_active: bool
    create_time: datetime
    update_time: datetime
    access_version: int = 0
    email_verify_time: datetime | None = None
    delete_time: datetime | None = None
    erase_time: datetime | None = None


InTransaction = Callable[[AsyncConnection, User], Awaitable[None]]
"""Further writes about an account, in the transaction of a change."""


async def nothing(_: AsyncConnection, __: User) -> None:
    return


@dataclass(frozen=True, slots=True)
class Credentials:
    """The hash that a password is checked against, and the time of its last change."""

    user_id: UUID
    password_hash: str
    password_change_time: datetime


async def insert_user(connection: AsyncConnection, *, user: User, password_hash: str) -> None:
    """Stores a new account. Raises EMAIL_ALREADY_REGISTERED, regardless of upper and lower case."""
    inserted = await connection.execute(
        postgresql.insert(users)
        .values(
            user_id=user.user_id,
            email=user.email,
            email_key=email_key(user.email),
            full_name=user.full_name,
            phone=user.phone,
            address=user.address,
            role=user.role,
            is_active=user.is_active,
            password_hash=password_hash,
            password_change_time=user.create_time,
            create_time=user.create_time,
            update_time=user.update_time,
        )
        .on_conflict_do_nothing(index_elements=[users.c.email_key])
    )
    if inserted.rowcount == 0:
        raise DomainError(
            Reason.EMAIL_ALREADY_REGISTERED,
            "an account with this e-mail address exists already; sign in",
        )
    await outbox.user_changed(
        connection,
        user_id=user.user_id,
        email=user.email,
        full_name=user.full_name,
        phone=user.phone,
        now=user.create_time,
    )


async def find_credentials(connection: AsyncConnection, *, email: str) -> Credentials | None:
    """The credentials of an address; None for an address without an account."""
    rows = await connection.execute(_CREDENTIALS.where(users.c.email_key == email_key(email)))
    row = rows.one_or_none()
    return None if row is None else Credentials(*row)


async def get_credentials(connection: AsyncConnection, *, user_id: UUID) -> Credentials:
    """The credentials of an existing account."""
    return Credentials(*(await connection.execute(_CREDENTIALS.where(_has_id(user_id)))).one())


async def find_by_email_key(connection: AsyncConnection, *, key: str) -> User | None:
    """The account of an address in the form of `email_key`; None when there is none."""
    return await _find(connection, users.c.email_key == key)


async def get_user(connection: AsyncConnection, *, user_id: UUID, lock: bool = False) -> User:
    """An account; with `lock` it cannot change until the transaction ends.

    Raises USER_NOT_FOUND.
    """
    user = await _find(connection, _has_id(user_id), lock=lock)
    if user is None:
        raise no_such_user()
    return user


def no_such_user() -> DomainError:
    return DomainError(Reason.USER_NOT_FOUND, "no such user")


async def find_users(
    connection: AsyncConnection, *, user_ids: Collection[UUID]
) -> Mapping[UUID, User]:
    """The accounts with these ids; unknown ids are left out."""
    ids = sa.literal(list(user_ids), postgresql.ARRAY(sa.UUID()))
    rows = await connection.execute(_USERS.where(users.c.user_id == sa.any_(ids)))
    return {row.user_id: to_user(row) for row in rows}


async def lock_verified(connection: AsyncConnection, *, credentials: Credentials) -> User | None:
    """Locks the account whose password was checked; None when the password has changed since.

    A deactivation or a password change either precedes the lock and is visible here, or follows
    and ends the new session too. Raises ACCOUNT_DEACTIVATED.
    """
    is_unchanged = users.c.password_change_time == credentials.password_change_time
    user = await _find(connection, _has_id(credentials.user_id) & is_unchanged, lock=True)
    if user is not None:
        require_active(user)
    return user


def require_active(user: User) -> None:
    """Raises ACCOUNT_DEACTIVATED."""
    if not user.is_active:
        raise DomainError(Reason.ACCOUNT_DEACTIVATED, "this account is deactivated")


async def replace_hash(connection: AsyncConnection, *, user_id: UUID, password_hash: str) -> None:
    """Stores a new hash of the same password."""
    await connection.execute(
        sa.update(users).where(_has_id(user_id)).values(password_hash=password_hash)
    )


async def replace_password(
    connection: AsyncConnection, *, user_id: UUID, password_hash: str, now: datetime
) -> None:
    """Stores the hash of a new password."""
    await connection.execute(
        sa.update(users)
        .where(_has_id(user_id))
        .values(
            password_hash=password_hash,
            password_change_time=now,
            update_time=sa.func.greatest(users.c.update_time, now),
        )
    )


USER_COLUMNS = (
    users.c.user_id,
    users.c.email,
    users.c.full_name,
    users.c.phone,
    users.c.address,
    users.c.role,
    users.c.is_active,
    users.c.create_time,
    users.c.update_time,
    users.c.access_version,
    users.c.email_verify_time,
    users.c.delete_time,
    users.c.erase_time,
)

_USERS = sa.select(*USER_COLUMNS)
_CREDENTIALS = sa.select(users.c.user_id, users.c.password_hash, users.c.password_change_time)


async def _find(
    connection: AsyncConnection, condition: sa.ColumnElement[bool], *, lock: bool = False
) -> User | None:
    query = sa.select(*USER_COLUMNS).where(condition)
    rows = await connection.execute(query.with_for_update(key_share=True) if lock else query)
    row = rows.one_or_none()
    return None if row is None else to_user(row)


def _has_id(user_id: UUID) -> sa.ColumnElement[bool]:
    return users.c.user_id == user_id


def to_user(row: sa.Row[*tuple[Any, ...]]) -> User:
    return User(
        user_id=row.user_id,
        email=row.email,
        full_name=row.full_name,
        phone=row.phone,
        address=row.address,
        role=Role(row.role),
        is_active=row.is_active,
        create_time=row.create_time,
        update_time=row.update_time,
        access_version=row.access_version,
        email_verify_time=row.email_verify_time,
        delete_time=row.delete_time,
        erase_time=row.erase_time,
    )
