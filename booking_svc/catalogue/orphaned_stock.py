"""Taking stock out of the ledger that no event of the catalogue sells.

An event that is being created writes its stock down as unwanted before the ledger hears of
it, and takes that back with its own row; a removed one writes it down when it goes. So
nothing stays behind, wherever a process dies.
"""

import asyncio
import logging
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue.tables import orphaned_stock
from booking_svc.clients.ports import Stock
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.errors import DomainError, Reason

_log = logging.getLogger(__name__)

CREATING = timedelta(seconds=60)
"""Longer than any creation can take."""

_RETRY = timedelta(seconds=30)
_BATCH = 20
_INTERVAL_SECONDS = 1.0


async def note(
    connection: AsyncConnection, *, event_id: UUID, due_time: datetime, taken: bool
) -> None:
    """Writes down that an event's stock is not wanted from then on."""
    await connection.execute(
        orphaned_stock.insert().values(event_id=event_id, due_time=due_time, taken=taken)
    )


async def want(connection: AsyncConnection, *, event_id: UUID) -> None:
    """The event is there: its stock stays. Raises DEPENDENCY_UNAVAILABLE when that comes too late."""
    kept = await connection.execute(
        sa.delete(orphaned_stock)
        .where(orphaned_stock.c.event_id == event_id)
        .where(~orphaned_stock.c.taken)
    )
    if kept.rowcount != 1:
        raise DomainError(
            Reason.DEPENDENCY_UNAVAILABLE, "creating the event took too long: try again"
        )


async def hurry(connection: AsyncConnection, *, event_id: UUID, now: datetime) -> None:
    """The event will not be there."""
    await connection.execute(
        sa.update(orphaned_stock)
        .where(orphaned_stock.c.event_id == event_id)
        .values(due_time=now, taken=True)
    )


async def remove_due(database: Database, stock: Stock, *, now: datetime) -> int:
    """Removes a batch. Returns how many it looked at; safe in several processes at once."""
    async with database.transaction() as connection:
        due = (
            sa.select(orphaned_stock.c.event_id)
            .where(orphaned_stock.c.due_time <= now)
            .order_by(orphaned_stock.c.due_time)
            .limit(_BATCH)
            .with_for_update(skip_locked=True)
        )
        found = (
            await connection.scalars(
                sa.update(orphaned_stock)
                .where(orphaned_stock.c.event_id.in_(due))
                .values(due_time=now + _RETRY, taken=True)
                .returning(orphaned_stock.c.event_id)
            )
        ).all()
    for event_id in found:
        try:
            await stock.remove(event_id=event_id)
        except DomainError as error:
            # Somebody was about to buy when it went: their hold ends, and then it works.
            _log.info(
                "the stock stays for now",
                extra={"event_id": str(event_id), "reason": error.reason},
            )
            continue
        async with database.transaction() as connection:
            await connection.execute(
                sa.delete(orphaned_stock).where(orphaned_stock.c.event_id == event_id)
            )
    return len(found)


async def run_once(database: Database, stock: Stock, clock: Clock) -> None:
    """One turn of the background loop."""
    if await remove_due(database, stock, now=clock()) < _BATCH:
        await asyncio.sleep(_INTERVAL_SECONDS)
