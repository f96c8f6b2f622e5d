"""Starts booking_svc: `python -m booking_svc`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from google.protobuf.descriptor import ServiceDescriptor
from grpc import aio
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc import housekeeping
from booking_svc.bookings import (
    completion,
    event_cancellation,
    event_moves,
    expiry,
    payment_events,
    reconciliation,
    saga_steps,
)
from booking_svc.bookings.batch_writer import BatchWriter
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.reconciliation import oldest_due
from booking_svc.bookings.servicers.bookings import BookingServicer
from booking_svc.bookings.step_runner import Steps
from booking_svc.catalogue import event_status, orphaned_stock, proto, sold_out
from booking_svc.catalogue.availability import AvailabilityCache
from booking_svc.catalogue.availability_stream import AvailabilityStreams
from booking_svc.catalogue.event_cache import EventCache
from booking_svc.catalogue.event_cancellations import Progress
from booking_svc.catalogue.event_commands import EventCommands
from booking_svc.catalogue.personal import PersonalReads
from booking_svc.catalogue.seat_states import SeatOrders
from booking_svc.catalogue.servicers.events import EventServicer
from booking_svc.catalogue.servicers.favourites import FavouriteServicer
from booking_svc.catalogue.servicers.productions import ProductionServicer
from booking_svc.catalogue.servicers.search import SearchServicer
from booking_svc.catalogue.servicers.venues import VenueServicer
from booking_svc.clients.accounts import AccountEvents
from booking_svc.clients.captchas import SiteVerify
from booking_svc.clients.payments import PaymentClient, PaymentEvents
from booking_svc.clients.ports import (
    AccountChange,
    Deleted,
    Erased,
    InboundWebhook,
    PaymentEvent,
    StockChange,
)
from booking_svc.clients.stock import StockChanges, StockClient
from booking_svc.notifications import consumer
from booking_svc.notifications.tables import mails
from booking_svc.queueing import reports, retention, waiting_list, waiting_list_offers
from booking_svc.queueing.admission_loop import AdmissionLoop
from booking_svc.queueing.durations import Durations
from booking_svc.queueing.gate import Gate, Refusals
from booking_svc.queueing.queues import Queues
from booking_svc.queueing.servicers.on_sale_reports import OnSaleReportServicer
from booking_svc.queueing.servicers.queues import QueueServicer
from booking_svc.queueing.servicers.waiting_lists import WaitingListServicer
from booking_svc.queueing.steering import SalesMonitor
from booking_svc.queueing.tokens import Signer
from booking_svc.settings import Settings
from booking_svc.tables import event_cursors, idempotency_records, outbox
from booking_svc.webhooks import consumer as webhook_consumer
from booking_svc.webhooks.delivery_worker import DeliveryWorker
from booking_svc.webhooks.encryption import SecretBox
from booking_svc.webhooks.servicers.endpoints import WebhookEndpointServicer
from booking_svc.webhooks.url_policy import Rules
from boxoffice.auth.v1 import auth_event_service_pb2, auth_service_pb2, auth_service_pb2_grpc
from boxoffice.auth.v1.auth_event_service_pb2_grpc import AuthEventServiceStub
from boxoffice.bookings.v1 import booking_service_pb2, booking_service_pb2_grpc
from boxoffice.catalogue.v1 import (
    event_service_pb2,
    event_service_pb2_grpc,
    favourite_service_pb2,
    favourite_service_pb2_grpc,
    production_service_pb2,
    production_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
    venue_service_pb2,
    venue_service_pb2_grpc,
)
from boxoffice.payments.v1 import (
    payment_event_service_pb2,
    payment_event_service_pb2_grpc,
    payment_service_pb2,
    payment_service_pb2_grpc,
)
from boxoffice.queueing.v1 import (
    on_sale_report_service_pb2,
    on_sale_report_service_pb2_grpc,
    queue_service_pb2,
    queue_service_pb2_grpc,
    waiting_list_service_pb2,
    waiting_list_service_pb2_grpc,
)
from boxoffice.stock.v1 import (
    stock_change_service_pb2,
    stock_change_service_pb2_grpc,
    stock_service_pb2,
    stock_service_pb2_grpc,
)
from boxoffice.webhooks.v1 import (
    webhook_endpoint_service_pb2,
    webhook_endpoint_service_pb2_grpc,
)
from mesh import tasks
from mesh.clock import system_clock
from mesh.db import backlog
from mesh.db.backlog import OldestSince
from mesh.db.consumer import EventConsumer
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites
from mesh.db.jobs import Wakeup, run_forever
from mesh.db.leadership import forever_alone
from mesh.db.outbox import OutboxReader
from mesh.mail import queue
from mesh.mail.sender import Sender
from mesh.redis.cache import Cache
from mesh.redis.link import RedisLink
from mesh.redis.lock import Locks
from mesh.rpc.client import open_channel
from mesh.rpc.jwks import RemoteJwks
from mesh.rpc.revocations import Revocations, from_auth
from mesh.rpc.server import Service, Servicer, run
from mesh.settings import SERVICES

NAME = "booking_svc"

_CALLED: dict[str, Sequence[ServiceDescriptor]] = {
    "auth_svc": [
        auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
        auth_event_service_pb2.DESCRIPTOR.services_by_name["AuthEventService"],
    ],
    "stock_svc": [
        stock_service_pb2.DESCRIPTOR.services_by_name["StockService"],
        stock_change_service_pb2.DESCRIPTOR.services_by_name["StockChangeService"],
    ],
    "payment_svc": [
        payment_service_pb2.DESCRIPTOR.services_by_name["PaymentService"],
        payment_event_service_pb2.DESCRIPTOR.services_by_name["PaymentEventService"],
    ],
}


@dataclass(frozen=True, slots=True)
class _Common:
    """Resources that the parts of the service share."""

    settings: Settings
    database: Database
    writes: IdempotentWrites
    channels: Mapping[str, aio.Channel]
    stock: StockClient
    payments: PaymentClient
    outbox: OutboxReader
    link: RedisLink
    locks: Locks


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the service: its servicers and its background loops."""

    servicers: Sequence[Servicer] = ()
    loops: Sequence[Callable[[], Awaitable[None]]] = ()


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
        common = _Common(
            settings,
            database,
            IdempotentWrites(database, idempotency_records, system_clock),
            channels,
            StockClient(stock_service_pb2_grpc.StockServiceStub(channels["stock_svc"])),
            PaymentClient(payment_service_pb2_grpc.PaymentServiceStub(channels["payment_svc"])),
            OutboxReader(database, outbox),
            await stack.enter_async_context(RedisLink.open(settings.required("redis_url"))),
            await stack.enter_async_context(Locks.open(settings.required("redis_url"))),
        )
        monitor, refusals, durations = SalesMonitor(), Refusals(), Durations()
        gate = Gate(Signer(settings.queue_keys), monitor, refusals, durations)
        parts = (
            _catalogue(common),
            _bookings(common, gate),
            _waiting_lists(common),
            await _queueing(common, stack, gate, monitor, refusals, durations),
            _mails(common),
            await _webhooks(common, stack),
            _upkeep(common),
        )
        yield Service(
            servicers=[servicer for part in parts for servicer in part.servicers],
            jwks=RemoteJwks(auth_service_pb2_grpc.AuthServiceStub(channels["auth_svc"])),
            ping_database=database.ping,
            revocations=Revocations(from_auth(AuthEventServiceStub(channels["auth_svc"]))),
            loops=[loop for part in parts for loop in part.loops],
        )


