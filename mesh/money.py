"""Amounts as an integer in the smallest unit of their currency."""

from dataclasses import dataclass

# ISO 4217 list one: currencies whose minor unit is not 1/100.
# fmt: off
EXPONENTS = {
    "BIF": 0, "CLP": 0, "DJF": 0, "GNF": 0, "ISK": 0, "JPY": 0, "KMF": 0, "KRW": 0, "PYG": 0,
    "RWF": 0, "UGX": 0, "UYI": 0, "VND": 0, "VUV": 0, "XAF": 0, "XOF": 0, "XPF": 0,
    "BHD": 3, "IQD": 3, "JOD": 3, "KWD": 3, "LYD": 3, "OMR": 3, "TND": 3,
    "CLF": 4, "UYW": 4,
}
# fmt: on
_DEFAULT_EXPONENT = 2

# ISO 4217 list one, active codes of money: without funds, precious metals, test and "no currency".
# fmt: off
CURRENCIES = frozenset({
    "AED", "AFN", "ALL", "AMD", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BHD",
    "BIF", "BMD", "BND", "BOB", "BRL", "BSD", "BTN", "BWP", "BYN", "BZD", "CAD", "CDF", "CHF",
    "CLP", "CNY", "COP", "CRC", "CUP", "CVE", "CZK", "DJF", "DKK", "DOP", "DZD", "EGP", "ERN",
    "ETB", "EUR", "FJD", "FKP", "GBP", "GEL", "GHS", "GIP", "GMD", "GNF", "GTQ", "GYD", "HKD",
    "HNL", "HTG", "HUF", "IDR", "ILS", "INR", "IQD", "IRR", "ISK", "JMD", "JOD", "JPY", "KES",
    "KGS", "KHR", "KMF", "KPW", "KRW", "KWD", "KYD", "KZT", "LAK", "LBP", "LKR", "LRD", "LSL",
    "LYD", "MAD", "MDL", "MGA", "MKD", "MMK", "MNT", "MOP", "MRU", "MUR", "MVR", "MWK", "MXN",
    "MYR", "MZN", "NAD", "NGN", "NIO", "NOK", "NPR", "NZD", "OMR", "PAB", "PEN", "PGK", "PHP",
    "PKR", "PLN", "PYG", "QAR", "RON", "RSD", "RUB", "RWF", "SAR", "SBD", "SCR", "SDG", "SEK",
    "SGD", "SHP", "SLE", "SOS", "SRD", "SSP", "STN", "SVC", "SYP", "SZL", "THB", "TJS", "TMT",
    "TND", "TOP", "TRY", "TTD", "TWD", "TZS", "UAH", "UGX", "USD", "UYU", "UZS", "VED", "VES",
    "VND", "VUV", "WST", "XAF", "XCD", "XCG", "XOF", "XPF", "YER", "ZAR", "ZMW", "ZWG",
})
# fmt: on

_SYMBOLS = {"EUR": "€", "GBP": "£", "INR": "₹", "JPY": "¥", "KRW": "₩", "USD": "$"}


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in minor units, e.g. 150000 INR for ₹ 1,500.00."""

    amount_minor: int
    currency_code: str

    def __str__(self) -> str:
        """For display: `₹ 1,500.00`, `¥ 1,500`, `KWD 1.500`."""
        symbol = _SYMBOLS.get(self.currency_code, self.currency_code)
        digits = exponent(self.currency_code)
        whole, fraction = divmod(abs(self.amount_minor), 10**digits)
        sign = "-" if self.amount_minor < 0 else ""
        decimals = f".{fraction:0{digits}d}" if digits else ""
        return f"{sign}{symbol} {whole:,}{decimals}"


@dataclass(frozen=True, slots=True)
class AmountLimits:
    """The amounts that a payment provider accepts in one currency, in minor units."""

    minimum_minor: int
    maximum_minor: int
    step_minor: int

    def accept(self, amount: Money) -> bool:
        return (
            self.minimum_minor <= amount.amount_minor <= self.maximum_minor
            and amount.amount_minor % self.step_minor == 0
        )


def exponent(currency_code: str) -> int:
    """Decimal places of a currency: 2 for most, 0 for JPY, 3 for KWD."""
    return EXPONENTS.get(currency_code, _DEFAULT_EXPONENT)
