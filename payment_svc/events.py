"""What other services learn of payments: messages of the event stream, written to the outbox.

Translates to the contract as a servicer does; the domain hands it plain values.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from boxoffice.payments.v1 import payment_event_service_pb2 as stream_pb2
from boxoffice.types.v1 import money_pb2
from mesh import outbox
from mesh.money import Money
from payment_svc import tables
from payment_svc.payments import Payment


async def captured(
    connection: AsyncConnection, payment: Payment, *, method: str, now: datetime
) -> None:
    """The payment is paid."""
    message = stream_pb2.PaymentCaptured(amount=_money(payment.amount), method=method)
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
    message = stream_pb2.RefundProcessed(refund_id=str(refund_id), amount=_money(amount))
    await _append(connection, payment, stream_pb2.PaymentEvent(refund_processed=message), now)


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


def _money(money: Money) -> money_pb2.Money:
    return money_pb2.Money(currency_code=money.currency_code, amount_minor=money.amount_minor)
