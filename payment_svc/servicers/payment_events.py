"""PaymentEventService: the outbox as a stream."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from boxoffice.payments.v1 import (
    payment_event_service_pb2,
    payment_event_service_pb2_grpc,
)
from mesh.db.outbox import OutboxReader, to_messages

_Context = grpc.aio.ServicerContext[Any, Any]


class PaymentEventServicer(payment_event_service_pb2_grpc.PaymentEventServiceServicer):
    def __init__(self, events: OutboxReader) -> None:
        self._events = events

    async def StreamEvents(
        self, request: payment_event_service_pb2.StreamEventsRequest, context: _Context
    ) -> AsyncIterator[payment_event_service_pb2.StreamEventsResponse]:
        async for batch in self._events.stream(request.after_position):
            yield payment_event_service_pb2.StreamEventsResponse(
                events=to_messages(batch, payment_event_service_pb2.PaymentEvent)
            )
