"""What reservations hold: sells it and gives it back, for any number of them at once.

How claims come to be is in reserving.py; in which state a reservation is, is
reservations.py's business.

Order of locks: reservations, then pools sorted by event and id. Totals and seat claims need
no order, because whoever changes one holds the lock of its pool.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from stock_svc import ledger
from stock_svc.demand import Key
from stock_svc.ledger import Entry, Kind
from stock_svc.states import SeatState
from stock_svc.tables import (
    Uuid,
    customer_totals,
    reservation_lines,
    reservations,
    rows,
    seat_claims,
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A line of a reservation, as it holds its claims."""

    event_id: UUID
    reservation_id: UUID
    customer_id: UUID
    offer_id: UUID
    pool_id: UUID
    seat_id: UUID | None
    quantity: int

    @property
    def pool(self) -> Key:
        return self.event_id, self.pool_id


async def sell(connection: AsyncConnection, *, claimed: Sequence[Claimed], now: datetime) -> None:
    """Makes what is held sold."""
    if not claimed:
        return
    await ledger.post(
        connection,
        entries=[
            Entry(*pool, Kind.COMMIT, reservation_id, held=-quantity, sold=quantity)
            for (reservation_id, pool), quantity in _by_pool(claimed).items()
        ],
        seats=_seats_of(claimed, SeatState.SOLD),
        now=now,
    )
    await _move_seats(connection, claimed, source="HELD", target="SOLD")


async def free(
    connection: AsyncConnection, *, claimed: Sequence[Claimed], kind: Kind, now: datetime
) -> None:
    """Frees what is held, because of `kind` RELEASE or EXPIRE, or what is sold: RETURN."""
    if not claimed:
        return
    is_sold = kind is Kind.RETURN
    await ledger.post(
        connection,
        entries=[
            Entry(
                *pool,
                kind,
                reservation_id,
                held=0 if is_sold else -quantity,
                sold=-quantity if is_sold else 0,
            )
            for (reservation_id, pool), quantity in _by_pool(claimed).items()
        ],
        seats=_seats_of(claimed, SeatState.AVAILABLE),
        now=now,
    )
    await _subtract_from_totals(connection, claimed)
    await _move_seats(connection, claimed, source="SOLD" if is_sold else "HELD", target="FREED")


async def of_reservations(connection: AsyncConnection, wanted: Collection[Key]) -> list[Claimed]:
    """What reservations, each by its event and id, hold or held, in lines."""
    if not wanted:
        return []
    key = _keys(wanted)
    found = await connection.execute(
        sa.select(
            reservation_lines.c.event_id,
            reservation_lines.c.reservation_id,
            reservations.c.customer_id,
            reservation_lines.c.offer_id,
            reservation_lines.c.pool_id,
            reservation_lines.c.seat_id,
            reservation_lines.c.quantity,
        )
        .select_from(key)
        .join(
            reservation_lines,
            (reservation_lines.c.event_id == key.c.event_id)
            & (reservation_lines.c.reservation_id == key.c.reservation_id),
        )
        .join(
            reservations,
            (reservations.c.event_id == key.c.event_id)
            & (reservations.c.reservation_id == key.c.reservation_id),
        )
    )
    return [Claimed(*row) for row in found]


async def _subtract_from_totals(connection: AsyncConnection, claimed: Sequence[Claimed]) -> None:
    freed = Counter[tuple[UUID, UUID, UUID]]()
    for line in claimed:
        freed[line.event_id, line.offer_id, line.customer_id] += line.quantity
    given = rows(
        event_id=(Uuid, [key[0] for key in freed]),
        offer_id=(Uuid, [key[1] for key in freed]),
        customer_id=(Uuid, [key[2] for key in freed]),
        quantity=(sa.Integer(), list(freed.values())),
    )
    changed = await connection.execute(
        sa.update(customer_totals)
        .where(
            customer_totals.c.event_id == given.c.event_id,
            customer_totals.c.offer_id == given.c.offer_id,
            customer_totals.c.customer_id == given.c.customer_id,
        )
        .values(quantity=customer_totals.c.quantity - given.c.quantity)
    )
    _expect(changed.rowcount, len(freed), "customer totals")


async def _move_seats(
    connection: AsyncConnection, claimed: Sequence[Claimed], *, source: str, target: str
) -> None:
    with_seats = [line for line in claimed if line.seat_id is not None]
    if not with_seats:
        return
    key = _keys({(line.event_id, line.reservation_id) for line in with_seats})
    changed = await connection.execute(
        sa.update(seat_claims)
        .where(seat_claims.c.event_id == key.c.event_id)
        .where(seat_claims.c.reservation_id == key.c.reservation_id)
        .where(seat_claims.c.state == source)
        .values(state=target)
    )
    _expect(changed.rowcount, len(with_seats), "seat claims")


def _keys(wanted: Collection[Key]) -> sa.TableValuedAlias:
    listed = sorted(wanted)
    return rows(
        event_id=(Uuid, [key[0] for key in listed]),
        reservation_id=(Uuid, [key[1] for key in listed]),
    )


def _expect(changed: int, expected: int, what: str) -> None:
    """A bug has left the claims and the lines of a reservation apart: undo the transaction."""
    if changed != expected:
        raise RuntimeError(f"{changed} instead of {expected} {what} changed")


def _seats_of(claimed: Sequence[Claimed], state: SeatState) -> dict[Key, SeatState | None]:
    return {(line.event_id, line.seat_id): state for line in claimed if line.seat_id is not None}


def _by_pool(claimed: Sequence[Claimed]) -> Counter[tuple[UUID, Key]]:
    """Quantities by reservation and pool."""
    quantities = Counter[tuple[UUID, Key]]()
    for line in claimed:
        quantities[line.reservation_id, line.pool] += line.quantity
    return quantities
