"""Accounts: signing up, signing in, and who is who.

`Accounts` opens its own transactions, unlike other domain code: hashing a password
takes long, and no transaction may be open meanwhile.
"""

import hmac
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import sessions, tokens
from auth_svc.passwords import PasswordHasher, check_policy, is_same
from auth_svc.tables import users
from auth_svc.tokens import SigningKey
from mesh.database import Database
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id


class Role(StrEnum):
    """What an account may do. It comes from the account, never from the client."""

    CUSTOMER = "CUSTOMER"
    STAFF = "STAFF"
    ADMIN = "ADMIN"


@dataclass(frozen=True, slots=True)
class User:
    """An account as its owner sees it; `phone` and `address` are empty when unknown."""

    user_id: UUID
    email: str
    full_name: str
    phone: str
    address: str
    role: Role
    is_active: bool
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a password is checked against, and when it was last changed."""

    user_id: UUID
    password_hash: str
    password_change_time: datetime


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A session's newest tokens and how long they live."""

    user: User
    access_token: str
    access_lifetime: timedelta
    refresh_token: str
    refresh_lifetime: timedelta


class Accounts:
    """Signing up, in and on: password work between two short transactions.

    Admin sign-up is off without `admin_secret`.
    """

    def __init__(
        self,
        *,
        database: Database,
        hasher: PasswordHasher,
        key: SigningKey,
        refresh_key: bytes,
        admin_secret: str | None,
        access_lifetime: timedelta,
        refresh_lifetime: timedelta,
    ) -> None:
        self._database = database
        self._hasher = hasher
        self._key = key
        self._refresh_key = refresh_key
        self._admin_secret = admin_secret
        self._access_lifetime = access_lifetime
        self._refresh_lifetime = refresh_lifetime

    async def register(
        self, *, email: str, password: str, full_name: str, phone: str, now: datetime
    ) -> User:
        """Makes a customer's account. Raises PASSWORD_TOO_WEAK or EMAIL_ALREADY_REGISTERED."""
        return await self._sign_up(
            role=Role.CUSTOMER,
            email=email,
            password=password,
            full_name=full_name,
            phone=phone,
            now=now,
        )

    async def register_admin(
        self,
        *,
        email: str,
        password: str,
        full_name: str,
        phone: str,
        admin_secret: str,
        now: datetime,
    ) -> User:
        """Makes an admin's account. Raises INVALID_ADMIN_SECRET, and what `register` raises."""
        expected = self._admin_secret
        if expected is None or not hmac.compare_digest(expected.encode(), admin_secret.encode()):
            raise DomainError(Reason.INVALID_ADMIN_SECRET, "admin sign-up needs the right secret")
        return await self._sign_up(
            role=Role.ADMIN,
            email=email,
            password=password,
            full_name=full_name,
            phone=phone,
            now=now,
        )

    async def login(self, *, email: str, password: str, now: datetime) -> SignedIn:
        """Begins a session.

        Raises INVALID_CREDENTIALS for an unknown e-mail and for a wrong password, after the
        same time, and ACCOUNT_DEACTIVATED to those who know the password.
        """
        async with self._database.transaction() as connection:
            found = await find_credentials(connection, email=email)
        is_right = await self._hasher.verify(password, found.password_hash if found else None)
        if found is None or not is_right:
            raise _wrong_credentials()
        fresh_hash = None
        if self._hasher.is_outdated(found.password_hash):
            fresh_hash = await self._hasher.hash(password)
        async with self._database.transaction() as connection:
            user = await _lock_verified(connection, credentials=found)
            if user is None:
                raise _wrong_credentials()
            if fresh_hash is not None:
                await _replace_hash(connection, user_id=user.user_id, password_hash=fresh_hash)
            session = await sessions.start(
                connection, user_id=user.user_id, idle_lifetime=self._refresh_lifetime, now=now
            )
        return self._signed_in(user, session, now=now)

    async def refresh(self, *, refresh_token: str, now: datetime) -> SignedIn:
        """The next tokens of a session.

        Raises TOKEN_INVALID, TOKEN_EXPIRED, ACCOUNT_DEACTIVATED, or TOKEN_REUSED after
        ending the session.
        """
        async with self._database.transaction() as connection:
            session = await sessions.rotate(
                connection,
                refresh_token=refresh_token,
                key=self._refresh_key,
                idle_lifetime=self._refresh_lifetime,
                now=now,
            )
            if session is not None:
                user = await get_user(connection, user_id=session.user_id)
                _require_active(user)
        # Outside of the block: an error in it would undo the end of the session.
        if session is None:
            raise DomainError(
                Reason.TOKEN_REUSED, "this refresh token was used before; sign in again"
            )
        return self._signed_in(user, session, now=now)

    async def change_password(
        self,
        *,
        user_id: UUID,
        session_id: UUID,
        current_password: str,
        new_password: str,
        now: datetime,
    ) -> datetime:
        """Replaces the password and ends every session but `session_id`.

        Returns when it changed. Raises PASSWORD_TOO_WEAK, CURRENT_PASSWORD_INCORRECT,
        PASSWORD_UNCHANGED, ACCOUNT_DEACTIVATED or USER_NOT_FOUND.
        """
        async with self._database.transaction() as connection:
            user = await get_user(connection, user_id=user_id)
            credentials = await _get_credentials(connection, user_id=user_id)
        check_policy(new_password, email=user.email, full_name=user.full_name, field="new_password")
        if not await self._hasher.verify(current_password, credentials.password_hash):
            raise _wrong_current_password()
        if is_same(current_password, new_password):
            raise DomainError(
                Reason.PASSWORD_UNCHANGED,
                "the new password is the one of now",
                violations=(FieldViolation("new_password", "must be another password than now"),),
            )
        password_hash = await self._hasher.hash(new_password)
        async with self._database.transaction() as connection:
            if await _lock_verified(connection, credentials=credentials) is None:
                raise _wrong_current_password()
            await connection.execute(
                sa.update(users)
                .where(users.c.user_id == user_id)
                .values(
                    password_hash=password_hash,
                    password_change_time=now,
                    update_time=sa.func.greatest(users.c.update_time, now),
                )
            )
            await sessions.end_all(connection, user_id=user_id, keep=session_id, now=now)
        return now

    async def get(self, user_id: UUID) -> User:
        """An account. Raises USER_NOT_FOUND."""
        async with self._database.transaction() as connection:
            return await get_user(connection, user_id=user_id)

    async def _sign_up(
        self, *, role: Role, email: str, password: str, full_name: str, phone: str, now: datetime
    ) -> User:
        check_policy(password, email=email, full_name=full_name)
        password_hash = await self._hasher.hash(password)
        user = User(
            user_id=new_id(),
            email=email,
            full_name=full_name,
            phone=phone,
            address="",
            role=role,
            is_active=True,
            create_time=now,
            update_time=now,
        )
        async with self._database.transaction() as connection:
            await insert_user(connection, user=user, password_hash=password_hash)
        return user

    def _signed_in(self, user: User, session: sessions.Tokens, *, now: datetime) -> SignedIn:
        access_token = tokens.issue(
            self._key,
            user_id=user.user_id,
            session_id=session.session_id,
            role=user.role,
            lifetime=self._access_lifetime,
            now=now,
        )
        return SignedIn(
            user,
            access_token,
            self._access_lifetime,
            session.refresh_token,
            session.expire_time - now,
        )


