"""Commit, release, expire, return and extend: many orders in one transaction.

Three round trips, whatever the number: lock the reservations, lock their pools, write. Outcomes
are decided under the locks. Order of locks: reservations, then pools, each in sorted order.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.pipeline import FORCE_INDEX_SCANS, Statement, columns, run_together
from mesh.errors import DomainError, Reason
from stock_svc import ledger, statements
from stock_svc.ledger import Entry, Kind
from stock_svc.reservations import MOVES, Line, Reservation, SeatState, State, from_row
from stock_svc.tables import Key


class Move(StrEnum):
    COMMIT = "COMMIT"
    RELEASE = "RELEASE"
    EXPIRE = "EXPIRE"
    RETURN = "RETURN"
    EXTEND = "EXTEND"


@dataclass(frozen=True, slots=True)
class Order:
    """A move that a reservation is to make; `expire_time` is the new one for EXTEND."""

    move: Move
    event_id: UUID
    reservation_id: UUID
    expire_time: datetime | None = None

    @property
    def key(self) -> Key:
        return self.event_id, self.reservation_id


@dataclass(frozen=True, slots=True)
class Moved:
    """The reservation after an order, None for an unknown one, and whether the order moved it."""

    reservation: Reservation | None
    has_moved: bool

    def expect(self) -> Reservation:
        """The reservation of an order that is refused when the reservation is unknown."""
        if self.reservation is None:
            raise LookupError("an order for an unknown reservation was not refused")
        return self.reservation


Outcome = Moved | DomainError


@dataclass(frozen=True, slots=True)
class _Effect:
    """What a move does to a reservation, its places and its seats."""

    state: State
    held: int
    sold: int
    claim_from: str
    claim_to: str
    seat_state: SeatState


# EXTEND has none: it changes neither the state nor the ledger.
_EFFECTS = {
    Move.COMMIT: _Effect(State.COMMITTED, -1, 1, "HELD", "SOLD", SeatState.SOLD),
    Move.RELEASE: _Effect(State.RELEASED, -1, 0, "HELD", "FREED", SeatState.AVAILABLE),
    Move.EXPIRE: _Effect(State.EXPIRED, -1, 0, "HELD", "FREED", SeatState.AVAILABLE),
    Move.RETURN: _Effect(State.RETURNED, 0, -1, "SOLD", "FREED", SeatState.AVAILABLE),
}

# States in which an order is refused; in other states it moves the reservation or did so before.
_REFUSED_IN: dict[Move, set[State]] = {
    Move.COMMIT: {State.RELEASED, State.RETURNED},
    Move.RELEASE: {State.COMMITTED},
    Move.EXPIRE: set(),
    Move.RETURN: {State.ACTIVE, State.RELEASED, State.EXPIRED},
    Move.EXTEND: {State.COMMITTED, State.RELEASED, State.RETURNED},
}
_NEEDS_HOLD = {Move.COMMIT, Move.EXTEND}


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A line and the pool that it draws on."""

    line: Line
    pool: Key


async def move_all(
    connection: AsyncConnection,
    orders: Sequence[Order],
    now: datetime,
    *,
    also_lock: Collection[Key] = (),
) -> list[Outcome]:
    """Carries out orders one after the other; returns the outcome of each, in order.

    `also_lock` are further pools that the caller needs: all are locked in one sorted order.
    Outcomes may be RESERVATION_NOT_FOUND, HOLD_EXPIRED or RESERVATION_STATE_INVALID.
    """
    keys = columns(sorted({order.key for order in orders}), 2)
    _, locked, listed = await run_together(
        connection,
        [
            FORCE_INDEX_SCANS,
            Statement(statements.LOCK_RESERVATIONS, keys),
            Statement(statements.LINES, keys),
        ],
    )
    lines: dict[Key, list[_Drawn]] = {}
    for event_id, reservation_id, pool_id, *line in listed.rows:
        drawn = _Drawn(Line(*line), (event_id, pool_id))
        lines.setdefault((event_id, reservation_id), []).append(drawn)
    current = {
        (row[0], row[1]): replace(
            from_row(row), lines=tuple(drawn.line for drawn in lines[row[0], row[1]])
        )
        for row in locked.rows
    }
    outcomes: list[Outcome] = []
    moved = []
    for order in orders:
        outcome = _decide(order, current.get(order.key), now)
        outcomes.append(outcome)
        if isinstance(outcome, Moved) and outcome.has_moved and outcome.reservation is not None:
            current[order.key] = outcome.reservation
            moved.append(order)
    if moved:
        await _write(connection, moved, current, lines, now, also_lock)
    return outcomes


