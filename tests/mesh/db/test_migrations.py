"""Migrations from each revision of every service: with rows in all tables, while the previous
version works on them, and without blocking other statements."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from mesh.db.database import libpq_url
from mesh.db.migrations import alembic_config, migrate
from mesh.settings import SERVICES
from tests.mesh.db.rows import Row, generated, key, reflected

# Migrations that break the previous version, with the reason why they may. All others only add.
# New ones are listed here and in the CHANGELOG, one release after the code stopped using what they
# remove.
CONTRACTING = {
    ("booking_svc", "0003"): "before the first release: events without the key that lists sort by",
    ("booking_svc", "0005"): "before the first release: refunds in a separate table",
    ("stock_svc", "0003"): "before the first release: seats without `blocked`",
}
_SECONDS = 60
_numbers = itertools.count(1)


def revisions(service: str) -> list[str]:
    script = ScriptDirectory.from_config(alembic_config(service, ""))
    return [step.revision for step in reversed(list(script.walk_revisions()))]


@pytest.fixture
def empty(postgres_url: Callable[[str], str]) -> Iterator[str]:
    """The URL of a new database, which is dropped after the test."""
    name = f"migrating_{next(_numbers)}"
    with psycopg.connect(libpq_url(postgres_url("postgres")), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        yield postgres_url(name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def engine_of(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        yield engine
    finally:
        engine.dispose()


def fill(engine: sa.Engine, metadata: sa.MetaData) -> list[tuple[sa.Table, Row]]:
    """Inserts new rows into all tables in one transaction."""
    with engine.begin() as connection:
        rows = generated(metadata)
        for table, row in rows:
            connection.execute(table.insert().values(row))
    assert {table.name for table, _ in rows} == metadata.tables.keys()
    return rows


def stored(connection: sa.Connection, table: sa.Table, row: Row, names: set[str]) -> Row:
    """The current values of a row's columns. Fails unless the row exists exactly once."""
    columns = [table.c[name] for name in sorted(names)]
    rows = connection.execute(sa.select(*columns).where(key(table, row))).mappings().all()
    assert len(rows) == 1, (table.name, row)
    return dict(rows[0])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("service", SERVICES)
def test_rows_of_every_revision_survive_later_migrations(service: str, empty: str) -> None:
    kept: list[tuple[sa.Table, Row, Row]] = []
    with engine_of(empty) as engine:
        for revision in revisions(service):
            migrate(service, empty, revision)
            metadata = reflected(engine)
            # In addition to the old rows, with all constraints and triggers.
            rows = fill(engine, metadata)
            with engine.connect() as connection:
                for table, row, before in kept:
                    # NULLs may be filled in; nothing else may change.
                    expected = {
                        name: before[name] for name in before if name in _names(metadata, table)
                    }
                    assert stored(connection, table, row, set(expected)) == expected, revision
                for table, row in rows:
                    values = stored(connection, table, row, set(table.c.keys()))
                    known = {name: value for name, value in values.items() if value is not None}
                    kept.append((table, row, known))
                invalid = "SELECT conname FROM pg_constraint WHERE NOT convalidated"
                assert connection.execute(sa.text(invalid)).all() == [], revision


def _names(metadata: sa.MetaData, table: sa.Table) -> set[str]:
    return set(metadata.tables[table.name].c.keys())


@pytest.mark.parametrize("service", SERVICES)
def test_no_trigger_notifies(service: str, empty: str) -> None:
    """PostgreSQL serialises commits with a NOTIFY; see mesh/db/notifier.py."""
    migrate(service, empty)
    with engine_of(empty) as engine, engine.connect() as connection:
        functions = "SELECT proname FROM pg_proc WHERE prosrc ~* 'notify' AND pronamespace = 'public'::regnamespace"
        assert connection.execute(sa.text(functions)).all() == []


def test_refunds_are_migrated_to_the_table_of_refunds(empty: str) -> None:
    migrate("booking_svc", empty, "0004")
    with engine_of(empty) as engine:
        rows = {table.name: row for table, row in fill(engine, reflected(engine))}
        migrate("booking_svc", empty)
        with engine.connect() as connection:
            refunds = connection.execute(
                sa.text("SELECT booking_id, refund_id, amount_minor, status FROM booking_refunds")
            ).all()
    booking = rows["bookings"]
    names = ("booking_id", "refund_id", "refund_minor", "refund_status")
    assert refunds == [tuple(booking[name] for name in names)]


