from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from mesh.db.database import Database
from testing.booking_harness import BookingHarness


@pytest.fixture
async def harness(
    open_database: Callable[[str], AbstractAsyncContextManager[Database]],
) -> AsyncIterator[BookingHarness]:
    async with open_database("booking_svc") as database, open_database("stock_svc") as ledger:
        yield BookingHarness(database, ledger)
