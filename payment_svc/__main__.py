"""Starts payment_svc."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx

from boxoffice.auth.v1 import auth_service_pb2
from boxoffice.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from boxoffice.payments.v1 import (
    payment_event_service_pb2,
    payment_event_service_pb2_grpc,
    payment_service_pb2,
    payment_service_pb2_grpc,
    sandbox_service_pb2,
    sandbox_service_pb2_grpc,
    webhook_service_pb2,
    webhook_service_pb2_grpc,
)
from mesh.client import open_channel
from mesh.clock import Clock, system_clock
from mesh.database import Database
from mesh.jwks import RemoteJwks
from mesh.outbox import OutboxReader
from mesh.server import Service, Servicer, run
from mesh.tasks import forever
from payment_svc import housekeeping, sandbox, tables
from payment_svc.cashier import Cashier
from payment_svc.pacing import Wakeup
from payment_svc.providers import Provider
from payment_svc.sandbox.delivery import Delivery
from payment_svc.sandbox.provider import SandboxProvider
from payment_svc.sandbox.servicer import SandboxServicer
from payment_svc.servicer import PaymentEventServicer, PaymentServicer, WebhookServicer
from payment_svc.settings import Settings

NAME = "payment_svc"


def main() -> None:
    run(NAME, Settings, open_service)


@asynccontextmanager
async def open_service(
    settings: Settings, *, clock: Clock = system_clock
) -> AsyncIterator[Service]:
    """payment_svc with its resources, as long as the block lasts."""
    sandbox_secret = settings.sandbox_secret
    auth_service = auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"]
    async with (
        Database.open(settings.database_url) as database,
        open_channel(
            settings, process=NAME, service="auth_svc", services=[auth_service]
        ) as channel,
        # No proxy from the environment: the gateway is next door.
        httpx.AsyncClient(trust_env=False) as client,
    ):
        refund_requested, webhook_queued = Wakeup(), Wakeup()
        events = OutboxReader(database, tables.outbox)
        providers: dict[str, Provider] = {}
        loops = [
            partial(forever, "outbox", events.listen),
            partial(forever, "housekeeping", partial(housekeeping.turn, database, clock)),
        ]
        if sandbox_secret is not None:
            providers[sandbox.NAME] = SandboxProvider(
                database,
                clock,
                gateway_url=settings.gateway_url,
                secrets=[sandbox_secret],
                webhook_queued=webhook_queued,
            )
            delivery = Delivery(
                database,
                client,
                clock,
                url=f"{settings.gateway_url}/webhooks/{sandbox.NAME}",
                secret=sandbox_secret,
                queued=webhook_queued,
            )
            loops.append(partial(forever, "webhook delivery", delivery.turn))
        cashier = Cashier(database, providers, clock, refund_requested)
        loops.append(partial(forever, "refunds", cashier.carry_out_refunds))
        yield Service(
            servicers=[
                Servicer(
                    PaymentServicer(database, cashier, clock, refund_requested),
                    payment_service_pb2_grpc.add_PaymentServiceServicer_to_server,
                    payment_service_pb2.DESCRIPTOR.services_by_name["PaymentService"],
                ),
                Servicer(
                    WebhookServicer(database, cashier, clock, refund_requested),
                    webhook_service_pb2_grpc.add_WebhookServiceServicer_to_server,
                    webhook_service_pb2.DESCRIPTOR.services_by_name["WebhookService"],
                ),
                Servicer(
                    PaymentEventServicer(events),
                    payment_event_service_pb2_grpc.add_PaymentEventServiceServicer_to_server,
                    payment_event_service_pb2.DESCRIPTOR.services_by_name["PaymentEventService"],
                ),
                Servicer(
                    SandboxServicer(database, clock, webhook_queued),
                    sandbox_service_pb2_grpc.add_SandboxServiceServicer_to_server,
                    sandbox_service_pb2.DESCRIPTOR.services_by_name["SandboxService"],
                    development_only=True,
                ),
            ],
            jwks=RemoteJwks(AuthServiceStub(channel)),
            ping_database=database.ping,
            loops=loops,
        )


if __name__ == "__main__":
    main()
