"""Starts auth_svc: `python -m auth_svc`."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import sqlalchemy as sa

from auth_svc import (
    email_confirmation,
    housekeeping,
    mail_requests,
    password_reset,
    sessions,
    tables,
)
from auth_svc.current_password import CurrentPassword
from auth_svc.email_change import EmailChange
from auth_svc.idempotency import IdempotentCalls
from auth_svc.keys import KeyRing
from auth_svc.mail_requests import Issue
from auth_svc.mailing import Mailing
from auth_svc.password_change import PasswordChange
from auth_svc.password_reset import PasswordReset
from auth_svc.passwords import PasswordHasher
from auth_svc.servicers.accounts import AccountServicer
from auth_svc.servicers.api_keys import ApiKeyServicer
from auth_svc.servicers.auth import AuthServicer
from auth_svc.servicers.auth_events import AuthEventServicer
from auth_svc.servicers.authorization import ApiKeyExchange
from auth_svc.servicers.users import UserServicer
from auth_svc.settings import Settings
from auth_svc.sign_in import SignIn
from auth_svc.sign_in_guard import SignInGuard
from auth_svc.sign_up import SignUp
from auth_svc.throttle import LoginThrottle
from boxoffice.auth.v1 import (
    api_key_service_pb2,
    api_key_service_pb2_grpc,
    auth_event_service_pb2,
    auth_event_service_pb2_grpc,
    auth_service_pb2,
    auth_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from boxoffice.authorization.v1 import authorization_service_pb2, authorization_service_pb2_grpc
from mesh.clock import Clock, system_clock
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites
from mesh.db.jobs import Wakeup, run_forever
from mesh.db.leadership import forever_alone
from mesh.db.outbox import OutboxReader
from mesh.mail.sender import Sender
from mesh.redis.link import RedisLink
from mesh.rpc.revocations import Revocations
from mesh.rpc.server import Service, Servicer, run
from mesh.tasks import forever

# For requests that another replica recorded and did not answer.
_REQUEST_IDLE_SECONDS = 5.0


def main() -> None:
    run("auth_svc", Settings, open_service)


@asynccontextmanager
async def open_service(
    settings: Settings, *, clock: Clock = system_clock
) -> AsyncIterator[Service]:
    """auth_svc with its resources, for the duration of the block."""
    ring = KeyRing(
        settings.keys_folder,
        clock=clock,
        lead=timedelta(seconds=settings.key_publish_seconds),
        access_lifetime=settings.access_lifetime,
    )
    hasher = PasswordHasher(cost=settings.password_cost, pepper=settings.pepper)
    try:
        async with (
            Database.open(settings.database_url) as database,
            _open_link(settings) as link,
        ):
            yield _service(_Base(settings, clock, database, link, hasher, ring))
    finally:
        hasher.close()


@dataclass(frozen=True, slots=True)
class _Base:
    """Resources that the parts of the service share."""

    settings: Settings
    clock: Clock
    database: Database
    link: RedisLink | None
    hasher: PasswordHasher
    ring: KeyRing


def _service(base: _Base) -> Service:
    settings, clock, database = base.settings, base.clock, base.database
    sender = Sender.of(settings, database=database, table=tables.mails, clock=clock)
    throttle = LoginThrottle(database=database, link=base.link, key=settings.throttle_key)
    parts = _Parts(
        mailing=Mailing(
            reset_url=settings.password_reset_url,
            confirm_url=settings.email_confirmation_url,
            wake=sender.wake,
        ),
        throttle=throttle,
        guard=SignInGuard(throttle, key=settings.sign_in_key),
        current_password=CurrentPassword(database=database, hasher=base.hasher, throttle=throttle),
        idempotent=IdempotentCalls(
            IdempotentWrites(database, tables.idempotency_records, clock),
            secret=settings.idempotency_secret,
        ),
    )
    events = OutboxReader(database, tables.outbox)
    event_servicer = AuthEventServicer(events, clock, access_lifetime=settings.access_lifetime)
    return Service(
        servicers=[
            _auth(base, parts),
            _account(base, parts),
            _users(base, parts),
            *_api_keys(base),
            Servicer(
                event_servicer,
                auth_event_service_pb2_grpc.add_AuthEventServiceServicer_to_server,
                auth_event_service_pb2.DESCRIPTOR.services_by_name["AuthEventService"],
            ),
        ],
        jwks=base.ring.jwks,
        ping_database=database.ping,
        loops=_loops(base, parts, events, sender),
        revocations=Revocations(event_servicer.revocations, clock=clock),
    )


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the servicers share."""

    mailing: Mailing
    throttle: LoginThrottle
    guard: SignInGuard
    current_password: CurrentPassword
    idempotent: IdempotentCalls
    reset_requested: Wakeup = field(default_factory=Wakeup)
    verification_requested: Wakeup = field(default_factory=Wakeup)


