"""Prices requested items, and checks the limits of one booking. The ledger checks the others."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings.bookings import Item
from booking_svc.catalogue import venues
from booking_svc.catalogue.events import Event, Offer
from booking_svc.catalogue.venues import SeatTerms
from booking_svc.clients.ports import Line
from mesh.errors import DomainError, FailedItem, FieldViolation, Reason, failures, invalid
from mesh.money import Money


@dataclass(frozen=True, slots=True)
class RequestedItem:
    """A number of places of an offer, or one seat.

    A seat needs its offer only if several offers sell it.
    """

    offer_id: UUID | None
    quantity: int
    seat_id: UUID | None


@dataclass(frozen=True, slots=True)
class ShownPrice:
    """What the customer was shown: the total and the event's etag. Either may be missing."""

    total: Money | None = None
    etag: str = ""

    def refuse_another(self, total: Money, event: Event) -> None:
        """Raises PRICE_CHANGED, with the new total, if the customer was shown another one."""
        etag = self.etag.removeprefix("W/").strip('"')
        if self.total in (None, total) and etag in ("", event.etag):
            return
        raise DomainError(
            Reason.PRICE_CHANGED,
            f"the total is {total} now: show it to the customer and try again",
            total=total.amount_minor,
            currency_code=total.currency_code,
            etag=event.etag,
        )


NOT_SHOWN = ShownPrice()

# Offers in a violation.
_MOST_NAMED = 3


async def price(
    connection: AsyncConnection, event: Event, requested: Sequence[RequestedItem]
) -> tuple[Item, ...]:
    """The items at the event's present prices. Raises as `priced` does."""
    return priced(event, requested, await _seat_terms(connection, event, seats_of(requested)))


async def price_held(
    connection: AsyncConnection, event: Event, held: Sequence[Line]
) -> tuple[Item, ...]:
    """Places that the ledger already holds, at the event's present prices.

    Only what they cost is asked: neither limits nor the offers that sell a seat by now matter.
    Raises OFFER_NOT_FOUND or SEAT_NOT_FOUND that names every such line.
    """
    seat_ids = {line.seat_id for line in held if line.seat_id is not None}
    seat_terms = await _seat_terms(connection, event, seat_ids)
    offers = {offer.offer_id: offer for offer in event.offers}
    items, unknown = [], []
    for index, line in enumerate(held):
        if line.offer_id not in offers:
            unknown.append(FailedItem(index, Reason.OFFER_NOT_FOUND, {"offerId": line.offer_id}))
            continue
        price = offers[line.offer_id].price
        if line.seat_id is not None:
            if line.seat_id not in seat_terms:
                unknown.append(FailedItem(index, Reason.SEAT_NOT_FOUND, {"seatId": line.seat_id}))
                continue
            price = seat_price(price, seat_terms[line.seat_id])
        items.append(Item(line.offer_id, line.seat_id, line.quantity, price))
    if unknown:
        raise _not_found(unknown)
    return tuple(items)


async def _seat_terms(
    connection: AsyncConnection, event: Event, seat_ids: Collection[UUID]
) -> Mapping[UUID, SeatTerms]:
    """The terms of those of the seats that are in the event's auditorium."""
    if event.auditorium_id is None or not seat_ids:
        return {}
    known = await venues.seats_of_any(connection, seat_ids)
    return {
        seat_id: terms
        for seat_id, (auditorium_id, terms) in known.items()
        if auditorium_id == event.auditorium_id
    }


def seats_of(requested: Sequence[RequestedItem]) -> set[UUID]:
    return {line.seat_id for line in requested if line.seat_id is not None}


