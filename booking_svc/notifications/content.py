"""The mail for a booking event: its template and the template's values."""

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
    EventMoved,
    Held,
    Refunded,
    Rescheduled,
    Updated,
)
from booking_svc.catalogue import cancellation_policy, events
from booking_svc.catalogue.event_moves import Schedule
from booking_svc.catalogue.tables import offers, seats
from booking_svc.clients.ports import Contact
from booking_svc.notifications.formatting import Formatter, formatter_for
from mesh.mail.queue import Mail
from mesh.mail.templates import Rendered, Templates
from mesh.money import Money

_KINDS: dict[type[Change], str] = {
    Confirmed: "confirmed",
    Cancelled: "cancelled",
    Refunded: "refunded",
    Rescheduled: "rescheduled",
    Updated: "changed",
    EventMoved: "event_moved",
}
TEMPLATES = Templates(Path(__file__).parent / "templates")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the receipt: `2 × Floor`, or `Row A, seat 12 – Premium`."""

    label: str
    price: Money


@dataclass(frozen=True, slots=True)
class BookedEvent:
    """The facts of an event that a mail shows."""

    name: str
    start_time: datetime | None
    venue_name: str | None
    time_zone: str
    currency_code: str


@dataclass(frozen=True, slots=True)
class BookingMail:
    """The content of a mail about a booking. `moved_from` is the event before a reschedule."""

    kind: str
    name: str
    booking_id: UUID
    event: BookedEvent
    lines: tuple[Line, ...]
    total: Money
    change: Change
    policy: cancellation_policy.Policy
    confirm_time: datetime | None
    hold_expire_time: datetime
    payment_url: str = ""
    moved_from: BookedEvent | None = None


def kind_of(change: Change) -> str | None:
    """The name of the mail's templates; None for a change without a mail."""
    if isinstance(change, Cancelled) and change.actor is Actor.ORGANISER:
        return "event_cancelled"
    if isinstance(change, Held):
        return "held" if change.is_mail_wanted else None
    return _KINDS.get(type(change))


async def write(
    connection: AsyncConnection, *, event: BookingEvent, kind: str, contact: Contact
) -> Mail:
    """The mail to the customer about an event of a booking."""
    booking = await bookings.get(connection, booking_id=event.booking_id)
    moved_from = None
    if isinstance(event.change, Rescheduled):
        moved_from = await booked_event(connection, event.change.from_event_id)
    mail = BookingMail(
        kind=kind,
        name=contact.full_name,
        booking_id=booking.booking_id,
        event=await booked_event(connection, event.event_id),
        lines=await lines_of(connection, booking.items),
        total=event.total,
        change=event.change,
        policy=booking.cancellation_policy,
        confirm_time=booking.confirm_time,
        hold_expire_time=booking.hold_expire_time,
        payment_url="" if booking.payment is None else booking.payment.payment_url or "",
        moved_from=moved_from,
    )
    rendered = render(mail)
    return Mail(
        to=contact.email,
        subject=rendered.subject,
        text=rendered.text,
        html=rendered.html,
        key=f"booking-{kind.replace('_', '-')}:{event.key}",
        expire_time=booking.hold_expire_time if kind == "held" else None,
    )


def render(mail: BookingMail) -> Rendered:
    """Fills the templates of the mail's kind."""
    return TEMPLATES.render(mail.kind, **_values(mail, _formatter(mail.event)))


def _values(mail: BookingMail, formatter: Formatter) -> dict[str, Any]:
    event, change = mail.event, mail.change
    refund = getattr(change, "refund", None)
    confirm_time = mail.confirm_time
    return {
        "name": mail.name,
        "booking_id": mail.booking_id,
        "event": event.name,
        "when": when(event),
        "day": None if event.start_time is None else formatter.day(event.start_time),
        "where": event.venue_name,
        "lines": [(line.label, formatter.money(line.price)) for line in mail.lines],
        "total": formatter.money(mail.total),
        "is_free": mail.total.amount_minor == 0,
        "was_paid": confirm_time is not None and mail.total.amount_minor > 0,
        "refund": None if refund is None else formatter.money(refund),
        "reason": getattr(change, "reason", "") if _has_public_reason(change) else "",
        "amount": formatter.money(change.amount) if isinstance(change, Refunded) else None,
        "terms": ()
        if confirm_time is None
        else formatter.terms(mail.policy, start_time=event.start_time, confirm_time=confirm_time),
        "hold_until": formatter.deadline(mail.hold_expire_time),
        "payment_url": mail.payment_url,
        **_previous(mail, formatter),
        **_moved(mail, formatter),
    }


