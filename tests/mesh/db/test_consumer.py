"""Consuming an event stream: each event is applied exactly once, also after crashes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.consumer import EventConsumer, FencedError, cursor_table
from mesh.db.database import Database

NOW = datetime(2026, 3, 1, tzinfo=UTC)
EVENTS = ["1", "2", "3", "4", "5"]

metadata = sa.MetaData()
cursors = cursor_table(metadata)
# Without a constraint, so that an event applied twice shows as two rows.
effects = sa.Table("effects", metadata, sa.Column("event", sa.Text))


@pytest.fixture
async def database(database: Database) -> Database:
    async with database.transaction() as connection:
        await connection.run_sync(metadata.create_all)
    return database


async def apply_all(connection: AsyncConnection, events: Sequence[str], now: datetime) -> None:
    for event in events:
        await connection.execute(sa.insert(effects).values(event=event))


async def all_events(position: str) -> AsyncIterator[tuple[str, Sequence[str]]]:
    """The events after a position in batches of two; then the stream ends."""
    rest = [event for event in EVENTS if event > position]
    for start in range(0, len(rest), 2):
        batch = rest[start : start + 2]
        yield batch[-1], batch


def a_consumer(database: Database, **changes: Any) -> EventConsumer[str]:
    defaults: dict[str, Any] = {
        "stream": "test",
        "database": database,
        "cursors": cursors,
        "clock": lambda: NOW,
        "open_stream": all_events,
        "apply": apply_all,
    }
    return EventConsumer(**defaults | changes)


async def state(database: Database) -> tuple[str | None, list[str]]:
    """The cursor and the effects."""
    async with database.transaction() as connection:
        position = await connection.scalar(sa.select(cursors.c.position))
        return position, list(await connection.scalars(sa.select(effects.c.event)))


async def test_all_events_are_applied_and_the_cursor_advances(database: Database) -> None:
    commits = 0

    def after_commit() -> None:
        nonlocal commits
        commits += 1

    consumer = a_consumer(database, after_commit=after_commit)
    await consumer.run()
    assert await state(database) == ("5", EVENTS)
    assert commits == 3
    await consumer.run()
    assert await state(database) == ("5", EVENTS)


async def test_a_crash_before_the_commit_leaves_neither_effect_nor_cursor(
    database: Database,
) -> None:
    async def crash_at_three(
        connection: AsyncConnection, events: Sequence[str], now: datetime
    ) -> None:
        await apply_all(connection, events, now)
        if "3" in events:
            raise RuntimeError("crash between effect and commit")

    with pytest.raises(RuntimeError):
        await a_consumer(database, apply=crash_at_three).run()
    assert await state(database) == ("2", ["1", "2"])
    await a_consumer(database).run()
    assert await state(database) == ("5", EVENTS)


async def test_a_crash_after_the_commit_applies_no_event_twice(database: Database) -> None:
    def crash() -> None:
        raise RuntimeError("crash after the commit")

    with pytest.raises(RuntimeError):
        await a_consumer(database, after_commit=crash).run()
    assert await state(database) == ("2", ["1", "2"])
    await a_consumer(database).run()
    assert await state(database) == ("5", EVENTS)


async def test_a_consumer_whose_cursor_was_moved_applies_nothing(database: Database) -> None:
    async def events_while_another_takes_over(
        position: str,
    ) -> AsyncIterator[tuple[str, Sequence[str]]]:
        yield "2", ["1", "2"]
        # Another process continues from the same cursor: this one lost its lock unnoticed.
        async with database.transaction() as connection:
            await connection.execute(sa.update(cursors).values(position="4"))
            await apply_all(connection, ["3", "4"], NOW)
        yield "4", ["3", "4"]

    stale = a_consumer(database, open_stream=events_while_another_takes_over)
    with pytest.raises(FencedError):
        await stale.run()
    assert await state(database) == ("4", ["1", "2", "3", "4"])


async def test_one_process_at_a_time_consumes_a_stream(database: Database) -> None:
    following: list[str] = []

    def follow_as(name: str) -> Callable[[str], AsyncIterator[tuple[str, Sequence[str]]]]:
        async def events(position: str) -> AsyncIterator[tuple[str, Sequence[str]]]:
            following.append(name)
            try:
                await asyncio.Event().wait()
                yield "1", ["1"]
            finally:
                following.remove(name)

        return events

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)

    first = asyncio.create_task(a_consumer(database, open_stream=follow_as("first")).run())
    await until(lambda: following == ["first"])
    second = asyncio.create_task(a_consumer(database, open_stream=follow_as("second")).run())
    await until_waiting_for_the_lock(database)
    assert following == ["first"]
    # Another stream has its own lock.
    other = a_consumer(database, stream="other", open_stream=follow_as("other"))
    third = asyncio.create_task(other.run())
    await until(lambda: "other" in following)

    first.cancel()
    await until(lambda: "second" in following)
    assert "first" not in following
    for task in (second, third):
        task.cancel()
    for task in (first, second, third):
        with suppress(asyncio.CancelledError):
            await task


async def until_waiting_for_the_lock(database: Database) -> None:
    """Waits until two sessions have tried to get the lock; they poll it."""
    tries = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND query LIKE '%pg_try_advisory_lock%' AND pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(60):
        while True:
            async with database.transaction() as connection:
                if (await connection.execute(tries)).scalar_one() == 2:
                    return
            await asyncio.sleep(0.005)
