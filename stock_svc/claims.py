"""Claims on stock: places of a pool, a customer's total of an offer, single seats.

Takes them all or raises what is short, and gives them back. Which reservation they are
for, and in which state it is, is reservations.py's business.

Order of locks: reservations, then pools sorted by id. Totals and seat claims need no
order, because whoever changes one holds the lock of its pool.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, Reason
from stock_svc import ledger, stock
from stock_svc.demand import Demand
from stock_svc.ledger import Entry, Kind, PoolShortError
from stock_svc.tables import (
    Uuid,
    any_of,
    claim_is_live,
    customer_totals,
    pools,
    reservation_lines,
    reservations,
    rows,
    seat_claims,
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A line of a reservation, as it holds its claims."""

    reservation_id: UUID
    customer_id: UUID
    offer_id: UUID
    pool_id: UUID
    seat_id: UUID | None
    quantity: int


class LimitReachedError(Exception):
    def __init__(self, offer_id: UUID) -> None:
        super().__init__(f"the customer's limit of offer {offer_id} is reached")
        self.offer_id = offer_id


class SeatsTakenError(Exception):
    def __init__(self, seat_ids: Collection[UUID]) -> None:
        super().__init__(f"{len(seat_ids)} seats are taken")
        self.seat_ids = seat_ids


Short = (PoolShortError, LimitReachedError, SeatsTakenError)
"""What `take` raises. The transaction then holds parts of the claim: undo them."""


async def take(
    connection: AsyncConnection,
    *,
    event_id: UUID,
    reservation_id: UUID,
    customer_id: UUID,
    demand: Demand,
    now: datetime,
) -> None:
    """Holds all that is demanded, or raises one of `Short`."""
    await ledger.post(
        connection,
        event_id=event_id,
        entries=[
            Entry(pool_id, Kind.RESERVE, reservation_id, held=quantity)
            for pool_id, quantity in demand.by_pool.items()
        ],
        now=now,
    )
    for offer_id, quantity in demand.by_offer.items():
        limit = demand.terms[offer_id].per_customer_limit
        if not await _add_to_total(connection, event_id, offer_id, customer_id, quantity, limit):
            raise LimitReachedError(offer_id)
    if demand.seat_ids:
        taken = await _seats_not_claimed(connection, event_id, reservation_id, demand.seat_ids)
        if taken:
            raise SeatsTakenError(taken)


async def sell(
    connection: AsyncConnection, *, event_id: UUID, claimed: Sequence[Claimed], now: datetime
) -> None:
    """Makes what is held sold."""
    await ledger.post(
        connection,
        event_id=event_id,
        entries=[
            Entry(pool_id, Kind.COMMIT, reservation_id, held=-quantity, sold=quantity)
            for (reservation_id, pool_id), quantity in _by_pool(claimed).items()
        ],
        now=now,
    )
    await _move_seats(connection, event_id, claimed, source="HELD", target="SOLD")


async def give_back(
    connection: AsyncConnection,
    *,
    event_id: UUID,
    claimed: Sequence[Claimed],
    kind: Kind,
    now: datetime,
) -> None:
    """Frees what is held, because of `kind`: RELEASE or EXPIRE."""
    if not claimed:
        return
    await ledger.post(
        connection,
        event_id=event_id,
        entries=[
            Entry(pool_id, kind, reservation_id, held=-quantity)
            for (reservation_id, pool_id), quantity in _by_pool(claimed).items()
        ],
        now=now,
    )
    await _subtract_from_totals(connection, event_id, claimed)
    await _move_seats(connection, event_id, claimed, source="HELD", target="FREED")


