"""What requests ask for and which of them get it: pure functions over terms and counters.

Reading, locking and writing are in reserve.py.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from mesh.errors import DomainError, FailedItem, FieldViolation, Reason, failures, invalid
from stock_svc.reservations import Line, Reservation, SeatState
from stock_svc.tables import Key


@dataclass(frozen=True, slots=True)
class OfferTerms:
    """The pool that an offer draws on, and its terms.

    `free` and `open_places` of the pool were read without a lock: other transactions may have
    changed them since.
    """

    pool_id: UUID
    per_customer_limit: int
    seated: bool
    free: int
    open_places: int | None


@dataclass(frozen=True, slots=True)
class SeatTerms:
    """The pool of a seat, which all offers of the pool sell; `taken` also for a blocked seat."""

    pool_id: UUID
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

    def taken_from_open(self, pool: Key) -> int:
        """How many of the demand's places of a pool come from those that are open to all.

        None for the waiting list; of an exchange, those that it has more than before.
        """
        if self.request.for_waiting_list:
            return 0
        replaced = dict(self.request.replaced_places).get(pool, 0)
        return max(0, self.by_pool[pool] - replaced)

    def available(self, pool: Key, free: int, open_places: int | None) -> int:
        """How many of a pool's free places the demand can have."""
        if self.request.for_waiting_list or open_places is None:
            return free
        replaced = dict(self.request.replaced_places).get(pool, 0)
        return min(free, open_places + replaced)

    def pool_of(self, line: Line) -> UUID:
        return self.terms[line.offer_id].pool_id

    def total_of(self, offer_id: UUID) -> tuple[UUID, UUID, UUID]:
        """The key of the customer's total of an offer."""
        return self.request.event_id, offer_id, self.request.customer_id


@dataclass(frozen=True, slots=True)
class Refused:
    """A demand that does not fit, and the lines at fault."""

    demand: Demand
    failed: tuple[FailedItem, ...]

    @property
    def seats(self) -> dict[int, UUID]:
        """The taken seats, by their line."""
        return {
            item.number: seat_id
            for item in self.failed
            if item.reason is Reason.SEAT_UNAVAILABLE
            and (seat_id := self.demand.request.lines[item.number].seat_id) is not None
        }


