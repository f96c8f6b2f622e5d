"""Amounts as providers write them, in one place. Inside, an amount is in ISO 4217 minor units.

Stripe (documentation, "Supported currencies"): some currencies have no decimals there
although ISO 4217 gives them some, two keep decimals that ISO has dropped, and amounts
with three decimals must end in 0. Razorpay (documentation, "International currencies"):
ISO's decimals, and the same rule for three.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mesh.money import Money, exponent

_THREE_DECIMALS = 3


class UnrepresentableError(ValueError):
    """The provider cannot move this amount of this currency."""


@dataclass(frozen=True, slots=True)
class Units:
    """How a provider writes amounts. `exponents` are those that are not ISO 4217's."""

    exponents: Mapping[str, int]

    def step_minor(self, currency_code: str) -> int:
        """Every amount that the provider can move is a multiple of so many minor units."""
        ours = exponent(currency_code)
        theirs = self._exponent(currency_code)
        lost: int = 10 ** max(ours - theirs, 0)
        return max(lost, 10 if theirs == _THREE_DECIMALS else 1)

    def to_provider(self, money: Money) -> int:
        """The number that the provider takes. Raises UnrepresentableError."""
        if money.amount_minor % self.step_minor(money.currency_code):
            raise UnrepresentableError(str(money))
        ours, theirs = exponent(money.currency_code), self._exponent(money.currency_code)
        if theirs >= ours:
            return int(money.amount_minor * 10 ** (theirs - ours))
        return int(money.amount_minor // 10 ** (ours - theirs))

    def from_provider(self, amount: int, currency_code: str) -> Money:
        """What a provider's number means. Raises UnrepresentableError for a part of a unit."""
        currency_code = currency_code.upper()
        ours, theirs = exponent(currency_code), self._exponent(currency_code)
        if theirs <= ours:
            return Money(int(amount * 10 ** (ours - theirs)), currency_code)
        minor, rest = divmod(amount, 10 ** (theirs - ours))
        if rest:
            raise UnrepresentableError(f"{amount} {currency_code}")
        return Money(minor, currency_code)

    def _exponent(self, currency_code: str) -> int:
        return self.exponents.get(currency_code, exponent(currency_code))


STRIPE = Units({"MGA": 0, "ISK": 2, "UGX": 2})
RAZORPAY = Units({})
SANDBOX = Units({})


def up_to_step(money: Money, step_minor: int) -> Money:
    """The least amount that can be moved and is not below this one: in the customer's favour."""
    return Money(-(-money.amount_minor // step_minor) * step_minor, money.currency_code)
