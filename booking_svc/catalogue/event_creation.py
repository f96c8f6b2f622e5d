"""Plans of new events: what is asked for is checked and gets its ids. Writes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import cancellation_policy, time_zones, venues
from booking_svc.catalogue.cancellation_policy import Policy
from booking_svc.catalogue.events import Event, Offer, StaffStatus
from booking_svc.catalogue.tables import auditoriums
from booking_svc.catalogue.tables import venues as venues_table
from booking_svc.clients.ports import Availability, OfferStock, PoolStock
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id
from mesh.money import Money

DEFAULT_CURRENCY = "INR"
DEFAULT_TIME_ZONE = "UTC"
DEFAULT_LIMIT = 10


@dataclass(frozen=True, slots=True)
class NewOffer:
    """An offer as it is asked for. `pool` is any name; offers with the same one share places."""

    name: str
    price: Money
    pool: str
    capacity: int | None
    seat_type: str | None
    per_customer_limit: int
    max_per_booking: int


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event as it is asked for."""

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
    # Over all offers; None is no limit.
    per_customer_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A new event with the stock that the ledger must know before it is on sale."""

    event: Event
    pools: tuple[PoolStock, ...]
    offers: tuple[OfferStock, ...]
    seats: Mapping[UUID, UUID]

    def capacities(self) -> dict[UUID, int]:
        return {pool.pool_id: pool.capacity for pool in self.pools}

    def availability(self) -> Availability:
        """What is left of it before the first booking."""
        capacities = self.capacities()
        return Availability(
            version=0,
            offers={offer.offer_id: capacities[offer.pool_id] for offer in self.offers},
            seats={},
            capacity=self.event.total_capacity,
            available=self.event.total_capacity,
        )


async def plan(connection: AsyncConnection, *, new: NewEvent, now: datetime) -> Plan:
    """Checks a new event and gives it its ids; writes nothing.

    Raises VALIDATION_FAILED that names every fault, or AUDITORIUM_NOT_FOUND.
    """
    if found := faults(new):
        raise invalid(*found)
    seat_types: Mapping[UUID, str] = {}
    venue_id: UUID | None = None
    venue_name, time_zone = new.venue_name, new.time_zone
    if new.auditorium_id is not None:
        venue_id, name, zone = await _venue_of(connection, auditorium_id=new.auditorium_id)
        venue_name, time_zone = venue_name or name, time_zone or zone
        seat_types = await venues.seat_types(connection, auditorium_id=new.auditorium_id)
    pool_ids = {offer.pool: new_id() for offer in new.offers}
    planned = tuple(_offer(offer, pool_ids[offer.pool]) for offer in new.offers)
    seats = _assign_seats(planned, seat_types)
    pools = _pools(planned, seats)
    event = Event(
        event_id=new_id(),
        name=new.name,
        description=new.description,
        production_id=new.production_id,
        auditorium_id=new.auditorium_id,
        venue_id=venue_id,
        venue_name=venue_name,
        time_zone=time_zone or DEFAULT_TIME_ZONE,
        start_time=new.start_time,
        end_time=new.end_time,
        sale_start_time=new.sale_start_time,
        sale_end_time=new.sale_end_time or new.start_time,
        staff_status=StaffStatus.DRAFT if new.is_draft else StaffStatus.OPEN,
        currency_code=new.currency_code,
        offers=planned,
        cancellation_policy=new.cancellation_policy
        or cancellation_policy.standard(is_dated=new.start_time is not None),
        total_capacity=sum(pool.capacity for pool in pools),
        revision=1,
        create_time=now,
        update_time=now,
        per_customer_limit=new.per_customer_limit,
    )
    stock = tuple(
        OfferStock(offer.offer_id, offer.pool_id, offer.per_customer_limit) for offer in planned
    )
    return Plan(event, pools, stock, seats)


async def _venue_of(connection: AsyncConnection, *, auditorium_id: UUID) -> tuple[UUID, str, str]:
    found = await connection.execute(
        sa.select(venues_table.c.venue_id, venues_table.c.name, venues_table.c.time_zone)
        .join(auditoriums, auditoriums.c.venue_id == venues_table.c.venue_id)
        .where(auditoriums.c.auditorium_id == auditorium_id)
    )
    row = found.one_or_none()
    if row is None:
        raise DomainError(
            Reason.AUDITORIUM_NOT_FOUND, "no such auditorium", auditorium_id=auditorium_id
        )
    return row.venue_id, row.name, row.time_zone


def faults(new: NewEvent) -> list[FieldViolation]:
    """Everything that contradicts itself in an event."""
    faults = []
    if new.time_zone:
        faults += time_zones.violations("event.time_zone", new.time_zone)
    if new.end_time is not None and new.start_time is None:
        faults.append(FieldViolation("event.start_time", "is required with `end_time`"))
    if new.end_time is not None and new.start_time is not None and new.end_time <= new.start_time:
        faults.append(FieldViolation("event.end_time", "must be after `start_time`"))
    if new.auditorium_id is not None and (new.start_time is None or new.end_time is None):
        faults.append(
            FieldViolation("event.start_time", "is required in an auditorium, with `end_time`")
        )
    sale_end = new.sale_end_time or new.start_time
    if sale_end is not None and sale_end <= new.sale_start_time:
        faults.append(FieldViolation("event.sale_start_time", "must be before the end of the sale"))
    if new.sale_end_time and new.end_time and new.sale_end_time > new.end_time:
        faults.append(FieldViolation("event.sale_end_time", "must not be after `end_time`"))
    return faults + _offer_faults(new)


def _offer_faults(new: NewEvent) -> list[FieldViolation]:
    faults = []
    sized: dict[str, int] = {}
    seat_types: dict[str, int] = {}
    for index, offer in enumerate(new.offers):
        field = f"event.offers[{index}]"
        if offer.price.currency_code != new.currency_code:
            faults.append(
                FieldViolation(f"{field}.price.currency_code", f"must be {new.currency_code}")
            )
        if offer.seat_type is not None:
            if offer.capacity is not None:
                faults.append(
                    FieldViolation(f"{field}.capacity", "a seated offer's places are its seats")
                )
            if new.auditorium_id is None:
                faults.append(
                    FieldViolation(
                        "event.auditorium_id", "is required by offers with a `seat_type`"
                    )
                )
            first = seat_types.setdefault(offer.seat_type, index)
            if first != index:
                faults.append(
                    FieldViolation(
                        f"{field}.seat_type", f"these seats are sold by `offers[{first}]` already"
                    )
                )
        elif offer.capacity is not None:
            first = sized.setdefault(offer.pool, index)
            if first != index:
                faults.append(
                    FieldViolation(
                        f"{field}.capacity", f"the pool has its capacity from `offers[{first}]`"
                    )
                )
    seated = {offer.pool for offer in new.offers if offer.seat_type is not None}
    for index, offer in enumerate(new.offers):
        if offer.seat_type is None and offer.pool not in sized:
            faults.append(
                FieldViolation(
                    f"event.offers[{index}].capacity", "neither `capacity` nor `seat_type`"
                )
            )
        if offer.seat_type is None and offer.pool in seated:
            faults.append(FieldViolation(f"event.offers[{index}].pool_id", "the pool has seats"))
    return faults


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


def _assign_seats(
    planned: tuple[Offer, ...], seat_types: Mapping[UUID, str]
) -> Mapping[UUID, UUID]:
    """The offer that sells each seat; every seated offer must have some."""
    by_type = {offer.seat_type: offer.offer_id for offer in planned if offer.seat_type is not None}
    present = set(seat_types.values())
    faults = [
        FieldViolation(f"event.offers[{index}].seat_type", "the auditorium has no such seats")
        for index, offer in enumerate(planned)
        if offer.seat_type is not None and offer.seat_type not in present
    ]
    if faults:
        raise invalid(*faults)
    return {seat: by_type[kind] for seat, kind in seat_types.items() if kind in by_type}


def _pools(planned: tuple[Offer, ...], seats: Mapping[UUID, UUID]) -> tuple[PoolStock, ...]:
    capacity: dict[UUID, int] = {}
    for offer in planned:
        own = offer.capacity or sum(1 for sold_by in seats.values() if sold_by == offer.offer_id)
        capacity[offer.pool_id] = capacity.get(offer.pool_id, 0) + own
    return tuple(PoolStock(pool_id, places) for pool_id, places in capacity.items())
