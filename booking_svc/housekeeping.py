"""Deletes rows that are no longer needed, and indexes rows for the search that are not."""

import asyncio
from datetime import timedelta

from booking_svc.catalogue import search_index
from booking_svc.queueing import retention
from booking_svc.tables import idempotency_records
from mesh.clock import Clock
from mesh.db import idempotent
from mesh.db.database import Database

IDEMPOTENCY_RETENTION = timedelta(days=3)
_INTERVAL_SECONDS = 3600.0


async def sweep(database: Database, clock: Clock) -> int:
    """Deletes idempotency records after the 3 days that the API promises, and what waiting rooms
    know of accounts. Returns how many records.
    """
    async with database.transaction() as connection:
        records = await idempotent.forget(
            connection, idempotency_records, before=clock() - IDEMPOTENCY_RETENTION
        )
    await retention.delete_old(database, now=clock())
    return records


async def run_once(database: Database, clock: Clock) -> None:
    """One turn of the background loop."""
    await sweep(database, clock)
    await search_index.index_missing(database)
    await asyncio.sleep(_INTERVAL_SECONDS)
