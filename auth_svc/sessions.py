"""Sessions: from signing in to signing out, and the refresh tokens that carry them on.

A session is a family of refresh tokens, each made for one use: RFC 9700 section 4.14.2.
Access tokens name their session but are not stored (tokens.py).
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
"""A session ends then, however often it is refreshed."""

GRACE = timedelta(seconds=10)
"""So long after its use a refresh token still returns its successor: a lost reply, a second tab."""

REFRESHES_PER_MINUTE = 30
"""Of one user, in any 60 seconds. Here, for at the gateway nobody knows yet whose token it is."""

_MINUTE = timedelta(minutes=1)
_TOKEN_BYTES = 32

# A refresh that began before a revocation may reply after it, by a clock that goes after.
_TOKEN_MARGIN = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A session and its newest refresh token, which exists here and at the client only."""

    session_id: UUID
    user_id: UUID
    refresh_token: str
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Session:
    """A session that can be refreshed, until `expire_time` unless it is refreshed before."""

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
    """Begins a session; its first refresh token lapses after `idle_lifetime` without use."""
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
    """Uses a refresh token up and returns its successor, the same again during GRACE.

    The successor is HMAC-SHA-256(`key`, token), so that a process which dies between
    commit and reply, or another one, can say it again although only hashes are stored.

    None when the token was used before: the session has been ended, and the caller
    commits that before it refuses. Raises TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_WRONG_TYPE or
    RATE_LIMITED, which leaves the token as it is.
    """
    # What a JWT looks like: its header is a JSON object in base64url.
    if refresh_token.startswith("eyJ") and refresh_token.count(".") == 2:
        raise DomainError(Reason.TOKEN_WRONG_TYPE, "this is not a refresh token")
    token_hash = hash_of(refresh_token)
    # One session's refreshes come one after the other: of two at once, the later one
    # sees the token used and gets the same successor.
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
    # A statement of its own: it sees what was committed while the lock was awaited.
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
    is_lapsed = token.use_time is None and now >= token.expire_time
    if is_lapsed or now >= session.expire_time:
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
    """Counts what was used in the minute before `now`: no window has an edge to burst at."""
    oldest_that_counts = await connection.scalar(
        sa.select(refresh_tokens.c.use_time)
        .join_from(sessions, refresh_tokens)
        .where(sessions.c.user_id == user_id, refresh_tokens.c.use_time > now - _MINUTE)
        .order_by(refresh_tokens.c.use_time.desc())
        .offset(limit_per_minute - 1)
        .limit(1)
    )
    if oldest_that_counts is not None:
        pause = oldest_that_counts + _MINUTE - now
        raise DomainError(
            Reason.RATE_LIMITED,
            "too many refreshes; use the access token while it lives",
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
    # UUIDv7 sorts by the time of making.
    page = live if after is None else live.where(sessions.c.session_id < after)
    rows = await connection.execute(
        page.order_by(sessions.c.session_id.desc()).limit(page_size + 1)
    )
    found = [
        Session(row.session_id, row.create_time, row.refresh_time, row.expire_time) for row in rows
    ]
    shown = tuple(found[:page_size])
    more = len(found) > page_size
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
    """Ends a user's sessions, except `keep`, with the access tokens that they were given.

    Returns how many sessions could be refreshed until now.
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
    """Revokes a user's access tokens of until now, except those of `keep`.

    Tokens are told apart by a version and not by their time: it needs no two clocks that
    agree, and the next token holds also when it is made within the same second.
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
    """Ends a user's session and its access tokens.

    Returns 1 when it could be refreshed until now, else 0.
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


async def revoke(
    connection: AsyncConnection,
    *,
    user_id: UUID,
    session_id: UUID,
    access_lifetime: timedelta,
    now: datetime,
) -> None:
    """Ends a user's session, if not ended already. Raises SESSION_NOT_FOUND."""
    found = await connection.execute(
        sa.select(sessions.c.revoke_time).where(
            sessions.c.user_id == user_id, sessions.c.session_id == session_id
        )
    )
    session = found.one_or_none()
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
    """How a refresh token is stored. 256 random bits need no salt and no slow hash."""
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
    connection: AsyncConnection, which: sa.ColumnElement[bool], *, now: datetime
) -> list[bool]:
    """Ends sessions. For each that had not ended: whether it could be refreshed until now."""
    could_be_refreshed = sa.exists().where(
        refresh_tokens.c.session_id == sessions.c.session_id,
        refresh_tokens.c.use_time.is_(None),
        refresh_tokens.c.expire_time > now,
    )
    # In one order: two that end the same sessions at once do not wait for each other in a ring.
    locked = await connection.execute(
        sa.select(sessions.c.session_id)
        .where(which, sessions.c.revoke_time.is_(None))
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
    # One text for what was never a token and for what no longer is one.
    return DomainError(Reason.TOKEN_INVALID, "not a refresh token of a session; sign in again")


def _encode(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).decode().rstrip("=")
