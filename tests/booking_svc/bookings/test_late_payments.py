"""Payments that arrive after their holds have expired, with places for half of them."""

import asyncio
from datetime import timedelta

import pytest

from booking_svc.bookings.bookings import RefundStatus, Status
from testing.booking_harness import WINDOW, BookingHarness, an_offer


@pytest.mark.timeout(1_800)
async def test_half_of_the_late_payments_find_places(
    harness: BookingHarness, is_long: bool
) -> None:
    """Each is confirmed with its places, or refunded in full."""
    count = 1_000 if is_long else 40
    event = await harness.an_event(an_offer(capacity=count))
    late = []
    for _ in range(0, count, 10):
        late += await asyncio.gather(*(harness.place(event) for _ in range(10)))
    harness.clock.advance(WINDOW)
    while await harness.run_loops():
        pass
    # Other customers have held half of the places.
    for _ in range(0, count // 2, 10):
        await harness.place(event, quantity=min(10, count // 2), checkout=None)
    for booking in late:
        await harness.capture(booking)
    # A step that failed because the service was busy is repeated. The other customers' holds
    # expire later than that.
    for _ in range(5):
        harness.clock.advance(timedelta(minutes=1))
        while await harness.run_loops():
            pass
    await harness.process_refunds()
    ended = [await harness.booking(booking.booking_id) for booking in late]
    confirmed = [booking for booking in ended if booking.status is Status.CONFIRMED]
    refunded = [
        booking
        for booking in ended
        if booking.status is Status.EXPIRED
        and [(refund.amount, refund.status) for refund in booking.refunds]
        == [(booking.total, RefundStatus.PROCESSED)]
    ]
    assert (len(confirmed), len(refunded)) == (count // 2, count // 2)
    assert all(booking.refunds == () for booking in confirmed)
    assert await harness.available(event) == 0
    assert await harness.audit(event) == ()