async def insert_user(connection: AsyncConnection, *, user: User, password_hash: str) -> None:
    """Stores a new account. Raises EMAIL_ALREADY_REGISTERED, whatever the letters' case."""
    inserted = await connection.execute(
        postgresql.insert(users)
        .values(
            user_id=user.user_id,
            email=user.email,
            email_key=_email_key(user.email),
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


async def find_credentials(connection: AsyncConnection, *, email: str) -> Credentials | None:
    """What to check a password against; None for an unknown e-mail address."""
    rows = await connection.execute(
        sa.select(users.c.user_id, users.c.password_hash, users.c.password_change_time).where(
            users.c.email_key == _email_key(email)
        )
    )
    row = rows.one_or_none()
    return None if row is None else Credentials(*row)


async def get_user(connection: AsyncConnection, *, user_id: UUID) -> User:
    """An account. Raises USER_NOT_FOUND."""
    rows = await connection.execute(sa.select(*USER_COLUMNS).where(users.c.user_id == user_id))
    row = rows.one_or_none()
    if row is None:
        raise DomainError(Reason.USER_NOT_FOUND, "no such user")
    return to_user(row)


async def _get_credentials(connection: AsyncConnection, *, user_id: UUID) -> Credentials:
    rows = await connection.execute(
        sa.select(users.c.user_id, users.c.password_hash, users.c.password_change_time).where(
            users.c.user_id == user_id
        )
    )
    return Credentials(*rows.one())


async def _lock_verified(connection: AsyncConnection, *, credentials: Credentials) -> User | None:
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
    _require_active(user)
    return user


def _require_active(user: User) -> None:
    if not user.is_active:
        raise DomainError(Reason.ACCOUNT_DEACTIVATED, "this account is deactivated")


async def _replace_hash(connection: AsyncConnection, *, user_id: UUID, password_hash: str) -> None:
    await connection.execute(
        sa.update(users).where(users.c.user_id == user_id).values(password_hash=password_hash)
    )


def _email_key(email: str) -> str:
    """What addresses are compared by. Raises VALIDATION_FAILED for control characters."""
    if any(unicodedata.category(character) == "Cc" for character in email):
        raise invalid(FieldViolation("email", "must not contain control characters"))
    return email.casefold()


def _wrong_credentials() -> DomainError:
    # One text for both: it must not tell which addresses have accounts.
    return DomainError(Reason.INVALID_CREDENTIALS, "wrong e-mail address or password")


def _wrong_current_password() -> DomainError:
    return DomainError(
        Reason.CURRENT_PASSWORD_INCORRECT,
        "this is not the password of now",
        violations=(FieldViolation("current_password", "is not the password of now"),),
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
    )
