"""Accounts on a real database, with passwords hashed at the lowest cost."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis.asyncio
import sqlalchemy as sa

from auth_svc import mail_requests
from auth_svc import password_reset as password_reset_module
from auth_svc.accounts import User, get_user
from auth_svc.current_password import CurrentPassword
from auth_svc.email_change import EmailChange
from auth_svc.mailing import Mailing
from auth_svc.password_change import PasswordChange
from auth_svc.password_reset import PasswordReset
from auth_svc.passwords import PasswordHasher
from auth_svc.sessions import REFRESHES_PER_MINUTE
from auth_svc.sign_in import SignedIn, SignIn
from auth_svc.sign_in_guard import SignInGuard
from auth_svc.sign_up import SignUp
from auth_svc.tables import password_reset_requests
from auth_svc.throttle import LoginThrottle
from auth_svc.tokens import SigningKey, load_or_create_key
from launcher import sockets
from launcher.redis_server import RedisServer
from launcher.supervisor import Process, Supervisor, wait_healthy
from mesh.db.database import Database
from mesh.errors import DomainError
from mesh.redis.link import RedisLink

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PEPPER = b"pepper of the tests, 32 bytes or more"
THROTTLE_KEY = b"key of the throttle in tests"
RESET_URL = "https://tickets.example/new-password"
CONFIRM_URL = "https://tickets.example/confirm-email"
REFRESH_KEY = b"key of the refresh tokens in tests"
ADMIN_SECRET = "the-admin-secret-of-these-tests-0001"
GOOD_PASSWORD = "Mango-Tram-47"
ACCESS_LIFETIME = timedelta(minutes=15)


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    folder: Path = tmp_path_factory.mktemp("keys")
    return load_or_create_key(folder)


@pytest.fixture
def hasher() -> Iterator[PasswordHasher]:
    hasher = PasswordHasher(cost=4, pepper=PEPPER)
    yield hasher
    hasher.close()


@pytest.fixture
async def redis_server(tmp_path: Path) -> AsyncIterator[Process]:
    """A Redis for one test."""
    supervisor = Supervisor(tmp_path)
    [process] = supervisor.start([RedisServer(tmp_path).program()])
    await wait_healthy([process], 60)
    yield process
    await supervisor.stop()
    sockets.folder(tmp_path).rmdir()


@pytest.fixture
async def cache(redis_server: Process, tmp_path: Path) -> AsyncIterator["redis.asyncio.Redis"]:
    async with redis.asyncio.from_url(RedisServer(tmp_path).url) as client:
        yield client


@pytest.fixture
async def link(redis_server: Process, tmp_path: Path) -> AsyncIterator[RedisLink]:
    # A long timeout: the test machine may be slow.
    async with RedisLink.open(RedisServer(tmp_path).url, call_seconds=10) as link:
        yield link


@pytest.fixture
async def database(
    open_database: Callable[[str], AbstractAsyncContextManager[Database]],
) -> AsyncIterator[Database]:
    async with open_database("auth_svc") as database:
        yield database


class Accounts:
    """Sign-up, sign-in and password changes on one database."""

    def __init__(
        self,
        database: Database,
        hasher: PasswordHasher,
        key: SigningKey,
        *,
        admin_secret: str | None = ADMIN_SECRET,
        verifies_email: bool = False,
        link: RedisLink | None = None,
    ) -> None:
        mailing = Mailing(reset_url=RESET_URL, confirm_url=CONFIRM_URL, wake=lambda: None)
        throttle = LoginThrottle(database=database, link=link, key=THROTTLE_KEY)
        guard = SignInGuard(throttle, key=THROTTLE_KEY)
        current_password = CurrentPassword(database=database, hasher=hasher, throttle=throttle)
        sign_up = SignUp(
            database=database,
            hasher=hasher,
            guard=guard,
            mailing=mailing,
            admin_secret=admin_secret,
            verifies_email=verifies_email,
        )
        sign_in = SignIn(
            database=database,
            hasher=hasher,
            guard=guard,
            signing_key=lambda: key,
            refresh_key=REFRESH_KEY,
            access_lifetime=ACCESS_LIFETIME,
            refresh_lifetime=timedelta(days=7),
            refreshes_per_minute=REFRESHES_PER_MINUTE,
        )
        password_change = PasswordChange(
            database=database,
            hasher=hasher,
            current_password=current_password,
            mailing=mailing,
            access_lifetime=ACCESS_LIFETIME,
        )
        password_reset = PasswordReset(
            database=database,
            hasher=hasher,
            mailing=mailing,
            throttle=throttle,
            guard=guard,
            access_lifetime=ACCESS_LIFETIME,
        )
        self.email_change = EmailChange(
            database=database,
            current_password=current_password,
            mailing=mailing,
            access_lifetime=ACCESS_LIFETIME,
            is_required=True,
        )
        self.mailing = mailing
        self.throttle = throttle
        self.guard = guard
        self.reset_password = password_reset.reset
        self.register = sign_up.register
        self.register_admin = sign_up.register_admin
        self.login = sign_in.login
        self.refresh = sign_in.refresh
        self.change_password = password_change.change
        self._database = database

    async def ask_for_reset(self, email: str, *, now: datetime) -> None:
        async with self._database.transaction() as connection:
            await password_reset_module.request(connection, email=email, now=now)

    async def answer_resets(self, *, now: datetime) -> int:
        """Answers the requests for password resets. Returns how many."""
        async with self._database.transaction() as connection:
            return await mail_requests.answer(
                connection,
                password_reset_requests,
                password_reset_module.issue_due,
                self.mailing,
                now=now,
            )

    async def get(self, user_id: UUID) -> User:
        async with self._database.transaction() as connection:
            return await get_user(connection, user_id=user_id)


@pytest.fixture
def accounts(database: Database, hasher: PasswordHasher, key: SigningKey) -> Accounts:
    return Accounts(database, hasher, key)


def a_sign_up(**changes: Any) -> dict[str, Any]:
    """The arguments of `Accounts.register`."""
    return {
        "email": "mira@example.com",
        "password": GOOD_PASSWORD,
        "full_name": "Mira Rao",
        "phone": "+919876543210",
        "now": NOW,
    } | changes


async def rows(database: Database, table: sa.Table) -> list[Any]:
    """All rows of a table."""
    async with database.transaction() as connection:
        return list(await connection.execute(sa.select(table)))


async def signed_in(accounts: Accounts, *, now: datetime = NOW) -> SignedIn:
    """A new session of Mira; creates her account if there is none."""
    with contextlib.suppress(DomainError):
        await accounts.register(**a_sign_up())
    return await accounts.login(email="mira@example.com", password=GOOD_PASSWORD, now=now)


async def refusal_of(attempt: Awaitable[object]) -> DomainError:
    """The DomainError that an attempt must raise."""
    with pytest.raises(DomainError) as refused:
        await attempt
    return refused.value
