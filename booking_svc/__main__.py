"""Starts booking_svc: `python -m booking_svc`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from functools import partial

import redis.asyncio
from google.protobuf.descriptor import ServiceDescriptor
from grpc import aio
from grpc_health.v1 import health_pb2_grpc
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc import payment_events, sweeper, tables
from booking_svc.booking_servicer import BookingServicer
from booking_svc.catalogue_servicer import EventServicer, VenueServicer
from booking_svc.health_servicer import HealthServicer
from booking_svc.payment_client import PaymentClient, PaymentEvents
from booking_svc.payment_events import PaymentEvent
from booking_svc.saga import Saga
from booking_svc.settings import Settings
from booking_svc.steps import Steps
from booking_svc.stock_client import StockClient
from boxoffice.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from boxoffice.bookings.v1 import booking_service_pb2, booking_service_pb2_grpc
from boxoffice.catalogue.v1 import (
    event_service_pb2,
    event_service_pb2_grpc,
    venue_service_pb2,
    venue_service_pb2_grpc,
)
from boxoffice.health.v1 import health_service_pb2, health_service_pb2_grpc
from boxoffice.payments.v1 import (
    payment_event_service_pb2,
    payment_event_service_pb2_grpc,
    payment_service_pb2,
    payment_service_pb2_grpc,
)
from boxoffice.stock.v1 import stock_service_pb2, stock_service_pb2_grpc
from mesh import tasks
from mesh.client import open_channel
from mesh.clock import system_clock
from mesh.consumer import EventConsumer
from mesh.database import Database
from mesh.jwks import RemoteJwks
from mesh.server import Service, Servicer, run
from mesh.settings import SERVICES

NAME = "booking_svc"

_CALLED: dict[str, Sequence[ServiceDescriptor]] = {
    "auth_svc": [auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"]],
    "stock_svc": [stock_service_pb2.DESCRIPTOR.services_by_name["StockService"]],
    "payment_svc": [
        payment_service_pb2.DESCRIPTOR.services_by_name["PaymentService"],
        payment_event_service_pb2.DESCRIPTOR.services_by_name["PaymentEventService"],
    ],
}


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncIterator[Service]:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database.open(settings.database_url))
        channels: dict[str, aio.Channel] = {
            service: await stack.enter_async_context(
                open_channel(
                    settings, process=NAME, service=service, services=_CALLED.get(service, ())
                )
            )
            for service in SERVICES
        }
        stock = StockClient(stock_service_pb2_grpc.StockServiceStub(channels["stock_svc"]))
        payments = PaymentClient(
            payment_service_pb2_grpc.PaymentServiceStub(channels["payment_svc"])
        )
        steps = Steps(database=database, stock=stock, payments=payments, clock=system_clock)
        saga = Saga(
            database=database,
            stock=stock,
            payments=payments,
            clock=system_clock,
            hold_ttl=timedelta(seconds=settings.hold_ttl_seconds),
            payment_window=timedelta(seconds=settings.payment_window_seconds),
            on_owed=steps.wake,
        )
        health = HealthServicer(
            {name: health_pb2_grpc.HealthStub(channel) for name, channel in channels.items()},
            await _ping_cache(settings, stack),
        )
        yield Service(
            servicers=[
                Servicer(
                    VenueServicer(database, system_clock),
                    venue_service_pb2_grpc.add_VenueServiceServicer_to_server,
                    venue_service_pb2.DESCRIPTOR.services_by_name["VenueService"],
                ),
                Servicer(
                    EventServicer(database, stock, system_clock),
                    event_service_pb2_grpc.add_EventServiceServicer_to_server,
                    event_service_pb2.DESCRIPTOR.services_by_name["EventService"],
                ),
                Servicer(
                    BookingServicer(database, saga),
                    booking_service_pb2_grpc.add_BookingServiceServicer_to_server,
                    booking_service_pb2.DESCRIPTOR.services_by_name["BookingService"],
                ),
                Servicer(
                    health,
                    health_service_pb2_grpc.add_HealthServiceServicer_to_server,
                    health_service_pb2.DESCRIPTOR.services_by_name["HealthService"],
                ),
            ],
            jwks=RemoteJwks(auth_service_pb2_grpc.AuthServiceStub(channels["auth_svc"])),
            ping_database=database.ping,
            loops=[
                partial(tasks.forever, "steps", steps.run),
                partial(
                    tasks.forever,
                    "sweeper",
                    partial(sweeper.run_once, database, system_clock, steps.wake),
                ),
                partial(
                    tasks.forever,
                    "payment events",
                    _consumer(database, channels["payment_svc"], steps).run,
                ),
            ],
        )


async def _ping_cache(settings: Settings, stack: AsyncExitStack) -> Callable[[], Awaitable[None]]:
    """Tells whether Redis answers; nothing that sells depends on it."""
    client = redis.asyncio.from_url(
        settings.required("redis_url"), socket_timeout=0.5, socket_connect_timeout=0.5
    )
    stack.push_async_callback(client.aclose)

    async def ping() -> None:
        await client.ping()

    return ping


def _consumer(
    database: Database, channel: aio.Channel, steps: Steps
) -> EventConsumer[PaymentEvent]:
    async def apply(
        connection: AsyncConnection, events: Sequence[PaymentEvent], now: datetime
    ) -> None:
        for event in events:
            await payment_events.apply(connection, event=event, now=now)

    stub = payment_event_service_pb2_grpc.PaymentEventServiceStub(channel)
    return EventConsumer(
        stream="payment_svc",
        database=database,
        cursors=tables.event_cursors,
        clock=system_clock,
        open_stream=PaymentEvents(stub).open,
        apply=apply,
        after_commit=steps.wake,
    )


def main() -> None:
    run(NAME, Settings, open_service)


if __name__ == "__main__":
    main()
