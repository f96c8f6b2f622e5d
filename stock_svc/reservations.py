"""What becomes of reservations: each ends exactly once.

A hold that has lapsed is free at once, whether the sweeper has come by or not: who wants
its places expires it, in the same transaction (reserving.py).
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.batches import RacedError
from mesh.errors import DomainError, Reason
from stock_svc import reservation, transitions
from stock_svc.reservation import Line, Reservation, check_end
from stock_svc.reserve import reserve_all
from stock_svc.states import State
from stock_svc.tables import is_live, reservation_lines, reservations
from stock_svc.transitions import Move, Moved, Order


async def reserve(
    connection: AsyncConnection,
    *,
    event_id: UUID,
    reservation_id: UUID,
    request_key: str,
    customer_id: UUID,
    lines: Sequence[Line],
    expire_time: datetime,
    now: datetime,
) -> Reservation:
    """Holds all lines until `expire_time`, or nothing.

    The same request again, by its key or by its id, returns the first reservation.
    Raises VALIDATION_FAILED, EVENT_NOT_FOUND, OFFER_NOT_FOUND, SEAT_NOT_FOUND, SOLD_OUT,
    SEAT_UNAVAILABLE, PURCHASE_LIMIT_EXCEEDED or IDEMPOTENCY_KEY_REUSED.
    """
    wanted = reservation.new(
        event_id=event_id,
        reservation_id=reservation_id,
        request_key=request_key,
        customer_id=customer_id,
        lines=lines,
        expire_time=expire_time,
        now=now,
    )
    try:
        [outcome] = await reserve_all(connection, [wanted], now=now)
    except RacedError as raced:
        raise raced.refusal() from None
    if isinstance(outcome, DomainError):
        raise outcome
    return outcome


async def extend(
    connection: AsyncConnection,
    *,
    event_id: UUID,
    reservation_id: UUID,
    expire_time: datetime,
    now: datetime,
) -> Reservation:
    """Moves the end of an ACTIVE reservation, once; again, it returns the first new end.

    Raises VALIDATION_FAILED, RESERVATION_NOT_FOUND, HOLD_EXPIRED or RESERVATION_STATE_INVALID.
    """
    check_end(expire_time, now)
    order = Order(Move.EXTEND, event_id, reservation_id, expire_time)
    return reservation_of(await _move(connection, order, now))


async def commit(
    connection: AsyncConnection, *, event_id: UUID, reservation_id: UUID, now: datetime
) -> Reservation:
    """ACTIVE → COMMITTED: sells what is held. Again, it returns the same.

    Raises RESERVATION_NOT_FOUND, HOLD_EXPIRED (swept or not) or RESERVATION_STATE_INVALID.
    """
    order = Order(Move.COMMIT, event_id, reservation_id)
    return reservation_of(await _move(connection, order, now))


async def release(
    connection: AsyncConnection, *, event_id: UUID, reservation_id: UUID, now: datetime
) -> bool:
    """ACTIVE → RELEASED: frees what is held. False when there is nothing to free (any more).

    Raises RESERVATION_STATE_INVALID when it is sold.
    """
    order = Order(Move.RELEASE, event_id, reservation_id)
    return (await _move(connection, order, now)).has_moved


async def return_sold(
    connection: AsyncConnection, *, event_id: UUID, reservation_id: UUID, now: datetime
) -> Reservation:
    """COMMITTED → RETURNED: what was sold can be sold again. Again, it returns the same.

    Raises RESERVATION_NOT_FOUND or RESERVATION_STATE_INVALID.
    """
    order = Order(Move.RETURN, event_id, reservation_id)
    return reservation_of(await _move(connection, order, now))


def reservation_of(moved: Moved) -> Reservation:
    """The reservation of an order that is refused when there is none."""
    if moved.reservation is None:
        raise LookupError("an order for a reservation that nobody knows was not refused")
    return moved.reservation


async def _move(connection: AsyncConnection, order: Order, now: datetime) -> Moved:
    [outcome] = await transitions.move_all(connection, [order], now=now)
    if isinstance(outcome, DomainError):
        raise outcome
    return outcome


async def find(
    connection: AsyncConnection, *, event_id: UUID, reservation_id: UUID
) -> Reservation | None:
    """A reservation without its lines, if there is one."""
    return await _find(connection, _is(event_id, reservation_id))


async def get(connection: AsyncConnection, *, event_id: UUID, reservation_id: UUID) -> Reservation:
    """A reservation with its lines. Raises RESERVATION_NOT_FOUND."""
    found = await _find(connection, _is(event_id, reservation_id))
    if found is None:
        raise DomainError(Reason.RESERVATION_NOT_FOUND, "no such reservation")
    return await with_lines(connection, found)


async def first(connection: AsyncConnection, wanted: Reservation) -> Reservation | None:
    """The reservation that has the request's key, or its id."""
    return await _find(
        connection,
        reservations.c.event_id == wanted.event_id,
        reservations.c.request_key == wanted.request_key,
        is_live,
    ) or await _find(connection, _is(wanted.event_id, wanted.reservation_id))


async def _find(
    connection: AsyncConnection, *conditions: sa.ColumnElement[bool]
) -> Reservation | None:
    """A reservation without its lines."""
    row = (await connection.execute(sa.select(reservations).where(*conditions))).first()
    if row is None:
        return None
    return Reservation(
        event_id=row.event_id,
        reservation_id=row.reservation_id,
        customer_id=row.customer_id,
        request_key=row.request_key,
        fingerprint=row.fingerprint,
        state=State(row.state),
        expire_time=row.expire_time,
        extended=row.extended,
        create_time=row.create_time,
        update_time=row.update_time,
        replaces=row.replaces,
    )


async def with_lines(connection: AsyncConnection, found: Reservation) -> Reservation:
    lines = await connection.execute(
        sa.select(
            reservation_lines.c.offer_id, reservation_lines.c.quantity, reservation_lines.c.seat_id
        )
        .where(reservation_lines.c.event_id == found.event_id)
        .where(reservation_lines.c.reservation_id == found.reservation_id)
        .order_by(reservation_lines.c.line_number)
    )
    return replace(found, lines=tuple(Line(*line) for line in lines))


def _is(event_id: UUID, reservation_id: UUID) -> sa.ColumnElement[bool]:
    return sa.and_(
        reservations.c.event_id == event_id, reservations.c.reservation_id == reservation_id
    )


def refuse_expired(found: Reservation, now: datetime) -> None:
    if found.state is State.EXPIRED or found.has_lapsed(now):
        raise DomainError(Reason.HOLD_EXPIRED, "the hold has expired")
