"""What happens by itself: the end of events, lost messages, old records."""

from datetime import datetime, timedelta

import sqlalchemy as sa

from booking_svc import housekeeping
from booking_svc.bookings import completion, reconciliation, saga_steps, state_machine
from booking_svc.bookings.bookings import Actor, PaymentStatus, RefundStatus, Status
from booking_svc.bookings.saga_steps import StepKind
from booking_svc.tables import idempotency_records
from mesh.ids import new_id
from testing.booking_harness import World
from tests.booking_svc.bookings.test_cancellation import a_confirmed


async def complete(world: World, limit: int = 100) -> int:
    async with world.database.transaction() as connection:
        return await completion.complete(connection, now=world.clock(), limit=limit)


async def test_confirmed_bookings_are_completed_after_the_event(world: World) -> None:
    event = await world.an_event()
    endless = await world.an_event(end_time=None)
    undated = await world.an_event(start_time=None, end_time=None)
    attended = [await a_confirmed(world, event) for _ in range(3)]
    given_up = await a_confirmed(world, event)
    await world.cancel(given_up.booking_id)
    others = [await a_confirmed(world, each) for each in (endless, undated)]
    assert event.end_time is not None
    assert event.start_time is not None
    world.clock.now = event.end_time - timedelta(seconds=1)
    assert await complete(world) == 0
    world.clock.now = event.end_time
    assert [await complete(world, limit=2) for _ in range(3)] == [2, 1, 0]
    for booking in attended:
        ended = await world.booking(booking.booking_id)
        assert ended.status is Status.COMPLETED
        assert ended.timeline[-1].actor is Actor.SYSTEM
    assert (await world.booking(given_up.booking_id)).status is Status.CANCELLED
    world.clock.now = event.start_time + timedelta(days=1)
    assert await complete(world) == 1
    found = [(await world.booking(booking.booking_id)).status for booking in others]
    assert found == [Status.COMPLETED, Status.CONFIRMED]


async def test_a_payment_whose_event_never_comes_is_asked_for(world: World) -> None:
    event = await world.an_event()
    paid, refused, idle = [await world.place(event) for _ in range(3)]
    assert paid.payment is not None
    assert refused.payment is not None
    world.payments.paid[paid.payment.payment_id] = paid.total
    world.payments.refused.add(refused.payment.payment_id)
    assert await world.reconciliation.ask_payments() == 0
    world.clock.advance(timedelta(minutes=1))
    async with world.database.reading() as connection:
        assert await reconciliation.oldest_due(connection) == world.clock()
    assert await world.reconciliation.ask_payments() == 3
    assert await world.reconciliation.ask_payments() == 0
    await world.settle()
    assert (await world.booking(paid.booking_id)).status is Status.CONFIRMED
    assert (await world.booking(refused.booking_id)).status is Status.FAILED
    # The event comes after all: nothing changes.
    await world.capture(paid)
    await world.settle()
    assert (await world.booking(paid.booking_id)).status is Status.CONFIRMED
    assert world.payments.refunds == {}
    # The one that is open is asked for less and less often, and after days no more.
    asked = 0
    for _ in range(24 * 12):
        world.clock.advance(timedelta(minutes=20))
        asked += await world.reconciliation.ask_payments()
    assert 15 < asked < 60
    assert (await world.booking(idle.booking_id)).payment is not None


async def test_a_refund_whose_event_never_comes_is_asked_for(world: World) -> None:
    event = await world.an_event()
    booking = await a_confirmed(world, event)
    await world.cancel(booking.booking_id)
    await world.settle()
    world.clock.advance(timedelta(minutes=5))
    assert await world.reconciliation.ask_payments() == 1
    ended = await world.booking(booking.booking_id)
    assert [refund.status for refund in ended.refunds] == [RefundStatus.PROCESSED]
    assert ended.payment is not None
    assert ended.payment.status is PaymentStatus.CAPTURED


async def test_a_booking_without_places_is_found(world: World) -> None:
    event = await world.an_event()
    good, bad = [await a_confirmed(world, event) for _ in range(2)]
    assert await world.reconciliation.compare_stock() == 0
    await world.stock.return_sold(event_id=event.event_id, reservation_id=bad.reservation_id)
    assert [await world.reconciliation.compare_stock() for _ in range(2)] == [1, 1]
    assert good.status is Status.CONFIRMED


async def test_answers_are_kept_for_three_days(world: World) -> None:
    event = await world.an_event()
    await world.place(event, key="k")
    world.clock.advance(timedelta(days=3))
    assert await housekeeping.sweep(world.database, world.clock) == 0
    world.clock.advance(timedelta(seconds=1))
    assert await housekeeping.sweep(world.database, world.clock) == 1
    async with world.database.reading() as connection:
        left = await connection.scalar(sa.select(sa.func.count()).select_from(idempotency_records))
    assert left == 0


async def test_a_step_waits_since_it_was_due(world: World) -> None:
    """Not since it was written down for later, and not since its last try."""
    booking = await world.place(await world.an_event())
    late = timedelta(seconds=60)

    async def oldest() -> datetime | None:
        async with world.database.reading() as connection:
            return await saga_steps.oldest_due(connection)

    assert await oldest() is None
    async with world.database.transaction() as connection:
        await state_machine.free_places(connection, booking=booking, now=world.clock(), due_in=late)
    due = world.clock() + late
    assert await oldest() == due
    async with world.database.transaction() as connection:
        payment_id = new_id()
        await saga_steps.enqueue(
            connection, booking.booking_id, StepKind.VOID, payment_id, now=world.clock()
        )
    owed_at = world.clock()
    assert await oldest() == owed_at
    world.clock.advance(timedelta(seconds=1))
    assert len(await world.steps.claim(limit=9)) == 1
    assert await oldest() == owed_at


async def test_a_step_that_another_process_leased_is_not_postponed(world: World) -> None:
    booking = await world.place(await world.an_event())
    async with world.database.transaction() as connection:
        await saga_steps.enqueue(
            connection, booking.booking_id, StepKind.VOID, new_id(), now=world.clock()
        )
    [late] = await world.steps.claim(limit=9)
    world.clock.now = late.lease_end
    [current] = await world.steps.claim(limit=9)
    for step, due_steps in ((late, 0), (current, 1)):
        async with world.database.transaction() as connection:
            await saga_steps.postpone(connection, step, until=world.clock(), error="busy")
        assert len(await world.steps.claim(limit=9)) == due_steps
