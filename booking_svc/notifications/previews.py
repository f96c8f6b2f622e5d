"""A sample of each mail of booking_svc, for `make mails`."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from booking_svc.bookings.bookings import Actor
from booking_svc.bookings.outbox import (
    Cancelled,
    Change,
    Confirmed,
    EventMoved,
    Held,
    Refunded,
    Rescheduled,
    Updated,
)
from booking_svc.catalogue import cancellation_policy
from booking_svc.catalogue.event_moves import Schedule
from booking_svc.notifications import content, waiting_list_mails
from booking_svc.notifications.content import BookedEvent, BookingMail, Line
from booking_svc.notifications.waiting_list_mails import ENDED, OFFERED, WaitingListMail
from mesh.mail.templates import Rendered
from mesh.money import Money

_ID = UUID("0197c2a4-5d1e-7b3f-9a60-3f2c8e1d4b77")
_BOOKED = datetime(2030, 5, 2, 9, 12, tzinfo=UTC)
_START = datetime(2030, 7, 1, 14, 0, tzinfo=UTC)


def samples() -> Iterator[tuple[str, Rendered]]:
    """Names and mails."""
    concert = BookedEvent(
        "Monsoon Nights", _START, "Bandra Amphitheatre, Mumbai", "Asia/Kolkata", "INR"
    )
    flash = BookedEvent("Founders' Edition turntable", None, None, "Europe/Berlin", "EUR")
    rupees = (Line("2 × Floor", Money(300_000, "INR")), Line("1 × Balcony", Money(90_000, "INR")))
    seats = (
        Line("Row G, seat 11 – Premium", Money(4500, "USD")),
        Line("Row G, seat 12 – Premium", Money(4500, "USD")),
    )
    film = BookedEvent(
        "The Long Goodbye – a very long title that needs more than one line on a phone",
        _START + timedelta(hours=13),
        "Roxie, Screen 2, 3117 16th St, San Francisco",
        "America/Los_Angeles",
        "USD",
    )
    later = replace(concert, start_time=_START + timedelta(days=7))
    refund = Money(378_300, "INR")
    for name, mail in (
        ("held", _mail("held", concert, rupees, Held())),
        ("confirmed", _mail("confirmed", concert, rupees, Confirmed(""))),
        ("confirmed, seats", _mail("confirmed", film, seats, Confirmed(""))),
        (
            "confirmed, no date",
            _mail(
                "confirmed", flash, (Line("1 × Turntable", Money(150_000, "EUR")),), Confirmed("")
            ),
        ),
        (
            "confirmed, free",
            _mail("confirmed", concert, (Line("2 × Floor", Money(0, "INR")),), Confirmed("")),
        ),
        ("cancelled", _mail("cancelled", concert, rupees, Cancelled(Actor.CUSTOMER, "", refund))),
        (
            "cancelled by the staff, without a refund",
            _mail(
                "cancelled",
                concert,
                rupees,
                Cancelled(Actor.STAFF, "Booked twice by mistake", None),
            ),
        ),
        (
            "event cancelled",
            _mail(
                "event_cancelled",
                concert,
                rupees,
                Cancelled(
                    Actor.ORGANISER,
                    "The singer is ill; the doctors forbid it.",
                    Money(390_000, "INR"),
                ),
            ),
        ),
        ("refunded", _mail("refunded", concert, rupees, Refunded(_ID, refund))),
        (
            "rescheduled",
            replace(
                _mail(
                    "rescheduled",
                    later,
                    rupees,
                    Rescheduled(_ID, Money(420_000, "INR"), Money(30_000, "INR")),
                ),
                moved_from=concert,
            ),
        ),
        (
            "event moved",
            _mail(
                "event_moved",
                later,
                rupees,
                EventMoved(
                    Schedule(_START, None, concert.venue_name),
                    Schedule(later.start_time, None, "Jio World Garden, Mumbai"),
                    _START - timedelta(days=7),
                    _ID,
                ),
            ),
        ),
        (
            "changed",
            _mail(
                "changed",
                concert,
                rupees[:1],
                Updated(Money(390_000, "INR"), Money(87_300, "INR")),
            ),
        ),
    ):
        yield name, content.render(mail)
    offered = WaitingListMail(
        kind=OFFERED,
        name="Mira Rao",
        event=concert,
        lines=rupees[:1],
        total=Money(300_000, "INR"),
        offer_expire_time=_BOOKED + timedelta(hours=1),
        claim_url=f"http://localhost:3000/waiting-list#entry={_ID}",
    )
    yield "waiting list offered", waiting_list_mails.render(offered)
    yield (
        "waiting list offered, seats",
        waiting_list_mails.render(
            replace(offered, event=film, lines=seats, total=Money(9000, "USD"))
        ),
    )
    yield (
        "waiting list ended",
        waiting_list_mails.render(
            replace(
                offered,
                kind=ENDED,
                reason="you did not claim the places in time; they went to the next customer",
            )
        ),
    )


def _mail(kind: str, event: BookedEvent, lines: tuple[Line, ...], change: Change) -> BookingMail:
    return BookingMail(
        kind=kind,
        name="Mira Rao",
        booking_id=_ID,
        event=event,
        lines=lines,
        total=Money(sum(line.price.amount_minor for line in lines), event.currency_code),
        change=change,
        policy=cancellation_policy.standard(is_dated=event.start_time is not None),
        confirm_time=None if kind == "held" else _BOOKED,
        hold_expire_time=_BOOKED + timedelta(minutes=15),
        payment_url=f"http://127.0.0.1:8080/sandbox/pay/{_ID}",
    )
