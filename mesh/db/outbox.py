"""The outbox: domain events, written in the transaction of their effect, read as a stream.

Positions must not skip a transaction that commits late, so a serial number alone does
not do. The stream is read in steps from one snapshot of PostgreSQL to the next: what the
later one sees and the earlier one does not has been committed in between. Inside a step
rows come in the order of their serial, which for the rows of one aggregate is the order in
which they happened, because its row lock orders them; and of two transactions that
waited for the same row, no snapshot sees the second without the first. Transaction ids
would not do: a transaction gets its id before it waits for a lock. Whoever reads
the same step again from a position gets the same rows.
"""

import asyncio
import logging
import re
import time
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
from mesh.db.pipeline import Statement, columns
from mesh.errors import FieldViolation, invalid
from mesh.observability import metrics, request_context

_CHANNEL = "outbox"

BATCH = 50
"""Events in one message, and so in one transaction of a consumer, whose locks others wait for."""

# For what nobody was told of, because a process ended between its commit and its NOTIFY.
_POLL_SECONDS = 1.0
# A rush must not wait for those who follow it: each stream takes a fifth of the time at most,
# and so more at once.
_PAUSES_PER_BATCH = 4.0
_LONGEST_PAUSE_SECONDS = 0.1

_INSERT = """
INSERT INTO outbox (aggregate_id, event_type, payload, origin, create_time)
SELECT given.*, %s::timestamptz
FROM unnest(%s::uuid[], %s::text[], %s::bytea[], %s::text[]) AS given
"""

_MessageT = TypeVar("_MessageT", bound=Message)

_log = logging.getLogger(__name__)

_HAPPENED = metrics.counter("domain_events", "What happened, by type of event.", "type")
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


# So that reading a database's schema back knows the type, as the migration tests do.
ischema_names["xid8"] = Xid8


def outbox_table(metadata: sa.MetaData) -> sa.Table:
    """The table of a service's outbox, for its tables.py."""
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
        # The request and the trace that it happened in. NULL: from before this column.
        sa.Column("origin", sa.Text, default=request_context.origin),
        sa.Index("outbox_transaction_id_sequence_idx", "transaction_id", "sequence"),
    )


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be written. `payload` is the serialised message that the stream sends.

    `origin` is the `request_context.origin` of its cause, for `insertion`.
    """

    aggregate_id: UUID
    event_type: str
    payload: bytes
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """An event as it is read, with its position in the stream and the `request_context.origin` of its cause."""

    position: str
    event_type: str
    payload: bytes
    create_time: datetime
    origin: str = ""


# What every transaction that may come sees first: the beginning of the stream.
_NOTHING = "1:1:"
_LAST_ID = str(2**64 - 1)
# An older form of position, which stored cursors may still have: the transactions of [low, high).
_WINDOW = re.compile(r"([0-9]{1,18})-([0-9]{1,18})-([0-9]{1,18})")
_SNAPSHOT = re.compile(r"(\d{1,19}):(\d{1,19}):((\d{1,19}(,\d{1,19})*)?)")


@dataclass(frozen=True, slots=True)
class _Position:
    """Read up to `sequence` of what `until` sees and `since` does not: snapshots of PostgreSQL."""

    since: str
    until: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.since}/{self.until}/{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> "_Position":
        if not text:
            return cls(_NOTHING, _NOTHING, 0)
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
            raise invalid(FieldViolation("after_position", "not a position of this stream"))
        return cls(parts[0], parts[1], int(parts[2]))


def _is_snapshot(text: str) -> bool:
    found = _SNAPSHOT.fullmatch(text)
    if found is None:
        return False
    oldest, following = int(found[1]), int(found[2])
    running = [int(part) for part in found[3].split(",") if part]
    # PostgreSQL raises for anything else.
    return (
        0 < oldest <= following < 2**63
        and running == sorted(running)
        and all(oldest <= one < following for one in running)
    )


async def append(
    connection: AsyncConnection, table: sa.Table, events: Sequence[NewEvent], *, now: datetime
) -> None:
    """Writes events in the caller's transaction."""
    if events:
        _on_commit(connection, events)
        await connection.execute(
            table.insert(),
            [
                {
                    "aggregate_id": event.aggregate_id,
                    "event_type": event.event_type,
                    "payload": event.payload,
                    "create_time": now,
                }
                for event in events
            ],
        )


def insertion(
    connection: AsyncConnection, events: Sequence[NewEvent], *, now: datetime
) -> Statement:
    """What writes events of many calls, to be sent in the caller's transaction with other
    statements (mesh/db/pipeline.py)."""
    _on_commit(connection, events)
    rows = ((each.aggregate_id, each.event_type, each.payload, each.origin) for each in events)
    return Statement(_INSERT, (now, *columns(rows, 4)))


def _on_commit(connection: AsyncConnection, events: Sequence[NewEvent]) -> None:
    """Once the transaction has committed, they are counted and the readers are woken."""
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
    """Deletes the oldest events that were written before a time. Returns how many."""
    oldest = sa.select(table.c.sequence).order_by(table.c.sequence).limit(limit)
    deleted = await connection.execute(
        sa.delete(table).where(table.c.sequence.in_(oldest), table.c.create_time < before)
    )
    return deleted.rowcount


