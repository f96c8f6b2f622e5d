"""Reservations: claims on places that end exactly once.

A hold that has lapsed is free at once, whether the sweeper has come by or not: who
finds places missing expires what is in the way, in the same transaction, and tries again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, FieldViolation, Reason, invalid
from stock_svc import claims, demand, expiry
from stock_svc.claims import Short
from stock_svc.demand import Demand, Line
from stock_svc.ledger import Kind
from stock_svc.states import MOVES, State
from stock_svc.tables import is_active, is_live, reservation_lines, reservations

MAX_HOLD = timedelta(days=7)
"""No hold lasts longer from now, whatever the caller asks for."""

# How often the first holder of a request key may end between two statements of ours.
_INSERT_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Reservation:
    event_id: UUID
    reservation_id: UUID
    customer_id: UUID
    request_key: str
    fingerprint: bytes
    state: State
    expire_time: datetime
    extended: bool
    create_time: datetime
    update_time: datetime
    lines: tuple[Line, ...] = ()

    def has_lapsed(self, now: datetime) -> bool:
        return self.state is State.ACTIVE and self.expire_time <= now


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
    _check_end(expire_time, now)
    demanded = await demand.of_lines(connection, event_id=event_id, lines=lines)
    wanted = Reservation(
        event_id=event_id,
        reservation_id=reservation_id,
        customer_id=customer_id,
        request_key=request_key,
        fingerprint=_fingerprint(request_key, customer_id, lines),
        state=State.ACTIVE,
        expire_time=expire_time,
        extended=False,
        create_time=now,
        update_time=now,
        lines=tuple(lines),
    )
    await _refuse_if_sold_out(connection, wanted, demanded)
    # First of all: a duplicate waits here for the first, before it holds any other lock.
    cleared = False
    while (first := await _insert(connection, wanted)) is not None:
        if cleared or not first.has_lapsed(now):
            return await _same_request(connection, first, wanted)
        await _clear_the_way(connection, wanted, demanded)
        cleared = True
    await _insert_lines(connection, wanted, demanded)
    await _take(connection, wanted, demanded, cleared=cleared)
    return wanted


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
    _check_end(expire_time, now)
    extended = await connection.execute(
        sa.update(reservations)
        .where(_is(event_id, reservation_id), is_active)
        .where(reservations.c.expire_time > now, ~reservations.c.extended)
        .values(expire_time=expire_time, extended=True, update_time=now)
    )
    found = await get(connection, event_id=event_id, reservation_id=reservation_id)
    if extended.rowcount == 1:
        return found
    _refuse_expired(found, now)
    if found.state is State.ACTIVE:
        return found
    raise _state_invalid(found)


async def commit(
    connection: AsyncConnection, *, event_id: UUID, reservation_id: UUID, now: datetime
) -> Reservation:
    """ACTIVE → COMMITTED: sells what is held. Again, it returns the same.

    Raises RESERVATION_NOT_FOUND, HOLD_EXPIRED (swept or not) or RESERVATION_STATE_INVALID.
    """
    moved = await _end_hold(connection, event_id, reservation_id, to=State.COMMITTED, now=now)
    if moved:
        claimed = await claims.of_reservations(
            connection, event_id=event_id, reservation_ids=[reservation_id]
        )
        await claims.sell(connection, event_id=event_id, claimed=claimed, now=now)
    found = await get(connection, event_id=event_id, reservation_id=reservation_id)
    _refuse_expired(found, now)
    if found.state is not State.COMMITTED:
        raise _state_invalid(found)
    return found


async def release(
    connection: AsyncConnection, *, event_id: UUID, reservation_id: UUID, now: datetime
) -> bool:
    """ACTIVE → RELEASED: frees what is held. False when there is nothing to free (any more).

    Raises RESERVATION_STATE_INVALID when it is sold.
    """
    moved = await _end_hold(connection, event_id, reservation_id, to=State.RELEASED, now=now)
    if moved:
        claimed = await claims.of_reservations(
            connection, event_id=event_id, reservation_ids=[reservation_id]
        )
        await claims.give_back(
            connection, event_id=event_id, claimed=claimed, kind=Kind.RELEASE, now=now
        )
        return True
    ended = await _find(connection, _is(event_id, reservation_id))
    if ended is not None and ended.state is State.COMMITTED:
        raise _state_invalid(ended)
    return False


async def get(connection: AsyncConnection, *, event_id: UUID, reservation_id: UUID) -> Reservation:
    """A reservation with its lines. Raises RESERVATION_NOT_FOUND."""
    found = await _find(connection, _is(event_id, reservation_id))
    if found is None:
        raise DomainError(Reason.RESERVATION_NOT_FOUND, "no such reservation")
    return await _with_lines(connection, found)


async def _refuse_if_sold_out(
    connection: AsyncConnection, wanted: Reservation, demanded: Demand
) -> None:
    """Raises SOLD_OUT without a write or a lock, which the many who come too late would pay for."""
    if demanded.seems_short:
        sold_out = await claims.sold_out(
            connection, event_id=wanted.event_id, demand=demanded, now=wanted.create_time
        )
        if sold_out is not None and await _first(connection, wanted) is None:
            raise sold_out


async def _insert(connection: AsyncConnection, wanted: Reservation) -> Reservation | None:
    """Inserts the reservation, or returns the one that has its key or its id."""
    for _ in range(_INSERT_ATTEMPTS):
        inserted = await connection.execute(
            postgresql.insert(reservations)
            .values(
                event_id=wanted.event_id,
                reservation_id=wanted.reservation_id,
                customer_id=wanted.customer_id,
                request_key=wanted.request_key,
                fingerprint=wanted.fingerprint,
                state=wanted.state,
                expire_time=wanted.expire_time,
                extended=wanted.extended,
                create_time=wanted.create_time,
                update_time=wanted.update_time,
            )
            .on_conflict_do_nothing()
        )
        if inserted.rowcount == 1:
            return None
        if (first := await _first(connection, wanted)) is not None:
            return first
    raise DomainError(
        Reason.OVERLOADED, "the request's reservation keeps changing", retry_after_seconds=1
    )


async def _first(connection: AsyncConnection, wanted: Reservation) -> Reservation | None:
    """The reservation that has the request's key, or its id."""
    return await _find(
        connection,
        reservations.c.event_id == wanted.event_id,
        reservations.c.request_key == wanted.request_key,
        is_live,
    ) or await _find(connection, _is(wanted.event_id, wanted.reservation_id))


