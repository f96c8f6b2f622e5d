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
    """A database that other tests use too: keep to events of your own."""
    async with open_patiently(shared_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def own_database(
    open_database: Callable[[str], AbstractAsyncContextManager[Database]],
) -> AsyncIterator[Database]:
    """An empty database, to sweep or to break."""
    async with open_database("stock_svc") as opened:
        yield opened