def _count(events: Sequence[NewEvent]) -> None:
    for event in events:
        _HAPPENED.labels(event.event_type).inc()


class OutboxReader:
    """Serves a service's outbox to any number of streams with one LISTEN connection."""

    def __init__(self, database: Database, table: sa.Table) -> None:
        self._database = database
        self._table = table
        self._of_step = _reading(table, "sequence")
        # Not to be had from the primary key: that index would be gone through from its beginning
        # for the few that are new.
        self._of_new_step = _reading(table, "sequence + 0")
        self._wake = asyncio.Condition()
        self._writes = 0

    async def listen(self) -> None:
        """Wakes the streams when something was written. Runs until cancelled."""
        url = libpq_url(self._database.url)
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(f"LISTEN {_CHANNEL}")
            async for _ in connection.notifies():
                async with self._wake:
                    self._writes += 1
                    self._wake.notify_all()

    async def now(self) -> str:
        """The position of what is written from now on: nothing that is undecided is skipped."""
        async with self._database.reading() as connection:
            snapshot = await connection.scalar(sa.text("SELECT pg_current_snapshot()::text"))
        return str(_Position(snapshot, snapshot, 0))

    async def stream(
        self, after_position: str, *, pauses: bool = False
    ) -> AsyncIterator[Sequence[Event]]:
        """Yields what was written after the position, batch by batch, without end.

        With `pauses` also an empty batch whenever nothing was left to read, about once a
        second. Raises VALIDATION_FAILED for a position that is none.
        """
        position = _Position.parse(after_position)
        with _STREAMS.track_inprogress():
            async for events in self._follow(position, pauses=pauses):
                if events:
                    delay = (system_clock() - events[0].create_time).total_seconds()
                    _SENT.inc(len(events))
                    _DELAY.observe(max(0.0, delay))
                yield events

    async def _follow(self, position: _Position, *, pauses: bool) -> AsyncIterator[Sequence[Event]]:
        while True:
            # Counted before reading: a write that comes in between must not be slept over.
            seen = self._writes
            began = time.monotonic()
            events, position = await self._read(position)
            if events:
                yield events
                if len(events) < BATCH:
                    busy = time.monotonic() - began
                    await asyncio.sleep(min(busy * _PAUSES_PER_BATCH, _LONGEST_PAUSE_SECONDS))
            else:
                if pauses:
                    yield events
                await self._wait(seen)

    async def position_at(self, time: datetime) -> str:
        """A position before all events of this time and later.

        The table needs an index on create_time for it.
        """
        # What is not committed yet has a transaction id at or above the horizon.
        first = (
            f"SELECT least(pg_snapshot_xmin(pg_current_snapshot()), (SELECT min(transaction_id)"
            f" FROM {self._table.name} WHERE create_time >= :time))::text::bigint"
        )
        async with self._database.reading() as connection:
            low = (await connection.execute(sa.text(first), {"time": time})).scalar_one()
        sees_all_before = f"{low}:{low}:"
        return str(_Position(sees_all_before, sees_all_before, 0))

    async def _wait(self, seen: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS), self._wake:
                await self._wake.wait_for(lambda: self._writes != seen)

    async def _read(self, position: _Position) -> tuple[list[Event], _Position]:
        """One batch and the position after it."""
        async with self._database.reading() as connection:
            events, until = await self._step(connection, position)
            if not events and position.until != position.since:
                # That one was read to its end; go on with what has been committed since.
                position = _Position(until, until, 0)
                events, until = await self._step(connection, position)
        if len(events) == BATCH:
            return events, _Position.parse(events[-1].position)
        return events, _Position(until, until, 0)

    async def _step(
        self, connection: AsyncConnection, position: _Position
    ) -> tuple[list[Event], str]:
        """A batch of a position's step, and the snapshot that the step ends with: the present
        one, when the position is the beginning of a step."""
        is_begun = position.until != position.since
        is_tail = not is_begun and position.since != _NOTHING
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
    """The events of a step in their order; without any, a row that has the end of the step alone."""
    return sa.text(f"""
        WITH step AS MATERIALIZED (
            SELECT CAST(:since AS pg_snapshot) AS since,
                coalesce(CAST(:until AS pg_snapshot), pg_current_snapshot()) AS until
        )
        SELECT CAST(step.until AS text) AS until, found.*
        FROM step LEFT JOIN LATERAL (
            SELECT sequence, event_type, payload, create_time, origin FROM {table.name}
            -- The index finds what may have been committed in between, the rest is exact.
            WHERE transaction_id >= CAST(CAST(:oldest AS text) AS xid8)
                AND transaction_id < CAST(CAST(:following AS text) AS xid8)
                AND pg_visible_in_snapshot(transaction_id, step.until)
                AND NOT pg_visible_in_snapshot(transaction_id, step.since)
                AND sequence > :sequence
            ORDER BY {order} LIMIT :batch
        ) AS found ON true
        ORDER BY found.sequence
    """)
