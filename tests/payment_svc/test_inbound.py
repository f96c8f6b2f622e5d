"""Webhooks of other senders: signed or by token, stored once, on the stream as they came."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from google.api import httpbody_pb2

from boxoffice.payments.v1 import payment_event_service_pb2, webhook_service_pb2
from boxoffice.payments.v1.payment_event_service_pb2_grpc import PaymentEventServiceStub
from boxoffice.payments.v1.webhook_service_pb2_grpc import WebhookServiceStub
from payment_svc import inbound
from payment_svc.__main__ import open_service
from payment_svc.providers import signatures
from payment_svc.settings import Settings
from testing.network import Network, reason_of, refusal

SECRET = "agreed with the sender"
BODY = b'{ "event": "/restapi/v1.0/account/1/telephony/sessions",\r\n "body": {"n": 1.10} }'


@pytest.fixture
async def channels(
    tmp_path: Path, new_database: Callable[[str], str]
) -> AsyncIterator[tuple[grpc.aio.Channel, grpc.aio.Channel]]:
    settings = Settings(
        home=tmp_path,
        payment_database_url=new_database("payment_svc"),
        sandbox_webhook_secret="s",
        inbound_webhook_secrets=f"ringcentral={SECRET},crm=another",
    )
    network = Network(tmp_path)
    async with (
        open_service(settings) as service,
        network.serve("payment_svc", service) as port,
        network.plain_channel("gateway", "payment_svc", port) as gateway,
        network.plain_channel("booking_svc", "payment_svc", port) as booking,
    ):
        yield gateway, booking


Channels = tuple[grpc.aio.Channel, grpc.aio.Channel]


def send(
    channel: grpc.aio.Channel, body: bytes = BODY, *, sender: str = "ringcentral", **headers: str
) -> grpc.aio.UnaryUnaryCall[object, webhook_service_pb2.ReceiveInboundResponse]:
    return WebhookServiceStub(channel).ReceiveInbound(  # type: ignore[return-value]
        webhook_service_pb2.ReceiveInboundRequest(
            sender=sender,
            payload=httpbody_pb2.HttpBody(content_type="application/json", data=body),
        ),
        metadata=[(name.replace("_", "-"), value) for name, value in headers.items()],
    )


async def test_a_signed_webhook_is_on_the_stream_once(channels: Channels) -> None:
    gateway, booking = channels
    signature = signatures.plain(BODY, secret=SECRET)
    await send(gateway, x_webhook_signature=signature)
    await send(gateway, x_webhook_signature=f"sha256={signature}")
    await send(gateway, b"second", verification_token=SECRET)
    stream = PaymentEventServiceStub(booking).StreamEvents(
        payment_event_service_pb2.StreamEventsRequest()
    )
    received: list[tuple[str, bytes]] = []
    async with asyncio.timeout(60):
        async for batch in stream:
            received += [
                (event.inbound_received.sender, event.inbound_received.body)
                for event in batch.events
            ]
            if len(received) >= 2:
                break
    stream.cancel()
    assert received == [("ringcentral", BODY), ("ringcentral", b"second")]


async def test_what_the_sender_did_not_sign_is_refused(channels: Channels) -> None:
    gateway, _ = channels
    forged: list[dict[str, str]] = [
        {},
        {"x_webhook_signature": ""},
        {"x_webhook_signature": signatures.plain(BODY, secret="another")},
        {"x_webhook_signature": signatures.plain(BODY + b" ", secret=SECRET)},
        {"verification_token": "another"},
        {"validation_token": "x" * 300},
    ]
    for headers in forged:
        error = await refusal(send(gateway, BODY, **headers))
        assert reason_of(error) == "WEBHOOK_SIGNATURE_INVALID", headers
    error = await refusal(send(gateway, sender="stranger", verification_token=SECRET))
    assert reason_of(error) == "PROVIDER_NOT_FOUND"


async def test_the_handshake_is_echoed(channels: Channels) -> None:
    gateway, _ = channels
    call = send(gateway, b"", validation_token="a-token-of-ringcentral")
    await call
    echoed = dict(await call.initial_metadata())
    assert echoed[inbound.HANDSHAKE_HEADER] == "a-token-of-ringcentral"


async def test_health_says_whose_webhooks_are_taken(channels: Channels) -> None:
    gateway, _ = channels
    health = await WebhookServiceStub(gateway).GetWebhookHealth(
        webhook_service_pb2.GetWebhookHealthRequest()
    )
    assert (health.status, list(health.providers)) == ("ok", ["sandbox"])
