"""FavouriteService: proto → one domain call → proto."""

from typing import Any
from uuid import UUID

from booking_svc.catalogue import favourites, proto
from booking_svc.catalogue.personal import PersonalReads
from boxoffice.catalogue.v1 import favourite_service_pb2, favourite_service_pb2_grpc
from mesh import paging
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.rpc.call import caller


class FavouriteServicer(favourite_service_pb2_grpc.FavouriteServiceServicer):
    def __init__(self, database: Database, personal_reads: PersonalReads, clock: Clock) -> None:
        self._database = database
        self._personal_reads = personal_reads
        self._clock = clock

    async def AddFavourite(
        self, request: favourite_service_pb2.AddFavouriteRequest, context: Any
    ) -> favourite_service_pb2.AddFavouriteResponse:
        async with self._database.single() as connection:
            await favourites.add(
                connection,
                user_id=caller().user(),
                event_id=UUID(request.event_id),
                now=self._clock(),
            )
        return favourite_service_pb2.AddFavouriteResponse()

    async def RemoveFavourite(
        self, request: favourite_service_pb2.RemoveFavouriteRequest, context: Any
    ) -> favourite_service_pb2.RemoveFavouriteResponse:
        async with self._database.single() as connection:
            await favourites.remove(
                connection, user_id=caller().user(), event_id=UUID(request.event_id)
            )
        return favourite_service_pb2.RemoveFavouriteResponse()

    async def ListFavourites(
        self, request: favourite_service_pb2.ListFavouritesRequest, context: Any
    ) -> favourite_service_pb2.ListFavouritesResponse:
        now = self._clock()
        async with self._database.reading() as connection:
            page = await favourites.list_page(
                connection,
                user_id=caller().user(),
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
        answer = favourite_service_pb2.ListFavouritesResponse(
            events=[proto.event(listed.event, listed.availability, now) for listed in page.events],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )
        if (customer_id := caller().customer_id) is not None:
            read = await self._personal_reads.read(customer_id, proto.limits(answer.events))
            proto.add_personal(answer.events, read)
        for event in answer.events:
            event.is_favourite = True
        return answer