async def _same_request(
    connection: AsyncConnection, first: Reservation, wanted: Reservation
) -> Reservation:
    if first.fingerprint != wanted.fingerprint:
        raise DomainError(
            Reason.IDEMPOTENCY_KEY_REUSED, "this request key was used for other lines"
        )
    return await _with_lines(connection, first)


async def _take(
    connection: AsyncConnection, wanted: Reservation, demanded: Demand, *, cleared: bool
) -> None:
    """Claims the places; once more after clearing the way, if that was not done before."""

    async def take() -> None:
        await claims.take(
            connection,
            event_id=wanted.event_id,
            reservation_id=wanted.reservation_id,
            customer_id=wanted.customer_id,
            demand=demanded,
            now=wanted.create_time,
        )

    if not cleared:
        try:
            # Undoing it gives up its locks, so that clearing can lock in the right order.
            async with connection.begin_nested():
                return await take()
        except Short:
            await _clear_the_way(connection, wanted, demanded)
    try:
        await take()
    except Short as short:
        raise await claims.refusal(
            connection,
            event_id=wanted.event_id,
            customer_id=wanted.customer_id,
            demand=demanded,
            short=short,
        ) from None


async def _clear_the_way(
    connection: AsyncConnection, wanted: Reservation, demanded: Demand
) -> None:
    await expiry.clear_the_way(
        connection,
        event_id=wanted.event_id,
        request_key=wanted.request_key,
        customer_id=wanted.customer_id,
        demand=demanded,
        now=wanted.create_time,
    )


async def _insert_lines(connection: AsyncConnection, wanted: Reservation, demanded: Demand) -> None:
    await connection.execute(
        sa.insert(reservation_lines),
        [
            {
                "event_id": wanted.event_id,
                "reservation_id": wanted.reservation_id,
                "line_number": number,
                "offer_id": line.offer_id,
                "pool_id": demanded.pool_of(line),
                "seat_id": line.seat_id,
                "quantity": line.quantity,
            }
            for number, line in enumerate(wanted.lines)
        ],
    )


async def _end_hold(
    connection: AsyncConnection, event_id: UUID, reservation_id: UUID, *, to: State, now: datetime
) -> bool:
    """Tests and makes a move in one statement; False when it cannot be made (any more)."""
    sources = [state for state, targets in MOVES.items() if to in targets]
    moved = await connection.execute(
        sa.update(reservations)
        .where(_is(event_id, reservation_id), reservations.c.state.in_(sources))
        .where(reservations.c.expire_time > now)
        .values(state=to, update_time=now)
    )
    return moved.rowcount == 1


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
    )


async def _with_lines(connection: AsyncConnection, found: Reservation) -> Reservation:
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


def _check_end(expire_time: datetime, now: datetime) -> None:
    if not now < expire_time <= now + MAX_HOLD:
        raise invalid(FieldViolation("expire_time", f"must be in the next {MAX_HOLD.days} days"))


def _fingerprint(request_key: str, customer_id: UUID, lines: Sequence[Line]) -> bytes:
    """The same for the same lines in any order."""
    asked = sorted(f"{line.offer_id} {line.seat_id} {line.quantity}" for line in lines)
    return hashlib.sha256("\n".join([request_key, str(customer_id), *asked]).encode()).digest()


def _refuse_expired(found: Reservation, now: datetime) -> None:
    if found.state is State.EXPIRED or found.has_lapsed(now):
        raise DomainError(Reason.HOLD_EXPIRED, "the hold has expired")


def _state_invalid(found: Reservation) -> DomainError:
    return DomainError(
        Reason.RESERVATION_STATE_INVALID,
        f"the reservation is {found.state}",
        state=found.state,
    )
