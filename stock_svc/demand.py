"""What a request asks for: its lines, checked against the event's offers and seats.

Says how much of which pool, offer and seat is wanted; whether it is there is decided
in claims.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, FieldViolation, Reason, invalid
from stock_svc.tables import any_of, events, offers, pools, seats


@dataclass(frozen=True, slots=True)
class Line:
    """Places of one offer, or one seat; then the quantity is 1."""

    offer_id: UUID
    quantity: int
    seat_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class OfferTerms:
    """Where an offer's places come from, and on which terms.

    `free` is what its pool had left when it was read: a hint, nothing is locked.
    """

    pool_id: UUID
    per_customer_limit: int
    seated: bool
    free: int


@dataclass(frozen=True, slots=True)
class Demand:
    """The lines of a request with their sums: per pool, per offer, and all seats, sorted."""

    lines: tuple[Line, ...]
    terms: Mapping[UUID, OfferTerms]
    by_pool: Mapping[UUID, int]
    by_offer: Mapping[UUID, int]
    seat_ids: tuple[UUID, ...]

    def pool_of(self, line: Line) -> UUID:
        return self.terms[line.offer_id].pool_id

    @property
    def seems_short(self) -> bool:
        """Whether a pool had less left than is wanted when the offers were read."""
        return any(self.by_pool[each.pool_id] > each.free for each in self.terms.values())


async def of_lines(connection: AsyncConnection, *, event_id: UUID, lines: Sequence[Line]) -> Demand:
    """Sums up what the lines ask for.

    Raises VALIDATION_FAILED, EVENT_NOT_FOUND, OFFER_NOT_FOUND, or SEAT_NOT_FOUND also for
    a seat that another offer sells.
    """
    _check_seats_listed_once(lines)
    terms = await _terms(connection, event_id, {line.offer_id for line in lines})
    _check_seated_offers_by_seat(lines, terms)
    seat_ids = tuple(sorted(line.seat_id for line in lines if line.seat_id is not None))
    if seat_ids:
        await _check_seats_exist(connection, event_id, lines, seat_ids)
    by_pool: dict[UUID, int] = {}
    by_offer: dict[UUID, int] = {}
    for line in lines:
        pool_id = terms[line.offer_id].pool_id
        by_pool[pool_id] = by_pool.get(pool_id, 0) + line.quantity
        by_offer[line.offer_id] = by_offer.get(line.offer_id, 0) + line.quantity
    return Demand(tuple(lines), terms, by_pool, by_offer, seat_ids)


def _check_seats_listed_once(lines: Sequence[Line]) -> None:
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


async def _terms(
    connection: AsyncConnection, event_id: UUID, offer_ids: set[UUID]
) -> dict[UUID, OfferTerms]:
    found = await connection.execute(
        sa.select(
            offers.c.offer_id,
            offers.c.pool_id,
            offers.c.per_customer_limit,
            offers.c.seated,
            (pools.c.capacity - pools.c.held - pools.c.sold).label("free"),
        )
        .join(
            pools,
            (pools.c.event_id == offers.c.event_id) & (pools.c.pool_id == offers.c.pool_id),
        )
        .where(offers.c.event_id == event_id, offers.c.offer_id == any_of(offer_ids))
    )
    terms = {
        row.offer_id: OfferTerms(row.pool_id, row.per_customer_limit, row.seated, row.free)
        for row in found
    }
    if missing := offer_ids - terms.keys():
        if await connection.scalar(sa.select(1).where(events.c.event_id == event_id)) is None:
            raise DomainError(Reason.EVENT_NOT_FOUND, "the event has no stock")
        raise DomainError(
            Reason.OFFER_NOT_FOUND, "the event has no such offer", offer_id=min(missing)
        )
    return terms


def _check_seated_offers_by_seat(lines: Sequence[Line], terms: Mapping[UUID, OfferTerms]) -> None:
    violations = [
        FieldViolation(f"lines[{n}].seat_id", "this offer is sold by seat")
        for n, line in enumerate(lines)
        if line.seat_id is None and terms[line.offer_id].seated
    ]
    if violations:
        raise invalid(*violations)


async def _check_seats_exist(
    connection: AsyncConnection,
    event_id: UUID,
    lines: Sequence[Line],
    seat_ids: tuple[UUID, ...],
) -> None:
    found = await connection.execute(
        sa.select(seats.c.seat_id, seats.c.offer_id).where(
            seats.c.event_id == event_id, seats.c.seat_id == any_of(seat_ids)
        )
    )
    offer_of = {row.seat_id: row.offer_id for row in found}
    missing = [
        line.seat_id
        for line in lines
        if line.seat_id is not None and offer_of.get(line.seat_id) != line.offer_id
    ]
    if missing:
        raise DomainError(
            Reason.SEAT_NOT_FOUND,
            "the event has no such seat at this offer",
            seat_ids=",".join(map(str, missing)),
        )
