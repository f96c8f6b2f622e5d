"""The end of holds that have lapsed: by the sweeper, or by whoever wants their places.

Both come here, so that a place is freed once and with the same movements.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from stock_svc import claims, ledger
from stock_svc.demand import Key
from stock_svc.ledger import Kind
from stock_svc.states import State
from stock_svc.tables import Uuid, any_of, is_active, reservations, rows


async def expire(connection: AsyncConnection, *, event_id: UUID, limit: int, now: datetime) -> int:
    """ACTIVE → EXPIRED for lapsed reservations of an event, at most `limit`. Returns how many.

    Leaves out those that another transaction works on, so that sweepers do not queue up.
    """
    lapsed = await connection.execute(
        _lapsed([event_id], now)
        .limit(limit)
        .with_for_update(skip_locked=True, key_share=True, of=reservations)
    )
    return await _expire(connection, [(row[0], row[1]) for row in lapsed], now=now)


async def events_with_lapsed(
    connection: AsyncConnection, *, limit: int, now: datetime
) -> Sequence[UUID]:
    """Events that have something to expire, at most `limit`."""
    found = await connection.scalars(
        sa.select(reservations.c.event_id)
        .where(is_active, reservations.c.expire_time <= now)
        .distinct()
        .limit(limit)
    )
    return found.all()


async def clear(
    connection: AsyncConnection,
    *,
    event_ids: Collection[UUID],
    also_lock: Collection[Key] = (),
    limit: int,
    now: datetime,
) -> int:
    """Expires lapsed reservations of events, at most `limit`, for somebody who wants places.

    Waits for those that another transaction is ending, since a place that it frees must not
    be missed. `also_lock` are pools that the caller goes on with. Returns how many it met.
    """
    candidates = _lapsed(event_ids, now).limit(limit).cte().prefix_with("MATERIALIZED")
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
    met = [(row[0], row[1]) for row in locked]
    await _expire(connection, met, also_lock=also_lock, now=now)
    return len(met)


async def _expire(
    connection: AsyncConnection,
    locked: Sequence[Key],
    *,
    also_lock: Collection[Key] = (),
    now: datetime,
) -> int:
    """Ends locked, lapsed reservations. `also_lock` are pools that the caller goes on with."""
    if not locked:
        return 0
    key = rows(
        event_id=(Uuid, [event_id for event_id, _ in locked]),
        reservation_id=(Uuid, [reservation_id for _, reservation_id in locked]),
    )
    ended = await connection.execute(
        sa.update(reservations)
        .where(reservations.c.event_id == key.c.event_id)
        .where(reservations.c.reservation_id == key.c.reservation_id)
        .where(is_active, reservations.c.expire_time <= now)
        .values(state=State.EXPIRED, update_time=now)
        .returning(reservations.c.event_id, reservations.c.reservation_id)
    )
    ended_keys = [(row[0], row[1]) for row in ended]
    claimed = await claims.of_reservations(connection, ended_keys)
    if also_lock:
        await ledger.lock(connection, {line.pool for line in claimed} | set(also_lock))
    await claims.free(connection, claimed=claimed, kind=Kind.EXPIRE, now=now)
    return len(ended_keys)


def _lapsed(event_ids: Collection[UUID], now: datetime) -> sa.Select[UUID, UUID]:
    return sa.select(reservations.c.event_id, reservations.c.reservation_id).where(
        reservations.c.event_id == any_of(event_ids), is_active, reservations.c.expire_time <= now
    )
