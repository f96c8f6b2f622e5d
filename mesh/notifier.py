"""NOTIFY for what has committed, once for all that commits meanwhile.

Not in the transaction itself: PostgreSQL makes transactions with a NOTIFY commit one after
the other, on the whole server, each with its flush to disk (PreCommit_Notify in its async.c).
"""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from mesh import tasks

# A transaction that writes nothing waits for no flush.
_NOTIFY = sa.text("SELECT pg_notify(:channel, '')")

# What commits within it shares the next one.
_PAUSE_SECONDS = 0.02

_log = logging.getLogger(__name__)


class Notifier:
    """Sends notifications on a connection of its own, of an engine that has one and commits each
    statement. A hint only: who listens looks from time to time as well."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._wanted: set[str] = set()
        self._sending: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def of(cls, engine: AsyncEngine) -> AsyncIterator["Notifier"]:
        """A notifier that closes the engine in the end, when it has sent everything."""
        notifier = cls(engine)
        try:
            yield notifier
        finally:
            if notifier._sending is not None:
                await asyncio.wait({notifier._sending})
            await engine.dispose()

    def notify(self, channel: str) -> None:
        """Wakes who listens on the channel, soon."""
        self._wanted.add(channel)
        if self._sending is None:
            # In no call's context: it is sent for many of them.
            self._sending = tasks.begin(self._send(), context=contextvars.Context())

    async def _send(self) -> None:
        try:
            while self._wanted:
                channel = self._wanted.pop()
                async with self._engine.connect() as connection:
                    await connection.execute(_NOTIFY, {"channel": channel})
                await asyncio.sleep(_PAUSE_SECONDS)
        except (sa.exc.SQLAlchemyError, OSError) as error:
            _log.warning("listeners were not woken", extra={"error": type(error).__name__})
        finally:
            self._sending = None
