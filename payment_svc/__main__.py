"""Starts payment_svc."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import httpx

from boxoffice.auth.v1 import auth_event_service_pb2, auth_service_pb2
from boxoffice.auth.v1.auth_event_service_pb2_grpc import AuthEventServiceStub
from boxoffice.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from boxoffice.payments.v1 import (
    book_service_pb2,
    book_service_pb2_grpc,
    inbound_webhook_service_pb2,
    inbound_webhook_service_pb2_grpc,
    payment_event_service_pb2,
    payment_event_service_pb2_grpc,
    payment_service_pb2,
    payment_service_pb2_grpc,
    reconciliation_service_pb2,
    reconciliation_service_pb2_grpc,
    sandbox_service_pb2,
    sandbox_service_pb2_grpc,
    webhook_service_pb2,
    webhook_service_pb2_grpc,
)
from mesh.clock import Clock, system_clock
from mesh.db import backlog
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites
from mesh.db.jobs import Wakeup
from mesh.db.leadership import forever_alone
from mesh.db.outbox import OutboxReader
from mesh.rpc.client import open_channel
from mesh.rpc.jwks import RemoteJwks
from mesh.rpc.revocations import Revocations, from_auth
from mesh.rpc.server import Service, Servicer, run
from mesh.tasks import forever
from payment_svc import housekeeping, refunds, tables
from payment_svc.provider_calls import ProviderCalls
from payment_svc.providers import sandbox
from payment_svc.providers.base import Provider
from payment_svc.providers.razorpay.provider import NAME as RAZORPAY
from payment_svc.providers.razorpay.provider import RazorpayProvider
from payment_svc.providers.sandbox.delivery import Delivery
from payment_svc.providers.sandbox.faults import Lab, parse
from payment_svc.providers.sandbox.provider import SandboxProvider
from payment_svc.providers.stripe.provider import NAME as STRIPE
from payment_svc.providers.stripe.provider import StripeProvider
from payment_svc.reconciler import Reconciler
from payment_svc.servicers.inbound_webhooks import InboundWebhookServicer
from payment_svc.servicers.ledger import BookServicer
from payment_svc.servicers.payment_events import PaymentEventServicer
from payment_svc.servicers.payments import PaymentServicer
from payment_svc.servicers.reconciliation import ReconciliationServicer
from payment_svc.servicers.sandbox import SandboxServicer
from payment_svc.servicers.webhooks import WebhookServicer
from payment_svc.settings import Settings

NAME = "payment_svc"


def main() -> None:
    run(NAME, Settings, open_service)


@dataclass(frozen=True, slots=True)
class _Wakeups:
    """Wake the loop of a queue before its next poll."""

    refund_requested: Wakeup = field(default_factory=Wakeup)
    webhook_queued: Wakeup = field(default_factory=Wakeup)
    check_wanted: Wakeup = field(default_factory=Wakeup)


@asynccontextmanager
async def open_service(
    settings: Settings, *, clock: Clock = system_clock
) -> AsyncIterator[Service]:
    """payment_svc with its resources, until the block ends."""
    auth_services = [
        auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
        auth_event_service_pb2.DESCRIPTOR.services_by_name["AuthEventService"],
    ]
    async with (
        Database.open(settings.database_url) as database,
        open_channel(settings, process=NAME, service="auth_svc", services=auth_services) as channel,
        # The gateway is in the same network: no proxy from the environment.
        httpx.AsyncClient(trust_env=False, verify=settings.gateway_trust) as client,
        _real_providers(settings, clock) as providers,
    ):
        wakeups, lab = _Wakeups(), Lab(parse(settings.sandbox_faults))
        events = OutboxReader(database, tables.outbox)
        loops: list[Callable[[], Awaitable[None]]] = [
            partial(
                backlog.watch,
                database,
                clock,
                {"refunds": refunds.oldest_due, "failed refunds": refunds.oldest_failed},
            ),
            partial(forever, "outbox", events.listen),
            partial(
                forever_alone,
                database,
                "housekeeping",
                partial(housekeeping.turn, database, clock),
            ),
        ]
        if settings.sandbox_secret is not None:
            provider, delivery = _sandbox(
                settings, settings.sandbox_secret, database, client, clock, wakeups, lab
            )
            providers[sandbox.NAME] = provider
            loops.append(delivery.run)
        calls = ProviderCalls(database, providers, clock, wakeups.refund_requested)
        reconciler = Reconciler(database, calls, providers, clock, wakeups.check_wanted)
        loops += [
            calls.run_refunds,
            reconciler.run_checks,
            partial(forever, "movements", reconciler.compare_turn),
        ]
        yield Service(
            servicers=_servicers(settings, database, calls, events, clock, wakeups, lab),
            jwks=RemoteJwks(AuthServiceStub(channel)),
            ping_database=database.ping,
            revocations=Revocations(from_auth(AuthEventServiceStub(channel))),
            loops=loops,
        )


@asynccontextmanager
async def _real_providers(settings: Settings, clock: Clock) -> AsyncIterator[dict[str, Provider]]:
    """The providers whose keys the settings have, by name."""
    providers: dict[str, Provider] = {}
    async with AsyncExitStack() as closing:
        if settings.has_stripe:
            stripe = StripeProvider(
                secret_key=settings.required("stripe_secret_key"),
                webhook_secrets=settings.secrets("stripe_webhook_secrets"),
                api_base=settings.stripe_api_base,
                return_url=settings.gateway_url,
                clock=clock,
            )
            closing.push_async_callback(stripe.close)
            providers[STRIPE] = stripe
        if settings.has_razorpay:
            razorpay = RazorpayProvider(
                key_id=settings.required("razorpay_key_id"),
                key_secret=settings.required("razorpay_key_secret"),
                webhook_secrets=settings.secrets("razorpay_webhook_secrets"),
                api_base=settings.razorpay_api_base,
                clock=clock,
            )
            closing.push_async_callback(razorpay.close)
            providers[RAZORPAY] = razorpay
        yield providers


def _sandbox(
    settings: Settings,
    secret: str,
    database: Database,
    client: httpx.AsyncClient,
    clock: Clock,
    wakeups: _Wakeups,
    lab: Lab,
) -> tuple[SandboxProvider, Delivery]:
    """The sandbox provider, and the delivery of its webhooks to the gateway."""
    provider = SandboxProvider(
        database,
        clock,
        gateway_url=settings.gateway_url,
        secrets=[secret],
        webhook_queued=wakeups.webhook_queued,
        lab=lab,
    )
    delivery = Delivery(
        database,
        client,
        clock,
        url=f"{settings.gateway_url}/webhooks/{sandbox.NAME}",
        secret=secret,
        queued=wakeups.webhook_queued,
        lab=lab,
    )
    return provider, delivery


def _servicers(
    settings: Settings,
    database: Database,
    calls: ProviderCalls,
    events: OutboxReader,
    clock: Clock,
    wakeups: _Wakeups,
    lab: Lab,
) -> list[Servicer]:
    writes = IdempotentWrites(database, tables.idempotency_records, clock)
    return [
        Servicer(
            PaymentServicer(database, writes, calls, clock, wakeups.refund_requested),
            payment_service_pb2_grpc.add_PaymentServiceServicer_to_server,
            payment_service_pb2.DESCRIPTOR.services_by_name["PaymentService"],
        ),
        Servicer(
            WebhookServicer(
                database,
                calls,
                clock,
                wakeups.refund_requested,
                wakeups.check_wanted,
                settings.inbound_secrets,
            ),
            webhook_service_pb2_grpc.add_WebhookServiceServicer_to_server,
            webhook_service_pb2.DESCRIPTOR.services_by_name["WebhookService"],
        ),
        Servicer(
            BookServicer(database),
            book_service_pb2_grpc.add_BookServiceServicer_to_server,
            book_service_pb2.DESCRIPTOR.services_by_name["BookService"],
        ),
        Servicer(
            ReconciliationServicer(database, clock),
            reconciliation_service_pb2_grpc.add_ReconciliationServiceServicer_to_server,
            reconciliation_service_pb2.DESCRIPTOR.services_by_name["ReconciliationService"],
        ),
        Servicer(
            PaymentEventServicer(events),
            payment_event_service_pb2_grpc.add_PaymentEventServiceServicer_to_server,
            payment_event_service_pb2.DESCRIPTOR.services_by_name["PaymentEventService"],
        ),
        Servicer(
            InboundWebhookServicer(database),
            inbound_webhook_service_pb2_grpc.add_InboundWebhookServiceServicer_to_server,
            inbound_webhook_service_pb2.DESCRIPTOR.services_by_name["InboundWebhookService"],
        ),
        Servicer(
            SandboxServicer(database, clock, wakeups.webhook_queued, lab),
            sandbox_service_pb2_grpc.add_SandboxServiceServicer_to_server,
            sandbox_service_pb2.DESCRIPTOR.services_by_name["SandboxService"],
            development_only=True,
        ),
    ]


if __name__ == "__main__":
    main()
