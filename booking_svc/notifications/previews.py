"""Each mail of booking_svc as a sample, for `make mails` to look at."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from booking_svc.bookings.bookings import Actor
from booking_svc.bookings.outbox import (
    Cancelled,
    Change,
    Confirmed,
    Held,
    Refunded,
    Rescheduled,
    Updated,
)
from booking_svc.catalogue import cancellation_policy
from booking_svc.notifications import content
from booking_svc.notifications.content import BookingMail, Line, Occasion
from mesh.mail.templates import Rendered
from mesh.money import Money

_ID = UUID("0197c2a4-5d1e-7b3f-9a60-3f2c8e1d4b77")
_BOOKED = datetime(2030, 5, 2, 9, 12, tzinfo=UTC)
_START = datetime(2030, 7, 1, 14, 0, tzinfo=UTC)


def samples() -> Iterator[tuple[str, Rendered]]:
    """Names and mails."""
    inr = Occasion("Monsoon Nights", _START, "Bandra Amphitheatre, Mumbai", "Asia/Kolkata", "INR")
    flash = Occasion("Founders' Edition turntable", None, None, "Europe/Berlin", "EUR")
    rupees = (Line("2 × Floor", Money(300_000, "INR")), Line("1 × Balcony", Money(90_000, "INR")))
    seats = (
        Line("Row G, seat 11 – Premium", Money(4500, "USD")),
        Line("Row G, seat 12 – Premium", Money(4500, "USD")),
    )
    film = Occasion(
        "The Long Goodbye – a very long title that needs more than one line on a phone",
        _START + timedelta(hours=13),
        "Roxie, Screen 2, 3117 16th St, San Francisco",
        "America/Los_Angeles",
        "USD",
    )
    later = replace(inr, start_time=_START + timedelta(days=7))
    refund = Money(378_300, "INR")
    for name, letter in (
        ("held", _letter("held", inr, rupees, Held())),
        ("confirmed", _letter("confirmed", inr, rupees, Confirmed(""))),
        ("confirmed, seats", _letter("confirmed", film, seats, Confirmed(""))),
        (
            "confirmed, no date",
            _letter(
                "confirmed", flash, (Line("1 × Turntable", Money(150_000, "EUR")),), Confirmed("")
            ),
        ),
        (
            "confirmed, free",
            _letter("confirmed", inr, (Line("2 × Floor", Money(0, "INR")),), Confirmed("")),
        ),
        ("cancelled", _letter("cancelled", inr, rupees, Cancelled(Actor.CUSTOMER, "", refund))),
        (
            "cancelled by the staff, without a refund",
            _letter(
                "cancelled", inr, rupees, Cancelled(Actor.STAFF, "Booked twice by mistake", None)
            ),
        ),
        (
            "event cancelled",
            _letter(
                "event_cancelled",
                inr,
                rupees,
                Cancelled(
                    Actor.ORGANISER,
                    "The singer is ill; the doctors forbid it.",
                    Money(390_000, "INR"),
                ),
            ),
        ),
        ("refunded", _letter("refunded", inr, rupees, Refunded(_ID, refund))),
        (
            "rescheduled",
            replace(
                _letter(
                    "rescheduled",
                    later,
                    rupees,
                    Rescheduled(_ID, Money(420_000, "INR"), Money(30_000, "INR")),
                ),
                moved_from=inr,
            ),
        ),
        (
            "changed",
            _letter(
                "changed",
                inr,
                rupees[:1],
                Updated(Money(390_000, "INR"), Money(87_300, "INR")),
            ),
        ),
    ):
        yield name, content.render(letter)


def _letter(kind: str, occasion: Occasion, lines: tuple[Line, ...], change: Change) -> BookingMail:
    return BookingMail(
        kind=kind,
        name="Mira Rao",
        booking_id=_ID,
        occasion=occasion,
        lines=lines,
        total=Money(sum(line.price.amount_minor for line in lines), occasion.currency_code),
        change=change,
        policy=cancellation_policy.standard(is_dated=occasion.start_time is not None),
        confirm_time=None if kind == "held" else _BOOKED,
        hold_expire_time=_BOOKED + timedelta(minutes=15),
        payment_url=f"http://127.0.0.1:8080/sandbox/pay/{_ID}",
    )
