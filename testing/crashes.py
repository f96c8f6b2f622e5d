"""A process that dies at its n-th await, as by kill -9: nothing of it continues or cleans up.

Its coroutine and tasks are abandoned where they wait. The server terminates its connections and
rolls back what was not committed; what it had sent before may still take effect.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from mesh.db.database import Database, libpq_url
from mesh.db.notifier import Connection, Notifier
from mesh.errors import DomainError

APPLICATION_NAME = "dying"

# Keeps abandoned coroutines from being collected, which would run their `finally` blocks.
_ABANDONED: list[object] = []


class DiedError(BaseException):
    """The process died here."""


class _Process:
    """Counts the awaits of all its tasks, and dies at the n-th."""

    def __init__(self, at: int | None) -> None:
        self._at = at
        self.awaits = 0
        self.died = asyncio.get_running_loop().create_future()

    def count_await(self) -> None:
        self.awaits += 1
        if self.awaits == self._at:
            self.died.set_result(None)
            raise DiedError

    def begin(self, work: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        """A task of this process, as are the tasks that it creates."""

        async def body() -> Any:
            return await _Mortal(work, self)

        task = asyncio.Task(body(), **options)
        _ABANDONED.append(task)
        return task


class _Mortal:
    """Awaits a coroutine until its process dies."""

    def __init__(self, work: Coroutine[Any, Any, Any], process: _Process) -> None:
        self._work = work
        self._process = process

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._work.__await__()
        _ABANDONED.append(steps)
        loop = asyncio.get_running_loop()
        sent = None
        while not self._process.died.done():
            # The loop must not know its async generators: at its end it would close them.
            hooks = sys.get_asyncgen_hooks()
            sys.set_asyncgen_hooks(firstiter=_ABANDONED.append, finalizer=None)
            loop.set_task_factory(lambda _, work, **options: self._process.begin(work, **options))
            try:
                future = steps.send(sent)
            except StopIteration as end:
                return end.value
            finally:
                loop.set_task_factory(None)
                sys.set_asyncgen_hooks(*hooks)
            self._process.count_await()
            sent = yield future
        raise DiedError


async def run(work: Coroutine[Any, Any, Any], *, at: int | None) -> tuple[bool, int]:
    """Runs `work` until it dies at its `at`-th await, or to its end, which may be a DomainError.

    Returns whether it died, and the number of its awaits.
    """
    process = _Process(at)
    task = process.begin(work)
    await asyncio.wait({task, process.died}, return_when=asyncio.FIRST_COMPLETED)
    if not process.died.done():
        # Raises any other error.
        with suppress(DomainError):
            task.result()
    return process.died.done(), process.awaits


@asynccontextmanager
async def database(url: str) -> AsyncIterator[Database]:
    """The database of a process that may die: its pool is never closed."""

    async def connect() -> Connection:
        connection = await psycopg.AsyncConnection.connect(
            libpq_url(url), application_name=APPLICATION_NAME
        )
        # From its first moment: the process may die while SQLAlchemy sets the connection up. An
        # open connection that the garbage collector finds would fail another test.
        _ABANDONED.append(connection)
        return connection

    engine = create_async_engine(
        url,
        pool_size=4,
        max_overflow=0,
        async_creator=connect,
        execution_options={"preserve_rowcount": True},
    )
    _ABANDONED.append(engine)
    # SQLAlchemy's part of a connection, which would be collected by itself.
    sa.event.listen(engine.sync_engine, "checkout", lambda *held: _ABANDONED.append(held))
    yield Database(engine, Notifier(_no_connection), url)


async def _no_connection() -> Connection:
    raise psycopg.OperationalError


async def terminate_connections(url: str) -> None:
    """Terminates the connections of the dead process in the server."""
    async with await psycopg.AsyncConnection.connect(libpq_url(url), autocommit=True) as admin:
        await admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = %s AND datname = current_database()",
            [APPLICATION_NAME],
        )
