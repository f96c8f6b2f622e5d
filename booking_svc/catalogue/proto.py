"""Conversions between the catalogue's values and the contract's messages. No business rules."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from booking_svc.catalogue import cancellation_policy, seat_states
from booking_svc.catalogue.availability import EventStock
from booking_svc.catalogue.availability_stream import Update
from booking_svc.catalogue.event_cancellations import Progress
from booking_svc.catalogue.event_creation import DEFAULT_CURRENCY, NewEvent, NewOffer
from booking_svc.catalogue.event_listing import Filters
from booking_svc.catalogue.event_moves import Schedule
from booking_svc.catalogue.event_update import EventChange, OfferChange
from booking_svc.catalogue.events import Event, Status
from booking_svc.catalogue.personal import Limits, Personal
from booking_svc.catalogue.productions import Production
from booking_svc.catalogue.search_results import EventResult, ProductionResult, Result
from booking_svc.catalogue.venues import Auditorium, Row, Seat, SeatChange, Venue
from booking_svc.clients.ports import Availability
from boxoffice.catalogue.v1 import (
    catalogue_event_pb2,
    event_pb2,
    event_service_pb2,
    production_pb2,
    search_service_pb2,
    venue_pb2,
)
from mesh.conversions import (
    given,
    id_to_proto,
    money_to_proto,
    time_from_proto,
    time_to_proto,
)
from mesh.ids import new_id
from mesh.money import Money

_POLICIES = 1_000


def venue(value: Venue) -> venue_pb2.Venue:
    return venue_pb2.Venue(
        venue_id=str(value.venue_id),
        name=value.name,
        time_zone=value.time_zone,
        address=value.address,
        create_time=time_to_proto(value.create_time),
        update_time=time_to_proto(value.update_time),
        delete_time=time_to_proto(value.delete_time),
    )


def production(value: Production) -> production_pb2.Production:
    return production_pb2.Production(
        production_id=str(value.production_id),
        title=value.title,
        description=value.description,
        duration_minutes=value.duration_minutes,
        poster_url=value.poster_url,
        age_rating=value.age_rating,
        language=value.language,
        tags=value.tags,
        create_time=time_to_proto(value.create_time),
        update_time=time_to_proto(value.update_time),
        delete_time=time_to_proto(value.delete_time),
    )


_PRODUCTION_TEXTS = ("title", "description", "poster_url", "age_rating", "language")


def production_values(message: production_pb2.Production) -> dict[str, Any]:
    """The fields of a new production that staff set, by name."""
    return {
        **{name: getattr(message, name) for name in _PRODUCTION_TEXTS},
        "duration_minutes": message.duration_minutes
        if message.HasField("duration_minutes")
        else None,
        "tags": list(message.tags),
    }


def changed_production_values(message: production_pb2.ProductionChange) -> dict[str, Any]:
    """The new values of the fields that change, by name."""
    values = {field.name: value for field, value in message.ListFields()}
    values.pop("clear", None)
    if message.tags:
        values["tags"] = list(message.tags)
    empty = production_values(production_pb2.Production())
    return {name: empty[name] for name in message.clear} | values


def search_result(value: Result) -> search_service_pb2.SearchResult:
    if isinstance(value, EventResult):
        return search_service_pb2.SearchResult(
            event=search_service_pb2.EventSummary(
                event_id=str(value.event_id),
                name=value.name,
                production_id=id_to_proto(value.production_id),
                venue_name=value.venue_name,
                time_zone=value.time_zone,
                start_time=time_to_proto(value.start_time),
                end_time=time_to_proto(value.end_time),
                status=event_pb2.Event.Status.Value(value.status),
            )
        )
    if isinstance(value, ProductionResult):
        return search_service_pb2.SearchResult(
            production=search_service_pb2.ProductionSummary(
                production_id=str(value.production_id),
                title=value.title,
                duration_minutes=value.duration_minutes,
                poster_url=value.poster_url,
                age_rating=value.age_rating,
                language=value.language,
            )
        )
    return search_service_pb2.SearchResult(
        venue=search_service_pb2.VenueSummary(
            venue_id=str(value.venue_id),
            name=value.name,
            time_zone=value.time_zone,
            address=value.address,
        )
    )


def auditorium(value: Auditorium) -> venue_pb2.Auditorium:
    return venue_pb2.Auditorium(
        auditorium_id=str(value.auditorium_id),
        venue_id=str(value.venue_id),
        name=value.name,
        rows=map(row, value.rows),
        seat_count=value.seat_count,
        create_time=time_to_proto(value.create_time),
        update_time=time_to_proto(value.update_time),
        delete_time=time_to_proto(value.delete_time),
    )


def row(value: Row) -> venue_pb2.Row:
    return venue_pb2.Row(label=value.label, seats=map(seat, value.seats), section=value.section)


def seat(value: Seat) -> venue_pb2.Seat:
    return venue_pb2.Seat(
        seat_id=str(value.seat_id),
        number=value.number,
        seat_type=venue_pb2.Seat.Type.Value(value.seat_type),
        x=value.x,
        y=value.y,
        is_active=value.is_active,
        price_modifier=value.price_modifier,
    )


def to_seat_change(message: venue_pb2.SeatChange) -> SeatChange:
    return SeatChange(
        UUID(message.seat_id),
        message.is_active if message.HasField("is_active") else None,
        message.x if message.HasField("x") else None,
        message.y if message.HasField("y") else None,
    )


def to_row(message: venue_pb2.Row) -> Row:
    """A requested row; its seats get new ids."""
    return Row(
        message.label,
        tuple(
            Seat(
                new_id(),
                seat.number,
                venue_pb2.Seat.Type.Name(seat.seat_type),
                seat.x if seat.HasField("x") else None,
                seat.y if seat.HasField("y") else None,
                seat.is_active if seat.HasField("is_active") else True,
                seat.price_modifier,
            )
            for seat in message.seats
        ),
        message.section,
    )


def to_new_event(message: event_pb2.Event) -> NewEvent:
    return NewEvent(
        name=message.name,
        description=message.description,
        production_id=UUID(message.production_id) if message.HasField("production_id") else None,
        auditorium_id=UUID(message.auditorium_id) if message.HasField("auditorium_id") else None,
        venue_name=message.venue_name if message.HasField("venue_name") else None,
        time_zone=message.time_zone,
        start_time=time_from_proto(message.start_time) if message.HasField("start_time") else None,
        end_time=time_from_proto(message.end_time) if message.HasField("end_time") else None,
        sale_start_time=time_from_proto(message.sale_start_time),
        sale_end_time=time_from_proto(message.sale_end_time)
        if message.HasField("sale_end_time")
        else None,
        currency_code=message.currency_code or DEFAULT_CURRENCY,
        offers=tuple(
            NewOffer(
                name=offer.name,
                price=Money(offer.price.amount_minor, offer.price.currency_code),
                pool=offer.pool_id or None,
                capacity=offer.capacity if offer.HasField("capacity") else None,
                seat_type=venue_pb2.Seat.Type.Name(offer.seat_type)
                if offer.HasField("seat_type")
                else None,
                per_customer_limit=offer.per_customer_limit,
                max_per_booking=offer.max_per_booking,
            )
            for offer in message.offers
        ),
        cancellation_policy=_to_policy(message.cancellation_policy)
        if message.HasField("cancellation_policy")
        else None,
        is_draft=message.status == event_pb2.Event.DRAFT,
        per_customer_limit=message.per_customer_limit or None,
    )


def to_change(message: event_pb2.EventChange) -> EventChange:
    given: Callable[[Any], bool] = message.HasField
    return EventChange(
        name=message.name if given("name") else None,
        description=message.description if given("description") else None,
        production_id=UUID(message.production_id) if given("production_id") else None,
        auditorium_id=UUID(message.auditorium_id) if given("auditorium_id") else None,
        venue_name=message.venue_name if given("venue_name") else None,
        time_zone=message.time_zone if given("time_zone") else None,
        start_time=time_from_proto(message.start_time) if given("start_time") else None,
        end_time=time_from_proto(message.end_time) if given("end_time") else None,
        sale_start_time=time_from_proto(message.sale_start_time)
        if given("sale_start_time")
        else None,
        sale_end_time=time_from_proto(message.sale_end_time) if given("sale_end_time") else None,
        currency_code=message.currency_code if given("currency_code") else None,
        offers=tuple(_to_offer_change(offer) for offer in message.offers),
        cancellation_policy=_to_policy(message.cancellation_policy)
        if given("cancellation_policy")
        else None,
        add_seat_ids=tuple(map(UUID, message.add_seat_ids)),
        remove_seat_ids=tuple(map(UUID, message.remove_seat_ids)),
        clear=frozenset(message.clear),
        per_customer_limit=message.per_customer_limit if given("per_customer_limit") else None,
        event_id=message.event_id.lower() if given("event_id") else None,
        status=Status(event_pb2.Event.Status.Name(message.status)) if message.status else None,
    )


def _to_offer_change(message: event_pb2.OfferChange) -> OfferChange:
    given: Callable[[Any], bool] = message.HasField
    return OfferChange(
        offer_id=UUID(message.offer_id) if given("offer_id") else None,
        name=message.name if given("name") else None,
        price=Money(message.price.amount_minor, message.price.currency_code)
        if given("price")
        else None,
        pool=message.pool_id if given("pool_id") else None,
        capacity=message.capacity if given("capacity") else None,
        seat_type=venue_pb2.Seat.Type.Name(message.seat_type) if given("seat_type") else None,
        per_customer_limit=message.per_customer_limit if given("per_customer_limit") else None,
        max_per_booking=message.max_per_booking if given("max_per_booking") else None,
    )


def cancellation_progress(value: Progress) -> event_service_pb2.EventCancellation:
    return event_service_pb2.EventCancellation(
        event_id=str(value.event_id),
        state=event_service_pb2.EventCancellation.State.Value(value.state),
        reason=value.reason,
        bookings_found=value.bookings_found,
        bookings_cancelled=value.bookings_cancelled,
        bookings_left=value.bookings_left,
        refunds_pending=value.refunds_pending,
        refunds_processed=value.refunds_processed,
        refunds_failed=value.refunds_failed,
        refunded=money_to_proto(value.refunded),
        start_time=time_to_proto(value.start_time),
        finish_time=time_to_proto(value.finish_time),
    )


def to_filters(request: event_service_pb2.ListEventsRequest) -> Filters:
    return Filters(
        status=to_status(request.status) if request.status else None,
        starts_after=time_from_proto(request.starts_after)
        if request.HasField("starts_after")
        else None,
        starts_before=time_from_proto(request.starts_before)
        if request.HasField("starts_before")
        else None,
        production_id=UUID(request.production_id) if request.HasField("production_id") else None,
        venue_id=UUID(request.venue_id) if request.HasField("venue_id") else None,
        query=request.query,
    )


def to_status(status: event_pb2.Event.Status.ValueType) -> Status:
    return Status(event_pb2.Event.Status.Name(status))


def event(value: Event, stock: Availability, now: datetime) -> event_pb2.Event:
    return event_pb2.Event(
        event_id=str(value.event_id),
        name=value.name,
        description=value.description,
        production_id=id_to_proto(value.production_id),
        auditorium_id=id_to_proto(value.auditorium_id),
        venue_id=id_to_proto(value.venue_id),
        venue_name=value.venue_name,
        time_zone=value.time_zone,
        start_time=time_to_proto(value.start_time),
        end_time=time_to_proto(value.end_time),
        sale_start_time=time_to_proto(value.sale_start_time),
        sale_end_time=time_to_proto(value.sale_end_time),
        status=event_pb2.Event.Status.Value(value.status_at(now, available=stock.available)),
        currency_code=value.currency_code,
        offers=[
            event_pb2.Offer(
                offer_id=str(offer.offer_id),
                name=offer.name,
                price=money_to_proto(offer.price),
                pool_id=str(offer.pool_id),
                capacity=offer.capacity,
                seat_type=None
                if offer.seat_type is None
                else venue_pb2.Seat.Type.Value(offer.seat_type),
                per_customer_limit=offer.per_customer_limit,
                max_per_booking=offer.max_per_booking,
                available=stock.offers.get(offer.offer_id, 0),
            )
            for offer in value.offers
        ],
        cancellation_policy=policy(value.cancellation_policy),
        total_capacity=stock.capacity,
        available=stock.available,
        create_time=time_to_proto(value.create_time),
        update_time=time_to_proto(value.update_time),
        etag=value.etag,
        per_customer_limit=value.per_customer_limit or 0,
        delete_time=time_to_proto(value.delete_time),
        has_waiting_room=value.has_waiting_room,
    )


def limits(messages: Iterable[event_pb2.Event]) -> list[Limits]:
    """The purchase limits in answers."""
    return [
        Limits(
            UUID(message.event_id),
            {UUID(offer.offer_id): offer.per_customer_limit for offer in message.offers},
            message.per_customer_limit or None,
        )
        for message in messages
    ]


def add_personal(messages: Sequence[event_pb2.Event], values: Sequence[Personal]) -> None:
    """Adds to answers what the events are to their caller; what is not known stays unset."""
    for message, value in zip(messages, values, strict=True):
        if value.is_favourite is not None:
            message.is_favourite = value.is_favourite
        if value.remaining is not None:
            for offer in message.offers:
                offer.remaining_for_you = value.remaining[UUID(offer.offer_id)]


def schedule(value: Schedule) -> catalogue_event_pb2.EventSchedule:
    return catalogue_event_pb2.EventSchedule(
        start_time=time_to_proto(value.start_time),
        end_time=time_to_proto(value.end_time),
        venue_name=value.venue_name,
        auditorium_id=id_to_proto(value.auditorium_id),
        auditorium_name=value.auditorium_name,
    )


def to_schedule(message: catalogue_event_pb2.EventSchedule) -> Schedule:
    return Schedule(
        time_from_proto(message.start_time) if message.HasField("start_time") else None,
        time_from_proto(message.end_time) if message.HasField("end_time") else None,
        given(message, "venue_name"),
        UUID(message.auditorium_id) if message.HasField("auditorium_id") else None,
        given(message, "auditorium_name"),
    )


def availability(stock: EventStock, order: seat_states.Order | None) -> bytes:
    """A serialised Availability, with the seats as a string in their order if one is given."""
    value = stock.availability()
    return event_service_pb2.Availability(
        event_id=str(stock.event.event_id),
        version=value.version,
        offers=_offers(value.offers),
        seats=_seats(value.seats) if order is None else (),
        seat_states=None if order is None else seat_states.written(order, value.seats),
    ).SerializeToString()


def availability_update(value: Update) -> bytes:
    """A serialised AvailabilityUpdate."""
    return event_service_pb2.AvailabilityUpdate(
        kind=event_service_pb2.AvailabilityUpdate.Kind.Value(value.kind),
        event_id=str(value.event_id),
        version=value.version,
        offers=_offers(value.offers),
        seats=_seats(value.seats) if value.order is None else (),
        seat_states=None if value.order is None else seat_states.written(value.order, value.seats),
    ).SerializeToString()


def _offers(offers: Mapping[UUID, int]) -> list[event_service_pb2.OfferAvailability]:
    return [
        event_service_pb2.OfferAvailability(offer_id=str(offer_id), available=available)
        for offer_id, available in offers.items()
    ]


def _seats(seats: Mapping[UUID, str]) -> list[event_service_pb2.SeatAvailability]:
    states = dict(event_service_pb2.SeatAvailability.State.items())
    return [
        event_service_pb2.SeatAvailability(seat_id=str(seat_id), state=states[state])
        for seat_id, state in seats.items()
    ]


def _to_policy(message: event_pb2.CancellationPolicy) -> cancellation_policy.Policy | None:
    kind = message.WhichOneof("rule")
    if kind == "purchase_window":
        return cancellation_policy.PurchaseWindow(message.purchase_window.window.ToTimedelta())
    if kind == "tiered":
        return cancellation_policy.Tiered(
            tuple(
                cancellation_policy.Tier(
                    tier.before_start.ToTimedelta(), tier.percent, tier.exclusive
                )
                for tier in message.tiered.tiers
            )
        )
    return None


@lru_cache(maxsize=_POLICIES)
def policy(value: cancellation_policy.Policy) -> event_pb2.CancellationPolicy:
    """The same message for equal policies: callers copy it into another one."""
    message = event_pb2.CancellationPolicy()
    if isinstance(value, cancellation_policy.PurchaseWindow):
        message.purchase_window.window.FromTimedelta(value.window)
        return message
    for tier in value.tiers:
        added = message.tiered.tiers.add(percent=tier.percent, exclusive=tier.exclusive)
        added.before_start.FromTimedelta(tier.before_start)
    return message
