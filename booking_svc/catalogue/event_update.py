"""Changes of an event that is there, perhaps sold: what is asked for is checked and planned.

What a change means for the stock is told to the ledger first (event_desk.py): it alone
knows what is held and sold.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from booking_svc.catalogue import event_creation
from booking_svc.catalogue.cancellation_policy import Policy
from booking_svc.catalogue.event_creation import NewEvent, NewOffer
from booking_svc.catalogue.events import Event, Offer, StaffStatus
from booking_svc.clients.ports import OfferStock, PoolStock
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id
from mesh.money import Money

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class OfferChange:
    """None stays as it is. Without an id it is the offer with the name, or a new one."""

    offer_id: UUID | None = None
    name: str | None = None
    price: Money | None = None
    pool: str | None = None
    capacity: int | None = None
    seat_type: str | None = None
    per_customer_limit: int | None = None
    max_per_booking: int | None = None


@dataclass(frozen=True, slots=True)
class EventChange:
    """None stays as it is; `clear` names fields that shall be empty."""

    name: str | None = None
    description: str | None = None
    production_id: UUID | None = None
    auditorium_id: UUID | None = None
    venue_name: str | None = None
    time_zone: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    sale_start_time: datetime | None = None
    sale_end_time: datetime | None = None
    currency_code: str | None = None
    offers: tuple[OfferChange, ...] = ()
    cancellation_policy: Policy | None = None
    add_seat_ids: tuple[UUID, ...] = ()
    remove_seat_ids: tuple[UUID, ...] = ()
    clear: frozenset[str] = frozenset()
    # 0 takes it away.
    per_customer_limit: int | None = None


@dataclass(frozen=True, slots=True)
class ChangePlan:
    """The event as it shall be, with what the ledger must change for that.

    `pool_fields` and `offer_fields` say which fields of the request `pools` and `offers`
    come from.
    """

    event: Event
    pools: tuple[PoolStock, ...]
    offers: tuple[OfferStock, ...]
    add_seats: Mapping[UUID, UUID]
    remove_seat_ids: tuple[UUID, ...]
    pool_fields: tuple[str, ...]
    offer_fields: tuple[str, ...]
    # None leaves it as it is, 0 takes it away.
    per_customer_limit: int | None = None

    @property
    def changes_stock(self) -> bool:
        return bool(
            self.pools
            or self.offers
            or self.add_seats
            or self.remove_seat_ids
            or self.per_customer_limit is not None
        )

    def in_the_request(self, refusal: DomainError) -> DomainError:
        """A refusal of the ledger, by the names of this request's fields."""
        return invalid(
            *(
                FieldViolation(self._field(violation.field), violation.description)
                for violation in refusal.violations
            )
        )

    def _field(self, field: str) -> str:
        named = re.fullmatch(r"(pools|offers|add_seats|remove_seat_ids)\[(\d+)\](\.\w+)?", field)
        if named is None:
            return "event"
        kind, n, rest = named[1], int(named[2]), named[3] or ""
        if kind == "pools":
            return self.pool_fields[n] + rest
        if kind == "offers":
            return self.offer_fields[n] + rest
        return f"event.{'add_seat_ids' if kind == 'add_seats' else kind}[{n}]"


def plan(
    event: Event, *, change: EventChange, seat_types: Mapping[UUID, str], now: datetime
) -> ChangePlan:
    """The event after the change; `seat_types` are those of its auditorium's seats.

    Raises EVENT_STATE_INVALID for a cancelled event, and VALIDATION_FAILED that names
    every fault.
    """
    if event.staff_status is StaffStatus.CANCELLED:
        raise DomainError(
            Reason.EVENT_STATE_INVALID, "the event is cancelled", status=StaffStatus.CANCELLED
        )
    faults = _fixed(event, change)
    offers, fields = _offers(event, change, faults)
    changed = replace(_facts(event, change), offers=offers)
    faults += _named(event_creation.faults(_as_new(changed)), fields)
    if faults:
        raise invalid(*faults)
    add_seats = _added_seats(event, changed, change, seat_types, fields)
    pools, pool_fields = _pools(event, changed, add_seats, fields)
    limits = [
        (OfferStock(offer.offer_id, offer.pool_id, offer.per_customer_limit), fields[index])
        for index, offer in enumerate(offers)
        if _limit_of(event, offer.offer_id) != offer.per_customer_limit
    ]
    return ChangePlan(
        event=replace(changed, revision=event.revision + 1, update_time=now),
        pools=pools,
        offers=tuple(limit for limit, _ in limits),
        add_seats=add_seats,
        remove_seat_ids=change.remove_seat_ids,
        pool_fields=pool_fields,
        offer_fields=tuple(field for _, field in limits),
        per_customer_limit=None
        if changed.per_customer_limit == event.per_customer_limit
        else changed.per_customer_limit or 0,
    )


