"""payment_svc behind its own server, for the tests that go through the contract."""

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import grpc
import sqlalchemy as sa
from google.api import httpbody_pb2

from boxoffice.payments.v1 import (
    payment_pb2,
    payment_service_pb2,
    sandbox_service_pb2,
    webhook_service_pb2,
)
from boxoffice.payments.v1.payment_service_pb2_grpc import PaymentServiceStub
from boxoffice.payments.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from boxoffice.payments.v1.webhook_service_pb2_grpc import WebhookServiceStub
from boxoffice.types.v1 import money_pb2
from mesh.clock import system_clock
from mesh.ids import new_id
from mesh.money import Money
from payment_svc import comparison, tables
from payment_svc.providers.base import Captured, Movement
from payment_svc.providers.sandbox import signature
from testing.databases import open_patiently

SECRET = "the sandbox's webhook secret"
Metadata = list[tuple[str, str]]


@dataclass
class Running:
    """The service, as the gateway and booking_svc reach it."""

    gateway: grpc.aio.Channel
    booking: grpc.aio.Channel
    database_url: str

    async def create(self, **changes: object) -> payment_pb2.Payment:
        return await PaymentServiceStub(self.booking).CreatePayment(a_request(**changes))

    async def complete(self, payment_id: str, outcome: int) -> str:
        answer = await SandboxServiceStub(self.gateway).CompleteCheckout(
            sandbox_service_pb2.CompleteCheckoutRequest(
                payment_id=payment_id,
                outcome=outcome,  # type: ignore[arg-type]
            )
        )
        return answer.redirect_url

    async def webhook(
        self, body: bytes, *, provider: str = "sandbox", secret: str = SECRET
    ) -> None:
        header = signature.sign(body, secret=secret, now=system_clock())
        await WebhookServiceStub(self.gateway).ReceiveWebhook(
            webhook_service_pb2.ReceiveWebhookRequest(
                provider=provider,
                payload=httpbody_pb2.HttpBody(content_type="application/json", data=body),
            ),
            metadata=[(signature.HEADER, header)],
        )

    async def pay(self, payment: payment_pb2.Payment) -> None:
        """The customer pays, and VoidPayment, which asks the sandbox, tells the service."""
        await self.complete(
            payment.payment_id, sandbox_service_pb2.CompleteCheckoutRequest.SUCCEEDED
        )
        answer = await PaymentServiceStub(self.booking).VoidPayment(
            payment_service_pb2.VoidPaymentRequest(payment_id=payment.payment_id)
        )
        assert answer.status == payment_pb2.Payment.CAPTURED

    async def sandbox_webhooks(self) -> list[bytes]:
        """All that the sandbox wants to send: here no loop sends it."""
        async with open_patiently(self.database_url) as database, database.reading() as connection:
            rows = await connection.execute(
                sa.select(tables.sandbox_webhooks.c.body).order_by(
                    tables.sandbox_webhooks.c.event_id
                )
            )
            return list(rows.scalars())

    async def bring_webhooks(self) -> None:
        for body in await self.sandbox_webhooks():
            await self.webhook(body)

    async def compare_a_day(self) -> None:
        """A day on which the sandbox took ₹ 7 that nobody told us of."""
        start = datetime(2026, 3, 1, tzinfo=UTC)
        movement = Movement.of(Captured(None, "cs_1", start, "ch_1", Money(700, "INR"), "card"))
        async with (
            open_patiently(self.database_url) as database,
            database.transaction() as connection,
        ):
            await comparison.close_day(
                connection, provider="sandbox", start=start, movements=[movement], now=start
            )


def a_request(**changes: object) -> payment_service_pb2.CreatePaymentRequest:
    request = payment_service_pb2.CreatePaymentRequest(
        payment_id=str(new_id()),
        booking_id=str(new_id()),
        customer_id=str(new_id()),
        provider="sandbox",
        amount=money_pb2.Money(currency_code="INR", amount_minor=150_000),
        description="2 × North Stand",
        success_url="https://shop.test/thanks",
        cancel_url="https://shop.test/back",
    )
    request.MergeFrom(payment_service_pb2.CreatePaymentRequest(**changes))  # type: ignore[arg-type]
    return request


def signed_in(user_id: UUID | str, role: str = "CUSTOMER") -> Metadata:
    """What the gateway forwards of a verified token."""
    claims = json.dumps({"sub": str(user_id), "role": role, "sid": str(new_id())}).encode()
    return [("x-jwt-payload", base64.urlsafe_b64encode(claims).decode())]
