"""What booking_svc needs from the other services: protocols and plain values.

stock.py, payments.py and accounts.py implement them over gRPC; tests have implementations
of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from mesh.money import AmountLimits, Money


@dataclass(frozen=True, slots=True)
class Line:
    """A number of places of an offer, or one seat of it."""

    offer_id: UUID
    quantity: int
    seat_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    reservation_id: UUID
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class PoolStock:
    pool_id: UUID
    capacity: int


@dataclass(frozen=True, slots=True)
class OfferStock:
    offer_id: UUID
    pool_id: UUID
    per_customer_limit: int


@dataclass(frozen=True, slots=True)
class PoolAvailability:
    """Capacity and available places of a pool. `version` counts its movements.

    `kept` further free places are for the waiting list only.
    """

    capacity: int
    available: int
    version: int
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Availability:
    """Available places of an event by offer, and the state of each seat if requested."""

    version: int
    offers: Mapping[UUID, int]
    seats: Mapping[UUID, str]
    capacity: int
    available: int
    pools: Mapping[UUID, PoolAvailability] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolChange:
    """A pool after a change; `removed` when it was deleted."""

    pool_id: UUID
    capacity: int
    available: int
    version: int
    removed: bool


@dataclass(frozen=True, slots=True)
class StockChange:
    """What one ledger transaction changed in an event. A seat with the state None was removed."""

    event_id: UUID
    pools: Sequence[PoolChange]
    seats: Mapping[UUID, str | None]


@dataclass(frozen=True, slots=True)
class Payment:
    payment_id: UUID
    status: str
    payment_url: str
    client_secret: str | None = None


class Stock(Protocol):
    """stock_svc. Calls are idempotent and raise DomainError with stock_svc's reasons."""

    async def define(
        self,
        *,
        event_id: UUID,
        pools: Sequence[PoolStock],
        offers: Sequence[OfferStock],
        seats: Mapping[UUID, UUID],
        per_customer_limit: int | None,
    ) -> None:
        """Adds an event's stock to the ledger. `seats` maps seat ids to offer ids.

        `per_customer_limit` applies across all offers; None means no limit.
        """

    async def update(
        self,
        *,
        event_id: UUID,
        pools: Sequence[PoolStock],
        offers: Sequence[OfferStock],
        add_seats: Mapping[UUID, UUID],
        remove_seat_ids: Sequence[UUID],
        per_customer_limit: int | None,
    ) -> None:
        """Adds or changes pools and offers, adds and removes seats, in one transaction.

        A `per_customer_limit` of 0 removes the limit; None keeps it.
        Raises VALIDATION_FAILED with the fields of this call, such as `pools[0].capacity`.
        """

    async def remove(self, *, event_id: UUID) -> None:
        """Deletes an event's stock. Raises EVENT_STATE_INVALID if any was ever held or sold."""

    async def availability(self, *, event_id: UUID, with_seats: bool) -> Availability:
        """Raises EVENT_NOT_FOUND."""

    async def customer_totals(
        self, *, keys: Sequence[tuple[UUID, UUID]]
    ) -> Sequence[Mapping[UUID, int]]:
        """The places that a customer holds or owns at an event, by offer, without zeros.

        Each key is an event and a customer; at most 5,000 keys. In their order.
        """

    async def reserve(
        self,
        *,
        event_id: UUID,
        reservation_id: UUID,
        request_key: str,
        customer_id: UUID,
        lines: Sequence[Line],
        expire_time: datetime,
        for_waiting_list: bool = False,
    ) -> Reservation:
        """Reserves all places of `lines` or none, once per `request_key`.

        `for_waiting_list`: also places that are kept for the waiting list.
        """

    async def keep_for_waiting_list(
        self,
        *,
        event_id: UUID,
        version: int,
        pool_ids: Sequence[UUID],
        opened_pool_ids: Sequence[UUID],
    ) -> None:
        """Keeps what comes back in exactly these pools for the waiting list.

        What is free in those that become kept, and in `opened_pool_ids`, stays open to all. A
        call without a higher version than the last one changes nothing. Raises EVENT_NOT_FOUND.
        """

    async def extend(
        self, *, event_id: UUID, reservation_id: UUID, expire_time: datetime
    ) -> Reservation: ...

    async def commit(self, *, event_id: UUID, reservation_id: UUID) -> None: ...

    async def commit_all(
        self, *, reservations: Sequence[tuple[UUID, UUID]]
    ) -> Sequence[Exception | None]:
        """Commits reservations, given as event and reservation ids; the refusal of each."""

    async def release(self, *, event_id: UUID, reservation_id: UUID) -> None: ...

    async def return_sold(self, *, event_id: UUID, reservation_id: UUID) -> None:
        """Returns the sold stock of a committed reservation to its pools."""

    async def exchange(
        self,
        *,
        event_id: UUID,
        reservation_id: UUID,
        to_event_id: UUID,
        to_reservation_id: UUID,
        lines: Sequence[Line],
        expire_time: datetime,
    ) -> Reservation:
        """Replaces a reservation by another one in the same state, in one transaction."""


