"""The event stream: resumable at each position, and nothing that commits late is skipped."""

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
from testing.listening import is_listening
from testing.payment_harness import NOW, Desk, an_order

SOON_SECONDS = 60.0
_ROUNDS = 8


class Follower:
    """Reads the stream from a position."""

    def __init__(
        self, desk: Desk, after_position: str = "", *, reader: OutboxReader | None = None
    ) -> None:
        servicer = PaymentEventServicer(reader or OutboxReader(desk.database, tables.outbox))
        request = payment_event_service_pb2.StreamEventsRequest(after_position=after_position)
        self._batches = servicer.StreamEvents(request, None)  # type: ignore[arg-type]
        self._left: list[PaymentEvent] = []

    async def take(self, count: int) -> list[PaymentEvent]:
        """The next events; fails when they do not come soon."""
        async with asyncio.timeout(SOON_SECONDS):
            while len(self._left) < count:
                batch = await anext(self._batches)
                assert batch.events
                self._left += batch.events
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    async def close(self) -> None:
        assert isinstance(self._batches, AsyncIterator)
        await self._batches.aclose()  # type: ignore[attr-defined]


async def captured(desk: Desk, count: int) -> list[str]:
    """Pays so many payments; their ids in the order of their capture."""
    paid = [await desk.open_paid() for _ in range(count)]
    return [str(payment.payment_id) for payment in paid]


async def test_the_stream_tells_what_was_and_what_comes(desk: Desk) -> None:
    expected = await captured(desk, 2)
    follower = Follower(desk)
    assert [event.payment_id for event in await follower.take(2)] == expected
    waiting = asyncio.create_task(follower.take(1))
    (later,) = await captured(desk, 1)
    assert [event.payment_id for event in await waiting] == [later]
    await follower.close()


async def test_what_is_written_wakes_the_streams_at_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They would find it by themselves when they look again: here they never do.
    monkeypatch.setattr(mesh_outbox, "_POLL_SECONDS", 3600.0)
    reader = OutboxReader(desk.database, tables.outbox)
    listening = asyncio.create_task(reader.listen())
    followers = [Follower(desk, reader=reader) for _ in range(3)]
    await is_listening(desk.database)
    for _ in range(_ROUNDS):
        waiting = [asyncio.create_task(follower.take(1)) for follower in followers]
        await captured(desk, 1)
        await asyncio.gather(*waiting)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    for follower in followers:
        await follower.close()


async def test_it_resumes_after_every_position(desk: Desk) -> None:
    expected = await captured(desk, 5)
    first = Follower(desk)
    told = await first.take(5)
    await first.close()
    positions = [event.position for event in told]
    assert [event.payment_id for event in told] == expected
    assert len(set(positions)) == 5
    for done, position in enumerate(positions[:-1], start=1):
        follower = Follower(desk, position)
        again = await follower.take(5 - done)
        assert [event.payment_id for event in again] == expected[done:]
        await follower.close()


async def test_a_transaction_that_commits_late_is_not_skipped(desk: Desk) -> None:
    """The later event is decided first and waits; both come, the earlier one first."""
    (before,) = await captured(desk, 1)
    late, early = await desk.open(), await desk.open()
    follower = Follower(desk)
    (first,) = await follower.take(1)
    assert first.payment_id == before

    async with desk.database.transaction() as open_transaction:
        await outbox.captured(open_transaction, late, method="card", now=NOW)
        async with desk.database.transaction() as connection:
            await outbox.captured(connection, early, method="card", now=NOW)
        # It is not held up by the other, which has the lower serial number.
        (told,) = await follower.take(1)
        assert told.payment_id == str(early.payment_id)
        assert await desk.count(tables.outbox) == 2  # `before` and `early`
    (told,) = await follower.take(1)
    assert told.payment_id == str(late.payment_id)
    await follower.close()

    resumed = Follower(desk, first.position)
    assert [event.payment_id for event in await resumed.take(2)] == [
        str(late.payment_id),
        str(early.payment_id),
    ]
    await resumed.close()


async def test_by_serial_alone_the_late_one_would_be_skipped(desk: Desk) -> None:
    """Control: a reader that goes on after the highest serial it saw misses the event."""
    late, early = await desk.open(), await desk.open()
    sequence = tables.outbox.c.sequence

    async def naive_read(after: int) -> list[int]:
        async with desk.database.transaction() as connection:
            rows = await connection.execute(
                sa.select(sequence).where(sequence > after).order_by(sequence)
            )
            return list(rows.scalars())

    async with desk.database.transaction() as open_transaction:
        await outbox.captured(open_transaction, late, method="card", now=NOW)
        async with desk.database.transaction() as connection:
            await outbox.captured(connection, early, method="card", now=NOW)
        (seen,) = await naive_read(0)
    assert await naive_read(seen) == []
    assert len(await naive_read(0)) == 2


async def test_an_event_of_a_transaction_that_is_undone_is_never_told(desk: Desk) -> None:
    (before,) = await captured(desk, 1)
    undone = await desk.open()

    async def write_and_fail() -> None:
        async with desk.database.transaction() as connection:
            await outbox.captured(connection, undone, method="card", now=NOW)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await write_and_fail()
    (after,) = await captured(desk, 1)
    follower = Follower(desk)
    assert [event.payment_id for event in await follower.take(2)] == [before, after]
    await follower.close()


async def test_many_writers_at_once_are_all_told_in_the_order_of_each_payment(desk: Desk) -> None:
    async def write(number: int) -> str:
        async with desk.database.transaction() as connection:
            payment = await payments.create(connection, order=an_order(), now=NOW)
            await outbox.failed(connection, payment, failure_code="first", now=NOW)
            await asyncio.sleep(0.002 * (number % 5))
            await outbox.captured(connection, payment, method="card", now=NOW)
            return str(payment.payment_id)

    follower = Follower(desk)
    reading = asyncio.create_task(follower.take(80))
    written = await asyncio.gather(*(write(number) for number in range(40)))
    told = await reading
    await follower.close()
    kinds: dict[str, list[str | None]] = {}
    for event in told:
        kinds.setdefault(event.payment_id, []).append(event.WhichOneof("event"))
    assert kinds == {payment_id: ["failed", "captured"] for payment_id in written}


async def test_a_position_that_is_none_is_refused(desk: Desk) -> None:
    follower = Follower(desk, "yesterday")
    with pytest.raises(DomainError) as refusal:
        await follower.take(1)
    assert refusal.value.reason is Reason.VALIDATION_FAILED
