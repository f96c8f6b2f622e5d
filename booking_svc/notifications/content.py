"""Which mail an event of a booking means, and what stands in it."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import bookings
from booking_svc.bookings.bookings import Actor, Item
from booking_svc.bookings.outbox import (
    BookingEvent,
    Cancelled,
    Change,
    Confirmed,
    Held,
    Refunded,
    Rescheduled,
    Updated,
)
from booking_svc.catalogue import cancellation_policy, events
from booking_svc.catalogue.tables import offers, seats
from booking_svc.clients.ports import Contact
from booking_svc.notifications.formatting import Wording, wording_for
from mesh.mail.queue import Mail
from mesh.mail.templates import Rendered, Templates
from mesh.money import Money

_KINDS: dict[type[Change], str] = {
    Confirmed: "confirmed",
    Cancelled: "cancelled",
    Refunded: "refunded",
    Rescheduled: "rescheduled",
    Updated: "changed",
}
_TEMPLATES = Templates(Path(__file__).parent / "templates")


@dataclass(frozen=True, slots=True)
class Line:
    """Places on a mail: `2 × Floor`, or `Row A, seat 12 – Premium`."""

    label: str
    price: Money


@dataclass(frozen=True, slots=True)
class Occasion:
    """What is booked: an event as far as mails speak of it."""

    name: str
    start_time: datetime | None
    venue_name: str | None
    time_zone: str
    currency_code: str


@dataclass(frozen=True, slots=True)
class BookingMail:
    """All that a mail about a booking is made of. `moved_from` is what it was for before."""

    kind: str
    name: str
    booking_id: UUID
    occasion: Occasion
    lines: tuple[Line, ...]
    total: Money
    change: Change
    policy: cancellation_policy.Policy
    confirm_time: datetime | None
    hold_expire_time: datetime
    payment_url: str = ""
    moved_from: Occasion | None = None


def kind_of(change: Change) -> str | None:
    """The name of the mail's templates; None for what nobody is written to about."""
    if isinstance(change, Cancelled) and change.actor is Actor.ORGANISER:
        return "event_cancelled"
    if isinstance(change, Held):
        return "held" if change.is_mail_wanted else None
    return _KINDS.get(type(change))


async def write(
    connection: AsyncConnection, *, event: BookingEvent, kind: str, contact: Contact
) -> Mail:
    """The mail that tells the customer of an event of the booking."""
    booking = await bookings.get(connection, booking_id=event.booking_id)
    moved_from = None
    if isinstance(event.change, Rescheduled):
        moved_from = await _occasion(connection, event.change.from_event_id)
    letter = BookingMail(
        kind=kind,
        name=contact.full_name,
        booking_id=booking.booking_id,
        occasion=await _occasion(connection, event.event_id),
        lines=await _lines(connection, booking.items),
        total=event.total,
        change=event.change,
        policy=booking.cancellation_policy,
        confirm_time=booking.confirm_time,
        hold_expire_time=booking.hold_expire_time,
        payment_url="" if booking.payment is None else booking.payment.payment_url or "",
        moved_from=moved_from,
    )
    said = render(letter)
    return Mail(
        to=contact.email,
        subject=said.subject,
        text=said.text,
        html=said.html,
        key=f"booking-{kind.replace('_', '-')}:{event.key}",
        expire_time=booking.hold_expire_time if kind == "held" else None,
    )


def render(letter: BookingMail) -> Rendered:
    """Fills the templates of a letter's kind."""
    return _TEMPLATES.render(letter.kind, **_values(letter, _words(letter.occasion)))


def _values(letter: BookingMail, words: Wording) -> dict[str, Any]:
    occasion, change = letter.occasion, letter.change
    refund = getattr(change, "refund", None)
    confirm_time = letter.confirm_time
    return {
        "name": letter.name,
        "booking_id": letter.booking_id,
        "event": occasion.name,
        "when": _when(occasion),
        "day": None if occasion.start_time is None else words.day(occasion.start_time),
        "where": occasion.venue_name,
        "lines": [(line.label, words.money(line.price)) for line in letter.lines],
        "total": words.money(letter.total),
        "is_free": letter.total.amount_minor == 0,
        "was_paid": confirm_time is not None and letter.total.amount_minor > 0,
        "refund": None if refund is None else words.money(refund),
        "reason": getattr(change, "reason", "") if _is_told(change) else "",
        "amount": words.money(change.amount) if isinstance(change, Refunded) else None,
        "terms": ()
        if confirm_time is None
        else words.terms(letter.policy, start_time=occasion.start_time, confirm_time=confirm_time),
        "hold_until": words.deadline(letter.hold_expire_time),
        "payment_url": letter.payment_url,
        **_before(letter, words),
    }


def _before(letter: BookingMail, words: Wording) -> dict[str, Any]:
    """What the booking was before it was moved or changed."""
    previous = getattr(letter.change, "previous_total", None)
    earlier = letter.moved_from
    extra = 0 if previous is None else letter.total.amount_minor - previous.amount_minor
    return {
        "previous_total": None if previous is None else words.money(previous),
        "extra": words.money(Money(extra, letter.total.currency_code)) if extra > 0 else None,
        "previous_event": None if earlier is None else earlier.name,
        "previous_when": None if earlier is None else _when(earlier),
    }


def _words(occasion: Occasion) -> Wording:
    return wording_for(currency_code=occasion.currency_code, time_zone=occasion.time_zone)


def _when(occasion: Occasion) -> str | None:
    start_time = occasion.start_time
    return None if start_time is None else _words(occasion).moment(start_time)


async def _occasion(connection: AsyncConnection, event_id: UUID) -> Occasion:
    event = await events.get(connection, event_id=event_id)
    return Occasion(
        event.name, event.start_time, event.venue_name, event.time_zone, event.currency_code
    )


def _is_told(change: Change) -> bool:
    """Reasons of the organiser and the staff are for the customer, our own are for the timeline."""
    return isinstance(change, Cancelled) and change.actor in (Actor.ORGANISER, Actor.STAFF)


async def _lines(connection: AsyncConnection, items: tuple[Item, ...]) -> tuple[Line, ...]:
    named = await connection.execute(
        sa.select(offers.c.offer_id, offers.c.name).where(
            offers.c.offer_id.in_({item.offer_id for item in items})
        )
    )
    names: dict[UUID, str] = {row.offer_id: row.name for row in named}
    seated = {item.seat_id for item in items if item.seat_id is not None}
    labels: dict[UUID, str] = {}
    if seated:
        found = await connection.execute(
            sa.select(seats.c.seat_id, seats.c.row_label, seats.c.number).where(
                seats.c.seat_id.in_(seated)
            )
        )
        labels = {row.seat_id: f"Row {row.row_label}, seat {row.number}" for row in found}
    return tuple(_line(item, names, labels) for item in items)


def _line(item: Item, names: dict[UUID, str], labels: dict[UUID, str]) -> Line:
    name = names.get(item.offer_id, "")
    price = Money(item.unit_price.amount_minor * item.quantity, item.unit_price.currency_code)
    if item.seat_id is not None:
        label = " – ".join(part for part in (labels.get(item.seat_id), name) if part)
    else:
        label = f"{item.quantity} × {name}"
    return Line(label, price)
