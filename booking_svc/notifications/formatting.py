"""Times and amounts for mails, in the event's time zone and the currency's locale."""

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from zoneinfo import ZoneInfo

from babel import Locale
from babel.dates import format_date, format_time, get_timezone_name

from booking_svc.catalogue.cancellation_policy import Policy, PurchaseWindow
from mesh.money import Money, exponent

# The English locale of a currency's territory formats amounts, dates and times: ₹1,50,000.00 and
# 7:30 pm, or £1,500.00 and 19:30. Other currencies use international English.
_TERRITORIES = {
    "AUD": "AU",
    "CAD": "CA",
    "EUR": "IE",
    "GBP": "GB",
    "HKD": "HK",
    "INR": "IN",
    "KES": "KE",
    "MYR": "MY",
    "NGN": "NG",
    "NZD": "NZ",
    "PHP": "PH",
    "PKR": "PK",
    "SGD": "SG",
    "USD": "US",
    "ZAR": "ZA",
}
_WORLD = "001"


@dataclass(frozen=True, slots=True)
class Formatter:
    """Formats times and amounts of one event."""

    locale: Locale
    zone: ZoneInfo

    def money(self, value: Money) -> str:
        """`₹1,50,000.00`, `€1,500.00`, `¥1,500`."""
        digits = exponent(value.currency_code)
        pattern = copy(self.locale.currency_formats["standard"])
        # ISO 4217's decimals, as in the API; CLDR rounds some currencies to cash amounts.
        pattern.frac_prec = (digits, digits)
        amount = Decimal(value.amount_minor).scaleb(-digits)
        text = pattern.apply(
            amount, self.locale, currency=value.currency_code, currency_digits=False
        )
        # CLDR's space after symbols that end with a letter, which babel omits: KWD 1.500.
        return re.sub(r"(?<=[A-Za-z])(?=\d)", "\N{NO-BREAK SPACE}", text)

    def moment(self, value: datetime) -> str:
        """`Monday 1 July 2030, 7:30 pm (India Standard Time)`."""
        local = value.astimezone(self.zone)
        return f"{format_date(local, 'full', self.locale)}, {self.clock(value)} ({_zone(local, self.locale)})"

    def day(self, value: datetime) -> str:
        """`1 Jul 2030`."""
        return format_date(value.astimezone(self.zone), "medium", self.locale)

    def deadline(self, value: datetime) -> str:
        """`1 Jul 2030, 7:30 pm`."""
        return f"{self.day(value)}, {self.clock(value)}"

    def clock(self, value: datetime) -> str:
        """`7:30 pm`."""
        return format_time(value.astimezone(self.zone), "short", locale=self.locale)

    def terms(
        self, policy: Policy, *, start_time: datetime | None, confirm_time: datetime
    ) -> Sequence[str]:
        """The refund for cancelling until each deadline, one line per tier."""
        if isinstance(policy, PurchaseWindow):
            return (f"Until {self.deadline(confirm_time + policy.window)}: full refund",)
        if start_time is None:
            return ()
        return tuple(
            f"Until {self.deadline(start_time - tier.before_start)}: {_share(tier.percent)}"
            for tier in sorted(policy.tiers, key=_earliest_first)
            if start_time - tier.before_start > confirm_time
        )


def formatter_for(*, currency_code: str, time_zone: str) -> Formatter:
    """The formatter of an event's time zone and currency."""
    return Formatter(_locale(currency_code), ZoneInfo(time_zone))


@cache
def _locale(currency_code: str) -> Locale:
    return Locale("en", territory=_TERRITORIES.get(currency_code, _WORLD))


def _zone(local: datetime, locale: Locale) -> str:
    name = get_timezone_name(local, width="long", locale=locale)
    abbreviation = local.tzname() or ""
    # For some zones CLDR has an offset only: IST is clearer than GMT+05:30.
    return abbreviation if name.startswith("GMT") and abbreviation.isalpha() else name


def _share(percent: int) -> str:
    if percent == 0:
        return "no refund"
    return "full refund" if percent == 100 else f"{percent} % refund"


def _earliest_first(tier: object) -> timedelta:
    before_start: timedelta = tier.before_start  # type: ignore[attr-defined]
    return -before_start
