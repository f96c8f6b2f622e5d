"""payment_svc as a process: behind its own server, for tests that go through the contract."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import grpc
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
from mesh.rpc.server import Service
from payment_svc import comparison
from payment_svc.__main__ import open_service
from payment_svc.providers.base import Captured, Movement
from payment_svc.providers.sandbox import signature
from payment_svc.settings import Settings
from testing.databases import open_patiently
from testing.network import Network
from testing.payment_harness import SECRET, sandbox_webhook_bodies

INBOUND_SECRET = "agreed with the sender"
Metadata = list[tuple[str, str]]


@dataclass
class PaymentServer:
    """A running payment_svc, as the gateway and booking_svc reach it. Its loops do not run."""

    service: Service
    gateway: grpc.aio.Channel
    booking: grpc.aio.Channel
    database_url: str

    async def create(self, **changes: object) -> payment_pb2.Payment:
        return await PaymentServiceStub(self.booking).CreatePayment(a_request(**changes))

    async def complete(self, payment_id: str, outcome: int) -> str:
        """The customer's choice on the sandbox's page. Returns where the page redirects to."""
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
        """The customer pays; VoidPayment then asks the sandbox, whose answer is the capture."""
        await self.complete(
            payment.payment_id, sandbox_service_pb2.CompleteCheckoutRequest.SUCCEEDED
        )
        answer = await PaymentServiceStub(self.booking).VoidPayment(
            payment_service_pb2.VoidPaymentRequest(payment_id=payment.payment_id)
        )
        assert answer.status == payment_pb2.Payment.CAPTURED

    async def sandbox_webhooks(self) -> list[bytes]:
        async with open_patiently(self.database_url) as database:
            return await sandbox_webhook_bodies(database)

    async def deliver_webhooks(self) -> None:
        for body in await self.sandbox_webhooks():
            await self.webhook(body)

    async def compare_a_day(self) -> None:
        """Compares a day on which the sandbox captured ₹ 7 that payment_svc has no record of."""
        start = datetime(2026, 3, 1, tzinfo=UTC)
        movement = Movement.of(Captured(None, "cs_1", start, "ch_1", Money(700, "INR"), "card"))
        async with (
            open_patiently(self.database_url) as database,
            database.transaction() as connection,
        ):
            await comparison.close_day(
                connection, provider="sandbox", start=start, movements=[movement], now=start
            )


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[PaymentServer]:
    """payment_svc with these settings, until the block ends."""
    network = Network(settings.home)
    async with (
        open_service(settings) as service,
        network.serve("payment_svc", service) as port,
        network.plain_channel("gateway", "payment_svc", port) as gateway,
        network.plain_channel("booking_svc", "payment_svc", port) as booking,
    ):
        yield PaymentServer(service, gateway, booking, settings.database_url)


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
    """The metadata that the gateway forwards for a verified token."""
    claims = json.dumps({"sub": str(user_id), "role": role, "sid": str(new_id())}).encode()
    return [("x-jwt-payload", base64.urlsafe_b64encode(claims).decode())]
