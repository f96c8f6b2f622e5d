"""PaymentService, WebhookService and PaymentEventService: the contract ⇄ the domain."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import grpc

from boxoffice.payments.v1 import (
    payment_event_service_pb2,
    payment_event_service_pb2_grpc,
    payment_pb2,
    payment_service_pb2,
    payment_service_pb2_grpc,
    webhook_service_pb2,
    webhook_service_pb2_grpc,
)
from boxoffice.types.v1 import money_pb2
from mesh import idempotency
from mesh.call import caller, idempotency_key
from mesh.clock import Clock
from mesh.database import Database
from mesh.errors import DomainError, Reason
from mesh.money import Money
from mesh.outbox import OutboxReader
from mesh.tasks import shielded
from payment_svc import disputes, inbound, payments, refunds, webhooks
from payment_svc.cashier import Cashier
from payment_svc.disputes import Dispute
from payment_svc.pacing import Wakeup
from payment_svc.payments import Payment
from payment_svc.providers import Authorized, Order, WebhookEvent
from payment_svc.refunds import Refund

# A step with money goes on when its caller leaves, but not for ever.
_PROVIDER_STEP_SECONDS = 12.0
_DATABASE_STEP_SECONDS = 8.0

_Context = grpc.aio.ServicerContext[Any, Any]


class PaymentServicer(payment_service_pb2_grpc.PaymentServiceServicer):
    def __init__(
        self, database: Database, cashier: Cashier, clock: Clock, refund_requested: Wakeup
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
            amount=_money(request.amount),
            description=request.description,
            success_url=request.success_url,
            cancel_url=request.cancel_url,
            event_id=UUID(request.event_id) if request.event_id else None,
        )
        return _payment(await shielded(self._cashier.open(order), seconds=_PROVIDER_STEP_SECONDS))

    async def CapturePayment(
        self, request: payment_service_pb2.CapturePaymentRequest, context: _Context
    ) -> payment_pb2.Payment:
        step = self._cashier.capture(UUID(request.payment_id))
        return _payment(await shielded(step, seconds=_PROVIDER_STEP_SECONDS))

    async def VoidPayment(
        self, request: payment_service_pb2.VoidPaymentRequest, context: _Context
    ) -> payment_pb2.Payment:
        step = self._cashier.void(UUID(request.payment_id))
        return _payment(await shielded(step, seconds=_PROVIDER_STEP_SECONDS))

    async def RefundPayment(
        self, request: payment_service_pb2.RefundPaymentRequest, context: _Context
    ) -> payment_pb2.Refund:
        who = caller()
        key = idempotency.key_for(
            "RefundPayment", who.user_id or who.process, idempotency_key() or "", request
        )
        step = self._refund(
            payment_id=UUID(request.payment_id),
            amount=_money(request.amount) if request.HasField("amount") else None,
            reason=request.reason,
            key=key,
            # A service keeps its own account of refunds, from before it asks for one.
            refund_id=UUID(request.refund_id)
            if request.HasField("refund_id") and who.user_id is None
            else None,
        )
        refund = await shielded(step, seconds=_DATABASE_STEP_SECONDS)
        self._refund_requested.ring()
        return _refund(refund)

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
        return _payment(payment, asked_back)

    async def GetRefund(
        self, request: payment_service_pb2.GetRefundRequest, context: _Context
    ) -> payment_pb2.Refund:
        async with self._database.reading() as connection:
            return _refund(
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
        key: idempotency.Key,
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


class WebhookServicer(webhook_service_pb2_grpc.WebhookServiceServicer):
    def __init__(
        self,
        database: Database,
        cashier: Cashier,
        clock: Clock,
        refund_requested: Wakeup,
        check_wanted: Wakeup,
        inbound_secrets: Mapping[str, str],
    ) -> None:
        self._inbound_secrets = inbound_secrets
        self._database = database
        self._cashier = cashier
        self._clock = clock
        self._refund_requested = refund_requested
        self._check_wanted = check_wanted

    async def ReceiveWebhook(
        self, request: webhook_service_pb2.ReceiveWebhookRequest, context: _Context
    ) -> webhook_service_pb2.ReceiveWebhookResponse:
        payload = request.payload.data
        if len(payload) > webhooks.MAX_BYTES:
            raise DomainError(Reason.REQUEST_TOO_LARGE, "the webhook is too large")
        headers = _headers(context)
        event = self._cashier.provider(request.provider).read_webhook(
            payload, headers, now=self._clock()
        )
        await shielded(
            self._receive(request.provider, event, payload), seconds=_DATABASE_STEP_SECONDS
        )
        # It may have told of money that has to go back.
        self._refund_requested.ring()
        if isinstance(event.report, Authorized):
            # Somebody has to take what is authorised.
            self._check_wanted.ring()
        return webhook_service_pb2.ReceiveWebhookResponse()

    async def ReceiveInbound(
        self, request: webhook_service_pb2.ReceiveInboundRequest, context: _Context
    ) -> webhook_service_pb2.ReceiveInboundResponse:
        secret = self._inbound_secrets.get(request.sender)
        if secret is None:
            raise DomainError(Reason.PROVIDER_NOT_FOUND, "no such sender", provider=request.sender)
        if len(request.payload.data) > webhooks.MAX_BYTES:
            raise DomainError(Reason.REQUEST_TOO_LARGE, "the webhook is too large")
        headers = _headers(context)
        token = inbound.handshake(headers)
        if token is not None:
            await context.send_initial_metadata(((inbound.HANDSHAKE_HEADER, token),))
            return webhook_service_pb2.ReceiveInboundResponse()
        inbound.verify(request.payload.data, headers, secret=secret)
        await shielded(
            self._keep(request.sender, request.payload.content_type, request.payload.data),
            seconds=_DATABASE_STEP_SECONDS,
        )
        return webhook_service_pb2.ReceiveInboundResponse()

    async def GetWebhookHealth(
        self, request: webhook_service_pb2.GetWebhookHealthRequest, context: _Context
    ) -> webhook_service_pb2.GetWebhookHealthResponse:
        return webhook_service_pb2.GetWebhookHealthResponse(
            status="ok", providers=self._cashier.offered
        )

    async def _keep(self, sender: str, content_type: str, body: bytes) -> None:
        async with self._database.transaction() as connection:
            await inbound.receive(
                connection,
                sender=sender,
                content_type=content_type,
                body=body,
                now=self._clock(),
            )

    async def _receive(
        self, provider: str, event: WebhookEvent, payload: bytes
    ) -> webhooks.Outcome:
        async with self._database.transaction() as connection:
            return await webhooks.receive(
                connection, provider=provider, event=event, payload=payload, now=self._clock()
            )


class PaymentEventServicer(payment_event_service_pb2_grpc.PaymentEventServiceServicer):
    def __init__(self, events: OutboxReader) -> None:
        self._events = events

    async def StreamEvents(
        self, request: payment_event_service_pb2.StreamEventsRequest, context: _Context
    ) -> AsyncIterator[payment_event_service_pb2.StreamEventsResponse]:
        async for batch in self._events.stream(request.after_position):
            response = payment_event_service_pb2.StreamEventsResponse()
            for event in batch:
                message = response.events.add()
                message.ParseFromString(event.payload)
                message.position = event.position
                message.origin = event.origin
            yield response


def _headers(context: _Context) -> dict[str, str]:
    return {
        name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)
    }


def _payment(payment: Payment, asked_back: Sequence[Dispute] = ()) -> payment_pb2.Payment:
    message = payment_pb2.Payment(
        payment_id=str(payment.payment_id),
        booking_id=str(payment.order.booking_id),
        provider=payment.order.provider,
        status=payment_pb2.Payment.Status.Value(payment.status),
        amount=_money_message(payment.amount),
        refunded=_money_message(payment.refunded),
        method=payment.method,
        payment_url=payment.payment_url,
        provider_reference=payment.provider_reference,
        failure_code=payment.failure_code,
        disputes=map(_dispute, asked_back),
    )
    message.create_time.FromDatetime(payment.create_time)
    message.update_time.FromDatetime(payment.update_time)
    return message


def _dispute(dispute: Dispute) -> payment_pb2.Dispute:
    message = payment_pb2.Dispute(
        dispute_id=str(dispute.dispute_id),
        status=payment_pb2.Dispute.Status.Value(dispute.status),
        amount=_money_message(dispute.amount),
        reason=dispute.reason,
    )
    message.create_time.FromDatetime(dispute.create_time)
    message.update_time.FromDatetime(dispute.update_time)
    return message


def _refund(refund: Refund) -> payment_pb2.Refund:
    message = payment_pb2.Refund(
        refund_id=str(refund.refund_id),
        payment_id=str(refund.payment_id),
        amount=_money_message(refund.amount),
        status=payment_pb2.Refund.Status.Value(refund.status),
        reason=refund.reason,
    )
    message.create_time.FromDatetime(refund.create_time)
    return message


def _money(message: money_pb2.Money) -> Money:
    return Money(message.amount_minor, message.currency_code)


def _money_message(money: Money) -> money_pb2.Money:
    return money_pb2.Money(currency_code=money.currency_code, amount_minor=money.amount_minor)
