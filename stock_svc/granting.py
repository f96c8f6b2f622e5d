"""Which requests get what they want, in their order, of what is there under the locks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from mesh.errors import DomainError, Reason
from stock_svc.demand import Demand, Key, SeatTerms
from stock_svc.outbox import PoolNow


@dataclass(slots=True)
class Locked:
    """What is exact while the pools are locked, less what was granted since.

    `limits` and `event_totals` are of the events with a purchase limit of their own.
    """

    pools: dict[Key, PoolNow]
    free: dict[Key, int]
    totals: Counter[tuple[UUID, UUID, UUID]]
    seats: Mapping[Key, SeatTerms]
    taken: set[Key]
    versions: Mapping[UUID, int]
    limits: Mapping[UUID, int]
    event_totals: Counter[tuple[UUID, UUID]]


def decide(
    wanted: Mapping[int, Demand], locked: Locked
) -> tuple[dict[int, DomainError], list[Demand]]:
    """Grants requests in their order while there is enough for them."""
    refusals: dict[int, DomainError] = {}
    granted = []
    for n in sorted(wanted):
        one = wanted[n]
        refusal = _refusal(one, locked)
        if refusal is not None:
            refusals[n] = refusal
            continue
        granted.append(one)
        for pool, quantity in one.by_pool.items():
            locked.free[pool] -= quantity
        for offer_id, quantity in one.by_offer.items():
            locked.totals[one.wanted.event_id, offer_id, one.wanted.customer_id] += quantity
        locked.event_totals[one.wanted.event_id, one.wanted.customer_id] += one.places
        locked.taken |= set(one.seats)
    return refusals, granted


def _refusal(one: Demand, locked: Locked) -> DomainError | None:
    if any(pool not in locked.pools for pool in one.by_pool):
        return DomainError(Reason.EVENT_NOT_FOUND, "the event has no stock any more")
    taken = [seat for seat in one.seats if seat in locked.taken]
    if (too_little := short(one, locked.free, taken)) is not None:
        return too_little
    for offer_id, quantity in one.by_offer.items():
        owned = locked.totals[one.wanted.event_id, offer_id, one.wanted.customer_id]
        limit = one.terms[offer_id].per_customer_limit
        if owned + quantity > limit:
            return DomainError(
                Reason.PURCHASE_LIMIT_EXCEEDED,
                "the customer would own more of the offer than its limit",
                offer_id=offer_id,
                limit=limit,
                owned=owned,
                requested=quantity,
            )
    return _above_the_events_limit(one, locked)


def _above_the_events_limit(one: Demand, locked: Locked) -> DomainError | None:
    limit = locked.limits.get(one.wanted.event_id)
    owned = locked.event_totals[one.wanted.event_id, one.wanted.customer_id]
    if limit is None or owned + one.places <= limit:
        return None
    return DomainError(
        Reason.PURCHASE_LIMIT_EXCEEDED,
        "the customer would own more of the event than its limit",
        event_id=one.wanted.event_id,
        limit=limit,
        owned=owned,
        requested=one.places,
    )


def short(one: Demand, free: Mapping[Key, int], taken: Sequence[Key]) -> DomainError | None:
    """The refusal when seats are taken, or when a pool without seats has too little left."""
    if taken:
        return DomainError(
            Reason.SEAT_UNAVAILABLE,
            "one or more seats are held or sold",
            seat_ids=",".join(str(seat_id) for _, seat_id in taken),
        )
    for line in one.wanted.lines:
        pool = (one.wanted.event_id, one.pool_of(line))
        if one.by_pool[pool] > free[pool]:
            return DomainError(
                Reason.SOLD_OUT,
                "fewer places are left than asked for",
                offer_id=line.offer_id,
                requested=one.by_pool[pool],
                available=free[pool],
            )
    return None
