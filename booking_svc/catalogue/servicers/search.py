"""SearchService: proto → one domain call → proto."""

from typing import Any

from booking_svc.catalogue import proto, search_results
from boxoffice.catalogue.v1 import search_service_pb2, search_service_pb2_grpc
from mesh import paging
from mesh.db.database import Database


class SearchServicer(search_service_pb2_grpc.SearchServiceServicer):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def Search(
        self, request: search_service_pb2.SearchRequest, context: Any
    ) -> search_service_pb2.SearchResponse:
        async with self._database.reading() as connection:
            page = await search_results.list_page(
                connection,
                query=request.query,
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
        return search_service_pb2.SearchResponse(
            results=map(proto.search_result, page.results),
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )
