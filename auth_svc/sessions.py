"""Sessions: from signing in to signing out, and the refresh tokens that carry them on.

A session is a family of refresh tokens, each made for one use. Access tokens name
their session but are not stored (tokens.py).
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc.tables import refresh_tokens, sessions
from mesh.ids import new_id

MAX_AGE = timedelta(days=30)
"""A session ends then, however often it is refreshed."""

_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session that has just begun. The refresh token exists here and at the client only."""

    session_id: UUID
    refresh_token: str


async def start(
    connection: AsyncConnection, *, user_id: UUID, idle_lifetime: timedelta, now: datetime
) -> NewSession:
    """Begins a session; its first refresh token lapses after `idle_lifetime` without use."""
    session_id = new_id()
    refresh_token = secrets.token_urlsafe(_TOKEN_BYTES)
    await connection.execute(
        sa.insert(sessions).values(
            session_id=session_id, user_id=user_id, create_time=now, expire_time=now + MAX_AGE
        )
    )
    await connection.execute(
        sa.insert(refresh_tokens).values(
            token_hash=hash_of(refresh_token),
            session_id=session_id,
            create_time=now,
            expire_time=now + min(idle_lifetime, MAX_AGE),
        )
    )
    return NewSession(session_id, refresh_token)


def hash_of(refresh_token: str) -> bytes:
    """How a refresh token is stored. 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(refresh_token.encode()).digest()