def _moved(mail: BookingMail, formatter: Formatter) -> dict[str, Any]:
    """The schedules before and after the event moved, as lines of a table."""
    change = mail.change
    if not isinstance(change, EventMoved):
        return {}
    rows = (
        (name, old, new)
        for name, old, new in zip(
            ("Starts", "Ends", "Venue", "Auditorium"),
            _schedule(change.before, formatter),
            _schedule(change.after, formatter),
            strict=True,
        )
        if old != new
    )
    return {
        "changes": [(name, old or "not set", new or "not set") for name, old, new in rows],
        "refund_until": formatter.moment(change.full_refund_until),
    }


def _schedule(schedule: Schedule, formatter: Formatter) -> tuple[str | None, ...]:
    start, end = schedule.start_time, schedule.end_time
    return (
        None if start is None else formatter.moment(start),
        None if end is None else formatter.moment(end),
        schedule.venue_name,
        schedule.auditorium_name,
    )


def _previous(mail: BookingMail, formatter: Formatter) -> dict[str, Any]:
    """Event and price before a reschedule or a change."""
    old_total = getattr(mail.change, "previous_total", None)
    old_event = mail.moved_from
    extra = 0 if old_total is None else mail.total.amount_minor - old_total.amount_minor
    return {
        "previous_total": None if old_total is None else formatter.money(old_total),
        "extra": formatter.money(Money(extra, mail.total.currency_code)) if extra > 0 else None,
        "previous_event": None if old_event is None else old_event.name,
        "previous_when": None if old_event is None else when(old_event),
    }


def _formatter(event: BookedEvent) -> Formatter:
    return formatter_for(currency_code=event.currency_code, time_zone=event.time_zone)


def when(event: BookedEvent) -> str | None:
    """E.g. `Monday 1 July 2030, 7:30 pm (India Standard Time)`."""
    start_time = event.start_time
    return None if start_time is None else _formatter(event).moment(start_time)


async def booked_event(connection: AsyncConnection, event_id: UUID) -> BookedEvent:
    event = await events.get(connection, event_id=event_id)
    return BookedEvent(
        event.name, event.start_time, event.venue_name, event.time_zone, event.currency_code
    )


def _has_public_reason(change: Change) -> bool:
    """Customers see the reasons of organiser and staff; the system's are for the timeline only."""
    return isinstance(change, Cancelled) and change.actor in (Actor.ORGANISER, Actor.STAFF)


async def lines_of(connection: AsyncConnection, items: tuple[Item, ...]) -> tuple[Line, ...]:
    """The lines of a receipt."""
    offer_rows = await connection.execute(
        sa.select(offers.c.offer_id, offers.c.name).where(
            offers.c.offer_id.in_({item.offer_id for item in items})
        )
    )
    names: dict[UUID, str] = {row.offer_id: row.name for row in offer_rows}
    seat_ids = {item.seat_id for item in items if item.seat_id is not None}
    labels: dict[UUID, str] = {}
    if seat_ids:
        seat_rows = await connection.execute(
            sa.select(seats.c.seat_id, seats.c.section, seats.c.row_label, seats.c.number).where(
                seats.c.seat_id.in_(seat_ids)
            )
        )
        labels = {
            row.seat_id: (f"{row.section}, row" if row.section else "Row")
            + f" {row.row_label}, seat {row.number}"
            for row in seat_rows
        }
    return tuple(_line(item, names, labels) for item in items)


def _line(item: Item, names: dict[UUID, str], labels: dict[UUID, str]) -> Line:
    name = names.get(item.offer_id, "")
    price = Money(item.unit_price.amount_minor * item.quantity, item.unit_price.currency_code)
    if item.seat_id is not None:
        label = " – ".join(part for part in (labels.get(item.seat_id), name) if part)
    else:
        label = f"{item.quantity} × {name}"
    return Line(label, price)
