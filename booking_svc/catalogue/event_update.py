"""Plans of changes to an event, which may already be sold: checks and merges. Writes nothing.

event_commands.py sends a plan's stock to the ledger first: only the ledger knows what is held
and sold.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from booking_svc.catalogue import event_rules, payability
from booking_svc.catalogue.cancellation_policy import Policy
from booking_svc.catalogue.event_creation import DEFAULT_LIMIT
from booking_svc.catalogue.events import Event, Offer, StaffStatus, Status
from booking_svc.catalogue.venues import Venue
from booking_svc.clients.ports import Limits, OfferStock, PoolStock
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id
from mesh.money import Money

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class OfferChange:
    """Changes of one offer; None keeps a value. Without an id: the offer of this name, or a new one."""

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
    """Changes of an event; None keeps a value. `clear` names fields to empty."""

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
    # 0 removes the limit.
    per_customer_limit: int | None = None
    # As read: they cannot change.
    event_id: str | None = None
    status: Status | None = None


@dataclass(frozen=True, slots=True)
class ChangePlan:
    """The changed event, and the changes of stock that the ledger must accept first.

    `pool_fields` and `offer_fields` are the request's fields that `pools` and `offers` come from.
    """

    event: Event
    pools: tuple[PoolStock, ...]
    offers: tuple[OfferStock, ...]
    add_seats: Mapping[UUID, UUID]
    remove_seat_ids: tuple[UUID, ...]
    pool_fields: tuple[str, ...]
    offer_fields: tuple[str, ...]
    # None keeps the limit, 0 removes it.
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

    def with_request_fields(self, error: DomainError) -> DomainError:
        """The ledger's VALIDATION_FAILED with the field names of the client's request."""
        return invalid(
            *(
                FieldViolation(self._field(violation.field), violation.description)
                for violation in error.violations
            )
        )

    def _field(self, field: str) -> str:
        match = re.fullmatch(r"(pools|offers|add_seats|remove_seat_ids)\[(\d+)\](\.\w+)?", field)
        if match is None:
            return "event"
        name, index, rest = match[1], int(match[2]), match[3] or ""
        if name == "pools":
            return self.pool_fields[index] + rest
        if name == "offers":
            return self.offer_fields[index] + rest
        return f"event.{'add_seat_ids' if name == 'add_seats' else name}[{index}]"


def plan(
    event: Event,
    *,
    change: EventChange,
    seat_types: Mapping[UUID, str],
    limits: Limits,
    now: datetime,
    from_venue: Venue | None = None,
    to_venue: Venue | None = None,
) -> ChangePlan:
    """The plan of a change; `seat_types` are those of the seats of the new auditorium.

    `limits` are those of the event's currency. A price that stays is not checked again.
    If the auditorium changes, `from_venue` and `to_venue` are those of the old and the new one.

    Raises EVENT_STATE_INVALID for a cancelled event, or VALIDATION_FAILED with every violation.
    """
    if event.staff_status is StaffStatus.CANCELLED:
        raise DomainError(
            Reason.EVENT_STATE_INVALID, "the event is cancelled", status=StaffStatus.CANCELLED
        )
    violations = _fixed_fields(event, change)
    offers, fields = _offers(event, change, violations)
    changed = replace(_changed_fields(event, change), offers=offers)
    if to_venue is not None:
        changed = _at_venue(changed, change, from_venue, to_venue)
    violations += event_rules.violations(changed, fields)
    old_prices = {offer.offer_id: offer.price for offer in event.offers}
    violations += payability.price_violations(
        [
            (offer, field)
            for offer, field in zip(offers, fields, strict=True)
            if offer.price != old_prices.get(offer.offer_id)
        ],
        limits,
    )
    if violations:
        raise invalid(*violations)
    add_seats = _added_seats(event, changed, change, seat_types, fields)
    pools = _pools(event, changed, add_seats, fields)
    old_limits = {offer.offer_id: offer.per_customer_limit for offer in event.offers}
    offer_limits = [
        (OfferStock(offer.offer_id, offer.pool_id, offer.per_customer_limit), field)
        for offer, field in zip(offers, fields, strict=True)
        if old_limits.get(offer.offer_id) != offer.per_customer_limit
    ]
    return ChangePlan(
        event=replace(changed, revision=event.revision + 1, update_time=now),
        pools=tuple(pool for pool, _ in pools),
        offers=tuple(limit for limit, _ in offer_limits),
        add_seats=add_seats,
        remove_seat_ids=change.remove_seat_ids,
        pool_fields=tuple(field for _, field in pools),
        offer_fields=tuple(field for _, field in offer_limits),
        per_customer_limit=None
        if changed.per_customer_limit == event.per_customer_limit
        else changed.per_customer_limit or 0,
    )


def _fixed_fields(event: Event, change: EventChange) -> list[FieldViolation]:
    violations = []
    if change.auditorium_id not in (None, event.auditorium_id) and any(
        offer.seat_type for offer in event.offers
    ):
        violations.append(
            FieldViolation("event.auditorium_id", "cannot change while offers sell its seats")
        )
    if change.currency_code not in (None, event.currency_code):
        violations.append(FieldViolation("event.currency_code", "cannot change"))
    if change.event_id not in (None, str(event.event_id)):
        violations.append(FieldViolation("event.event_id", "must be the id of this event"))
    if change.status is not None and _staff_status(change.status) is not event.staff_status:
        violations.append(FieldViolation("event.status", "is changed by SetEventStatus only"))
    if change.add_seat_ids and (change.auditorium_id or event.auditorium_id) is None:
        violations.append(FieldViolation("event.add_seat_ids", "the event has no auditorium"))
    return violations


def _staff_status(status: Status) -> StaffStatus:
    """The staff's part of a status: the others change with the clock and the stock."""
    by_staff = {Status.DRAFT, Status.PAUSED, Status.CANCELLED}
    return StaffStatus(status) if status in by_staff else StaffStatus.OPEN