def _catalogue(common: _Common) -> _Part:
    database, stock = common.database, common.stock
    changes = StockChanges(
        stock_change_service_pb2_grpc.StockChangeServiceStub(common.channels["stock_svc"])
    )
    cache = EventCache(database, Cache(common.link))
    personal_reads = PersonalReads(database, stock)
    availability = AvailabilityCache(stock=stock, read_event=cache.get)
    orders = SeatOrders(database)
    streams = AvailabilityStreams(
        availability=availability, orders=orders, encode=proto.availability_update
    )
    commands = EventCommands(
        database=database,
        writes=common.writes,
        stock=stock,
        payments=common.payments,
        clock=system_clock,
        on_change=availability.invalidate,
    )
    levels = EventConsumer(
        stream="stock_svc",
        database=database,
        cursors=event_cursors,
        clock=system_clock,
        open_stream=changes.open,
        apply=_apply_stock_changes,
    )
    return _Part(
        [
            Servicer(
                VenueServicer(database, common.writes, system_clock),
                venue_service_pb2_grpc.add_VenueServiceServicer_to_server,
                venue_service_pb2.DESCRIPTOR.services_by_name["VenueService"],
            ),
            Servicer(
                ProductionServicer(database, common.writes, personal_reads, system_clock),
                production_service_pb2_grpc.add_ProductionServiceServicer_to_server,
                production_service_pb2.DESCRIPTOR.services_by_name["ProductionService"],
            ),
            Servicer(
                FavouriteServicer(database, personal_reads, system_clock),
                favourite_service_pb2_grpc.add_FavouriteServiceServicer_to_server,
                favourite_service_pb2.DESCRIPTOR.services_by_name["FavouriteService"],
            ),
            Servicer(
                SearchServicer(database),
                search_service_pb2_grpc.add_SearchServiceServicer_to_server,
                search_service_pb2.DESCRIPTOR.services_by_name["SearchService"],
            ),
            Servicer(
                EventServicer(
                    database=database,
                    commands=commands,
                    availability=availability,
                    streams=streams,
                    orders=orders,
                    cache=cache,
                    personal_reads=personal_reads,
                    cancellation_progress=partial(_cancellation_progress, database),
                    clock=system_clock,
                ),
                event_service_pb2_grpc.add_EventServiceServicer_to_server,
                event_service_pb2.DESCRIPTOR.services_by_name["EventService"],
            ),
        ],
        [
            _forever("event status", partial(event_status.run_once, database, system_clock)),
            _forever("availability", partial(availability.follow, changes.open_now)),
            streams.run,
            _forever("stock levels", levels.run),
            partial(
                run_forever,
                "unwanted stock",
                lambda: orphaned_stock.remove_due(database, stock, now=system_clock()),
                idle_seconds=orphaned_stock.IDLE_SECONDS,
            ),
        ],
    )


