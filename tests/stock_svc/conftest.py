from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest
import pytest_asyncio

from mesh.db.database import Database
from testing.databases import open_patiently
from tests.conftest import Databases


@pytest.fixture(scope="session")
def shared_url(databases: Databases) -> str:
    return databases.url(databases.create("stock_svc"))


@pytest_asyncio.fixture
async def database(shared_url: str) -> AsyncIterator[Database]:
    """A database that other tests use too: a test uses its own events only."""
    async with open_patiently(shared_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def own_database(
    open_database: Callable[[str], AbstractAsyncContextManager[Database]],
) -> AsyncIterator[Database]:
    """An empty database, for tests that sweep or change the schema."""
    async with open_database("stock_svc") as opened:
        yield opened
