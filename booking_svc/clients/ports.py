"""What booking_svc needs of the other services, without saying how they are called.

stock_client.py and payment_client.py call them over gRPC; tests bring their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from mesh.money import Money


@dataclass(frozen=True, slots=True)
class Line:
    """Places of an offer, or one seat of it."""

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
    """What is left in a pool. `version` counts its movements."""

    capacity: int
    available: int
    version: int


@dataclass(frozen=True, slots=True)
class Availability:
    """What is left of an event: places by offer, and the state of each seat if asked for."""

    version: int
    offers: Mapping[UUID, int]
    seats: Mapping[UUID, str]
    capacity: int
    available: int
    pools: Mapping[UUID, PoolAvailability] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolChange:
    """A pool after a change of it, or that it is gone."""

    pool_id: UUID
    capacity: int
    available: int
    version: int
    removed: bool


@dataclass(frozen=True, slots=True)
class StockChange:
    """What a transaction of the ledger has changed of an event; None is a seat that is gone."""

    event_id: UUID
    pools: Sequence[PoolChange]
    seats: Mapping[UUID, str | None]


@dataclass(frozen=True, slots=True)
class Payment:
    payment_id: UUID
    status: str
    payment_url: str


class Stock(Protocol):
    """stock_svc. Every call may be repeated. Refusals are DomainErrors with its reasons."""

    async def define(
        self,
        *,
        event_id: UUID,
        pools: Sequence[PoolStock],
        offers: Sequence[OfferStock],
        seats: Mapping[UUID, UUID],
        per_customer_limit: int | None,
    ) -> None:
        """Puts an event's stock into the ledger; `seats` names the offer that sells each.

        `per_customer_limit` is over all offers, None is no limit.
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
        """Makes pools and offers so, puts seats on sale and takes some out; all or nothing.

        A `per_customer_limit` of 0 takes it away, None leaves it as it is.
        Raises VALIDATION_FAILED that names `pools[0].capacity` and the like.
        """

    async def remove(self, *, event_id: UUID) -> None:
        """Forgets an event's stock. Raises EVENT_STATE_INVALID when some is or was taken."""

    async def availability(self, *, event_id: UUID, with_seats: bool) -> Availability: ...

    async def reserve(
        self,
        *,
        event_id: UUID,
        reservation_id: UUID,
        request_key: str,
        customer_id: UUID,
        lines: Sequence[Line],
        expire_time: datetime,
    ) -> Reservation: ...

    async def extend(
        self, *, event_id: UUID, reservation_id: UUID, expire_time: datetime
    ) -> Reservation: ...

    async def commit(self, *, event_id: UUID, reservation_id: UUID) -> None: ...

    async def release(self, *, event_id: UUID, reservation_id: UUID) -> None: ...

    async def return_sold(self, *, event_id: UUID, reservation_id: UUID) -> None:
        """Returns what was sold."""

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
        """Ends one reservation and makes another in its state, all or nothing."""


class Payments(Protocol):
    """payment_svc. Every call may be repeated. Refusals are DomainErrors with its reasons."""

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
    ) -> Payment: ...

    async def void(self, *, payment_id: UUID) -> Payment: ...

    async def refund(
        self, *, refund_id: UUID, payment_id: UUID, amount: Money, reason: str
    ) -> None:
        """Starts giving back an amount of a payment, once per `refund_id`.

        Raises PAYMENT_STATE_INVALID with `captured` and `refunded` when less is left.
        """

    async def outcome(self, *, booking_id: UUID, payment_id: UUID) -> "Captured | Failed | None":
        """The event that a payment's state stands for; None for one that is still open.

        Raises PAYMENT_NOT_FOUND.
        """

    async def refunded(self, *, booking_id: UUID, refund_id: UUID) -> "Refunded | None":
        """The event that a refund was processed; None for one that is not.

        Raises REFUND_NOT_FOUND.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class _Caused:
    """`origin` names the call that caused it, for logs and traces (mesh.rpc.call.origin)."""

    origin: str = ""


@dataclass(frozen=True, slots=True)
class Captured(_Caused):
    booking_id: UUID
    payment_id: UUID
    amount: Money


@dataclass(frozen=True, slots=True)
class Failed(_Caused):
    booking_id: UUID
    payment_id: UUID
    failure_code: str


@dataclass(frozen=True, slots=True)
class Refunded(_Caused):
    booking_id: UUID
    payment_id: UUID
    refund_id: UUID
    amount: Money


class DisputeStatus(StrEnum):
    OPEN = "OPEN"
    WON = "WON"
    LOST = "LOST"


@dataclass(frozen=True, slots=True)
class Disputed(_Caused):
    """The customer's bank asks money back, or has decided on it."""

    booking_id: UUID
    payment_id: UUID
    amount: Money
    reason: str
    status: DisputeStatus


PaymentEvent = Captured | Failed | Refunded | Disputed


@dataclass(frozen=True, slots=True)
class Contact:
    user_id: UUID
    email: str
    full_name: str


@dataclass(frozen=True, slots=True)
class Erased:
    """The account is gone, and so is everything personal of it."""

    user_id: UUID
