"""Conversion between ISO 4217 minor units and the amounts that providers write.

Stripe (documentation, "Supported currencies") has other decimals for some currencies. Stripe
and Razorpay accept amounts with three decimals in steps of ten only.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mesh.money import CURRENCIES, AmountLimits, Money, exponent
from payment_svc.providers.base import ProviderRefusedError

_THREE_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class Units:
    """A provider's units and limits, in the provider's units.

    `exponents` has the currencies that differ from ISO 4217, `minimums` and `maximums` those that
    differ from the defaults.
    """

    provider: str
    exponents: Mapping[str, int]
    minimums: Mapping[str, int]
    minimum: int
    maximums: Mapping[str, int]
    maximum: int
    currencies: frozenset[str]

    def limits(self, currency_code: str) -> AmountLimits | None:
        """The amounts that the provider accepts; None for a currency that it does not accept."""
        if currency_code not in self.currencies:
            return None
        step = self.step_minor(currency_code)
        least = self._minor(self.minimums.get(currency_code, self.minimum), currency_code)
        most = self._minor(self.maximums.get(currency_code, self.maximum), currency_code)
        return AmountLimits(max(step, -(-least // step) * step), most // step * step, step)

    def step_minor(self, currency_code: str) -> int:
        """The smallest amount that the provider can move, in minor units."""
        ours = exponent(currency_code)
        theirs = self._exponent(currency_code)
        lost: int = 10 ** max(ours - theirs, 0)
        return max(lost, 10 if theirs == _THREE_DECIMALS else 1)

    def to_provider(self, money: Money) -> int:
        """The provider's number. Raises ProviderRefusedError for one that it cannot move."""
        if money.amount_minor % self.step_minor(money.currency_code):
            raise ProviderRefusedError(self.provider, "amount_not_representable")
        ours, theirs = exponent(money.currency_code), self._exponent(money.currency_code)
        if theirs >= ours:
            return int(money.amount_minor * 10 ** (theirs - ours))
        return int(money.amount_minor // 10 ** (ours - theirs))

    def from_provider(self, amount: int, currency_code: str) -> Money:
        """The amount of a provider's number. Raises ValueError for a fraction of a minor unit."""
        currency_code = currency_code.upper()
        ours, theirs = exponent(currency_code), self._exponent(currency_code)
        if theirs <= ours:
            return Money(int(amount * 10 ** (ours - theirs)), currency_code)
        minor, rest = divmod(amount, 10 ** (theirs - ours))
        if rest:
            raise ValueError(f"{amount} {currency_code} is not a whole number of minor units")
        return Money(minor, currency_code)

    def _minor(self, amount: int, currency_code: str) -> int:
        """The minor units of a provider's number, rounded up."""
        ours, theirs = exponent(currency_code), self._exponent(currency_code)
        scaled: int = amount * 10 ** max(ours - theirs, 0)
        rounded: int = -(-scaled // 10 ** max(theirs - ours, 0))
        return rounded

    def _exponent(self, currency_code: str) -> int:
        return self.exponents.get(currency_code, exponent(currency_code))


# Stripe's documentation, "Minimum and maximum charge amounts". A currency that it does not list
# has the minimum of the account's own currency, which only Stripe knows: its rejection counts.
_STRIPE_MINIMUMS = {
    "AED": 200, "ARS": 50, "AUD": 50, "BRL": 50, "CAD": 50, "CHF": 50, "COP": 50, "CZK": 1500,
    "DKK": 250, "EUR": 50, "GBP": 30, "HKD": 400, "HUF": 17500, "IDR": 50, "ILS": 50, "INR": 50,
    "JPY": 50, "KRW": 50, "MXN": 1000, "MYR": 200, "NOK": 300, "NZD": 50, "PHP": 50, "PLN": 200,
    "RON": 200, "SEK": 300, "SGD": 50, "THB": 1000, "USD": 50, "ZAR": 50,
}  # fmt: skip
_STRIPE_MAXIMUMS = {
    "COP": 9_999_999_999, "HUF": 9_999_999_999, "IDR": 999_999_999_999, "INR": 999_999_999,
    "JPY": 9_999_999_999, "LBP": 999_999_999_999,
}  # fmt: skip
# Active codes of ISO 4217 in which Stripe makes no charges.
_NOT_AT_STRIPE = frozenset({
    "BTN", "CUP", "ERN", "IQD", "IRR", "KPW", "LYD", "MRU", "SDG", "SSP", "SVC", "SYP", "TMT",
    "VED", "VES", "ZWG",
})  # fmt: skip

STRIPE = Units(
    "stripe",
    {"MGA": 0, "ISK": 2, "UGX": 2},
    minimums=_STRIPE_MINIMUMS,
    minimum=1,
    maximums=_STRIPE_MAXIMUMS,
    maximum=99_999_999,
    currencies=CURRENCIES - _NOT_AT_STRIPE,
)
# Razorpay: at least one unit of the currency, e.g. INR 1.00. The maximum is the account's own,
# which Razorpay does not publish: its rejection counts, this one is for typing errors.
RAZORPAY = Units(
    "razorpay",
    {},
    minimums={code: 10 ** exponent(code) for code in CURRENCIES},
    minimum=1,
    maximums={},
    maximum=99_999_999_999,
    currencies=CURRENCIES,
)
# The minimums and steps of Stripe, so that development refuses what production would.
SANDBOX = Units(
    "sandbox",
    {},
    minimums=_STRIPE_MINIMUMS,
    minimum=1,
    maximums={},
    maximum=999_999_999_999,
    currencies=CURRENCIES,
)


def up_to_step(money: Money, step_minor: int) -> Money:
    """The smallest multiple of `step_minor` that is not below the amount."""
    return Money(-(-money.amount_minor // step_minor) * step_minor, money.currency_code)
