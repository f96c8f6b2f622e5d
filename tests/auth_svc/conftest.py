"""Accounts on a real database, with passwords hashed at the lowest cost."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from auth_svc.accounts import Accounts, SignedIn
from auth_svc.passwords import PasswordHasher
from auth_svc.tokens import SigningKey, load_or_create_key
from mesh.database import Database
from mesh.errors import DomainError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PEPPER = b"pepper of the tests, 32 bytes or more"
REFRESH_KEY = b"key of the refresh tokens in tests"
ADMIN_SECRET = "the-admin-secret-of-these-tests-0001"
GOOD_PASSWORD = "Mango-Tram-47"


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
async def database(
    open_database: Callable[[str], AbstractAsyncContextManager[Database]],
) -> AsyncIterator[Database]:
    async with open_database("auth_svc") as database:
        yield database


@pytest.fixture
def accounts(database: Database, hasher: PasswordHasher, key: SigningKey) -> Accounts:
    return some_accounts(database, hasher, key)


def some_accounts(
    database: Database,
    hasher: PasswordHasher,
    key: SigningKey,
    *,
    admin_secret: str | None = ADMIN_SECRET,
) -> Accounts:
    return Accounts(
        database=database,
        hasher=hasher,
        key=key,
        refresh_key=REFRESH_KEY,
        admin_secret=admin_secret,
        access_lifetime=timedelta(minutes=15),
        refresh_lifetime=timedelta(days=7),
    )


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
    """Everything in a table."""
    async with database.transaction() as connection:
        return list(await connection.execute(sa.select(table)))


async def signed_in(accounts: Accounts, *, now: datetime = NOW) -> SignedIn:
    """A new session of Mira, whose account is made when there is none."""
    with contextlib.suppress(DomainError):
        await accounts.register(**a_sign_up())
    return await accounts.login(email="mira@example.com", password=GOOD_PASSWORD, now=now)


async def refusal_of(attempt: Awaitable[object]) -> DomainError:
    """The error that an attempt must end with."""
    with pytest.raises(DomainError) as refused:
        await attempt
    return refused.value
