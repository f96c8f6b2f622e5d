"""The outbox: domain events, written in the transaction of their effect, read as a stream.

Which events a service has, and what they mean, belongs to that service's outbox.py.
"""

# A position must not skip a transaction that commits late, so a serial number alone is not enough.
# The stream is read in steps from one PostgreSQL snapshot to a later one: rows that the later one
# sees and the earlier one does not were committed in between. Within a step, rows are ordered by
# their serial. For the rows of one aggregate that is the order in which they happened: its row lock
# orders the transactions, and no snapshot sees the second without the first. Transaction ids would
# not give that order: a transaction gets its id before it waits for the lock. Reading a step again
# from the same position returns the same rows.

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import psycopg
import sqlalchemy as sa
from google.protobuf.message import Message
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.clock import system_clock
from mesh.db.database import Database, libpq_url, notify_on_commit, on_commit
from mesh.db.pipeline import Statement, columns, run_together
from mesh.errors import FieldViolation, invalid
from mesh.observability import metrics, request_context

_CHANNEL = "outbox"

BATCH = 50
"""Most events in one message, and so in one transaction of a consumer.

Bounded because other transactions wait for the locks of that transaction.
"""

# Finds events whose NOTIFY was lost because the process ended between commit and NOTIFY.
_POLL_SECONDS = 5.0
# A stream pauses after each batch, so that in a burst it reads few large batches.
_PAUSE_SECONDS = 0.25

_INSERT = """
INSERT INTO outbox (aggregate_id, event_type, payload, origin, create_time)
SELECT given.*, %s::timestamptz
FROM unnest(%s::uuid[], %s::text[], %s::bytea[], %s::text[]) AS given
"""

_MessageT = TypeVar("_MessageT", bound=Message)

_log = logging.getLogger(__name__)

_WRITTEN = metrics.counter("domain_events", "Committed domain events, by type.", "type")
_SENT = metrics.counter("outbox_events_sent", "Events read from the outbox for a stream.")
_DELAY = metrics.histogram(
    "outbox_delay_seconds", "Age of the oldest event of a batch when it is sent."
)
_STREAMS = metrics.gauge("outbox_streams", "Streams that read the outbox.")


