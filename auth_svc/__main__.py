"""Starts auth_svc."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

import redis.asyncio

from auth_svc import housekeeping, tables
from auth_svc.event_servicer import AuthEventServicer
from auth_svc.keys import KeyRing
from auth_svc.mailing import Mailing
from auth_svc.password_change import PasswordChange
from auth_svc.password_reset import PasswordReset
from auth_svc.passwords import PasswordHasher
from auth_svc.repeats import Repeats
from auth_svc.reset_mailer import ResetMailer
from auth_svc.servicer import AccountServicer, AuthServicer
from auth_svc.settings import Settings
from auth_svc.sign_in import SignIn
from auth_svc.sign_up import SignUp
from auth_svc.throttle import LoginThrottle
from auth_svc.user_servicer import UserServicer
from boxoffice.auth.v1 import (
    auth_event_service_pb2,
    auth_event_service_pb2_grpc,
    auth_service_pb2,
    auth_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from mesh.clock import Clock, system_clock
from mesh.database import Database
from mesh.leadership import forever_alone
from mesh.mail.sender import Sender
from mesh.outbox import OutboxReader
from mesh.revocations import Revocations
from mesh.server import Service, Servicer, run
from mesh.tasks import forever

# A sign-in waits so long for a Redis that hangs, before the database counts instead.
_CACHE_TIMEOUT_SECONDS = 0.25


def main() -> None:
    run("auth_svc", Settings, open_service)


@asynccontextmanager
async def open_service(
    settings: Settings, *, clock: Clock = system_clock
) -> AsyncIterator[Service]:
    """auth_svc with its resources, as long as the block lasts."""
    secret = settings.admin_registration_secret
    access_lifetime = timedelta(seconds=settings.access_token_ttl_seconds)
    ring = KeyRing(
        settings.keys_folder,
        clock=clock,
        lead=timedelta(seconds=settings.key_publish_seconds),
        access_lifetime=access_lifetime,
    )
    hasher = PasswordHasher(cost=settings.password_cost, pepper=settings.pepper)
    try:
        async with (
            Database.open(settings.database_url) as database,
            _open_cache(settings) as cache,
        ):
            sender = Sender.of(settings, database=database, table=tables.mails, clock=clock)
            mailing = Mailing(reset_url=settings.password_reset_url, wake=sender.wake)
            mailer = ResetMailer(database=database, mailing=mailing, clock=clock)
            throttle = LoginThrottle(database=database, cache=cache, key=settings.throttle_key)
            sign_up = SignUp(
                database=database,
                hasher=hasher,
                admin_secret=None if secret is None else secret.get_secret_value(),
            )
            sign_in = SignIn(
                database=database,
                hasher=hasher,
                throttle=throttle,
                signing_key=ring.signing,
                refresh_key=settings.refresh_key,
                access_lifetime=access_lifetime,
                refresh_lifetime=timedelta(days=settings.refresh_token_ttl_days),
            )
            password_change = PasswordChange(
                database=database,
                hasher=hasher,
                mailing=mailing,
                throttle=throttle,
                access_lifetime=access_lifetime,
            )
            reset = PasswordReset(
                database=database,
                hasher=hasher,
                mailing=mailing,
                throttle=throttle,
                access_lifetime=access_lifetime,
            )
            repeats = Repeats(database=database, clock=clock, secret=settings.idempotency_secret)
            events = OutboxReader(database, tables.outbox)
            event_servicer = AuthEventServicer(events, clock, access_lifetime=access_lifetime)
            yield Service(
                servicers=[
                    Servicer(
                        AuthServicer(
                            database,
                            sign_up,
                            sign_in,
                            reset,
                            repeats,
                            reset_requested=mailer.wake,
                            published=ring.published,
                            clock=clock,
                        ),
                        auth_service_pb2_grpc.add_AuthServiceServicer_to_server,
                        auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
                    ),
                    Servicer(
                        AccountServicer(
                            password_change,
                            repeats,
                            database,
                            clock,
                            access_lifetime=access_lifetime,
                        ),
                        auth_service_pb2_grpc.add_AccountServiceServicer_to_server,
                        auth_service_pb2.DESCRIPTOR.services_by_name["AccountService"],
                    ),
                    Servicer(
                        UserServicer(
                            repeats,
                            database,
                            clock,
                            unusable_hash=hasher.unusable_hash,
                            access_lifetime=access_lifetime,
                        ),
                        user_service_pb2_grpc.add_UserServiceServicer_to_server,
                        user_service_pb2.DESCRIPTOR.services_by_name["UserService"],
                    ),
                    Servicer(
                        event_servicer,
                        auth_event_service_pb2_grpc.add_AuthEventServiceServicer_to_server,
                        auth_event_service_pb2.DESCRIPTOR.services_by_name["AuthEventService"],
                    ),
                ],
                jwks=ring.jwks,
                ping_database=database.ping,
                loops=[
                    partial(forever, "outbox", events.listen),
                    partial(forever, "password resets", mailer.turn),
                    partial(forever, "mails", sender.turn),
                    partial(forever, "keys", ring.turn),
                    partial(
                        forever_alone,
                        database,
                        "housekeeping",
                        partial(
                            housekeeping.turn, database, clock, access_lifetime=access_lifetime
                        ),
                    ),
                ],
                revocations=Revocations(event_servicer.revocations, clock=clock),
            )
    finally:
        hasher.close()


@asynccontextmanager
async def _open_cache(settings: Settings) -> AsyncIterator["redis.asyncio.Redis | None"]:
    """Redis, which nothing here needs: without it the database counts."""
    if settings.redis_url is None:
        yield None
        return
    client = redis.asyncio.from_url(
        settings.redis_url.get_secret_value(),
        socket_timeout=_CACHE_TIMEOUT_SECONDS,
        socket_connect_timeout=_CACHE_TIMEOUT_SECONDS,
    )
    try:
        yield client
    finally:
        await client.aclose()


if __name__ == "__main__":
    main()
