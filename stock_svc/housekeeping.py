"""Periodic jobs: expire lapsed holds, and delete rows whose retention has passed."""

import asyncio
import logging
from datetime import timedelta

from mesh.clock import Clock
from mesh.db import idempotent, outbox
from mesh.db.database import Database
from stock_svc import expiry
from stock_svc.tables import idempotency_records
from stock_svc.tables import outbox as changes

_log = logging.getLogger(__name__)

_IDEMPOTENCY_RETENTION = timedelta(days=3)
# A consumer that was away for longer reads the stock itself: a change has the state, not a delta.
_CHANGE_RETENTION = timedelta(days=1)
_CHANGES_PER_TRANSACTION = 5_000
_INTERVAL_SECONDS = 600.0


async def sweep_turn(database: Database, clock: Clock, *, pause_seconds: float) -> None:
    """Expires all lapsed holds, then pauses."""
    expired = await expiry.sweep(database, now=clock())
    if expired:
        _log.info("expired lapsed holds", extra={"reservations": expired})
    await asyncio.sleep(pause_seconds)


async def deletion_turn(database: Database, clock: Clock) -> None:
    """Deletes old idempotency records and changes, then pauses for ten minutes."""
    now = clock()
    async with database.transaction() as connection:
        await idempotent.forget(
            connection, idempotency_records, before=now - _IDEMPOTENCY_RETENTION
        )
    deleted = _CHANGES_PER_TRANSACTION
    while deleted == _CHANGES_PER_TRANSACTION:
        async with database.transaction() as connection:
            deleted = await outbox.forget(
                connection, changes, before=now - _CHANGE_RETENTION, limit=_CHANGES_PER_TRANSACTION
            )
    await asyncio.sleep(_INTERVAL_SECONDS)
