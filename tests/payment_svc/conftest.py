"""payment_svc on a real database, with the sandbox as its provider and a clock to move."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from mesh.db.database import Database
from payment_svc.__main__ import open_service
from payment_svc.settings import Settings
from testing.network import Network
from testing.payment_harness import Desk
from testing.payment_server import SECRET, Running


@pytest.fixture
async def database(
    open_database: Callable[[str], AbstractAsyncContextManager[Database]],
) -> AsyncIterator[Database]:
    async with open_database("payment_svc") as database:
        yield database


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


@pytest.fixture
async def running(tmp_path: Path, new_database: Callable[[str], str]) -> AsyncIterator[Running]:
    settings = Settings(
        home=tmp_path,
        payment_database_url=new_database("payment_svc"),
        sandbox_webhook_secret=SECRET,
    )
    network = Network(tmp_path)
    async with (
        open_service(settings) as service,
        network.serve("payment_svc", service) as port,
        network.plain_channel("gateway", "payment_svc", port) as gateway,
        network.plain_channel("booking_svc", "payment_svc", port) as booking,
    ):
        yield Running(gateway, booking, settings.database_url)
