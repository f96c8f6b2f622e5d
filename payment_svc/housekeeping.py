"""Deletes what nobody needs any more."""

import asyncio
from datetime import timedelta

from mesh import idempotency
from mesh.clock import Clock
from mesh.database import Database
from payment_svc.tables import idempotency_records

_IDEMPOTENCY_RETENTION = timedelta(days=3)
_INTERVAL_SECONDS = 3600.0


async def turn(database: Database, clock: Clock) -> None:
    """One turn of the loop, and the pause after it."""
    async with database.transaction() as connection:
        await idempotency.forget(
            connection, idempotency_records, before=clock() - _IDEMPOTENCY_RETENTION
        )
    await asyncio.sleep(_INTERVAL_SECONDS)
