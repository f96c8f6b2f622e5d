"""ReconciliationService: message → plain values → one domain call → message."""

from typing import Any
from uuid import UUID

import grpc

from boxoffice.payments.v1 import (
    reconciliation_service_pb2,
    reconciliation_service_pb2_grpc,
)
from mesh import paging
from mesh.clock import Clock
from mesh.conversions import money_to_proto
from mesh.db.database import Database
from payment_svc import comparison, unmatched
from payment_svc.proto import days_from_proto
from payment_svc.unmatched import Unmatched

_DEFAULT_PAGE_SIZE = 100


_MAX_TOTALS = 1000


_Context = grpc.aio.ServicerContext[Any, Any]


class ReconciliationServicer(reconciliation_service_pb2_grpc.ReconciliationServiceServicer):
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def ListUnexplained(
        self, request: reconciliation_service_pb2.ListUnexplainedRequest, context: _Context
    ) -> reconciliation_service_pb2.ListUnexplainedResponse:
        limit = paging.page_size(request.page_size, default=_DEFAULT_PAGE_SIZE)
        async with self._database.reading() as connection:
            found = await unmatched.list_open(
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
                await unmatched.close(
                    connection,
                    unexplained_id=UUID(request.unexplained_id),
                    note=request.note,
                    now=self._clock(),
                )
            )

    async def ListDayTotals(
        self, request: reconciliation_service_pb2.ListDayTotalsRequest, context: _Context
    ) -> reconciliation_service_pb2.ListDayTotalsResponse:
        since, until = days_from_proto(request.since_day, request.until_day)
        async with self._database.reading() as connection:
            found = await comparison.totals(connection, since=since, until=until, limit=_MAX_TOTALS)
        return reconciliation_service_pb2.ListDayTotalsResponse(
            totals=[
                reconciliation_service_pb2.DayTotal(
                    provider=one.provider,
                    day=one.day.isoformat(),
                    kind=one.kind,
                    provider_total=money_to_proto(one.provider_total),
                    our_total=money_to_proto(one.our_total),
                )
                for one in found
            ]
        )


def _unexplained(one: Unmatched) -> reconciliation_service_pb2.Unexplained:
    message = reconciliation_service_pb2.Unexplained(
        unexplained_id=str(one.unexplained_id),
        provider=one.provider,
        kind=reconciliation_service_pb2.Unexplained.Kind.Value(one.kind),
        reference=one.reference,
        payment_id="" if one.payment_id is None else str(one.payment_id),
        amount=None if one.amount is None else money_to_proto(one.amount),
        note=one.note,
    )
    message.create_time.FromDatetime(one.create_time)
    if one.close_time is not None:
        message.close_time.FromDatetime(one.close_time)
    return message
