"""payment_svc over gRPC: ports.Payments and the event stream."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from booking_svc.clients.ports import (
    Captured,
    Contact,
    Disputed,
    DisputeStatus,
    Failed,
    InboundWebhook,
    Limits,
    Payment,
    PaymentEvent,
    Refunded,
    RefundUpdated,
    Voided,
)
from boxoffice.payments.v1 import payment_event_service_pb2 as event_messages
from boxoffice.payments.v1 import payment_pb2
from boxoffice.payments.v1 import payment_service_pb2 as messages
from boxoffice.payments.v1.payment_event_service_pb2_grpc import PaymentEventServiceStub
from boxoffice.payments.v1.payment_service_pb2_grpc import PaymentServiceStub
from mesh.conversions import money_from_proto, money_to_proto, time_to_proto
from mesh.db.consumer import Batch
from mesh.errors import DomainError
from mesh.money import AmountLimits, Money

_DISPUTE_STATUSES = {
    payment_pb2.Dispute.OPEN: DisputeStatus.OPEN,
    payment_pb2.Dispute.WON: DisputeStatus.WON,
    payment_pb2.Dispute.LOST: DisputeStatus.LOST,
}


# A provider is added or removed by a restart of payment_svc.
_LIMITS_SECONDS = 60.0
# The previous answer is used while the next one is on its way, or payment_svc is unavailable.
_LIMITS_RETRY_SECONDS = 5.0


class PaymentClient:
    def __init__(self, stub: PaymentServiceStub) -> None:
        self._stub = stub
        # Bounded: events have currencies of ISO 4217 only.
        self._limits: dict[str, tuple[float, Limits]] = {}
        self._embedded: frozenset[str] = frozenset()

    async def limits(self, *, currency_code: str) -> Limits:
        known = self._limits.get(currency_code)
        if known is not None:
            if time.monotonic() < known[0]:
                return known[1]
            self._limits[currency_code] = time.monotonic() + _LIMITS_RETRY_SECONDS, known[1]
        try:
            answer = await self._stub.ListProviders(
                messages.ListProvidersRequest(currency_code=currency_code)
            )
        except DomainError:
            if known is None:
                raise
            return known[1]
        limits = {
            provider.name: AmountLimits(
                provider.limits.minimum_minor,
                provider.limits.maximum_minor,
                provider.limits.step_minor,
            )
            if provider.HasField("limits")
            else None
            for provider in answer.providers
        }
        self._limits[currency_code] = time.monotonic() + _LIMITS_SECONDS, limits
        self._embedded = frozenset(
            provider.name for provider in answer.providers if provider.embedded
        )
        return limits

    async def offers_embedded(self, *, provider: str) -> bool:
        return provider in self._embedded

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
        contact: Contact | None,
        expire_time: datetime,
    ) -> Payment:
        return _payment(
            await self._stub.CreatePayment(
                messages.CreatePaymentRequest(
                    payment_id=str(payment_id),
                    booking_id=str(booking_id),
                    event_id=str(event_id),
                    customer_id=str(customer_id),
                    provider=provider,
                    amount=money_to_proto(amount),
                    description=description,
                    success_url=success_url,
                    cancel_url=cancel_url,
                    embedded=is_embedded,
                    email=contact.email if contact else "",
                    phone=contact.phone if contact else "",
                    expire_time=time_to_proto(expire_time),
                )
            )
        )

    async def void(self, *, payment_id: UUID) -> Payment:
        return _payment(
            await self._stub.VoidPayment(messages.VoidPaymentRequest(payment_id=str(payment_id)))
        )

    async def refund(
        self, *, refund_id: UUID, payment_id: UUID, amount: Money, reason: str
    ) -> None:
        await self._stub.RefundPayment(
            messages.RefundPaymentRequest(
                payment_id=str(payment_id),
                amount=money_to_proto(amount),
                reason=reason,
                refund_id=str(refund_id),
            ),
            metadata=(("idempotency-key", f"refund:{refund_id}"),),
        )

    async def outcome(
        self, *, booking_id: UUID, payment_id: UUID
    ) -> Captured | Failed | Voided | None:
        payment = await self._stub.GetPayment(
            messages.GetPaymentRequest(payment_id=str(payment_id))
        )
        # Refunds and disputes come from the event stream only; a poll does not derive them.
        if payment.status == payment_pb2.Payment.CAPTURED:
            return Captured(booking_id, payment_id, money_from_proto(payment.amount))
        if payment.status == payment_pb2.Payment.FAILED:
            declined = payment.declined_attempts[-1:]
            return Failed(
                booking_id,
                payment_id,
                payment.failure_code,
                attempt_id=UUID(declined[0].attempt_id) if declined else None,
                is_final=not declined,
            )
        if payment.status == payment_pb2.Payment.VOIDED:
            return Voided(booking_id, payment_id)
        return None

    async def refunded(
        self, *, booking_id: UUID, refund_id: UUID
    ) -> Refunded | RefundUpdated | None:
        refund = await self._stub.GetRefund(messages.GetRefundRequest(refund_id=str(refund_id)))
        if refund.status == payment_pb2.Refund.PENDING:
            return None
        if refund.status != payment_pb2.Refund.PROCESSED:
            return _refund_updated(booking_id, refund)
        return Refunded(
            booking_id, UUID(refund.payment_id), refund_id, money_from_proto(refund.amount)
        )


class PaymentEvents:
    """payment_svc's event stream as batches of PaymentEvent and InboundWebhook."""

    def __init__(self, stub: PaymentEventServiceStub) -> None:
        self._stub = stub

    async def open(
        self, after_position: str
    ) -> AsyncIterator[Batch[PaymentEvent | InboundWebhook]]:
        stream = self._stub.StreamEvents(
            event_messages.StreamEventsRequest(after_position=after_position),
            # No caller waits for the consumer, so it can wait until payment_svc is reachable.
            wait_for_ready=True,
        )
        async for batch in stream:
            known = [event for message in batch.events if (event := _event(message)) is not None]
            yield batch.events[-1].position, known