def _changed_fields(event: Event, change: EventChange) -> Event:
    """The changed event, with its offers as they were."""
    start = _pick(change, "start_time", change.start_time, event.start_time)
    sale_end = _pick(change, "sale_end_time", change.sale_end_time, event.sale_end_time)
    if change.sale_end_time is None and (
        "sale_end_time" in change.clear or event.sale_end_time == event.start_time
    ):
        # A sale that ends with the start moves with it.
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


def _at_venue(
    event: Event, change: EventChange, from_venue: Venue | None, to_venue: Venue
) -> Event:
    """The event in its new auditorium. A venue name that was the old venue's becomes the new one's."""
    is_default = change.venue_name is None and (
        event.venue_name is None or (from_venue and event.venue_name == from_venue.name)
    )
    return replace(
        event,
        auditorium_id=change.auditorium_id,
        venue_id=to_venue.venue_id,
        venue_name=to_venue.name if is_default else event.venue_name,
    )


def _pick(change: EventChange, field: str, new: _T | None, old: _T | None) -> _T | None:
    if new is not None:
        return new
    return None if field in change.clear else old


def _offers(
    event: Event, change: EventChange, violations: list[FieldViolation]
) -> tuple[tuple[Offer, ...], list[str]]:
    """The offers after the change, and the request's field of each."""
    offers = list(event.offers)
    fields = [f"event.offers[{offer.offer_id}]" for offer in offers]
    pools = {str(offer.pool_id): offer.pool_id for offer in offers}
    pool_of_type = {offer.seat_type: offer.pool_id for offer in offers if offer.seat_type}
    changed: set[int] = set()
    for position, offer_change in enumerate(change.offers):
        field = f"event.offers[{position}]"
        index = _index_of(offers, offer_change)
        if index is not None:
            if index in changed:
                violations.append(FieldViolation(f"{field}.offer_id", "occurs twice"))
            offers[index] = _changed_offer(offers[index], offer_change, field, violations)
            fields[index] = field
            changed.add(index)
        elif offer_change.offer_id is not None:
            violations.append(FieldViolation(f"{field}.offer_id", "the event has no such offer"))
        elif offer_change.name is None or offer_change.price is None:
            missing = "name" if offer_change.name is None else "price"
            violations.append(FieldViolation(f"{field}.{missing}", "is required for a new offer"))
        else:
            pool_id = pool_of_type.get(offer_change.seat_type or "")
            if offer_change.pool or pool_id is None:
                pool_id = pools.setdefault(offer_change.pool or f"offer {position}", new_id())
            if offer_change.seat_type is not None:
                pool_of_type.setdefault(offer_change.seat_type, pool_id)
            offers.append(
                Offer(
                    new_id(),
                    offer_change.name,
                    offer_change.price,
                    pool_id,
                    offer_change.capacity,
                    offer_change.seat_type,
                    offer_change.per_customer_limit or DEFAULT_LIMIT,
                    offer_change.max_per_booking or DEFAULT_LIMIT,
                )
            )
            fields.append(field)
            changed.add(len(offers) - 1)
    return tuple(offers), fields


