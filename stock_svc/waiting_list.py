"""Places that come back are kept for the waiting list of an event, which is in booking_svc.

A kept pool has a number of open places, which anybody can reserve: those that were free when the
first customer joined. What becomes free later does not add to it, so only a reservation for the
waiting list gets it. The counters and their CHECK are in ledger.py and tables.py.
"""

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from stock_svc import expiry, ledger, restocking, stock
from stock_svc.stock import StockAvailability
from stock_svc.tables import events


async def keep(
    connection: AsyncConnection,
    *,
    event_id: UUID,
    version: int,
    pool_ids: Collection[UUID],
    opened_pool_ids: Collection[UUID],
    now: datetime,
) -> StockAvailability:
    """Keeps what comes back in exactly these pools; opens what is free in `opened_pool_ids`.

    A call whose version is not higher than that of the last one changes nothing. Unknown pools are
    ignored. Raises EVENT_NOT_FOUND.
    """
    await restocking.lock_event(connection, event_id)
    is_newer = await connection.scalar(
        sa.select(events.c.waiting_list_version < version).where(events.c.event_id == event_id)
    )
    if is_newer:
        # Lapsed holds count as free, also for what is open to all.
        while await expiry.expire(connection, event_id=event_id, now=now) == expiry.MOST_CLEARED:
            pass
        await connection.execute(
            sa.update(events)
            .where(events.c.event_id == event_id)
            .values(waiting_list_version=version)
        )
        await _keep(connection, event_id, set(pool_ids), set(opened_pool_ids), now)
    return await stock.availability(connection, event_id=event_id, with_seats=False, now=now)


async def _keep(
    connection: AsyncConnection,
    event_id: UUID,
    kept: Collection[UUID],
    opened: Collection[UUID],
    now: datetime,
) -> None:
    locked = await restocking.lock_pools_of_event(connection, event_id)
    await ledger.set_open_places(
        connection,
        {
            key: key[1] in kept
            for key, pool in locked.pools.items()
            # Becomes kept or open, or is opened once more.
            if (key[1] in kept) != (pool.open_places is not None)
            or (key[1] in kept and key[1] in opened)
        },
        now=now,
    )
