"""Which pools the ledger keeps for a waiting list.

While entries wait for a pool, what comes back in it can be reserved for the list only. The list's
row has the pools and a version; the ledger applies each version once, and older ones not at all.
A change is written with its cause and sent after the commit: by the call, and after a crash by the
list's job.
"""

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.clients.ports import Stock
from booking_svc.queueing.waiting_list_entries import WAITING, WaitingList, in_states
from booking_svc.queueing.waiting_list_tables import (
    waiting_list_entries,
    waiting_list_gathering,
    waiting_lists,
)
from mesh.db.database import Database
from mesh.errors import DomainError, Reason


async def refresh(
    connection: AsyncConnection,
    locked: WaitingList,
    *,
    opened: Collection[UUID] = (),
    now: datetime,
) -> None:
    """Writes the pools of the entries that wait, if they have changed, and `opened`.

    The list is due, to send the change.
    """
    pool_ids = await connection.scalars(
        sa.select(sa.func.unnest(waiting_list_entries.c.pool_ids))
        .where(waiting_list_entries.c.event_id == locked.event_id, in_states(*WAITING))
        .distinct()
    )
    kept = set(pool_ids)
    if kept == set(locked.kept_pool_ids) and not opened:
        return
    # A pool that nobody waits for keeps nothing: its places gather anew later.
    await connection.execute(
        sa.delete(waiting_list_gathering).where(
            waiting_list_gathering.c.event_id == locked.event_id,
            waiting_list_gathering.c.pool_id.not_in(sorted(kept)),
        )
    )
    # What an earlier version opens is opened by this one, if it was not sent.
    pending = () if locked.is_synced else locked.opened_pool_ids
    await connection.execute(
        sa.update(waiting_lists)
        .where(waiting_lists.c.event_id == locked.event_id)
        .values(
            version=locked.version + 1,
            kept_pool_ids=sorted(kept),
            opened_pool_ids=sorted(kept & {*opened, *pending}),
            due_time=now,
        )
    )


async def sync(database: Database, stock: Stock, *, event_id: UUID) -> None:
    """Sends the list's pools to the ledger, unless it has them. Raises DEPENDENCY_UNAVAILABLE."""
    columns = waiting_lists.c
    async with database.reading() as connection:
        row = (
            await connection.execute(
                sa.select(columns.version, columns.kept_pool_ids, columns.opened_pool_ids)
                .where(columns.event_id == event_id)
                .where(columns.synced_version < columns.version)
            )
        ).one_or_none()
    if row is None:
        return
    try:
        await stock.keep_for_waiting_list(
            event_id=event_id,
            version=row.version,
            pool_ids=row.kept_pool_ids,
            opened_pool_ids=row.opened_pool_ids,
        )
    except DomainError as refusal:
        # The event was deleted, and its stock removed.
        if refusal.reason is not Reason.EVENT_NOT_FOUND:
            raise
    async with database.single() as connection:
        await connection.execute(
            sa.update(waiting_lists)
            .where(columns.event_id == event_id, columns.synced_version < row.version)
            .values(synced_version=row.version)
        )
