"""The expiry of lapsed holds: by the sweep, and by transactions that need their places.

A lapsed hold counts as free at once: no transaction waits for the sweep, which keeps the counters
and the stream of changes up to date.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.database import Database
from stock_svc import transitions
from stock_svc.tables import Key, any_of, is_active, reservations
from stock_svc.transitions import Move, Moved, Order

MOST_CLEARED = 1000
"""The most lapsed holds that one transaction expires for a caller that needs places."""

# Of one transaction of the sweep, so that it holds its locks briefly.
_SWEEP_BATCH = 200
_SWEEP_EVENTS = 100


async def sweep(database: Database, *, now: datetime) -> int:
    """Expires all lapsed reservations, batch by batch. Returns how many."""
    total = 0
    while True:
        async with database.reading() as connection:
            event_ids = await _events_with_lapsed(connection, now)
        expired = 0
        for event_id in event_ids:
            async with database.transaction() as connection:
                expired += await expire(connection, event_id=event_id, limit=_SWEEP_BATCH, now=now)
        total += expired
        # Nothing remains, or other transactions have locked what remains.
        if expired == 0:
            return total


async def expire(
    connection: AsyncConnection, *, event_id: UUID, now: datetime, limit: int = MOST_CLEARED
) -> int:
    """ACTIVE → EXPIRED for at most `limit` lapsed reservations of an event. Returns how many.

    Skips reservations that another transaction has locked.
    """
    lapsed = await connection.execute(
        _lapsed([event_id], now)
        .limit(limit)
        .with_for_update(skip_locked=True, key_share=True, of=reservations)
    )
    return await _expire(connection, [(row[0], row[1]) for row in lapsed], now=now)


async def clear(
    connection: AsyncConnection,
    *,
    event_ids: Collection[UUID],
    also_lock: Collection[Key],
    now: datetime,
) -> int:
    """Expires at most MOST_CLEARED lapsed reservations of events, for a caller that needs places.

    Waits for reservations that another transaction has locked, and so for places that it frees.
    `also_lock` are the pools that the caller locks next. Returns how many reservations it locked.
    """
    candidates = _lapsed(event_ids, now).limit(MOST_CLEARED).cte().prefix_with("MATERIALIZED")
    locked = await connection.execute(
        sa.select(reservations.c.event_id, reservations.c.reservation_id)
        .join(
            candidates,
            (candidates.c.event_id == reservations.c.event_id)
            & (candidates.c.reservation_id == reservations.c.reservation_id),
        )
        .order_by(reservations.c.event_id, reservations.c.reservation_id)
        .with_for_update(key_share=True, of=reservations)
    )
    keys = [(row[0], row[1]) for row in locked]
    await _expire(connection, keys, also_lock=also_lock, now=now)
    return len(keys)


async def _events_with_lapsed(connection: AsyncConnection, now: datetime) -> Sequence[UUID]:
    event_ids = await connection.scalars(
        sa.select(reservations.c.event_id)
        .where(is_active, reservations.c.expire_time <= now)
        .distinct()
        .limit(_SWEEP_EVENTS)
    )
    return event_ids.all()


async def _expire(
    connection: AsyncConnection,
    keys: Sequence[Key],
    *,
    also_lock: Collection[Key] = (),
    now: datetime,
) -> int:
    """Expires those of the locked reservations that have still lapsed. Returns how many."""
    if not keys:
        return 0
    orders = [Order(Move.EXPIRE, *key) for key in keys]
    outcomes = await transitions.move_all(connection, orders, now, also_lock=also_lock)
    return sum(isinstance(outcome, Moved) and outcome.has_moved for outcome in outcomes)


def _lapsed(event_ids: Collection[UUID], now: datetime) -> sa.Select[UUID, UUID]:
    return sa.select(reservations.c.event_id, reservations.c.reservation_id).where(
        reservations.c.event_id == any_of(event_ids), is_active, reservations.c.expire_time <= now
    )
