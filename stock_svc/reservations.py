"""A reservation: its states, the moves between them as data, its rules, and reads of single ones.

Writes are in reserve.py, transitions.py and exchange.py.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, FieldViolation, Reason, invalid
from stock_svc.tables import Key, is_live, reservation_lines, reservations

MAX_HOLD = timedelta(days=7)
"""The latest `expire_time` that a request may ask for, from now."""


class SeatState(StrEnum):
    AVAILABLE = "AVAILABLE"
    HELD = "HELD"
    SOLD = "SOLD"
    BLOCKED = "BLOCKED"


class State(StrEnum):
    ACTIVE = "ACTIVE"
    COMMITTED = "COMMITTED"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"
    RETURNED = "RETURNED"


MOVES: dict[State, frozenset[State]] = {
    State.ACTIVE: frozenset({State.COMMITTED, State.RELEASED, State.EXPIRED}),
    State.COMMITTED: frozenset({State.RETURNED}),
    State.RELEASED: frozenset(),
    State.EXPIRED: frozenset(),
    State.RETURNED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Line:
    """Places of one offer, or one seat with quantity 1."""

    offer_id: UUID
    quantity: int
    seat_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """The fields down to `replaces` are the columns of the table, in their order.

    `replaces` is the reservation that an exchange ended for this one, `replaced_places` the places
    of each pool that it gave up. `for_waiting_list` reserves places that are kept for the waiting
    list. Both are of a request, and not stored.
    """

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
    replaces: UUID | None = None
    lines: tuple[Line, ...] = ()
    for_waiting_list: bool = False
    replaced_places: tuple[tuple[Key, int], ...] = ()

    @property
    def key(self) -> Key:
        return self.event_id, self.reservation_id

    def has_lapsed(self, now: datetime) -> bool:
        """Whether it is a hold past its expire time that no transaction has expired yet."""
        return self.state is State.ACTIVE and self.expire_time <= now


def new(
    *,
    event_id: UUID,
    reservation_id: UUID,
    request_key: str,
    customer_id: UUID,
    lines: Sequence[Line],
    expire_time: datetime,
    replaces: UUID | None = None,
    for_waiting_list: bool = False,
    now: datetime,
) -> Reservation:
    """A reservation to be made. Raises VALIDATION_FAILED for its expire time, for a seat that is
    listed twice and for a seat whose quantity is not 1."""
    check_expire_time(expire_time, now)
    _check_seats(lines)
    return Reservation(
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
        replaces=replaces,
        lines=tuple(lines),
        for_waiting_list=for_waiting_list,
    )


def from_row(row: Sequence[Any]) -> Reservation:
    """A reservation without its lines, of a row with the table's columns in their order."""
    event_id, reservation_id, customer_id, request_key, fingerprint, state, *others = row
    return Reservation(
        event_id, reservation_id, customer_id, request_key, fingerprint, State(state), *others
    )


def check_expire_time(expire_time: datetime, now: datetime) -> None:
    """Raises VALIDATION_FAILED unless it is in the future and within MAX_HOLD from now."""
    if not now < expire_time <= now + MAX_HOLD:
        raise invalid(
            FieldViolation(
                "expire_time", f"must be in the future and within {MAX_HOLD.days} days from now"
            )
        )


async def get(connection: AsyncConnection, *, event_id: UUID, reservation_id: UUID) -> Reservation:
    """A reservation with its lines. Raises RESERVATION_NOT_FOUND."""
    reservation = await _find(connection, event_id, reservations.c.reservation_id == reservation_id)
    if reservation is None:
        raise DomainError(Reason.RESERVATION_NOT_FOUND, "no such reservation")
    return reservation


async def find_existing(connection: AsyncConnection, request: Reservation) -> Reservation | None:
    """The live reservation with the request's key, or else the one with its id, with its lines."""
    return await _find(
        connection, request.event_id, (reservations.c.request_key == request.request_key) & is_live
    ) or await _find(
        connection, request.event_id, reservations.c.reservation_id == request.reservation_id
    )


async def _find(
    connection: AsyncConnection, event_id: UUID, condition: sa.ColumnElement[bool]
) -> Reservation | None:
    row = (
        await connection.execute(
            sa.select(reservations).where(reservations.c.event_id == event_id, condition)
        )
    ).first()
    if row is None:
        return None
    reservation = from_row(row)
    lines = await connection.execute(
        sa.select(
            reservation_lines.c.offer_id, reservation_lines.c.quantity, reservation_lines.c.seat_id
        )
        .where(reservation_lines.c.event_id == event_id)
        .where(reservation_lines.c.reservation_id == reservation.reservation_id)
        .order_by(reservation_lines.c.line_number)
    )
    return replace(reservation, lines=tuple(Line(*line) for line in lines))


def _check_seats(lines: Sequence[Line]) -> None:
    seen: set[UUID] = set()
    violations = []
    for n, line in enumerate(lines):
        if line.seat_id is None:
            continue
        if line.seat_id in seen:
            violations.append(FieldViolation(f"lines[{n}].seat_id", "is listed twice"))
        if line.quantity != 1:
            violations.append(FieldViolation(f"lines[{n}].quantity", "must be 1 for a seat"))
        seen.add(line.seat_id)
    if violations:
        raise invalid(*violations)


def _fingerprint(request_key: str, customer_id: UUID, lines: Sequence[Line]) -> bytes:
    """The same for the same lines in any order."""
    texts = sorted(f"{line.offer_id} {line.seat_id} {line.quantity}" for line in lines)
    return hashlib.sha256("\n".join([request_key, str(customer_id), *texts]).encode()).digest()
