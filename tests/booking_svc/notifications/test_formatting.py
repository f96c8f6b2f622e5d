"""Times in the event's time zone, amounts in the currency's format."""

from datetime import UTC, datetime, timedelta

import pytest

from booking_svc.catalogue import cancellation_policy
from booking_svc.catalogue.cancellation_policy import PurchaseWindow
from booking_svc.notifications.formatting import formatter_for
from mesh.money import Money

WINTER = datetime(2030, 1, 15, 18, 0, tzinfo=UTC)
SUMMER = datetime(2030, 7, 15, 18, 0, tzinfo=UTC)
NARROW = "\u202f"


@pytest.mark.parametrize(
    ("minor", "currency", "expected"),
    [
        (15_000_050, "INR", "₹1,50,000.50"),
        (15_000_050, "USD", "$150,000.50"),
        (15_000_050, "EUR", "€150,000.50"),
        (1_500, "JPY", "JP¥1,500"),
        (1_500, "KWD", "KWD\xa01.500"),
        (1_500, "ISK", "ISK\xa01,500"),
        (0, "GBP", "£0.00"),
        (10_000_000_000_000, "USD", "$100,000,000,000.00"),
    ],
)
def test_an_amount_has_the_decimals_and_groups_of_its_currency(
    minor: int, currency: str, expected: str
) -> None:
    formatter = formatter_for(currency_code=currency, time_zone="UTC")
    assert formatter.money(Money(minor, currency)) == expected


@pytest.mark.parametrize(
    ("value", "currency", "zone", "expected"),
    [
        (WINTER, "EUR", "Europe/Berlin", "Tuesday 15 January 2030, 19:00 (Central European Standard Time)"),
        (SUMMER, "EUR", "Europe/Berlin", "Monday 15 July 2030, 20:00 (Central European Summer Time)"),
        (SUMMER, "INR", "Asia/Kolkata", f"Monday, 15 July 2030, 11:30{NARROW}pm (IST)"),
        (SUMMER, "USD", "America/New_York", f"Monday, July 15, 2030, 2:00{NARROW}PM (Eastern Daylight Time)"),
        (SUMMER, "NZD", "Pacific/Auckland", f"Tuesday, 16 July 2030, 6:00{NARROW}am (New Zealand Standard Time)"),
    ],
)  # fmt: skip
def test_a_time_is_shown_in_the_events_zone(
    value: datetime, currency: str, zone: str, expected: str
) -> None:
    assert formatter_for(currency_code=currency, time_zone=zone).moment(value) == expected


def test_deadlines_are_correct_across_a_change_of_daylight_saving_time() -> None:
    """14 days before 20:00 summer time is 19:00 standard time."""
    formatter = formatter_for(currency_code="EUR", time_zone="Europe/Berlin")
    start = datetime(2030, 4, 5, 18, 0, tzinfo=UTC)
    terms = formatter.terms(
        cancellation_policy.STANDARD_TIERS,
        start_time=start,
        confirm_time=start - timedelta(days=60),
    )
    assert terms == (
        "Until 22 Mar 2030, 19:00: 97 % refund",
        "Until 29 Mar 2030, 19:00: 50 % refund",
        "Until 3 Apr 2030, 20:00: no refund",
    )


def test_deadlines_before_the_confirmation_are_left_out() -> None:
    formatter = formatter_for(currency_code="EUR", time_zone="UTC")
    terms = formatter.terms(
        cancellation_policy.STANDARD_TIERS,
        start_time=SUMMER,
        confirm_time=SUMMER - timedelta(days=3),
    )
    assert terms == ("Until 13 Jul 2030, 18:00: no refund",)


def test_a_purchase_window_starts_with_the_confirmation() -> None:
    formatter = formatter_for(currency_code="EUR", time_zone="UTC")
    policy = PurchaseWindow(timedelta(hours=24))
    assert formatter.terms(policy, start_time=None, confirm_time=WINTER) == (
        "Until 16 Jan 2030, 18:00: full refund",
    )
