"""payment_svc on a real database: its parts with a clock to set, and whole processes."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from mesh.db.database import Database
from payment_svc.settings import Settings
from testing.payment_harness import SECRET, SandboxHarness
from testing.payment_server import INBOUND_SECRET, PaymentServer, serving


@pytest.fixture
async def database(
    open_database: Callable[[str], AbstractAsyncContextManager[Database]],
) -> AsyncIterator[Database]:
    async with open_database("payment_svc") as database:
        yield database


@pytest.fixture
def harness(database: Database) -> SandboxHarness:
    return SandboxHarness(database)


@pytest.fixture
def server_settings(tmp_path: Path, new_database: Callable[[str], str]) -> Settings:
    return Settings(
        home=tmp_path,
        payment_database_url=new_database("payment_svc"),
        sandbox_webhook_secret=SECRET,
        inbound_webhook_secrets=f"ringcentral={INBOUND_SECRET},crm=another",
    )


@pytest.fixture
async def server(server_settings: Settings) -> AsyncIterator[PaymentServer]:
    async with serving(server_settings) as server:
        yield server


@pytest.fixture
async def other_server(server_settings: Settings) -> AsyncIterator[PaymentServer]:
    """Another process over the same database."""
    async with serving(server_settings) as server:
        yield server