def _index_of(offers: list[Offer], change: OfferChange) -> int | None:
    for index, offer in enumerate(offers):
        if change.offer_id == offer.offer_id or (
            change.offer_id is None and change.name == offer.name
        ):
            return index
    return None


def _changed_offer(
    offer: Offer, change: OfferChange, field: str, violations: list[FieldViolation]
) -> Offer:
    if change.pool not in (None, "", str(offer.pool_id)):
        violations.append(FieldViolation(f"{field}.pool_id", "cannot change"))
    if change.seat_type not in (None, offer.seat_type):
        violations.append(FieldViolation(f"{field}.seat_type", "cannot change"))
    return replace(
        offer,
        name=change.name or offer.name,
        price=change.price or offer.price,
        capacity=offer.capacity if change.capacity is None else change.capacity,
        per_customer_limit=change.per_customer_limit or offer.per_customer_limit,
        max_per_booking=change.max_per_booking or offer.max_per_booking,
    )


def _added_seats(
    event: Event,
    changed: Event,
    change: EventChange,
    seat_types: Mapping[UUID, str],
    fields: list[str],
) -> dict[UUID, UUID]:
    """The first offer of each added seat's type: the requested seats, then those of new types."""
    violations = []
    sellers: dict[str, UUID] = {}
    for offer in changed.offers:
        if offer.seat_type is not None:
            sellers.setdefault(offer.seat_type, offer.offer_id)
    requested: dict[UUID, UUID] = {}
    for index, seat_id in enumerate(change.add_seat_ids):
        offer_id = sellers.get(seat_types.get(seat_id, ""))
        if offer_id is None:
            violations.append(
                FieldViolation(
                    f"event.add_seat_ids[{index}]", "no offer of the event sells this seat"
                )
            )
        else:
            requested[seat_id] = offer_id
    old_types = {offer.seat_type for offer in event.offers}
    new_offers = [
        (offer, field)
        for offer, field in zip(changed.offers, fields, strict=True)
        if offer.seat_type not in old_types
    ]
    seats, missing = event_rules.assign_seats(new_offers, seat_types)
    if violations := violations + missing:
        raise invalid(*violations)
    return requested | seats


def _pools(
    event: Event, changed: Event, add_seats: Mapping[UUID, UUID], fields: list[str]
) -> list[tuple[PoolStock, str]]:
    """New pools and changed capacities, with the request's field of each.

    The ledger counts the places of a pool with seats itself.
    """
    old_capacities = {offer.pool_id: offer.capacity for offer in event.offers if offer.capacity}
    known = {offer.pool_id for offer in event.offers}
    pool_of = {offer.offer_id: offer.pool_id for offer in changed.offers}
    seat_counts = Counter(pool_of[offer_id] for offer_id in add_seats.values())
    pools = []
    for offer, field in zip(changed.offers, fields, strict=True):
        if offer.seat_type is not None:
            if offer.pool_id not in known:
                pools.append((PoolStock(offer.pool_id, seat_counts[offer.pool_id]), field))
            known.add(offer.pool_id)
        elif offer.capacity is not None and old_capacities.get(offer.pool_id) != offer.capacity:
            pools.append((PoolStock(offer.pool_id, offer.capacity), field))
    return pools
