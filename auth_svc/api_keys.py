"""API keys: what machines send in place of an access token. Stored as SHA-256.

A key acts for itself: its id is the `sub` of its tokens and the customer of its bookings. The
gateway exchanges it at each call (servicers/authorization.py).
"""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc.accounts import Role
from auth_svc.sessions import hash_of
from auth_svc.tables import api_keys
from mesh import paging
from mesh.db.database import Database
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id
from mesh.rpc.identity import API_KEY_PREFIX

MAX_LIFETIME = timedelta(days=366)
_KEY_BYTES = 32
# Enough to recognise a key in the list, too little to guess it.
_START_LENGTH = len(API_KEY_PREFIX) + 4
_USE_RESOLUTION = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as admins see it. `last_use_time` is accurate to the hour."""

    api_key_id: UUID
    name: str
    role: Role
    key_start: str
    creator_id: UUID
    create_time: datetime
    expire_time: datetime
    revoke_time: datetime | None = None
    last_use_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class ApiKeyPage:
    """Keys, newest first. `next_page_token` is empty on the last page."""

    api_keys: tuple[ApiKey, ...]
    next_page_token: str
    total_size: int


async def create(
    connection: AsyncConnection,
    *,
    name: str,
    role: Role,
    expire_time: datetime,
    creator_id: UUID,
    now: datetime,
) -> tuple[ApiKey, str]:
    """Stores a new key. Returns it and its text, which is not stored. Raises VALIDATION_FAILED."""
    if not now < expire_time <= now + MAX_LIFETIME:
        raise invalid(
            FieldViolation(
                "expire_time", f"must be in the future, at most {MAX_LIFETIME.days} days from now"
            )
        )
    text = API_KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    key = ApiKey(new_id(), name, role, text[:_START_LENGTH], creator_id, now, expire_time)
    await connection.execute(
        sa.insert(api_keys).values(
            api_key_id=key.api_key_id,
            key_hash=hash_of(text),
            key_start=key.key_start,
            name=name,
            role=role,
            creator_id=creator_id,
            create_time=now,
            expire_time=expire_time,
        )
    )
    return key, text


async def list_page(connection: AsyncConnection, *, page_size: int, page_token: str) -> ApiKeyPage:
    """A page of all keys. Raises VALIDATION_FAILED for a `page_token` of another list."""
    total = await connection.execute(sa.select(sa.func.count()).select_from(api_keys))
    after = paging.id_from_token(page_token)
    # UUIDv7 sorts by creation time.
    beyond = sa.true() if after is None else api_keys.c.api_key_id < after
    rows = await connection.execute(
        _KEYS.where(beyond).order_by(api_keys.c.api_key_id.desc()).limit(page_size + 1)
    )
    listed = [_to_key(row) for row in rows]
    shown = tuple(listed[:page_size])
    more = len(listed) > page_size
    return ApiKeyPage(
        shown, paging.to_token(str(shown[-1].api_key_id)) if more else "", total.scalar_one()
    )


async def revoke(connection: AsyncConnection, *, api_key_id: UUID, now: datetime) -> None:
    """Revokes a key, if not revoked already. Raises API_KEY_NOT_FOUND."""
    revoked = await connection.execute(
        sa.update(api_keys)
        .where(api_keys.c.api_key_id == api_key_id)
        .values(revoke_time=sa.func.coalesce(api_keys.c.revoke_time, now))
    )
    if revoked.rowcount == 0:
        raise DomainError(Reason.API_KEY_NOT_FOUND, "no such API key")


async def authenticate(database: Database, *, text: str, now: datetime) -> ApiKey:
    """The key with this text. Raises TOKEN_INVALID, or TOKEN_EXPIRED."""
    async with database.reading() as connection:
        rows = await connection.execute(_KEYS.where(api_keys.c.key_hash == hash_of(text)))
        row = rows.one_or_none()
    if row is None or row.revoke_time is not None:
        raise DomainError(Reason.TOKEN_INVALID, "the API key is unknown or revoked")
    key = _to_key(row)
    if now >= key.expire_time:
        raise DomainError(Reason.TOKEN_EXPIRED, "the API key has expired")
    # A write per hour, not per call.
    if key.last_use_time is None or now - key.last_use_time >= _USE_RESOLUTION:
        async with database.single() as connection:
            await connection.execute(
                sa.update(api_keys)
                .where(api_keys.c.api_key_id == key.api_key_id)
                .values(last_use_time=now)
            )
    return key


_KEYS = sa.select(
    api_keys.c.api_key_id,
    api_keys.c.name,
    api_keys.c.role,
    api_keys.c.key_start,
    api_keys.c.creator_id,
    api_keys.c.create_time,
    api_keys.c.expire_time,
    api_keys.c.revoke_time,
    api_keys.c.last_use_time,
)


def _to_key(row: sa.Row[*tuple[Any, ...]]) -> ApiKey:
    return ApiKey(
        api_key_id=row.api_key_id,
        name=row.name,
        role=Role(row.role),
        key_start=row.key_start,
        creator_id=row.creator_id,
        create_time=row.create_time,
        expire_time=row.expire_time,
        revoke_time=row.revoke_time,
        last_use_time=row.last_use_time,
    )
