"""The end of holds that have lapsed: by the sweeper, or by whoever wants their places.

Both come here, so that a place is freed once and with the same movements.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from stock_svc import claims, ledger
from stock_svc.demand import Demand
from stock_svc.ledger import Kind
from stock_svc.states import State
from stock_svc.tables import any_of, is_active, reservation_lines, reservations, seat_claims

# Lapsed holds that one request clears away: those of its customer, and those of its pools.
_CLEARED_AT_ONCE = 1000


async def expire(connection: AsyncConnection, *, event_id: UUID, limit: int, now: datetime) -> int:
    """ACTIVE → EXPIRED for lapsed reservations of an event, at most `limit`. Returns how many.

    Leaves out those that another transaction works on, so that sweepers do not queue up.
    """
    lapsed = await connection.scalars(
        _lapsed(event_id, now).limit(limit).with_for_update(skip_locked=True, key_share=True)
    )
    return await _expire(connection, event_id, lapsed.all(), now=now)


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


async def clear_the_way(
    connection: AsyncConnection,
    *,
    event_id: UUID,
    request_key: str,
    customer_id: UUID,
    demand: Demand,
    now: datetime,
) -> None:
    """Expires lapsed reservations that hold what is wanted.

    Waits for those that another transaction is ending, since a place that it frees must not
    be missed.
    """
    lapsed = _lapsed(event_id, now)
    seats = sa.select(seat_claims.c.reservation_id).where(
        seat_claims.c.event_id == event_id,
        seat_claims.c.state == sa.literal_column("'HELD'"),
        seat_claims.c.seat_id == any_of(demand.seat_ids),
    )
    in_pools = sa.exists().where(
        reservation_lines.c.event_id == reservations.c.event_id,
        reservation_lines.c.reservation_id == reservations.c.reservation_id,
        reservation_lines.c.pool_id == any_of(demand.by_pool),
    )
    candidates = sa.union(
        lapsed.where(reservations.c.request_key == request_key),
        lapsed.where(reservations.c.customer_id == customer_id).limit(_CLEARED_AT_ONCE),
        lapsed.where(reservations.c.reservation_id.in_(seats)),
        lapsed.where(in_pools).limit(_CLEARED_AT_ONCE),
    )
    locked = await connection.scalars(
        lapsed.where(reservations.c.reservation_id.in_(candidates))
        .order_by(reservations.c.reservation_id)
        .with_for_update(key_share=True)
    )
    await _expire(connection, event_id, locked.all(), also_lock=demand.by_pool.keys(), now=now)


async def _expire(
    connection: AsyncConnection,
    event_id: UUID,
    locked: Sequence[UUID],
    *,
    also_lock: Collection[UUID] = (),
    now: datetime,
) -> int:
    """Ends locked, lapsed reservations. `also_lock` are pools that the caller goes on with."""
    if not locked:
        return 0
    ended = await connection.scalars(
        sa.update(reservations)
        .where(reservations.c.event_id == event_id, is_active, reservations.c.expire_time <= now)
        .where(reservations.c.reservation_id == any_of(locked))
        .values(state=State.EXPIRED, update_time=now)
        .returning(reservations.c.reservation_id)
    )
    ended_ids = ended.all()
    claimed = await claims.of_reservations(connection, event_id=event_id, reservation_ids=ended_ids)
    if also_lock:
        pool_ids = {line.pool_id for line in claimed} | set(also_lock)
        await ledger.lock(connection, event_id=event_id, pool_ids=pool_ids)
    await claims.give_back(
        connection, event_id=event_id, claimed=claimed, kind=Kind.EXPIRE, now=now
    )
    return len(ended_ids)


def _lapsed(event_id: UUID, now: datetime) -> sa.Select[UUID]:
    return sa.select(reservations.c.reservation_id).where(
        reservations.c.event_id == event_id, is_active, reservations.c.expire_time <= now
    )
