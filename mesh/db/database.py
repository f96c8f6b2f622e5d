"""PostgreSQL through SQLAlchemy Core: the pool, transactions and migrations.

One RPC is one transaction, opened at the edge with `Database.transaction()`. No
transaction stays open across a network call.
"""

import asyncio
import importlib
import re
import select
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import psycopg
import sqlalchemy as sa
from alembic import context as migration
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mesh.db import database_metrics
from mesh.db.notifier import Notifier

_POOL_SIZE = 12
# Below the deadlines of reads, so that a busy service says OVERLOADED before they end.
_POOL_TIMEOUT_SECONDS = 1.0
_POOL_RECYCLE_SECONDS = 1800
# Two processes that migrate one database at the same time wait for each other here.
_MIGRATION_LOCK = 0x626F786F  # "boxo"
# Everybody who needs a table waits behind a migration that waits for it: it gives up before
# they do (their roles' 500 ms) and tries again when they have been served.
_MIGRATION_LOCK_TIMEOUT = "200ms"
_MIGRATION_PAUSE_SECONDS = 0.5
_MIGRATION_SECONDS = 600.0

# What was cut off when a process ends gives its connections back in tasks of its own.
_RETURN_SECONDS = 2.0
_RETURN_PAUSE_SECONDS = 0.005

_CONNECT_ARGS: dict[str, Any] = {
    "connect_timeout": 3,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

_ON_COMMIT = "boxoffice_on_commit"
_NOTIFIER = "boxoffice_notifier"

NAMING = {
    "pk": "%(table_name)s_pkey",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "ck": "%(table_name)s_%(constraint_name)s_check",
    "fk": "%(table_name)s_%(column_0_name)s_fkey",
    "ix": "%(table_name)s_%(column_0_N_name)s_idx",
}
"""Constraint names as PostgreSQL gives them, so that migrations and tables.py agree."""


class Database:
    """A pool of connections. Open it inside the event loop, once per process."""

    def __init__(self, engine: AsyncEngine, notifier: Notifier, url: str) -> None:
        self._engine = engine
        self._notifier = notifier
        self._reading = engine.execution_options(isolation_level="AUTOCOMMIT")
        self.url = url

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, pool_size: int = _POOL_SIZE, pool_seconds: float = _POOL_TIMEOUT_SECONDS
    ) -> AsyncIterator["Database"]:
        """A call that gets no connection within `pool_seconds` fails: the service is busy."""
        engine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=pool_seconds,
            pool_recycle=_POOL_RECYCLE_SECONDS,
            pool_use_lifo=True,
            connect_args=_CONNECT_ARGS,
            # An error's text ends in a log, where no customer's data belongs.
            hide_parameters=True,
            # Else the rowcount of INSERT … ON CONFLICT is -1, and "was it new?" is always no.
            execution_options={"preserve_rowcount": True},
        )
        sa.event.listen(engine.sync_engine, "checkout", _refuse_closed)
        database_metrics.watch(engine)
        connect = partial(
            psycopg.AsyncConnection.connect, libpq_url(url), autocommit=True, **_CONNECT_ARGS
        )
        try:
            async with Notifier.open(connect) as notifier:
                yield cls(engine, notifier, url)
        finally:
            await _all_returned(engine)
            await engine.dispose()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading: each statement sees the moment at which it runs.

        Without BEGIN and COMMIT, which cost as much as a read.
        """
        asked = time.perf_counter()
        async with self._reading.connect() as connection:
            database_metrics.waited.observe(time.perf_counter() - asked)
            yield connection

    @asynccontextmanager
    async def single(self) -> AsyncIterator[AsyncConnection]:
        """A connection for one statement that writes, and commits by itself."""
        async with self.reading() as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits at the end of the block and rolls back on any error."""
        asked = time.perf_counter()
        async with self._engine.begin() as connection:
            database_metrics.waited.observe(time.perf_counter() - asked)
            committed: list[Callable[[], None]] = []
            info = connection.info
            info[_ON_COMMIT] = committed
            info[_NOTIFIER] = self._notifier
            try:
                yield connection
            finally:
                info.pop(_ON_COMMIT, None)
                info.pop(_NOTIFIER, None)
        for call in committed:
            call()

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """A read-only transaction whose statements all see the same moment."""
        async with self.transaction() as connection:
            await connection.execute(
                sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            )
            yield connection

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncConnection]:
        """A connection outside of any transaction, for session locks and LISTEN.

        It does not count against the pool: it is held for as long as the process runs.
        """
        engine = create_async_engine(
            self.url,
            poolclass=sa.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args=_CONNECT_ARGS,
        )
        try:
            async with engine.connect() as connection:
                yield connection
        finally:
            await engine.dispose()

    async def ping(self) -> None:
        """Raises when the database does not answer."""
        async with self.reading() as connection:
            await connection.execute(sa.text("SELECT 1"))


