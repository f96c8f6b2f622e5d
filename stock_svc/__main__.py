"""Starts stock_svc."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from boxoffice.auth.v1 import auth_event_service_pb2, auth_service_pb2
from boxoffice.auth.v1.auth_event_service_pb2_grpc import AuthEventServiceStub
from boxoffice.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from boxoffice.stock.v1 import stock_change_service_pb2, stock_service_pb2
from boxoffice.stock.v1.stock_change_service_pb2_grpc import (
    add_StockChangeServiceServicer_to_server,
)
from boxoffice.stock.v1.stock_service_pb2_grpc import add_StockServiceServicer_to_server
from mesh.clock import Clock, system_clock
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites
from mesh.db.leadership import forever_alone
from mesh.db.outbox import OutboxReader
from mesh.rpc.client import open_channel
from mesh.rpc.jwks import RemoteJwks
from mesh.rpc.revocations import Revocations, from_auth
from mesh.rpc.server import Service, Servicer, run
from mesh.tasks import forever
from stock_svc import housekeeping, tables
from stock_svc.audit import Auditor
from stock_svc.servicers.stock import StockServicer
from stock_svc.servicers.stock_changes import StockChangeServicer
from stock_svc.settings import Settings


def main() -> None:
    run("stock_svc", Settings, open_service)


@asynccontextmanager
async def open_service(
    settings: Settings, *, clock: Clock = system_clock
) -> AsyncIterator[Service]:
    """Opens the resources of stock_svc for the duration of the block."""
    auth_channel = open_channel(
        settings,
        process="stock_svc",
        service="auth_svc",
        services=[
            auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
            auth_event_service_pb2.DESCRIPTOR.services_by_name["AuthEventService"],
        ],
    )
    async with auth_channel, Database.open(settings.database_url) as database:
        changes = OutboxReader(database, tables.outbox)
        writes = IdempotentWrites(database, tables.idempotency_records, clock)
        yield Service(
            servicers=[
                Servicer(
                    StockServicer(database, writes, clock),
                    add_StockServiceServicer_to_server,
                    stock_service_pb2.DESCRIPTOR.services_by_name["StockService"],
                ),
                Servicer(
                    StockChangeServicer(changes),
                    add_StockChangeServiceServicer_to_server,
                    stock_change_service_pb2.DESCRIPTOR.services_by_name["StockChangeService"],
                ),
            ],
            jwks=RemoteJwks(AuthServiceStub(auth_channel)),
            ping_database=database.ping,
            revocations=Revocations(from_auth(AuthEventServiceStub(auth_channel)), clock=clock),
            loops=[
                partial(
                    forever_alone,
                    database,
                    "stock sweeper",
                    partial(
                        housekeeping.sweep_turn,
                        database,
                        clock,
                        pause_seconds=settings.stock_sweep_seconds,
                    ),
                ),
                partial(forever, "outbox", changes.listen),
                partial(forever_alone, database, "stock audit", Auditor(database).turn),
                partial(
                    forever, "housekeeping", partial(housekeeping.deletion_turn, database, clock)
                ),
            ],
        )


if __name__ == "__main__":
    main()
