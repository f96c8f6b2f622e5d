"""WebhookEndpointService: proto → one domain call → proto."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from google.protobuf.empty_pb2 import Empty
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.webhooks import deliveries, endpoints, payload
from booking_svc.webhooks.deliveries import Delivery, Status
from booking_svc.webhooks.delivery_worker import DeliveryWorker
from booking_svc.webhooks.encryption import SecretBox
from booking_svc.webhooks.endpoints import Endpoint
from booking_svc.webhooks.url_policy import Rules
from boxoffice.webhooks.v1 import (
    webhook_endpoint_pb2,
    webhook_endpoint_service_pb2,
    webhook_endpoint_service_pb2_grpc,
)
from mesh import paging
from mesh.clock import Clock
from mesh.conversions import time_to_proto
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites, key_of_call

_OVERLAP = timedelta(days=1)


class WebhookEndpointServicer(webhook_endpoint_service_pb2_grpc.WebhookEndpointServiceServicer):
    def __init__(
        self,
        *,
        database: Database,
        writes: IdempotentWrites,
        delivery_worker: DeliveryWorker,
        rules: Rules,
        secret_box: SecretBox,
        clock: Clock,
    ) -> None:
        self._database = database
        self._writes = writes
        self._delivery_worker = delivery_worker
        self._rules = rules
        self._secret_box = secret_box
        self._clock = clock

    async def CreateWebhookEndpoint(
        self, request: webhook_endpoint_service_pb2.CreateWebhookEndpointRequest, context: Any
    ) -> webhook_endpoint_pb2.WebhookEndpoint:
        now = self._clock()

        async def create(connection: AsyncConnection) -> tuple[UUID, bytes]:
            created = await endpoints.create(
                connection,
                url=request.url,
                description=request.description,
                event_types=request.event_types,
                rules=self._rules,
                secret_box=self._secret_box,
                now=now,
            )
            return created.endpoint_id, self._encrypted(created)

        key = key_of_call("CreateWebhookEndpoint", request)
        answer = await self._writes.run_once(key, create)
        return self._decrypted(answer)

    async def ListWebhookEndpoints(
        self, request: webhook_endpoint_service_pb2.ListWebhookEndpointsRequest, context: Any
    ) -> webhook_endpoint_service_pb2.ListWebhookEndpointsResponse:
        async with self._database.reading() as connection:
            page = await endpoints.list_page(
                connection,
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
                now=self._clock(),
            )
        return webhook_endpoint_service_pb2.ListWebhookEndpointsResponse(
            webhook_endpoints=map(_endpoint, page.endpoints),
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def GetWebhookEndpoint(
        self, request: webhook_endpoint_service_pb2.GetWebhookEndpointRequest, context: Any
    ) -> webhook_endpoint_pb2.WebhookEndpoint:
        async with self._database.reading() as connection:
            return _endpoint(
                await endpoints.get(
                    connection,
                    endpoint_id=UUID(request.webhook_endpoint_id),
                    now=self._clock(),
                )
            )

    async def UpdateWebhookEndpoint(
        self, request: webhook_endpoint_service_pb2.UpdateWebhookEndpointRequest, context: Any
    ) -> webhook_endpoint_pb2.WebhookEndpoint:
        async with self._database.transaction() as connection:
            changed = await endpoints.update(
                connection,
                endpoint_id=UUID(request.webhook_endpoint_id),
                url=request.url if request.HasField("url") else None,
                description=request.description if request.HasField("description") else None,
                event_types=request.event_types,
                is_enabled=request.enabled if request.HasField("enabled") else None,
                rules=self._rules,
                now=self._clock(),
            )
        return _endpoint(changed)

    async def DeleteWebhookEndpoint(
        self, request: webhook_endpoint_service_pb2.DeleteWebhookEndpointRequest, context: Any
    ) -> Empty:
        async with self._database.transaction() as connection:
            await endpoints.delete(connection, endpoint_id=UUID(request.webhook_endpoint_id))
        return Empty()

    async def RotateWebhookSecret(
        self, request: webhook_endpoint_service_pb2.RotateWebhookSecretRequest, context: Any
    ) -> webhook_endpoint_pb2.WebhookEndpoint:
        now = self._clock()
        overlap = _OVERLAP
        if request.HasField("overlap_seconds"):
            overlap = timedelta(seconds=request.overlap_seconds)

        async def rotate(connection: AsyncConnection) -> tuple[UUID, bytes]:
            changed = await endpoints.rotate_secret(
                connection,
                endpoint_id=UUID(request.webhook_endpoint_id),
                overlap=overlap,
                secret_box=self._secret_box,
                now=now,
            )
            return changed.endpoint_id, self._encrypted(changed)

        key = key_of_call("RotateWebhookSecret", request)
        answer = await self._writes.run_once(key, rotate)
        return self._decrypted(answer)

    async def TestWebhookEndpoint(
        self, request: webhook_endpoint_service_pb2.TestWebhookEndpointRequest, context: Any
    ) -> webhook_endpoint_pb2.WebhookDelivery:
        now = self._clock()
        endpoint_id = UUID(request.webhook_endpoint_id)

        async def send(connection: AsyncConnection) -> tuple[UUID, bytes]:
            await endpoints.get(connection, endpoint_id=endpoint_id, now=now, lock=True)
            queued = await deliveries.send_test(
                connection,
                endpoint_id=endpoint_id,
                message=payload.of_test(endpoint_id, now=now),
                now=now,
            )
            return queued.delivery_id, _delivery(queued).SerializeToString()

        key = key_of_call("TestWebhookEndpoint", request)
        answer = await self._writes.run_once(key, send)
        self._delivery_worker.wake()
        return webhook_endpoint_pb2.WebhookDelivery.FromString(answer)

    async def ListWebhookDeliveries(
        self, request: webhook_endpoint_service_pb2.ListWebhookDeliveriesRequest, context: Any
    ) -> webhook_endpoint_service_pb2.ListWebhookDeliveriesResponse:
        endpoint_id = UUID(request.webhook_endpoint_id)
        status = webhook_endpoint_pb2.WebhookDelivery.Status.Name(request.status)
        async with self._database.reading() as connection:
            await endpoints.get(connection, endpoint_id=endpoint_id, now=self._clock())
            page = await deliveries.list_page(
                connection,
                endpoint_id=endpoint_id,
                status=Status(status) if request.status else None,
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
        return webhook_endpoint_service_pb2.ListWebhookDeliveriesResponse(
            deliveries=map(_delivery, page.deliveries),
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def ResendWebhookDelivery(
        self, request: webhook_endpoint_service_pb2.ResendWebhookDeliveryRequest, context: Any
    ) -> webhook_endpoint_pb2.WebhookDelivery:
        now = self._clock()
        endpoint_id = UUID(request.webhook_endpoint_id)

        async def resend(connection: AsyncConnection) -> tuple[UUID, bytes]:
            await endpoints.get(connection, endpoint_id=endpoint_id, now=now, lock=True)
            queued = await deliveries.resend(
                connection,
                endpoint_id=endpoint_id,
                delivery_id=UUID(request.delivery_id),
                now=now,
            )
            return queued.delivery_id, _delivery(queued).SerializeToString()

        key = key_of_call("ResendWebhookDelivery", request)
        answer = await self._writes.run_once(key, resend)
        self._delivery_worker.wake()
        return webhook_endpoint_pb2.WebhookDelivery.FromString(answer)

    def _encrypted(self, endpoint: Endpoint) -> bytes:
        """An answer with a secret, encrypted to be stored under the idempotency key."""
        return self._secret_box.encrypt(_endpoint(endpoint).SerializeToString())

    def _decrypted(self, answer: bytes) -> webhook_endpoint_pb2.WebhookEndpoint:
        return webhook_endpoint_pb2.WebhookEndpoint.FromString(self._secret_box.decrypt(answer))


def _endpoint(value: Endpoint) -> webhook_endpoint_pb2.WebhookEndpoint:
    return webhook_endpoint_pb2.WebhookEndpoint(
        webhook_endpoint_id=str(value.endpoint_id),
        url=value.url,
        description=value.description,
        event_types=value.event_types,
        enabled=value.is_enabled,
        disable_reason=value.disable_reason,
        secret=value.new_secret,
        secrets=[
            webhook_endpoint_pb2.WebhookSecret(
                create_time=time_to_proto(secret.create_time),
                expire_time=time_to_proto(secret.expire_time),
            )
            for secret in value.secrets
        ],
        create_time=time_to_proto(value.create_time),
        update_time=time_to_proto(value.update_time),
    )


def _delivery(value: Delivery) -> webhook_endpoint_pb2.WebhookDelivery:
    return webhook_endpoint_pb2.WebhookDelivery(
        delivery_id=str(value.delivery_id),
        webhook_id=str(value.message_id),
        event_type=value.event_type,
        status=webhook_endpoint_pb2.WebhookDelivery.Status.Value(value.status),
        attempt_count=value.attempt_count,
        attempts=[
            webhook_endpoint_pb2.WebhookAttempt(
                time=time_to_proto(attempt.time),
                status_code=attempt.status_code,
                error=attempt.error,
                duration_ms=attempt.duration_ms,
            )
            for attempt in value.attempts
        ],
        next_attempt_time=time_to_proto(value.due_time),
        create_time=time_to_proto(value.create_time),
        end_time=time_to_proto(value.end_time),
    )