def _auth(base: _Base, parts: _Parts) -> Servicer:
    settings, secret = base.settings, base.settings.admin_registration_secret
    is_required = settings.email_verification == "required"
    sign_up = SignUp(
        database=base.database,
        hasher=base.hasher,
        guard=parts.guard,
        mailing=parts.mailing,
        admin_secret=None if secret is None else secret.get_secret_value(),
        verifies_email=settings.email_verification != "off",
    )
    sign_in = SignIn(
        database=base.database,
        hasher=base.hasher,
        guard=parts.guard,
        signing_key=base.ring.signing,
        refresh_key=settings.refresh_key,
        access_lifetime=settings.access_lifetime,
        refresh_lifetime=timedelta(days=settings.refresh_token_ttl_days),
        refreshes_per_minute=max(
            round(sessions.REFRESHES_PER_MINUTE * settings.rate_limit_scale), 1
        ),
        requires_verified_email=is_required,
    )
    reset = PasswordReset(
        database=base.database,
        hasher=base.hasher,
        mailing=parts.mailing,
        throttle=parts.throttle,
        guard=parts.guard,
        access_lifetime=settings.access_lifetime,
    )
    email_change = EmailChange(
        database=base.database,
        current_password=parts.current_password,
        mailing=parts.mailing,
        access_lifetime=settings.access_lifetime,
        is_required=is_required,
    )
    servicer = AuthServicer(
        database=base.database,
        sign_up=sign_up,
        sign_in=sign_in,
        reset=reset,
        email_change=email_change,
        idempotent=parts.idempotent,
        reset_requested=parts.reset_requested.ring,
        verification_requested=parts.verification_requested.ring,
        published=base.ring.published,
        clock=base.clock,
        phone_region=settings.phone_region,
    )
    return Servicer(
        servicer,
        auth_service_pb2_grpc.add_AuthServiceServicer_to_server,
        auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
    )


def _account(base: _Base, parts: _Parts) -> Servicer:
    lifetime = base.settings.access_lifetime
    change = PasswordChange(
        database=base.database,
        hasher=base.hasher,
        current_password=parts.current_password,
        mailing=parts.mailing,
        access_lifetime=lifetime,
    )
    servicer = AccountServicer(
        password_change=change,
        idempotent=parts.idempotent,
        database=base.database,
        clock=base.clock,
        access_lifetime=lifetime,
        phone_region=base.settings.phone_region,
    )
    return Servicer(
        servicer,
        auth_service_pb2_grpc.add_AccountServiceServicer_to_server,
        auth_service_pb2.DESCRIPTOR.services_by_name["AccountService"],
    )


def _users(base: _Base, parts: _Parts) -> Servicer:
    servicer = UserServicer(
        idempotent=parts.idempotent,
        database=base.database,
        clock=base.clock,
        mailing=parts.mailing,
        unusable_hash=base.hasher.unusable_hash,
        access_lifetime=base.settings.access_lifetime,
    )
    return Servicer(
        servicer,
        user_service_pb2_grpc.add_UserServiceServicer_to_server,
        user_service_pb2.DESCRIPTOR.services_by_name["UserService"],
    )


def _api_keys(base: _Base) -> list[Servicer]:
    return [
        Servicer(
            ApiKeyServicer(database=base.database, clock=base.clock),
            api_key_service_pb2_grpc.add_ApiKeyServiceServicer_to_server,
            api_key_service_pb2.DESCRIPTOR.services_by_name["ApiKeyService"],
        ),
        Servicer(
            ApiKeyExchange(database=base.database, clock=base.clock, signing_key=base.ring.signing),
            authorization_service_pb2_grpc.add_AuthorizationServicer_to_server,
            authorization_service_pb2.DESCRIPTOR.services_by_name["Authorization"],
        ),
    ]


def _loops(
    base: _Base, parts: _Parts, events: OutboxReader, sender: Sender
) -> list[Callable[[], Awaitable[None]]]:
    sweep = partial(
        housekeeping.run_once,
        base.database,
        base.clock,
        access_lifetime=base.settings.access_lifetime,
    )
    return [
        partial(forever, "outbox", events.listen),
        _mails_on_request(
            base,
            parts,
            "password resets",
            tables.password_reset_requests,
            password_reset.issue_due,
            parts.reset_requested,
        ),
        _mails_on_request(
            base,
            parts,
            "e-mail verifications",
            tables.email_verification_requests,
            email_confirmation.verify_again,
            parts.verification_requested,
        ),
        partial(sender.run, "mails"),
        partial(forever, "keys", base.ring.run_once),
        partial(forever_alone, base.database, "housekeeping", sweep),
    ]


def _mails_on_request(
    base: _Base, parts: _Parts, name: str, table: sa.Table, issue: Issue, wake: Wakeup
) -> Callable[[], Awaitable[None]]:
    """The loop that answers the requests in a table."""
    turn = partial(mail_requests.answer_due, base.database, table, issue, parts.mailing, base.clock)
    return partial(run_forever, name, turn, wake=wake, idle_seconds=_REQUEST_IDLE_SECONDS)


@asynccontextmanager
async def _open_link(settings: Settings) -> AsyncIterator[RedisLink | None]:
    """Redis, which is optional: without it the database counts login attempts."""
    if settings.redis_url is None:
        yield None
        return
    async with RedisLink.open(settings.redis_url.get_secret_value()) as link:
        yield link


if __name__ == "__main__":
    main()
