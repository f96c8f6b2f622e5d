"""Restock, block and unblock seats, and remove an event's stock; UpdateStock is in stock_update.py.

Each works under the locks of the pools that it changes. Order of locks: the event, lapsed
reservations, pools.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, FieldViolation, Reason, invalid
from stock_svc import expiry, ledger, stock
from stock_svc.ledger import Entry, Kind, LockedPools
from stock_svc.reservations import SeatState, State
from stock_svc.stock import SeatAvailability, StockAvailability
from stock_svc.tables import (
    any_of,
    claim_is_live,
    customer_totals,
    events,
    offers,
    pools,
    reservations,
    seat_claims,
    seats,
)

MAX_CAPACITY = 10_000_000
"""The most places of a pool, as in the contract."""


async def restock(
    connection: AsyncConnection, *, event_id: UUID, pool_id: UUID, quantity: int, now: datetime
) -> StockAvailability:
    """Adds places to a pool. Raises EVENT_NOT_FOUND, POOL_NOT_FOUND or VALIDATION_FAILED."""
    await lock_event(connection, event_id)
    locked = await ledger.lock(connection, {(event_id, pool_id)})
    pool = locked.pools.get((event_id, pool_id))
    if pool is None:
        raise DomainError(Reason.POOL_NOT_FOUND, "the event has no such pool", pool_id=pool_id)
    is_seated = await connection.scalar(
        sa.select(1).where(offers.c.event_id == event_id, offers.c.pool_id == pool_id)
        .where(offers.c.seated).limit(1)
    )  # fmt: skip
    if is_seated:
        raise invalid(FieldViolation("pool_id", "is a seated pool: add seats instead"))
    if pool.capacity + quantity > MAX_CAPACITY:
        most = MAX_CAPACITY - pool.capacity
        raise invalid(FieldViolation("quantity", f"must be at most {most} for this pool"))
    await ledger.post(
        connection,
        entries=[Entry(event_id, pool_id, Kind.RESTOCK, capacity=quantity)],
        locked=locked,
        now=now,
    )
    return await stock.availability(connection, event_id=event_id, with_seats=False, now=now)


async def block(
    connection: AsyncConnection, *, event_id: UUID, seat_ids: Collection[UUID], now: datetime
) -> tuple[SeatAvailability, ...]:
    """Takes all of the seats off sale. Raises EVENT_NOT_FOUND, SEAT_NOT_FOUND or
    SEAT_UNAVAILABLE."""
    await lock_event(connection, event_id)
    await expiry.expire(connection, event_id=event_id, now=now)
    pool_of = await _lock_pools_of(connection, event_id, seat_ids)
    taken = await taken_seats(connection, event_id=event_id, seat_ids=seat_ids)
    if taken:
        raise DomainError(
            Reason.SEAT_UNAVAILABLE,
            "one or more seats are held or sold",
            seat_ids=",".join(map(str, taken)),
        )
    await _set_blocked(connection, event_id, pool_of, blocked=True, now=now)
    return await stock.seat_availability(connection, event_id=event_id, seat_ids=seat_ids, now=now)


async def unblock(
    connection: AsyncConnection, *, event_id: UUID, seat_ids: Collection[UUID], now: datetime
) -> tuple[SeatAvailability, ...]:
    """Puts blocked seats on sale again. Raises EVENT_NOT_FOUND or SEAT_NOT_FOUND."""
    await lock_event(connection, event_id)
    pool_of = await _lock_pools_of(connection, event_id, seat_ids)
    await _set_blocked(connection, event_id, pool_of, blocked=False, now=now)
    return await stock.seat_availability(connection, event_id=event_id, seat_ids=seat_ids, now=now)


async def remove(connection: AsyncConnection, *, event_id: UUID, now: datetime) -> None:
    """Deletes an event's pools, offers and seats; its movements and its row in `events` stay.

    An event without stock is not an error. Raises EVENT_STATE_INVALID when places of it are held
    or were ever sold.
    """
    # The empty fingerprint marks a removed stock, which cannot be defined again.
    updated = await connection.execute(
        sa.update(events).where(events.c.event_id == event_id).values(fingerprint=b"")
    )
    if updated.rowcount == 0:
        return
    while await expiry.expire(connection, event_id=event_id, now=now):
        pass
    locked = await lock_pools_of_event(connection, event_id)
    used = [State.ACTIVE, State.COMMITTED, State.RETURNED]
    if await connection.scalar(
        sa.select(1)
        .where(reservations.c.event_id == event_id, reservations.c.state.in_(used))
        .limit(1)
    ):
        raise DomainError(
            Reason.EVENT_STATE_INVALID, "places of the event are held or have been sold"
        )
    await ledger.post(
        connection,
        entries=[
            Entry(*key, Kind.REMOVE, capacity=-pool.capacity) for key, pool in locked.pools.items()
        ],
        locked=locked,
        now=now,
    )
    for table in (customer_totals, seats, offers, pools):
        await connection.execute(sa.delete(table).where(table.c.event_id == event_id))


async def lock_event(connection: AsyncConnection, event_id: UUID) -> None:
    """Waits for other changes of the event's stock. Raises EVENT_NOT_FOUND."""
    fingerprint = await connection.scalar(
        sa.select(events.c.fingerprint)
        .where(events.c.event_id == event_id)
        .with_for_update(key_share=True)
    )
    if not fingerprint:
        raise DomainError(Reason.EVENT_NOT_FOUND, "the event has no stock")