def _fixed(event: Event, change: EventChange) -> list[FieldViolation]:
    """What would change what cannot."""
    faults = []
    if change.auditorium_id not in (None, event.auditorium_id):
        faults.append(FieldViolation("event.auditorium_id", "cannot change"))
    if change.currency_code not in (None, event.currency_code):
        faults.append(FieldViolation("event.currency_code", "cannot change"))
    if change.add_seat_ids and event.auditorium_id is None:
        faults.append(FieldViolation("event.add_seat_ids", "the event has no auditorium"))
    return faults


def _facts(event: Event, change: EventChange) -> Event:
    """All but the offers."""
    start = _pick(change, "start_time", change.start_time, event.start_time)
    sale_end = _pick(change, "sale_end_time", change.sale_end_time, event.sale_end_time)
    if change.sale_end_time is None and (
        "sale_end_time" in change.clear or event.sale_end_time == event.start_time
    ):
        # The sale that ends with the start moves with it.
        sale_end = start
    return replace(
        event,
        name=change.name or event.name,
        description=event.description if change.description is None else change.description,
        production_id=_pick(change, "production_id", change.production_id, event.production_id),
        venue_name=_pick(change, "venue_name", change.venue_name, event.venue_name),
        time_zone=change.time_zone or event.time_zone,
        start_time=start,
        end_time=_pick(change, "end_time", change.end_time, event.end_time),
        sale_start_time=change.sale_start_time or event.sale_start_time,
        sale_end_time=sale_end,
        cancellation_policy=change.cancellation_policy or event.cancellation_policy,
        per_customer_limit=event.per_customer_limit
        if change.per_customer_limit is None
        else change.per_customer_limit or None,
    )


def _pick(change: EventChange, field: str, new: _T | None, now: _T | None) -> _T | None:
    if new is not None:
        return new
    return None if field in change.clear else now


def _offers(
    event: Event, change: EventChange, faults: list[FieldViolation]
) -> tuple[tuple[Offer, ...], list[str]]:
    """The offers after the change, and where each stands in the request."""
    offers = list(event.offers)
    fields = [f"event.offers[{offer.offer_id}]" for offer in offers]
    pools = {str(offer.pool_id): offer.pool_id for offer in offers}
    for n, wanted in enumerate(change.offers):
        field = f"event.offers[{n}]"
        index = _index_of(offers, wanted)
        if index is not None:
            if fields[index].removesuffix("]").rpartition("[")[2].isdigit():
                faults.append(FieldViolation(f"{field}.offer_id", "is changed twice"))
            fields[index] = field
            offers[index] = _changed(offers[index], wanted, field, faults)
        elif wanted.offer_id is not None:
            faults.append(FieldViolation(f"{field}.offer_id", "the event has no such offer"))
        elif wanted.name is None or wanted.price is None:
            missing = "name" if wanted.name is None else "price"
            faults.append(FieldViolation(f"{field}.{missing}", "is required for a new offer"))
        else:
            pool = wanted.pool or f"offer {n}"
            offers.append(
                Offer(
                    new_id(),
                    wanted.name,
                    wanted.price,
                    pools.setdefault(pool, new_id()),
                    wanted.capacity,
                    wanted.seat_type,
                    wanted.per_customer_limit or event_creation.DEFAULT_LIMIT,
                    wanted.max_per_booking or event_creation.DEFAULT_LIMIT,
                )
            )
            fields.append(field)
    return tuple(offers), fields


def _index_of(offers: list[Offer], wanted: OfferChange) -> int | None:
    for index, offer in enumerate(offers):
        if wanted.offer_id == offer.offer_id or (
            wanted.offer_id is None and wanted.name == offer.name
        ):
            return index
    return None


