"""UpdateStock: compares the target stock of an event with the present one, applies the changes.

The other changes of stock are in restocking.py.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import FieldViolation, invalid
from stock_svc import expiry, ledger, restocking, stock
from stock_svc.ledger import Entry, Kind
from stock_svc.outbox import PoolCounters
from stock_svc.reservations import SeatState
from stock_svc.stock import Offer, Pool, Seat, StockAvailability
from stock_svc.tables import any_of, events, offers, seats

_MAX_VIOLATIONS = 100


@dataclass(frozen=True, slots=True)
class TargetStock:
    """The stock after the update: pools and offers that are not listed stay as they are."""

    pools: Sequence[Pool] = ()
    offers: Sequence[Offer] = ()
    add_seats: Sequence[Seat] = ()
    remove_seat_ids: Sequence[UUID] = ()
    # Over all offers of the event: None keeps the present limit, 0 removes it.
    per_customer_limit: int | None = None


@dataclass(frozen=True, slots=True)
class _Offer:
    pool_id: UUID
    per_customer_limit: int
    seated: bool


@dataclass(frozen=True, slots=True)
class _Seat:
    offer_id: UUID
    blocked: bool
    taken: bool


@dataclass(frozen=True, slots=True)
class _Present:
    """The present stock, its pools locked; of the seats those that the request lists.

    `seats_in` and `blocked_in` count all seats of a pool, and the blocked ones.
    """

    pools: dict[UUID, PoolCounters]
    offers: dict[UUID, _Offer]
    seats: dict[UUID, _Seat]
    seats_in: Counter[UUID]
    blocked_in: Counter[UUID]


async def update(
    connection: AsyncConnection, *, event_id: UUID, target: TargetStock, now: datetime
) -> StockAvailability:
    """Makes an event's stock equal to the target; repeating it changes nothing.

    Raises EVENT_NOT_FOUND, or VALIDATION_FAILED that names the field at fault.
    """
    _raise_if(_repeated(target))
    await restocking.lock_event(connection, event_id)
    await expiry.expire(connection, event_id=event_id, now=now)
    present = await _read(connection, event_id, target)
    _raise_if([*_of_offers(target, present), *_of_seats(target, present)])
    _raise_if(_of_pools(target, present))
    await _change(connection, event_id, target, present, now)
    return await stock.availability(connection, event_id=event_id, with_seats=False, now=now)


async def _read(connection: AsyncConnection, event_id: UUID, target: TargetStock) -> _Present:
    locked = await restocking.lock_pools_of_event(connection, event_id)
    offer_rows = await connection.execute(
        sa.select(
            offers.c.offer_id, offers.c.pool_id, offers.c.per_customer_limit, offers.c.seated
        ).where(offers.c.event_id == event_id)
    )
    present_offers = {offer_id: _Offer(*terms) for offer_id, *terms in offer_rows}
    counts = await connection.execute(
        sa.select(seats.c.offer_id, seats.c.blocked, sa.func.count())
        .where(seats.c.event_id == event_id)
        .group_by(seats.c.offer_id, seats.c.blocked)
    )
    seats_in, blocked_in = Counter[UUID](), Counter[UUID]()
    for offer_id, blocked, count in counts:
        seats_in[present_offers[offer_id].pool_id] += count
        if blocked:
            blocked_in[present_offers[offer_id].pool_id] += count
    listed = [*(seat.seat_id for seat in target.add_seats), *target.remove_seat_ids]
    seat_rows = await connection.execute(
        sa.select(seats.c.seat_id, seats.c.offer_id, seats.c.blocked).where(
            seats.c.event_id == event_id, seats.c.seat_id == any_of(listed)
        )
    )
    taken = set(await restocking.taken_seats(connection, event_id=event_id, seat_ids=listed))
    return _Present(
        pools={pool_id: pool for (_, pool_id), pool in locked.pools.items()},
        offers=present_offers,
        seats={
            row.seat_id: _Seat(row.offer_id, row.blocked, row.seat_id in taken) for row in seat_rows
        },
        seats_in=seats_in,
        blocked_in=blocked_in,
    )


def _raise_if(violations: Sequence[FieldViolation]) -> None:
    if violations:
        raise invalid(*violations[:_MAX_VIOLATIONS])


def _repeated(target: TargetStock) -> list[FieldViolation]:
    added = {seat.seat_id for seat in target.add_seats}
    return [
        *stock.repeated("pools", "pool_id", (pool.pool_id for pool in target.pools)),
        *stock.repeated("offers", "offer_id", (offer.offer_id for offer in target.offers)),
        *stock.repeated("add_seats", "seat_id", (seat.seat_id for seat in target.add_seats)),
        *(
            FieldViolation(f"remove_seat_ids[{n}]", "is also listed in `add_seats`")
            for n, seat_id in enumerate(target.remove_seat_ids)
            if seat_id in added
        ),
    ]


def _of_offers(target: TargetStock, present: _Present) -> Iterator[FieldViolation]:
    known = present.pools.keys() | {pool.pool_id for pool in target.pools}
    for n, offer in enumerate(target.offers):
        before = present.offers.get(offer.offer_id)
        if offer.pool_id not in known:
            yield FieldViolation(f"offers[{n}].pool_id", "the event has no such pool")
        elif before is not None and before.pool_id != offer.pool_id:
            yield FieldViolation(
                f"offers[{n}].pool_id", f"must stay {before.pool_id}, the pool of the offer"
            )


def _of_seats(target: TargetStock, present: _Present) -> Iterator[FieldViolation]:
    pool_of = _pool_of(target, present)
    unseated = {offer.pool_id for offer in present.offers.values() if not offer.seated}
    for n, seat in enumerate(target.add_seats):
        pool_id, before = pool_of.get(seat.offer_id), present.seats.get(seat.seat_id)
        if pool_id is None:
            yield FieldViolation(f"add_seats[{n}].offer_id", "the event has no such offer")
        elif pool_id in unseated:
            yield FieldViolation(f"add_seats[{n}].offer_id", "the offer is not sold by seat")
        if before is not None and pool_of[before.offer_id] != pool_id:
            yield FieldViolation(f"add_seats[{n}].offer_id", "the seat is in another pool")
    for n, seat_id in enumerate(target.remove_seat_ids):
        if (before := present.seats.get(seat_id)) is not None and before.taken:
            yield FieldViolation(f"remove_seat_ids[{n}]", "the seat is held or sold")


def _of_pools(target: TargetStock, present: _Present) -> list[FieldViolation]:
    seats_in, violations = _seats_in(target, present), []
    for n, pool in enumerate(target.pools):
        count, before = seats_in[pool.pool_id], present.pools.get(pool.pool_id)
        is_seated = count or present.seats_in[pool.pool_id]
        used = 0 if before is None else before.held + before.sold
        if is_seated and pool.capacity != count:
            text = f"must be {count}, the number of the pool's seats"
            violations.append(FieldViolation(f"pools[{n}].capacity", text))
        elif not is_seated and pool.capacity < used:
            text = f"must be at least {used}, the number of held and sold places"
            violations.append(FieldViolation(f"pools[{n}].capacity", text))
    return violations


def _seated_pools(target: TargetStock, present: _Present) -> set[UUID]:
    """Pools whose offers are sold by seat after the update."""
    pool_of = _pool_of(target, present)
    return {offer.pool_id for offer in present.offers.values() if offer.seated} | {
        pool_of[seat.offer_id] for seat in target.add_seats
    }


def _pool_of(target: TargetStock, present: _Present) -> dict[UUID, UUID]:
    """The pool of each offer."""
    return {offer.offer_id: offer.pool_id for offer in target.offers} | {
        offer_id: offer.pool_id for offer_id, offer in present.offers.items()
    }


def _seats_in(target: TargetStock, present: _Present) -> Counter[UUID]:
    """The number of seats of each pool after the update."""
    pool_of, result = _pool_of(target, present), Counter(present.seats_in)
    result.update(pool_of[seat.offer_id] for seat in _added(target, present))
    for seat_id in _removed(target, present):
        result[pool_of[present.seats[seat_id].offer_id]] -= 1
    return result


def _added(target: TargetStock, present: _Present) -> list[Seat]:
    return [seat for seat in target.add_seats if seat.seat_id not in present.seats]


def _removed(target: TargetStock, present: _Present) -> list[UUID]:
    return sorted({seat_id for seat_id in target.remove_seat_ids if seat_id in present.seats})


async def _change(
    connection: AsyncConnection,
    event_id: UUID,
    target: TargetStock,
    present: _Present,
    now: datetime,
) -> None:
    new_pools = [pool.pool_id for pool in target.pools if pool.pool_id not in present.pools]
    await stock.insert_pools(connection, event_id=event_id, pool_ids=new_pools)
    new_offers = [offer for offer in target.offers if offer.offer_id not in present.offers]
    seated = _seated_pools(target, present)
    await stock.insert_offers(connection, event_id=event_id, new=new_offers, seated=seated)
    for offer in target.offers:
        before = present.offers.get(offer.offer_id)
        if before is not None and before.per_customer_limit != offer.per_customer_limit:
            await connection.execute(
                sa.update(offers)
                .where(offers.c.event_id == event_id, offers.c.offer_id == offer.offer_id)
                .values(per_customer_limit=offer.per_customer_limit)
            )
    if target.per_customer_limit is not None:
        await connection.execute(
            sa.update(events)
            .where(events.c.event_id == event_id)
            .values(per_customer_limit=target.per_customer_limit or None)
        )
    added, removed = _added(target, present), _removed(target, present)
    await stock.insert_seats(connection, event_id=event_id, new=added)
    if removed:
        await connection.execute(
            sa.delete(seats).where(seats.c.event_id == event_id, seats.c.seat_id == any_of(removed))
        )
    entries = _entries(event_id, target, present)
    if not (entries or added or removed):
        return
    states: dict[tuple[UUID, UUID], SeatState | None] = {
        (event_id, seat.seat_id): SeatState.AVAILABLE for seat in added
    }
    await ledger.post(
        connection,
        entries=entries,
        seats=states | {(event_id, seat_id): None for seat_id in removed},
        now=now,
    )


def _entries(event_id: UUID, target: TargetStock, present: _Present) -> list[Entry]:
    """The changes of the pools' capacities; blocked seats do not count."""
    seats_in, pool_of = _seats_in(target, present), _pool_of(target, present)
    blocked_in = Counter(present.blocked_in)
    for seat_id in _removed(target, present):
        seat = present.seats[seat_id]
        blocked_in[pool_of[seat.offer_id]] -= seat.blocked
    capacities = {pool.pool_id: pool.capacity for pool in target.pools}
    for pool_id in seats_in:
        if seats_in[pool_id] or present.seats_in[pool_id]:
            capacities[pool_id] = seats_in[pool_id] - blocked_in[pool_id]
    entries = []
    for pool_id, capacity in capacities.items():
        before = present.pools.get(pool_id)
        delta = capacity - (0 if before is None else before.capacity)
        if delta:
            kind = Kind.DEFINE if before is None else Kind.ADJUST
            entries.append(Entry(event_id, pool_id, kind, capacity=delta))
    return entries
