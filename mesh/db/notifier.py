"""Sends NOTIFY after commits, one for all transactions that committed meanwhile.

Not inside the transactions: PostgreSQL serialises commits that contain a NOTIFY on the whole
server, each with its flush to disk (PreCommit_Notify in async.c).
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

# A transaction that only notifies writes no WAL and does not wait for a flush.
_NOTIFY = "SELECT pg_notify(%s, '')"

# Transactions that commit within this time share the next NOTIFY.
_PAUSE_SECONDS = 0.02

_log = logging.getLogger(__name__)


class Notifier:
    """Sends notifications on its own autocommit connection, which `connect` opens.

    A notification may be lost; listeners must also poll.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._connection: Connection | None = None
        self._channels: set[str] = set()
        self._sending: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, connect: Callable[[], Awaitable[Connection]]) -> AsyncIterator["Notifier"]:
        """A notifier for the block; sends pending notifications before it closes."""
        notifier = cls(connect)
        try:
            yield notifier
        finally:
            if notifier._sending is not None:
                await asyncio.wait({notifier._sending})
            if notifier._connection is not None:
                await notifier._connection.close()

    def notify(self, channel: str) -> None:
        """Schedules a NOTIFY on the channel."""
        self._channels.add(channel)
        if self._sending is None:
            # In an empty context: one NOTIFY serves many calls.
            self._sending = tasks.begin(self._send(), context=contextvars.Context())

    async def _send(self) -> None:
        try:
            while self._channels:
                await self._send_notify(self._channels.pop())
                await asyncio.sleep(_PAUSE_SECONDS)
        except (psycopg.Error, OSError) as error:
            _log.warning("listeners were not woken", extra={"error": type(error).__name__})
        finally:
            self._sending = None

    async def _send_notify(self, channel: str) -> None:
        if self._connection is not None:
            try:
                await self._connection.execute(_NOTIFY, [channel])
            except psycopg.OperationalError:
                # The server closed the connection: open a new one.
                await self._connection.close()
                self._connection = None
            else:
                return
        self._connection = await self._connect()
        await self._connection.execute(_NOTIFY, [channel])