class Xid8(sa.types.UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "xid8"


# Lets SQLAlchemy reflect the type, as the migration tests do.
ischema_names["xid8"] = Xid8


def outbox_table(metadata: sa.MetaData) -> sa.Table:
    """The outbox table, for a service's tables.py."""
    return sa.Table(
        "outbox",
        metadata,
        sa.Column("sequence", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column(
            "transaction_id",
            Xid8,
            server_default=sa.text("pg_current_xact_id()"),
            nullable=False,
        ),
        sa.Column("aggregate_id", postgresql.UUID(as_uuid=True), nullable=False),
        sa.Column("event_type", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        # Request id and trace of the cause. NULL in rows that are older than this column.
        sa.Column("origin", sa.Text, default=request_context.origin),
        sa.Index("outbox_transaction_id_sequence_idx", "transaction_id", "sequence"),
    )


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to write. `payload` is the serialised message that the stream sends.

    `origin` is the `request_context.origin` of its cause; None is that of the present call.
    """

    aggregate_id: UUID
    event_type: str
    payload: bytes
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """An event that was read. `origin` is the `request_context.origin` of its cause."""

    position: str
    event_type: str
    payload: bytes
    create_time: datetime
    origin: str = ""


# A snapshot that sees no transaction: the beginning of the stream.
_EMPTY = "1:1:"
_LAST_ID = str(2**64 - 1)
# An older format of positions, which stored cursors may still have: the transactions of [low, high).
_WINDOW = re.compile(r"([0-9]{1,18})-([0-9]{1,18})-([0-9]{1,18})")
_SNAPSHOT = re.compile(r"(\d{1,19}):(\d{1,19}):((\d{1,19}(,\d{1,19})*)?)")


@dataclass(frozen=True, slots=True)
class _Position:
    """The rows up to `sequence` that snapshot `until` sees and snapshot `since` does not are read."""

    since: str
    until: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.since}/{self.until}/{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> "_Position":
        if not text:
            return cls(_EMPTY, _EMPTY, 0)
        if (window := _WINDOW.fullmatch(text)) is not None:
            low, high = (max(1, int(window[side])) for side in (1, 2))
            text = f"{low}:{low}:/{high}:{high}:/{window[3]}"
        parts = text.split("/")
        if not (
            len(parts) == 3
            and all(map(_is_snapshot, parts[:2]))
            and int(parts[0].split(":")[0]) <= int(parts[1].split(":")[0])
            and re.fullmatch(r"[0-9]{1,18}", parts[2])
        ):
            raise invalid(FieldViolation("after_position", "must be a position of this stream"))
        return cls(parts[0], parts[1], int(parts[2]))


def _is_snapshot(text: str) -> bool:
    match = _SNAPSHOT.fullmatch(text)
    if match is None:
        return False
    oldest, following = int(match[1]), int(match[2])
    running = [int(part) for part in match[3].split(",") if part]
    # PostgreSQL rejects other values of pg_snapshot.
    return (
        0 < oldest <= following < 2**63
        and running == sorted(running)
        and all(oldest <= transaction < following for transaction in running)
    )


async def append(connection: AsyncConnection, events: Sequence[NewEvent], *, now: datetime) -> None:
    """Writes events in the caller's transaction."""
    if events:
        await run_together(connection, [insertion(connection, events, now=now)])


def insertion(
    connection: AsyncConnection, events: Sequence[NewEvent], *, now: datetime
) -> Statement:
    """The statement that writes events of many calls, for a pipeline (mesh/db/pipeline.py)."""
    announce(connection, events)
    origin = request_context.origin()
    rows = (
        (
            event.aggregate_id,
            event.event_type,
            event.payload,
            origin if event.origin is None else event.origin,
        )
        for event in events
    )
    return Statement(_INSERT, (now, *columns(rows, 4)))


def announce(connection: AsyncConnection, events: Sequence[NewEvent]) -> None:
    """Counts the events and wakes the readers when the transaction has committed.

    For callers whose own statement inserts the events; `append` and `insertion` do both.
    """
    if events:
        on_commit(connection, lambda: _count(events))
        notify_on_commit(connection, _CHANNEL)


def to_messages(events: Sequence[Event], message_type: type[_MessageT]) -> list[_MessageT]:
    """Events as the messages of a stream's response: the payload, its position, and its origin
    for a message that has the field."""
    has_origin = "origin" in message_type.DESCRIPTOR.fields_by_name
    messages = []
    for event in events:
        message: Any = message_type.FromString(event.payload)
        message.position = event.position
        if has_origin:
            message.origin = event.origin
        messages.append(message)
    return messages


async def forget(
    connection: AsyncConnection, table: sa.Table, *, before: datetime, limit: int
) -> int:
    """Deletes up to `limit` events, oldest first, written before a time. Returns the number."""
    oldest = sa.select(table.c.sequence).order_by(table.c.sequence).limit(limit)
    deleted = await connection.execute(
        sa.delete(table).where(table.c.sequence.in_(oldest), table.c.create_time < before)
    )
    return deleted.rowcount


def _count(events: Sequence[NewEvent]) -> None:
    for event in events:
        _WRITTEN.labels(event.event_type).inc()


class OutboxReader:
    """Serves a service's outbox to any number of streams over one LISTEN connection."""

    def __init__(self, database: Database, table: sa.Table) -> None:
        self._database = database
        self._table = table
        self._of_step = _reading(table, "sequence")
        # An expression, so that PostgreSQL does not scan the primary key from its beginning for
        # the few new rows.
        self._of_new_step = _reading(table, "sequence + 0")
        self._wake = asyncio.Condition()
        self._writes = 0

    async def listen(self) -> None:
        """Wakes the streams when events were written. Runs until cancelled."""
        url = libpq_url(self._database.url)
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(f"LISTEN {_CHANNEL}")
            # Events may have been written while nothing listened.
            await self._wake_all()
            async for _ in connection.notifies():
                await self._wake_all()

    async def now(self) -> str:
        """The current position. Transactions that have not committed yet come after it."""
        async with self._database.reading() as connection:
            snapshot = await connection.scalar(sa.text("SELECT pg_current_snapshot()::text"))
        return str(_Position(snapshot, snapshot, 0))

    async def stream(
        self, after_position: str, *, pause_seconds: float = _PAUSE_SECONDS, pauses: bool = False
    ) -> AsyncIterator[Sequence[Event]]:
        """Yields the events after a position, in batches, without end.

        An event that follows a batch by less than `pause_seconds` waits for the rest of that time.
        With `pauses` also an empty batch, about every 5 s, when there is nothing to read.
        Raises VALIDATION_FAILED for an invalid position.
        """
        position = _Position.parse(after_position)
        with _STREAMS.track_inprogress():
            async for events in self._follow(position, pause_seconds, pauses=pauses):
                if events:
                    delay = (system_clock() - events[0].create_time).total_seconds()
                    _SENT.inc(len(events))
                    _DELAY.observe(max(0.0, delay))
                yield events

    async def _follow(
        self, position: _Position, pause_seconds: float, *, pauses: bool
    ) -> AsyncIterator[Sequence[Event]]:
        while True:
            # Taken before reading, so that `_wait` returns at once for a write in between.
            seen = self._writes
            events, position = await self._read(position)
            if events:
                yield events
                if len(events) < BATCH:
                    await asyncio.sleep(pause_seconds)
            else:
                if pauses:
                    yield events
                await self._wait(seen)

    async def position_at(self, time: datetime) -> str:
        """A position before all events created at `time` or later.

        The table needs an index on create_time.
        """
        # Transactions that have not committed yet have ids at or above the snapshot's xmin.
        first = (
            f"SELECT least(pg_snapshot_xmin(pg_current_snapshot()), (SELECT min(transaction_id)"
            f" FROM {self._table.name} WHERE create_time >= :time))::text::bigint"
        )
        async with self._database.reading() as connection:
            low = (await connection.execute(sa.text(first), {"time": time})).scalar_one()
        sees_all_before = f"{low}:{low}:"
        return str(_Position(sees_all_before, sees_all_before, 0))

    async def _wake_all(self) -> None:
        async with self._wake:
            self._writes += 1
            self._wake.notify_all()

    async def _wait(self, seen: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS), self._wake:
                await self._wake.wait_for(lambda: self._writes != seen)

    async def _read(self, position: _Position) -> tuple[list[Event], _Position]:
        """Returns a batch and the position after it."""
        async with self._database.reading() as connection:
            events, until = await self._step(connection, position)
            if not events and position.until != position.since:
                # The step was read to its end: begin the next one.
                position = _Position(until, until, 0)
                events, until = await self._step(connection, position)
        if len(events) == BATCH:
            return events, _Position.parse(events[-1].position)
        return events, _Position(until, until, 0)

    async def _step(
        self, connection: AsyncConnection, position: _Position
    ) -> tuple[list[Event], str]:
        """A batch of the position's step, and the snapshot at which the step ends.

        A position at the beginning of a step ends at the current snapshot.
        """
        is_begun = position.until != position.since
        is_tail = not is_begun and position.since != _EMPTY
        rows = await connection.execute(
            self._of_new_step if is_tail else self._of_step,
            {
                "since": position.since,
                "until": position.until if is_begun else None,
                "oldest": position.since.split(":")[0],
                "following": position.until.split(":")[1] if is_begun else _LAST_ID,
                "sequence": position.sequence if is_begun else 0,
                "batch": BATCH,
            },
        )
        events = []
        until = ""
        for row in rows:
            until = row.until
            if row.sequence is not None:
                events.append(
                    Event(
                        str(_Position(position.since, until, row.sequence)),
                        row.event_type,
                        row.payload,
                        row.create_time,
                        row.origin or "",
                    )
                )
        return events, until


def _reading(table: sa.Table, order: str) -> sa.TextClause:
    """Selects a step's events in order; an empty step gives one row with only its end."""
    return sa.text(f"""
        WITH step AS MATERIALIZED (
            SELECT CAST(:since AS pg_snapshot) AS since,
                coalesce(CAST(:until AS pg_snapshot), pg_current_snapshot()) AS until
        )
        SELECT CAST(step.until AS text) AS until, event.*
        FROM step LEFT JOIN LATERAL (
            SELECT sequence, event_type, payload, create_time, origin FROM {table.name}
            -- The bounds on transaction_id use the index; the visibility tests are exact.
            WHERE transaction_id >= CAST(CAST(:oldest AS text) AS xid8)
                AND transaction_id < CAST(CAST(:following AS text) AS xid8)
                AND pg_visible_in_snapshot(transaction_id, step.until)
                AND NOT pg_visible_in_snapshot(transaction_id, step.since)
                AND sequence > :sequence
            ORDER BY {order} LIMIT :batch
        ) AS event ON true
        ORDER BY event.sequence
    """)
