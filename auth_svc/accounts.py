"""Accounts as they are stored: who is who, and what a password is checked against.

Signing up and in are sign_up.py's and sign_in.py's part.
"""

import unicodedata
from collections.abc import Awaitable, Callable
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
from mesh.errors import DomainError, FieldViolation, Reason, invalid


class Role(StrEnum):
    """What an account may do. It comes from the account, never from the client."""

    CUSTOMER = "CUSTOMER"
    STAFF = "STAFF"
    ADMIN = "ADMIN"


@dataclass(frozen=True, slots=True)
class User:
    """An account as its owner sees it; `phone` and `address` are empty when unknown.

    Its access tokens carry `access_version`; those with a lower one were revoked.
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


Besides = Callable[[AsyncConnection, User], Awaitable[None]]
"""What else is to be written about an account in the transaction of a change."""


async def nothing(_: AsyncConnection, __: User) -> None:
    return


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a password is checked against, and when it was last changed."""

    user_id: UUID
    password_hash: str
    password_change_time: datetime


async def insert_user(connection: AsyncConnection, *, user: User, password_hash: str) -> None:
    """Stores a new account. Raises EMAIL_ALREADY_REGISTERED, whatever the letters' case."""
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
            Reason.EMAIL_ALREADY_REGISTERED, "this e-mail address has an account; sign in"
        )
    await outbox.user_changed(
        connection,
        user_id=user.user_id,
        email=user.email,
        full_name=user.full_name,
        now=user.create_time,
    )


async def find_credentials(connection: AsyncConnection, *, email: str) -> Credentials | None:
    """What to check a password against; None for an unknown e-mail address."""
    rows = await connection.execute(
        sa.select(users.c.user_id, users.c.password_hash, users.c.password_change_time).where(
            users.c.email_key == email_key(email)
        )
    )
    row = rows.one_or_none()
    return None if row is None else Credentials(*row)


async def find_by_email_key(connection: AsyncConnection, *, key: str) -> User | None:
    """The account of an address as `email_key` writes it; None when there is none."""
    rows = await connection.execute(sa.select(*USER_COLUMNS).where(users.c.email_key == key))
    row = rows.one_or_none()
    return None if row is None else to_user(row)


async def get_user(connection: AsyncConnection, *, user_id: UUID) -> User:
    """An account. Raises USER_NOT_FOUND."""
    rows = await connection.execute(sa.select(*USER_COLUMNS).where(users.c.user_id == user_id))
    row = rows.one_or_none()
    if row is None:
        raise _no_such_user()
    return to_user(row)


async def lock_user(connection: AsyncConnection, *, user_id: UUID) -> User:
    """An account that does not change until the transaction ends. Raises USER_NOT_FOUND."""
    rows = await connection.execute(
        sa.select(*USER_COLUMNS).where(users.c.user_id == user_id).with_for_update(key_share=True)
    )
    row = rows.one_or_none()
    if row is None:
        raise _no_such_user()
    return to_user(row)


async def get_credentials(connection: AsyncConnection, *, user_id: UUID) -> Credentials:
    """What to check the password of a known user against."""
    rows = await connection.execute(
        sa.select(users.c.user_id, users.c.password_hash, users.c.password_change_time).where(
            users.c.user_id == user_id
        )
    )
    return Credentials(*rows.one())


async def lock_verified(connection: AsyncConnection, *, credentials: Credentials) -> User | None:
    """The account whose password was checked, as it is now; None when it has another by now.

    The row lock orders this sign-in against a deactivation or a new password: either
    comes first and is seen here, or it comes later and ends the session too.
    """
    rows = await connection.execute(
        sa.select(*USER_COLUMNS)
        .where(users.c.user_id == credentials.user_id)
        .where(users.c.password_change_time == credentials.password_change_time)
        .with_for_update(key_share=True)
    )
    row = rows.one_or_none()
    if row is None:
        return None
    user = to_user(row)
    require_active(user)
    return user


def require_active(user: User) -> None:
    """Raises ACCOUNT_DEACTIVATED."""
    if not user.is_active:
        raise DomainError(Reason.ACCOUNT_DEACTIVATED, "this account is deactivated")


async def replace_hash(connection: AsyncConnection, *, user_id: UUID, password_hash: str) -> None:
    """Stores another hash of the same password."""
    await connection.execute(
        sa.update(users).where(users.c.user_id == user_id).values(password_hash=password_hash)
    )


async def replace_password(
    connection: AsyncConnection, *, user_id: UUID, password_hash: str, now: datetime
) -> None:
    """Stores the hash of another password."""
    await connection.execute(
        sa.update(users)
        .where(users.c.user_id == user_id)
        .values(
            password_hash=password_hash,
            password_change_time=now,
            update_time=sa.func.greatest(users.c.update_time, now),
        )
    )


def email_key(email: str) -> str:
    """What addresses are compared by. Raises VALIDATION_FAILED for control characters."""
    if any(unicodedata.category(character) == "Cc" for character in email):
        raise invalid(FieldViolation("email", "must not contain control characters"))
    return email.casefold()


def _no_such_user() -> DomainError:
    return DomainError(Reason.USER_NOT_FOUND, "no such user")


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
)


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
    )
