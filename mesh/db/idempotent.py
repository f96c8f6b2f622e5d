"""Idempotent writes: the same request with the same key has one effect and one answer.

The record of a key is written in the transaction of the effect, so that neither exists
without the other. A key belongs to one caller and one method.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from google.protobuf.message import Message
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.pipeline import Result, Statement, columns
from mesh.errors import DomainError, Reason
from mesh.rpc.call import caller, idempotency_key, mark_replayed

_FIND = """
SELECT scope, key, records.fingerprint, records.resource_id, records.response
FROM unnest(%s::text[], %s::text[]) AS requested (scope, key)
JOIN idempotency_records AS records USING (scope, key)
"""

_FINISH = """
UPDATE idempotency_records AS records SET response = input.response
FROM unnest(%s::text[], %s::text[], %s::bytea[]) AS input (scope, key, response)
WHERE records.scope = input.scope AND records.key = input.key AND records.response IS NULL
"""


@dataclass(frozen=True, slots=True)
class Key:
    """A client's key in the scope of its owner and method, with a digest of the request."""

    scope: str
    key: str
    fingerprint: bytes

    @property
    def reference(self) -> str:
        """A digest of 64 characters that identifies the key to another service."""
        return hashlib.sha256(f"{self.scope}\n{self.key}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Record:
    """The resource made under a key, and the answer once it is final."""

    resource_id: UUID
    response: bytes | None

    def replay(self) -> bytes:
        """The answer, for a repeated call, which is marked as such (mesh/rpc/interceptor.py)."""
        if self.response is None:
            raise ValueError("the record has no answer yet")
        mark_replayed()
        return self.response


def idempotency_table(metadata: sa.MetaData) -> sa.Table:
    """The table of a service's idempotency records, for its tables.py."""
    return sa.Table(
        "idempotency_records",
        metadata,
        sa.Column("scope", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("resource_id", postgresql.UUID(as_uuid=True), nullable=False),
        sa.Column("response", sa.LargeBinary),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Index("idempotency_records_create_time_idx", "create_time"),
    )


def key_for(method: str, owner: UUID | str, key: str, request: Message) -> Key:
    """The key of a request: of one owner, for one method, with this content."""
    content = request.SerializeToString(deterministic=True)
    return Key(f"{method}:{owner}", key, hashlib.sha256(content).digest())


def key_of_call(method: str, request: Message) -> Key | None:
    """The key of the call that is being served; None when its client sent none."""
    key, who = idempotency_key(), caller()
    return None if key is None else key_for(method, who.user_id or who.process, key, request)


Store = Callable[[AsyncConnection, UUID, bytes], Awaitable[None]]
"""Stores an answer and the id of what it is about, in the transaction of the effect."""


class IdempotentWrites:
    """Runs the writes of one process and its database once per key."""

    def __init__(self, database: Database, table: sa.Table, clock: Clock) -> None:
        self._database = database
        self._table = table
        self._clock = clock
        self._running: set[tuple[str, str]] = set()

    async def run_once(
        self,
        key: Key | None,
        effect: Callable[[AsyncConnection], Awaitable[tuple[UUID, bytes]]],
    ) -> bytes:
        """Runs `effect` in a transaction and stores its answer; a repetition returns that answer.

        `effect` returns the id of what it made and the serialised answer.
        Raises IDEMPOTENCY_IN_PROGRESS, IDEMPOTENCY_KEY_REUSED and what `effect` raises.
        """

        async def write(store: Store) -> bytes:
            async with self._database.transaction() as connection:
                resource_id, answer = await effect(connection)
                await store(connection, resource_id, answer)
            return answer

        return await self.run_steps_once(key, write)

    async def run_steps_once(
        self, key: Key | None, write: Callable[[Store], Awaitable[bytes]]
    ) -> bytes:
        """As `run_once`, for a write of several transactions: it calls `store` in the last one."""
        if key is None:
            return await write(_store_nothing)

        async def store(connection: AsyncConnection, resource_id: UUID, answer: bytes) -> None:
            if not await claim(
                connection, self._table, key, resource_id=resource_id, now=self._clock()
            ):
                record = await find(connection, self._table, key)
                if record is None or record.response is not None:
                    raise _overtaken()
                # Written before the upgrade by a version that stored no answer.
            await finish(connection, self._table, key, response=answer)

        async with self.exclusive(key):
            if (answer := await self.answer(key)) is not None:
                return answer
            try:
                return await write(store)
            except DomainError:
                # Perhaps refused because another process did the same under this key.
                if (answer := await self.answer(key)) is None:
                    raise
                return answer

    @asynccontextmanager
    async def exclusive(self, key: Key) -> AsyncIterator[None]:
        """Refuses a second call with the key while the first runs in this process.

        Across processes the record's primary key decides. Raises IDEMPOTENCY_IN_PROGRESS.
        """
        mark = (key.scope, key.key)
        if mark in self._running:
            raise DomainError(
                Reason.IDEMPOTENCY_IN_PROGRESS,
                "a call with this idempotency key is still running",
                retry_after_seconds=1,
            )
        self._running.add(mark)
        try:
            yield
        finally:
            self._running.discard(mark)

    async def find(self, key: Key) -> Record | None:
        """The record of the key. Raises IDEMPOTENCY_KEY_REUSED when the request differs."""
        async with self._database.reading() as connection:
            return await find(connection, self._table, key)

    async def answer(self, key: Key) -> bytes | None:
        """The final answer of the key, if there is one. Raises IDEMPOTENCY_KEY_REUSED."""
        record = await self.find(key)
        return None if record is None or record.response is None else record.replay()


async def _store_nothing(_: AsyncConnection, __: UUID, ___: bytes) -> None:
    return


def _overtaken() -> DomainError:
    return DomainError(
        Reason.IDEMPOTENCY_IN_PROGRESS,
        "another call with this idempotency key was first: repeat the call for its answer",
        retry_after_seconds=1,
    )


async def find(connection: AsyncConnection, table: sa.Table, key: Key) -> Record | None:
    """The record of the key. Raises IDEMPOTENCY_KEY_REUSED when the request differs."""
    row = (
        await connection.execute(
            sa.select(table.c.fingerprint, table.c.resource_id, table.c.response)
            .where(table.c.scope == key.scope)
            .where(table.c.key == key.key)
        )
    ).one_or_none()
    return None if row is None else _record(key, *row)


def finding(keys: Sequence[Key]) -> Statement:
    """Selects the records of many keys at once; `records_of` reads the result."""
    return Statement(_FIND, columns(((key.scope, key.key) for key in keys), 2))


def records_of(keys: Sequence[Key], result: Result) -> list[Record | DomainError | None]:
    """The record of each key, in order; IDEMPOTENCY_KEY_REUSED for one whose request differs."""
    rows = {(scope, key): rest for scope, key, *rest in result.rows}
    records: list[Record | DomainError | None] = []
    for key in keys:
        row = rows.get((key.scope, key.key))
        try:
            records.append(None if row is None else _record(key, *row))
        except DomainError as refusal:
            records.append(refusal)
    return records


def _record(key: Key, fingerprint: bytes, resource_id: UUID, response: bytes | None) -> Record:
    if fingerprint != key.fingerprint:
        raise DomainError(
            Reason.IDEMPOTENCY_KEY_REUSED,
            "this idempotency key was used with another request",
        )
    return Record(resource_id, response)


async def claim(
    connection: AsyncConnection, table: sa.Table, key: Key, *, resource_id: UUID, now: datetime
) -> bool:
    """Writes the record of a key. False when another call was first: roll back and find it."""
    inserted = await connection.execute(
        postgresql.insert(table)
        .values(
            scope=key.scope,
            key=key.key,
            fingerprint=key.fingerprint,
            resource_id=resource_id,
            create_time=now,
        )
        .on_conflict_do_nothing()
    )
    return inserted.rowcount == 1


async def reassign(
    connection: AsyncConnection, table: sa.Table, key: Key, *, before: UUID, resource_id: UUID
) -> bool:
    """Makes a key without a final answer name another resource. False when another call was first."""
    updated = await connection.execute(
        sa.update(table)
        .where(table.c.scope == key.scope)
        .where(table.c.key == key.key)
        .where(table.c.resource_id == before)
        .where(table.c.response.is_(None))
        .values(resource_id=resource_id)
    )
    return updated.rowcount == 1


def finishing(answers: Sequence[tuple[Key, bytes]]) -> Statement:
    """Stores the final answers of many keys at once; a key that has one keeps it."""
    rows = ((key.scope, key.key, response) for key, response in answers)
    return Statement(_FINISH, columns(rows, 3))


async def finish(
    connection: AsyncConnection, table: sa.Table, key: Key, *, response: bytes
) -> None:
    """Stores the final answer, which every repetition gets from now on."""
    await connection.execute(
        sa.update(table)
        .where(table.c.scope == key.scope)
        .where(table.c.key == key.key)
        .where(table.c.response.is_(None))
        .values(response=response)
    )


async def forget(connection: AsyncConnection, table: sa.Table, *, before: datetime) -> int:
    """Deletes records made before a time. Returns how many."""
    deleted = await connection.execute(sa.delete(table).where(table.c.create_time < before))
    return deleted.rowcount