async def of_reservations(
    connection: AsyncConnection, *, event_id: UUID, reservation_ids: Sequence[UUID]
) -> list[Claimed]:
    """What reservations hold or held, in lines."""
    if not reservation_ids:
        return []
    found = await connection.execute(
        sa.select(
            reservation_lines.c.reservation_id,
            reservations.c.customer_id,
            reservation_lines.c.offer_id,
            reservation_lines.c.pool_id,
            reservation_lines.c.seat_id,
            reservation_lines.c.quantity,
        )
        .join(
            reservations,
            (reservations.c.event_id == reservation_lines.c.event_id)
            & (reservations.c.reservation_id == reservation_lines.c.reservation_id),
        )
        .where(reservation_lines.c.event_id == event_id)
        .where(reservation_lines.c.reservation_id == any_of(reservation_ids))
    )
    return [Claimed(*row) for row in found]


async def sold_out(
    connection: AsyncConnection, *, event_id: UUID, demand: Demand, now: datetime
) -> DomainError | None:
    """The refusal when a pool without seats has too little left, lapsed holds counted as free."""
    left = await stock.pools_left(connection, event_id=event_id, now=now)
    available = {pool.pool_id: pool.available for pool in left}
    for line in demand.lines:
        pool_id = demand.pool_of(line)
        if line.seat_id is None and demand.by_pool[pool_id] > available[pool_id]:
            return _sold_out(demand, pool_id, available[pool_id])
    return None


async def refusal(
    connection: AsyncConnection,
    *,
    event_id: UUID,
    customer_id: UUID,
    demand: Demand,
    short: Exception,
) -> DomainError:
    """What `take` raised, with the facts that a client needs to choose something else."""
    match short:
        case PoolShortError(pool_id=pool_id):
            return await _pool_refusal(connection, event_id, demand, pool_id)
        case LimitReachedError(offer_id=offer_id):
            owned = await connection.scalar(
                sa.select(customer_totals.c.quantity).where(
                    _is_total(event_id, offer_id, customer_id)
                )
            )
            return DomainError(
                Reason.PURCHASE_LIMIT_EXCEEDED,
                "the customer would own more of the offer than its limit",
                offer_id=offer_id,
                limit=demand.terms[offer_id].per_customer_limit,
                owned=owned or 0,
                requested=demand.by_offer[offer_id],
            )
        case SeatsTakenError(seat_ids=seat_ids):
            return _seats_refusal(seat_ids)
    raise short


async def _add_to_total(
    connection: AsyncConnection,
    event_id: UUID,
    offer_id: UUID,
    customer_id: UUID,
    quantity: int,
    limit: int,
) -> bool:
    """False when the customer would own more than the limit."""
    if quantity > limit:
        return False
    total = postgresql.insert(customer_totals).values(
        event_id=event_id,
        offer_id=offer_id,
        customer_id=customer_id,
        quantity=quantity,
        per_customer_limit=limit,
    )
    added = customer_totals.c.quantity + total.excluded.quantity
    changed = await connection.execute(
        total.on_conflict_do_update(
            constraint=customer_totals.primary_key,
            set_={"quantity": added},
            where=added <= customer_totals.c.per_customer_limit,
        )
    )
    return changed.rowcount == 1


async def _seats_not_claimed(
    connection: AsyncConnection, event_id: UUID, reservation_id: UUID, seat_ids: Sequence[UUID]
) -> list[UUID]:
    """Claims the seats that nobody has. Returns the others."""
    wanted = rows(seat_id=(Uuid, seat_ids))
    claimed = await connection.scalars(
        postgresql.insert(seat_claims)
        .from_select(
            ["event_id", "reservation_id", "seat_id", "state"],
            sa.select(
                sa.literal(event_id, Uuid),
                sa.literal(reservation_id, Uuid),
                wanted.c.seat_id,
                sa.literal_column("'HELD'"),
            ),
        )
        .on_conflict_do_nothing(
            index_elements=["event_id", "seat_id"], index_where=sa.text("state IN ('HELD', 'SOLD')")
        )
        .returning(seat_claims.c.seat_id)
    )
    return sorted(set(seat_ids) - set(claimed))


