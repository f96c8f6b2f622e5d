"""The stock of an event: its definition and its availability.

Changes after the definition are in stock_update.py and restocking.py.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, FieldViolation, Reason, invalid
from stock_svc import ledger
from stock_svc.ledger import Entry, Kind
from stock_svc.reservations import SeatState
from stock_svc.tables import (
    Uuid,
    any_of,
    claim_is_live,
    events,
    is_active,
    offers,
    pools,
    reservation_lines,
    reservations,
    rows,
    seat_claims,
    seats,
)

# So that the statements for a stadium stay below the statement timeout.
_SEATS_PER_STATEMENT = 20_000
_MAX_VIOLATIONS = 100


@dataclass(frozen=True, slots=True)
class Pool:
    """A number of places; in a seated pool, the number of its seats."""

    pool_id: UUID
    capacity: int


@dataclass(frozen=True, slots=True)
class Offer:
    """Sells places of a pool; one customer may own at most `per_customer_limit` of them."""

    offer_id: UUID
    pool_id: UUID
    per_customer_limit: int


@dataclass(frozen=True, slots=True)
class Seat:
    """A seat. `offer_id` names its pool: every offer of that pool sells it."""

    seat_id: UUID
    offer_id: UUID


@dataclass(frozen=True, slots=True)
class Stock:
    """The pools, offers and seats of an event."""

    pools: Sequence[Pool]
    offers: Sequence[Offer]
    seats: Sequence[Seat] = ()
    # Over all offers; None for no limit.
    per_customer_limit: int | None = None


@dataclass(frozen=True, slots=True)
class PoolAvailability:
    """`version` is the number of the pool's movements.

    `available` is for all; `kept` further free places are for the waiting list only.
    """

    pool_id: UUID
    capacity: int
    available: int
    version: int
    kept: int = 0


@dataclass(frozen=True, slots=True)
class OfferAvailability:
    offer_id: UUID
    available: int


@dataclass(frozen=True, slots=True)
class SeatAvailability:
    seat_id: UUID
    state: SeatState


@dataclass(frozen=True, slots=True)
class StockAvailability:
    """The places that can be reserved. `version` increases with every movement of the event."""

    event_id: UUID
    version: int
    pools: tuple[PoolAvailability, ...]
    offers: tuple[OfferAvailability, ...]
    seats: tuple[SeatAvailability, ...]


async def define(
    connection: AsyncConnection, *, event_id: UUID, stock: Stock, now: datetime
) -> None:
    """Defines the stock of an event; repeating it with the same stock changes nothing.

    Raises VALIDATION_FAILED for contradictions, and STOCK_ALREADY_DEFINED when the event has or
    had other stock.
    """
    _check(stock)
    fingerprint = _fingerprint(stock)
    # A concurrent definition waits here.
    inserted = await connection.execute(
        postgresql.insert(events)
        .values(
            event_id=event_id,
            fingerprint=fingerprint,
            create_time=now,
            per_customer_limit=stock.per_customer_limit,
        )
        .on_conflict_do_nothing()
    )
    if inserted.rowcount == 1:
        await _insert(connection, event_id, stock)
        await ledger.post(
            connection,
            entries=[
                Entry(event_id, pool.pool_id, Kind.DEFINE, capacity=pool.capacity)
                for pool in stock.pools
            ],
            now=now,
        )
        return
    defined = await connection.scalar(
        sa.select(events.c.fingerprint).where(events.c.event_id == event_id)
    )
    if defined != fingerprint:
        raise DomainError(Reason.STOCK_ALREADY_DEFINED, "the event has or had other stock")


async def availability(
    connection: AsyncConnection, *, event_id: UUID, with_seats: bool, now: datetime
) -> StockAvailability:
    """The availability of an event; lapsed holds count as free. Raises EVENT_NOT_FOUND.

    It runs several statements: the caller gives it a snapshot, or holds the locks of the pools.
    """
    in_pools = await pool_availability(connection, event_id=event_id, now=now)
    if not in_pools:
        raise DomainError(Reason.EVENT_NOT_FOUND, "the event has no stock")
    available = {pool.pool_id: pool.available for pool in in_pools}
    pool_of_offer = await connection.execute(
        sa.select(offers.c.offer_id, offers.c.pool_id)
        .where(offers.c.event_id == event_id)
        .order_by(offers.c.offer_id)
    )
    return StockAvailability(
        event_id=event_id,
        version=sum(pool.version for pool in in_pools),
        pools=in_pools,
        offers=tuple(
            OfferAvailability(row.offer_id, available[row.pool_id]) for row in pool_of_offer
        ),
        seats=await seat_availability(connection, event_id=event_id, now=now) if with_seats else (),
    )


async def pool_availability(
    connection: AsyncConnection, *, event_id: UUID, now: datetime
) -> tuple[PoolAvailability, ...]:
    """The availability of each pool of an event, read by one statement.

    Lapsed holds count as free. Empty for an event without stock.
    """
    lapsed = (
        sa.select(
            reservation_lines.c.pool_id,
            sa.func.sum(reservation_lines.c.quantity).label("quantity"),
        )
        .join_from(reservations, reservation_lines, _same_reservation(reservation_lines))
        .where(reservations.c.event_id == event_id, is_active, reservations.c.expire_time <= now)
        .group_by(reservation_lines.c.pool_id)
        .subquery()
    )
    free = pools.c.capacity - pools.c.held - pools.c.sold + sa.func.coalesce(lapsed.c.quantity, 0)
    # LEAST ignores NULL.
    available = sa.func.least(free, pools.c.open_places)
    result = await connection.execute(
        sa.select(
            pools.c.pool_id,
            pools.c.capacity,
            available.label("available"),
            pools.c.version,
            (free - available).label("kept"),
        )
        .outerjoin_from(pools, lapsed, lapsed.c.pool_id == pools.c.pool_id)
        .where(pools.c.event_id == event_id)
        .order_by(pools.c.pool_id)
    )
    return tuple(
        PoolAvailability(row.pool_id, row.capacity, int(row.available), row.version, int(row.kept))
        for row in result
    )


async def seat_availability(
    connection: AsyncConnection,
    *,
    event_id: UUID,
    seat_ids: Collection[UUID] | None = None,
    now: datetime,
) -> tuple[SeatAvailability, ...]:
    """The state of all seats of an event, or of `seat_ids`; lapsed holds count as free."""
    has_lapsed = sa.and_(is_active, reservations.c.expire_time <= now)
    # A look-up per seat, which has at most one live claim: while a new table has no statistics,
    # the planner runs a join as nested loops over all claims.
    claimed = (
        sa.select(seat_claims.c.state)
        .join_from(seat_claims, reservations, _same_reservation(seat_claims))
        .where(seat_claims.c.event_id == seats.c.event_id)
        .where(seat_claims.c.seat_id == seats.c.seat_id)
        .where(claim_is_live, ~has_lapsed)
        .scalar_subquery()
    )
    result = await connection.execute(
        sa.select(
            seats.c.seat_id,
            sa.case((seats.c.blocked, SeatState.BLOCKED.value), else_=claimed).label("state"),
        )
        .where(seats.c.event_id == event_id)
        .where(sa.true() if seat_ids is None else seats.c.seat_id == any_of(seat_ids))
        .order_by(seats.c.seat_id)
    )
    return tuple(
        SeatAvailability(row.seat_id, SeatState(row.state or "AVAILABLE")) for row in result
    )


def _same_reservation(table: sa.Table) -> sa.ColumnElement[bool]:
    return sa.and_(
        table.c.event_id == reservations.c.event_id,
        table.c.reservation_id == reservations.c.reservation_id,
    )


def _check(stock: Stock) -> None:
    """Raises VALIDATION_FAILED with a violation for each contradiction."""
    known_pools = {pool.pool_id for pool in stock.pools}
    pool_of = {offer.offer_id: offer.pool_id for offer in stock.offers}
    violations = [
        *repeated("pools", "pool_id", (pool.pool_id for pool in stock.pools)),
        *repeated("offers", "offer_id", (offer.offer_id for offer in stock.offers)),
        *repeated("seats", "seat_id", (seat.seat_id for seat in stock.seats)),
    ]
    violations += [
        FieldViolation(f"offers[{n}].pool_id", "is none of the request's pools")
        for n, offer in enumerate(stock.offers)
        if offer.pool_id not in known_pools
    ]
    violations += [
        FieldViolation(f"seats[{n}].offer_id", "is none of the request's offers")
        for n, seat in enumerate(stock.seats)
        if seat.offer_id not in pool_of
    ]
    if violations:
        raise invalid(*violations[:_MAX_VIOLATIONS])
    seats_in = Counter(pool_of[seat.offer_id] for seat in stock.seats)
    violations += [
        FieldViolation(f"pools[{n}].capacity", f"must be {count}, the number of the pool's seats")
        for n, pool in enumerate(stock.pools)
        if (count := seats_in[pool.pool_id]) and pool.capacity != count
    ]
    if violations:
        raise invalid(*violations)


def repeated(field: str, name: str, ids: Iterable[UUID]) -> list[FieldViolation]:
    """A violation for each id that is listed again."""
    seen: set[UUID] = set()
    violations = []
    for n, id_ in enumerate(ids):
        if id_ in seen:
            violations.append(FieldViolation(f"{field}[{n}].{name}", "is listed twice"))
        seen.add(id_)
    return violations


def _fingerprint(stock: Stock) -> bytes:
    """The same for the same stock in any order."""
    digest = hashlib.sha256()
    for pool in sorted(stock.pools, key=lambda pool: pool.pool_id):
        digest.update(f"pool {pool.pool_id} {pool.capacity}\n".encode())
    for offer in sorted(stock.offers, key=lambda offer: offer.offer_id):
        digest.update(
            f"offer {offer.offer_id} {offer.pool_id} {offer.per_customer_limit}\n".encode()
        )
    for seat in sorted(stock.seats, key=lambda seat: seat.seat_id):
        digest.update(f"seat {seat.seat_id} {seat.offer_id}\n".encode())
    if stock.per_customer_limit is not None:
        digest.update(f"per customer {stock.per_customer_limit}\n".encode())
    return digest.digest()


async def _insert(connection: AsyncConnection, event_id: UUID, stock: Stock) -> None:
    await insert_pools(
        connection, event_id=event_id, pool_ids=[pool.pool_id for pool in stock.pools]
    )
    pool_of = {offer.offer_id: offer.pool_id for offer in stock.offers}
    seated = {pool_of[seat.offer_id] for seat in stock.seats}
    await insert_offers(connection, event_id=event_id, new=stock.offers, seated=seated)
    await insert_seats(connection, event_id=event_id, new=stock.seats)


async def insert_pools(
    connection: AsyncConnection, *, event_id: UUID, pool_ids: Sequence[UUID]
) -> None:
    """Inserts pools with capacity 0: ledger.post sets the capacity."""
    empty = {"capacity": 0, "held": 0, "sold": 0, "version": 0}
    if pool_ids:
        await connection.execute(
            sa.insert(pools),
            [{"event_id": event_id, "pool_id": pool_id, **empty} for pool_id in pool_ids],
        )


async def insert_offers(
    connection: AsyncConnection, *, event_id: UUID, new: Sequence[Offer], seated: Container[UUID]
) -> None:
    """Inserts offers; `seated` has the ids of pools with seats, whose offers are sold by seat.

    Places sold without a seat would leave the last seats unsellable.
    """
    if new:
        await connection.execute(
            sa.insert(offers),
            [
                {
                    "event_id": event_id,
                    "offer_id": offer.offer_id,
                    "pool_id": offer.pool_id,
                    "per_customer_limit": offer.per_customer_limit,
                    "seated": offer.pool_id in seated,
                }
                for offer in new
            ],
        )


async def insert_seats(connection: AsyncConnection, *, event_id: UUID, new: Sequence[Seat]) -> None:
    """Inserts seats; the caller changes the capacity of their pool."""
    for start in range(0, len(new), _SEATS_PER_STATEMENT):
        part = new[start : start + _SEATS_PER_STATEMENT]
        new_seats = rows(
            seat_id=(Uuid, [seat.seat_id for seat in part]),
            offer_id=(Uuid, [seat.offer_id for seat in part]),
        )
        await connection.execute(
            sa.insert(seats).from_select(
                ["event_id", "seat_id", "offer_id", "blocked"],
                sa.select(
                    sa.literal(event_id, Uuid),
                    new_seats.c.seat_id,
                    new_seats.c.offer_id,
                    sa.false(),
                ),
            )
        )