def _event(message: event_messages.PaymentEvent) -> PaymentEvent | InboundWebhook | None:
    """The event; None for one of a type that this version does not know."""
    kind = message.WhichOneof("event") or ""
    if kind == "inbound_received":
        inbound = message.inbound_received
        return InboundWebhook(
            UUID(inbound.inbound_id),
            inbound.sender,
            inbound.content_type,
            inbound.body,
            message.event_time.ToDatetime(UTC),
        )
    read = _READERS.get(kind)
    if read is None or not message.payment_id:
        return None
    event = read(UUID(message.booking_id), UUID(message.payment_id), message)
    return None if event is None else replace(event, origin=message.origin)


def _captured(
    booking_id: UUID, payment_id: UUID, message: event_messages.PaymentEvent
) -> PaymentEvent:
    return Captured(booking_id, payment_id, money_from_proto(message.captured.amount))


def _failed(
    booking_id: UUID, payment_id: UUID, message: event_messages.PaymentEvent
) -> PaymentEvent:
    failed = message.failed
    return Failed(
        booking_id,
        payment_id,
        failed.failure_code,
        attempt_id=UUID(failed.attempt_id) if failed.attempt_id else None,
        is_final=failed.is_final,
    )


def _refunded(
    booking_id: UUID, payment_id: UUID, message: event_messages.PaymentEvent
) -> PaymentEvent:
    refund = message.refund_processed
    return Refunded(booking_id, payment_id, UUID(refund.refund_id), money_from_proto(refund.amount))


def _disputed(
    booking_id: UUID, payment_id: UUID, message: event_messages.PaymentEvent
) -> PaymentEvent | None:
    dispute = message.disputed
    status, amount = _DISPUTE_STATUSES.get(dispute.status), money_from_proto(dispute.amount)
    if status is None:
        return None
    if dispute.HasField("disputed"):
        taken = money_from_proto(dispute.disputed)
    else:
        # Of an older payment_svc.
        taken = Money(0, amount.currency_code) if status is DisputeStatus.WON else amount
    return Disputed(booking_id, payment_id, amount, dispute.reason, status, taken)


def _refund_updated(booking_id: UUID, refund: payment_pb2.Refund) -> RefundUpdated:
    return RefundUpdated(
        booking_id,
        UUID(refund.payment_id),
        UUID(refund.refund_id),
        money_from_proto(refund.amount),
        payment_pb2.Refund.Status.Name(refund.status),
        refund.reason,
    )


_READERS: dict[str, Callable[[UUID, UUID, event_messages.PaymentEvent], PaymentEvent | None]] = {
    "captured": _captured,
    "failed": _failed,
    "voided": lambda booking_id, payment_id, _: Voided(booking_id, payment_id),
    "refund_processed": _refunded,
    "refund_updated": lambda booking_id, _, message: _refund_updated(
        booking_id, message.refund_updated.refund
    ),
    "disputed": _disputed,
}


def _payment(message: payment_pb2.Payment) -> Payment:
    return Payment(
        UUID(message.payment_id),
        payment_pb2.Payment.Status.Name(message.status),
        message.payment_url,
        message.client_secret or None,
    )
