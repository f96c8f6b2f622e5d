"""OnSaleReportService: message → one domain call → message."""

from typing import Any
from uuid import UUID

from booking_svc.queueing import on_sale_report, on_sale_report_proto
from boxoffice.queueing.v1 import (
    on_sale_report_pb2,
    on_sale_report_service_pb2,
    on_sale_report_service_pb2_grpc,
)
from mesh.clock import Clock
from mesh.conversions import given, time_from_proto
from mesh.db.database import Database


class OnSaleReportServicer(on_sale_report_service_pb2_grpc.OnSaleReportServiceServicer):
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def GetOnSaleReport(
        self, request: on_sale_report_service_pb2.GetOnSaleReportRequest, context: Any
    ) -> on_sale_report_pb2.OnSaleReport:
        start, end = given(request, "start_time"), given(request, "end_time")
        async with self._database.reading() as connection:
            report = await on_sale_report.read(
                connection,
                event_id=UUID(request.event_id),
                start_time=None if start is None else time_from_proto(start, "start_time"),
                end_time=None if end is None else time_from_proto(end, "end_time"),
                now=self._clock(),
            )
        return on_sale_report_proto.report(report)
