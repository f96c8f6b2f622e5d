"""The counters of the pools and the movements that explain them.

Every change of a counter goes through `post`, which writes the reason in the same
transaction: this is why the sum of the movements equals the counters at all times.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, Reason
from stock_svc import outbox
from stock_svc.states import SeatState
from stock_svc.tables import Uuid, any_of, movements, pools, rows

NO_SEATS: Mapping[tuple[UUID, UUID], SeatState | None] = MappingProxyType({})


class Kind(StrEnum):
    """Why a counter changed."""

    DEFINE = "DEFINE"
    RESERVE = "RESERVE"
    COMMIT = "COMMIT"
    RELEASE = "RELEASE"
    EXPIRE = "EXPIRE"
    RETURN = "RETURN"
    RESTOCK = "RESTOCK"
    ADJUST = "ADJUST"
    BLOCK = "BLOCK"
    UNBLOCK = "UNBLOCK"
    REMOVE = "REMOVE"


@dataclass(frozen=True, slots=True)
class Entry:
    """A change of one pool, for one reservation if there is one behind it."""

    event_id: UUID
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
    connection: AsyncConnection,
    *,
    entries: Iterable[Entry],
    seats: Mapping[tuple[UUID, UUID], SeatState | None] = NO_SEATS,
    now: datetime,
) -> None:
    """Changes the pools' counters, records why, and tells other services.

    `seats` are the states, by event and seat, that seats get along with it. Raises
    PoolShortError when a pool cannot change so.
    """
    entries = tuple(entries)
    sums: dict[tuple[UUID, UUID], list[int]] = {}
    for entry in entries:
        summed = sums.setdefault((entry.event_id, entry.pool_id), [0, 0, 0, 0])
        for n, change in enumerate((entry.capacity, entry.held, entry.sold, 1)):
            summed[n] += change
    # Before the pools, so that their locks, which everybody wants, are held for less time.
    await _record(connection, entries, now)
    if len(sums) > 1:
        # In sorted order, as every transaction does, so that two of them cannot deadlock.
        await lock(connection, sums)
    changed = await _change(connection, sums)
    if missing := sums.keys() - {(pool.event_id, pool.pool_id) for pool in changed}:
        raise PoolShortError(min(missing)[1])
    event_ids = {event_id for event_id, _ in (*sums, *seats)}
    versions = await connection.execute(
        sa.select(pools.c.event_id, sa.func.sum(pools.c.version))
        .where(pools.c.event_id == any_of(event_ids))
        .group_by(pools.c.event_id)
    )
    removed = {(each.event_id, each.pool_id) for each in entries if each.kind is Kind.REMOVE}
    await outbox.publish(
        connection,
        pools=[replace(p, removed=(p.event_id, p.pool_id) in removed) for p in changed],
        seats=[outbox.SeatNow(event, seat, state) for (event, seat), state in seats.items()],
        versions={event_id: int(version) for event_id, version in versions},
        now=now,
    )


async def _record(connection: AsyncConnection, entries: Sequence[Entry], now: datetime) -> None:
    given = rows(
        event_id=(Uuid, [entry.event_id for entry in entries]),
        pool_id=(Uuid, [entry.pool_id for entry in entries]),
        kind=(sa.Text(), [entry.kind for entry in entries]),
        capacity_delta=(sa.Integer(), [entry.capacity for entry in entries]),
        held_delta=(sa.Integer(), [entry.held for entry in entries]),
        sold_delta=(sa.Integer(), [entry.sold for entry in entries]),
        reservation_id=(Uuid, [entry.reservation_id for entry in entries]),
    )
    await connection.execute(
        sa.insert(movements).from_select(
            [*given.c.keys(), "create_time"],
            sa.select(*given.c, sa.literal(now, movements.c.create_time.type)),
        )
    )


async def _change(
    connection: AsyncConnection, sums: Mapping[tuple[UUID, UUID], Sequence[int]]
) -> list[outbox.PoolNow]:
    """Changes the counters of those pools that can change so, and returns them."""
    given = rows(
        event_id=(Uuid, [event_id for event_id, _ in sums]),
        pool_id=(Uuid, [pool_id for _, pool_id in sums]),
        capacity=(sa.Integer(), [summed[0] for summed in sums.values()]),
        held=(sa.Integer(), [summed[1] for summed in sums.values()]),
        sold=(sa.Integer(), [summed[2] for summed in sums.values()]),
        entries=(sa.Integer(), [summed[3] for summed in sums.values()]),
    )
    capacity = pools.c.capacity + given.c.capacity
    held = pools.c.held + given.c.held
    sold = pools.c.sold + given.c.sold
    # Test and change in one statement: the row lock makes this race-free.
    changed = await connection.execute(
        sa.update(pools)
        .where(pools.c.event_id == given.c.event_id, pools.c.pool_id == given.c.pool_id)
        .where(held >= 0, sold >= 0, held + sold <= capacity)
        .values(capacity=capacity, held=held, sold=sold, version=pools.c.version + given.c.entries)
        .returning(
            pools.c.event_id,
            pools.c.pool_id,
            pools.c.capacity,
            pools.c.held,
            pools.c.sold,
            pools.c.version,
        )
    )
    return [outbox.PoolNow(*row) for row in changed]


async def lock(connection: AsyncConnection, wanted: Iterable[tuple[UUID, UUID]]) -> None:
    """Locks pools, each by its event and its id, in sorted order: for work on more of them
    than one `post` will change."""
    keys = sorted(set(wanted))
    key = rows(event_id=(Uuid, [key[0] for key in keys]), pool_id=(Uuid, [key[1] for key in keys]))
    await connection.execute(
        sa.select(pools.c.pool_id)
        .where(sa.tuple_(pools.c.event_id, pools.c.pool_id).in_(sa.select(key)))
        .order_by(pools.c.event_id, pools.c.pool_id)
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
