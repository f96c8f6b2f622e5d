"""Which amounts the payment providers accept: an amount that nobody can pay holds no stock.

The limits come from payment_svc. A free offer needs no provider.
"""

from collections.abc import Iterable, Iterator

from booking_svc.catalogue.events import Offer
from booking_svc.clients.ports import Limits
from mesh.errors import DomainError, FieldViolation, Reason
from mesh.money import CURRENCIES, Money


def currency_violations(field: str, currency_code: str) -> Iterator[FieldViolation]:
    """A currency that is not an active one of ISO 4217."""
    if currency_code not in CURRENCIES:
        yield FieldViolation(field, "must be an active currency code of ISO 4217, e.g. `INR`")


def price_violations(
    offers: Iterable[tuple[Offer, str]], limits: Limits
) -> Iterator[FieldViolation]:
    """Prices that no provider accepts. `offers` come with their fields in the request."""
    for offer, field in offers:
        if offer.price.currency_code in CURRENCIES and not _is_payable(offer.price, limits):
            yield FieldViolation(
                f"{field}.price.amount_minor",
                f"cannot be paid: {_explain(offer.price.currency_code, limits)}; 0 is free",
            )


def refuse_unpayable(amount: Money, limits: Limits, *, provider: str | None) -> None:
    """Raises PROVIDER_NOT_FOUND, or PAYMENT_FAILED for an amount that cannot be paid.

    Without a provider, the amount must be payable with any of them.
    """
    if provider is not None:
        if provider not in limits:
            raise DomainError(
                Reason.PROVIDER_NOT_FOUND,
                "unknown payment provider",
                provider=provider,
                providers=",".join(limits),
            )
        limits = {provider: limits[provider]}
    if not _is_payable(amount, limits):
        raise DomainError(
            Reason.PAYMENT_FAILED,
            f"{amount} cannot be paid: {_explain(amount.currency_code, limits)}",
            provider=",".join(limits),
            code="amount_not_accepted",
        )


def _is_payable(amount: Money, limits: Limits) -> bool:
    return amount.amount_minor == 0 or any(
        accepted is not None and accepted.accept(amount) for accepted in limits.values()
    )


def _explain(currency_code: str, limits: Limits) -> str:
    """The limits of each provider, in minor units as in requests."""
    if not limits:
        return "no payment provider is enabled"
    return "; ".join(
        f"{name} does not accept {currency_code}"
        if accepted is None
        else f"{name} accepts {accepted.minimum_minor} to {accepted.maximum_minor} minor units of"
        f" {currency_code} in steps of {accepted.step_minor}"
        for name, accepted in limits.items()
    )
