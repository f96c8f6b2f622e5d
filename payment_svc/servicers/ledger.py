"""BookService: message → plain values → one domain call → message."""

import csv
import io
from collections.abc import Sequence
from datetime import date
from typing import Any
from uuid import UUID

import grpc
from google.api import httpbody_pb2

from boxoffice.payments.v1 import book_service_pb2, book_service_pb2_grpc
from mesh import paging
from mesh.db.database import Database
from payment_svc import ledger
from payment_svc.ledger import LedgerRow
from payment_svc.proto import days_from_proto, row_to_proto

_DEFAULT_PAGE_SIZE = 100
_MAX_EXPORT = 5000
_COLUMNS = [field.name for field in book_service_pb2.BookRow.DESCRIPTOR.fields]

_Context = grpc.aio.ServicerContext[Any, Any]


class BookServicer(book_service_pb2_grpc.BookServiceServicer):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def ListBookRows(
        self, request: book_service_pb2.ListBookRowsRequest, context: _Context
    ) -> book_service_pb2.ListBookRowsResponse:
        limit = paging.page_size(request.page_size, default=_DEFAULT_PAGE_SIZE)
        scope = f"book:{request.since_day}:{request.until_day}:{request.event_id}"
        key = paging.from_token(request.page_token, 3, scope=scope)
        after = None if key is None else (date.fromisoformat(key[0]), key[1], key[2])
        rows = await self._rows(request, after=after, limit=limit + 1)
        response = book_service_pb2.ListBookRowsResponse(rows=map(row_to_proto, rows[:limit]))
        if len(rows) > limit:
            day, event_id, currency_code = rows[limit - 1].key
            response.next_page_token = paging.to_token(
                day.isoformat(), event_id, currency_code, scope=scope
            )
        return response

    async def ExportBook(
        self, request: book_service_pb2.ExportBookRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        rows = await self._rows(request, after=None, limit=_MAX_EXPORT)
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(_COLUMNS)
        for row in rows:
            message = row_to_proto(row)
            writer.writerow([getattr(message, name) for name in _COLUMNS])
        return httpbody_pb2.HttpBody(
            content_type="text/csv; charset=utf-8", data=text.getvalue().encode()
        )

    async def _rows(
        self,
        request: book_service_pb2.ListBookRowsRequest | book_service_pb2.ExportBookRequest,
        *,
        after: tuple[date, str, str] | None,
        limit: int,
    ) -> Sequence[LedgerRow]:
        since, until = days_from_proto(request.since_day, request.until_day)
        async with self._database.reading() as connection:
            return await ledger.rows(
                connection,
                since=since,
                until=until,
                event_id=UUID(request.event_id) if request.event_id else None,
                after=after,
                limit=limit,
            )
