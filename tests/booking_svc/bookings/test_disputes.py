"""A dispute of a payment is in the booking's timeline and changes nothing else."""

import pytest

from booking_svc.bookings.bookings import PaymentStatus, Status
from booking_svc.clients import ports
from booking_svc.clients.ports import DisputeStatus
from mesh.money import Money
from testing.booking_harness import BookingHarness


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (DisputeStatus.WON, "dispute won: the payment is kept"),
        (DisputeStatus.LOST, "dispute lost: the bank took the payment back"),
    ],
)
async def test_a_dispute_is_in_the_timeline(
    harness: BookingHarness, end: DisputeStatus, text: str
) -> None:
    event = await harness.an_event()
    booking = await harness.place(event)
    await harness.capture(booking)
    await harness.run_until_idle()
    assert booking.payment is not None
    for status in (DisputeStatus.OPEN, end):
        await harness.deliver(
            ports.Disputed(
                booking.booking_id,
                booking.payment.payment_id,
                booking.total,
                "fraudulent",
                status,
                Money(0 if status is DisputeStatus.WON else 150_000, "INR"),
            )
        )
    disputed = await harness.booking(booking.booking_id)
    assert [entry.reason for entry in disputed.timeline[-2:]] == [
        "payment disputed by the bank",
        text,
    ]
    assert disputed.status is Status.CONFIRMED
    assert disputed.payment is not None
    assert disputed.payment.status is PaymentStatus.CAPTURED
    assert disputed.refunds == ()
    assert await harness.audit(event) == ()