async def lock_pools_of_event(connection: AsyncConnection, event_id: UUID) -> LockedPools:
    """Locks all pools of an event, whose row the caller has locked."""
    pool_ids = await connection.scalars(
        sa.select(pools.c.pool_id).where(pools.c.event_id == event_id)
    )
    return await ledger.lock(connection, [(event_id, pool_id) for pool_id in pool_ids])


async def taken_seats(
    connection: AsyncConnection, *, event_id: UUID, seat_ids: Collection[UUID]
) -> Sequence[UUID]:
    """Those of the seats that are held or sold."""
    taken = await connection.scalars(
        sa.select(seat_claims.c.seat_id)
        .where(seat_claims.c.event_id == event_id, claim_is_live)
        .where(seat_claims.c.seat_id == any_of(seat_ids))
        .order_by(seat_claims.c.seat_id)
    )
    return taken.all()


async def _lock_pools_of(
    connection: AsyncConnection, event_id: UUID, seat_ids: Collection[UUID]
) -> dict[UUID, UUID]:
    """Locks the pools of seats; returns the pool of each seat. Raises SEAT_NOT_FOUND."""
    rows = await connection.execute(
        sa.select(seats.c.seat_id, offers.c.pool_id)
        .join_from(
            seats,
            offers,
            (offers.c.event_id == seats.c.event_id) & (offers.c.offer_id == seats.c.offer_id),
        )
        .where(seats.c.event_id == event_id, seats.c.seat_id == any_of(seat_ids))
    )
    pool_of = {row.seat_id: row.pool_id for row in rows}
    if missing := sorted(set(seat_ids) - pool_of.keys()):
        raise DomainError(
            Reason.SEAT_NOT_FOUND,
            "the event has no such seat",
            seat_ids=",".join(map(str, missing)),
        )
    await ledger.lock(connection, {(event_id, pool_id) for pool_id in pool_of.values()})
    return pool_of


async def _set_blocked(
    connection: AsyncConnection,
    event_id: UUID,
    pool_of: dict[UUID, UUID],
    *,
    blocked: bool,
    now: datetime,
) -> None:
    changed = await connection.scalars(
        sa.update(seats)
        .where(seats.c.event_id == event_id, seats.c.seat_id == any_of(pool_of))
        .where(seats.c.blocked.is_(not blocked))
        .values(blocked=blocked)
        .returning(seats.c.seat_id)
    )
    seat_ids = changed.all()
    if not seat_ids:
        return
    counts = Counter(pool_of[seat_id] for seat_id in seat_ids)
    kind, sign, state = (
        (Kind.BLOCK, -1, SeatState.BLOCKED) if blocked else (Kind.UNBLOCK, 1, SeatState.AVAILABLE)
    )
    await ledger.post(
        connection,
        entries=[
            Entry(event_id, pool_id, kind, capacity=sign * count)
            for pool_id, count in counts.items()
        ],
        seats={(event_id, seat_id): state for seat_id in seat_ids},
        now=now,
    )
