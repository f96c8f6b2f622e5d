"""Background loops: completion, reconciliation, housekeeping."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from booking_svc import housekeeping
from booking_svc.bookings import completion, reconciliation, saga_steps, state_machine, tables
from booking_svc.bookings.bookings import Actor, PaymentStatus, RefundStatus, Status
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.bookings.saga_steps import StepKind
from booking_svc.bookings.step_runner import Steps
from booking_svc.tables import idempotency_records
from mesh.db.jobs import Wakeup
from mesh.ids import new_id
from testing.booking_harness import BookingHarness
from tests.booking_svc.bookings.test_cancellation import a_confirmed


async def complete(harness: BookingHarness, limit: int = 100) -> int:
    async with harness.database.transaction() as connection:
        return await completion.complete(connection, now=harness.clock(), limit=limit)


async def test_confirmed_bookings_are_completed_after_the_event(harness: BookingHarness) -> None:
    event = await harness.an_event()
    endless = await harness.an_event(end_time=None)
    undated = await harness.an_event(start_time=None, end_time=None)
    attended = [await a_confirmed(harness, event) for _ in range(3)]
    cancelled = await a_confirmed(harness, event)
    await harness.cancel(cancelled.booking_id)
    others = [await a_confirmed(harness, other) for other in (endless, undated)]
    assert event.end_time is not None
    assert event.start_time is not None
    harness.clock.now = event.end_time - timedelta(seconds=1)
    assert await complete(harness) == 0
    harness.clock.now = event.end_time
    assert [await complete(harness, limit=2) for _ in range(3)] == [2, 1, 0]
    for booking in attended:
        ended = await harness.booking(booking.booking_id)
        assert ended.status is Status.COMPLETED
        assert ended.timeline[-1].actor is Actor.SYSTEM
    assert (await harness.booking(cancelled.booking_id)).status is Status.CANCELLED
    harness.clock.now = event.start_time + timedelta(days=1)
    assert await complete(harness) == 1
    statuses = [(await harness.booking(booking.booking_id)).status for booking in others]
    assert statuses == [Status.COMPLETED, Status.CONFIRMED]


async def test_reconciliation_finds_the_outcome_of_a_payment_whose_event_is_lost(
    harness: BookingHarness, caplog: pytest.LogCaptureFixture
) -> None:
    event = await harness.an_event()
    paid, refused, idle = [await harness.place(event) for _ in range(3)]
    assert paid.payment is not None
    assert refused.payment is not None
    assert idle.payment is not None
    harness.payments.paid[paid.payment.payment_id] = paid.total
    harness.payments.refused.add(refused.payment.payment_id)
    assert await reconciliation.ask_payments(harness.deps) == 0
    harness.clock.advance(timedelta(minutes=1))
    async with harness.database.reading() as connection:
        assert await reconciliation.oldest_due(connection) == harness.clock()
    assert await reconciliation.ask_payments(harness.deps) == 3
    assert await reconciliation.ask_payments(harness.deps) == 0
    await harness.run_until_idle()
    assert (await harness.booking(paid.booking_id)).status is Status.CONFIRMED
    declined = await harness.booking(refused.booking_id)
    assert (declined.status, declined.was_declined) == (Status.PENDING_PAYMENT, True)
    # The event arrives after all: nothing changes.
    await harness.capture(paid)
    await harness.run_until_idle()
    assert (await harness.booking(paid.booking_id)).status is Status.CONFIRMED
    assert harness.payments.refunds == {}
    # The pauses between checks of the open payment grow; after 3 days there are none.
    asked = 0
    for _ in range(24 * 12):
        harness.clock.advance(timedelta(minutes=20))
        asked += await reconciliation.ask_payments(harness.deps)
    assert 15 < asked < 60
    # Only of the payment without a final state; alert ReconciliationGaveUp counts it too.
    [given_up] = [record for record in caplog.records if "not checked again" in record.message]
    assert vars(given_up)["payment_id"] == str(idle.payment.payment_id)
    assert (await harness.booking(idle.booking_id)).payment is not None


async def test_reconciliation_finds_the_outcome_of_a_refund_whose_event_is_lost(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event)
    await harness.cancel(booking.booking_id)
    await harness.run_until_idle()
    harness.clock.advance(timedelta(minutes=5))
    assert await reconciliation.ask_payments(harness.deps) == 1
    ended = await harness.booking(booking.booking_id)
    assert [refund.status for refund in ended.refunds] == [RefundStatus.PROCESSED]
    assert ended.payment is not None
    assert ended.payment.status is PaymentStatus.CAPTURED


async def test_a_confirmed_booking_without_places_is_reported(harness: BookingHarness) -> None:
    event = await harness.an_event()
    good, bad = [await a_confirmed(harness, event) for _ in range(2)]
    assert await reconciliation.compare_stock(harness.deps) == 0
    await harness.stock.return_sold(event_id=event.event_id, reservation_id=bad.reservation_id)
    assert [await reconciliation.compare_stock(harness.deps) for _ in range(2)] == [1, 1]
    assert good.status is Status.CONFIRMED


async def test_a_booking_whose_places_are_being_exchanged_is_not_reported(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event, quantity=2)
    # The process dies after the ledger has exchanged the places, before the booking has them.
    fewer = [RequestedItem(event.offers[0].offer_id, 1, None)]
    await harness.die_at(2, harness.update(booking, items=fewer))
    assert (await harness.booking(booking.booking_id)).reservation_id == booking.reservation_id
    assert await harness.available(event) == 9
    assert await reconciliation.compare_stock(harness.deps) == 0
    harness.clock.advance(timedelta(minutes=1))
    await harness.run_until_idle()
    assert await reconciliation.compare_stock(harness.deps) == 0


async def test_answers_are_kept_for_three_days(harness: BookingHarness) -> None:
    event = await harness.an_event()
    await harness.place(event, key="k")
    harness.clock.advance(timedelta(days=3))
    assert await housekeeping.sweep(harness.database, harness.clock) == 0
    harness.clock.advance(timedelta(seconds=1))
    assert await housekeeping.sweep(harness.database, harness.clock) == 1
    async with harness.database.reading() as connection:
        remaining = await connection.scalar(
            sa.select(sa.func.count()).select_from(idempotency_records)
        )
    assert remaining == 0


async def test_a_step_waits_since_it_was_due(harness: BookingHarness) -> None:
    """Not since it was enqueued for later, and not since its last attempt."""
    booking = await harness.place(await harness.an_event())
    late = timedelta(seconds=60)

    async def oldest() -> datetime | None:
        async with harness.database.reading() as connection:
            return await saga_steps.oldest_due(connection)

    assert await oldest() is None
    async with harness.database.transaction() as connection:
        await state_machine.release_places(
            connection, booking=booking, now=harness.clock(), due_in=late
        )
    due = harness.clock() + late
    assert await oldest() == due
    async with harness.database.transaction() as connection:
        payment_id = new_id()
        await saga_steps.enqueue(
            connection, booking.booking_id, StepKind.VOID, payment_id, now=harness.clock()
        )
    enqueued_at = harness.clock()
    assert await oldest() == enqueued_at
    harness.clock.advance(timedelta(seconds=1))
    assert len(await harness.steps.claim(limit=9)) == 1
    assert await oldest() == enqueued_at


async def test_a_paid_booking_is_confirmed_while_many_other_steps_wait(
    harness: BookingHarness,
) -> None:
    """Others hang, e.g. while payment_svc is away: they hold up no booking whose hold would end."""
    event = await harness.an_event()
    hanging = await harness.place(event)
    paid = await harness.place(event)
    is_open, has_begun = asyncio.Event(), asyncio.Event()

    class Payments:
        def __getattr__(self, method: str) -> Any:
            return getattr(harness.payments, method)

        async def void(self, *, payment_id: UUID) -> Any:
            has_begun.set()
            await is_open.wait()
            return await harness.payments.void(payment_id=payment_id)

    async with harness.database.transaction() as connection:
        for _ in range(100):
            await saga_steps.enqueue(
                connection, hanging.booking_id, StepKind.VOID, new_id(), now=harness.clock()
            )
    payments: Any = Payments()
    wake = Wakeup()
    deps = replace(harness.deps, payments=payments, on_steps_enqueued=wake.ring)
    running = asyncio.create_task(Steps(deps, wake).run())
    try:
        async with asyncio.timeout(60):
            await has_begun.wait()
            # Due after all others.
            harness.clock.advance(timedelta(seconds=1))
            await harness.capture(paid)
            while (await harness.booking(paid.booking_id)).status is not Status.CONFIRMED:
                await asyncio.sleep(0.01)
    finally:
        is_open.set()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_every_kind_of_step_is_urgent_or_not() -> None:
    compiled = str(tables.is_urgent_step)
    assert {kind for kind in StepKind if f"'{kind}'" in compiled} == set(saga_steps.URGENT)


async def test_a_step_that_another_process_leased_is_not_postponed(
    harness: BookingHarness,
) -> None:
    booking = await harness.place(await harness.an_event())
    async with harness.database.transaction() as connection:
        await saga_steps.enqueue(
            connection, booking.booking_id, StepKind.VOID, new_id(), now=harness.clock()
        )
    [late] = await harness.steps.claim(limit=9)
    harness.clock.now = late.lease_end
    [current] = await harness.steps.claim(limit=9)
    for step, due_steps in ((late, 0), (current, 1)):
        async with harness.database.transaction() as connection:
            await saga_steps.postpone(connection, step, until=harness.clock(), error="busy")
        assert len(await harness.steps.claim(limit=9)) == due_steps
