"""BookService and ReconciliationService: the contract ⇄ the domain, for staff."""

import csv
import io
from collections.abc import Sequence
from datetime import date
from typing import Any
from uuid import UUID

import grpc
from google.api import httpbody_pb2

from boxoffice.payments.v1 import (
    book_service_pb2,
    book_service_pb2_grpc,
    reconciliation_service_pb2,
    reconciliation_service_pb2_grpc,
)
from boxoffice.types.v1 import money_pb2
from mesh import paging
from mesh.clock import Clock
from mesh.database import Database
from mesh.errors import FieldViolation, invalid
from mesh.money import Money
from payment_svc import book, comparison, unexplained
from payment_svc.book import Row
from payment_svc.unexplained import Unexplained

_DEFAULT_PAGE_SIZE = 100
_MAX_EXPORT = 5000
_MAX_TOTALS = 1000
_NAMES = [field.name for field in book_service_pb2.BookRow.DESCRIPTOR.fields]

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
        response = book_service_pb2.ListBookRowsResponse(rows=map(_row, rows[:limit]))
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
        writer.writerow(_NAMES)
        for row in rows:
            message = _row(row)
            writer.writerow([getattr(message, name) for name in _NAMES])
        return httpbody_pb2.HttpBody(
            content_type="text/csv; charset=utf-8", data=text.getvalue().encode()
        )

    async def _rows(
        self,
        request: book_service_pb2.ListBookRowsRequest | book_service_pb2.ExportBookRequest,
        *,
        after: tuple[date, str, str] | None,
        limit: int,
    ) -> Sequence[Row]:
        since, until = _days(request.since_day, request.until_day)
        async with self._database.reading() as connection:
            return await book.rows(
                connection,
                since=since,
                until=until,
                event_id=UUID(request.event_id) if request.event_id else None,
                after=after,
                limit=limit,
            )


class ReconciliationServicer(reconciliation_service_pb2_grpc.ReconciliationServiceServicer):
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def ListUnexplained(
        self, request: reconciliation_service_pb2.ListUnexplainedRequest, context: _Context
    ) -> reconciliation_service_pb2.ListUnexplainedResponse:
        limit = paging.page_size(request.page_size, default=_DEFAULT_PAGE_SIZE)
        async with self._database.reading() as connection:
            found = await unexplained.list_open(
                connection, after=paging.id_from_token(request.page_token), limit=limit + 1
            )
        response = reconciliation_service_pb2.ListUnexplainedResponse(
            unexplained=map(_unexplained, found[:limit])
        )
        if len(found) > limit:
            response.next_page_token = paging.to_token(str(found[limit - 1].unexplained_id))
        return response

    async def CloseUnexplained(
        self, request: reconciliation_service_pb2.CloseUnexplainedRequest, context: _Context
    ) -> reconciliation_service_pb2.Unexplained:
        async with self._database.transaction() as connection:
            return _unexplained(
                await unexplained.close(
                    connection,
                    unexplained_id=UUID(request.unexplained_id),
                    note=request.note,
                    now=self._clock(),
                )
            )

    async def ListDayTotals(
        self, request: reconciliation_service_pb2.ListDayTotalsRequest, context: _Context
    ) -> reconciliation_service_pb2.ListDayTotalsResponse:
        since, until = _days(request.since_day, request.until_day)
        async with self._database.reading() as connection:
            found = await comparison.totals(connection, since=since, until=until, limit=_MAX_TOTALS)
        return reconciliation_service_pb2.ListDayTotalsResponse(
            totals=[
                reconciliation_service_pb2.DayTotal(
                    provider=one.provider,
                    day=one.day.isoformat(),
                    kind=one.kind,
                    provider_total=_money(one.provider_total),
                    our_total=_money(one.our_total),
                )
                for one in found
            ]
        )


def _days(since: str, until: str) -> tuple[date, date]:
    return _day("since_day", since, date.min), _day("until_day", until, date.max)


def _day(field: str, text: str, otherwise: date) -> date:
    if not text:
        return otherwise
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise invalid(FieldViolation(field, "not a day")) from None


def _row(row: Row) -> book_service_pb2.BookRow:
    return book_service_pb2.BookRow(
        day=row.day.isoformat(),
        event_id="" if row.event_id is None else str(row.event_id),
        currency_code=row.currency_code,
        captured_minor=row.captured_minor,
        refunded_minor=row.refunded_minor,
        fees_minor=row.fees_minor,
        suspense_minor=row.suspense_minor,
        disputed_minor=row.disputed_minor,
        net_minor=row.net_minor,
    )


def _unexplained(one: Unexplained) -> reconciliation_service_pb2.Unexplained:
    message = reconciliation_service_pb2.Unexplained(
        unexplained_id=str(one.unexplained_id),
        provider=one.provider,
        kind=reconciliation_service_pb2.Unexplained.Kind.Value(one.kind),
        reference=one.reference,
        payment_id="" if one.payment_id is None else str(one.payment_id),
        amount=None if one.amount is None else _money(one.amount),
        note=one.note,
    )
    message.create_time.FromDatetime(one.create_time)
    if one.close_time is not None:
        message.close_time.FromDatetime(one.close_time)
    return message


def _money(money: Money) -> money_pb2.Money:
    return money_pb2.Money(currency_code=money.currency_code, amount_minor=money.amount_minor)
