"""PostgreSQL through SQLAlchemy Core: the pool and transactions.

No transaction stays open across a network call.
"""

import asyncio
import re
import select
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mesh.db import database_metrics
from mesh.db.notifier import Notifier

_POOL_SIZE = 12
# Shorter than the deadlines of reads, so that they fail with OVERLOADED, not DEADLINE_EXCEEDED.
_POOL_TIMEOUT_SECONDS = 1.0
_POOL_RECYCLE_SECONDS = 1800
# Tasks that were cancelled at shutdown return their connections a moment later.
RETURN_SECONDS = 2.0
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
        self._reading = engine.execution_options()
        sa.event.listen(self._reading.sync_engine, "engine_connect", _set_autocommit)
        self._users = 0
        self._is_closed = False
        self.url = url

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, pool_size: int = _POOL_SIZE, pool_seconds: float = _POOL_TIMEOUT_SECONDS
    ) -> AsyncIterator["Database"]:
        """A call that gets no connection within `pool_seconds` fails with OVERLOADED.

        At the end of the block, waits up to 2 s for the callers that hold a connection or wait
        for one. Later callers get a ClosedError: nothing would close their connection.
        """
        engine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=pool_seconds,
            pool_recycle=_POOL_RECYCLE_SECONDS,
            pool_use_lifo=True,
            connect_args=_CONNECT_ARGS,
            # Error texts are logged and must not contain personal data.
            hide_parameters=True,
            # Otherwise the rowcount of INSERT … ON CONFLICT is -1.
            execution_options={"preserve_rowcount": True},
        )
        sa.event.listen(engine.sync_engine, "checkout", _refuse_closed)
        database_metrics.watch(engine)
        connect = partial(
            psycopg.AsyncConnection.connect, libpq_url(url), autocommit=True, **_CONNECT_ARGS
        )
        try:
            async with Notifier.open(connect) as notifier:
                database = cls(engine, notifier, url)
                try:
                    yield database
                finally:
                    await database._close()
        finally:
            await engine.dispose()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reads in autocommit mode: each statement has its own snapshot.

        Saves BEGIN and COMMIT, which cost as much as a read.
        """
        began = time.perf_counter()
        with self._use():
            async with self._reading.connect() as connection:
                database_metrics.pool_wait.observe(time.perf_counter() - began)
                yield connection

    @asynccontextmanager
    async def single(self) -> AsyncIterator[AsyncConnection]:
        """A connection for one writing statement, in autocommit mode."""
        async with self.reading() as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits at the end of the block and rolls back on any error."""
        began = time.perf_counter()
        with self._use():
            async with self._engine.begin() as connection:
                database_metrics.pool_wait.observe(time.perf_counter() - began)
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
        """A read-only transaction whose statements all see one snapshot."""
        async with self.transaction() as connection:
            await connection.execute(
                sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            )
            yield connection

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncConnection]:
        """A connection outside the pool and outside transactions, for session locks.

        Not from the pool, because its holder keeps it as long as the process runs.
        """
        engine = create_async_engine(
            self.url,
            poolclass=sa.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args=_CONNECT_ARGS,
        )
        try:
            with self._use():
                async with engine.connect() as connection:
                    yield connection
        finally:
            await engine.dispose()

    async def ping(self) -> None:
        """Runs SELECT 1. Raises when the database does not answer."""
        async with self.reading() as connection:
            await connection.execute(sa.text("SELECT 1"))

    @contextmanager
    def _use(self) -> Iterator[None]:
        """Counts a caller from before it waits for a connection until it has returned it."""
        if self._is_closed:
            raise ClosedError
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    async def _close(self) -> None:
        """Refuses new callers and waits for the others: dispose() closes only what is in the pool."""
        self._is_closed = True
        pool: Any = self._engine.pool
        with suppress(TimeoutError):
            async with asyncio.timeout(RETURN_SECONDS):
                # A cancelled caller returns its connection a moment later, in a task of its own.
                while self._users or pool.checkedout():
                    await asyncio.sleep(_RETURN_PAUSE_SECONDS)


class ClosedError(Exception):
    """A call came after the process had closed its database."""


def on_commit(connection: AsyncConnection, call: Callable[[], None]) -> None:
    """Calls `call` when the transaction of `Database.transaction()` has committed.

    For metrics and hints only: a crash between commit and call loses it.
    """
    calls: list[Callable[[], None]] | None = connection.info.get(_ON_COMMIT)
    if calls is not None:
        calls.append(call)


def notify_on_commit(connection: AsyncConnection, channel: str) -> None:
    """Sends a NOTIFY on a channel when the transaction has committed.

    Transactions that commit within 20 ms share one NOTIFY. A crash loses it, as with `on_commit`.
    """
    notifier: Notifier | None = connection.info.get(_NOTIFIER)
    if notifier is not None:
        on_commit(connection, partial(notifier.notify, channel))


def _set_autocommit(connection: sa.Connection) -> None:
    """Of an engine's every connection, until it returns to the pool.

    psycopg yields to the loop here if that has been busy for long. A call that is cancelled at this
    moment closes its connection: otherwise nothing would, or it would stay in autocommit mode.
    """
    with ExitStack() as cancelled:
        cancelled.callback(connection.close)
        cancelled.callback(connection.invalidate)
        connection.execution_options(isolation_level="AUTOCOMMIT")
        cancelled.pop_all()


def _refuse_closed(connection: Any, *_: object) -> None:
    """Makes the pool replace a connection that the server has closed, without a round trip.

    The server sends nothing on an idle connection, so a readable socket means that it was
    closed. pool_pre_ping would cost a round trip for each checkout.
    """
    socket = connection.driver_connection.pgconn.socket
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    if poll.poll(0):
        raise sa.exc.DisconnectionError


def constraint_of(error: sa.exc.IntegrityError) -> str | None:
    """Name of the violated constraint, e.g. `users_email_key`."""
    diagnostics = getattr(error.orig, "diag", None)
    return getattr(diagnostics, "constraint_name", None)


def libpq_url(url: str) -> str:
    """Converts SQLAlchemy's URL (`postgresql+psycopg:`) to libpq's (`postgresql:`)."""
    return re.sub(r"^postgresql\+\w+:", "postgresql:", url)