def _bookings(common: _Common, gate: Gate) -> _Part:
    settings, database = common.settings, common.database
    channel = common.channels["payment_svc"]
    steps_enqueued = Wakeup()
    deps = Dependencies(
        database=database,
        writes=common.writes,
        stock=common.stock,
        payments=common.payments,
        clock=system_clock,
        hold_ttl=timedelta(seconds=settings.hold_ttl_seconds),
        payment_window=timedelta(seconds=settings.payment_window_seconds),
        on_steps_enqueued=steps_enqueued.ring,
        batch_writer=BatchWriter(database, system_clock),
        is_http_allowed=settings.is_development,
        default_provider=settings.default_provider,
        admissions=gate,
    )
    payment_consumer = EventConsumer(
        stream="payment_svc",
        database=database,
        cursors=event_cursors,
        clock=system_clock,
        open_stream=PaymentEvents(
            payment_event_service_pb2_grpc.PaymentEventServiceStub(channel)
        ).open,
        apply=_apply_payment_stream,
        after_commit=deps.on_steps_enqueued,
    )
    return _Part(
        [
            Servicer(
                BookingServicer(deps),
                booking_service_pb2_grpc.add_BookingServiceServicer_to_server,
                booking_service_pb2.DESCRIPTOR.services_by_name["BookingService"],
            )
        ],
        [
            Steps(deps, steps_enqueued).run,
            _forever("payment events", payment_consumer.run),
            _alone(database, "sweeper", expiry.run_once, deps.on_steps_enqueued),
            _alone(database, "completion", completion.run_once),
            partial(
                forever_alone, database, "reconciliation", partial(reconciliation.run_once, deps)
            ),
            _forever("event moves", partial(event_moves.run_once, database, system_clock)),
            _forever(
                "event cancellations",
                partial(
                    event_cancellation.run_once, database, system_clock, deps.on_steps_enqueued
                ),
            ),
        ],
    )


