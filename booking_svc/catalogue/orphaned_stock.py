"""Removes stock from the ledger that no event of the catalogue sells.

The creation of an event schedules the removal of its stock before the ledger gets it, and
cancels the removal with the event's own row: a process that dies leaves no stock behind.
"""

import logging
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue.tables import orphaned_stock
from booking_svc.clients.ports import Stock
from mesh.db.database import Database
from mesh.db.jobs import JobQueue
from mesh.errors import DomainError, Reason

_log = logging.getLogger(__name__)

CREATING = timedelta(seconds=60)
"""Longer than any creation can take."""

IDLE_SECONDS = 3.0
"""The pause of the loop that calls `remove_due`."""

_RETRY = timedelta(seconds=30)
_BATCH = 20
_QUEUE = JobQueue(orphaned_stock)


async def schedule_removal(
    connection: AsyncConnection, *, event_id: UUID, due_time: datetime, taken: bool
) -> None:
    """Removes an event's stock from `due_time` on. `taken`: the event cannot keep it any more."""
    await connection.execute(
        orphaned_stock.insert().values(event_id=event_id, due_time=due_time, taken=taken)
    )


async def keep(connection: AsyncConnection, *, event_id: UUID) -> None:
    """Cancels the removal: the event exists. Raises DEPENDENCY_UNAVAILABLE after it has begun."""
    cancelled = await connection.execute(
        sa.delete(orphaned_stock)
        .where(orphaned_stock.c.event_id == event_id)
        .where(~orphaned_stock.c.taken)
    )
    if cancelled.rowcount != 1:
        raise DomainError(
            Reason.DEPENDENCY_UNAVAILABLE, "creating the event took too long: try again"
        )


async def remove_now(connection: AsyncConnection, *, event_id: UUID, now: datetime) -> None:
    """Makes a scheduled removal due: the event will not exist."""
    await _QUEUE.reschedule(connection, event_id, due_time=now, taken=True)


async def remove_due(database: Database, stock: Stock, *, now: datetime) -> int:
    """Removes a batch. Returns how many removals were due; any number of processes may run it."""
    async with database.single() as connection:
        rows = await _QUEUE.lease_where(
            connection, now=now, until=now + _RETRY, limit=_BATCH, taken=True
        )
    for row in rows:
        try:
            await stock.remove(event_id=row.event_id)
        except DomainError as error:
            # Some of it is held: the removal is repeated after the hold's end.
            _log.info(
                "stock not removed, retried later",
                extra={"event_id": str(row.event_id), "reason": error.reason},
            )
            continue
        async with database.single() as connection:
            await _QUEUE.delete(connection, row.event_id)
    return len(rows)