async def _subtract_from_totals(
    connection: AsyncConnection, event_id: UUID, claimed: Sequence[Claimed]
) -> None:
    freed = Counter[tuple[UUID, UUID]]()
    for line in claimed:
        freed[line.offer_id, line.customer_id] += line.quantity
    given = rows(
        offer_id=(Uuid, [offer_id for offer_id, _ in freed]),
        customer_id=(Uuid, [customer_id for _, customer_id in freed]),
        quantity=(sa.Integer(), list(freed.values())),
    )
    changed = await connection.execute(
        sa.update(customer_totals)
        .where(_is_total(event_id, given.c.offer_id, given.c.customer_id))
        .values(quantity=customer_totals.c.quantity - given.c.quantity)
    )
    _expect(changed.rowcount, len(freed), "customer totals")


async def _move_seats(
    connection: AsyncConnection,
    event_id: UUID,
    claimed: Sequence[Claimed],
    *,
    source: str,
    target: str,
) -> None:
    with_seats = [line for line in claimed if line.seat_id is not None]
    if not with_seats:
        return
    changed = await connection.execute(
        sa.update(seat_claims)
        .where(seat_claims.c.event_id == event_id)
        .where(seat_claims.c.reservation_id == any_of({line.reservation_id for line in with_seats}))
        .where(seat_claims.c.state == source)
        .values(state=target)
    )
    _expect(changed.rowcount, len(with_seats), "seat claims")


def _expect(changed: int, expected: int, what: str) -> None:
    """A bug has left the claims and the lines of a reservation apart: undo the transaction."""
    if changed != expected:
        raise RuntimeError(f"{changed} instead of {expected} {what} changed")


def _by_pool(claimed: Sequence[Claimed]) -> Counter[tuple[UUID, UUID]]:
    """Quantities by reservation and pool."""
    quantities = Counter[tuple[UUID, UUID]]()
    for line in claimed:
        quantities[line.reservation_id, line.pool_id] += line.quantity
    return quantities


def _is_total(event_id: object, offer_id: object, customer_id: object) -> sa.ColumnElement[bool]:
    return sa.and_(
        customer_totals.c.event_id == event_id,
        customer_totals.c.offer_id == offer_id,
        customer_totals.c.customer_id == customer_id,
    )


async def _pool_refusal(
    connection: AsyncConnection, event_id: UUID, demand: Demand, pool_id: UUID
) -> DomainError:
    # A seated pool is short because a wanted seat is taken: say which.
    wanted = [line.seat_id for line in demand.lines if demand.pool_of(line) == pool_id]
    if seat_ids := [seat_id for seat_id in wanted if seat_id is not None]:
        taken = await connection.scalars(
            sa.select(seat_claims.c.seat_id)
            .where(seat_claims.c.event_id == event_id, claim_is_live)
            .where(seat_claims.c.seat_id == any_of(seat_ids))
            .order_by(seat_claims.c.seat_id)
        )
        if taken_ids := taken.all():
            return _seats_refusal(taken_ids)
    available = await connection.scalar(
        sa.select(pools.c.capacity - pools.c.held - pools.c.sold).where(
            pools.c.event_id == event_id, pools.c.pool_id == pool_id
        )
    )
    return _sold_out(demand, pool_id, available or 0)


def _sold_out(demand: Demand, pool_id: UUID, available: int) -> DomainError:
    return DomainError(
        Reason.SOLD_OUT,
        "fewer places are left than asked for",
        offer_id=next(line.offer_id for line in demand.lines if demand.pool_of(line) == pool_id),
        requested=demand.by_pool[pool_id],
        available=available,
    )


def _seats_refusal(seat_ids: Collection[UUID]) -> DomainError:
    return DomainError(
        Reason.SEAT_UNAVAILABLE,
        "one or more seats are held or sold",
        seat_ids=",".join(map(str, seat_ids)),
    )
