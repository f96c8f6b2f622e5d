"""The counters of the pools and the movements that explain them.

`post` is the only caller of the statements that change counters, insert movements or write to
the outbox, so that the sum of a pool's movements equals its counters.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db import outbox
from mesh.db.pipeline import Result, Statement, array, as_one, columns, run_together
from mesh.errors import DomainError, Reason
from stock_svc import statements
from stock_svc.outbox import PoolCounters, messages
from stock_svc.reservations import SeatState
from stock_svc.tables import Key, movements, pools

NO_SEATS: Mapping[Key, SeatState | None] = MappingProxyType({})


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
    # These change no counter: what comes back is kept for the waiting list, or what is free is
    # open to all.
    KEEP = "KEEP"
    OPEN = "OPEN"


class Entry(NamedTuple):
    """A change of one pool's counters; `reservation_id` is the reservation that causes it.

    The fields down to it are the columns of statements.INSERT_MOVEMENTS, in their order. `opened`
    is how many of the places are taken from those that are open to all.
    """

    event_id: UUID
    pool_id: UUID
    kind: Kind
    capacity: int = 0
    held: int = 0
    sold: int = 0
    reservation_id: UUID | None = None
    opened: int = 0


_MOVEMENT_FIELDS = Entry._fields.index("reservation_id") + 1


@dataclass(frozen=True, slots=True)
class LockedPools:
    """Counters of locked pools, and of their events the version and the per-customer limit.

    A version is the sum over all pools of the event. `limits` has the events with a limit.
    """

    pools: Mapping[Key, PoolCounters]
    versions: Mapping[UUID, int]
    limits: Mapping[UUID, int]


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


class PoolShortageError(RuntimeError):
    """Entries would make a counter negative, exceed a capacity, or name an unknown pool.

    It is a bug: callers check the counters under lock before they post.
    """


async def post(
    connection: AsyncConnection,
    *,
    entries: Sequence[Entry],
    seats: Mapping[Key, SeatState | None] = NO_SEATS,
    locked: LockedPools | None = None,
    also: Sequence[Statement] = (),
    now: datetime,
) -> list[int]:
    """Changes counters, records why, and writes the event of the change to the outbox.

    `seats` are the new states of seats, None for a seat that was removed. `locked` has the
    entries' pools; without it, `post` locks them first, in a round trip of its own. `also` are statements
    that change other rows, each its own: all are one statement. Returns the number of rows of each.
    Raises PoolShortageError.
    """
    if not entries and not seats:
        return await _run_as_one(connection, also) if also else []
    deltas: dict[Key, list[int]] = {}
    for entry in entries:
        delta = deltas.setdefault(entry[:2], [0, 0, 0, 0, 0])
        delta[0] += entry.capacity
        delta[1] += entry.held
        delta[2] += entry.sold
        delta[3] += entry.opened
        delta[4] += 1
    if locked is None:
        locked = await lock(connection, deltas, event_ids={event_id for event_id, _ in seats})
    if not deltas.keys() <= locked.pools.keys():
        raise PoolShortageError("no such pool")
    removed = {entry[:2] for entry in entries if entry.kind is Kind.REMOVE}
    changed, versions = [], dict(locked.versions)
    for key, (capacity, held, sold, opened, count) in deltas.items():
        pool = locked.pools[key]
        after = PoolCounters(
            *key,
            capacity=pool.capacity + capacity,
            held=pool.held + held,
            sold=pool.sold + sold,
            version=pool.version + count,
            removed=key in removed,
        )
        if pool.open_places is not None:
            after = replace(after, open_places=min(pool.open_places - opened, after.free))
        changed.append(after)
        versions[key[0]] += count
    events = messages(changed, seats, versions)
    counts = await _run_as_one(
        connection,
        [
            *also,
            Statement(
                statements.INSERT_MOVEMENTS,
                (
                    now,
                    *columns((entry[:_MOVEMENT_FIELDS] for entry in entries), _MOVEMENT_FIELDS),
                ),
            ),
            Statement(
                statements.CHANGE_POOLS,
                columns(((*key, *delta) for key, delta in deltas.items()), 7),
            ),
            outbox.insertion(connection, events, now=now),
        ],
    )
    if counts[len(also) : -1] != [len(entries), len(deltas)]:
        raise PoolShortageError("a pool's counters do not allow the entries")
    return counts[: len(also)]


async def _run_as_one(connection: AsyncConnection, parts: Sequence[Statement]) -> list[int]:
    [result] = await run_together(connection, [as_one(parts)])
    return list(result.rows[0])


async def set_open_places(
    connection: AsyncConnection, kept: Mapping[Key, bool], *, now: datetime
) -> None:
    """Opens what is free in pools whose locks the caller holds; what comes back is kept, or not.

    Writes movements that change no counter: they tell all readers what is available now.
    """
    rows = ((*key, is_kept) for key, is_kept in kept.items())
    await run_together(connection, [Statement(statements.SET_OPEN_PLACES, columns(rows, 3))])
    await post(
        connection,
        entries=[Entry(*key, Kind.KEEP if is_kept else Kind.OPEN) for key, is_kept in kept.items()],
        now=now,
    )


async def lock(
    connection: AsyncConnection, keys: Iterable[Key], *, event_ids: Collection[UUID] = ()
) -> LockedPools:
    """Locks pools in sorted order, so that transactions cannot deadlock, and reads them.

    `event_ids` are further events to read the versions of.
    """
    return locked_pools(*await run_together(connection, locking(keys, event_ids=event_ids)))


def locking(keys: Iterable[Key], *, event_ids: Collection[UUID] = ()) -> list[Statement]:
    """The statements of `lock`, for a pipeline; `locked_pools` reads their results."""
    sorted_keys = sorted(set(keys))
    all_event_ids = sorted({event_id for event_id, _ in sorted_keys}.union(event_ids))
    return [
        Statement(statements.LOCK_POOLS, columns(sorted_keys, 2)),
        Statement(statements.EVENT_VERSIONS, (array(all_event_ids),)),
    ]


def locked_pools(counters: Result, events: Result) -> LockedPools:
    return LockedPools(
        pools={(row[0], row[1]): PoolCounters(*row) for row in counters.rows},
        versions={event_id: version or 0 for event_id, version, _ in events.rows},
        limits={event_id: limit for event_id, _, limit in events.rows if limit is not None},
    )


async def list_movements(
    connection: AsyncConnection, *, event_id: UUID, before: int | None, page_size: int
) -> MovementPage:
    """A page of an event's movements. Raises EVENT_NOT_FOUND."""
    # A pool's version is the number of its movements.
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
    rows = (
        await connection.execute(page.order_by(movements.c.movement_id.desc()).limit(page_size + 1))
    ).all()
    listed = tuple(
        Movement(movement_id, pool_id, Kind(kind), *facts)
        for movement_id, pool_id, kind, *facts in rows[:page_size]
    )
    return MovementPage(
        movements=listed,
        next_before=listed[-1].movement_id if len(rows) > page_size else None,
        total_size=int(total_size),
    )
