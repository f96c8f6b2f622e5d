"""The amounts and currencies that providers accept."""

import pytest

from mesh.money import CURRENCIES, AmountLimits, Money
from payment_svc.providers.amounts import RAZORPAY, SANDBOX, STRIPE, Units

_ALL = [STRIPE, RAZORPAY, SANDBOX]


@pytest.mark.parametrize("units", _ALL, ids=lambda units: units.provider)
def test_both_limits_of_each_currency_are_amounts_that_the_provider_moves(units: Units) -> None:
    for code in CURRENCIES:
        limits = units.limits(code)
        if limits is None:
            assert code not in units.currencies
            continue
        for amount in (limits.minimum_minor, limits.maximum_minor):
            assert limits.accept(Money(amount, code)), code
            assert units.from_provider(units.to_provider(Money(amount, code)), code) == Money(
                amount, code
            )
        assert not limits.accept(Money(limits.minimum_minor - limits.step_minor, code))
        assert not limits.accept(Money(limits.maximum_minor + limits.step_minor, code))


@pytest.mark.parametrize(
    ("units", "code", "limits"),
    [
        (STRIPE, "USD", AmountLimits(50, 99_999_999, 1)),
        (STRIPE, "KWD", AmountLimits(10, 99_999_990, 10)),
        (STRIPE, "MGA", AmountLimits(100, 9_999_999_900, 100)),
        (STRIPE, "IDR", AmountLimits(50, 999_999_999_999, 1)),
        (STRIPE, "IRR", None),
        (RAZORPAY, "INR", AmountLimits(100, 99_999_999_999, 1)),
        (RAZORPAY, "KWD", AmountLimits(1_000, 99_999_999_990, 10)),
        (RAZORPAY, "JPY", AmountLimits(1, 99_999_999_999, 1)),
        (SANDBOX, "USD", AmountLimits(50, 999_999_999_999, 1)),
        (SANDBOX, "ZZZ", None),
    ],
)
def test_the_limits_of_a_currency(units: Units, code: str, limits: AmountLimits | None) -> None:
    assert units.limits(code) == limits
