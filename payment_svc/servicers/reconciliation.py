"""ReconciliationService: message → plain values → one domain call → message."""

from typing import Any
from uuid import UUID

import grpc

from boxoffice.payments.v1 import reconciliation_service_pb2, reconciliation_service_pb2_grpc
from mesh import paging
from mesh.clock import Clock
from mesh.conversions import money_to_proto
from mesh.db.database import Database
from payment_svc import comparison, unmatched
from payment_svc.proto import days_from_proto
from payment_svc.unmatched import UnmatchedItem

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
            items = await unmatched.list_open(
                connection, after=paging.id_from_token(request.page_token), limit=limit + 1
            )
        response = reconciliation_service_pb2.ListUnexplainedResponse(
            unexplained=map(_to_proto, items[:limit])
        )
        if len(items) > limit:
            response.next_page_token = paging.to_token(str(items[limit - 1].unexplained_id))
        return response

    async def CloseUnexplained(
        self, request: reconciliation_service_pb2.CloseUnexplainedRequest, context: _Context
    ) -> reconciliation_service_pb2.Unexplained:
        async with self._database.transaction() as connection:
            return _to_proto(
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
            totals = await comparison.totals(
                connection, since=since, until=until, limit=_MAX_TOTALS
            )
        return reconciliation_service_pb2.ListDayTotalsResponse(
            totals=[
                reconciliation_service_pb2.DayTotal(
                    provider=total.provider,
                    day=total.day.isoformat(),
                    kind=total.kind,
                    provider_total=money_to_proto(total.provider_total),
                    our_total=money_to_proto(total.our_total),
                )
                for total in totals
            ]
        )


def _to_proto(item: UnmatchedItem) -> reconciliation_service_pb2.Unexplained:
    message = reconciliation_service_pb2.Unexplained(
        unexplained_id=str(item.unexplained_id),
        provider=item.provider,
        kind=reconciliation_service_pb2.Unexplained.Kind.Value(item.kind),
        reference=item.reference,
        payment_id="" if item.payment_id is None else str(item.payment_id),
        amount=None if item.amount is None else money_to_proto(item.amount),
        note=item.note,
    )
    message.create_time.FromDatetime(item.create_time)
    if item.close_time is not None:
        message.close_time.FromDatetime(item.close_time)
    return message
