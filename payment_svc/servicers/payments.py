"""PaymentService: message → plain values → one domain call → message."""

from typing import Any
from uuid import UUID

import grpc

from boxoffice.payments.v1 import (
    payment_pb2,
    payment_service_pb2,
    payment_service_pb2_grpc,
)
from mesh.clock import Clock
from mesh.conversions import money_from_proto
from mesh.db import idempotent
from mesh.db.database import Database
from mesh.db.jobs import Wakeup
from mesh.money import Money
from mesh.rpc.call import caller, idempotency_key
from mesh.tasks import shielded
from payment_svc import disputes, payments, refunds
from payment_svc.proto import payment_to_proto, refund_to_proto
from payment_svc.provider_calls import ProviderCalls
from payment_svc.providers.base import Order
from payment_svc.refunds import Refund

# A step with money goes on when its caller leaves, but not for ever.
_PROVIDER_STEP_SECONDS = 12.0
_DATABASE_STEP_SECONDS = 8.0

_Context = grpc.aio.ServicerContext[Any, Any]


class PaymentServicer(payment_service_pb2_grpc.PaymentServiceServicer):
    def __init__(
        self, database: Database, cashier: ProviderCalls, clock: Clock, refund_requested: Wakeup
    ) -> None:
        self._database = database
        self._cashier = cashier
        self._clock = clock
        self._refund_requested = refund_requested

    async def CreatePayment(
        self, request: payment_service_pb2.CreatePaymentRequest, context: _Context
    ) -> payment_pb2.Payment:
        order = Order(
            payment_id=UUID(request.payment_id),
            booking_id=UUID(request.booking_id),
            customer_id=UUID(request.customer_id),
            provider=request.provider,
            amount=money_from_proto(request.amount),
            description=request.description,
            success_url=request.success_url,
            cancel_url=request.cancel_url,
            event_id=UUID(request.event_id) if request.event_id else None,
        )
        return payment_to_proto(
            await shielded(self._cashier.open(order), seconds=_PROVIDER_STEP_SECONDS)
        )

    async def CapturePayment(
        self, request: payment_service_pb2.CapturePaymentRequest, context: _Context
    ) -> payment_pb2.Payment:
        step = self._cashier.capture(UUID(request.payment_id))
        return payment_to_proto(await shielded(step, seconds=_PROVIDER_STEP_SECONDS))

    async def VoidPayment(
        self, request: payment_service_pb2.VoidPaymentRequest, context: _Context
    ) -> payment_pb2.Payment:
        step = self._cashier.void(UUID(request.payment_id))
        return payment_to_proto(await shielded(step, seconds=_PROVIDER_STEP_SECONDS))

    async def RefundPayment(
        self, request: payment_service_pb2.RefundPaymentRequest, context: _Context
    ) -> payment_pb2.Refund:
        who = caller()
        key = idempotent.key_for(
            "RefundPayment", who.user_id or who.process, idempotency_key() or "", request
        )
        step = self._refund(
            payment_id=UUID(request.payment_id),
            amount=money_from_proto(request.amount) if request.HasField("amount") else None,
            reason=request.reason,
            key=key,
            # A service keeps its own account of refunds, from before it asks for one.
            refund_id=UUID(request.refund_id)
            if request.HasField("refund_id") and who.user_id is None
            else None,
        )
        refund = await shielded(step, seconds=_DATABASE_STEP_SECONDS)
        self._refund_requested.ring()
        return refund_to_proto(refund)

    async def GetPayment(
        self, request: payment_service_pb2.GetPaymentRequest, context: _Context
    ) -> payment_pb2.Payment:
        owner = caller().owner_scope
        async with self._database.reading() as connection:
            payment = await payments.find(
                connection, payment_id=UUID(request.payment_id), owner=owner
            )
            asked_back = (
                await disputes.of_payment(connection, payment_id=payment.payment_id)
                if owner is None
                else ()
            )
        return payment_to_proto(payment, asked_back)

    async def GetRefund(
        self, request: payment_service_pb2.GetRefundRequest, context: _Context
    ) -> payment_pb2.Refund:
        async with self._database.reading() as connection:
            return refund_to_proto(
                await refunds.find(
                    connection, refund_id=UUID(request.refund_id), owner=caller().owner_scope
                )
            )

    async def _refund(
        self,
        *,
        payment_id: UUID,
        amount: Money | None,
        reason: str,
        key: idempotent.Key,
        refund_id: UUID | None,
    ) -> Refund:
        async with self._database.transaction() as connection:
            return await refunds.request(
                connection,
                payment_id=payment_id,
                amount=amount,
                reason=reason,
                key=key,
                now=self._clock(),
                step_minor=self._cashier.step_minor,
                refund_id=refund_id,
            )
