"""Sessions, from sign-in to sign-out, and their refresh tokens.

A session is a family of refresh tokens for one use each: RFC 9700 section 4.14.2. Access tokens
name their session and are not stored (tokens.py).
"""

import base64
import hashlib
import hmac
import math
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import outbox
from auth_svc.tables import refresh_tokens, sessions, users
from mesh import paging
from mesh.errors import DomainError, Reason
from mesh.ids import new_id

MAX_AGE = timedelta(days=30)
"""Lifetime of a session, whatever the number of refreshes."""

GRACE = timedelta(seconds=10)
"""For this long a used refresh token returns its successor again: after a lost reply, or in a second tab."""

REFRESHES_PER_MINUTE = 30
"""Limit per user in any 60 seconds. Enforced here: the gateway does not know a token's user."""

_MINUTE = timedelta(minutes=1)
_TOKEN_BYTES = 32

# A refresh that started before a revocation may issue a token after it, by a clock that is behind.
_TOKEN_MARGIN = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A session and its newest refresh token, which is not stored."""

    session_id: UUID
    user_id: UUID
    refresh_token: str
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Session:
    """A session that can be refreshed until `expire_time`; each refresh moves that time."""

    session_id: UUID
    create_time: datetime
    refresh_time: datetime
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Sessions, newest first. `next_page_token` is empty on the last page."""

    sessions: tuple[Session, ...]
    next_page_token: str
    total_size: int


async def start(
    connection: AsyncConnection, *, user_id: UUID, idle_lifetime: timedelta, now: datetime
) -> Tokens:
    """Starts a session. A refresh token expires after `idle_lifetime` without use."""
    session_id = new_id()
    end = now + MAX_AGE
    await connection.execute(
        sa.insert(sessions).values(
            session_id=session_id, user_id=user_id, create_time=now, expire_time=end
        )
    )
    first = Tokens(
        session_id,
        user_id,
        refresh_token=_encode(secrets.token_bytes(_TOKEN_BYTES)),
        expire_time=min(now + idle_lifetime, end),
    )
    await _insert_token(connection, tokens=first, now=now)
    return first


async def rotate(
    connection: AsyncConnection,
    *,
    refresh_token: str,
    key: bytes,
    idle_lifetime: timedelta,
    access_lifetime: timedelta,
    limit_per_minute: int,
    now: datetime,
) -> Tokens | None:
    """Marks a refresh token as used and returns its successor; during GRACE the same one again.

    The successor is HMAC-SHA-256(`key`, token), so that any process can compute it again after a
    crash between commit and reply, although only hashes are stored.

    Returns None for a token that was used before GRACE: the session was ended, which the caller
    must commit before it refuses. Raises TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_WRONG_TYPE, or
    RATE_LIMITED without using the token.
    """
    # The form of a JWT: its header is a JSON object in base64url.
    if refresh_token.startswith("eyJ") and refresh_token.count(".") == 2:
        raise DomainError(Reason.TOKEN_WRONG_TYPE, "this is not a refresh token")
    token_hash = hash_of(refresh_token)
    # Orders the refreshes of a session: of two concurrent ones, the later one finds the token used
    # and returns the same successor.
    rows = await connection.execute(
        sa.select(sessions)
        .where(
            sessions.c.session_id
            == sa.select(refresh_tokens.c.session_id)
            .where(refresh_tokens.c.token_hash == token_hash)
            .scalar_subquery()
        )
        .with_for_update(key_share=True)
    )
    session = rows.one_or_none()
    if session is None:
        raise _not_usable()
    # A separate statement sees changes that were committed during the wait for the lock.
    rows = await connection.execute(
        sa.select(refresh_tokens.c.use_time, refresh_tokens.c.expire_time).where(
            refresh_tokens.c.token_hash == token_hash
        )
    )
    token = rows.one()
    if token.use_time is not None and now - token.use_time > GRACE:
        await end_one(
            connection,
            user_id=session.user_id,
            session_id=session.session_id,
            access_lifetime=access_lifetime,
            now=now,
        )
        return None
    if session.revoke_time is not None:
        raise _not_usable()
    is_expired = token.use_time is None and now >= token.expire_time
    if is_expired or now >= session.expire_time:
        raise DomainError(Reason.TOKEN_EXPIRED, "the refresh token has expired; sign in again")
    use_time = token.use_time or now
    successor = Tokens(
        session.session_id,
        session.user_id,
        refresh_token=_encode(hmac.digest(key, refresh_token.encode(), hashlib.sha256)),
        expire_time=min(use_time + idle_lifetime, session.expire_time),
    )
    if token.use_time is None:
        await _refuse_too_many(
            connection, user_id=session.user_id, limit_per_minute=limit_per_minute, now=now
        )
        await connection.execute(
            sa.update(refresh_tokens)
            .where(refresh_tokens.c.token_hash == token_hash)
            .values(use_time=now)
        )
        await _insert_token(connection, tokens=successor, now=now)
    return successor


