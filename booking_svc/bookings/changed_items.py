"""The items of a booking after a change: what it keeps, and the same places at another event."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import cancellation, pricing
from booking_svc.bookings.bookings import Actor, Booking, By, Item
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue import events
from booking_svc.catalogue.events import Event
from mesh.errors import FieldViolation, invalid


async def kept(
    connection: AsyncConnection,
    booking: Booking,
    requested: Sequence[RequestedItem],
    by: By,
    now: datetime,
) -> tuple[Item, ...]:
    """The items that a confirmed booking keeps, at the prices paid for them.

    A seat for which another offer is named gets that one's present price.
    """
    remaining, _ = cancellation.split_items(booking, requested)
    offers = _offers_of_seats(booking)
    named = with_offers(booking, requested)
    if all(line.seat_id is None or line.offer_id == offers[line.seat_id] for line in named):
        return remaining
    event = await events.get(connection, event_id=booking.event_id)
    if by.actor is not Actor.STAFF:
        event.refuse_unless_on_sale(now)
    priced = await pricing.price(connection, event, named)
    changed = {item.seat_id: item for item in priced if item.offer_id != offers.get(item.seat_id)}
    return tuple(changed.get(item.seat_id, item) if item.seat_id else item for item in remaining)


def with_offers(booking: Booking, requested: Sequence[RequestedItem]) -> list[RequestedItem]:
    """The requested items: a seat that the booking has keeps its offer if none is named."""
    offers = _offers_of_seats(booking)
    return [replace(line, offer_id=line.offer_id or offers.get(line.seat_id)) for line in requested]


def same_places(booking: Booking, old: Event, new: Event) -> list[RequestedItem]:
    """The same seats, or the same number of places of the offers with the same names.

    A seat names its offer if it is one of several for the same seats.
    """
    names = {offer.offer_id: offer.name for offer in old.offers}
    offers = {offer.name: offer for offer in new.offers}
    sellers = Counter(offer.seat_type for offer in new.offers)
    requested = []
    for item in booking.items:
        offer = offers.get(names.get(item.offer_id, ""))
        if item.seat_id is None and offer is None:
            raise invalid(
                FieldViolation("items", "are required: the event has no offer of the same name")
            )
        is_named = offer is not None and (item.seat_id is None or sellers[offer.seat_type] > 1)
        offer_id = offer.offer_id if offer is not None and is_named else None
        requested.append(RequestedItem(offer_id, item.quantity, item.seat_id))
    return requested


def _offers_of_seats(booking: Booking) -> dict[UUID | None, UUID]:
    return {item.seat_id: item.offer_id for item in booking.items if item.seat_id is not None}
