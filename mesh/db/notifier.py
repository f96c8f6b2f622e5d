"""NOTIFY for what has committed, once for all that commits meanwhile.

Not in the transaction itself: PostgreSQL makes transactions with a NOTIFY commit one after
the other, on the whole server, each with its flush to disk (PreCommit_Notify in its async.c).
"""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from mesh import tasks

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

# A transaction that writes nothing waits for no flush.
_NOTIFY = "SELECT pg_notify(%s, '')"

# What commits within it shares the next one.
_PAUSE_SECONDS = 0.02

_log = logging.getLogger(__name__)


class Notifier:
    """Sends notifications on a connection of its own, which `connect` opens: one that commits
    each statement. A hint only: who listens looks from time to time as well."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._connection: Connection | None = None
        self._wanted: set[str] = set()
        self._sending: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, connect: Callable[[], Awaitable[Connection]]) -> AsyncIterator["Notifier"]:
        """A notifier whose connection ends with the block, when everything is sent."""
        notifier = cls(connect)
        try:
            yield notifier
        finally:
            if notifier._sending is not None:
                await asyncio.wait({notifier._sending})
            if notifier._connection is not None:
                await notifier._connection.close()

    def notify(self, channel: str) -> None:
        """Wakes who listens on the channel, soon."""
        self._wanted.add(channel)
        if self._sending is None:
            # In no call's context: it is sent for many of them.
            self._sending = tasks.begin(self._send(), context=contextvars.Context())

    async def _send(self) -> None:
        try:
            while self._wanted:
                await self._send_one(self._wanted.pop())
                await asyncio.sleep(_PAUSE_SECONDS)
        except (psycopg.Error, OSError) as error:
            _log.warning("listeners were not woken", extra={"error": type(error).__name__})
        finally:
            self._sending = None

    async def _send_one(self, channel: str) -> None:
        if self._connection is not None:
            try:
                await self._connection.execute(_NOTIFY, [channel])
            except psycopg.OperationalError:
                # The server has ended it, perhaps long ago: with a new one, then.
                await self._connection.close()
                self._connection = None
            else:
                return
        self._connection = await self._connect()
        await self._connection.execute(_NOTIFY, [channel])
