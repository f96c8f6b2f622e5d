"""AUTO: how the target follows the calls, and that it counts those of all processes, once."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

import pytest
import pytest_asyncio
import sqlalchemy as sa

from booking_svc.queueing.steering import (
    BUSY,
    INTERVAL_SECONDS,
    LEAST_TARGET,
    MOST_TARGET,
    Sales,
    SalesMonitor,
    next_target,
    take_sales,
)
from booking_svc.queueing.tables import queue_sales
from mesh.db.database import Database
from mesh.errors import Reason
from mesh.ids import new_id
from testing.booking_harness import BookingHarness
from testing.queue_harness import QueueHarness, an_event_with_room


@pytest.mark.parametrize(
    ("target", "active", "sales", "expected"),
    [
        # It grows by 10, or by 5 %, while most of it is in use.
        (50, 50, Sales(100), 60),
        (50, 40, Sales(100), 60),
        (50, 39, Sales(100), 50),
        (1_000, 900, Sales(100), 1_050),
        # 2 % of refusals and 5 % of slow calls are tolerated, and no more.
        (100, 100, Sales(100, busy=2), 110),
        (100, 100, Sales(100, busy=3), 70),
        (100, 100, Sales(100, slow=5), 110),
        (100, 100, Sales(100, slow=6), 70),
        # Also while few of the target are active.
        (100, 0, Sales(1, slow=1), 70),
        # Nothing is known without a call.
        (100, 100, Sales(), 100),
        (LEAST_TARGET, 5, Sales(1, busy=1), LEAST_TARGET),
        (6, 6, Sales(1, busy=1), LEAST_TARGET),
        (MOST_TARGET, MOST_TARGET, Sales(1), MOST_TARGET),
    ],
)
def test_the_next_target(target: float, active: int, sales: Sales, expected: float) -> None:
    assert next_target(target, active=active, sales=sales) == pytest.approx(expected)


def test_an_overloaded_sale_slows_down_to_the_least_and_recovers() -> None:
    target, falls = 200.0, 0
    while target > LEAST_TARGET:
        target = next_target(target, active=int(target), sales=Sales(50, busy=50))
        falls += 1
    assert falls == 11
    for _ in range(10):
        target = next_target(target, active=int(target), sales=Sales(50))
    assert target == LEAST_TARGET + 100


@pytest.mark.parametrize("reason", list(Reason))
def test_what_counts_as_busy(reason: Reason) -> None:
    is_about_load = reason in {
        Reason.OVERLOADED,
        Reason.DEADLINE_EXCEEDED,
        Reason.DEPENDENCY_UNAVAILABLE,
    }
    assert (reason in BUSY) == is_about_load


@pytest_asyncio.fixture
async def database(
    open_database: Callable[[str], AbstractAsyncContextManager[Database]],
) -> AsyncIterator[Database]:
    async with open_database("booking_svc") as opened:
        yield opened


async def taken(database: Database) -> Sales:
    async with database.transaction() as connection:
        return await take_sales(connection)


async def test_the_calls_of_all_processes_are_counted_once(database: Database) -> None:
    quiet, first, second = SalesMonitor(), SalesMonitor(), SalesMonitor()
    for seconds in (0.1, 1.1):
        first.add(seconds, None)
    await first.store(database)
    first.add(0.1, Reason.OVERLOADED)
    second.add(0.1, Reason.SOLD_OUT)
    for monitor in (quiet, first, second, first):
        await monitor.store(database)
    # One row for each process that has calls, however often it stores them.
    async with database.reading() as connection:
        assert await connection.scalar(sa.select(sa.func.count()).select_from(queue_sales)) == 2
    assert await taken(database) == Sales(calls=4, busy=1, slow=1)
    await first.store(database)
    assert await taken(database) == Sales()


async def test_counts_that_cannot_be_stored_are_stored_later(database: Database) -> None:
    monitor = SalesMonitor()
    monitor.add(2.0, None)
    async with database.transaction() as connection:
        await connection.execute(sa.text("ALTER TABLE queue_sales RENAME TO away"))
    try:
        with pytest.raises(sa.exc.SQLAlchemyError):
            await monitor.store(database)
    finally:
        async with database.transaction() as connection:
            await connection.execute(sa.text("ALTER TABLE away RENAME TO queue_sales"))
    monitor.add(0.1, None)
    await monitor.store(database)
    assert await taken(database) == Sales(calls=2, slow=1)


async def test_the_process_that_admits_follows_what_another_one_refuses(
    database: Database, open_database: Callable[[str], AbstractAsyncContextManager[Database]]
) -> None:
    async with open_database("stock_svc") as ledger:
        harness = BookingHarness(database, ledger)
        admitting = QueueHarness.of(harness)
        other = QueueHarness(database, harness.clock)
        event = await an_event_with_room(harness, admitting, per_minute=None)
        harness.clock.now = event.sale_start_time - timedelta(minutes=1)
        for _ in range(60):
            await admitting.join(event, new_id())
        await admitting.open_sale(event)

        async def target_after(refusal: Reason | None) -> float:
            for _ in range(50):
                other.monitor.add(0.1, refusal)
            await other.store_reports()
            await admitting.advance(timedelta(seconds=INTERVAL_SECONDS))
            admitting.queues.rooms.forget(event.event_id)
            room = await admitting.queues.room(event_id=event.event_id, to_staff=True)
            return room.active_target

        before = (await admitting.queues.room(event_id=event.event_id, to_staff=True)).active_target
        assert before == 50
        assert await target_after(Reason.OVERLOADED) == pytest.approx(35)
        assert await target_after(Reason.OVERLOADED) == pytest.approx(24.5)
        assert await target_after(None) == pytest.approx(34.5)
