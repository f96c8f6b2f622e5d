"""Password reset with a token from a mail.

A request does the same work for every address: it writes a row. A loop looks up the account
and queues the mail, so neither the answer nor its time tells which addresses have accounts.
The token is stored as a hash.
"""

import hashlib
import secrets
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import sessions
from auth_svc.accounts import (
    InTransaction,
    User,
    email_key,
    find_by_email_key,
    get_user,
    nothing,
    replace_password,
    require_active,
)
from auth_svc.mailing import Mailing
from auth_svc.passwords import PasswordHasher, check_policy
from auth_svc.tables import password_reset_requests, password_resets
from auth_svc.throttle import LoginThrottle
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id

LIFETIME = timedelta(minutes=30)
"""How long a token is valid."""

MIN_PAUSE = timedelta(minutes=1)
MAX_PER_HOUR = 5
"""Limit of mails to one account, whatever the number of requests."""

_TOKEN_BYTES = 32
_BATCH = 20


async def request(connection: AsyncConnection, *, email: str, now: datetime) -> None:
    """Records a request for this address. The same work for every address."""
    await connection.execute(
        postgresql.insert(password_reset_requests)
        .values(email_key=email_key(email), create_time=now)
        # A request is pending already: one mail is enough.
        .on_conflict_do_nothing()
    )


async def answer_due(database: Database, mailing: Mailing, clock: Clock) -> int:
    """One turn of the loop, which any number of processes may run. Returns how many it answered."""
    async with database.transaction() as connection:
        count = await answer_requests(connection, mailing, now=clock())
    if count:
        mailing.wake()
    return count


async def answer_requests(connection: AsyncConnection, mailing: Mailing, *, now: datetime) -> int:
    """Queues a mail for each request whose address has an account. Returns how many requests.

    Deactivated accounts get no mail, others at most one per MIN_PAUSE and MAX_PER_HOUR.
    """
    taken = (
        sa.select(password_reset_requests.c.email_key)
        .order_by(password_reset_requests.c.create_time)
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
        .cte("taken")
    )
    deleted = await connection.execute(
        sa.delete(password_reset_requests)
        .where(password_reset_requests.c.email_key == taken.c.email_key)
        .returning(password_reset_requests.c.email_key)
    )
    keys = deleted.scalars().all()
    for key in sorted(keys):
        user = await find_by_email_key(connection, key=key)
        if user is not None and user.is_active and await _may_have_mail(connection, user, now=now):
            await _issue(connection, mailing, user, now=now)
    return len(keys)


class PasswordReset:
    """Exchanges a token for a new password.

    Opens its own transactions, unlike other domain code: no transaction may stay open while a
    password is hashed, which takes long.
    """

    def __init__(
        self,
        *,
        database: Database,
        hasher: PasswordHasher,
        mailing: Mailing,
        throttle: LoginThrottle,
        access_lifetime: timedelta,
    ) -> None:
        self._database = database
        self._hasher = hasher
        self._mailing = mailing
        self._throttle = throttle
        self._access_lifetime = access_lifetime

    async def reset(
        self,
        *,
        token: str,
        new_password: str,
        now: datetime,
        in_transaction: InTransaction = nothing,
    ) -> None:
        """Replaces the password, ends all sessions and invalidates all tokens of the account.

        `in_transaction` is called in the last transaction. Raises TOKEN_INVALID, TOKEN_EXPIRED, PASSWORD_TOO_WEAK or ACCOUNT_DEACTIVATED.
        """
        token_hash = _hash_of(token)
        async with self._database.transaction() as connection:
            user = await get_user(
                connection, user_id=await _owner(connection, token_hash=token_hash, now=now)
            )
        require_active(user)
        check_policy(new_password, email=user.email, full_name=user.full_name, field="new_password")
        password_hash = await self._hasher.hash(new_password)
        async with self._database.transaction() as connection:
            # The account is locked first, as everywhere: this orders two uses of one token.
            user = await get_user(connection, user_id=user.user_id, lock=True)
            require_active(user)
            await _owner(connection, token_hash=token_hash, now=now)
            await end_resets(connection, user_id=user.user_id, now=now)
            await replace_password(
                connection, user_id=user.user_id, password_hash=password_hash, now=now
            )
            await sessions.end_all(
                connection, user_id=user.user_id, access_lifetime=self._access_lifetime, now=now
            )
            await self._mailing.password_changed(connection, user, now=now)
            await in_transaction(connection, user)
            await self._throttle.clear_row(connection, email_key(user.email))
        await self._throttle.clear(email_key(user.email))
        self._mailing.wake()


async def end_resets(connection: AsyncConnection, *, user_id: UUID, now: datetime) -> None:
    """Invalidates all tokens of an account, after one was used or the password changed."""
    await connection.execute(
        sa.update(password_resets)
        .where(password_resets.c.user_id == user_id, password_resets.c.use_time.is_(None))
        .values(use_time=now)
    )


async def _may_have_mail(connection: AsyncConnection, user: User, *, now: datetime) -> bool:
    last_hour = await connection.execute(
        sa.select(sa.func.count(), sa.func.max(password_resets.c.create_time))
        .where(password_resets.c.user_id == user.user_id)
        .where(password_resets.c.create_time > now - timedelta(hours=1))
    )
    count, newest = last_hour.one()
    return count < MAX_PER_HOUR and (newest is None or now - newest >= MIN_PAUSE)


async def _issue(
    connection: AsyncConnection, mailing: Mailing, user: User, *, now: datetime
) -> None:
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    await connection.execute(
        sa.insert(password_resets).values(
            token_hash=_hash_of(token),
            user_id=user.user_id,
            create_time=now,
            expire_time=now + LIFETIME,
        )
    )
    await mailing.password_reset(
        connection, user, reset_id=new_id(), token=token, expire_time=now + LIFETIME, now=now
    )


async def _owner(connection: AsyncConnection, *, token_hash: bytes, now: datetime) -> UUID:
    """The id of the account whose password a token may replace.

    Raises TOKEN_INVALID or TOKEN_EXPIRED.
    """
    rows = await connection.execute(
        sa.select(
            password_resets.c.user_id, password_resets.c.use_time, password_resets.c.expire_time
        ).where(password_resets.c.token_hash == token_hash)
    )
    reset = rows.one_or_none()
    if reset is None or reset.use_time is not None:
        raise DomainError(
            Reason.TOKEN_INVALID, "the link is invalid or was used already; request another one"
        )
    if now >= reset.expire_time:
        raise DomainError(Reason.TOKEN_EXPIRED, "the link has expired; request another one")
    user_id: UUID = reset.user_id
    return user_id


def _hash_of(token: str) -> bytes:
    # A token of 256 random bits needs neither a salt nor a slow hash.
    return hashlib.sha256(token.encode()).digest()
