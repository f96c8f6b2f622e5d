"""ProductionService: proto → one domain call → proto."""

from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import event_listing, productions, proto
from booking_svc.catalogue.personal import PersonalReads
from boxoffice.catalogue.v1 import (
    production_pb2,
    production_service_pb2,
    production_service_pb2_grpc,
)
from mesh import paging
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites, key_of_call
from mesh.rpc.call import caller


class ProductionServicer(production_service_pb2_grpc.ProductionServiceServicer):
    def __init__(
        self,
        database: Database,
        writes: IdempotentWrites,
        personal_reads: PersonalReads,
        clock: Clock,
    ) -> None:
        self._database = database
        self._writes = writes
        self._personal_reads = personal_reads
        self._clock = clock

    async def CreateProduction(
        self, request: production_service_pb2.CreateProductionRequest, context: Any
    ) -> production_pb2.Production:
        async def create(connection: AsyncConnection) -> tuple[UUID, bytes]:
            created = await productions.create(
                connection,
                values=proto.production_values(request.production),
                now=self._clock(),
            )
            return created.production_id, proto.production(created).SerializeToString()

        answer = await self._writes.run_once(key_of_call("CreateProduction", request), create)
        return production_pb2.Production.FromString(answer)

    async def GetProduction(
        self, request: production_service_pb2.GetProductionRequest, context: Any
    ) -> production_pb2.Production:
        production_id, now = UUID(request.production_id), self._clock()
        async with self._database.reading() as connection:
            production = await productions.get(connection, production_id=production_id)
            upcoming = await event_listing.upcoming(
                connection, production_id=production_id, now=now
            )
        message = proto.production(production)
        message.upcoming_events.extend(
            proto.event(listed.event, listed.availability, now) for listed in upcoming
        )
        if (customer_id := caller().customer_id) is not None:
            events = message.upcoming_events
            read = await self._personal_reads.read(customer_id, proto.limits(events))
            proto.add_personal(events, read)
        return message

    async def ListProductions(
        self, request: production_service_pb2.ListProductionsRequest, context: Any
    ) -> production_service_pb2.ListProductionsResponse:
        async with self._database.reading() as connection:
            page = await productions.list_page(
                connection,
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
        return production_service_pb2.ListProductionsResponse(
            productions=[proto.production(production) for production in page.productions],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def UpdateProduction(
        self, request: production_service_pb2.UpdateProductionRequest, context: Any
    ) -> production_pb2.Production:
        async with self._database.transaction() as connection:
            return proto.production(
                await productions.update(
                    connection,
                    production_id=UUID(request.production_id),
                    values=proto.changed_production_values(request.production),
                    now=self._clock(),
                )
            )

    async def DeleteProduction(
        self, request: production_service_pb2.DeleteProductionRequest, context: Any
    ) -> production_service_pb2.DeleteProductionResponse:
        async with self._database.transaction() as connection:
            await productions.delete(
                connection, production_id=UUID(request.production_id), now=self._clock()
            )
        return production_service_pb2.DeleteProductionResponse()