async def _refuse_too_many(
    connection: AsyncConnection, *, user_id: UUID, limit_per_minute: int, now: datetime
) -> None:
    """Raises RATE_LIMITED. Counts the tokens used in the minute before `now`: a sliding window."""
    limiting_time = await connection.scalar(
        sa.select(refresh_tokens.c.use_time)
        .join_from(sessions, refresh_tokens)
        .where(sessions.c.user_id == user_id, refresh_tokens.c.use_time > now - _MINUTE)
        .order_by(refresh_tokens.c.use_time.desc())
        .offset(limit_per_minute - 1)
        .limit(1)
    )
    if limiting_time is not None:
        pause = limiting_time + _MINUTE - now
        raise DomainError(
            Reason.RATE_LIMITED,
            "too many refreshes; use the access token until it expires",
            retry_after_seconds=math.ceil(pause.total_seconds()),
        )


async def list_page(
    connection: AsyncConnection, *, user_id: UUID, page_size: int, page_token: str, now: datetime
) -> SessionPage:
    """A page of a user's sessions that can be refreshed. Raises VALIDATION_FAILED."""
    live = (
        sa.select(
            sessions.c.session_id,
            sessions.c.create_time,
            refresh_tokens.c.create_time.label("refresh_time"),
            refresh_tokens.c.expire_time,
        )
        .join_from(sessions, refresh_tokens)
        .where(sessions.c.user_id == user_id, sessions.c.revoke_time.is_(None))
        .where(refresh_tokens.c.use_time.is_(None), refresh_tokens.c.expire_time > now)
    )
    total = await connection.execute(sa.select(sa.func.count()).select_from(live.subquery()))
    after = paging.id_from_token(page_token)
    # UUIDv7 sorts by creation time.
    page = live if after is None else live.where(sessions.c.session_id < after)
    rows = await connection.execute(
        page.order_by(sessions.c.session_id.desc()).limit(page_size + 1)
    )
    listed = [
        Session(row.session_id, row.create_time, row.refresh_time, row.expire_time) for row in rows
    ]
    shown = tuple(listed[:page_size])
    more = len(listed) > page_size
    return SessionPage(
        shown, paging.to_token(str(shown[-1].session_id)) if more else "", total.scalar_one()
    )


async def end_all(
    connection: AsyncConnection,
    *,
    user_id: UUID,
    keep: UUID | None = None,
    access_lifetime: timedelta,
    now: datetime,
) -> int:
    """Ends a user's sessions, except `keep`, and revokes their access tokens.

    Returns how many of the sessions could still be refreshed.
    """
    await revoke_access(
        connection, user_id=user_id, keep=keep, access_lifetime=access_lifetime, now=now
    )
    ended = sessions.c.user_id == user_id
    if keep is not None:
        ended &= sessions.c.session_id != keep
    return sum(await _end(connection, ended, now=now))


async def revoke_access(
    connection: AsyncConnection,
    *,
    user_id: UUID,
    keep: UUID | None = None,
    access_lifetime: timedelta,
    now: datetime,
) -> None:
    """Revokes a user's access tokens issued so far, except those of `keep`.

    Revoked tokens are recognised by a version, not by time: this needs no synchronised clocks, and
    a token issued within the same second is valid.
    """
    version = await connection.scalar(
        sa.update(users)
        .where(users.c.user_id == user_id)
        .values(access_version=users.c.access_version + 1)
        .returning(users.c.access_version)
    )
    if version is not None:
        await outbox.access_revoked(
            connection,
            user_id=user_id,
            min_version=version,
            kept_session_id=keep,
            until=now + access_lifetime + _TOKEN_MARGIN,
            now=now,
        )