@dataclass(slots=True)
class Remaining:
    """What is free and what customers own, exact while the pools are locked.

    `decide` updates it. `limits` and `event_totals` are of the events with a limit of their own;
    `open_places` has the pools in which a waiting list keeps what comes back.
    """

    free: dict[Key, int]
    open_places: dict[Key, int]
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
    a seat of another pool than the offer's.
    """
    terms = _terms(request, offers, has_stock)
    _check_seated_offers_by_seat(request.lines, terms)
    _check_seats_exist(request, seats, terms)
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
) -> tuple[dict[int, Refused | DomainError], list[Demand]]:
    """Accepts demands in the order of their numbers while they fit; returns refusals and accepted.

    An error is EVENT_NOT_FOUND.
    """
    refusals: dict[int, Refused | DomainError] = {}
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
            if pool in remaining.open_places:
                remaining.open_places[pool] = min(
                    remaining.open_places[pool] - demand.taken_from_open(pool), remaining.free[pool]
                )
        for offer_id, quantity in demand.by_offer.items():
            remaining.totals[demand.total_of(offer_id)] += quantity
        remaining.event_totals[demand.customer] += demand.places
        remaining.taken |= set(demand.seats)
    return refusals, accepted


def shortages(
    demand: Demand, free: Mapping[Key, int], taken: Collection[Key]
) -> tuple[FailedItem, ...]:
    """The lines whose seat is taken, or whose pool has fewer places free than the demand.

    `free` has the places that the demand can have.
    """
    event_id, failed = demand.request.event_id, []
    for number, line in enumerate(demand.request.lines):
        if line.seat_id is not None and (event_id, line.seat_id) in taken:
            failed.append(FailedItem(number, Reason.SEAT_UNAVAILABLE, {}))
            continue
        if line.seat_id is not None and taken:
            # The pool has fewer places because of the taken seats.
            continue
        pool = (event_id, demand.pool_of(line))
        if demand.by_pool[pool] > free[pool]:
            details = {
                "offerId": line.offer_id,
                "requested": demand.by_pool[pool],
                "available": free[pool],
            }
            failed.append(FailedItem(number, Reason.SOLD_OUT, details))
    return tuple(failed)


def above_limits(
    demand: Demand, totals: Mapping[tuple[UUID, UUID, UUID], int]
) -> tuple[FailedItem, ...]:
    """The lines of offers of which the customer would own more than the limit."""
    failed: list[FailedItem] = []
    for offer_id, quantity in demand.by_offer.items():
        owned = totals.get(demand.total_of(offer_id), 0)
        limit = demand.terms[offer_id].per_customer_limit
        if owned + quantity > limit:
            details = {"offerId": offer_id, "limit": limit, "owned": owned, "requested": quantity}
            failed += _failed_lines(demand, Reason.PURCHASE_LIMIT_EXCEEDED, details, offer_id)
    return tuple(failed)


def error_of(
    refused: Refused,
    holders: Mapping[Key, tuple[str | None, UUID | None]],
    totals: Mapping[tuple[UUID, UUID, UUID], int],
) -> DomainError:
    """The refusal of a request with all its lines at fault; a taken seat's reason comes first.

    `holders` has the state of taken seats and the customer who holds or owns each, `totals` what
    the customer owns of the offers of the other lines.
    """
    seats = {
        number: _taken_seat(seat_id, refused.demand, holders)
        for number, seat_id in refused.seats.items()
    }
    failed = {
        item.number: replace(item, details=seats.get(item.number, item.details))
        for item in (*above_limits(refused.demand, totals), *refused.failed)
    }
    reason = min((item.reason for item in failed.values()), key=_ORDER.index)
    first = next(item for item in refused.failed if item.reason is reason).details
    named = failures([item for _, item in sorted(failed.items())])
    if seats:
        seat_ids = ",".join(sorted(str(seat_id) for seat_id in refused.seats.values()))
        return DomainError(reason, _seats_message(seats.values()), seat_ids=seat_ids, **named)
    message = "fewer places are available than requested"
    if reason is Reason.PURCHASE_LIMIT_EXCEEDED:
        whole = "offer" if "offerId" in first else "event"
        message = f"the customer would own more of the {whole} than its limit"
    metadata: dict[str, Any] = {_METADATA.get(name, name): value for name, value in first.items()}
    return DomainError(reason, message, **metadata, **named)


_ORDER = (Reason.SEAT_UNAVAILABLE, Reason.SOLD_OUT, Reason.PURCHASE_LIMIT_EXCEEDED)
_METADATA = {"offerId": "offer_id", "eventId": "event_id"}


def _taken_seat(
    seat_id: UUID, demand: Demand, holders: Mapping[Key, tuple[str | None, UUID | None]]
) -> dict[str, object]:
    state, customer_id = holders.get((demand.request.event_id, seat_id), (None, None))
    # A seat that has become free since was held.
    details: dict[str, object] = {"seatId": seat_id, "state": state or SeatState.HELD}
    if state == SeatState.HELD and customer_id == demand.request.customer_id:
        details["heldByYou"] = True
    return details


def _seats_message(seats: Iterable[Mapping[str, object]]) -> str:
    """E.g. `2 seats are held, 1 seat is held by you, 1 seat is sold`."""
    counts = Counter(
        "held by you" if "heldByYou" in seat else str(seat["state"]).lower() for seat in seats
    )
    return ", ".join(
        f"{count} {'seat is' if count == 1 else 'seats are'} {state}"
        for state, count in sorted(counts.items())
    )


def _refusal(demand: Demand, remaining: Remaining) -> Refused | DomainError | None:
    if any(pool not in remaining.free for pool in demand.by_pool):
        return DomainError(Reason.EVENT_NOT_FOUND, "the stock of the event was removed")
    taken = [seat for seat in demand.seats if seat in remaining.taken]
    available = {
        pool: demand.available(pool, remaining.free[pool], remaining.open_places.get(pool))
        for pool in demand.by_pool
    }
    failed = (
        shortages(demand, available, taken)
        or above_limits(demand, remaining.totals)
        or _above_event_limit(demand, remaining)
    )
    return Refused(demand, failed) if failed else None


def _above_event_limit(demand: Demand, remaining: Remaining) -> tuple[FailedItem, ...]:
    event_id = demand.request.event_id
    limit, owned = remaining.limits.get(event_id), remaining.event_totals[demand.customer]
    if limit is None or owned + demand.places <= limit:
        return ()
    details = {"eventId": event_id, "limit": limit, "owned": owned, "requested": demand.places}
    return _failed_lines(demand, Reason.PURCHASE_LIMIT_EXCEEDED, details)


def _failed_lines(
    demand: Demand, reason: Reason, details: Mapping[str, object], offer_id: UUID | None = None
) -> tuple[FailedItem, ...]:
    return tuple(
        FailedItem(number, reason, details)
        for number, line in enumerate(demand.request.lines)
        if offer_id in (None, line.offer_id)
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


def _check_seats_exist(
    request: Reservation, seats: Mapping[Key, SeatTerms], offers: Mapping[UUID, OfferTerms]
) -> None:
    missing = []
    for line in request.lines:
        if line.seat_id is not None:
            seat = seats.get((request.event_id, line.seat_id))
            if seat is None or seat.pool_id != offers[line.offer_id].pool_id:
                missing.append(line.seat_id)
    if missing:
        raise DomainError(
            Reason.SEAT_NOT_FOUND,
            "the event has no such seat at this offer",
            seat_ids=",".join(map(str, missing)),
        )
