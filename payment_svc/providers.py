"""What payment_svc asks of a payment provider, and what a provider reports.

Adapters (sandbox/provider.py) translate between this and a provider's own API. What a
report does to a payment is decided in observations.py, for webhooks and answers alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from mesh.money import Money


class ProviderError(Exception):
    """The provider failed, or did not answer: whether it did what was asked is not known."""

    def __init__(self, provider: str, code: str) -> None:
        super().__init__(f"{provider}: {code}")
        self.provider = provider
        self.code = code


@dataclass(frozen=True, slots=True)
class Order:
    """What a payment is for. `payment_id` is the idempotency key at the provider."""

    payment_id: UUID
    booking_id: UUID
    customer_id: UUID
    provider: str
    amount: Money
    description: str
    success_url: str
    cancel_url: str


@dataclass(frozen=True, slots=True)
class Session:
    """A payment as the provider knows it: its own id and the page where it is paid."""

    reference: str
    payment_url: str


@dataclass(frozen=True, slots=True)
class RefundOrder:
    """Money to give back, after so many definite refusals of the same refund."""

    refund_id: UUID
    payment_id: UUID
    session_reference: str | None
    capture_reference: str
    amount: Money
    refusals: int

    @property
    def idempotency_key(self) -> str:
        """The same until the provider has refused: a provider repeats its answer to a key."""
        return f"{self.refund_id}:{self.refusals}"


@dataclass(frozen=True, slots=True)
class Report:
    """Something that happened to a payment at its provider.

    `session_reference` is the provider's id of the payment, None when it never heard
    of it; `event_time` is the provider's time of what happened.
    """

    payment_id: UUID
    session_reference: str | None
    event_time: datetime


@dataclass(frozen=True, slots=True)
class Authorized(Report):
    """The money is reserved at the customer's bank."""

    method: str


@dataclass(frozen=True, slots=True)
class Captured(Report):
    """The money was taken. `capture_reference` is the provider's id of this taking."""

    capture_reference: str
    amount: Money
    method: str


@dataclass(frozen=True, slots=True)
class Failed(Report):
    """A try to pay was refused."""

    failure_code: str


@dataclass(frozen=True, slots=True)
class Voided(Report):
    """No money was taken, and none will be."""


@dataclass(frozen=True, slots=True)
class RefundProcessed(Report):
    """Money went back. `refund_reference` is the provider's id of it."""

    refund_id: UUID
    refund_reference: str
    amount: Money


@dataclass(frozen=True, slots=True)
class RefundRefused(Report):
    """The provider refused the refund's call number `refusals`; no money was moved."""

    refund_id: UUID
    refusals: int
    failure_code: str


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A verified webhook. `report` is None for a type that means nothing to us."""

    event_id: str
    event_type: str
    report: Report | None


class Provider(Protocol):
    """A payment provider. Every call is safe to repeat and raises ProviderError on trouble."""

    async def create_session(self, order: Order) -> Session:
        """Opens the payment, or returns it when `order.payment_id` is open already."""

    async def void(self, payment_id: UUID) -> Voided | Captured:
        """Closes a payment to further money, or says that it was paid before.

        The provider decides between this and a customer who pays at the same moment.
        """

    async def refund(self, order: RefundOrder) -> RefundProcessed | RefundRefused | None:
        """Gives money back. None: accepted, a webhook tells when it is done."""

    def read_webhook(
        self, body: bytes, headers: Mapping[str, str], *, now: datetime
    ) -> WebhookEvent:
        """What a webhook says. Verifies its signature over the raw bytes before all else.

        `headers` have lower-case names. Raises WEBHOOK_SIGNATURE_INVALID.
        """
