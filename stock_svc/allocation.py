"""What requests ask for and which of them get it: pure functions over terms and counters.

Reading, locking and writing are in reserve.py.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from mesh.errors import DomainError, FieldViolation, Reason, invalid
from stock_svc.reservations import Line, Reservation
from stock_svc.tables import Key


@dataclass(frozen=True, slots=True)
class OfferTerms:
    """The pool that an offer draws on, and its terms.

    `free` was read without a lock: other transactions may have changed it since.
    """

    pool_id: UUID
    per_customer_limit: int
    seated: bool
    free: int


@dataclass(frozen=True, slots=True)
class SeatTerms:
    """The offer that sells a seat; `taken` also for a blocked seat."""

    offer_id: UUID
    taken: bool


@dataclass(frozen=True, slots=True)
class EventTerms:
    """The per-customer limit over all offers of an event, and if it has one, its pools."""

    per_customer_limit: int | None
    pools: frozenset[Key]


@dataclass(frozen=True, slots=True)
class Demand:
    """A reservation to be made, with sums per pool and per offer, and its seats, sorted."""

    request: Reservation
    terms: Mapping[UUID, OfferTerms]
    by_pool: Mapping[Key, int]
    by_offer: Mapping[UUID, int]
    seats: tuple[Key, ...]

    @property
    def customer(self) -> Key:
        return self.request.event_id, self.request.customer_id

    @property
    def places(self) -> int:
        return sum(self.by_offer.values())

    def pool_of(self, line: Line) -> UUID:
        return self.terms[line.offer_id].pool_id

    def total_of(self, offer_id: UUID) -> tuple[UUID, UUID, UUID]:
        """The key of the customer's total of an offer."""
        return self.request.event_id, offer_id, self.request.customer_id


@dataclass(slots=True)
class Remaining:
    """What is free and what customers own, exact while the pools are locked.

    `decide` updates it. `limits` and `event_totals` are of the events with a limit of their own.
    """

    free: dict[Key, int]
    taken: set[Key]
    totals: Counter[tuple[UUID, UUID, UUID]]
    limits: Mapping[UUID, int]
    event_totals: Counter[Key]


def demand_of(
    request: Reservation,
    *,
    offers: Mapping[Key, OfferTerms],
    seats: Mapping[Key, SeatTerms],
    has_stock: bool,
) -> Demand:
    """Sums up what a request asks for; `has_stock` says whether its event has stock.

    Raises VALIDATION_FAILED, EVENT_NOT_FOUND, OFFER_NOT_FOUND, or SEAT_NOT_FOUND also for
    a seat that another offer sells.
    """
    terms = _terms(request, offers, has_stock)
    _check_seated_offers_by_seat(request.lines, terms)
    _check_seats_exist(request, seats)
    by_pool: dict[Key, int] = {}
    by_offer: dict[UUID, int] = {}
    for line in request.lines:
        pool = (request.event_id, terms[line.offer_id].pool_id)
        by_pool[pool] = by_pool.get(pool, 0) + line.quantity
        by_offer[line.offer_id] = by_offer.get(line.offer_id, 0) + line.quantity
    return Demand(request, terms, by_pool, by_offer, seats_of(request))


def seats_of(request: Reservation) -> tuple[Key, ...]:
    return tuple(
        sorted(
            (request.event_id, line.seat_id) for line in request.lines if line.seat_id is not None
        )
    )


def decide(
    demands: Mapping[int, Demand], remaining: Remaining
) -> tuple[dict[int, DomainError], list[Demand]]:
    """Accepts demands in the order of their numbers while they fit; returns refusals and accepted.

    Refusals are EVENT_NOT_FOUND, SEAT_UNAVAILABLE, SOLD_OUT or PURCHASE_LIMIT_EXCEEDED.
    """
    refusals: dict[int, DomainError] = {}
    accepted = []
    for n in sorted(demands):
        demand = demands[n]
        refusal = _refusal(demand, remaining)
        if refusal is not None:
            refusals[n] = refusal
            continue
        accepted.append(demand)
        for pool, quantity in demand.by_pool.items():
            remaining.free[pool] -= quantity
        for offer_id, quantity in demand.by_offer.items():
            remaining.totals[demand.total_of(offer_id)] += quantity
        remaining.event_totals[demand.customer] += demand.places
        remaining.taken |= set(demand.seats)
    return refusals, accepted


