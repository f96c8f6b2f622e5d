"""The outbox: domain events, written in the transaction of their effect, read as a stream.

Positions must not skip a transaction that commits late, so a serial number alone does
not do. The stream is read in windows of transaction ids [low, high) where `high` is
the oldest transaction still running (`pg_snapshot_xmin`): everything below it is
decided. Inside a window rows come in the order of their serial, which for the rows of
one aggregate is the order in which they happened, because its row lock orders them.
Whoever reads the same windows again from a position gets the same rows.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.database import Database, libpq_url
from mesh.errors import FieldViolation, invalid

CHANNEL = "outbox"
"""PostgreSQL's NOTIFY channel; a trigger on the table sends on it."""

BATCH = 50
"""Events in one message, and so in one transaction of a consumer, whose locks others wait for."""

_POLL_SECONDS = 1.0
# An event is there but a transaction that began before it still runs: look again soon.
_HORIZON_SECONDS = 0.005

_log = logging.getLogger(__name__)


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
        sa.Index("outbox_transaction_id_sequence_idx", "transaction_id", "sequence"),
    )


NOTIFY_TRIGGER = f"""
CREATE FUNCTION notify_outbox() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_notify('{CHANNEL}', ''); RETURN NULL; END $$;
CREATE TRIGGER outbox_notify AFTER INSERT ON outbox
FOR EACH STATEMENT EXECUTE FUNCTION notify_outbox();
"""
"""SQL for the migration that makes the table."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be written. `payload` is the serialised message that the stream sends."""

    aggregate_id: UUID
    event_type: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """An event as it is read, with its position in the stream."""

    position: str
    event_type: str
    payload: bytes
    create_time: datetime


@dataclass(frozen=True, slots=True)
class _Position:
    """Read up to `sequence` within the window [low, high)."""

    low: int
    high: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.low}-{self.high}-{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> "_Position":
        if not text:
            return cls(0, 0, 0)
        try:
            low, high, sequence = (int(part) for part in text.split("-"))
        except ValueError:
            raise invalid(
                FieldViolation("after_position", "not a position of this stream")
            ) from None
        return cls(low, high, sequence)


async def append(
    connection: AsyncConnection, table: sa.Table, events: Sequence[NewEvent], *, now: datetime
) -> None:
    """Writes events in the caller's transaction."""
    if events:
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


class OutboxReader:
    """Serves a service's outbox to any number of streams with one LISTEN connection."""

    def __init__(self, database: Database, table: sa.Table) -> None:
        self._database = database
        self._table = table
        self._wake = asyncio.Condition()
        self._writes = 0

    async def listen(self) -> None:
        """Wakes the streams when something was written. Runs until cancelled."""
        url = libpq_url(self._database.url)
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            async for _ in connection.notifies():
                async with self._wake:
                    self._writes += 1
                    self._wake.notify_all()

    async def stream(self, after_position: str) -> AsyncIterator[Sequence[Event]]:
        """Yields what was written after the position, batch by batch, without end.

        Raises VALIDATION_FAILED for a position that is none.
        """
        position = _Position.parse(after_position)
        while True:
            # Counted before reading: a write that comes in between must not be slept over.
            seen = self._writes
            events, position, is_behind = await self._read(position)
            if events:
                yield events
            elif is_behind:
                await asyncio.sleep(_HORIZON_SECONDS)
            else:
                await self._wait(seen)

    async def _wait(self, seen: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS), self._wake:
                await self._wake.wait_for(lambda: self._writes != seen)

    async def _read(self, position: _Position) -> tuple[list[Event], _Position, bool]:
        """One batch, the position after it, and whether newer rows are not yet decided."""
        async with self._database.transaction() as connection:
            horizon, newest = (
                await connection.execute(
                    sa.text(
                        "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint,"
                        f" (SELECT max(transaction_id)::text::bigint FROM {self._table.name})"
                    )
                )
            ).one()
            events = await self._window(connection, position)
            if not events and horizon > position.high:
                # The window is read to its end; go on with what was decided since.
                position = _Position(position.high, horizon, 0)
                events = await self._window(connection, position)
        if events:
            position = _Position(position.low, position.high, _last(events))
        return events, position, newest is not None and newest >= position.high

    async def _window(self, connection: AsyncConnection, position: _Position) -> list[Event]:
        if position.high <= position.low:
            return []
        rows = await connection.execute(
            sa.text(
                "SELECT sequence, event_type, payload, create_time"
                f" FROM {self._table.name}"
                " WHERE transaction_id >= CAST(:low AS text)::xid8"
                " AND transaction_id < CAST(:high AS text)::xid8"
                " AND sequence > :sequence ORDER BY sequence LIMIT :batch"
            ),
            {
                "low": str(position.low),
                "high": str(position.high),
                "sequence": position.sequence,
                "batch": BATCH,
            },
        )
        return [
            Event(
                str(_Position(position.low, position.high, row.sequence)),
                row.event_type,
                row.payload,
                row.create_time,
            )
            for row in rows
        ]


def _last(events: Sequence[Event]) -> int:
    return _Position.parse(events[-1].position).sequence
