"""The page of a provider where a customer pays: whether it can be opened, and opening it.

What is paid there is checkout.py's (a booking) and change_payment.py's (a price difference).
"""

from dataclasses import dataclass
from uuid import UUID

from booking_svc.bookings.dependencies import Dependencies
from booking_svc.catalogue import payability
from booking_svc.clients.ports import Limits
from mesh.errors import DomainError, Reason
from mesh.money import Money

_CLOSED = "VOIDED"


@dataclass(frozen=True, slots=True)
class Checkout:
    provider: str
    success_url: str
    cancel_url: str

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


async def limits(deps: Dependencies, currency_code: str) -> Limits | None:
    """The providers' limits; None if payment_svc is unavailable: it refuses later, then."""
    try:
        return await deps.payments.limits(currency_code=currency_code)
    except DomainError:
        return None


async def refuse_unpayable(deps: Dependencies, amount: Money, checkout: Checkout | None) -> None:
    """Refuses what cannot be paid, before anything is held for it.

    Raises PROVIDER_NOT_FOUND or PAYMENT_FAILED.
    """
    known = await limits(deps, amount.currency_code)
    if known is not None:
        provider = None if checkout is None else checkout.provider
        payability.refuse_unpayable(amount, known, provider=provider)


async def open_page(deps: Dependencies, request: PageRequest, checkout: Checkout) -> str | None:
    """Opens a page, or returns the URL of the page that was opened for the payment.

    None if that page cannot be used: it is closed, or it has another provider or addresses.
    Raises as payment_svc does.
    """
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
        )
    except DomainError as refusal:
        # The payment exists with other terms.
        if refusal.reason is Reason.PAYMENT_STATE_INVALID:
            return None
        raise
    return None if payment.status == _CLOSED else payment.payment_url