def priced(
    event: Event, requested: Sequence[RequestedItem], seat_terms: Mapping[UUID, SeatTerms]
) -> tuple[Item, ...]:
    """The items with their prices. `seat_terms` has those of each requested seat of the event.

    Raises OFFER_NOT_FOUND or SEAT_NOT_FOUND that names every such line, or VALIDATION_FAILED that
    names also each that exceeds its offer's limit per booking, repeats a seat, requests a seated
    offer without seat, or a seat of several offers without one of them.
    """
    offers = {offer.offer_id: offer for offer in event.offers}
    sold_by: defaultdict[str | None, list[Offer]] = defaultdict(list)
    for offer in event.offers:
        sold_by[offer.seat_type].append(offer)
    quantities: Counter[UUID] = Counter()
    seen: set[UUID] = set()
    items, faults, unknown = [], [], []
    for index, line in enumerate(requested):
        terms = None if line.seat_id is None else seat_terms.get(line.seat_id)
        sellers = [] if terms is None else sold_by[terms.seat_type]
        seller = _seller(index, line, offers, sellers)
        if isinstance(seller, FailedItem):
            unknown.append(seller)
            continue
        if isinstance(seller, FieldViolation):
            faults.append(seller)
            continue
        if line.seat_id in seen:
            faults.append(FieldViolation(f"items[{index}].seat_id", "is requested twice"))
        if line.seat_id is not None:
            seen.add(line.seat_id)
        quantities[seller.offer_id] += line.quantity
        if quantities[seller.offer_id] > seller.max_per_booking:
            field = "quantity" if line.seat_id is None else "seat_id"
            text = f"at most {seller.max_per_booking} of {seller.name!r} per booking"
            faults.append(FieldViolation(f"items[{index}].{field}", text))
        price = seller.price if terms is None else seat_price(seller.price, terms)
        items.append(Item(seller.offer_id, line.seat_id, line.quantity, price))
    if faults:
        raise invalid(*faults, *map(_violation, unknown))
    if unknown:
        raise _not_found(unknown)
    return tuple(items)


def _seller(
    index: int, line: RequestedItem, offers: Mapping[UUID, Offer], sellers: Sequence[Offer]
) -> Offer | FailedItem | FieldViolation:
    """The offer whose price a line has; `sellers` are those that sell its seat."""
    if line.offer_id is not None and line.offer_id not in offers:
        return FailedItem(index, Reason.OFFER_NOT_FOUND, {"offerId": line.offer_id})
    if line.seat_id is None:
        if line.offer_id is None:
            raise ValueError("a line has neither offer nor seat")
        if offers[line.offer_id].seat_type is None:
            return offers[line.offer_id]
        return FieldViolation(f"items[{index}].offer_id", "sells seats: give their `seat_id`")
    if not sellers:
        return FailedItem(index, Reason.SEAT_NOT_FOUND, {"seatId": line.seat_id})
    named = [offer for offer in sellers if line.offer_id in (None, offer.offer_id)]
    if len(named) == 1:
        return named[0]
    names = ", ".join(repr(offer.name) for offer in sellers[:_MOST_NAMED])
    text = "does not sell this seat, but" if not named else "is required: the seat is sold as"
    return FieldViolation(f"items[{index}].offer_id", f"{text} {names}")


def seat_price(price: Money, terms: SeatTerms) -> Money:
    """The price of a seat whose offer costs `price`; never less than 0."""
    return Money(max(0, price.amount_minor + terms.price_modifier), price.currency_code)


def _not_found(unknown: Sequence[FailedItem]) -> DomainError:
    """The refusal of items that the event does not sell."""
    first = unknown[0]
    metadata: dict[str, Any] = failures(unknown)
    if first.reason is Reason.SEAT_NOT_FOUND:
        metadata["seat_id"] = first.details["seatId"]
    else:
        metadata["offer_id"] = first.details["offerId"]
    return DomainError(first.reason, _NOT_SOLD[first.reason], **metadata)


def _violation(item: FailedItem) -> FieldViolation:
    field = "seat_id" if item.reason is Reason.SEAT_NOT_FOUND else "offer_id"
    return FieldViolation(f"items[{item.number}].{field}", _NOT_SOLD[item.reason])


_NOT_SOLD = {
    Reason.SEAT_NOT_FOUND: "the event sells no such seat",
    Reason.OFFER_NOT_FOUND: "the event has no such offer",
}


def lines(items: Sequence[Item]) -> list[Line]:
    return [Line(item.offer_id, item.quantity, item.seat_id) for item in items]


def total(items: Sequence[Item], currency_code: str) -> Money:
    """The total price of items."""
    return Money(sum(item.unit_price.amount_minor * item.quantity for item in items), currency_code)


def describe(items: Sequence[Item], event: Event) -> str:
    """E.g. `2 × North Stand, 1 × Early bird – Monsoon Nights`, for the payment page."""
    names = {offer.offer_id: offer.name for offer in event.offers}
    places: Counter[str] = Counter()
    for item in items:
        places[names[item.offer_id]] += item.quantity
    listed = ", ".join(f"{quantity} × {name}" for name, quantity in places.items())
    return f"{listed} – {event.name}"[:500]
