"""All bookings of a cancelled event are refunded, once, wherever a process dies."""

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
from testing.booking_harness import BookingHarness, ProcessDiedError, an_offer


async def a_sold_event(harness: BookingHarness, count: int) -> tuple[Event, list[Booking]]:
    """An event with `count` confirmed bookings."""
    event = await harness.an_event(an_offer(capacity=count + 10, per_customer_limit=count))
    bookings = []
    for _ in range(count):
        booking = await harness.place(event)
        await harness.capture(booking)
        bookings.append(booking)
    await harness.run_until_idle()
    return event, bookings


async def progress(harness: BookingHarness, event: Event) -> Progress:
    async with harness.database.reading() as connection:
        return await event_cancellation.progress(connection, event_id=event.event_id)


@pytest.mark.parametrize("seed", range(2))
async def test_all_bookings_are_refunded_once_wherever_the_process_dies(
    harness: BookingHarness, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(event_cancellation, "BATCH", 4)
    rng = random.Random(seed)
    event, bookings = await a_sold_event(harness, 9)
    held = await harness.place(event)
    await harness.cancel_event(event, "Monsoon")
    begun = await progress(harness, event)
    assert (begun.state, begun.bookings_left) == (State.CANCELLING, 10)
    deaths = 0
    while (state := await progress(harness, event)).bookings_left or deaths < 3:
        harness.crashes.passed = 0
        harness.crashes.at = rng.randrange(1, 6) if deaths < 3 else None
        try:
            if rng.random() < 0.3:
                # Died in the middle of a batch: its transaction is rolled back.
                async with harness.database.transaction() as connection:
                    await event_cancellation.cancel_batch(connection, now=harness.clock())
                    raise ProcessDiedError
            await harness.cancel_batch()
            await harness.run_steps()
        except ProcessDiedError:
            deaths += 1
            # Its steps are due again when their leases end.
            harness.clock.advance(timedelta(minutes=2))
        if not state.bookings_left:
            deaths = 3
    harness.crashes.at = None
    for _ in range(5):
        harness.clock.advance(timedelta(minutes=2))
        await harness.run_until_idle()
    await harness.cancel_batch()
    assert sorted(payment for payment, _ in harness.payments.refunds.values()) == sorted(
        booking.payment.payment_id for booking in bookings if booking.payment is not None
    )
    assert {amount for _, amount in harness.payments.refunds.values()} == {bookings[0].total}
    for booking in (*bookings, held):
        assert (await harness.booking(booking.booking_id)).status is Status.CANCELLED
    assert await harness.available(event) == event.total_capacity
    assert (await progress(harness, event)).state is State.REFUNDING
    await harness.process_refunds()
    done = await progress(harness, event)
    assert (done.state, done.refunds_processed) == (State.DONE, 9)
    assert (done.bookings_found, done.bookings_cancelled) == (10, 10)
    assert done.refunded.amount_minor == 9 * bookings[0].total.amount_minor
    assert not await harness.audit(event)


async def test_a_booking_that_is_inserted_late_is_cancelled_too(harness: BookingHarness) -> None:
    """It was in flight when the event was cancelled."""
    event, _ = await a_sold_event(harness, 1)
    other = await harness.an_event()
    await harness.cancel_event(event)
    await harness.cancel_batch()
    assert await harness.cancel_batch() is None
    for later in (timedelta(minutes=1), timedelta(days=30)):
        late = await harness.place(other)
        async with harness.database.transaction() as connection:
            await connection.execute(
                sa.update(bookings_table)
                .where(bookings_table.c.booking_id == late.booking_id)
                .values(event_id=event.event_id)
            )
        harness.clock.advance(later)
        assert await harness.cancel_batch() == 1
        assert (await harness.booking(late.booking_id)).status is Status.CANCELLED
        assert await harness.cancel_batch() is None


async def test_a_customer_who_cancels_before_the_loop_is_refunded_in_full(
    harness: BookingHarness,
) -> None:
    """Also when the policy would no longer grant a refund."""
    event, [booking] = await a_sold_event(harness, 1)
    assert event.start_time is not None
    harness.clock.now = event.start_time - timedelta(hours=1)
    await harness.cancel_event(event)
    async with harness.database.reading() as connection:
        preview = await cancellation.preview(
            connection, booking_id=booking.booking_id, owner=None, now=harness.clock()
        )
    assert (preview.refundable, preview.amount, preview.percent) == (True, booking.total, 100)
    cancelled = await harness.cancel(booking.booking_id)
    assert [refund.amount for refund in cancelled.refunds] == [booking.total]
    await harness.cancel_batch()
    await harness.run_until_idle()
    assert [amount for _, amount in harness.payments.refunds.values()] == [booking.total]


async def test_bookings_of_a_cancelled_event_are_never_completed(harness: BookingHarness) -> None:
    """The event ends before the loop runs."""
    event, [booking] = await a_sold_event(harness, 1)
    await harness.cancel_event(event)
    harness.clock.advance(timedelta(days=60))
    async with harness.database.transaction() as connection:
        assert await completion.complete(connection, now=harness.clock(), limit=10) == 0
    await harness.cancel_batch()
    ended = await harness.booking(booking.booking_id)
    assert (ended.status, ended.refunds[0].amount) == (Status.CANCELLED, booking.total)


async def test_only_a_cancelled_event_has_a_cancellation(harness: BookingHarness) -> None:
    event = await harness.an_event()
    with pytest.raises(DomainError) as refusal:
        await progress(harness, event)
    assert refusal.value.reason is Reason.EVENT_STATE_INVALID
    with pytest.raises(DomainError) as refusal:
        async with harness.database.reading() as connection:
            await event_cancellation.progress(connection, event_id=new_id())
    assert refusal.value.reason is Reason.EVENT_NOT_FOUND


async def test_cancelling_again_changes_nothing(harness: BookingHarness) -> None:
    event, _ = await a_sold_event(harness, 1)
    for _ in range(2):
        await harness.cancel_event(event, "once")
        await harness.cancel_batch()
    assert (await progress(harness, event)).bookings_cancelled == 1
