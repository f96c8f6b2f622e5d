"""The connection pool, transactions and snapshots."""

import asyncio
import gc
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from mesh.db.database import ClosedError, Database, notify_on_commit
from mesh.db.pipeline import Statement, run_together
from mesh.ids import new_id
from stock_svc.tables import events

Open = Callable[[str], AbstractAsyncContextManager[Database]]


async def count(database: Database) -> int:
    async with database.reading() as connection:
        result = await connection.execute(sa.select(sa.func.count()).select_from(events))
        return int(result.scalar_one())


async def insert(database: Database, *, failing: bool = False) -> None:
    async with database.transaction() as connection:
        await connection.execute(
            events.insert().values(event_id=new_id(), fingerprint=b"f", create_time=sa.func.now())
        )
        if failing:
            raise RuntimeError("undo")


async def together(database: Database) -> None:
    async with database.transaction() as connection:
        await run_together(connection, [Statement("SELECT 1"), Statement("SELECT 2")])


async def test_connections_that_the_server_closed_are_replaced(open_database: Open) -> None:
    """After a restart of PostgreSQL no call gets an old connection."""
    async with open_database("stock_svc") as database, open_database("stock_svc") as killer:
        async with database.reading() as first, database.transaction() as second:
            pids = [
                (await connection.execute(sa.select(sa.func.pg_backend_pid()))).scalar_one()
                for connection in (first, second)
            ]
        async with killer.transaction() as connection:
            for pid in pids:
                # Waits up to 5 s until the backend has ended.
                ended = sa.select(sa.func.pg_terminate_backend(pid, 5000))
                assert (await connection.execute(ended)).scalar_one()
        assert await count(database) == 0
        await insert(database)
        assert await count(database) == 1


async def test_reading_does_not_leave_a_connection_in_autocommit_mode(open_database: Open) -> None:
    """Reads and transactions share the pool's connections."""
    async with open_database("stock_svc") as database:
        assert await count(database) == 0
        with pytest.raises(RuntimeError, match="undo"):
            await insert(database, failing=True)
        assert await count(database) == 0


async def test_a_call_that_is_cancelled_at_any_moment_returns_its_connection(
    open_database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also between two statements, where psycopg yields to the loop if it has been busy for long."""
    monkeypatch.setattr(psycopg.waiting, "MAX_BUSY_TIME", 0.0)
    async with open_database("stock_svc") as database:
        await count(database)
        for call in (count, insert, together):
            for turns in range(40):
                cancelled = asyncio.create_task(call(database))
                for _ in range(turns):
                    await asyncio.sleep(0)
                cancelled.cancel()
                await asyncio.gather(cancelled, return_exceptions=True)
                del cancelled
                # The next caller gets its own answers: a connection that stayed in pipeline mode
                # would give none.
                assert await count(database) >= 0
            # Finds connections that nothing refers to, which is a warning and so an error.
            gc.collect()
        # None of the pool's connections is in autocommit mode.
        before = await count(database)
        with pytest.raises(RuntimeError, match="undo"):
            await insert(database, failing=True)
        assert await count(database) == before


async def test_closing_waits_for_a_cancelled_call(open_database: Open) -> None:
    """Otherwise its connection would never be closed."""
    reads = asyncio.Event()

    async def read(database: Database) -> None:
        async with database.reading():
            reads.set()
            try:
                await asyncio.Event().wait()
            finally:
                # On a busy machine a cancelled task continues later.
                await asyncio.sleep(0.1)

    async with open_database("stock_svc") as database:
        pool: Any = database._engine.pool
        task = asyncio.create_task(read(database))
        await reads.wait()
        task.cancel()
    assert pool.checkedout() == 0
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_closed_database_refuses_callers(open_database: Open) -> None:
    """Otherwise nothing would close their connections."""
    async with open_database("stock_svc") as database:
        pass
    for use in (database.reading, database.transaction, database.session):
        with pytest.raises(ClosedError):
            async with use():
                pass


async def test_a_transaction_that_outlives_the_block_leaves_no_connection(
    open_database: Open,
) -> None:
    """Its notification is sent by a connection that is closed after the last caller."""
    began = asyncio.Event()

    async def write(database: Database) -> None:
        async with database.transaction() as connection:
            notify_on_commit(connection, "test")
            began.set()
            await connection.execute(sa.select(sa.func.pg_sleep(0.1)))

    # testing/crashes.py keeps the connections of its dead processes.
    kept = {id(kept) for kept in gc.get_objects() if isinstance(kept, psycopg.AsyncConnection)}
    async with open_database("stock_svc") as database:
        task = asyncio.create_task(write(database))
        await began.wait()
    await task
    assert [
        connection
        for connection in gc.get_objects()
        if isinstance(connection, psycopg.AsyncConnection)
        and not connection.closed
        and id(connection) not in kept
        and connection.info.dbname in database.url
    ] == []


async def test_all_reads_of_a_snapshot_see_the_same_state(open_database: Open) -> None:
    async with open_database("stock_svc") as database, database.snapshot() as connection:
        before = await connection.execute(sa.select(sa.func.count()).select_from(events))
        await insert(database)
        after = await connection.execute(sa.select(sa.func.count()).select_from(events))
        assert (before.scalar_one(), after.scalar_one()) == (0, 0)
        assert await count(database) == 1
