"""The outbox as a stream: no event is skipped or repeated, from any position."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy as sa

from mesh.db import outbox
from mesh.db.database import Database, libpq_url
from mesh.db.outbox import Event, NewEvent, OutboxReader
from mesh.errors import DomainError, Reason
from testing.waiting import wait_for_listener

NOW = datetime(2026, 3, 1, tzinfo=UTC)

metadata = sa.MetaData()
events = outbox.outbox_table(metadata)


@pytest.fixture
async def database(database: Database) -> Database:
    async with database.transaction() as connection:
        await connection.run_sync(metadata.create_all)
    return database


async def write(database: Database, *names: str, aggregate: UUID | None = None) -> None:
    async with database.transaction() as connection:
        await outbox.append(connection, some(*names, aggregate=aggregate), now=NOW)


def some(*names: str, aggregate: UUID | None = None) -> list[NewEvent]:
    return [NewEvent(aggregate or uuid4(), "made", name.encode()) for name in names]


async def read(database: Database, count: int, *, after: str = "") -> list[Event]:
    """The next `count` events after a position."""
    result: list[Event] = []
    async with (
        asyncio.timeout(60),
        aclosing(OutboxReader(database, events).stream(after)) as stream,  # type: ignore[type-var]
    ):
        while len(result) < count:
            result += await anext(stream)
    return result


def names(batch: list[Event]) -> list[str]:
    return [event.payload.decode() for event in batch]


async def test_reading_can_begin_at_a_time(database: Database) -> None:
    reader = OutboxReader(database, events)
    empty = await reader.position_at(NOW)
    for days, name in [(0, "older"), (1, "at"), (2, "later"), (0, "older again")]:
        async with database.transaction() as connection:
            time = NOW + timedelta(days=days)
            await outbox.append(connection, some(name), now=time)
    assert names(await read(database, 4, after=empty)) == ["older", "at", "later", "older again"]
    begin = await reader.position_at(NOW + timedelta(days=2))
    assert names(await read(database, 2, after=begin)) == ["later", "older again"]


async def test_reading_from_a_time_does_not_skip_late_commits(database: Database) -> None:
    reader = OutboxReader(database, events)
    async with database.transaction() as late:
        await outbox.append(late, some("late"), now=NOW)
        await write(database, "early")
        begin = await reader.position_at(NOW)
    assert set(names(await read(database, 2, after=begin))) == {"late", "early"}


async def test_a_pause_is_an_empty_batch(database: Database) -> None:
    await write(database, "one")
    stream = OutboxReader(database, events).stream("", pauses=True)
    async with asyncio.timeout(60), aclosing(stream) as batches:  # type: ignore[type-var]
        assert [len(await anext(batches)) for _ in range(3)] == [1, 0, 0]


async def test_events_come_in_order_and_every_position_resumes(database: Database) -> None:
    written = [f"{number:02d}" for number in range(12)]
    for start in range(0, 12, 3):
        await write(database, *written[start : start + 3])
    batch = await read(database, 12)
    assert names(batch) == written
    for index, event in enumerate(batch[:-1]):
        assert names(await read(database, 11 - index, after=event.position)) == written[index + 1 :]


async def test_a_position_of_the_older_format_resumes(database: Database) -> None:
    """It has a window of transaction ids and the last serial number read within it."""
    await write(database, "one", "two")
    await write(database, "three")
    async with database.reading() as connection:
        text = "SELECT sequence, transaction_id::text::bigint FROM outbox ORDER BY sequence"
        (first, low), _, (_, high) = (await connection.execute(sa.text(text))).all()
    assert names(await read(database, 3, after=f"0-{low}-0")) == ["one", "two", "three"]
    assert names(await read(database, 2, after=f"{low}-{high + 1}-{first}")) == ["two", "three"]
    await write(database, "four")
    assert names(await read(database, 2, after=f"{low}-{high}-{first + 1}")) == ["three", "four"]
    # The number of an empty window does not apply to later events.
    assert len(await read(database, 4, after=f"{low}-{low}-{first + 9}")) == 4


async def test_a_transaction_that_commits_late_is_not_skipped(database: Database) -> None:
    reader = OutboxReader(database, events)
    async with asyncio.timeout(60), aclosing(reader.stream("")) as stream:  # type: ignore[type-var]
        async with database.transaction() as late:
            await outbox.append(late, some("late"), now=NOW)
            await write(database, "early")
            # It is sent although an older transaction is still running, and it has the higher
            # serial number: a reader that relies on that number would skip the late event.
            [early] = await anext(stream)
            assert names([early]) == ["early"]
        assert names(list(await anext(stream))) == ["late"]
        await write(database, "next")
        assert names(list(await anext(stream))) == ["next"]
    assert names(await read(database, 2, after=early.position)) == ["late", "next"]


async def test_events_are_ordered_by_lock_and_not_by_transaction_id(database: Database) -> None:
    """A transaction gets its id before it waits for a lock: by ids the second would be first."""
    aggregate = uuid4()
    lock = sa.text("SELECT pg_advisory_xact_lock(5)")
    reader = OutboxReader(database, events)
    async with database.transaction() as second, database.transaction() as other:
        await second.execute(sa.text("SELECT pg_current_xact_id()"))
        await other.execute(sa.text("SELECT pg_current_xact_id()"))
        async with database.transaction() as first:
            await first.execute(lock)
            await outbox.append(first, some("first", aggregate=aggregate), now=NOW)
        await second.execute(lock)
        await outbox.append(second, some("second", aggregate=aggregate), now=NOW)
        await second.commit()
        # `other` still runs, with an id between the two.
        async with asyncio.timeout(60), aclosing(reader.stream("")) as stream:  # type: ignore[type-var]
            batch = list(await anext(stream))
    assert names(batch) == ["first", "second"]


async def test_reading_from_now_includes_running_transactions(database: Database) -> None:
    reader = OutboxReader(database, events)
    await write(database, "before")
    async with database.transaction() as running:
        await outbox.append(running, some("running"), now=NOW)
        position = await reader.now()
    await write(database, "after")
    assert names(await read(database, 2, after=position)) == ["running", "after"]


async def test_reading_new_events_does_not_scan_old_ones(
    database: Database, statements: list[tuple[str, Any]]
) -> None:
    """Many old events must not slow down reading a new one."""
    many = (
        "INSERT INTO outbox (transaction_id, aggregate_id, event_type, payload, create_time)"
        " SELECT (3 + number / 420)::text::xid8, gen_random_uuid(), 'made', '', now()"
        " FROM generate_series(1, 300000) AS number"
    )
    async with database.transaction() as connection:
        await connection.execute(sa.text(many))
    async with database.session() as session:
        await session.execute(sa.text("ANALYZE outbox"))
        position = await OutboxReader(database, events).now()
        await write(database, "new")
        statements.clear()
        assert names(await read(database, 1, after=position)) == ["new"]
        [reading] = [statement for statement in statements if "FROM outbox" in statement[0]][:1]
        explained = await session.exec_driver_sql("EXPLAIN ANALYZE " + reading[0], reading[1])
        plan = "\n".join(explained.scalars())
    assert "outbox_transaction_id_sequence_idx" in plan, plan
    assert "Rows Removed" not in plan, plan


@pytest.fixture
def statements() -> Iterator[list[tuple[str, Any]]]:
    """All executed statements with their parameters."""
    executed: list[tuple[str, Any]] = []

    def note(_1: Any, _2: Any, statement: str, parameters: Any, _3: Any, _4: bool) -> None:
        executed.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    yield executed
    sa.event.remove(sa.Engine, "before_cursor_execute", note)


async def test_old_events_are_deleted(database: Database) -> None:
    await write(database, "old", "older")
    async with database.transaction() as connection:
        later = NOW + timedelta(days=1)
        await outbox.append(connection, some("new"), now=later)
        assert await outbox.forget(connection, events, before=later, limit=1) == 1
        assert await outbox.forget(connection, events, before=later, limit=9) == 1
    assert names(await read(database, 1)) == ["new"]


async def test_an_event_of_a_rolled_back_transaction_is_not_sent(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as connection:
            await outbox.append(connection, some("undone"), now=NOW)
            raise LookupError("the effect failed")

    with pytest.raises(LookupError):
        await fail()
    await write(database, "done")
    assert names(await read(database, 1)) == ["done"]


async def test_events_of_concurrent_writers_are_neither_lost_nor_repeated(
    database: Database,
) -> None:
    """Events of an aggregate that are written under its row lock keep their order."""
    chance = random.Random(7)
    aggregates = [uuid4() for _ in range(4)]
    locks = {aggregate: asyncio.Lock() for aggregate in aggregates}
    per_aggregate = 15

    async def writer(aggregate: UUID) -> None:
        for number in range(per_aggregate):
            async with locks[aggregate], database.transaction() as connection:
                event = some(f"{aggregate}:{number:02d}", aggregate=aggregate)
                await outbox.append(connection, event, now=NOW)
                await asyncio.sleep(chance.random() * 0.005)

    reading = asyncio.create_task(read(database, len(aggregates) * per_aggregate))
    await asyncio.gather(*(writer(aggregate) for aggregate in aggregates))
    first = names(await reading)
    # A later reader has other steps, so aggregates may interleave differently.
    for order in (first, names(await read(database, len(first)))):
        assert len(set(order)) == len(order) == len(aggregates) * per_aggregate
        for aggregate in aggregates:
            own = [name for name in order if name.startswith(str(aggregate))]
            assert own == sorted(own)


async def test_a_listening_reader_is_woken(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten events, each written while the reader waits and would not poll for an hour."""
    monkeypatch.setattr(outbox, "_POLL_SECONDS", 3600)
    reader = OutboxReader(database, events)
    listening = asyncio.create_task(reader.listen())
    async with asyncio.timeout(60), aclosing(reader.stream("")) as stream:  # type: ignore[type-var]
        await wait_for_listener(database)
        for number in range(10):
            batch = asyncio.ensure_future(anext(stream))
            done, _ = await asyncio.wait({batch}, timeout=0.05)
            assert not done
            await write(database, str(number))
            assert names(list(await batch)) == [str(number)]
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening


