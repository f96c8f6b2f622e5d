"""A network of processes, a key that signs tokens, and a database without tables."""

import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psycopg
import pytest

from mesh.database import Database
from tests.mesh.network import Network
from tests.mesh.tokens import TokenKey

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder: Path = tmp_path_factory.mktemp("network")
    return Network(folder)


@pytest.fixture(scope="session")
def key() -> TokenKey:
    return TokenKey.new()


@pytest.fixture
async def database(postgres_url: Callable[[str], str]) -> AsyncIterator[Database]:
    """A database of its own, without tables."""
    name = f"mesh_{next(_numbers)}"
    admin_url = postgres_url("postgres").replace("+psycopg", "")
    async with await psycopg.AsyncConnection.connect(admin_url, autocommit=True) as admin:
        await admin.execute(f"CREATE DATABASE {name}".encode())
    async with Database.open(postgres_url(name)) as database:
        yield database
