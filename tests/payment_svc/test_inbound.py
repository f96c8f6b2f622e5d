"""Webhooks of other senders: verified by signature or token, stored once, on the stream."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import grpc
import pytest
from google.api import httpbody_pb2

from boxoffice.payments.v1 import payment_event_service_pb2, webhook_service_pb2
from boxoffice.payments.v1.payment_event_service_pb2_grpc import PaymentEventServiceStub
from boxoffice.payments.v1.webhook_service_pb2_grpc import WebhookServiceStub
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from payment_svc import inbound
from payment_svc.providers import signatures
from testing.network import reason_of, refusal
from testing.payment_server import INBOUND_SECRET, PaymentServer

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BODY = b'{ "event": "/restapi/v1.0/account/1/telephony/sessions",\r\n "body": {"n": 1.10} }'


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


async def test_a_signed_webhook_is_on_the_stream_once(server: PaymentServer) -> None:
    signature = signatures.plain(BODY, secret=INBOUND_SECRET)
    await send(server.gateway, x_webhook_signature=signature)
    await send(server.gateway, x_webhook_signature=f"sha256={signature}")
    await send(server.gateway, b"second", verification_token=INBOUND_SECRET)
    stream = PaymentEventServiceStub(server.booking).StreamEvents(
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


async def test_a_webhook_without_valid_proof_is_refused(server: PaymentServer) -> None:
    forged: list[dict[str, str]] = [
        {},
        {"x_webhook_signature": ""},
        {"x_webhook_signature": signatures.plain(BODY, secret="another")},
        {"x_webhook_signature": signatures.plain(BODY + b" ", secret=INBOUND_SECRET)},
        {"verification_token": "another"},
        {"validation_token": "x" * 300},
    ]
    for headers in forged:
        error = await refusal(send(server.gateway, BODY, **headers))
        assert reason_of(error) == "WEBHOOK_SIGNATURE_INVALID", headers
    error = await refusal(
        send(server.gateway, sender="stranger", verification_token=INBOUND_SECRET)
    )
    assert reason_of(error) == "PROVIDER_NOT_FOUND"


async def test_a_handshake_is_answered_with_its_token(server: PaymentServer) -> None:
    call = send(server.gateway, b"", validation_token="a-token-of-ringcentral")
    await call
    echoed = dict(await call.initial_metadata())
    assert echoed[inbound.HANDSHAKE_HEADER] == "a-token-of-ringcentral"


async def test_health_lists_the_configured_providers(server: PaymentServer) -> None:
    health = await WebhookServiceStub(server.gateway).GetWebhookHealth(
        webhook_service_pb2.GetWebhookHealthRequest()
    )
    assert (health.status, list(health.providers)) == ("ok", ["sandbox"])


async def test_stored_webhooks_are_listed_by_sender_and_read(database: Database) -> None:
    async with database.transaction() as connection:
        for sender, body in (("crm", b"1"), ("crm", b"\xff2"), ("ringcentral", b"345")):
            await inbound.receive(
                connection, sender=sender, content_type="text/plain", body=body, now=NOW
            )
    async with database.reading() as connection:
        everything = await inbound.list_page(connection, sender="", page_size=2, page_token="")
        rest = await inbound.list_page(
            connection, sender="", page_size=2, page_token=everything.next_page_token
        )
        of_crm = await inbound.list_page(connection, sender="crm", page_size=2, page_token="")
        stored = await inbound.get(connection, inbound_id=of_crm.webhooks[0].inbound_id)
        with pytest.raises(DomainError) as refused:
            await inbound.get(connection, inbound_id=UUID(int=1))
    listed = [*everything.webhooks, *rest.webhooks]
    assert [(webhook.sender, webhook.size_bytes, webhook.body) for webhook in listed] == [
        ("ringcentral", 3, b""),
        ("crm", 2, b""),
        ("crm", 1, b""),
    ]
    assert (everything.total_size, rest.next_page_token, of_crm.total_size) == (3, "", 2)
    assert stored == replace(of_crm.webhooks[0], body=b"\xff2")
    assert refused.value.reason is Reason.INBOUND_WEBHOOK_NOT_FOUND
