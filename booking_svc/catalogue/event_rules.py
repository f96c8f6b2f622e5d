"""Rules for the fields of an event, the same for a new event and a changed one.

Which fields may change belongs to event_update.py; the database refuses overlapping showtimes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from uuid import UUID

from booking_svc.catalogue import payability, time_zones
from booking_svc.catalogue.events import Event, Offer
from mesh.errors import FieldViolation


def violations(event: Event, offer_fields: Sequence[str]) -> list[FieldViolation]:
    """Fields of an event that are unknown or contradict each other.

    `offer_fields` are the offers' fields in the request, e.g. `event.offers[0]`.
    """
    offers = list(zip(event.offers, offer_fields, strict=True))
    return [
        *_times(event),
        *_prices(event, offers),
        *_seated_offers(event, offers),
        *_pool_capacities(offers),
    ]


def assign_seats(
    offers: Sequence[tuple[Offer, str]], seat_types: Mapping[UUID, str]
) -> tuple[dict[UUID, UUID], list[FieldViolation]]:
    """The first offer of each seat's type, by seat id, and a violation for each offer without seats.

    `offers` come with their fields in the request, `seat_types` are those of the auditorium. The
    ledger takes a seat's pool from the offer: all offers of the pool sell it.
    """
    sellers: dict[str, UUID] = {}
    for offer, _ in offers:
        if offer.seat_type is not None:
            sellers.setdefault(offer.seat_type, offer.offer_id)
    existing_types = set(seat_types.values())
    missing = [
        FieldViolation(f"{field}.seat_type", "the auditorium has no seats of this type")
        for offer, field in offers
        if offer.seat_type is not None and offer.seat_type not in existing_types
    ]
    seats = {
        seat_id: sellers[seat_type]
        for seat_id, seat_type in seat_types.items()
        if seat_type in sellers
    }
    return seats, missing


def _times(event: Event) -> Iterator[FieldViolation]:
    if event.time_zone:
        yield from time_zones.violations("event.time_zone", event.time_zone)
    if event.end_time is not None:
        if event.start_time is None:
            yield FieldViolation("event.start_time", "is required with `end_time`")
        elif event.end_time <= event.start_time:
            yield FieldViolation("event.end_time", "must be after `start_time`")
    if event.auditorium_id is not None and (event.start_time is None or event.end_time is None):
        yield FieldViolation("event.start_time", "is required in an auditorium, with `end_time`")
    if event.sale_end_time is not None and event.sale_end_time <= event.sale_start_time:
        yield FieldViolation("event.sale_start_time", "must be before the end of the sale")
    if (
        event.sale_end_time is not None
        and event.end_time is not None
        and event.sale_end_time > event.end_time
        # A sale that ends with the start is in order when the start is.
        and event.sale_end_time != event.start_time
    ):
        yield FieldViolation("event.sale_end_time", "must not be after `end_time`")


def _prices(event: Event, offers: Iterable[tuple[Offer, str]]) -> Iterator[FieldViolation]:
    yield from payability.currency_violations("event.currency_code", event.currency_code)
    for offer, field in offers:
        if offer.price.currency_code != event.currency_code:
            yield FieldViolation(f"{field}.price.currency_code", f"must be {event.currency_code}")


def _seated_offers(event: Event, offers: Iterable[tuple[Offer, str]]) -> Iterator[FieldViolation]:
    """Offers with the same seat type share the pool of its seats, which each of them sells."""
    sellers: dict[str, tuple[str, UUID]] = {}
    names: dict[tuple[str, str], str] = {}
    for offer, field in offers:
        if offer.seat_type is None:
            continue
        namesake = names.setdefault((offer.seat_type, offer.name.casefold()), field)
        if namesake != field:
            yield FieldViolation(
                f"{field}.name", f"must not be that of `{namesake}`, which sells the same seats"
            )
        if offer.capacity is not None:
            yield FieldViolation(
                f"{field}.capacity", "must be empty with a `seat_type`: the seats are the places"
            )
        if event.auditorium_id is None:
            yield FieldViolation("event.auditorium_id", "is required by offers with a `seat_type`")
        seller, pool_id = sellers.setdefault(offer.seat_type, (field, offer.pool_id))
        if offer.pool_id != pool_id:
            yield FieldViolation(
                f"{field}.pool_id", f"must be that of `{seller}`, which sells the same seats"
            )


def _pool_capacities(offers: Sequence[tuple[Offer, str]]) -> Iterator[FieldViolation]:
    """A pool without seats gets its capacity from exactly one of its offers."""
    seated = {offer.pool_id for offer, _ in offers if offer.seat_type is not None}
    unseated = [(offer, field) for offer, field in offers if offer.seat_type is None]
    sources: dict[UUID, str] = {}
    for offer, field in unseated:
        if offer.capacity is not None:
            source = sources.setdefault(offer.pool_id, field)
            if source != field:
                yield FieldViolation(
                    f"{field}.capacity", f"the pool has its capacity from `{source}`"
                )
    for offer, field in unseated:
        if offer.pool_id not in sources:
            yield FieldViolation(f"{field}.capacity", "is required without a `seat_type`")
        if offer.pool_id in seated:
            yield FieldViolation(f"{field}.pool_id", "must not be a pool of seats")
