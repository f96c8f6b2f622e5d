"""Leases, fencing, pauses, fairness and dead jobs on a real PostgreSQL; the loop and its workers."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.database import Database
from mesh.db.jobs import Backoff, JobQueue, Wakeup, Workers, run_forever

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LEASE = timedelta(minutes=1)
HOUR_SECONDS = 3600

metadata = sa.MetaData()
_Time = sa.DateTime(timezone=True)

owners = sa.Table("owners", metadata, sa.Column("owner", sa.Text, primary_key=True))

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("owner", sa.Text, sa.ForeignKey(owners.c.owner), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("status", sa.Text, nullable=False, server_default="PENDING"),
    sa.Column("due_time", _Time),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("error", sa.Text),
    sa.Column("create_time", _Time, nullable=False),
    sa.Index("jobs_due_time_idx", "due_time", postgresql_where=sa.text("status = 'PENDING'")),
    sa.Index(
        "jobs_owner_due_time_idx",
        "owner",
        "due_time",
        postgresql_where=sa.text("status = 'PENDING'"),
    ),
)

is_pending = jobs.c.status == "PENDING"
queue = JobQueue(jobs, is_pending=is_pending, pauses=[timedelta(seconds=5), timedelta(minutes=1)])
fair_queue = JobQueue(jobs, is_pending=is_pending, group=jobs.c.owner)


@pytest.fixture
async def database(database: Database) -> Database:
    async with database.transaction() as connection:
        await connection.run_sync(metadata.create_all)
    return database


async def enqueue(database: Database, owner: str = "mira", *, count: int = 1) -> None:
    """Jobs that are due now, the highest number first."""
    async with database.transaction() as connection:
        await connection.execute(sa.insert(owners).values(owner=owner))
        for number in range(count):
            due_time = NOW - timedelta(seconds=number)
            await connection.execute(
                sa.insert(jobs).values(
                    owner=owner, number=number, due_time=due_time, create_time=due_time
                )
            )


async def lease(
    connection: AsyncConnection, *, now: datetime = NOW, limit: int = 100
) -> Sequence[sa.Row[Any]]:
    return await queue.lease(connection, now=now, until=now + LEASE, limit=limit)


async def lease_once(database: Database, *, now: datetime = NOW) -> Sequence[sa.Row[Any]]:
    async with database.transaction() as connection:
        return await lease(connection, now=now)


async def stored(database: Database) -> sa.Row[Any]:
    async with database.reading() as connection:
        return (await connection.execute(sa.select(jobs))).one()


async def test_two_leases_at_the_same_time_take_different_jobs(database: Database) -> None:
    await enqueue(database, count=6)
    async with database.transaction() as connection, database.transaction() as other:
        first = await lease(connection, limit=4)
        async with asyncio.timeout(60):
            second = await lease(other, limit=4)
    assert (len(first), len(second)) == (4, 2)
    assert {row.number for row in (*first, *second)} == set(range(6))


async def test_the_jobs_that_are_due_longest_are_leased_first(database: Database) -> None:
    await enqueue(database, count=6)
    async with database.transaction() as connection:
        # An index scan has this order even without ORDER BY.
        await connection.execute(sa.text("SET LOCAL enable_indexscan = off"))
        assert {row.number for row in await lease(connection, limit=2)} == {4, 5}


async def test_a_job_is_not_leased_before_it_is_due(database: Database) -> None:
    await enqueue(database)
    assert await lease_once(database, now=NOW - timedelta(microseconds=1)) == []


async def test_a_job_is_leased_again_when_its_lease_ends(database: Database) -> None:
    await enqueue(database)
    [row] = await lease_once(database)
    assert (row.attempts, row.due_time) == (1, NOW + LEASE)
    assert await lease_once(database, now=NOW + LEASE - timedelta(microseconds=1)) == []
    [row] = await lease_once(database, now=NOW + LEASE)
    assert row.attempts == 2


async def test_a_lease_writes_values_and_returns_columns_of_joined_tables(
    database: Database,
) -> None:
    await enqueue(database, "mira", count=2)
    await enqueue(database, "zoe")
    async with database.transaction() as connection:
        [row] = await queue.lease_where(
            connection,
            now=NOW,
            until=NOW + LEASE,
            limit=9,
            where=[jobs.c.owner == "zoe"],
            joined_on=[jobs.c.owner == owners.c.owner],
            returning=[owners.c.owner, jobs.c.error],
            error="none yet",
        )
    assert tuple(row) == ("zoe", "none yet")


async def test_an_outcome_after_the_lease_was_lost_is_refused(database: Database) -> None:
    await enqueue(database)
    [late] = await lease_once(database)
    [current] = await lease_once(database, now=late.due_time)

    async def end(lease_end: datetime | None) -> bool:
        async with database.transaction() as connection:
            return await queue.reschedule(
                connection, "mira", 0, due_time=None, lease_end=lease_end, status="DONE"
            )

    assert not await end(late.due_time)
    assert (await stored(database)).due_time == current.due_time
    assert await end(current.due_time)
    # A job that has ended stays as it is, also for those who hold no lease.
    assert not await end(None)
    assert (await stored(database)).status == "DONE"


async def test_a_postponed_job_is_due_at_its_new_time(database: Database) -> None:
    await enqueue(database)
    [row] = await lease_once(database)
    later = NOW + timedelta(seconds=10)
    async with database.transaction() as connection:
        assert await queue.reschedule(
            connection, "mira", 0, due_time=later, lease_end=row.due_time, error="busy"
        )
    assert await lease_once(database, now=later - timedelta(microseconds=1)) == []
    [row] = await lease_once(database, now=later)
    assert (row.attempts, row.error) == (2, "busy")


async def test_a_deleted_job_is_gone_and_no_other(database: Database) -> None:
    await enqueue(database, count=2)
    async with database.transaction() as connection:
        await queue.delete(connection, "mira", 0)
    assert (await stored(database)).number == 1


async def test_a_job_is_dead_after_its_last_pause_and_its_row_is_kept(database: Database) -> None:
    await enqueue(database)
    attempt_times, now = [], NOW
    while leased := await lease_once(database, now=now):
        [row] = leased
        attempt_times.append(now - NOW)
        retry_time = queue.retry_time(row.attempts, now=now)
        async with database.transaction() as connection:
            await queue.reschedule(
                connection,
                row.owner,
                row.number,
                due_time=retry_time,
                lease_end=row.due_time,
                status="DEAD" if retry_time is None else "PENDING",
            )
        now = retry_time or now + timedelta(days=365)
    assert attempt_times == [timedelta(0), timedelta(seconds=5), timedelta(seconds=65)]
    row = await stored(database)
    assert (row.status, row.due_time, row.attempts) == ("DEAD", None, 3)


def test_a_job_is_dead_at_its_maximum_age() -> None:
    aging = JobQueue(jobs, pauses=Backoff(1, 60), max_age=timedelta(days=3))
    almost = timedelta(days=3) - timedelta(microseconds=1)
    assert aging.retry_time(1000, now=NOW, age=almost) == NOW + timedelta(minutes=1)
    assert aging.retry_time(1, now=NOW, age=timedelta(days=3)) is None


async def test_pauses_double_up_to_their_maximum_in_python_and_in_sql(database: Database) -> None:
    backoff = Backoff(0.5, 300)
    attempts = (0, 1, 2, 3, 10, 11, 1_000_000)
    expected = [0.5, 0.5, 1, 2, 256, 300, 300]
    assert [backoff.after(attempt).total_seconds() for attempt in attempts] == expected
    async with database.reading() as connection:
        for attempt, seconds in zip(attempts, expected, strict=True):
            pause = await connection.scalar(sa.select(backoff.after_column(sa.literal(attempt))))
            assert pause == timedelta(seconds=seconds)


def test_jitter_lengthens_a_pause_by_up_to_a_tenth() -> None:
    times = [queue.retry_time(2, now=NOW, jitter=jitter) for jitter in (0, 0.5, 1)]
    assert times == [NOW + timedelta(seconds=seconds) for seconds in (60, 63, 66)]


async def test_groups_share_a_lease(database: Database) -> None:
    await enqueue(database, "mira", count=50)
    await enqueue(database, "zoe", count=1)
    await enqueue(database, "adam", count=3)
    await enqueue(database, "busy", count=3)

    async def lease_fairly(limit: int) -> Counter[str]:
        async with database.transaction() as connection:
            rows = await fair_queue.lease_where(
                connection,
                now=NOW,
                until=NOW + LEASE,
                limit=limit,
                per_group=2,
                busy_groups=["busy"],
            )
            assert all(row.number >= 48 for row in rows if row.owner == "mira")
            await connection.rollback()
        return Counter(row.owner for row in rows)

    assert await lease_fairly(limit=100) == {"mira": 2, "zoe": 1, "adam": 2}
    assert (await lease_fairly(limit=4)).total() == 4


async def test_a_lease_reads_the_partial_index(database: Database) -> None:
    """50 groups with 400 jobs each, most of which have ended."""
    many_jobs = sa.text(
        "INSERT INTO jobs (owner, number, status, due_time, create_time) SELECT owner, number,"
        " CASE WHEN number < 40 THEN 'PENDING' ELSE 'DONE' END, :now - number * interval '1 s',"
        " :now FROM owners, generate_series(1, 400) AS number"
    )
    async with database.transaction() as connection:
        await connection.execute(
            sa.insert(owners), [{"owner": f"owner {number}"} for number in range(50)]
        )
        await connection.execute(many_jobs, {"now": NOW})
        await connection.execute(sa.text("ANALYZE jobs, owners"))
        plan = await plan_of_lease(connection, queue)
        assert "Index Scan using jobs_due_time_idx" in plan, plan
        assert "Seq Scan on jobs" not in plan, plan
        # A table whose queue is fair has the other index only.
        await connection.execute(sa.text("DROP INDEX jobs_due_time_idx"))
        plan = await plan_of_lease(connection, fair_queue)
        assert "Index Scan using jobs_owner_due_time_idx" in plan, plan
        assert "Seq Scan on jobs" not in plan, plan


async def plan_of_lease(connection: AsyncConnection, leasing: JobQueue) -> str:
    executed: list[tuple[str, Any]] = []

    def note(_1: Any, _2: Any, statement: str, parameters: Any, _3: Any, _4: bool) -> None:
        executed.append((statement, parameters))

    sa.event.listen(connection.sync_connection, "before_cursor_execute", note)
    await leasing.lease_where(connection, now=NOW, until=NOW + LEASE, limit=9)
    sa.event.remove(connection.sync_connection, "before_cursor_execute", note)
    [(statement, parameters)] = executed
    explained = await connection.exec_driver_sql("EXPLAIN " + statement, parameters)
    return "\n".join(explained.scalars())


async def test_oldest_due_is_the_start_of_the_longest_wait_of_a_pending_job(
    database: Database,
) -> None:
    async def oldest(waiting: JobQueue) -> datetime | None:
        async with database.reading() as connection:
            return await waiting.oldest_due(connection)

    assert await oldest(queue) is None
    await enqueue(database, count=3)
    assert await oldest(queue) == NOW - timedelta(seconds=2)
    async with database.transaction() as connection:
        await queue.reschedule(connection, "mira", 2, due_time=None, status="DONE")
    assert await oldest(queue) == NOW - timedelta(seconds=1)
    by_due_time = JobQueue(jobs, is_pending=is_pending, waiting_since=jobs.c.due_time)
    await lease_once(database)
    assert await oldest(by_due_time) == NOW + LEASE


@asynccontextmanager
async def running(loop: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(loop)
    try:
        async with asyncio.timeout(60):
            yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class Turns:
    """A turn that returns the next of `results`; False when none are left."""

    def __init__(self, *results: int | Exception) -> None:
        self.results = list(results)
        self.count = 0

    async def __call__(self) -> int:
        self.count += 1
        result = self.results.pop(0) if self.results else 0
        if isinstance(result, Exception):
            raise result
        return result

    async def reach(self, count: int) -> None:
        while self.count < count:
            await asyncio.sleep(0.001)


async def test_a_wake_up_ends_the_idle_wait(database: Database) -> None:
    wakeup, turns = Wakeup(), Turns()
    async with running(run_forever("test", turns, wake=wakeup, idle_seconds=HOUR_SECONDS)):
        for count in range(1, 4):
            await turns.reach(count)
            wakeup.ring()
        await turns.reach(4)
    assert turns.count == 4


async def test_the_loop_repeats_without_a_wake_up_after_the_idle_time() -> None:
    turns = Turns()
    async with running(run_forever("test", turns, idle_seconds=0.001)):
        await turns.reach(3)


async def test_the_loop_goes_on_at_once_while_there_are_jobs_and_after_a_failure() -> None:
    turns = Turns(3, RuntimeError("database is away"), True)
    async with running(run_forever("test", turns, idle_seconds=HOUR_SECONDS)):
        await turns.reach(4)


async def test_a_wakeup_rung_before_the_wait_is_not_lost() -> None:
    wakeup = Wakeup()
    wakeup.ring()
    async with asyncio.timeout(1):
        await wakeup.wait(60)
    await wakeup.wait(0.001)


class Jobs:
    """Jobs that workers lease and run: each ends when `finish` is set."""

    def __init__(self, *names: str) -> None:
        self.due = list(names)
        self.leases: list[int] = []
        self.running: set[str] = set()
        self.cancelled: set[str] = set()
        self.finish = {name: asyncio.Event() for name in names}

    async def lease(self, limit: int) -> Sequence[str]:
        self.leases.append(limit)
        leased, self.due = self.due[:limit], self.due[limit:]
        return leased

    async def run(self, name: str) -> None:
        self.running.add(name)
        try:
            await self.finish[name].wait()
            if name.startswith("failing"):
                raise RuntimeError(name)
        except asyncio.CancelledError:
            self.cancelled.add(name)
            raise
        finally:
            self.running.remove(name)

    async def reach(self, *names: str) -> None:
        while self.running != set(names):
            await asyncio.sleep(0.001)


async def test_jobs_that_hang_hold_up_no_other_and_places_are_filled_when_half_are_free() -> None:
    work, wakeup = Jobs("a", "b", "hangs", "d", "e"), Wakeup()
    async with Workers(wakeup, size=4) as workers:
        loop = run_forever(
            "test",
            lambda: no_more(workers.fill(work.lease, work.run)),
            wake=wakeup,
            idle_seconds=HOUR_SECONDS,
        )
        async with running(loop):
            await work.reach("a", "b", "hangs", "d")
            work.finish["a"].set()
            await work.reach("b", "hangs", "d")
            assert work.due == ["e"]
            work.finish["b"].set()
            await work.reach("hangs", "d", "e")
    assert work.leases == [4, 2]


async def no_more(filling: Awaitable[int]) -> bool:
    await filling
    return False


async def test_workers_lease_no_jobs_without_a_free_place() -> None:
    work = Jobs("a", "b")
    async with Workers(Wakeup(), size=1) as workers:
        assert [await workers.fill(work.lease, work.run) for _ in range(2)] == [1, 0]
        assert work.leases == [1]


async def test_a_group_with_all_its_places_taken_is_busy() -> None:
    work, wakeup = Jobs("mira 1", "mira 2", "zoe 1"), Wakeup()
    async with Workers(wakeup, size=9, per_group=2) as workers:
        await workers.fill(work.lease, work.run, group=lambda name: name.split()[0])
        assert workers.busy_groups == ["mira"]
        work.finish["mira 1"].set()
        # Its end wakes the loop, because another job of the group may be due.
        async with asyncio.timeout(60):
            await wakeup.wait(HOUR_SECONDS)
        assert workers.busy_groups == []


async def test_jobs_are_cancelled_when_the_loop_stops() -> None:
    work = Jobs("a", "b")
    async with Workers(Wakeup(), size=2) as workers:
        await workers.fill(work.lease, work.run)
        await work.reach("a", "b")
    assert work.cancelled == {"a", "b"}
    assert work.running == set()


async def test_a_job_that_fails_is_logged_and_frees_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = Jobs("failing", "b")
    async with Workers(Wakeup(), size=1) as workers:
        await workers.fill(work.lease, work.run)
        work.finish["failing"].set()
        await workers.join()
        assert await workers.fill(work.lease, work.run) == 1
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info