def _waiting_lists(common: _Common) -> _Part:
    settings = common.settings
    lists_due = Wakeup()
    deps = waiting_list.Dependencies(
        database=common.database,
        stock=common.stock,
        clock=system_clock,
        terms=waiting_list.Terms(
            offer_ttl=timedelta(seconds=settings.waiting_list_offer_seconds),
            gather=timedelta(seconds=settings.waiting_list_gather_seconds),
            hold_ttl=timedelta(seconds=settings.hold_ttl_seconds),
            claim_url=settings.waiting_list_claim_url,
        ),
        on_due=lists_due.ring,
    )
    return _Part(
        [
            Servicer(
                WaitingListServicer(deps),
                waiting_list_service_pb2_grpc.add_WaitingListServiceServicer_to_server,
                waiting_list_service_pb2.DESCRIPTOR.services_by_name["WaitingListService"],
            )
        ],
        [
            partial(
                run_forever,
                "waiting lists",
                lambda: waiting_list_offers.run_due(deps),
                idle_seconds=waiting_list_offers.IDLE_SECONDS,
                wake=lists_due,
            )
        ],
    )


async def _apply_stock_changes(
    connection: AsyncConnection, changes: Sequence[StockChange], now: datetime
) -> None:
    """Levels and waiting lists in the transaction of the stream's cursor."""
    await sold_out.apply(connection, changes, now)
    await waiting_list.apply_stock_changes(connection, changes, now)


async def apply_accounts(
    connection: AsyncConnection, changes: Sequence[AccountChange], now: datetime
) -> None:
    """Addresses, waiting lists and rooms in the transaction of the stream's cursor."""
    await consumer.apply_accounts(connection, changes, now)
    for change in changes:
        if isinstance(change, Erased | Deleted):
            await waiting_list.erase(connection, user_id=change.user_id, now=now)
        if isinstance(change, Erased):
            await retention.erase(connection, user_id=change.user_id)


async def _apply_payment_stream(
    connection: AsyncConnection, events: Sequence[PaymentEvent | InboundWebhook], now: datetime
) -> None:
    """Both kinds in the transaction of the stream's cursor."""
    inbound = [event for event in events if isinstance(event, InboundWebhook)]
    of_payments = [event for event in events if not isinstance(event, InboundWebhook)]
    await payment_events.apply_all(connection, of_payments, now)
    await webhook_consumer.apply_inbound(connection, inbound, now)


async def _queueing(
    common: _Common,
    stack: AsyncExitStack,
    gate: Gate,
    monitor: SalesMonitor,
    refusals: Refusals,
    durations: Durations,
) -> _Part:
    settings, database = common.settings, common.database
    captchas = None
    if settings.captcha_verify_url is not None and settings.captcha_secret is not None:
        captchas = await stack.enter_async_context(
            SiteVerify.open(
                url=settings.captcha_verify_url, secret=settings.captcha_secret.get_secret_value()
            )
        )
    queues = Queues(
        database,
        system_clock,
        keys=settings.queue_keys,
        refusals=refusals,
        durations=durations,
        captchas=captchas,
    )
    admissions = AdmissionLoop(database, system_clock, keys=settings.queue_keys)
    return _Part(
        [
            Servicer(
                QueueServicer(queues, system_clock),
                queue_service_pb2_grpc.add_QueueServiceServicer_to_server,
                queue_service_pb2.DESCRIPTOR.services_by_name["QueueService"],
            ),
            Servicer(
                OnSaleReportServicer(database, system_clock),
                on_sale_report_service_pb2_grpc.add_OnSaleReportServiceServicer_to_server,
                on_sale_report_service_pb2.DESCRIPTOR.services_by_name["OnSaleReportService"],
            ),
        ],
        [
            queues.run,
            partial(forever_alone, database, "admissions", admissions.run_once),
            _forever(
                "queue reports",
                partial(
                    reports.run_once, database, system_clock, gate, refusals, durations, monitor
                ),
            ),
        ],
    )


