"""payment_svc over gRPC, as ports.Payments, and its event stream."""

from collections.abc import AsyncIterator
from uuid import UUID

from booking_svc.payment_events import Captured, Failed, PaymentEvent, Refunded
from booking_svc.ports import Payment, Refund
from boxoffice.payments.v1 import payment_event_service_pb2 as event_messages
from boxoffice.payments.v1 import payment_pb2
from boxoffice.payments.v1 import payment_service_pb2 as messages
from boxoffice.payments.v1.payment_event_service_pb2_grpc import PaymentEventServiceStub
from boxoffice.payments.v1.payment_service_pb2_grpc import PaymentServiceStub
from boxoffice.types.v1 import money_pb2
from mesh.consumer import Batch
from mesh.money import Money


class PaymentClient:
    def __init__(self, stub: PaymentServiceStub) -> None:
        self._stub = stub

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
    ) -> Payment:
        return _payment(
            await self._stub.CreatePayment(
                messages.CreatePaymentRequest(
                    payment_id=str(payment_id),
                    booking_id=str(booking_id),
                    customer_id=str(customer_id),
                    provider=provider,
                    amount=money_pb2.Money(
                        currency_code=amount.currency_code, amount_minor=amount.amount_minor
                    ),
                    description=description,
                    success_url=success_url,
                    cancel_url=cancel_url,
                )
            )
        )

    async def void(self, *, payment_id: UUID) -> Payment:
        return _payment(
            await self._stub.VoidPayment(messages.VoidPaymentRequest(payment_id=str(payment_id)))
        )

    async def refund(self, *, payment_id: UUID, key: str, reason: str) -> Refund:
        refund = await self._stub.RefundPayment(
            messages.RefundPaymentRequest(payment_id=str(payment_id), reason=reason),
            metadata=(("idempotency-key", key),),
        )
        return Refund(UUID(refund.refund_id), _money(refund.amount))


class PaymentEvents:
    """payment_svc's event stream as batches of PaymentEvent."""

    def __init__(self, stub: PaymentEventServiceStub) -> None:
        self._stub = stub

    async def open(self, after_position: str) -> AsyncIterator[Batch[PaymentEvent]]:
        stream = self._stub.StreamEvents(
            event_messages.StreamEventsRequest(after_position=after_position),
            # The consumer waits for a payment_svc that is away; nobody waits for the consumer.
            wait_for_ready=True,
        )
        async for batch in stream:
            known = [event for event in map(_event, batch.events) if event is not None]
            yield batch.events[-1].position, known


def _event(message: event_messages.PaymentEvent) -> PaymentEvent | None:
    """The event, or None for a kind that a newer payment_svc may send."""
    booking_id, payment_id = UUID(message.booking_id), UUID(message.payment_id)
    kind = message.WhichOneof("event")
    if kind == "captured":
        return Captured(booking_id, payment_id, _money(message.captured.amount))
    if kind == "failed":
        return Failed(booking_id, payment_id, message.failed.failure_code)
    if kind == "refund_processed":
        refund = message.refund_processed
        return Refunded(booking_id, payment_id, UUID(refund.refund_id), _money(refund.amount))
    return None


def _payment(message: payment_pb2.Payment) -> Payment:
    return Payment(
        UUID(message.payment_id),
        payment_pb2.Payment.Status.Name(message.status),
        message.payment_url,
    )


def _money(message: money_pb2.Money) -> Money:
    return Money(message.amount_minor, message.currency_code)
