"""The counters of the pools and the movements that explain them.

Every change of a counter goes through `post`, which writes the reason in the same
transaction: this is why the sum of the movements equals the counters at all times.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, Reason
from stock_svc.tables import any_of, movements, pools


class Kind(StrEnum):
    """Why a counter changed."""

    DEFINE = "DEFINE"
    RESERVE = "RESERVE"
    COMMIT = "COMMIT"
    RELEASE = "RELEASE"
    EXPIRE = "EXPIRE"
    RETURN = "RETURN"
    RESTOCK = "RESTOCK"


@dataclass(frozen=True, slots=True)
class Entry:
    """A change of one pool, for one reservation if there is one behind it."""

    pool_id: UUID
    kind: Kind
    reservation_id: UUID | None = None
    capacity: int = 0
    held: int = 0
    sold: int = 0


@dataclass(frozen=True, slots=True)
class Movement:
    movement_id: int
    pool_id: UUID
    kind: Kind
    capacity_delta: int
    held_delta: int
    sold_delta: int
    reservation_id: UUID | None
    create_time: datetime


@dataclass(frozen=True, slots=True)
class MovementPage:
    """Newest first. `next_before` begins the next page; None on the last one."""

    movements: tuple[Movement, ...]
    next_before: int | None
    total_size: int


class PoolShortError(Exception):
    """The pool cannot give what the entries take. The transaction may hold other pools' locks."""

    def __init__(self, pool_id: UUID) -> None:
        super().__init__(f"pool {pool_id} is short")
        self.pool_id = pool_id


async def post(
    connection: AsyncConnection, *, event_id: UUID, entries: Iterable[Entry], now: datetime
) -> None:
    """Changes the pools' counters and records why. Raises PoolShortError when one cannot change so."""
    entries = tuple(entries)
    capacity, held, sold, count = (Counter[UUID]() for _ in range(4))
    for entry in entries:
        capacity[entry.pool_id] += entry.capacity
        held[entry.pool_id] += entry.held
        sold[entry.pool_id] += entry.sold
        count[entry.pool_id] += 1
    # Before the pools, so that their locks, which everybody wants, are held for less time.
    await connection.execute(
        sa.insert(movements),
        [
            {
                "event_id": event_id,
                "pool_id": entry.pool_id,
                "kind": entry.kind,
                "capacity_delta": entry.capacity,
                "held_delta": entry.held,
                "sold_delta": entry.sold,
                "reservation_id": entry.reservation_id,
                "create_time": now,
            }
            for entry in entries
        ],
    )
    # In sorted order, as every transaction does, so that two of them cannot deadlock.
    for pool_id in sorted(count):
        new_capacity = pools.c.capacity + capacity[pool_id]
        new_held = pools.c.held + held[pool_id]
        new_sold = pools.c.sold + sold[pool_id]
        # Test and change in one statement: the row lock makes this race-free.
        changed = await connection.execute(
            sa.update(pools)
            .where(pools.c.event_id == event_id, pools.c.pool_id == pool_id)
            .where(new_held >= 0, new_sold >= 0, new_held + new_sold <= new_capacity)
            .values(
                capacity=new_capacity,
                held=new_held,
                sold=new_sold,
                version=pools.c.version + count[pool_id],
            )
        )
        if changed.rowcount == 0:
            raise PoolShortError(pool_id)


async def lock(connection: AsyncConnection, *, event_id: UUID, pool_ids: Iterable[UUID]) -> None:
    """Locks pools in sorted order, for work on more of them than one `post` will change."""
    await connection.execute(
        sa.select(pools.c.pool_id)
        .where(pools.c.event_id == event_id, pools.c.pool_id == any_of(pool_ids))
        .order_by(pools.c.pool_id)
        .with_for_update(key_share=True)
    )


async def list_movements(
    connection: AsyncConnection, *, event_id: UUID, before: int | None, page_size: int
) -> MovementPage:
    """A page of an event's movements. Raises EVENT_NOT_FOUND."""
    # Each pool counts its own movements, so that nobody has to count them all.
    total_size = await connection.scalar(
        sa.select(sa.func.sum(pools.c.version)).where(pools.c.event_id == event_id)
    )
    if total_size is None:
        raise DomainError(Reason.EVENT_NOT_FOUND, "the event has no stock")
    page = sa.select(
        movements.c.movement_id,
        movements.c.pool_id,
        movements.c.kind,
        movements.c.capacity_delta,
        movements.c.held_delta,
        movements.c.sold_delta,
        movements.c.reservation_id,
        movements.c.create_time,
    ).where(movements.c.event_id == event_id)
    if before is not None:
        page = page.where(movements.c.movement_id < before)
    rows = await connection.execute(
        page.order_by(movements.c.movement_id.desc()).limit(page_size + 1)
    )
    found = [
        Movement(
            movement_id=row.movement_id,
            pool_id=row.pool_id,
            kind=Kind(row.kind),
            capacity_delta=row.capacity_delta,
            held_delta=row.held_delta,
            sold_delta=row.sold_delta,
            reservation_id=row.reservation_id,
            create_time=row.create_time,
        )
        for row in rows
    ]
    listed = tuple(found[:page_size])
    return MovementPage(
        movements=listed,
        next_before=listed[-1].movement_id if len(found) > page_size else None,
        total_size=int(total_size),
    )
