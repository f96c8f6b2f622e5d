"""The record of an idempotency key: one effect, one answer, whoever comes first."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from boxoffice.bookings.v1 import booking_service_pb2
from mesh.db import idempotent
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites, Key, Record
from mesh.errors import DomainError, Reason

NOW = datetime(2026, 3, 1, tzinfo=UTC)

metadata = sa.MetaData()
records = idempotent.idempotency_table(metadata)


@pytest.fixture
async def database(database: Database) -> Database:
    async with database.transaction() as connection:
        await connection.run_sync(metadata.create_all)
    return database


def a_key(*, key: str = "k", owner: str = "mira", reason: str = "") -> Key:
    request = booking_service_pb2.CancelBookingRequest(booking_id="b", reason=reason)
    return idempotent.key_for("CancelBooking", owner, key, request)


async def claim(database: Database, key: Key, resource_id: UUID) -> bool:
    async with database.transaction() as connection:
        return await idempotent.claim(connection, records, key, resource_id=resource_id, now=NOW)


async def find(database: Database, key: Key) -> Record | None:
    async with database.transaction() as connection:
        return await idempotent.find(connection, records, key)


async def test_of_many_at_once_one_is_first_and_all_find_it(database: Database) -> None:
    attempts = [uuid4() for _ in range(10)]
    results = await asyncio.gather(
        *(claim(database, a_key(), resource_id) for resource_id in attempts)
    )
    assert sorted(results) == [False] * 9 + [True]
    first = attempts[results.index(True)]
    assert await find(database, a_key()) == Record(first, None)


async def test_a_claim_that_is_rolled_back_leaves_nothing(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as connection:
            assert await idempotent.claim(
                connection, records, a_key(), resource_id=uuid4(), now=NOW
            )
            raise LookupError("the effect failed")

    with pytest.raises(LookupError):
        await fail()
    assert await find(database, a_key()) is None
    assert await claim(database, a_key(), uuid4())


async def test_a_second_claim_waits_for_the_first_to_be_decided(database: Database) -> None:
    async with database.transaction() as connection:
        assert await idempotent.claim(connection, records, a_key(), resource_id=uuid4(), now=NOW)
        second = asyncio.create_task(claim(database, a_key(), uuid4()))
        done, _ = await asyncio.wait({second}, timeout=0.1)
        assert not done
    assert await second is False


async def test_the_key_of_another_request_is_refused(database: Database) -> None:
    await claim(database, a_key(), uuid4())
    with pytest.raises(DomainError) as refused:
        await find(database, a_key(reason="changed my mind"))
    assert refused.value.reason is Reason.IDEMPOTENCY_KEY_REUSED


async def test_a_key_belongs_to_one_owner_and_one_method(database: Database) -> None:
    await claim(database, a_key(), uuid4())
    assert await find(database, a_key(owner="noor")) is None
    request = booking_service_pb2.CancelBookingRequest(booking_id="b")
    assert await find(database, idempotent.key_for("PlaceBooking", "mira", "k", request)) is None
    assert a_key().reference != a_key(owner="noor").reference
    assert len(a_key(key="x" * 128).reference) == 64


async def test_the_first_final_answer_stays(database: Database) -> None:
    resource = uuid4()
    await claim(database, a_key(), resource)
    for answer in (b"first", b"second"):
        async with database.transaction() as connection:
            await idempotent.finish(connection, records, a_key(), response=answer)
    assert await find(database, a_key()) == Record(resource, b"first")


async def test_old_records_are_forgotten(database: Database) -> None:
    await claim(database, a_key(), uuid4())
    async with database.transaction() as connection:
        assert await idempotent.forget(connection, records, before=NOW) == 0
        later = NOW + timedelta(days=3)
        assert await idempotent.forget(connection, records, before=later) == 1
    assert await find(database, a_key()) is None


@pytest.fixture
def writes(database: Database) -> IdempotentWrites:
    return IdempotentWrites(database, records, lambda: NOW)


async def test_a_second_call_while_the_first_runs_is_refused(writes: IdempotentWrites) -> None:
    async with writes.exclusive(a_key()):
        with pytest.raises(DomainError) as refused:
            async with writes.exclusive(a_key(reason="another request")):
                raise AssertionError("two calls run at once")
        assert refused.value.reason is Reason.IDEMPOTENCY_IN_PROGRESS
        assert refused.value.retry_after_seconds == 1
        async with writes.exclusive(a_key(owner="noor")):
            pass
    async with writes.exclusive(a_key()):
        pass


async def test_an_effect_runs_once_and_its_answer_is_repeated(writes: IdempotentWrites) -> None:
    answers = iter([b"first", b"second"])

    async def effect(_: AsyncConnection) -> tuple[UUID, bytes]:
        return uuid4(), next(answers)

    assert await writes.run_once(a_key(), effect) == b"first"
    assert await writes.run_once(a_key(), effect) == b"first"
    assert await writes.run_once(None, effect) == b"second"


async def test_a_refused_effect_leaves_no_record(
    database: Database, writes: IdempotentWrites
) -> None:
    async def refuse(_: AsyncConnection) -> tuple[UUID, bytes]:
        raise DomainError(Reason.SOLD_OUT, "no places are available")

    with pytest.raises(DomainError):
        await writes.run_once(a_key(), refuse)
    assert await find(database, a_key()) is None


async def test_of_two_processes_the_later_returns_the_answer_of_the_first(
    database: Database, writes: IdempotentWrites
) -> None:
    """The later one began before the first committed: its own effect is rolled back."""
    other = IdempotentWrites(database, records, lambda: NOW)
    effects: list[bytes] = []

    async def first(_: AsyncConnection) -> tuple[UUID, bytes]:
        return uuid4(), b"first"

    async def later(connection: AsyncConnection) -> tuple[UUID, bytes]:
        effects.append(await other.run_once(a_key(), first))
        return uuid4(), b"later"

    assert await writes.run_once(a_key(), later) == b"first"
    assert effects == [b"first"]


async def test_a_record_without_an_answer_gets_it_from_a_repetition(
    database: Database, writes: IdempotentWrites
) -> None:
    """Versions before IdempotentWrites stored refunds without their answers."""
    await claim(database, a_key(), uuid4())

    async def effect(_: AsyncConnection) -> tuple[UUID, bytes]:
        return uuid4(), b"answer"

    assert await writes.run_once(a_key(), effect) == b"answer"
    record = await find(database, a_key())
    assert record is not None
    assert record.response == b"answer"