def _mails(common: _Common) -> _Part:
    database = common.database
    sender = Sender.of(common.settings, database=database, table=mails, clock=system_clock)
    accounts = AccountEvents(AuthEventServiceStub(common.channels["auth_svc"]))
    bookings = consumer.booking_consumer(
        database, common.outbox, system_clock, on_queued=sender.wake
    )
    addresses = consumer.account_consumer(
        database, accounts.open, system_clock, on_queued=sender.wake, apply=apply_accounts
    )
    return _Part(
        loops=[
            _forever("booking mails", bookings.run),
            _forever("accounts", addresses.run),
            partial(sender.run, "mail sender"),
            _forever(
                "mails without address",
                partial(consumer.delete_expired, database, system_clock, common.locks),
            ),
        ]
    )


async def _webhooks(common: _Common, stack: AsyncExitStack) -> _Part:
    settings, database = common.settings, common.database
    rules = Rules(
        is_http_allowed=settings.is_development,
        is_loopback_allowed=settings.webhook_allow_loopback,
    )
    secret_box = SecretBox(settings.webhook_keys)
    delivery_worker = await stack.enter_async_context(
        DeliveryWorker.open(database, system_clock, rules=rules, seal=secret_box)
    )
    events = webhook_consumer.consumer(
        database, common.outbox, system_clock, on_queued=delivery_worker.wake
    )
    return _Part(
        [
            Servicer(
                WebhookEndpointServicer(
                    database=database,
                    writes=common.writes,
                    delivery_worker=delivery_worker,
                    rules=rules,
                    secret_box=secret_box,
                    clock=system_clock,
                ),
                webhook_endpoint_service_pb2_grpc.add_WebhookEndpointServiceServicer_to_server,
                webhook_endpoint_service_pb2.DESCRIPTOR.services_by_name["WebhookEndpointService"],
            )
        ],
        [
            _forever("webhooks", events.run),
            delivery_worker.run,
            _forever(
                "webhook log",
                partial(
                    webhook_consumer.clean_up,
                    database,
                    system_clock,
                    secret_box,
                    common.locks,
                ),
            ),
        ],
    )


def _upkeep(common: _Common) -> _Part:
    queues: dict[str, OldestSince] = {
        "booking steps": saga_steps.oldest_due,
        "booking mails": queue.jobs(mails).oldest_due,
        "reconciliation": oldest_due,
        "waiting lists": waiting_list_offers.oldest_due,
    }
    return _Part(
        loops=[
            _forever("outbox", common.outbox.listen),
            _alone(common.database, "housekeeping", housekeeping.run_once),
            partial(backlog.watch, common.database, system_clock, queues),
        ]
    )


def _forever(name: str, turn: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    return partial(tasks.forever, name, turn)


def _alone(
    database: Database, name: str, run_once: Callable[..., Awaitable[None]], *more: object
) -> Callable[[], Awaitable[None]]:
    """A loop that runs in one process at a time."""
    return partial(forever_alone, database, name, partial(run_once, database, system_clock, *more))


async def _cancellation_progress(database: Database, event_id: UUID) -> Progress:
    async with database.reading() as connection:
        return await event_cancellation.progress(connection, event_id=event_id)


def main() -> None:
    run(NAME, Settings, open_service)


if __name__ == "__main__":
    main()
