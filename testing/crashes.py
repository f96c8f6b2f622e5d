"""A process that dies at its n-th await, as by kill -9: nothing of it runs on, nothing cleans up.

Its coroutine and the tasks that it has begun are abandoned where they wait; its connections
are cut by the server, which undoes what was not committed. What it had sent to the server
before may still take effect.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
from sqlalchemy.ext.asyncio import create_async_engine

from mesh.db.database import Database, libpq_url
from mesh.db.notifier import Connection, Notifier
from mesh.errors import DomainError

NAME = "doomed"

# Never collected: collecting one would run its `finally` blocks, which a dead process does not.
_GRAVEYARD: list[object] = []


class DiedError(BaseException):
    """The process died here."""


class _Process:
    """Counts the awaits of all its tasks, and dies at the n-th."""

    def __init__(self, at: int | None) -> None:
        self._at = at
        self.awaits = 0
        self.died = asyncio.get_running_loop().create_future()

    def passes(self) -> None:
        self.awaits += 1
        if self.awaits == self._at:
            self.died.set_result(None)
            raise DiedError

    def begin(self, work: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        """A task of this process. What it begins in turn is of this process, too."""

        async def body() -> Any:
            return await _Mortal(work, self)

        task = asyncio.Task(body(), **options)
        _GRAVEYARD.append(task)
        return task


class _Mortal:
    """Awaits a coroutine for as long as its process lives."""

    def __init__(self, work: Coroutine[Any, Any, Any], process: _Process) -> None:
        self._work = work
        self._process = process

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._work.__await__()
        _GRAVEYARD.append(steps)
        loop = asyncio.get_running_loop()
        sent = None
        while not self._process.died.done():
            # The loop must not know of its generators: at its end it would run them to theirs.
            hooks = sys.get_asyncgen_hooks()
            sys.set_asyncgen_hooks(firstiter=_GRAVEYARD.append, finalizer=None)
            loop.set_task_factory(lambda _, work, **options: self._process.begin(work, **options))
            try:
                waits_for = steps.send(sent)
            except StopIteration as end:
                return end.value
            finally:
                loop.set_task_factory(None)
                sys.set_asyncgen_hooks(*hooks)
            self._process.passes()
            sent = yield waits_for
        raise DiedError


async def run(work: Coroutine[Any, Any, Any], *, at: int | None) -> tuple[bool, int]:
    """Runs `work` until it dies at its n-th await, if it has so many.

    Returns whether it died, and how many awaits it came to. Refusals count as an end.
    """
    process = _Process(at)
    task = process.begin(work)
    await asyncio.wait({task, process.died}, return_when=asyncio.FIRST_COMPLETED)
    if not process.died.done():
        # Raises what is no refusal; those count as an end.
        with suppress(DomainError):
            task.result()
    return process.died.done(), process.awaits


@asynccontextmanager
async def database(url: str) -> AsyncIterator[Database]:
    """A database as a process has it that may die: its pool is never closed in good order."""
    engine = create_async_engine(
        url,
        pool_size=4,
        max_overflow=0,
        connect_args={"application_name": NAME},
        execution_options={"preserve_rowcount": True},
    )
    _GRAVEYARD.append(engine)
    yield Database(engine, Notifier(_nobody_listens), url)


async def _nobody_listens() -> Connection:
    raise psycopg.OperationalError


async def cut(url: str) -> None:
    """The server finds the connections of the dead process gone."""
    async with await psycopg.AsyncConnection.connect(libpq_url(url), autocommit=True) as admin:
        await admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = %s AND datname = current_database()",
            [NAME],
        )
