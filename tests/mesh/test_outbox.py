"""The outbox as a stream: nothing skipped, nothing twice, from any position on."""

import asyncio
import random
from contextlib import aclosing
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from mesh import outbox
from mesh.database import Database
from mesh.errors import DomainError, Reason
from mesh.outbox import Event, NewEvent, OutboxReader

NOW = datetime(2026, 3, 1, tzinfo=UTC)

metadata = sa.MetaData()
events = outbox.outbox_table(metadata)


@pytest.fixture
async def database(database: Database) -> Database:
    async with database.transaction() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.exec_driver_sql(outbox.NOTIFY_TRIGGER)
    return database


async def write(database: Database, *names: str, aggregate: UUID | None = None) -> None:
    async with database.transaction() as connection:
        await outbox.append(connection, events, some(*names, aggregate=aggregate), now=NOW)


def some(*names: str, aggregate: UUID | None = None) -> list[NewEvent]:
    return [NewEvent(aggregate or uuid4(), "made", name.encode()) for name in names]


async def read(database: Database, count: int, *, after: str = "") -> list[Event]:
    """The next so many events after a position."""
    found: list[Event] = []
    async with (
        asyncio.timeout(20),
        aclosing(OutboxReader(database, events).stream(after)) as stream,  # type: ignore[type-var]
    ):
        while len(found) < count:
            found += await anext(stream)
    return found


def names(found: list[Event]) -> list[str]:
    return [event.payload.decode() for event in found]


async def test_events_come_in_order_and_every_position_resumes(database: Database) -> None:
    written = [f"{number:02d}" for number in range(12)]
    for start in range(0, 12, 3):
        await write(database, *written[start : start + 3])
    found = await read(database, 12)
    assert names(found) == written
    for index, event in enumerate(found[:-1]):
        assert names(await read(database, 11 - index, after=event.position)) == written[index + 1 :]


async def test_a_transaction_that_commits_late_is_not_skipped(database: Database) -> None:
    reader = OutboxReader(database, events)
    async with asyncio.timeout(20), aclosing(reader.stream("")) as stream:  # type: ignore[type-var]
        async with database.transaction() as late:
            await outbox.append(late, events, some("late"), now=NOW)
            await write(database, "early")
            batch = asyncio.ensure_future(anext(stream))
            # Control: the row is there for anybody who reads by the serial number alone.
            async with database.transaction() as connection:
                visible = await connection.scalars(sa.select(events.c.payload))
                assert list(visible) == [b"early"]
            done, _ = await asyncio.wait({batch}, timeout=0.2)
            assert not done
        found = list(await batch)
        assert names(found) == ["late", "early"]
        await write(database, "next")
        assert names(list(await anext(stream))) == ["next"]


async def test_a_rolled_back_event_never_happened(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as connection:
            await outbox.append(connection, events, some("undone"), now=NOW)
            raise LookupError("the effect failed")

    with pytest.raises(LookupError):
        await fail()
    await write(database, "done")
    assert names(await read(database, 1)) == ["done"]


async def test_many_writers_lose_and_double_nothing(database: Database) -> None:
    """Aggregates that are written under their row lock keep their own order."""
    chance = random.Random(7)
    aggregates = [uuid4() for _ in range(4)]
    locks = {aggregate: asyncio.Lock() for aggregate in aggregates}
    per_aggregate = 15

    async def writer(aggregate: UUID) -> None:
        for number in range(per_aggregate):
            async with locks[aggregate], database.transaction() as connection:
                event = some(f"{aggregate}:{number:02d}", aggregate=aggregate)
                await outbox.append(connection, events, event, now=NOW)
                await asyncio.sleep(chance.random() * 0.005)

    reading = asyncio.create_task(read(database, len(aggregates) * per_aggregate))
    await asyncio.gather(*(writer(aggregate) for aggregate in aggregates))
    found = names(await reading)
    assert len(set(found)) == len(found) == len(aggregates) * per_aggregate
    for aggregate in aggregates:
        own = [name for name in found if name.startswith(str(aggregate))]
        assert own == sorted(own)
    assert names(await read(database, len(found))) == found


async def test_a_listening_reader_is_woken(database: Database) -> None:
    """Ten events, each written when the reader has read everything and waits.

    Without the wake-up each would come with the next poll, a second later.
    """
    reader = OutboxReader(database, events)
    listening = asyncio.create_task(reader.listen())
    async with asyncio.timeout(6), aclosing(reader.stream("")) as stream:  # type: ignore[type-var]
        for number in range(10):
            batch = asyncio.ensure_future(anext(stream))
            done, _ = await asyncio.wait({batch}, timeout=0.05)
            assert not done
            await write(database, str(number))
            assert names(list(await batch)) == [str(number)]
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening


@pytest.mark.parametrize("position", ["x", "1-2", "1-2-3-4", "a-b-c", "1-2-"])
async def test_a_foreign_position_is_refused(database: Database, position: str) -> None:
    with pytest.raises(DomainError) as refused:
        await read(database, 1, after=position)
    assert refused.value.reason is Reason.VALIDATION_FAILED
