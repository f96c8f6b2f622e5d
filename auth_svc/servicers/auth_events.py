"""AuthEventService: the outbox as a stream, and its revocations for in-memory deny lists."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import grpc

from auth_svc.outbox import REVOCATIONS
from boxoffice.auth.v1 import auth_event_service_pb2 as stream_pb2
from boxoffice.auth.v1 import auth_event_service_pb2_grpc
from mesh.clock import Clock
from mesh.db.outbox import Event, OutboxReader, to_messages

# Consumers treat a silent stream as broken: mesh/rpc/revocations.py.
_PULSE = timedelta(seconds=5)
# More than the margin by which revocations outlive the tokens (sessions.py).
_MARGIN = timedelta(minutes=5)

_Context = grpc.aio.ServicerContext[Any, Any]


class AuthEventServicer(auth_event_service_pb2_grpc.AuthEventServiceServicer):
    def __init__(self, events: OutboxReader, clock: Clock, *, access_lifetime: timedelta) -> None:
        self._events = events
        self._clock = clock
        self._access_lifetime = access_lifetime

    async def StreamEvents(
        self, request: stream_pb2.StreamEventsRequest, context: _Context
    ) -> AsyncIterator[stream_pb2.StreamEventsResponse]:
        async for batch in self._events.stream(request.after_position):
            yield stream_pb2.StreamEventsResponse(events=to_messages(batch, stream_pb2.AuthEvent))

    async def StreamRevocations(
        self, request: stream_pb2.StreamRevocationsRequest, context: _Context
    ) -> AsyncIterator[stream_pb2.StreamRevocationsResponse]:
        async for response in self.revocations():
            yield response

    async def revocations(self) -> AsyncIterator[stream_pb2.StreamRevocationsResponse]:
        """The messages of StreamRevocations; auth_svc consumes them too."""
        read_time = self._clock()
        begin = await self._events.position_at(read_time - self._access_lifetime - _MARGIN)
        sent: datetime | None = None
        async for batch in self._events.stream(begin, pauses=True):
            now = self._clock()
            response = stream_pb2.StreamRevocationsResponse(
                revocations=[
                    _revocation(event) for event in batch if event.event_type in REVOCATIONS
                ]
            )
            if not batch:
                # The read started after `read_time` and returned nothing.
                response.as_of.FromDatetime(read_time)
            read_time = now
            if response.revocations or sent is None or now - sent >= _PULSE:
                sent = now
                yield response


def _revocation(event: Event) -> stream_pb2.Revocation:
    message = stream_pb2.AuthEvent.FromString(event.payload)
    if event.event_type == "session_revoked":
        return stream_pb2.Revocation(session_revoked=message.session_revoked)
    return stream_pb2.Revocation(access_revoked=message.access_revoked)
