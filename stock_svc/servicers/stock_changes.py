"""StockChangeService: streams the outbox."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from boxoffice.stock.v1 import stock_change_service_pb2
from boxoffice.stock.v1.stock_change_service_pb2_grpc import (
    StockChangeServiceServicer as GeneratedServicer,
)
from mesh.db.outbox import OutboxReader, to_messages

# Watchers of an event's availability follow from now on; consumers that copy levels can be later.
_WATCH_PAUSE_SECONDS = 0.1
_COPY_PAUSE_SECONDS = 0.5

_Context = grpc.aio.ServicerContext[Any, Any]


class StockChangeServicer(GeneratedServicer):
    def __init__(self, changes: OutboxReader) -> None:
        self._changes = changes

    async def StreamChanges(
        self, request: stock_change_service_pb2.StreamChangesRequest, context: _Context
    ) -> AsyncIterator[stock_change_service_pb2.StreamChangesResponse]:
        position, pause_seconds = request.after_position, _COPY_PAUSE_SECONDS
        if request.from_now:
            position, pause_seconds = await self._changes.now(), _WATCH_PAUSE_SECONDS
            yield stock_change_service_pb2.StreamChangesResponse(position=position)
        async for batch in self._changes.stream(position, pause_seconds=pause_seconds):
            yield stock_change_service_pb2.StreamChangesResponse(
                changes=to_messages(batch, stock_change_service_pb2.StockChange),
                position=batch[-1].position,
            )
