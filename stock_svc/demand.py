"""What requests ask for: their lines, checked against the events' offers and seats.

Says how much of which pool, offer and seat is wanted; whether it is there is decided
in reserving.py, under locks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from mesh.errors import DomainError, FieldViolation, Reason, invalid
from stock_svc.reservation import Line, Reservation

Key = tuple[UUID, UUID]
"""An event, and the id of something in it."""


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
class SeatTerms:
    """The offer that sells a seat, and whether it was taken or blocked when it was read."""

    offer_id: UUID
    taken: bool


@dataclass(frozen=True, slots=True)
class EventTerms:
    """How much of an event one customer may own over all offers, and if that is limited, the
    event's pools."""

    per_customer_limit: int | None
    pools: frozenset[Key]


@dataclass(frozen=True, slots=True)
class Demand:
    """A reservation to be made, with sums per pool and per offer, and all its seats, sorted."""

    wanted: Reservation
    terms: Mapping[UUID, OfferTerms]
    by_pool: Mapping[Key, int]
    by_offer: Mapping[UUID, int]
    seats: tuple[Key, ...]

    @property
    def places(self) -> int:
        return sum(self.by_offer.values())

    def pool_of(self, line: Line) -> UUID:
        return self.terms[line.offer_id].pool_id


def of_request(
    wanted: Reservation,
    *,
    offers: Mapping[Key, OfferTerms],
    seats: Mapping[Key, SeatTerms],
    is_known: bool,
) -> Demand:
    """Sums up what a request asks for; `is_known` says whether its event has stock.

    Raises VALIDATION_FAILED, EVENT_NOT_FOUND, OFFER_NOT_FOUND, or SEAT_NOT_FOUND also for
    a seat that another offer sells.
    """
    terms = _terms(wanted, offers, is_known)
    _check_seated_offers_by_seat(wanted.lines, terms)
    _check_seats_exist(wanted, seats)
    by_pool: dict[Key, int] = {}
    by_offer: dict[UUID, int] = {}
    for line in wanted.lines:
        pool = (wanted.event_id, terms[line.offer_id].pool_id)
        by_pool[pool] = by_pool.get(pool, 0) + line.quantity
        by_offer[line.offer_id] = by_offer.get(line.offer_id, 0) + line.quantity
    return Demand(wanted, terms, by_pool, by_offer, seats_of(wanted))


def seats_of(wanted: Reservation) -> tuple[Key, ...]:
    return tuple(
        sorted((wanted.event_id, line.seat_id) for line in wanted.lines if line.seat_id is not None)
    )


def _terms(
    wanted: Reservation, offers: Mapping[Key, OfferTerms], is_known: bool
) -> dict[UUID, OfferTerms]:
    asked = {line.offer_id for line in wanted.lines}
    terms = {
        offer_id: offers[wanted.event_id, offer_id]
        for offer_id in asked
        if (wanted.event_id, offer_id) in offers
    }
    if missing := asked - terms.keys():
        if not is_known:
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


def _check_seats_exist(wanted: Reservation, seats: Mapping[Key, SeatTerms]) -> None:
    missing = []
    for line in wanted.lines:
        if line.seat_id is not None:
            found = seats.get((wanted.event_id, line.seat_id))
            if found is None or found.offer_id != line.offer_id:
                missing.append(line.seat_id)
    if missing:
        raise DomainError(
            Reason.SEAT_NOT_FOUND,
            "the event has no such seat at this offer",
            seat_ids=",".join(map(str, missing)),
        )
