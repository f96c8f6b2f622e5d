"""Periodic deletion of webhooks and idempotency records that are past their retention."""

import asyncio
from datetime import timedelta

from mesh.clock import Clock
from mesh.db import idempotent
from mesh.db.database import Database
from payment_svc import inbound, webhooks
from payment_svc.tables import idempotency_records

_IDEMPOTENCY_RETENTION = timedelta(days=3)
# A dispute can be opened for about as long after a payment.
_WEBHOOK_RETENTION = timedelta(days=180)
_BATCH = 1000
_INTERVAL_SECONDS = 3600.0


async def turn(database: Database, clock: Clock) -> None:
    """One turn of the loop, and the pause after it."""
    await sweep(database, clock)
    await asyncio.sleep(_INTERVAL_SECONDS)


async def sweep(database: Database, clock: Clock) -> None:
    """Deletes everything past its retention, in short transactions."""
    async with database.transaction() as connection:
        await idempotent.forget(
            connection, idempotency_records, before=clock() - _IDEMPOTENCY_RETENTION
        )
        await inbound.delete_old(connection, before=clock() - _WEBHOOK_RETENTION)
    deleted = _BATCH
    while deleted == _BATCH:
        async with database.transaction() as connection:
            deleted = await webhooks.delete_old(
                connection, before=clock() - _WEBHOOK_RETENTION, limit=_BATCH
            )
