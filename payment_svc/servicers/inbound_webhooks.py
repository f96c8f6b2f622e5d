"""InboundWebhookService: the stored webhooks of other senders."""

from typing import Any
from uuid import UUID

import grpc

from boxoffice.payments.v1 import inbound_webhook_service_pb2 as messages
from boxoffice.payments.v1.inbound_webhook_service_pb2_grpc import InboundWebhookServiceServicer
from mesh import paging
from mesh.conversions import time_to_proto
from mesh.db.database import Database
from payment_svc import inbound
from payment_svc.inbound import InboundWebhook

_Context = grpc.aio.ServicerContext[Any, Any]


class InboundWebhookServicer(InboundWebhookServiceServicer):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def ListInboundWebhooks(
        self, request: messages.ListInboundWebhooksRequest, context: _Context
    ) -> messages.ListInboundWebhooksResponse:
        async with self._database.reading() as connection:
            page = await inbound.list_page(
                connection,
                sender=request.sender,
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
        return messages.ListInboundWebhooksResponse(
            inbound_webhooks=map(_webhook, page.webhooks),
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def GetInboundWebhook(
        self, request: messages.GetInboundWebhookRequest, context: _Context
    ) -> messages.InboundWebhook:
        async with self._database.reading() as connection:
            stored = await inbound.get(connection, inbound_id=UUID(request.inbound_webhook_id))
        return _webhook(stored)


def _webhook(stored: InboundWebhook) -> messages.InboundWebhook:
    try:
        text = stored.body.decode()
    except UnicodeDecodeError:
        text = ""
    return messages.InboundWebhook(
        inbound_webhook_id=str(stored.inbound_id),
        sender=stored.sender,
        content_type=stored.content_type,
        size_bytes=stored.size_bytes,
        body=stored.body,
        text=text,
        receive_time=time_to_proto(stored.receive_time),
    )
