"""What booking_svc needs of the other services, without saying how they are called.

stock_client.py and payment_client.py call them over gRPC; tests bring their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
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
class Left:
    """What is left of an event: places by offer, and the state of each seat if asked for."""

    version: int
    offers: Mapping[UUID, int]
    seats: Mapping[UUID, str]
    capacity: int
    available: int


@dataclass(frozen=True, slots=True)
class Payment:
    payment_id: UUID
    status: str
    payment_url: str


@dataclass(frozen=True, slots=True)
class Refund:
    refund_id: UUID
    amount: Money


class Stock(Protocol):
    """stock_svc. Every call may be repeated. Refusals are DomainErrors with its reasons."""

    async def define(
        self,
        *,
        event_id: UUID,
        pools: Sequence[PoolStock],
        offers: Sequence[OfferStock],
        seats: Mapping[UUID, UUID],
    ) -> None:
        """Puts an event's stock into the ledger; `seats` names the offer that sells each."""

    async def left(self, *, event_id: UUID, with_seats: bool) -> Left: ...

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


class Payments(Protocol):
    """payment_svc. Every call may be repeated. Refusals are DomainErrors with its reasons."""

    async def create(
        self,
        *,
        payment_id: UUID,
        booking_id: UUID,
        customer_id: UUID,
        provider: str,
        amount: Money,
        description: str,
        success_url: str,
        cancel_url: str,
    ) -> Payment: ...

    async def void(self, *, payment_id: UUID) -> Payment: ...

    async def refund(self, *, payment_id: UUID, key: str, reason: str) -> Refund:
        """Starts giving back all that is left of a payment."""
