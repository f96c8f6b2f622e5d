"""The interface of a payment provider: its calls, and the reports that it answers with.

The adapters (stripe/, razorpay/, sandbox/provider.py) implement it over a provider's own API.
How a report changes a payment is in payment_reports.py.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeVar
from uuid import UUID

from mesh.money import AmountLimits, Money

_ReportT = TypeVar("_ReportT", bound="ProviderReport")

# Shorter than the lease of a refund and the deadlines of the RPCs that call a provider.
CALL_SECONDS = 5.0
LIST_SECONDS = 120.0
"""Limit of a list of many pages. Each page has the limit of a call."""


class ProviderError(Exception):
    """The provider failed or did not answer. Whether it carried out the call is unknown."""

    def __init__(self, provider: str, code: str) -> None:
        super().__init__(f"{provider}: {code}")
        self.provider = provider
        self.code = code


class ProviderRefusedError(ProviderError):
    """The provider rejected the call: it did nothing, and a repetition is rejected again."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a payment is for. `payment_id` is the idempotency key at the provider.

    An embedded payment has no page: the client pays with the session's `client_secret`. `email`
    and `phone` are the customer's, empty when not known or no longer needed.
    """

    payment_id: UUID
    booking_id: UUID
    customer_id: UUID
    provider: str
    amount: Money
    description: str
    success_url: str
    cancel_url: str
    event_id: UUID | None = None
    is_embedded: bool = False
    email: str = field(default="", compare=False, repr=False)
    phone: str = field(default="", compare=False, repr=False)
    expire_time: datetime | None = field(default=None, compare=False)

    @property
    def notes(self) -> dict[str, str]:
        """Our ids, which the provider stores with the payment."""
        return {"payment_id": str(self.payment_id), "booking_id": str(self.booking_id)}


@dataclass(frozen=True, slots=True)
class Session:
    """A payment at the provider: the provider's id and the URL of its payment page.

    An embedded payment has an empty URL and a `client_secret`.
    """

    reference: str
    payment_url: str
    client_secret: str | None = None


@dataclass(frozen=True, slots=True)
class RefundOrder:
    """One attempt at a refund.

    `refusals` counts the attempts that the provider rejected, `attempt` all of them, this one
    included. An earlier attempt without an answer may have succeeded.
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
        """Changes with each rejection: a provider repeats its stored answer to a key."""
        return f"{self.refund_id}:{self.refusals}"

    @property
    def notes(self) -> dict[str, str]:
        """Our ids, which the provider stores with the refund."""
        return {
            "refund_id": str(self.refund_id),
            "payment_id": str(self.payment_id),
            "refusals": str(self.refusals),
        }


@dataclass(frozen=True, slots=True)
class ProviderReport:
    """Something that happened to a payment at its provider.

    `session_reference` is the provider's id of the payment, None when the provider has no such
    payment or does not report it. `event_time` is the provider's time. Without a `payment_id`
    the provider's ids identify the payment.
    """

    payment_id: UUID | None
    session_reference: str | None
    event_time: datetime
    # The provider's objects that a call returned, as JSON; a webhook's are stored by its receiver.
    answer: bytes | None = field(default=None, kw_only=True, compare=False, repr=False)


def with_answer(report: _ReportT, answer: object) -> _ReportT:
    """The report with the provider's answer that it was read from."""
    return replace(report, answer=json.dumps(answer, default=str).encode())


@dataclass(frozen=True, slots=True)
class Authorized(ProviderReport):
    """The money is reserved at the customer's bank and not captured."""

    method: str
    authorization_reference: str | None = None


@dataclass(frozen=True, slots=True)
class Captured(ProviderReport):
    """The money was captured. `capture_reference` is the provider's id of the capture.

    `fee` is the provider's fee, None while it is not known.
    """

    capture_reference: str
    amount: Money
    method: str
    fee: Money | None = None


@dataclass(frozen=True, slots=True)
class Failed(ProviderReport):
    """An attempt to pay was declined. The customer can try again on the same page.

    `attempt_reference` is the provider's id of the attempt, the same in each report of it.
    """

    failure_code: str
    attempt_reference: str | None = None


@dataclass(frozen=True, slots=True)
class Voided(ProviderReport):
    """The payment is closed: no money was captured, and none will be."""


@dataclass(frozen=True, slots=True)
class RefundProcessed(ProviderReport):
    """A refund was completed. `refund_reference` is the provider's id of it.

    `refund_id` is None for a refund that was made in the provider's dashboard.
    """

    refund_id: UUID | None
    refund_reference: str
    amount: Money
    capture_reference: str | None = None


