"""Consumes another service's event stream and applies each event exactly once.

The cursor is committed in the transaction of the effect. An advisory lock elects one consumer;
a process that lost the lock unnoticed fails when it finds the cursor moved.
"""

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.clock import Clock
from mesh.db.database import Database
from mesh.observability import metrics
from mesh.outages import InterruptedLoopError

_log = logging.getLogger(__name__)

_LOCK_RETRY_SECONDS = 1.0

_APPLIED = metrics.counter("stream_events_applied", "Events applied.", "stream")
_APPLY = metrics.histogram("stream_apply_seconds", "Duration of a batch's transaction.", "stream")
_FOLLOWING = metrics.gauge("stream_following", "1 in the process that consumes a stream.", "stream")

EventT = TypeVar("EventT")

Batch = tuple[str, Sequence[EventT]]
"""The position after the last event, and the events, oldest first."""


def cursor_table(metadata: sa.MetaData) -> sa.Table:
    """The table of stream cursors, for a service's tables.py."""
    return sa.Table(
        "event_cursors",
        metadata,
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("position", sa.Text, nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
    )


class FencedError(InterruptedLoopError):
    """Another process moved the cursor: this one must start again from the stored position."""


class EventConsumer(Generic[EventT]):
    """Applies a stream's events, one transaction per batch.

    `open_stream` yields the batches after a position. `apply` writes their effect in the given
    transaction and makes no other calls. `after_commit` runs when the transaction has committed.
    """

    def __init__(
        self,
        *,
        stream: str,
        database: Database,
        cursors: sa.Table,
        clock: Clock,
        open_stream: Callable[[str], AsyncIterator[Batch[EventT]]],
        apply: Callable[[AsyncConnection, Sequence[EventT], datetime], Awaitable[None]],
        after_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._stream = stream
        self._database = database
        self._cursors = cursors
        self._clock = clock
        self._open_stream = open_stream
        self._apply = apply
        self._after_commit = after_commit

    async def run(self) -> None:
        """Consumes the stream while this process holds the lock. Raises when the stream ends."""
        async with self._database.session() as session:
            while not await self._lock(session):
                await asyncio.sleep(_LOCK_RETRY_SECONDS)
            position = await self._position()
            _log.info("following", extra={"stream": self._stream, "position": position})
            with _FOLLOWING.labels(self._stream).track_inprogress():
                async for following, events in self._open_stream(position):
                    with _APPLY.labels(self._stream).time():
                        await self._apply_batch(events, position, following)
                    _APPLIED.labels(self._stream).inc(len(events))
                    position = following
                    self._after_commit()

    async def _lock(self, session: AsyncConnection) -> bool:
        key = zlib.crc32(self._stream.encode())
        taken = await session.execute(sa.select(sa.func.pg_try_advisory_lock(key)))
        return bool(taken.scalar_one())

    async def _position(self) -> str:
        async with self._database.transaction() as connection:
            # Without the row the first batch would have no cursor to fence it.
            await connection.execute(
                postgresql.insert(self._cursors)
                .values(stream=self._stream, position="", update_time=self._clock())
                .on_conflict_do_nothing()
            )
            position = await connection.execute(
                sa.select(self._cursors.c.position).where(self._cursors.c.stream == self._stream)
            )
            return str(position.scalar_one())

    async def _apply_batch(self, events: Sequence[EventT], position: str, following: str) -> None:
        now = self._clock()
        async with self._database.transaction() as connection:
            moved = await connection.execute(
                sa.update(self._cursors)
                .where(self._cursors.c.stream == self._stream)
                .where(self._cursors.c.position == position)
                .values(position=following, update_time=now)
            )
            if moved.rowcount != 1:
                raise FencedError(f"another process moved {self._stream}'s cursor off {position!r}")
            await self._apply(connection, events, now)
