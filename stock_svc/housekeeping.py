"""Deletes what nobody needs any more."""

import asyncio
from datetime import timedelta

from mesh.clock import Clock
from mesh.db import idempotent, outbox
from mesh.db.database import Database
from stock_svc.tables import idempotency_records
from stock_svc.tables import outbox as changes

_IDEMPOTENCY_RETENTION = timedelta(days=3)
# A change only tells what is: who was away for longer reads the stock again.
_CHANGE_RETENTION = timedelta(days=1)
_CHANGES_AT_ONCE = 5_000
_INTERVAL_SECONDS = 600.0


async def turn(database: Database, clock: Clock) -> None:
    """One turn of the loop, and the pause after it."""
    now = clock()
    async with database.transaction() as connection:
        await idempotent.forget(
            connection, idempotency_records, before=now - _IDEMPOTENCY_RETENTION
        )
    deleted = _CHANGES_AT_ONCE
    while deleted == _CHANGES_AT_ONCE:
        async with database.transaction() as connection:
            deleted = await outbox.forget(
                connection, changes, before=now - _CHANGE_RETENTION, limit=_CHANGES_AT_ONCE
            )
    await asyncio.sleep(_INTERVAL_SECONDS)
