"""Writes of the staff that a client may repeat under an idempotency key."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.tables import idempotency_records
from mesh.db import idempotent
from mesh.db.database import Database
from mesh.db.idempotent import Key
from mesh.errors import DomainError, Reason

Effect = Callable[[AsyncConnection], Awaitable[tuple[UUID, bytes]]]
"""Makes something in a transaction. Returns its id and the serialised answer."""


async def answer_once(
    database: Database, key: Key | None, effect: Effect, *, now: datetime
) -> bytes:
    """The answer of `effect`, or of the call with this key that had it first.

    Raises IDEMPOTENCY_IN_PROGRESS or IDEMPOTENCY_KEY_REUSED.
    """
    if key is None:
        async with database.transaction() as connection:
            return (await effect(connection))[1]
    async with idempotent.running(key):
        known = await stored(database, key)
        if known is not None:
            return known
        async with database.transaction() as connection:
            resource_id, answer = await effect(connection)
            await store(connection, key, resource_id, answer, now=now)
            return answer


async def stored(database: Database, key: Key) -> bytes | None:
    """The answer that the key stands for. Raises IDEMPOTENCY_KEY_REUSED."""
    async with database.reading() as connection:
        record = await idempotent.find(connection, idempotency_records, key)
    return None if record is None else record.response


async def store(
    connection: AsyncConnection, key: Key, resource_id: UUID, answer: bytes, *, now: datetime
) -> None:
    """Writes the answer with its effect. Another process's call with the key undoes both."""
    first = await idempotent.claim(
        connection, idempotency_records, key, resource_id=resource_id, now=now
    )
    if not first:
        raise DomainError(
            Reason.IDEMPOTENCY_IN_PROGRESS,
            "a call with this idempotency key has just ended: repeat it for its answer",
            retry_after_seconds=1,
        )
    await idempotent.finish(connection, idempotency_records, key, response=answer)
