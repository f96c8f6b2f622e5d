"""UpdateStock: how an event's stock is to be, compared with how it is.

Says what must change and refuses what may not; the locks and the other changes of stock are
in restocking.py.
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
from stock_svc.reservations import SeatState
from stock_svc.stock import Offer, Pool, Seat, StockAvailability
from stock_svc.tables import any_of, events, offers, pools, seats

_MAX_VIOLATIONS = 100


@dataclass(frozen=True, slots=True)
class TargetStock:
    """How the stock is to be: pools and offers that are not named stay as they are."""

    pools: Sequence[Pool] = ()
    offers: Sequence[Offer] = ()
    add_seats: Sequence[Seat] = ()
    remove_seat_ids: Sequence[UUID] = ()
    # Over all offers of the event: None leaves it as it is, 0 takes it away.
    per_customer_limit: int | None = None


@dataclass(frozen=True, slots=True)
class _Counters:
    capacity: int
    used: int


@dataclass(frozen=True, slots=True)
class _Drawn:
    """An offer as it is."""

    pool_id: UUID
    per_customer_limit: int
    seated: bool


@dataclass(frozen=True, slots=True)
class _Seat:
    """A seat as it is."""

    offer_id: UUID
    blocked: bool
    taken: bool


@dataclass(frozen=True, slots=True)
class _Existing:
    """The stock as it is, its pools locked; of the seats those that the request names.

    `seats_in` and `blocked_in` count all seats of a pool, and those that are blocked.
    """

    pools: dict[UUID, _Counters]
    offers: dict[UUID, _Drawn]
    seats: dict[UUID, _Seat]
    seats_in: Counter[UUID]
    blocked_in: Counter[UUID]


async def update(
    connection: AsyncConnection, *, event_id: UUID, wanted: TargetStock, now: datetime
) -> StockAvailability:
    """Makes an event's stock as wanted; again, it changes nothing.

    Raises EVENT_NOT_FOUND, or VALIDATION_FAILED that names the field at fault.
    """
    _raise_if(_repeated(wanted))
    await restocking.lock_event(connection, event_id)
    await expiry.expire(connection, event_id=event_id, now=now)
    existing = await _read(connection, event_id, wanted)
    _raise_if([*_of_offers(wanted, existing), *_of_seats(wanted, existing)])
    _raise_if(_of_pools(wanted, existing))
    await _change(connection, event_id, wanted, existing, now)
    return await stock.availability(connection, event_id=event_id, with_seats=False, now=now)


async def _read(connection: AsyncConnection, event_id: UUID, wanted: TargetStock) -> _Existing:
    locked = await connection.execute(
        sa.select(pools.c.pool_id, pools.c.capacity, pools.c.held + pools.c.sold)
        .where(pools.c.event_id == event_id)
        .order_by(pools.c.pool_id)
        .with_for_update(key_share=True)
    )
    drawn = await connection.execute(
        sa.select(
            offers.c.offer_id, offers.c.pool_id, offers.c.per_customer_limit, offers.c.seated
        ).where(offers.c.event_id == event_id)
    )
    offered = {offer_id: _Drawn(*facts) for offer_id, *facts in drawn}
    counted = await connection.execute(
        sa.select(seats.c.offer_id, seats.c.blocked, sa.func.count())
        .where(seats.c.event_id == event_id)
        .group_by(seats.c.offer_id, seats.c.blocked)
    )
    seats_in, blocked_in = Counter[UUID](), Counter[UUID]()
    for offer_id, blocked, count in counted:
        seats_in[offered[offer_id].pool_id] += count
        if blocked:
            blocked_in[offered[offer_id].pool_id] += count
    named = [*(seat.seat_id for seat in wanted.add_seats), *wanted.remove_seat_ids]
    found = await connection.execute(
        sa.select(seats.c.seat_id, seats.c.offer_id, seats.c.blocked).where(
            seats.c.event_id == event_id, seats.c.seat_id == any_of(named)
        )
    )
    taken = set(await restocking.claimed(connection, event_id=event_id, seat_ids=named))
    return _Existing(
        pools={pool_id: _Counters(*counters) for pool_id, *counters in locked},
        offers=offered,
        seats={
            row.seat_id: _Seat(row.offer_id, row.blocked, row.seat_id in taken) for row in found
        },
        seats_in=seats_in,
        blocked_in=blocked_in,
    )


def _raise_if(violations: Sequence[FieldViolation]) -> None:
    if violations:
        raise invalid(*violations[:_MAX_VIOLATIONS])


def _repeated(wanted: TargetStock) -> list[FieldViolation]:
    added = {seat.seat_id for seat in wanted.add_seats}
    return [
        *stock.repeated("pools", "pool_id", (pool.pool_id for pool in wanted.pools)),
        *stock.repeated("offers", "offer_id", (offer.offer_id for offer in wanted.offers)),
        *stock.repeated("add_seats", "seat_id", (seat.seat_id for seat in wanted.add_seats)),
        *(
            FieldViolation(f"remove_seat_ids[{n}]", "is among the seats to add")
            for n, seat_id in enumerate(wanted.remove_seat_ids)
            if seat_id in added
        ),
    ]


def _of_offers(wanted: TargetStock, existing: _Existing) -> Iterator[FieldViolation]:
    known = existing.pools.keys() | {pool.pool_id for pool in wanted.pools}
    for n, offer in enumerate(wanted.offers):
        is_now = existing.offers.get(offer.offer_id)
        if offer.pool_id not in known:
            yield FieldViolation(f"offers[{n}].pool_id", "no such pool")
        elif is_now is not None and is_now.pool_id != offer.pool_id:
            yield FieldViolation(f"offers[{n}].pool_id", "the offer draws on another pool")


def _of_seats(wanted: TargetStock, existing: _Existing) -> Iterator[FieldViolation]:
    known = existing.offers.keys() | {offer.offer_id for offer in wanted.offers}
    for n, seat in enumerate(wanted.add_seats):
        offer, is_now = existing.offers.get(seat.offer_id), existing.seats.get(seat.seat_id)
        if seat.offer_id not in known:
            yield FieldViolation(f"add_seats[{n}].offer_id", "no such offer")
        elif offer is not None and not offer.seated:
            yield FieldViolation(f"add_seats[{n}].offer_id", "this offer is not sold by seat")
        if is_now is not None and is_now.offer_id != seat.offer_id:
            yield FieldViolation(f"add_seats[{n}].offer_id", "another offer sells the seat")
    for n, seat_id in enumerate(wanted.remove_seat_ids):
        if (leaving := existing.seats.get(seat_id)) is not None and leaving.taken:
            yield FieldViolation(f"remove_seat_ids[{n}]", "the seat is held or sold")


def _of_pools(wanted: TargetStock, existing: _Existing) -> list[FieldViolation]:
    seats_in = _seats_in(wanted, existing)
    seated_offers = _seated_offers(wanted, existing)
    violations = [
        FieldViolation(f"offers[{n}].pool_id", "a seated pool sells nothing but its seats")
        for n, offer in enumerate(wanted.offers)
        if seats_in[offer.pool_id] and offer.offer_id not in seated_offers
    ]
    for n, pool in enumerate(wanted.pools):
        count, is_now = seats_in[pool.pool_id], existing.pools.get(pool.pool_id)
        is_seated = count or existing.seats_in[pool.pool_id]
        if is_seated and pool.capacity != count:
            text = f"must be {count}, the number of the pool's seats"
            violations.append(FieldViolation(f"pools[{n}].capacity", text))
        elif not is_seated and is_now is not None and pool.capacity < is_now.used:
            text = f"must be at least {is_now.used}, which are held or sold"
            violations.append(FieldViolation(f"pools[{n}].capacity", text))
    return violations


def _seated_offers(wanted: TargetStock, existing: _Existing) -> set[UUID]:
    """Offers that are or become sold by seat."""
    return {offer_id for offer_id, offer in existing.offers.items() if offer.seated} | {
        seat.offer_id for seat in wanted.add_seats
    }


def _pool_of(wanted: TargetStock, existing: _Existing) -> dict[UUID, UUID]:
    """The pool of each offer."""
    return {offer.offer_id: offer.pool_id for offer in wanted.offers} | {
        offer_id: offer.pool_id for offer_id, offer in existing.offers.items()
    }


def _seats_in(wanted: TargetStock, existing: _Existing) -> Counter[UUID]:
    """How many seats each pool will have."""
    pool_of, result = _pool_of(wanted, existing), Counter(existing.seats_in)
    result.update(pool_of[seat.offer_id] for seat in _added(wanted, existing))
    for seat_id in _removed(wanted, existing):
        result[pool_of[existing.seats[seat_id].offer_id]] -= 1
    return result


def _added(wanted: TargetStock, existing: _Existing) -> list[Seat]:
    return [seat for seat in wanted.add_seats if seat.seat_id not in existing.seats]


def _removed(wanted: TargetStock, existing: _Existing) -> list[UUID]:
    return sorted({each for each in wanted.remove_seat_ids if each in existing.seats})


async def _change(
    connection: AsyncConnection,
    event_id: UUID,
    wanted: TargetStock,
    existing: _Existing,
    now: datetime,
) -> None:
    new_pools = [pool.pool_id for pool in wanted.pools if pool.pool_id not in existing.pools]
    await stock.insert_pools(connection, event_id=event_id, pool_ids=new_pools)
    new_offers = [offer for offer in wanted.offers if offer.offer_id not in existing.offers]
    seated = _seated_offers(wanted, existing)
    await stock.insert_offers(connection, event_id=event_id, new=new_offers, seated=seated)
    for offer in wanted.offers:
        is_now = existing.offers.get(offer.offer_id)
        if is_now is not None and is_now.per_customer_limit != offer.per_customer_limit:
            await connection.execute(
                sa.update(offers)
                .where(offers.c.event_id == event_id, offers.c.offer_id == offer.offer_id)
                .values(per_customer_limit=offer.per_customer_limit)
            )
    if wanted.per_customer_limit is not None:
        await connection.execute(
            sa.update(events)
            .where(events.c.event_id == event_id)
            .values(per_customer_limit=wanted.per_customer_limit or None)
        )
    added, removed = _added(wanted, existing), _removed(wanted, existing)
    await stock.insert_seats(connection, event_id=event_id, new=added)
    if removed:
        await connection.execute(
            sa.delete(seats).where(seats.c.event_id == event_id, seats.c.seat_id == any_of(removed))
        )
    entries = _entries(event_id, wanted, existing)
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


def _entries(event_id: UUID, wanted: TargetStock, existing: _Existing) -> list[Entry]:
    """What changes in the pools' capacities; blocked seats do not count."""
    seats_in, pool_of = _seats_in(wanted, existing), _pool_of(wanted, existing)
    blocked_in = Counter(existing.blocked_in)
    for seat_id in _removed(wanted, existing):
        seat = existing.seats[seat_id]
        blocked_in[pool_of[seat.offer_id]] -= seat.blocked
    capacities = {pool.pool_id: pool.capacity for pool in wanted.pools}
    for pool_id in seats_in:
        if seats_in[pool_id] or existing.seats_in[pool_id]:
            capacities[pool_id] = seats_in[pool_id] - blocked_in[pool_id]
    entries = []
    for pool_id, capacity in capacities.items():
        is_now = existing.pools.get(pool_id)
        before = 0 if is_now is None else is_now.capacity
        if capacity != before:
            kind = Kind.DEFINE if is_now is None else Kind.ADJUST
            entries.append(Entry(event_id, pool_id, kind, capacity=capacity - before))
    return entries
