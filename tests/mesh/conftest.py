"""Fixtures: certificates for processes, a key for tokens, a database without tables."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.db.database import Database
from testing.databases import open_patiently
from testing.network import Network
from testing.tokens import TokenKey
from tests.conftest import Databases

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder: Path = tmp_path_factory.mktemp("network")
    return Network(folder)


@pytest.fixture(scope="session")
def key() -> TokenKey:
    return TokenKey.new()


@pytest.fixture
async def database(databases: Databases) -> AsyncIterator[Database]:
    """A new database without tables."""
    name = f"mesh_{next(_numbers)}"
    databases.run(f"CREATE DATABASE {name}")
    async with open_patiently(databases.url(name)) as database:
        yield database
    databases.run(f"DROP DATABASE {name} WITH (FORCE)")
