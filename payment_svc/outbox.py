"""The domain events that payment_svc publishes, written to its outbox as messages.

The domain calls it with plain values.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from boxoffice.payments.v1 import payment_event_service_pb2 as stream_pb2
from boxoffice.payments.v1 import payment_pb2
from mesh.conversions import money_to_proto
from mesh.db import outbox
from mesh.db.database import on_commit
from mesh.money import Money
from mesh.observability import metrics
from payment_svc.payments import Payment
from payment_svc.providers.base import DisputeStatus

_MONEY = metrics.counter(
    "payment_money_minor",
    "Captured and refunded money, in minor units.",
    "kind",
    "provider",
    "currency",
)


async def captured(
    connection: AsyncConnection, payment: Payment, *, method: str, now: datetime
) -> None:
    """The payment was captured."""
    _count_money(connection, "captured", payment, payment.amount)
    message = stream_pb2.PaymentCaptured(amount=money_to_proto(payment.amount), method=method)
    await _append_of_payment(connection, payment, stream_pb2.PaymentEvent(captured=message), now)


async def declined(
    connection: AsyncConnection,
    payment: Payment,
    *,
    attempt_id: UUID,
    failure_code: str,
    now: datetime,
) -> None:
    """An attempt to pay was declined. The customer can pay again on the same page."""
    message = stream_pb2.PaymentFailed(failure_code=failure_code, attempt_id=str(attempt_id))
    await _append_of_payment(connection, payment, stream_pb2.PaymentEvent(failed=message), now)


async def failed(
    connection: AsyncConnection, payment: Payment, *, failure_code: str, now: datetime
) -> None:
    """The payment has failed for good: its page was paid with another amount or currency."""
    message = stream_pb2.PaymentFailed(failure_code=failure_code, is_final=True)
    await _append_of_payment(connection, payment, stream_pb2.PaymentEvent(failed=message), now)


async def voided(connection: AsyncConnection, payment: Payment, *, now: datetime) -> None:
    """The page was closed before the customer paid."""
    message = stream_pb2.PaymentVoided()
    await _append_of_payment(connection, payment, stream_pb2.PaymentEvent(voided=message), now)


async def refund_processed(
    connection: AsyncConnection,
    payment: Payment,
    *,
    refund_id: UUID,
    amount: Money,
    now: datetime,
) -> None:
    """A refund of the payment was completed."""
    _count_money(connection, "refunded", payment, amount)
    message = stream_pb2.RefundProcessed(refund_id=str(refund_id), amount=money_to_proto(amount))
    await _append_of_payment(
        connection, payment, stream_pb2.PaymentEvent(refund_processed=message), now
    )


async def refund_updated(
    connection: AsyncConnection,
    payment: Payment,
    *,
    refund_id: UUID,
    amount: Money,
    status: str,
    reason: str,
    now: datetime,
) -> None:
    """A refund was requested, or is no longer in the state that was last published."""
    message = stream_pb2.RefundUpdated(
        refund=payment_pb2.Refund(
            refund_id=str(refund_id),
            payment_id=str(payment.payment_id),
            amount=money_to_proto(amount),
            status=payment_pb2.Refund.Status.Value(status),
            reason=reason,
        )
    )
    await _append_of_payment(
        connection, payment, stream_pb2.PaymentEvent(refund_updated=message), now
    )


async def disputed(
    connection: AsyncConnection,
    payment: Payment,
    *,
    dispute_id: UUID,
    status: DisputeStatus,
    amount: Money,
    reason: str,
    disputed: Money,
    now: datetime,
) -> None:
    """A capture is disputed, or its dispute was decided; `disputed` is the total taken."""
    message = stream_pb2.PaymentDisputed(
        dispute_id=str(dispute_id),
        amount=money_to_proto(amount),
        reason=reason,
        disputed=money_to_proto(disputed),
        status=payment_pb2.Dispute.Status.Value(status),
    )
    await _append_of_payment(connection, payment, stream_pb2.PaymentEvent(disputed=message), now)


async def inbound_received(
    connection: AsyncConnection,
    *,
    inbound_id: UUID,
    sender: str,
    content_type: str,
    body: bytes,
    now: datetime,
) -> None:
    """A webhook of another sender was stored. It belongs to no payment."""
    event = stream_pb2.PaymentEvent(
        inbound_received=stream_pb2.InboundReceived(
            inbound_id=str(inbound_id), sender=sender, content_type=content_type, body=body
        )
    )
    await _append(connection, inbound_id, event, now)


def _count_money(connection: AsyncConnection, kind: str, payment: Payment, amount: Money) -> None:
    money = _MONEY.labels(kind, payment.order.provider, amount.currency_code)
    on_commit(connection, lambda: money.inc(amount.amount_minor))


async def _append_of_payment(
    connection: AsyncConnection, payment: Payment, event: stream_pb2.PaymentEvent, now: datetime
) -> None:
    event.payment_id = str(payment.payment_id)
    event.booking_id = str(payment.order.booking_id)
    await _append(connection, payment.payment_id, event, now)


async def _append(
    connection: AsyncConnection, aggregate_id: UUID, event: stream_pb2.PaymentEvent, now: datetime
) -> None:
    event.event_time.FromDatetime(now)
    entry = outbox.NewEvent(
        aggregate_id=aggregate_id,
        event_type=event.WhichOneof("event") or "",
        payload=event.SerializeToString(),
    )
    await outbox.append(connection, [entry], now=now)
