"""The event stream resumes after any position and skips no event that commits late."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from boxoffice.payments.v1 import payment_event_service_pb2
from boxoffice.payments.v1.payment_event_service_pb2 import PaymentEvent
from mesh.db import outbox as mesh_outbox
from mesh.db.outbox import OutboxReader
from mesh.errors import DomainError, Reason
from payment_svc import outbox, payments, tables
from payment_svc.servicers.payment_events import PaymentEventServicer
from testing.payment_harness import NOW, SandboxHarness, an_order
from testing.waiting import wait_for_listener

SOON_SECONDS = 60.0
_ROUNDS = 8


class Follower:
    """Reads the stream from a position."""

    def __init__(
        self,
        harness: SandboxHarness,
        after_position: str = "",
        *,
        reader: OutboxReader | None = None,
    ) -> None:
        servicer = PaymentEventServicer(reader or OutboxReader(harness.database, tables.outbox))
        request = payment_event_service_pb2.StreamEventsRequest(after_position=after_position)
        self._batches = servicer.StreamEvents(request, None)  # type: ignore[arg-type]
        self._unread: list[PaymentEvent] = []

    async def take(self, count: int) -> list[PaymentEvent]:
        """The next events; fails after SOON_SECONDS."""
        async with asyncio.timeout(SOON_SECONDS):
            while len(self._unread) < count:
                batch = await anext(self._batches)
                assert batch.events
                self._unread += batch.events
        events, self._unread = self._unread[:count], self._unread[count:]
        return events

    async def close(self) -> None:
        assert isinstance(self._batches, AsyncIterator)
        await self._batches.aclose()  # type: ignore[attr-defined]


async def captured(harness: SandboxHarness, count: int) -> list[str]:
    """Pays a number of payments. Returns their ids in the order of capture."""
    paid = [await harness.open_paid() for _ in range(count)]
    return [str(payment.payment_id) for payment in paid]


async def test_the_stream_has_past_events_and_then_new_ones(harness: SandboxHarness) -> None:
    expected = await captured(harness, 2)
    follower = Follower(harness)
    assert [event.payment_id for event in await follower.take(2)] == expected
    waiting = asyncio.create_task(follower.take(1))
    (later,) = await captured(harness, 1)
    assert [event.payment_id for event in await waiting] == [later]
    await follower.close()


async def test_a_written_event_wakes_all_streams(
    harness: SandboxHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No poll: only the notification can wake them.
    monkeypatch.setattr(mesh_outbox, "_POLL_SECONDS", 3600.0)
    reader = OutboxReader(harness.database, tables.outbox)
    listening = asyncio.create_task(reader.listen())
    followers = [Follower(harness, reader=reader) for _ in range(3)]
    await wait_for_listener(harness.database)
    for _ in range(_ROUNDS):
        waiting = [asyncio.create_task(follower.take(1)) for follower in followers]
        await captured(harness, 1)
        await asyncio.gather(*waiting)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    for follower in followers:
        await follower.close()


async def test_the_stream_resumes_after_every_position(harness: SandboxHarness) -> None:
    expected = await captured(harness, 5)
    first = Follower(harness)
    events = await first.take(5)
    await first.close()
    positions = [event.position for event in events]
    assert [event.payment_id for event in events] == expected
    assert len(set(positions)) == 5
    for done, position in enumerate(positions[:-1], start=1):
        follower = Follower(harness, position)
        again = await follower.take(5 - done)
        assert [event.payment_id for event in again] == expected[done:]
        await follower.close()


async def test_a_transaction_that_commits_late_is_not_skipped(harness: SandboxHarness) -> None:
    """The event with the higher serial commits first. Both are read."""
    (before,) = await captured(harness, 1)
    late, early = await harness.open(), await harness.open()
    follower = Follower(harness)
    (first,) = await follower.take(1)
    assert first.payment_id == before

    async with harness.database.transaction() as open_transaction:
        await outbox.captured(open_transaction, late, method="card", now=NOW)
        async with harness.database.transaction() as connection:
            await outbox.captured(connection, early, method="card", now=NOW)
        # It does not wait for the other, which has the lower serial.
        (event,) = await follower.take(1)
        assert event.payment_id == str(early.payment_id)
        assert await harness.count(tables.outbox) == 2  # `before` and `early`
    (event,) = await follower.take(1)
    assert event.payment_id == str(late.payment_id)
    await follower.close()

    resumed = Follower(harness, first.position)
    assert [event.payment_id for event in await resumed.take(2)] == [
        str(late.payment_id),
        str(early.payment_id),
    ]
    await resumed.close()


async def test_a_reader_by_serial_alone_skips_the_late_event(harness: SandboxHarness) -> None:
    """Control: a reader that continues after the highest serial misses the event."""
    late, early = await harness.open(), await harness.open()
    sequence = tables.outbox.c.sequence

    async def naive_read(after: int) -> list[int]:
        async with harness.database.transaction() as connection:
            rows = await connection.execute(
                sa.select(sequence).where(sequence > after).order_by(sequence)
            )
            return list(rows.scalars())

    async with harness.database.transaction() as open_transaction:
        await outbox.captured(open_transaction, late, method="card", now=NOW)
        async with harness.database.transaction() as connection:
            await outbox.captured(connection, early, method="card", now=NOW)
        (highest,) = await naive_read(0)
    assert await naive_read(highest) == []
    assert len(await naive_read(0)) == 2


async def test_an_event_of_a_rolled_back_transaction_is_not_read(
    harness: SandboxHarness,
) -> None:
    (before,) = await captured(harness, 1)
    rolled_back = await harness.open()

    async def write_and_fail() -> None:
        async with harness.database.transaction() as connection:
            await outbox.captured(connection, rolled_back, method="card", now=NOW)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await write_and_fail()
    (after,) = await captured(harness, 1)
    follower = Follower(harness)
    assert [event.payment_id for event in await follower.take(2)] == [before, after]
    await follower.close()


async def test_concurrent_writers_keep_the_order_of_each_payment(
    harness: SandboxHarness,
) -> None:
    async def write(number: int) -> str:
        async with harness.database.transaction() as connection:
            payment = await payments.create(connection, order=an_order(), now=NOW)
            await outbox.failed(connection, payment, failure_code="first", now=NOW)
            await asyncio.sleep(0.002 * (number % 5))
            await outbox.captured(connection, payment, method="card", now=NOW)
            return str(payment.payment_id)

    follower = Follower(harness)
    reading = asyncio.create_task(follower.take(80))
    written = await asyncio.gather(*(write(number) for number in range(40)))
    events = await reading
    await follower.close()
    kinds: dict[str, list[str | None]] = {}
    for event in events:
        kinds.setdefault(event.payment_id, []).append(event.WhichOneof("event"))
    assert kinds == {payment_id: ["failed", "captured"] for payment_id in written}


async def test_an_invalid_position_is_refused(harness: SandboxHarness) -> None:
    follower = Follower(harness, "yesterday")
    with pytest.raises(DomainError) as refusal:
        await follower.take(1)
    assert refusal.value.reason is Reason.VALIDATION_FAILED