@asynccontextmanager
async def a_slow_commit(database: Database) -> AsyncIterator[None]:
    """During the block a transaction with a NOTIFY is committing: it waits for a standby."""
    standby = "ALTER SYSTEM SET synchronous_standby_names = '{}'"
    reload = sa.text("SELECT pg_reload_conf()")
    waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    # It must write something, otherwise it would not wait.
    statement = sa.text("SELECT pg_notify('slow', ''), pg_logical_emit_message(true, '', '')")

    async def commit() -> None:
        async with database.transaction() as connection:
            await connection.execute(statement)

    async with database.session() as admin:
        await admin.execute(sa.text(standby.format("nobody")))
        await admin.execute(reload)
        committing = asyncio.create_task(commit())
        try:
            while not await admin.scalar(waiting):
                if committing.done():  # The server has not reloaded its settings yet.
                    committing = asyncio.create_task(commit())
                await asyncio.sleep(0.01)
            yield
        finally:
            await admin.execute(sa.text(standby.format("")))
            await admin.execute(reload)
            await committing


async def write_beside(database: Database, name: str) -> None:
    """Writes an event without waiting for the standby."""
    async with database.transaction() as connection:
        await connection.execute(sa.text("SET LOCAL synchronous_commit = local"))
        await outbox.append(connection, some(name), now=NOW)


