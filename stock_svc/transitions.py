"""What becomes of reservations: commit, release, return and extend, many in one transaction.

Three round trips, however many: lock the reservations, lock their pools, write. Each order
has its own outcome, decided under the lock; a reservation ends exactly once. Order of locks:
reservations, then pools, each sorted by event and id.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db import outbox
from mesh.db.outbox import NewEvent
from mesh.db.pipeline import FORCE_INDEX_SCANS, Statement, columns, run_together
from mesh.errors import DomainError, Reason
from stock_svc import statements
from stock_svc.demand import Key
from stock_svc.outbox import PoolNow, SeatNow, messages
from stock_svc.reservation import Line, Reservation
from stock_svc.states import MOVES, SeatState, State


class Move(StrEnum):
    COMMIT = "COMMIT"
    RELEASE = "RELEASE"
    RETURN = "RETURN"
    EXTEND = "EXTEND"


@dataclass(frozen=True, slots=True)
class Order:
    """What to do with a reservation; `expire_time` is its new end for EXTEND."""

    move: Move
    event_id: UUID
    reservation_id: UUID
    expire_time: datetime | None = None

    @property
    def key(self) -> Key:
        return self.event_id, self.reservation_id


@dataclass(frozen=True, slots=True)
class Moved:
    """The reservation after the order, None for one that nobody knows, and whether it moved."""

    reservation: Reservation | None
    has_moved: bool


Outcome = Moved | DomainError


@dataclass(frozen=True, slots=True)
class _Line:
    """A line with the pool that it draws on."""

    line: Line
    pool: Key


@dataclass(frozen=True, slots=True)
class _Effect:
    """What a move does to places and seats: a move of EXTEND does nothing."""

    state: State
    held: int
    sold: int
    seat_from: str
    seat_to: str
    seat_state: SeatState


_EFFECTS = {
    Move.COMMIT: _Effect(State.COMMITTED, -1, 1, "HELD", "SOLD", SeatState.SOLD),
    Move.RELEASE: _Effect(State.RELEASED, -1, 0, "HELD", "FREED", SeatState.AVAILABLE),
    Move.RETURN: _Effect(State.RETURNED, 0, -1, "SOLD", "FREED", SeatState.AVAILABLE),
}


async def move_all(
    connection: AsyncConnection, orders: Sequence[Order], *, now: datetime
) -> list[Outcome]:
    """Carries out orders, one after the other; the outcome of each, in order.

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
    lines: dict[Key, list[_Line]] = {}
    for event_id, reservation_id, pool_id, *line in listed.rows:
        drawn = _Line(Line(*line), (event_id, pool_id))
        lines.setdefault((event_id, reservation_id), []).append(drawn)
    current = {
        (row[0], row[1]): replace(
            statements.reservation(row), lines=tuple(one.line for one in lines[row[0], row[1]])
        )
        for row in locked.rows
    }
    outcomes: list[Outcome] = []
    done = []
    for order in orders:
        outcome = _decide(order, current.get(order.key), now)
        outcomes.append(outcome)
        if isinstance(outcome, Moved) and outcome.has_moved and outcome.reservation is not None:
            current[order.key] = outcome.reservation
            done.append(order)
    if done:
        await _write(connection, done, current, lines, now)
    return outcomes


# In which states an order is refused as such; in the others it is done, or was done before.
_REFUSED_IN = {
    Move.COMMIT: {State.RELEASED, State.RETURNED},
    Move.RELEASE: {State.COMMITTED},
    Move.RETURN: {State.ACTIVE, State.RELEASED, State.EXPIRED},
    Move.EXTEND: {State.COMMITTED, State.RELEASED, State.RETURNED},
}
_NEEDS_HOLD = {Move.COMMIT, Move.EXTEND}


def _decide(order: Order, found: Reservation | None, now: datetime) -> Outcome:
    if found is None:
        if order.move is Move.RELEASE:
            return Moved(None, has_moved=False)
        return DomainError(Reason.RESERVATION_NOT_FOUND, "no such reservation")
    has_lapsed = found.state is State.EXPIRED or found.has_lapsed(now)
    if has_lapsed and order.move in _NEEDS_HOLD:
        return DomainError(Reason.HOLD_EXPIRED, "the hold has expired")
    if found.state in _REFUSED_IN[order.move]:
        return state_invalid(found)
    after = None if has_lapsed else _after(order, found, now)
    return Moved(found, has_moved=False) if after is None else Moved(after, has_moved=True)


def _after(order: Order, found: Reservation, now: datetime) -> Reservation | None:
    """The reservation after its move; None when it made it, or another, before."""
    if order.move is Move.EXTEND:
        if found.extended or order.expire_time is None:
            return None
        return replace(found, expire_time=order.expire_time, extended=True, update_time=now)
    target = _EFFECTS[order.move].state
    if target not in MOVES[found.state]:
        return None
    return replace(found, state=target, update_time=now)