def _changed(offer: Offer, wanted: OfferChange, field: str, faults: list[FieldViolation]) -> Offer:
    if wanted.pool not in (None, "", str(offer.pool_id)):
        faults.append(FieldViolation(f"{field}.pool_id", "cannot change"))
    if wanted.seat_type not in (None, offer.seat_type):
        faults.append(FieldViolation(f"{field}.seat_type", "cannot change"))
    return replace(
        offer,
        name=wanted.name or offer.name,
        price=wanted.price or offer.price,
        capacity=offer.capacity if wanted.capacity is None else wanted.capacity,
        per_customer_limit=wanted.per_customer_limit or offer.per_customer_limit,
        max_per_booking=wanted.max_per_booking or offer.max_per_booking,
    )


def _as_new(event: Event) -> NewEvent:
    """The event as if it were asked for anew, so that the same rules hold."""
    return NewEvent(
        name=event.name,
        description=event.description,
        production_id=event.production_id,
        auditorium_id=event.auditorium_id,
        venue_name=event.venue_name,
        time_zone=event.time_zone,
        start_time=event.start_time,
        end_time=event.end_time,
        sale_start_time=event.sale_start_time,
        sale_end_time=event.sale_end_time,
        currency_code=event.currency_code,
        offers=tuple(
            NewOffer(
                offer.name,
                offer.price,
                str(offer.pool_id),
                offer.capacity,
                offer.seat_type,
                offer.per_customer_limit,
                offer.max_per_booking,
            )
            for offer in event.offers
        ),
        cancellation_policy=event.cancellation_policy,
    )


def _named(faults: list[FieldViolation], fields: list[str]) -> list[FieldViolation]:
    """Faults of an event's n-th offer as faults of where it stands in the request."""
    return [
        FieldViolation(
            re.sub(r"^event\.offers\[(\d+)\]", lambda n: fields[int(n[1])], fault.field),
            fault.description,
        )
        for fault in faults
    ]


def _added_seats(
    event: Event,
    changed: Event,
    change: EventChange,
    seat_types: Mapping[UUID, str],
    fields: list[str],
) -> dict[UUID, UUID]:
    """The offer that sells each seat that is put on sale."""
    faults = []
    by_type = {offer.seat_type: offer.offer_id for offer in changed.offers if offer.seat_type}
    added: dict[UUID, UUID] = {}
    for n, seat_id in enumerate(change.add_seat_ids):
        offer_id = by_type.get(seat_types.get(seat_id, ""))
        if offer_id is None:
            faults.append(
                FieldViolation(f"event.add_seat_ids[{n}]", "no offer of the event sells this seat")
            )
        else:
            added[seat_id] = offer_id
    known = {offer.offer_id for offer in event.offers}
    for index, offer in enumerate(changed.offers):
        if offer.seat_type is None or offer.offer_id in known:
            continue
        its_seats = [seat for seat, kind in seat_types.items() if kind == offer.seat_type]
        if not its_seats:
            faults.append(
                FieldViolation(f"{fields[index]}.seat_type", "the auditorium has no such seats")
            )
        added |= dict.fromkeys(its_seats, offer.offer_id)
    if faults:
        raise invalid(*faults)
    return added


def _pools(
    event: Event, changed: Event, add_seats: Mapping[UUID, UUID], fields: list[str]
) -> tuple[tuple[PoolStock, ...], tuple[str, ...]]:
    """Pools that are new or get another capacity. Those with seats have as many places."""
    before = {offer.pool_id: offer.capacity for offer in event.offers if offer.capacity}
    known = {offer.pool_id for offer in event.offers}
    found: list[tuple[PoolStock, str]] = []
    for index, offer in enumerate(changed.offers):
        if offer.seat_type is not None and offer.pool_id not in known:
            seats = sum(1 for sold_by in add_seats.values() if sold_by == offer.offer_id)
            found.append((PoolStock(offer.pool_id, seats), fields[index]))
        elif offer.capacity is not None and before.get(offer.pool_id) != offer.capacity:
            found.append((PoolStock(offer.pool_id, offer.capacity), fields[index]))
    return tuple(pool for pool, _ in found), tuple(field for _, field in found)


def _limit_of(event: Event, offer_id: UUID) -> int | None:
    for offer in event.offers:
        if offer.offer_id == offer_id:
            return offer.per_customer_limit
    return None
