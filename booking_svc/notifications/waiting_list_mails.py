"""The mails to customers of waiting lists: an offer, and the end of an entry without one claimed."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import pricing
from booking_svc.bookings.bookings import Item
from booking_svc.catalogue import events
from booking_svc.catalogue.events import Event
from booking_svc.clients import ports
from booking_svc.clients.ports import Contact
from booking_svc.notifications import content
from booking_svc.notifications.content import BookedEvent, Line
from booking_svc.notifications.formatting import formatter_for
from boxoffice.queueing.v1 import waiting_list_event_pb2, waiting_list_pb2
from mesh import outages
from mesh.conversions import time_from_proto
from mesh.errors import DomainError
from mesh.mail.queue import Mail
from mesh.mail.templates import Rendered
from mesh.money import Money

_log = logging.getLogger(__name__)

_Entry = waiting_list_pb2.WaitingListEntry
OFFERED = "waiting_list_offered"
ENDED = "waiting_list_ended"

# Reasons without a mail: the customer has acted, or gets none any more.
_TEXTS = {
    _Entry.NOT_CLAIMED: "you did not claim the places in time; they went to the next customer",
    _Entry.PURCHASE_LIMIT: "with the places that came back you would own more than the limit",
    _Entry.SALE_ENDED: "the sale has ended, and not enough places came back",
    _Entry.EVENT_CANCELLED: "the event does not take place",
    _Entry.STAFF: "the organiser has removed you from it",
}


@dataclass(frozen=True, slots=True)
class WaitingListEvent:
    """An event of a waiting list that has a mail or not; `payload` is as stored."""

    key: UUID
    customer_id: UUID
    message: waiting_list_event_pb2.WaitingListEvent
    payload: bytes


@dataclass(frozen=True, slots=True)
class WaitingListMail:
    """The content of a mail. `lines` are what is offered; `total` is None without a price."""

    kind: str
    name: str
    event: BookedEvent
    lines: tuple[Line, ...]
    total: Money | None
    offer_expire_time: datetime | None = None
    claim_url: str = ""
    reason: str = ""


def from_payload(payload: bytes) -> WaitingListEvent | None:
    """The event of a stored payload; None for one of a booking."""
    message = waiting_list_event_pb2.WaitingListEvent.FromString(payload)
    if not message.HasField("waiting_list_entry"):
        return None
    return WaitingListEvent(
        UUID(message.event_key), UUID(message.waiting_list_entry.customer_id), message, payload
    )


def kind_of(event: WaitingListEvent) -> str | None:
    """The name of the mail's templates; None for an event without a mail."""
    kind = event.message.WhichOneof("kind")
    if kind == "offered":
        return OFFERED
    return ENDED if event.message.waiting_list_entry.end_reason in _TEXTS else None


async def write(connection: AsyncConnection, *, event: WaitingListEvent, contact: Contact) -> Mail:
    """The mail about an event that has one."""
    entry, kind = event.message.waiting_list_entry, kind_of(event) or ""
    of_catalogue = await events.get(connection, event_id=UUID(entry.event_id))
    items = await _offered(connection, event, of_catalogue) if kind == OFFERED else ()
    expire_time = time_from_proto(entry.offer_expire_time) if kind == OFFERED else None
    rendered = render(
        WaitingListMail(
            kind=kind,
            name=contact.full_name,
            event=await content.booked_event(connection, of_catalogue.event_id),
            lines=await content.lines_of(connection, tuple(items)),
            total=pricing.total(items, of_catalogue.currency_code) if items else None,
            offer_expire_time=expire_time,
            claim_url=event.message.offered.claim_url,
            reason=_TEXTS.get(entry.end_reason, ""),
        )
    )
    return Mail(
        to=contact.email,
        subject=rendered.subject,
        text=rendered.text,
        html=rendered.html,
        key=f"{kind.replace('_', '-')}:{event.key}",
        expire_time=expire_time,
    )


def render(mail: WaitingListMail) -> Rendered:
    """Fills the templates of the mail's kind."""
    formatter = formatter_for(
        currency_code=mail.event.currency_code, time_zone=mail.event.time_zone
    )
    start_time, until = mail.event.start_time, mail.offer_expire_time
    return content.TEMPLATES.render(
        mail.kind,
        name=mail.name,
        event=mail.event.name,
        when=content.when(mail.event),
        day=None if start_time is None else formatter.day(start_time),
        where=mail.event.venue_name,
        lines=[(line.label, formatter.money(line.price)) for line in mail.lines],
        total=None if mail.total is None else formatter.money(mail.total),
        is_free=mail.total is not None and mail.total.amount_minor == 0,
        offer_until=None if until is None else formatter.deadline(until),
        claim_url=mail.claim_url,
        reason=mail.reason,
    )


async def _offered(
    connection: AsyncConnection, event: WaitingListEvent, of_catalogue: Event
) -> Sequence[Item]:
    """The offered places with their prices.

    Empty if the event sells no such places any more: the customer still has to hear of the offer.
    """
    entry = event.message.waiting_list_entry
    seated = {offer.offer_id for offer in of_catalogue.offers if offer.seat_type}
    lines = [*_seats(entry, seated), *_unseated(entry, seated)]
    try:
        return await pricing.price_held(connection, of_catalogue, lines)
    except DomainError as error:
        if outages.is_outage(error):
            raise
        _log.error(
            "the mail about offered places names no prices",
            extra={"event_key": str(event.key), "reason": error.reason},
        )
        return ()


def _seats(entry: _Entry, seated: set[UUID]) -> list[ports.Line]:
    """The seats with their offers: they are listed in the order of the items."""
    offers = [
        UUID(item.offer_id)
        for item in entry.items
        if UUID(item.offer_id) in seated
        for _ in range(item.quantity)
    ]
    return [
        ports.Line(offer_id, 1, UUID(seat_id))
        for offer_id, seat_id in zip(offers, entry.offered_seat_ids, strict=False)
    ]


def _unseated(entry: _Entry, seated: set[UUID]) -> list[ports.Line]:
    return [
        ports.Line(UUID(item.offer_id), item.quantity)
        for item in entry.items
        if UUID(item.offer_id) not in seated
    ]
