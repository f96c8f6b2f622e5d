"""The allowed moves of a booking, and that concurrent moves exclude each other."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import sqlalchemy as sa

from booking_svc.bookings import state_machine, tables
from booking_svc.bookings.bookings import Actor, By, Status
from mesh.errors import DomainError, Reason
from testing.booking_harness import BookingHarness
from testing.waiting import wait_for_blocked
from tests.booking_svc.bookings.test_cancellation import a_confirmed

# HELD → CONFIRMED is a free booking; EXPIRED and FAILED are confirmed by a late payment.
MOVES = {
    (Status.HELD, Status.PENDING_PAYMENT),
    (Status.HELD, Status.CONFIRMED),
    (Status.HELD, Status.EXPIRED),
    (Status.HELD, Status.CANCELLED),
    (Status.PENDING_PAYMENT, Status.CONFIRMED),
    (Status.PENDING_PAYMENT, Status.EXPIRED),
    (Status.PENDING_PAYMENT, Status.CANCELLED),
    (Status.PENDING_PAYMENT, Status.FAILED),
    (Status.CONFIRMED, Status.COMPLETED),
    (Status.CONFIRMED, Status.CANCELLED),
    (Status.EXPIRED, Status.CONFIRMED),
    (Status.FAILED, Status.CONFIRMED),
    (Status.EXPIRED, Status.CANCELLED),
    (Status.FAILED, Status.CANCELLED),
}


async def test_a_booking_makes_only_the_allowed_moves(harness: BookingHarness) -> None:
    booking = await harness.place(await harness.an_event())
    made = set()
    for source in Status:
        for target in Status:
            with suppress(DomainError):
                transition = state_machine.moved(
                    replace(booking, status=source),
                    to=target,
                    reason="",
                    by=By(Actor.SYSTEM),
                    now=harness.clock(),
                )
                made.add((source, transition.after.status))
    assert made == MOVES


async def test_of_two_concurrent_cancellations_one_refunds(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event, quantity=4)
    async with harness.database.transaction() as connection:
        matches = tables.bookings.c.booking_id == booking.booking_id
        await connection.execute(sa.select(tables.bookings).where(matches).with_for_update())
        both = [asyncio.create_task(harness.cancel(booking.booking_id)) for _ in range(2)]
        await wait_for_blocked(harness.database, count=2)
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    [refusal] = [outcome for outcome in outcomes if isinstance(outcome, DomainError)]
    assert refusal.reason is Reason.ALREADY_CANCELLED
    await harness.run_until_idle()
    assert booking.payment is not None
    assert harness.payments.refunded_minor(booking.payment.payment_id) == 582_000
    assert await harness.available(event) == 10
    assert await harness.audit(event) == ()
