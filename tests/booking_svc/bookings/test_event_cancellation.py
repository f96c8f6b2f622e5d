"""A cancelled event gives everybody their money back, once, wherever a process dies."""

import random
from datetime import timedelta

import pytest
import sqlalchemy as sa

from booking_svc.bookings import cancellation, completion, event_cancellation
from booking_svc.bookings.bookings import Booking, Status
from booking_svc.bookings.tables import bookings as bookings_table
from booking_svc.catalogue.event_cancellations import Progress, State
from booking_svc.catalogue.events import Event
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from testing.booking_harness import ProcessDiedError, World, an_offer


async def a_sold_event(world: World, count: int) -> tuple[Event, list[Booking]]:
    """An event with so many confirmed bookings."""
    event = await world.an_event(an_offer(capacity=count + 10, per_customer_limit=count))
    bookings = []
    for _ in range(count):
        booking = await world.place(event)
        await world.capture(booking)
        bookings.append(booking)
    await world.settle()
    return event, bookings


async def progress(world: World, event: Event) -> Progress:
    async with world.database.reading() as connection:
        return await event_cancellation.progress(connection, event_id=event.event_id)


@pytest.mark.parametrize("seed", range(2))
async def test_everybody_is_refunded_once_wherever_the_process_dies(
    world: World, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(event_cancellation, "BATCH", 4)
    rng = random.Random(seed)
    event, bookings = await a_sold_event(world, 9)
    held = await world.place(event)
    await world.cancel_event(event, "Monsoon")
    begun = await progress(world, event)
    assert (begun.state, begun.bookings_left) == (State.CANCELLING, 10)
    deaths = 0
    while (state := await progress(world, event)).bookings_left or deaths < 3:
        world.crashes.passed = 0
        world.crashes.at = rng.randrange(1, 6) if deaths < 3 else None
        try:
            if rng.random() < 0.3:
                # Died in the middle of a batch: its transaction is undone.
                async with world.database.transaction() as connection:
                    await event_cancellation.cancel_batch(connection, now=world.clock())
                    raise ProcessDiedError
            await world.cancel_batch()
            await world.take_steps()
        except ProcessDiedError:
            deaths += 1
            # Its steps are taken by another one, once their claims have lapsed.
            world.clock.advance(timedelta(minutes=2))
        if not state.bookings_left:
            deaths = 3
    world.crashes.at = None
    for _ in range(5):
        world.clock.advance(timedelta(minutes=2))
        await world.settle()
    await world.cancel_batch()
    assert sorted(payment for payment, _ in world.payments.refunds.values()) == sorted(
        booking.payment.payment_id for booking in bookings if booking.payment is not None
    )
    assert {amount for _, amount in world.payments.refunds.values()} == {bookings[0].total}
    for booking in (*bookings, held):
        assert (await world.booking(booking.booking_id)).status is Status.CANCELLED
    assert await world.available(event) == event.total_capacity
    assert (await progress(world, event)).state is State.REFUNDING
    await world.process_refunds()
    done = await progress(world, event)
    assert (done.state, done.refunds_processed) == (State.DONE, 9)
    assert (done.bookings_found, done.bookings_cancelled) == (10, 10)
    assert done.refunded.amount_minor == 9 * bookings[0].total.amount_minor
    assert not await world.audit(event)


async def test_a_booking_that_comes_up_late_is_cancelled_too(world: World) -> None:
    """It was under way when the event was cancelled."""
    event, _ = await a_sold_event(world, 1)
    other = await world.an_event()
    await world.cancel_event(event)
    await world.cancel_batch()
    assert await world.cancel_batch() is None
    for later in (timedelta(minutes=1), timedelta(days=30)):
        late = await world.place(other)
        async with world.database.transaction() as connection:
            await connection.execute(
                sa.update(bookings_table)
                .where(bookings_table.c.booking_id == late.booking_id)
                .values(event_id=event.event_id)
            )
        world.clock.advance(later)
        assert await world.cancel_batch() == 1
        assert (await world.booking(late.booking_id)).status is Status.CANCELLED
        assert await world.cancel_batch() is None


async def test_whoever_cancels_before_the_loop_comes_gets_everything_back(world: World) -> None:
    """Also when the policy would grant nothing any more."""
    event, [booking] = await a_sold_event(world, 1)
    assert event.start_time is not None
    world.clock.now = event.start_time - timedelta(hours=1)
    await world.cancel_event(event)
    async with world.database.reading() as connection:
        preview = await cancellation.preview(
            connection, booking_id=booking.booking_id, owner=None, now=world.clock()
        )
    assert (preview.refundable, preview.amount, preview.percent) == (True, booking.total, 100)
    cancelled = await world.cancel(booking.booking_id)
    assert [refund.amount for refund in cancelled.refunds] == [booking.total]
    await world.cancel_batch()
    await world.settle()
    assert [amount for _, amount in world.payments.refunds.values()] == [booking.total]


async def test_what_is_cancelled_is_never_completed(world: World) -> None:
    """The event's end comes before the loop does."""
    event, [booking] = await a_sold_event(world, 1)
    await world.cancel_event(event)
    world.clock.advance(timedelta(days=60))
    async with world.database.transaction() as connection:
        assert await completion.complete(connection, now=world.clock(), limit=10) == 0
    await world.cancel_batch()
    ended = await world.booking(booking.booking_id)
    assert (ended.status, ended.refunds[0].amount) == (Status.CANCELLED, booking.total)


async def test_only_a_cancelled_event_has_a_cancellation(world: World) -> None:
    event = await world.an_event()
    with pytest.raises(DomainError) as refusal:
        await progress(world, event)
    assert refusal.value.reason is Reason.EVENT_STATE_INVALID
    with pytest.raises(DomainError) as refusal:
        async with world.database.reading() as connection:
            await event_cancellation.progress(connection, event_id=new_id())
    assert refusal.value.reason is Reason.EVENT_NOT_FOUND


async def test_cancelling_again_changes_nothing(world: World) -> None:
    event, _ = await a_sold_event(world, 1)
    for _ in range(2):
        await world.cancel_event(event, "once")
        await world.cancel_batch()
    assert (await progress(world, event)).bookings_cancelled == 1
