"""payment_svc on a real database, with the sandbox as its provider and a clock to move."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from mesh.database import Database
from tests.payment_svc.desk import Desk


@pytest.fixture
async def database(
    open_database: Callable[[str], AbstractAsyncContextManager[Database]],
) -> AsyncIterator[Database]:
    async with open_database("payment_svc") as database:
        yield database


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)
