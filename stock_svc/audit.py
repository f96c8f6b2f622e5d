"""The audit: recomputes an event's counters and lists the differences; `Auditor` is its loop.

The movements, the reservations, the seat claims and the customers' totals each determine the
counters. `audit` runs several statements: its caller gives it a snapshot.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.observability import metrics
from stock_svc.reservations import State
from stock_svc.tables import (
    customer_totals,
    is_live,
    movements,
    offers,
    pools,
    reservation_lines,
    reservations,
    seat_claims,
    seats,
)

# Differences that one check lists at most.
_MOST_LISTED = 50

# The timeouts of the database role are for bookings; the audit of a stadium takes longer.
_LONGER_TIMEOUTS = sa.text(
    "SELECT set_config('statement_timeout', '30s', true),"
    " set_config('transaction_timeout', '60s', true)"
)


# Events of one turn of the loop, which reads all rows of each.
_EVENTS_PER_TURN = 20
_PAUSE_SECONDS = 15.0
_BEFORE_ALL_EVENTS = UUID(int=0)

_log = logging.getLogger(__name__)

_AUDITED = metrics.counter("stock_audits", "Events whose stock was audited.")
_DIFFERENCES = metrics.gauge(
    "stock_audit_differences", "Differences found by the last round of audits."
)


@dataclass(frozen=True, slots=True)
class PoolAudit:
    """A pool's counters, and the same computed from its movements and its reservations."""

    pool_id: UUID
    capacity: int
    held: int
    sold: int
    version: int
    capacity_by_movements: int
    held_by_movements: int
    sold_by_movements: int
    movements: int
    held_by_reservations: int
    sold_by_reservations: int


@dataclass(frozen=True, slots=True)
class Audit:
    """`differences` are sentences; without any, the stock is consistent."""

    event_id: UUID
    pools: tuple[PoolAudit, ...]
    reservations: dict[State, int]
    differences: tuple[str, ...]