def shortage(demand: Demand, free: Mapping[Key, int], taken: Sequence[Key]) -> DomainError | None:
    """SEAT_UNAVAILABLE when seats are taken, SOLD_OUT when a pool has fewer places free."""
    if taken:
        return DomainError(
            Reason.SEAT_UNAVAILABLE,
            "one or more seats are held or sold",
            seat_ids=",".join(str(seat_id) for _, seat_id in taken),
        )
    for line in demand.request.lines:
        pool = (demand.request.event_id, demand.pool_of(line))
        if demand.by_pool[pool] > free[pool]:
            return DomainError(
                Reason.SOLD_OUT,
                "fewer places are available than requested",
                offer_id=line.offer_id,
                requested=demand.by_pool[pool],
                available=free[pool],
            )
    return None


def _refusal(demand: Demand, remaining: Remaining) -> DomainError | None:
    if any(pool not in remaining.free for pool in demand.by_pool):
        return DomainError(Reason.EVENT_NOT_FOUND, "the stock of the event was removed")
    taken = [seat for seat in demand.seats if seat in remaining.taken]
    if (refusal := shortage(demand, remaining.free, taken)) is not None:
        return refusal
    for offer_id, quantity in demand.by_offer.items():
        owned = remaining.totals[demand.total_of(offer_id)]
        limit = demand.terms[offer_id].per_customer_limit
        if owned + quantity > limit:
            return DomainError(
                Reason.PURCHASE_LIMIT_EXCEEDED,
                "the customer would own more of the offer than its limit",
                offer_id=offer_id,
                limit=limit,
                owned=owned,
                requested=quantity,
            )
    return _above_event_limit(demand, remaining)


def _above_event_limit(demand: Demand, remaining: Remaining) -> DomainError | None:
    event_id = demand.request.event_id
    limit, owned = remaining.limits.get(event_id), remaining.event_totals[demand.customer]
    if limit is None or owned + demand.places <= limit:
        return None
    return DomainError(
        Reason.PURCHASE_LIMIT_EXCEEDED,
        "the customer would own more of the event than its limit",
        event_id=event_id,
        limit=limit,
        owned=owned,
        requested=demand.places,
    )


def _terms(
    request: Reservation, offers: Mapping[Key, OfferTerms], has_stock: bool
) -> dict[UUID, OfferTerms]:
    offer_ids = {line.offer_id for line in request.lines}
    terms = {
        offer_id: offers[request.event_id, offer_id]
        for offer_id in offer_ids
        if (request.event_id, offer_id) in offers
    }
    if missing := offer_ids - terms.keys():
        if not has_stock:
            raise DomainError(Reason.EVENT_NOT_FOUND, "the event has no stock")
        raise DomainError(
            Reason.OFFER_NOT_FOUND, "the event has no such offer", offer_id=min(missing)
        )
    return terms


def _check_seated_offers_by_seat(lines: Sequence[Line], terms: Mapping[UUID, OfferTerms]) -> None:
    violations = [
        FieldViolation(f"lines[{n}].seat_id", "is required: the offer is sold by seat")
        for n, line in enumerate(lines)
        if line.seat_id is None and terms[line.offer_id].seated
    ]
    if violations:
        raise invalid(*violations)


def _check_seats_exist(request: Reservation, seats: Mapping[Key, SeatTerms]) -> None:
    missing = []
    for line in request.lines:
        if line.seat_id is not None:
            seat = seats.get((request.event_id, line.seat_id))
            if seat is None or seat.offer_id != line.offer_id:
                missing.append(line.seat_id)
    if missing:
        raise DomainError(
            Reason.SEAT_NOT_FOUND,
            "the event has no such seat at this offer",
            seat_ids=",".join(map(str, missing)),
        )
