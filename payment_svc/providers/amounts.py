"""Conversion between ISO 4217 minor units and the amounts that providers write.

Stripe (documentation, "Supported currencies") has other decimals for some currencies. Stripe
and Razorpay accept amounts with three decimals in steps of ten only.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mesh.money import Money, exponent
from payment_svc.providers.base import ProviderRefusedError

_THREE_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class Units:
    """A provider's units. `exponents` has the currencies that differ from ISO 4217."""

    provider: str
    exponents: Mapping[str, int]

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

    def _exponent(self, currency_code: str) -> int:
        return self.exponents.get(currency_code, exponent(currency_code))


STRIPE = Units("stripe", {"MGA": 0, "ISK": 2, "UGX": 2})
RAZORPAY = Units("razorpay", {})
SANDBOX = Units("sandbox", {})


def up_to_step(money: Money, step_minor: int) -> Money:
    """The smallest multiple of `step_minor` that is not below the amount."""
    return Money(-(-money.amount_minor // step_minor) * step_minor, money.currency_code)