def test_captures_are_migrated_to_the_payment_ledger(empty: str) -> None:
    migrate("payment_svc", empty, "0003")
    with engine_of(empty) as engine:
        rows = {table.name: row for table, row in fill(engine, reflected(engine))}
        migrate("payment_svc", empty)
        with engine.connect() as connection:
            lines = connection.execute(
                sa.text("SELECT entry_id, account, amount_minor FROM book_lines ORDER BY account")
            ).all()
    capture = rows["captures"]
    amount = capture["amount_minor"]
    assert lines == [
        (capture["capture_id"], "EVENT", -amount),
        (capture["capture_id"], "PROVIDER", amount),
    ]


class PreviousVersion:
    """A running process of the previous version: it writes and reads all tables of the schema that
    it knows, repeatedly, on connections opened before the migration."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url, pool_size=1, max_overflow=0)
        self._metadata = reflected(self._engine)
        self._stopping = threading.Event()
        self._turned = threading.Condition()
        self._turns = 0
        self._thread = threading.Thread(target=self._run)
        self.failures: list[str] = []

    def __enter__(self) -> "PreviousVersion":
        self._thread.start()
        # After so many executions psycopg has prepared the statements, as in a running service.
        self.wait_turns(6)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._engine.dispose()

    def wait_turns(self, count: int) -> None:
        """Waits for `count` more turns, successful or not."""
        with self._turned:
            last = self._turns + count
            assert self._turned.wait_for(lambda: self._turns >= last, _SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except sa.exc.DBAPIError as error:
                self.failures.append(str(error.orig))
            finally:
                with self._turned:
                    self._turns += 1
                    self._turned.notify_all()

    def _turn(self) -> None:
        rows = fill(self._engine, self._metadata)
        with self._engine.begin() as connection:
            for table, row in rows:
                stored(connection, table, row, set(table.c.keys()))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("service", SERVICES)
def test_the_previous_version_works_while_a_migration_runs(service: str, empty: str) -> None:
    first, *others = revisions(service)
    migrate(service, empty, first)
    for after in others:
        with PreviousVersion(empty) as running:
            assert running.failures == []
            migrate(service, empty, after)
            running.wait_turns(2)
        # Both ways: a migration that only adds must not be listed in CONTRACTING.
        is_contracting = (service, after) in CONTRACTING
        assert bool(running.failures) is is_contracting, (after, running.failures[:3])


def test_statements_do_not_wait_behind_a_waiting_migration(empty: str) -> None:
    """A long transaction, e.g. a backup, blocks a migration. Statements of the service would queue
    behind the migration's lock request."""
    migrate("auth_svc", empty, "0001")
    failed: list[Exception] = []

    def upgrade() -> None:
        try:
            migrate("auth_svc", empty)
        except Exception as error:  # noqa: BLE001 - the test asserts it
            failed.append(error)

    migrating = threading.Thread(target=upgrade)
    with psycopg.connect(libpq_url(empty)) as backup:
        backup.execute("SELECT FROM users LIMIT 1")
        migrating.start()
        with psycopg.connect(libpq_url(empty), autocommit=True) as service:
            _wait_for_a_waiting_lock(service)
            service.execute(f"SET statement_timeout = '{_SECONDS}s'")
            service.execute("SELECT FROM users LIMIT 1")
        assert migrating.is_alive()
    migrating.join(_SECONDS)
    assert failed == []
    assert revision_of(empty) == revisions("auth_svc")[-1]


def _wait_for_a_waiting_lock(connection: "psycopg.Connection[Any]") -> None:
    waiting = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'users'::regclass"
    connection.execute(f"SET statement_timeout = '{_SECONDS}s'")
    connection.execute(
        f"DO $$ BEGIN WHILE NOT EXISTS ({waiting}) LOOP PERFORM pg_sleep(0.01); END LOOP; END $$".encode()
    )


def revision_of(url: str) -> str:
    with engine_of(url) as engine, engine.connect() as connection:
        return str(connection.execute(sa.text("SELECT * FROM alembic_version")).scalar_one())
