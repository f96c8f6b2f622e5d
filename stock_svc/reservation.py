"""A reservation, as plain facts. What becomes of it is in reserving.py and reservations.py."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from mesh.errors import FieldViolation, invalid
from stock_svc.states import State

MAX_HOLD = timedelta(days=7)
"""No hold lasts longer from now, whatever the caller asks for."""


@dataclass(frozen=True, slots=True)
class Line:
    """Places of one offer, or one seat; then the quantity is 1."""

    offer_id: UUID
    quantity: int
    seat_id: UUID | None = None


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
    replaces: UUID | None = None
    lines: tuple[Line, ...] = ()

    def has_lapsed(self, now: datetime) -> bool:
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
    now: datetime,
) -> Reservation:
    """A reservation to be made. Raises VALIDATION_FAILED for what none may have: an end too far
    away, a seat twice, more than one place of a seat."""
    check_end(expire_time, now)
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
    )


def from_row(row: Sequence[Any]) -> Reservation:
    """A reservation without its lines, of a row with the table's columns in their order."""
    event_id, reservation_id, customer_id, request_key, fingerprint, state, *others = row
    return Reservation(
        event_id, reservation_id, customer_id, request_key, fingerprint, State(state), *others
    )


def check_end(expire_time: datetime, now: datetime) -> None:
    """Raises VALIDATION_FAILED for an end that no hold may have."""
    if not now < expire_time <= now + MAX_HOLD:
        raise invalid(FieldViolation("expire_time", f"must be in the next {MAX_HOLD.days} days"))


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
    asked = sorted(f"{line.offer_id} {line.seat_id} {line.quantity}" for line in lines)
    return hashlib.sha256("\n".join([request_key, str(customer_id), *asked]).encode()).digest()
