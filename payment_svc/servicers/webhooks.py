"""WebhookService: receives the webhooks of providers and of other senders."""

from collections.abc import Mapping
from typing import Any

import grpc
from google.api import httpbody_pb2

from boxoffice.payments.v1 import webhook_service_pb2, webhook_service_pb2_grpc
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.jobs import Wakeup
from mesh.errors import DomainError, Reason
from mesh.tasks import shielded
from payment_svc import inbound, webhooks
from payment_svc.provider_calls import ProviderCalls
from payment_svc.providers.base import Authorized, WebhookEvent

_DATABASE_STEP_SECONDS = 8.0

_Context = grpc.aio.ServicerContext[Any, Any]


class WebhookServicer(webhook_service_pb2_grpc.WebhookServiceServicer):
    def __init__(
        self,
        database: Database,
        calls: ProviderCalls,
        clock: Clock,
        refund_requested: Wakeup,
        check_wanted: Wakeup,
        inbound_secrets: Mapping[str, str],
    ) -> None:
        self._inbound_secrets = inbound_secrets
        self._database = database
        self._calls = calls
        self._clock = clock
        self._refund_requested = refund_requested
        self._check_wanted = check_wanted

    async def ReceiveWebhook(
        self, request: webhook_service_pb2.ReceiveWebhookRequest, context: _Context
    ) -> webhook_service_pb2.ReceiveWebhookResponse:
        payload = _body(request.payload)
        headers = _headers(context)
        event = self._calls.provider(request.provider).read_webhook(
            payload, headers, now=self._clock()
        )
        await shielded(
            self._receive(request.provider, event, payload), seconds=_DATABASE_STEP_SECONDS
        )
        # The report may have created a refund.
        self._refund_requested.ring()
        if isinstance(event.report, Authorized):
            # The check captures the authorisation.
            self._check_wanted.ring()
        return webhook_service_pb2.ReceiveWebhookResponse()

    async def ReceiveInbound(
        self, request: webhook_service_pb2.ReceiveInboundRequest, context: _Context
    ) -> webhook_service_pb2.ReceiveInboundResponse:
        secret = self._inbound_secrets.get(request.sender)
        if secret is None:
            raise DomainError(Reason.PROVIDER_NOT_FOUND, "unknown sender", provider=request.sender)
        body = _body(request.payload)
        headers = _headers(context)
        token = inbound.handshake(headers)
        if token is not None:
            await context.send_initial_metadata(((inbound.HANDSHAKE_HEADER, token),))
            return webhook_service_pb2.ReceiveInboundResponse()
        inbound.verify(body, headers, secret=secret)
        await shielded(
            self._receive_inbound(request.sender, request.payload.content_type, body),
            seconds=_DATABASE_STEP_SECONDS,
        )
        return webhook_service_pb2.ReceiveInboundResponse()

    async def GetWebhookHealth(
        self, request: webhook_service_pb2.GetWebhookHealthRequest, context: _Context
    ) -> webhook_service_pb2.GetWebhookHealthResponse:
        return webhook_service_pb2.GetWebhookHealthResponse(
            status="ok", providers=self._calls.offered
        )

    async def _receive_inbound(self, sender: str, content_type: str, body: bytes) -> None:
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


def _body(payload: httpbody_pb2.HttpBody) -> bytes:
    """The raw bytes. Raises REQUEST_TOO_LARGE."""
    body: bytes = payload.data
    if len(body) > webhooks.MAX_BYTES:
        raise DomainError(
            Reason.REQUEST_TOO_LARGE, f"a webhook has at most {webhooks.MAX_BYTES:,} bytes"
        )
    return body


def _headers(context: _Context) -> dict[str, str]:
    return {
        name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)
    }
