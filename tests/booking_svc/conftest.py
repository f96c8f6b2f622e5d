from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from mesh.db.database import Database
from testing.booking_harness import World


@pytest.fixture
async def world(
    open_database: Callable[[str], AbstractAsyncContextManager[Database]],
) -> AsyncIterator[World]:
    async with open_database("booking_svc") as database, open_database("stock_svc") as ledger:
        yield World(database, ledger)