class Auditor:
    """Audits all events in rounds, a few per turn."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._after = _BEFORE_ALL_EVENTS
        self._differences = 0

    async def turn(self) -> None:
        """Audits the next events, sets the metrics, then pauses."""
        async with self._database.reading() as connection:
            ids = await event_ids(connection, after=self._after, limit=_EVENTS_PER_TURN)
        for event_id in ids:
            self._differences += await self._audit(event_id)
            self._after = event_id
        is_round_over = len(ids) < _EVENTS_PER_TURN
        # Within a round the gauge only rises: a difference stays until a round is without it.
        if self._differences or is_round_over:
            _DIFFERENCES.set(self._differences)
        if is_round_over:
            self._after, self._differences = _BEFORE_ALL_EVENTS, 0
        await asyncio.sleep(_PAUSE_SECONDS)

    async def _audit(self, event_id: UUID) -> int:
        """The number of differences. An event whose stock was removed since has none."""
        try:
            async with self._database.snapshot() as connection:
                differences = (await audit(connection, event_id=event_id)).differences
        except DomainError as error:
            if error.reason is not Reason.EVENT_NOT_FOUND:
                raise
            return 0
        _AUDITED.inc()
        if differences:
            _log.error(
                "the stock of an event is inconsistent",
                extra={"event_id": str(event_id), "differences": len(differences)},
            )
        return len(differences)


async def audit(connection: AsyncConnection, *, event_id: UUID) -> Audit:
    """Recomputes the stock of an event. Raises EVENT_NOT_FOUND."""
    await connection.execute(_LONGER_TIMEOUTS)
    audited = await _pools(connection, event_id)
    if not audited:
        raise DomainError(Reason.EVENT_NOT_FOUND, "the event has no stock")
    differences = [text for pool in audited for text in _pool_differences(pool)]
    for check in (_by_reservation, _by_seat, _by_capacity, _sold_twice, _by_customer):
        differences += [text async for text in check(connection, event_id)]
    counted = await connection.execute(
        sa.select(reservations.c.state, sa.func.count())
        .where(reservations.c.event_id == event_id)
        .group_by(reservations.c.state)
    )
    return Audit(
        event_id=event_id,
        pools=audited,
        reservations={State(state): count for state, count in counted},
        differences=tuple(differences),
    )


async def event_ids(connection: AsyncConnection, *, after: UUID, limit: int) -> Sequence[UUID]:
    """The next `limit` events with stock after an id, in the order of their ids."""
    ids = await connection.scalars(
        sa.select(pools.c.event_id)
        .distinct()
        .where(pools.c.event_id > after)
        .order_by(pools.c.event_id)
        .limit(limit)
    )
    return ids.all()


async def _pools(connection: AsyncConnection, event_id: UUID) -> tuple[PoolAudit, ...]:
    moved = (
        sa.select(
            movements.c.pool_id,
            sa.func.sum(movements.c.capacity_delta).label("capacity"),
            sa.func.sum(movements.c.held_delta).label("held"),
            sa.func.sum(movements.c.sold_delta).label("sold"),
            sa.func.count().label("count"),
        )
        .where(movements.c.event_id == event_id)
        .group_by(movements.c.pool_id)
        .subquery()
    )
    claimed = _claimed_by_state(event_id, reservation_lines.c.pool_id)
    rows = await connection.execute(
        sa.select(
            pools.c.pool_id,
            pools.c.capacity,
            pools.c.held,
            pools.c.sold,
            pools.c.version,
            *(
                sa.func.coalesce(column, 0)
                for column in (
                    moved.c.capacity,
                    moved.c.held,
                    moved.c.sold,
                    moved.c.count,
                    claimed.c.held,
                    claimed.c.sold,
                )
            ),
        )
        .select_from(
            pools.outerjoin(moved, moved.c.pool_id == pools.c.pool_id).outerjoin(
                claimed, claimed.c.pool_id == pools.c.pool_id
            )
        )
        .where(pools.c.event_id == event_id)
        .order_by(pools.c.pool_id)
    )
    return tuple(PoolAudit(pool_id, *map(int, counts)) for pool_id, *counts in rows)


def _pool_differences(pool: PoolAudit) -> list[str]:
    compared = (
        ("capacity", pool.capacity, pool.capacity_by_movements, "movements"),
        ("held", pool.held, pool.held_by_movements, "movements"),
        ("sold", pool.sold, pool.sold_by_movements, "movements"),
        ("version", pool.version, pool.movements, "movements"),
        ("held", pool.held, pool.held_by_reservations, "reservations"),
        ("sold", pool.sold, pool.sold_by_reservations, "reservations"),
    )
    differences = [
        f"pool {pool.pool_id}: {name} is {counter}, its {source} give {count}"
        for name, counter, count, source in compared
        if counter != count
    ]
    if pool.held + pool.sold > pool.capacity:
        differences.append(
            f"pool {pool.pool_id}: oversold, {pool.held} held and {pool.sold} sold"
            f" of {pool.capacity}"
        )
    return differences


async def _by_reservation(connection: AsyncConnection, event_id: UUID) -> AsyncIterator[str]:
    """The sum of a reservation's movements is what its state requires."""
    claimed = _claimed_by_state(
        event_id, reservation_lines.c.reservation_id, reservation_lines.c.pool_id
    )
    moved = (
        sa.select(
            movements.c.reservation_id,
            movements.c.pool_id,
            sa.func.sum(movements.c.held_delta).label("held"),
            sa.func.sum(movements.c.sold_delta).label("sold"),
        )
        .where(movements.c.event_id == event_id, movements.c.reservation_id.is_not(None))
        .group_by(movements.c.reservation_id, movements.c.pool_id)
        .subquery()
    )
    rows = await connection.execute(
        sa.select(
            sa.func.coalesce(claimed.c.reservation_id, moved.c.reservation_id).label("id"),
            claimed.c.held,
            claimed.c.sold,
            moved.c.held.label("held_by_movements"),
            moved.c.sold.label("sold_by_movements"),
        )
        .select_from(
            claimed.outerjoin(
                moved,
                (moved.c.reservation_id == claimed.c.reservation_id)
                & (moved.c.pool_id == claimed.c.pool_id),
                full=True,
            )
        )
        .where(
            claimed.c.held.is_distinct_from(moved.c.held)
            | claimed.c.sold.is_distinct_from(moved.c.sold)
        )
        .limit(_MOST_LISTED)
    )
    for row in rows:
        yield (
            f"reservation {row.id}: its state gives {row.held or 0} held and {row.sold or 0} sold,"
            f" its movements {row.held_by_movements or 0} and {row.sold_by_movements or 0}"
        )


async def _by_seat(connection: AsyncConnection, event_id: UUID) -> AsyncIterator[str]:
    """Each line with a seat has a claim, in the state that the reservation's state requires."""
    lines = (
        sa.select(
            reservation_lines.c.reservation_id,
            reservation_lines.c.seat_id,
            sa.case(
                (reservations.c.state == State.ACTIVE, "HELD"),
                (reservations.c.state == State.COMMITTED, "SOLD"),
                else_="FREED",
            ).label("state"),
        )
        .select_from(_lines_of_reservations())
        .where(reservation_lines.c.event_id == event_id, reservation_lines.c.seat_id.is_not(None))
        .subquery()
    )
    claims = sa.select(seat_claims).where(seat_claims.c.event_id == event_id).subquery()
    rows = await connection.execute(
        sa.select(
            sa.func.coalesce(lines.c.seat_id, claims.c.seat_id).label("seat_id"),
            sa.func.coalesce(lines.c.reservation_id, claims.c.reservation_id).label("id"),
            claims.c.state.label("claim"),
            lines.c.state.label("expected"),
        )
        .select_from(
            lines.outerjoin(
                claims,
                (claims.c.reservation_id == lines.c.reservation_id)
                & (claims.c.seat_id == lines.c.seat_id),
                full=True,
            )
        )
        .where(claims.c.state.is_distinct_from(lines.c.state))
        .limit(_MOST_LISTED)
    )
    for row in rows:
        yield (
            f"seat {row.seat_id}: its claim by reservation {row.id} is {row.claim or 'missing'}"
            f" and should be {row.expected or 'missing'}"
        )


