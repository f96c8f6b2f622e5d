"""Tokens that prove who reads a mailbox. They are only in the mails; tables have their hashes."""

import hashlib
import secrets
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

_TOKEN_BYTES = 32


def new_token() -> str:
    return secrets.token_urlsafe(_TOKEN_BYTES)


def hash_of(token: str) -> bytes:
    # A token of 256 random bits needs neither a salt nor a slow hash.
    return hashlib.sha256(token.encode()).digest()


async def end_unused(
    connection: AsyncConnection, table: sa.Table, *, user_id: UUID, now: datetime
) -> None:
    """Invalidates all unused tokens of an account in a table."""
    await connection.execute(
        sa.update(table)
        .where(table.c.user_id == user_id, table.c.use_time.is_(None))
        .values(use_time=now)
    )
