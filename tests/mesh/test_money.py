import pytest

from mesh.money import Money, exponent


@pytest.mark.parametrize(
    ("currency_code", "places"),
    [("INR", 2), ("EUR", 2), ("JPY", 0), ("KRW", 0), ("KWD", 3), ("TND", 3), ("CLF", 4)],
)
def test_each_currency_has_its_decimal_places(currency_code: str, places: int) -> None:
    assert exponent(currency_code) == places


@pytest.mark.parametrize(
    ("money", "text"),
    [
        (Money(150_000, "INR"), "₹ 1,500.00"),
        (Money(5, "INR"), "₹ 0.05"),
        (Money(0, "EUR"), "€ 0.00"),
        (Money(1_500, "JPY"), "¥ 1,500"),
        (Money(1_500, "KWD"), "KWD 1.500"),
        (Money(1_000_000_000_000, "USD"), "$ 10,000,000,000.00"),
        (Money(-150, "EUR"), "-€ 1.50"),
    ],
)
def test_an_amount_is_formatted_for_display(money: Money, text: str) -> None:
    assert str(money) == text