async def end_one(
    connection: AsyncConnection,
    *,
    user_id: UUID,
    session_id: UUID,
    access_lifetime: timedelta,
    now: datetime,
) -> int:
    """Ends a user's session and revokes its access tokens.

    Returns 1 when the session could still be refreshed, else 0.
    """
    ended = (sessions.c.user_id == user_id) & (sessions.c.session_id == session_id)
    could_be_refreshed = await _end(connection, ended, now=now)
    if could_be_refreshed:
        await outbox.session_revoked(
            connection,
            session_id=session_id,
            user_id=user_id,
            until=now + access_lifetime + _TOKEN_MARGIN,
            now=now,
        )
    return sum(could_be_refreshed)


async def end_all_from(
    connection: AsyncConnection,
    *,
    user_id: UUID,
    session_id: UUID,
    access_lifetime: timedelta,
    now: datetime,
) -> int:
    """Ends all of a user's sessions for a token of `session_id`, which may have expired.

    If that session has ended already, ends nothing: a token that was revoked must not sign the
    user out elsewhere. Returns how many sessions could still be refreshed.
    """
    ended = await end_one(
        connection,
        user_id=user_id,
        session_id=session_id,
        access_lifetime=access_lifetime,
        now=now,
    )
    if not ended:
        return 0
    return ended + await end_all(
        connection, user_id=user_id, access_lifetime=access_lifetime, now=now
    )


async def revoke(
    connection: AsyncConnection,
    *,
    user_id: UUID,
    session_id: UUID,
    access_lifetime: timedelta,
    now: datetime,
) -> None:
    """Ends a user's session, if not ended already. Raises SESSION_NOT_FOUND."""
    rows = await connection.execute(
        sa.select(sessions.c.revoke_time).where(
            sessions.c.user_id == user_id, sessions.c.session_id == session_id
        )
    )
    session = rows.one_or_none()
    if session is None:
        raise DomainError(Reason.SESSION_NOT_FOUND, "no such session")
    if session.revoke_time is None:
        await end_one(
            connection,
            user_id=user_id,
            session_id=session_id,
            access_lifetime=access_lifetime,
            now=now,
        )


def hash_of(refresh_token: str) -> bytes:
    """The stored form of a token. 256 random bits need neither a salt nor a slow hash."""
    return hashlib.sha256(refresh_token.encode()).digest()


async def _insert_token(connection: AsyncConnection, *, tokens: Tokens, now: datetime) -> None:
    await connection.execute(
        sa.insert(refresh_tokens).values(
            token_hash=hash_of(tokens.refresh_token),
            session_id=tokens.session_id,
            create_time=now,
            expire_time=tokens.expire_time,
        )
    )


async def _end(
    connection: AsyncConnection, condition: sa.ColumnElement[bool], *, now: datetime
) -> list[bool]:
    """Ends sessions. Returns for each that had not ended whether it could still be refreshed."""
    could_be_refreshed = sa.exists().where(
        refresh_tokens.c.session_id == sessions.c.session_id,
        refresh_tokens.c.use_time.is_(None),
        refresh_tokens.c.expire_time > now,
    )
    # Locked in one order, so that two transactions that end the same sessions cannot deadlock.
    locked = await connection.execute(
        sa.select(sessions.c.session_id)
        .where(condition, sessions.c.revoke_time.is_(None))
        .order_by(sessions.c.session_id)
        .with_for_update(key_share=True)
    )
    ended = await connection.execute(
        sa.update(sessions)
        .where(sessions.c.session_id.in_(locked.scalars().all()))
        .values(revoke_time=now)
        .returning(could_be_refreshed)
    )
    return list(ended.scalars())


def _not_usable() -> DomainError:
    # The same text for an unknown token and for one of an ended session.
    return DomainError(Reason.TOKEN_INVALID, "not a refresh token of a session; sign in again")


def _encode(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).decode().rstrip("=")