async def _by_capacity(connection: AsyncConnection, event_id: UUID) -> AsyncIterator[str]:
    """The capacity of a seated pool is the number of its seats that are not blocked."""
    rows = await connection.execute(
        sa.select(
            pools.c.pool_id,
            pools.c.capacity,
            sa.func.count(seats.c.seat_id).filter(~seats.c.blocked).label("seats"),
        )
        .select_from(
            pools.join(
                offers,
                (offers.c.event_id == pools.c.event_id)
                & (offers.c.pool_id == pools.c.pool_id)
                & offers.c.seated,
            ).outerjoin(
                seats,
                (seats.c.event_id == offers.c.event_id) & (seats.c.offer_id == offers.c.offer_id),
            )
        )
        .where(pools.c.event_id == event_id)
        .group_by(pools.c.pool_id, pools.c.capacity)
    )
    for row in rows:
        if row.capacity != row.seats:
            yield f"pool {row.pool_id}: capacity is {row.capacity}, its seats give {row.seats}"


async def _sold_twice(connection: AsyncConnection, event_id: UUID) -> AsyncIterator[str]:
    rows = await connection.execute(
        sa.select(reservation_lines.c.seat_id, sa.func.count().label("claims"))
        .select_from(_lines_of_reservations())
        .where(reservation_lines.c.event_id == event_id, is_live)
        .where(reservation_lines.c.seat_id.is_not(None))
        .group_by(reservation_lines.c.seat_id)
        .having(sa.func.count() > 1)
        .limit(_MOST_LISTED)
    )
    for row in rows:
        yield f"seat {row.seat_id}: claimed by {row.claims} live reservations"


async def _by_customer(connection: AsyncConnection, event_id: UUID) -> AsyncIterator[str]:
    """A customer's total of an offer is the sum over the live reservations."""
    owned = (
        sa.select(
            reservation_lines.c.offer_id,
            reservations.c.customer_id,
            sa.func.sum(reservation_lines.c.quantity).label("quantity"),
        )
        .select_from(_lines_of_reservations())
        .where(reservation_lines.c.event_id == event_id, is_live)
        .group_by(reservation_lines.c.offer_id, reservations.c.customer_id)
        .subquery()
    )
    totals = sa.select(customer_totals).where(customer_totals.c.event_id == event_id).subquery()
    rows = await connection.execute(
        sa.select(
            sa.func.coalesce(owned.c.offer_id, totals.c.offer_id).label("offer_id"),
            sa.func.coalesce(owned.c.customer_id, totals.c.customer_id).label("customer_id"),
            sa.func.coalesce(totals.c.quantity, 0).label("total"),
            sa.func.coalesce(owned.c.quantity, 0).label("owned"),
        )
        .select_from(
            owned.outerjoin(
                totals,
                (totals.c.offer_id == owned.c.offer_id)
                & (totals.c.customer_id == owned.c.customer_id),
                full=True,
            )
        )
        .where(sa.func.coalesce(totals.c.quantity, 0) != sa.func.coalesce(owned.c.quantity, 0))
        .limit(_MOST_LISTED)
    )
    for row in rows:
        yield (
            f"customer {row.customer_id}: the total of offer {row.offer_id} is {row.total},"
            f" the reservations give {row.owned}"
        )


def _claimed_by_state(event_id: UUID, *by: sa.Column[UUID]) -> sa.Subquery:
    """Places held and sold by the states of reservations, grouped by columns."""
    quantity = reservation_lines.c.quantity
    return (
        sa.select(
            *by,
            _sum_where(quantity, reservations.c.state == State.ACTIVE).label("held"),
            _sum_where(quantity, reservations.c.state == State.COMMITTED).label("sold"),
        )
        .select_from(_lines_of_reservations())
        .where(reservation_lines.c.event_id == event_id)
        .group_by(*by)
        .subquery()
    )


def _sum_where(column: sa.Column[int], condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(column).filter(condition), 0)


def _lines_of_reservations() -> sa.Join:
    return reservation_lines.join(
        reservations,
        (reservations.c.event_id == reservation_lines.c.event_id)
        & (reservations.c.reservation_id == reservation_lines.c.reservation_id),
    )
