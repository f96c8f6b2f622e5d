"""What other services learn of payments: messages of the event stream, written to the outbox.

Translates to the contract as a servicer does; the domain hands it plain values.
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
from payment_svc import tables
from payment_svc.payments import Payment
from payment_svc.providers.base import DisputeStatus

_MONEY = metrics.counter(
    "payment_money_minor",
    "Money that providers took and gave back, in minor units.",
    "kind",
    "provider",
    "currency",
)


async def captured(
    connection: AsyncConnection, payment: Payment, *, method: str, now: datetime
) -> None:
    """The payment is paid."""
    _note(connection, "captured", payment, payment.amount)
    message = stream_pb2.PaymentCaptured(amount=money_to_proto(payment.amount), method=method)
    await _append(connection, payment, stream_pb2.PaymentEvent(captured=message), now)


async def failed(
    connection: AsyncConnection, payment: Payment, *, failure_code: str, now: datetime
) -> None:
    """A try to pay was refused."""
    message = stream_pb2.PaymentFailed(failure_code=failure_code)
    await _append(connection, payment, stream_pb2.PaymentEvent(failed=message), now)


async def refund_processed(
    connection: AsyncConnection,
    payment: Payment,
    *,
    refund_id: UUID,
    amount: Money,
    now: datetime,
) -> None:
    """Money of a paid payment went back."""
    _note(connection, "refunded", payment, amount)
    message = stream_pb2.RefundProcessed(refund_id=str(refund_id), amount=money_to_proto(amount))
    await _append(connection, payment, stream_pb2.PaymentEvent(refund_processed=message), now)


async def disputed(
    connection: AsyncConnection,
    payment: Payment,
    *,
    dispute_id: UUID,
    status: DisputeStatus,
    amount: Money,
    reason: str,
    now: datetime,
) -> None:
    """The customer's bank disputes a capture, or has decided the dispute."""
    message = stream_pb2.PaymentDisputed(
        dispute_id=str(dispute_id),
        amount=money_to_proto(amount),
        reason=reason,
        status=payment_pb2.Dispute.Status.Value(status),
    )
    await _append(connection, payment, stream_pb2.PaymentEvent(disputed=message), now)


def _note(connection: AsyncConnection, kind: str, payment: Payment, amount: Money) -> None:
    money = _MONEY.labels(kind, payment.order.provider, amount.currency_code)
    on_commit(connection, lambda: money.inc(amount.amount_minor))


async def inbound_received(
    connection: AsyncConnection,
    *,
    inbound_id: UUID,
    sender: str,
    content_type: str,
    body: bytes,
    now: datetime,
) -> None:
    """Another sender's webhook was stored. It belongs to no payment."""
    event = stream_pb2.PaymentEvent(
        inbound_received=stream_pb2.InboundReceived(
            inbound_id=str(inbound_id), sender=sender, content_type=content_type, body=body
        )
    )
    event.event_time.FromDatetime(now)
    new = outbox.NewEvent(
        aggregate_id=inbound_id,
        event_type="inbound_received",
        payload=event.SerializeToString(),
    )
    await outbox.append(connection, tables.outbox, [new], now=now)


async def _append(
    connection: AsyncConnection, payment: Payment, event: stream_pb2.PaymentEvent, now: datetime
) -> None:
    event.payment_id = str(payment.payment_id)
    event.booking_id = str(payment.order.booking_id)
    event.event_time.FromDatetime(now)
    new = outbox.NewEvent(
        aggregate_id=payment.payment_id,
        event_type=event.WhichOneof("event") or "",
        payload=event.SerializeToString(),
    )
    await outbox.append(connection, tables.outbox, [new], now=now)
