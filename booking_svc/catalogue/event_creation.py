"""Plans of new events: checks the requested fields and assigns ids. Writes nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import cancellation_policy, event_rules, payability, venues
from booking_svc.catalogue.cancellation_policy import Policy
from booking_svc.catalogue.events import Event, Offer, StaffStatus
from booking_svc.clients.ports import Availability, Limits, OfferStock, PoolStock
from mesh.errors import FieldViolation, invalid
from mesh.ids import new_id
from mesh.money import Money

DEFAULT_CURRENCY = "INR"
DEFAULT_TIME_ZONE = "UTC"
DEFAULT_LIMIT = 10


@dataclass(frozen=True, slots=True)
class NewOffer:
    """A requested offer. `pool` is any name: offers with the same name share a pool.

    Without one, an offer of seats shares the pool of its seat type, and any other has its own.
    """

    name: str
    price: Money
    pool: str | None
    capacity: int | None
    seat_type: str | None
    per_customer_limit: int
    max_per_booking: int


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A requested event."""

    name: str
    description: str
    production_id: UUID | None
    auditorium_id: UUID | None
    venue_name: str | None
    time_zone: str
    start_time: datetime | None
    end_time: datetime | None
    sale_start_time: datetime
    sale_end_time: datetime | None
    currency_code: str
    offers: tuple[NewOffer, ...]
    cancellation_policy: Policy | None
    is_draft: bool = False
    # Across all offers; None means no limit.
    per_customer_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A new event, and the stock that the ledger needs before the sale. `seats` maps seats to offers."""

    event: Event
    pools: tuple[PoolStock, ...]
    offers: tuple[OfferStock, ...]
    seats: Mapping[UUID, UUID]

    def capacities(self) -> dict[UUID, int]:
        return {pool.pool_id: pool.capacity for pool in self.pools}

    def availability(self) -> Availability:
        """The availability before the first booking."""
        capacities = self.capacities()
        return Availability(
            version=0,
            offers={offer.offer_id: capacities[offer.pool_id] for offer in self.offers},
            seats={},
            capacity=self.event.total_capacity,
            available=self.event.total_capacity,
        )


def violations(new: NewEvent) -> list[FieldViolation]:
    """What can be said about a requested event from its fields alone."""
    # No rule depends on the present.
    event = _event(new, new.sale_start_time)
    return event_rules.violations(event, _offer_fields(new))


async def plan(
    connection: AsyncConnection, *, new: NewEvent, limits: Limits, now: datetime
) -> Plan:
    """The plan of a requested event. `limits` are those of the event's currency.

    Raises VALIDATION_FAILED with every violation, or AUDITORIUM_NOT_FOUND.
    """
    event = _event(new, now)
    offer_fields = _offer_fields(new)
    priced = list(zip(event.offers, offer_fields, strict=True))
    refused = [
        *event_rules.violations(event, offer_fields),
        *payability.price_violations(priced, limits),
    ]
    if refused:
        raise invalid(*refused)
    seat_types: Mapping[UUID, str] = {}
    if new.auditorium_id is not None:
        event = await _at_venue(connection, event, new.auditorium_id)
        seat_types = await venues.seat_types(connection, auditorium_id=new.auditorium_id)
    seats, missing = event_rules.assign_seats(
        list(zip(event.offers, offer_fields, strict=True)), seat_types
    )
    if missing:
        raise invalid(*missing)
    pools = _pools(event.offers, seats)
    return Plan(
        replace(
            event,
            time_zone=event.time_zone or DEFAULT_TIME_ZONE,
            total_capacity=sum(pool.capacity for pool in pools),
        ),
        pools,
        tuple(
            OfferStock(offer.offer_id, offer.pool_id, offer.per_customer_limit)
            for offer in event.offers
        ),
        seats,
    )


def _offer_fields(new: NewEvent) -> list[str]:
    return [f"event.offers[{index}]" for index in range(len(new.offers))]


def _event(new: NewEvent, now: datetime) -> Event:
    """The event without what its venue and its seats add."""
    pools = _pool_names(new.offers)
    pool_ids = {pool: new_id() for pool in pools}
    return Event(
        event_id=new_id(),
        name=new.name,
        description=new.description,
        production_id=new.production_id,
        auditorium_id=new.auditorium_id,
        venue_id=None,
        venue_name=new.venue_name,
        time_zone=new.time_zone,
        start_time=new.start_time,
        end_time=new.end_time,
        sale_start_time=new.sale_start_time,
        sale_end_time=new.sale_end_time or new.start_time,
        staff_status=StaffStatus.DRAFT if new.is_draft else StaffStatus.OPEN,
        currency_code=new.currency_code,
        offers=tuple(
            _offer(offer, pool_ids[pool]) for offer, pool in zip(new.offers, pools, strict=True)
        ),
        cancellation_policy=new.cancellation_policy
        or cancellation_policy.standard(is_dated=new.start_time is not None),
        total_capacity=0,
        revision=1,
        create_time=now,
        update_time=now,
        per_customer_limit=new.per_customer_limit,
    )


def _pool_names(offers: Sequence[NewOffer]) -> list[str]:
    """The name of each offer's pool, which only this request knows."""
    of_seats: dict[str | None, str] = {
        offer.seat_type: offer.pool for offer in reversed(offers) if offer.seat_type and offer.pool
    }
    return [
        offer.pool
        or of_seats.get(offer.seat_type)
        or (f"seats {offer.seat_type}" if offer.seat_type else f"offer {index}")
        for index, offer in enumerate(offers)
    ]


def _offer(new: NewOffer, pool_id: UUID) -> Offer:
    return Offer(
        offer_id=new_id(),
        name=new.name,
        price=new.price,
        pool_id=pool_id,
        capacity=new.capacity,
        seat_type=new.seat_type,
        per_customer_limit=new.per_customer_limit or DEFAULT_LIMIT,
        max_per_booking=new.max_per_booking or DEFAULT_LIMIT,
    )


async def _at_venue(connection: AsyncConnection, event: Event, auditorium_id: UUID) -> Event:
    """The event at its auditorium's venue, with the venue's name and time zone as defaults."""
    venue = await venues.venue_of(connection, auditorium_id=auditorium_id)
    return replace(
        event,
        venue_id=venue.venue_id,
        venue_name=event.venue_name or venue.name,
        time_zone=event.time_zone or venue.time_zone,
    )


def _pools(offers: tuple[Offer, ...], seats: Mapping[UUID, UUID]) -> tuple[PoolStock, ...]:
    seat_counts = Counter(seats.values())
    capacities: Counter[UUID] = Counter()
    for offer in offers:
        capacities[offer.pool_id] += offer.capacity or seat_counts[offer.offer_id]
    return tuple(PoolStock(pool_id, capacity) for pool_id, capacity in capacities.items())
