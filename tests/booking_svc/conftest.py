from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from mesh.database import Database
from tests.booking_svc.world import World


@pytest.fixture
async def world(
    open_database: Callable[[str], AbstractAsyncContextManager[Database]],
) -> AsyncIterator[World]:
    async with open_database("booking_svc") as database, open_database("stock_svc") as ledger:
        yield World(database, ledger)