def _decide(order: Order, reservation: Reservation | None, now: datetime) -> Outcome:
    if reservation is None:
        if order.move is Move.RELEASE:
            return Moved(None, has_moved=False)
        return DomainError(Reason.RESERVATION_NOT_FOUND, "no such reservation")
    has_lapsed = reservation.state is State.EXPIRED or reservation.has_lapsed(now)
    if has_lapsed and order.move in _NEEDS_HOLD:
        return DomainError(Reason.HOLD_EXPIRED, "the hold has expired")
    if reservation.state in _REFUSED_IN[order.move]:
        return state_invalid(reservation)
    # A release of a lapsed hold does nothing: the expiry frees its places.
    is_late = has_lapsed and order.move is not Move.EXPIRE
    after = None if is_late else _after(order, reservation, now)
    return Moved(reservation, has_moved=False) if after is None else Moved(after, has_moved=True)


def _after(order: Order, reservation: Reservation, now: datetime) -> Reservation | None:
    """The reservation after its move; None when the order has nothing left to do."""
    if order.move is Move.EXTEND:
        if reservation.extended or order.expire_time is None:
            return None
        return replace(reservation, expire_time=order.expire_time, extended=True, update_time=now)
    # A hold that was extended or committed before its row was locked does not expire.
    if order.move is Move.EXPIRE and not reservation.has_lapsed(now):
        return None
    target = _EFFECTS[order.move].state
    if target not in MOVES[reservation.state]:
        return None
    return replace(reservation, state=target, update_time=now)


def state_invalid(reservation: Reservation) -> DomainError:
    return DomainError(
        Reason.RESERVATION_STATE_INVALID,
        f"the reservation is {reservation.state}",
        state=reservation.state,
    )


async def _write(
    connection: AsyncConnection,
    orders: Sequence[Order],
    current: Mapping[Key, Reservation],
    lines: Mapping[Key, Sequence[_Drawn]],
    now: datetime,
    also_lock: Collection[Key],
) -> None:
    """Writes the decided moves. The statements test their guards again."""
    quantities: Counter[tuple[Key, Move, UUID]] = Counter()
    freed: Counter[tuple[UUID, UUID, UUID]] = Counter()
    # The first and the last state: a seat may be sold and returned in one batch.
    claims: dict[tuple[UUID, UUID, UUID], tuple[str, str]] = {}
    seats: dict[Key, SeatState | None] = {}
    for order in orders:
        effect = _EFFECTS.get(order.move)
        if effect is None:
            continue
        for drawn in lines[order.key]:
            line = drawn.line
            quantities[drawn.pool, order.move, order.reservation_id] += line.quantity
            if effect.state is not State.COMMITTED:
                customer_id = current[order.key].customer_id
                freed[order.event_id, line.offer_id, customer_id] += line.quantity
            if line.seat_id is not None:
                claim = (*order.key, line.seat_id)
                source, _ = claims.get(claim, (effect.claim_from, ""))
                claims[claim] = (source, effect.claim_to)
                seats[order.event_id, line.seat_id] = effect.seat_state
    entries = [
        Entry(
            *pool,
            Kind(move),
            held=_EFFECTS[move].held * quantity,
            sold=_EFFECTS[move].sold * quantity,
            reservation_id=reservation_id,
        )
        for (pool, move, reservation_id), quantity in quantities.items()
    ]
    moved = sorted({order.key for order in orders})
    pools = {entry[:2] for entry in entries}
    counts = await ledger.post(
        connection,
        entries=entries,
        seats=seats,
        locked=await ledger.lock(connection, pools.union(also_lock)) if pools else None,
        also=[
            Statement(
                statements.MOVE_RESERVATIONS,
                (
                    now,
                    *columns(
                        (
                            (
                                *key,
                                current[key].state,
                                current[key].expire_time,
                                current[key].extended,
                            )
                            for key in moved
                        ),
                        5,
                    ),
                ),
            ),
            Statement(
                statements.SUBTRACT_FROM_TOTALS,
                columns(((*key, quantity) for key, quantity in freed.items()), 4),
            ),
            Statement(
                statements.MOVE_SEATS,
                columns(((*claim, *states) for claim, states in claims.items()), 5),
            ),
        ],
        now=now,
    )
    if counts != [len(moved), len(freed), len(claims)]:
        raise RuntimeError("a guard refused a move that was decided under its lock")