@dataclass(frozen=True, slots=True)
class RefundPending(ProviderReport):
    """The provider has accepted a refund and not completed it. Fields as in RefundProcessed."""

    refund_id: UUID | None
    refund_reference: str
    amount: Money
    capture_reference: str | None = None


@dataclass(frozen=True, slots=True)
class RefundRefused(ProviderReport):
    """The provider rejected a refund, or one that it had accepted or completed has failed.

    No money moved, or it came back. `refusals` is the number of rejections before this one.
    `refund_reference` is the provider's id, None when it rejected the call. `refund_id` is None
    for a refund that was made in the provider's dashboard. With `is_final` a repetition is
    rejected again.
    """

    refund_id: UUID | None
    refusals: int
    failure_code: str
    refund_reference: str | None = None
    capture_reference: str | None = None
    amount: Money | None = None
    is_final: bool = False

    @classmethod
    def of(
        cls, order: RefundOrder, *, event_time: datetime, failure_code: str, is_final: bool = False
    ) -> "RefundRefused":
        """The rejection of an attempt."""
        return cls(
            order.payment_id,
            order.session_reference,
            event_time,
            order.refund_id,
            order.refusals,
            failure_code,
            is_final=is_final,
        )


RefundReport = RefundPending | RefundProcessed | RefundRefused


def ended(report: RefundReport) -> RefundProcessed | RefundRefused | None:
    """The report of a refund that is no longer pending."""
    return None if isinstance(report, RefundPending) else report


class DisputeStatus(StrEnum):
    """OPEN withholds the money, WON returns it to us, LOST to the customer.

    An INQUIRY of the bank moves no money. It is closed or becomes a dispute.
    """

    INQUIRY = "INQUIRY"
    INQUIRY_CLOSED = "INQUIRY_CLOSED"
    OPEN = "OPEN"
    WON = "WON"
    LOST = "LOST"


@dataclass(frozen=True, slots=True)
class Disputed(ProviderReport):
    """The customer's bank disputes a capture. `dispute_reference` is the provider's id."""

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
    """Money that the provider lists as moved, and the report of it."""

    kind: MovementKind
    reference: str
    amount: Money
    event_time: datetime
    report: Captured | RefundProcessed

    @classmethod
    def of(cls, report: Captured | RefundProcessed) -> "Movement":
        """The movement of a report."""
        if isinstance(report, Captured):
            kind, reference = MovementKind.CAPTURE, report.capture_reference
        else:
            kind, reference = MovementKind.REFUND, report.refund_reference
        return cls(kind, reference, report.amount, report.event_time, report)


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A verified webhook. `report` is None for a type that is not used."""

    event_id: str
    event_type: str
    report: ProviderReport | None


class Provider(Protocol):
    """A payment provider. Every call is safe to repeat and raises ProviderError when it fails.

    `reference` is the provider's id of the payment, None when opening it had no answer.
    `has_embedded`: whether it opens embedded payments.
    """

    has_embedded: bool

    async def create_session(self, order: Order) -> Session:
        """Opens the payment, or returns the one that was opened for `order.payment_id`.

        Raises ProviderRefusedError for an amount or a currency that it does not accept.
        """

    async def void(self, order: Order, reference: str | None) -> Voided | Captured:
        """Closes a payment, or returns its capture when it is paid.

        The provider decides between this call and a customer who pays at the same time.
        """

    async def capture(self, order: Order, authorization_reference: str) -> Captured | Failed:
        """Captures an authorisation. Failed when it has expired or was cancelled."""

    async def refund(self, order: RefundOrder) -> RefundProcessed | RefundRefused | None:
        """Refunds money. None: accepted and not completed; a webhook reports the end."""

    async def inspect(self, order: Order, reference: str) -> Sequence[ProviderReport]:
        """The present state of a payment, as reports."""

    async def movements(self, *, since: datetime, until: datetime) -> Sequence[Movement]:
        """All money that the provider moved for us in [since, until)."""

    def step_minor(self, currency_code: str) -> int:
        """The smallest amount that it can move, in minor units; all amounts are multiples."""

    def limits(self, currency_code: str) -> AmountLimits | None:
        """The amounts of a payment that it accepts. None for a currency that it does not."""

    def read_webhook(
        self, body: bytes, headers: Mapping[str, str], *, now: datetime
    ) -> WebhookEvent:
        """Reads a webhook, after verifying its signature over the raw bytes.

        `headers` have lower-case names. Raises WEBHOOK_SIGNATURE_INVALID.
        """
