"""The page of a provider where a customer pays: whether it can be opened, and opening it.

What is paid there is checkout.py's (a booking) and change_payment.py's (a price difference).
"""

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from booking_svc.bookings import customers
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.catalogue import payability
from booking_svc.clients.ports import Limits
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.money import Money

_CLOSED = "VOIDED"


@dataclass(frozen=True, slots=True)
class Checkout:
    provider: str
    success_url: str
    cancel_url: str
    is_embedded: bool = False
    # Where the request has it, e.g. `checkout.`.
    prefix: str = ""

    @property
    def has_addresses(self) -> bool:
        return bool(self.success_url or self.cancel_url)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What is paid on a page. `payment_id` makes opening it repeatable."""

    payment_id: UUID
    booking_id: UUID
    event_id: UUID
    customer_id: UUID
    amount: Money
    description: str
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class PaymentPage:
    """Where a payment is paid: a URL, or the secret for the client's own page."""

    url: str
    client_secret: str | None


def with_provider(deps: Dependencies, checkout: Checkout, present: str | None) -> Checkout:
    """The checkout with a provider: its own, that of the present payment, or the default.

    Raises VALIDATION_FAILED if there is none.
    """
    provider = checkout.provider or present or deps.default_provider
    if not provider:
        raise invalid(
            FieldViolation(f"{checkout.prefix}provider", "is required: no default provider is set")
        )
    return replace(checkout, provider=provider)


async def limits(deps: Dependencies, currency_code: str) -> Limits | None:
    """The providers' limits; None if payment_svc is unavailable: it refuses later, then."""
    try:
        return await deps.payments.limits(currency_code=currency_code)
    except DomainError:
        return None


async def refuse_unpayable(deps: Dependencies, amount: Money, checkout: Checkout | None) -> None:
    """Refuses what cannot be paid, before anything is held for it.

    Raises PROVIDER_NOT_FOUND, PAYMENT_FAILED, or VALIDATION_FAILED for an embedded payment that
    the provider does not offer.
    """
    known = await limits(deps, amount.currency_code)
    if known is None:
        return
    provider = None if checkout is None else checkout.provider
    payability.refuse_unpayable(amount, known, provider=provider)
    if (
        checkout is not None
        and checkout.is_embedded
        and not await deps.payments.offers_embedded(provider=checkout.provider)
    ):
        raise invalid(
            FieldViolation(
                f"{checkout.prefix}flow", f"{checkout.provider} does not offer EMBEDDED: use HOSTED"
            )
        )


async def open_page(
    deps: Dependencies, request: PageRequest, checkout: Checkout
) -> PaymentPage | None:
    """Opens a page, or returns the page that was opened for the payment.

    None if that page cannot be used: it is closed, or it has another provider, flow or addresses.
    Raises as payment_svc does.
    """
    async with deps.database.reading() as connection:
        contact = await customers.find(connection, user_id=request.customer_id)
    try:
        payment = await deps.payments.create(
            payment_id=request.payment_id,
            booking_id=request.booking_id,
            event_id=request.event_id,
            customer_id=request.customer_id,
            provider=checkout.provider,
            amount=request.amount,
            description=request.description,
            success_url=checkout.success_url,
            cancel_url=checkout.cancel_url,
            is_embedded=checkout.is_embedded,
            contact=contact,
            expire_time=request.expire_time,
        )
    except DomainError as refusal:
        # The payment exists with other terms.
        if refusal.reason is Reason.PAYMENT_STATE_INVALID:
            return None
        raise
    if payment.status == _CLOSED:
        return None
    return PaymentPage(payment.payment_url, payment.client_secret)
