"""What payment_svc asks of a payment provider, and what a provider reports.

Adapters (sandbox/provider.py) translate between this and a provider's own API. What a
report does to a payment is decided in observations.py, for webhooks and answers alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from mesh.money import Money

# Shorter than the lease of a refund and the deadline of the calls that wait for it.
CALL_SECONDS = 5.0
LIST_SECONDS = 120.0
"""For lists of many pages, each of which has the limit of a call."""


class ProviderError(Exception):
    """The provider failed, or did not answer: whether it did what was asked is not known."""

    def __init__(self, provider: str, code: str) -> None:
        super().__init__(f"{provider}: {code}")
        self.provider = provider
        self.code = code


class ProviderRefusedError(ProviderError):
    """The provider said no for good: it did nothing, and asking again changes nothing."""


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
    event_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A payment as the provider knows it: its own id and the page where it is paid."""

    reference: str
    payment_url: str


@dataclass(frozen=True, slots=True)
class RefundOrder:
    """Money to give back, after so many definite refusals of the same refund.

    `attempt` counts the calls for it: from the second on, one may have succeeded unheard.
    """

    refund_id: UUID
    payment_id: UUID
    session_reference: str | None
    capture_reference: str
    amount: Money
    refusals: int
    attempt: int = 1

    @property
    def idempotency_key(self) -> str:
        """The same until the provider has refused: a provider repeats its answer to a key."""
        return f"{self.refund_id}:{self.refusals}"


@dataclass(frozen=True, slots=True)
class ProviderReport:
    """Something that happened to a payment at its provider.

    `session_reference` is the provider's id of the payment, None when it never heard
    of it or does not say; `event_time` is the provider's time of what happened. Without
    a `payment_id` the provider's own ids tell which payment it is.
    """

    payment_id: UUID | None
    session_reference: str | None
    event_time: datetime


@dataclass(frozen=True, slots=True)
class Authorized(ProviderReport):
    """The money is reserved at the customer's bank, under the provider's id of that."""

    method: str
    authorization_reference: str | None = None


@dataclass(frozen=True, slots=True)
class Captured(ProviderReport):
    """The money was taken. `capture_reference` is the provider's id of this taking.

    `fee` is what the provider keeps of it, None while it does not say.
    """

    capture_reference: str
    amount: Money
    method: str
    fee: Money | None = None


@dataclass(frozen=True, slots=True)
class Failed(ProviderReport):
    """A try to pay was refused."""

    failure_code: str


@dataclass(frozen=True, slots=True)
class Voided(ProviderReport):
    """No money was taken, and none will be."""


@dataclass(frozen=True, slots=True)
class RefundProcessed(ProviderReport):
    """Money went back. `refund_reference` is the provider's id of it.

    Without a `refund_id` it is no refund of ours: somebody gave it back at the provider.
    """

    refund_id: UUID | None
    refund_reference: str
    amount: Money
    capture_reference: str | None = None


@dataclass(frozen=True, slots=True)
class RefundRefused(ProviderReport):
    """The provider refused the refund's call number `refusals`; no money was moved."""

    refund_id: UUID
    refusals: int
    failure_code: str


class DisputeStatus(StrEnum):
    """OPEN takes the money away for the time being; WON brings it back, LOST does not."""

    OPEN = "OPEN"
    WON = "WON"
    LOST = "LOST"


@dataclass(frozen=True, slots=True)
class Disputed(ProviderReport):
    """The customer's bank asks a capture back; `dispute_reference` is the provider's id."""

    dispute_reference: str
    capture_reference: str
    amount: Money
    reason: str
    status: DisputeStatus


class MovementKind(StrEnum):
    CAPTURE = "CAPTURE"
    REFUND = "REFUND"


@dataclass(frozen=True, slots=True)
class Movement:
    """Money that the provider says it moved, with the report that would tell of it."""

    kind: MovementKind
    reference: str
    amount: Money
    event_time: datetime
    report: Captured | RefundProcessed

    @classmethod
    def of(cls, report: Captured | RefundProcessed) -> "Movement":
        """The movement that a report tells of."""
        if isinstance(report, Captured):
            kind, reference = MovementKind.CAPTURE, report.capture_reference
        else:
            kind, reference = MovementKind.REFUND, report.refund_reference
        return cls(kind, reference, report.amount, report.event_time, report)


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A verified webhook. `report` is None for a type that means nothing to us."""

    event_id: str
    event_type: str
    report: ProviderReport | None


class Provider(Protocol):
    """A payment provider. Every call is safe to repeat and raises ProviderError on trouble.

    `reference` is the provider's id of the payment, None when its answer was never heard.
    """

    async def create_session(self, order: Order) -> Session:
        """Opens the payment, or returns it when `order.payment_id` is open already.

        Raises ProviderRefusedError for an amount or a currency that it never takes.
        """

    async def void(self, order: Order, reference: str | None) -> Voided | Captured:
        """Closes a payment to further money, or says that it was paid before.

        The provider decides between this and a customer who pays at the same moment.
        """

    async def capture(self, order: Order, authorization_reference: str) -> Captured | Failed:
        """Takes the money of an authorisation, or says that it is gone."""

    async def refund(self, order: RefundOrder) -> RefundProcessed | RefundRefused | None:
        """Gives money back. None: accepted, a webhook tells when it is done."""

    async def inspect(self, order: Order, reference: str) -> Sequence[ProviderReport]:
        """All that is true of a payment now, as the reports that would have told it."""

    async def movements(self, *, since: datetime, until: datetime) -> Sequence[Movement]:
        """All money that the provider moved for us in [since, until), at most so many."""

    def step_minor(self, currency_code: str) -> int:
        """The smallest amount that it can move, in minor units: all others are multiples."""

    def read_webhook(
        self, body: bytes, headers: Mapping[str, str], *, now: datetime
    ) -> WebhookEvent:
        """What a webhook says. Verifies its signature over the raw bytes before all else.

        `headers` have lower-case names. Raises WEBHOOK_SIGNATURE_INVALID.
        """