async def test_a_commit_does_not_wait_for_another_commit(database: Database) -> None:
    """PostgreSQL serialises commits with a NOTIFY on the whole server."""
    async with asyncio.timeout(60), a_slow_commit(database):
        await write_beside(database, "one")
        assert names(await read(database, 1)) == ["one"]


async def test_commits_share_a_notification(database: Database) -> None:
    """Twenty commits while the first notification is blocked share the next one."""
    url = libpq_url(database.url)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as listener:
        await listener.execute("LISTEN outbox")
        async with asyncio.timeout(60), a_slow_commit(database):
            for number in range(20):
                await write_beside(database, str(number))
        received = [notify.payload async for notify in listener.notifies(timeout=60, stop_after=2)]
        await listener.execute("NOTIFY outbox, 'end'")
        received += [notify.payload async for notify in listener.notifies(timeout=60, stop_after=1)]
    assert received == ["", "", "end"]


async def test_listeners_are_woken_after_the_server_closed_the_notifiers_connection(
    database: Database,
) -> None:
    url = libpq_url(database.url)
    ended = (
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE 'SELECT pg_notify%'"
    )
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as listener:
        await listener.execute("LISTEN outbox")
        for name in ("one", "two"):
            await write(database, name)
            async with asyncio.timeout(60):
                await anext(listener.notifies())
            if name == "one":
                result = await listener.execute(ended)
                assert await result.fetchone() == (1,)


@pytest.mark.parametrize(
    "position",
    ["x", "1:1:/1:1:", "2-1-3", "1:2:/1:2:/x", "2:1:/1:1:/0", "1:3:2,1/1:3:/0", "1:3:9/1:3:/0"],
)
async def test_an_invalid_position_is_refused(database: Database, position: str) -> None:
    with pytest.raises(DomainError) as refused:
        await read(database, 1, after=position)
    assert refused.value.reason is Reason.VALIDATION_FAILED
