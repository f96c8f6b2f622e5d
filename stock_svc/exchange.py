"""The exchange: one reservation for another, of the same event or of two, all or nothing.

Order of locks: both reservations, then the pools of both, each sorted by event and id.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, Reason
from stock_svc import expiry, reservations, transitions
from stock_svc.reservations import Line, Reservation, State
from stock_svc.reserve import reserve_all
from stock_svc.tables import Key, Uuid, any_of, events, offers, reservation_lines, rows
from stock_svc.tables import reservations as table
from stock_svc.transitions import Move, Moved, Order

# The move that ends the old reservation, by its state.
_END = {State.ACTIVE: Move.RELEASE, State.COMMITTED: Move.RETURN}


async def exchange(
    connection: AsyncConnection,
    *,
    event_id: UUID,
    reservation_id: UUID,
    to_event_id: UUID,
    to_reservation_id: UUID,
    request_key: str,
    lines: Sequence[Line],
    expire_time: datetime,
    now: datetime,
) -> Reservation:
    """Ends a reservation and makes another in its state, or puts an existing hold in its place.

    Repeating the call returns the new reservation. Raises RESERVATION_NOT_FOUND, HOLD_EXPIRED,
    RESERVATION_STATE_INVALID, or an outcome of reserve.reserve_all.
    """
    await _lock(connection, {(event_id, reservation_id), (to_event_id, to_reservation_id)})
    old = await reservations.get(connection, event_id=event_id, reservation_id=reservation_id)
    new = reservations.new(
        event_id=to_event_id,
        reservation_id=to_reservation_id,
        request_key=request_key,
        customer_id=old.customer_id,
        lines=lines,
        expire_time=expire_time,
        replaces=reservation_id,
        now=now,
    )
    existing = await reservations.find_existing(connection, new)
    if existing is not None:
        if sorted(map(str, existing.lines)) != sorted(map(str, new.lines)) or (
            existing.customer_id != new.customer_id
        ):
            raise DomainError(
                Reason.IDEMPOTENCY_KEY_REUSED, "this reservation was made for other lines"
            )
        if existing.replaces == reservation_id:
            return existing
    _refuse_unless_live(old, now)
    if existing is None:
        return await _replace(connection, old, new, now=now)
    _refuse_unless_live(existing, now)
    return await _swap(connection, old, existing, now=now)


async def _lock(connection: AsyncConnection, keys: set[Key]) -> None:
    sorted_keys = sorted(keys)
    key = rows(
        event_id=(Uuid, [event_id for event_id, _ in sorted_keys]),
        reservation_id=(Uuid, [reservation_id for _, reservation_id in sorted_keys]),
    )
    await connection.execute(
        sa.select(table.c.reservation_id)
        .where(sa.tuple_(table.c.event_id, table.c.reservation_id).in_(sa.select(key)))
        .order_by(table.c.event_id, table.c.reservation_id)
        .with_for_update(key_share=True)
    )


def _refuse_unless_live(live: Reservation, now: datetime) -> None:
    if live.state is State.EXPIRED or live.has_lapsed(now):
        raise DomainError(Reason.HOLD_EXPIRED, "the hold has expired")
    if live.state not in _END:
        raise transitions.state_invalid(live)


async def _swap(
    connection: AsyncConnection, old: Reservation, hold: Reservation, *, now: datetime
) -> Reservation:
    """Ends the old reservation; the hold gets its state."""
    if hold.state is not State.ACTIVE or hold.replaces is not None:
        raise transitions.state_invalid(hold)
    orders = [Order(_END[old.state], old.event_id, old.reservation_id)]
    if old.state is State.COMMITTED:
        orders.append(Order(Move.COMMIT, hold.event_id, hold.reservation_id))
    await _move(connection, orders, now=now)
    await connection.execute(
        sa.update(table)
        .where(table.c.event_id == hold.event_id, table.c.reservation_id == hold.reservation_id)
        .values(replaces=old.reservation_id, update_time=now)
    )
    return replace(hold, state=old.state, replaces=old.reservation_id, update_time=now)


async def _replace(
    connection: AsyncConnection, old: Reservation, new: Reservation, *, now: datetime
) -> Reservation:
    """Ends the old reservation and makes the new one, from its places and other free places."""
    pools = await _pools_of(connection, old, new)
    # Lapsed reservations are locked before the pools; reserve_all would lock them after.
    while (
        await expiry.clear(connection, event_ids=[new.event_id], also_lock=pools, now=now)
        == expiry.MOST_CLEARED
    ):
        pass
    end = Order(_END[old.state], old.event_id, old.reservation_id)
    await _move(connection, [end], also_lock=pools, now=now)
    # What the customer gives up is not kept for a waiting list if the same customer takes it again.
    new = replace(new, replaced_places=await _places_of(connection, old))
    [outcome] = await reserve_all(connection, [new], now)
    if isinstance(outcome, DomainError):
        raise outcome
    if old.state is State.ACTIVE:
        return outcome
    commit = Order(Move.COMMIT, outcome.event_id, outcome.reservation_id)
    await _move(connection, [commit], now=now)
    return replace(outcome, state=State.COMMITTED)


async def _move(
    connection: AsyncConnection,
    orders: Sequence[Order],
    *,
    also_lock: Collection[Key] = (),
    now: datetime,
) -> None:
    for outcome in await transitions.move_all(connection, orders, now, also_lock=also_lock):
        if not isinstance(outcome, Moved) or not outcome.has_moved:
            raise RuntimeError(f"a reservation was not moved under its lock: {outcome}")


async def _places_of(
    connection: AsyncConnection, reservation: Reservation
) -> tuple[tuple[Key, int], ...]:
    """The places of a reservation in each of its pools."""
    places = await connection.execute(
        sa.select(reservation_lines.c.pool_id, sa.func.sum(reservation_lines.c.quantity))
        .where(reservation_lines.c.event_id == reservation.event_id)
        .where(reservation_lines.c.reservation_id == reservation.reservation_id)
        .group_by(reservation_lines.c.pool_id)
    )
    return tuple(((reservation.event_id, pool_id), quantity) for pool_id, quantity in places)


async def _pools_of(connection: AsyncConnection, old: Reservation, new: Reservation) -> set[Key]:
    """The old reservation's pools, and those that reserve_all locks for the new one.

    An unknown offer has none; reserve_all refuses it.
    """
    drawn = await connection.scalars(
        sa.select(reservation_lines.c.pool_id)
        .where(reservation_lines.c.event_id == old.event_id)
        .where(reservation_lines.c.reservation_id == old.reservation_id)
    )
    requested = await connection.scalars(
        sa.select(offers.c.pool_id)
        .join(events, events.c.event_id == offers.c.event_id)
        .where(offers.c.event_id == new.event_id)
        .where(
            (offers.c.offer_id == any_of({line.offer_id for line in new.lines}))
            | events.c.per_customer_limit.is_not(None)
        )
    )
    return {(old.event_id, pool_id) for pool_id in drawn} | {
        (new.event_id, pool_id) for pool_id in requested
    }