Limits = Mapping[str, AmountLimits | None]
"""The limits of each configured provider, by name; None where it does not accept the currency."""


class Payments(Protocol):
    """payment_svc. Calls are idempotent and raise DomainError with payment_svc's reasons."""

    async def create(
        self,
        *,
        payment_id: UUID,
        booking_id: UUID,
        event_id: UUID,
        customer_id: UUID,
        provider: str,
        amount: Money,
        description: str,
        success_url: str,
        cancel_url: str,
        is_embedded: bool,
        contact: "Contact | None",
        expire_time: datetime,
    ) -> Payment: ...

    async def offers_embedded(self, *, provider: str) -> bool:
        """Whether the provider has embedded payments, as of the last `limits`."""

    async def limits(self, *, currency_code: str) -> Limits:
        """What the configured providers accept in a currency; up to a minute old."""

    async def void(self, *, payment_id: UUID) -> Payment: ...

    async def refund(
        self, *, refund_id: UUID, payment_id: UUID, amount: Money, reason: str
    ) -> None:
        """Starts the refund of an amount, once per `refund_id`.

        Raises PAYMENT_STATE_INVALID with `refundable` when the amount exceeds it.
        """

    async def outcome(
        self, *, booking_id: UUID, payment_id: UUID
    ) -> "Captured | Failed | Voided | None":
        """The event that matches the payment's state; None while nothing has happened to it.

        Raises PAYMENT_NOT_FOUND.
        """

    async def refunded(
        self, *, booking_id: UUID, refund_id: UUID
    ) -> "Refunded | RefundUpdated | None":
        """The event of a refund's present state; None while it is pending.

        Raises REFUND_NOT_FOUND.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class _Caused:
    """`origin` names the causing request and trace (mesh.observability.request_context)."""

    origin: str = ""


@dataclass(frozen=True, slots=True)
class Captured(_Caused):
    booking_id: UUID
    payment_id: UUID
    amount: Money


@dataclass(frozen=True, slots=True)
class Failed(_Caused):
    """An attempt to pay was declined; with `is_final` the payment can never be paid."""

    booking_id: UUID
    payment_id: UUID
    failure_code: str
    attempt_id: UUID | None = None
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Voided(_Caused):
    """The payment page was closed before the customer paid."""

    booking_id: UUID
    payment_id: UUID


@dataclass(frozen=True, slots=True)
class Refunded(_Caused):
    booking_id: UUID
    payment_id: UUID
    refund_id: UUID
    amount: Money


@dataclass(frozen=True, slots=True)
class RefundUpdated(_Caused):
    """A refund was requested by others, or its state is another one than PROCESSED."""

    booking_id: UUID
    payment_id: UUID
    refund_id: UUID
    amount: Money
    status: str
    reason: str


class DisputeStatus(StrEnum):
    OPEN = "OPEN"
    WON = "WON"
    LOST = "LOST"


@dataclass(frozen=True, slots=True)
class Disputed(_Caused):
    """The customer's bank opened a dispute about a payment, or decided it.

    `taken` is what all disputes have taken of the payment.
    """

    booking_id: UUID
    payment_id: UUID
    amount: Money
    reason: str
    status: DisputeStatus
    taken: Money


@dataclass(frozen=True, slots=True)
class InboundWebhook:
    """A webhook that payment_svc has received from a sender that is no payment provider."""

    inbound_id: UUID
    sender: str
    content_type: str
    body: bytes
    receive_time: datetime


PaymentEvent = Captured | Failed | Voided | Refunded | RefundUpdated | Disputed


@dataclass(frozen=True, slots=True)
class Contact:
    user_id: UUID
    email: str
    full_name: str
    phone: str = ""


@dataclass(frozen=True, slots=True)
class Erased:
    """An account whose personal data was erased."""

    user_id: UUID


@dataclass(frozen=True, slots=True)
class Deleted:
    """An account that was deleted; its data stays."""

    user_id: UUID


AccountChange = Contact | Erased | Deleted


class Captchas(Protocol):
    """A captcha provider: whether a visitor has solved its riddle."""

    async def is_solved(self, *, token: str, address: str) -> bool:
        """`token` is the widget's; `address` is the visitor's, empty if unknown.

        Raises DEPENDENCY_UNAVAILABLE when the provider does not answer.
        """