def state_invalid(found: Reservation) -> DomainError:
    return DomainError(
        Reason.RESERVATION_STATE_INVALID,
        f"the reservation is {found.state}",
        state=found.state,
    )


async def _write(
    connection: AsyncConnection,
    done: Sequence[Order],
    current: dict[Key, Reservation],
    lines: dict[Key, list[_Line]],
    now: datetime,
) -> None:
    """Writes what was decided. The statements test everything again, in themselves."""
    moved = sorted({order.key for order in done})
    movements: Counter[tuple[Key, str, UUID]] = Counter()
    counters: dict[Key, list[int]] = {}
    freed: Counter[tuple[UUID, UUID, UUID]] = Counter()
    seat_moves, seats_now = [], []
    for order in done:
        effect = _EFFECTS.get(order.move)
        if effect is None:
            continue
        for one in lines[order.key]:
            quantity, seat_id = one.line.quantity, one.line.seat_id
            movements[one.pool, order.move, order.reservation_id] += quantity
            counter = counters.setdefault(one.pool, [0, 0, 0])
            counter[0] += effect.held * quantity
            counter[1] += effect.sold * quantity
            if effect.state is not State.COMMITTED:
                customer_id = current[order.key].customer_id
                freed[order.event_id, one.line.offer_id, customer_id] += quantity
            if seat_id is not None:
                seat_moves.append((*order.key, seat_id, effect.seat_from, effect.seat_to))
                seats_now.append(SeatNow(order.event_id, seat_id, effect.seat_state))
    for pool, _, _ in movements:
        counters[pool][2] += 1
    entries = [
        (*pool, move, 0, _EFFECTS[Move(move)].held * quantity, _EFFECTS[Move(move)].sold * quantity,
         reservation_id)
        for (pool, move, reservation_id), quantity in movements.items()
    ]  # fmt: skip
    changes = await _changes(connection, counters, seats_now)
    results = await run_together(
        connection,
        [
            Statement(
                statements.MOVE_RESERVATIONS,
                (
                    now,
                    *columns(moved, 2),
                    [current[key].state.value for key in moved],
                    [current[key].expire_time for key in moved],
                    [current[key].extended for key in moved],
                ),
            ),
            Statement(statements.INSERT_MOVEMENTS, (now, *columns(entries, 7))),
            Statement(
                statements.SUBTRACT_FROM_TOTALS,
                columns(((*key, quantity) for key, quantity in freed.items()), 4),
            ),
            Statement(
                statements.CHANGE_POOLS,
                columns(((*key, 0, *counter) for key, counter in counters.items()), 6),
            ),
            outbox.insertion(connection, changes, now=now),
            # One move of a seat after the other: in one batch it may be sold and given back.
            *(
                Statement(statements.MOVE_SEATS, (target, source, *columns(part, 3)))
                for source, target, part in _by_move(seat_moves)
            ),
        ],
    )
    expected = [len(moved), len(entries), len(freed), len(counters)]
    if [result.count for result in results[:4]] != expected or sum(
        result.count for result in results[5:]
    ) != len(seat_moves):
        raise RuntimeError("a guard refused what was decided under its lock")


def _by_move(
    seat_moves: Sequence[tuple[UUID, UUID, UUID, str, str]],
) -> list[tuple[str, str, list[tuple[UUID, UUID, UUID]]]]:
    """Seat claims by their move, in the order in which a claim can make them."""
    found = []
    for source, target in (("HELD", "SOLD"), ("HELD", "FREED"), ("SOLD", "FREED")):
        part = [move[:3] for move in seat_moves if move[3:] == (source, target)]
        if part:
            found.append((source, target, part))
    return found


async def _changes(
    connection: AsyncConnection, counters: dict[Key, list[int]], seats: Sequence[SeatNow]
) -> list[NewEvent]:
    """Locks the pools; returns what other services are told, since the counters are known then."""
    if not counters:
        return []
    found, versions = await run_together(
        connection,
        [
            Statement(statements.LOCK_POOLS, columns(sorted(counters), 2)),
            Statement(statements.VERSIONS, (sorted({event_id for event_id, _ in counters}),)),
        ],
    )
    pools = []
    for row in found.rows:
        event_id, pool_id, capacity, held, sold, version = row
        held_delta, sold_delta, count = counters[event_id, pool_id]
        pools.append(
            PoolNow(event_id, pool_id, capacity, held + held_delta, sold + sold_delta,
                    version + count)
        )  # fmt: skip
    version_of = {row[0]: row[1] for row in versions.rows}
    for (event_id, _), counter in counters.items():
        version_of[event_id] += counter[2]
    # Of a seat that was sold and given back in one batch, the last state.
    last = {(seat.event_id, seat.seat_id): seat for seat in seats}
    return messages(pools, list(last.values()), version_of)