def on_commit(connection: AsyncConnection, call: Callable[[], None]) -> None:
    """Calls `call` once the transaction of `Database.transaction()` has committed.

    For counting what happened, never for an effect: a crash in between forgets it.
    """
    calls: list[Callable[[], None]] | None = connection.info.get(_ON_COMMIT)
    if calls is not None:
        calls.append(call)


def notify_on_commit(connection: AsyncConnection, channel: str) -> None:
    """Wakes who listens on a channel of PostgreSQL, once the transaction has committed.

    Once for all that commit in a short time. A hint, never an effect: as with `on_commit`.
    """
    notifier: Notifier | None = connection.info.get(_NOTIFIER)
    if notifier is not None:
        on_commit(connection, partial(notifier.notify, channel))


async def _all_returned(engine: AsyncEngine) -> None:
    """Waits a moment for connections on their way back: the engine closes only what it has."""
    pool: Any = engine.pool
    with suppress(TimeoutError):
        async with asyncio.timeout(_RETURN_SECONDS):
            while pool.checkedout():
                await asyncio.sleep(_RETURN_PAUSE_SECONDS)


def _refuse_closed(connection: Any, *_: object) -> None:
    """Replaces a pooled connection that the server has closed, without asking the server.

    An idle connection has nothing to say: a readable socket is its end. pool_pre_ping
    would cost a round trip each time, as much as a read.
    """
    socket = connection.driver_connection.pgconn.socket
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    if poll.poll(0):
        raise sa.exc.DisconnectionError


def migrate(service: str, url: str, revision: str = "head") -> None:
    """Brings the database of `service` to its newest schema, or up to a revision.

    Safe to run twice at once, and while the service runs: a step that does not get a table's lock at once is taken
    again later, for ten minutes. Each step commits, so that no lock outlives it.
    """
    config = alembic_config(service, url)
    deadline = time.monotonic() + _MIGRATION_SECONDS
    while True:
        try:
            alembic.command.upgrade(config, revision)
        except sa.exc.OperationalError as error:
            is_lock = isinstance(error.orig, (LockNotAvailable, DeadlockDetected))
            if not is_lock or time.monotonic() > deadline:
                raise
            time.sleep(_MIGRATION_PAUSE_SECONDS)
        else:
            return


def alembic_config(service: str, url: str) -> alembic.config.Config:
    """Alembic's configuration for a service, whose migrations/ folder says the rest."""
    package = importlib.import_module(service)
    config = alembic.config.Config()
    config.set_main_option(
        "script_location", str(Path(str(package.__file__)).parent / "migrations")
    )
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = url
    return config


def run_migrations(metadata: sa.MetaData) -> None:
    """What every service's migrations/env.py runs."""
    engine = sa.create_engine(migration.config.attributes["url"], poolclass=sa.NullPool)
    with engine.connect() as connection:
        # The service's role has short timeouts; a migration may take its time.
        connection.execute(sa.text("SET statement_timeout = 0"))
        connection.execute(sa.text("SET transaction_timeout = 0"))
        connection.execute(sa.text("SET lock_timeout = 0"))
        connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
        connection.execute(sa.text(f"SET lock_timeout = '{_MIGRATION_LOCK_TIMEOUT}'"))
        connection.commit()
        migration.configure(
            connection=connection, target_metadata=metadata, transaction_per_migration=True
        )
        with migration.begin_transaction():
            migration.run_migrations()
        connection.commit()
    engine.dispose()


def constraint_of(error: sa.exc.IntegrityError) -> str | None:
    """Name of the constraint that refused a statement, e.g. `users_email_key`."""
    diagnostics = getattr(error.orig, "diag", None)
    return getattr(diagnostics, "constraint_name", None)


def libpq_url(url: str) -> str:
    """SQLAlchemy's URL as psycopg itself takes it."""
    return re.sub(r"^postgresql\+\w+:", "postgresql:", url)
