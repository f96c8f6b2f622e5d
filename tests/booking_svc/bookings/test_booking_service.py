"""BookingService's messages, called as the server's interceptor calls it."""

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from booking_svc.bookings.servicers.bookings import BookingServicer
from boxoffice.bookings.v1 import booking_pb2, booking_service_pb2
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from mesh.rpc import call
from mesh.rpc.call import Caller
from mesh.rpc.policy import Access
from testing.booking_harness import BookingHarness, an_offer

pb2 = booking_service_pb2
Booking = booking_pb2.Booking


class Client:
    """Calls as one user; each call is a task of its own, as on the server."""

    def __init__(
        self, harness: BookingHarness, user_id: UUID, role: Access = Access.CUSTOMER
    ) -> None:
        self._servicer = BookingServicer(harness.deps)
        self._caller = Caller("gateway", user_id, role)

    async def __call__(self, method: str, request: Any, *, key: str | None = None) -> Any:
        async def serve() -> Any:
            call.begin(request_id="r", idempotency_key=key)
            call.identify(self._caller)
            return await getattr(self._servicer, method)(request, None)

        return await asyncio.create_task(serve())


async def refused(reason: Reason, work: Awaitable[Any]) -> None:
    with pytest.raises(DomainError) as refusal:
        await work
    assert refusal.value.reason is reason


async def test_a_booking_from_placing_to_cancellation_in_messages(harness: BookingHarness) -> None:
    production = new_id()
    first, second = [
        await harness.an_event(an_offer(price=Money(price, "INR")), production_id=production)
        for price in (150_000, 200_000)
    ]
    user = new_id()
    mine, other = Client(harness, user), Client(harness, new_id())
    staff = Client(harness, new_id(), Access.STAFF)
    offer_id = str(first.offers[0].offer_id)

    def item(quantity: int) -> Any:
        return pb2.PlaceBookingRequest.Item(offer_id=offer_id, quantity=quantity)

    placed = await mine(
        "PlaceBooking",
        pb2.PlaceBookingRequest(event_id=str(first.event_id), items=[item(3)]),
        key="place",
    )
    booking_id = placed.booking_id
    updated = await mine(
        "UpdateBooking",
        pb2.UpdateBookingRequest(
            booking_id=booking_id, items=[item(4)], attendees=["Asha Rao"], note="aisle, please"
        ),
    )
    assert (updated.status, updated.total.amount_minor) == (Booking.HELD, 600_000)
    assert (list(updated.attendees), updated.note) == (["Asha Rao"], "aisle, please")
    paying = await mine(
        "CheckoutBooking",
        pb2.CheckoutBookingRequest(booking_id=booking_id, provider="sandbox"),
        key="checkout",
    )
    assert paying.status == Booking.PENDING_PAYMENT
    await harness.capture(await harness.booking(UUID(booking_id)))
    await harness.run_until_idle()
    for method, request in (
        ("GetBooking", pb2.GetBookingRequest(booking_id=booking_id)),
        ("CancelBooking", pb2.CancelBookingRequest(booking_id=booking_id)),
    ):
        await refused(Reason.BOOKING_NOT_FOUND, other(method, request))
    preview = await mine(
        "PreviewCancellation",
        pb2.PreviewCancellationRequest(booking_id=booking_id, keep=[f"{offer_id}:3"]),
    )
    assert (preview.refundable, preview.percent, preview.amount.amount_minor) == (True, 97, 145_500)
    fewer = await mine(
        "UpdateBooking", pb2.UpdateBookingRequest(booking_id=booking_id, items=[item(3)]), key="f"
    )
    assert [refund.amount.amount_minor for refund in fewer.refunds] == [145_500]
    waiting = await mine(
        "RescheduleBooking",
        pb2.RescheduleBookingRequest(
            booking_id=booking_id,
            event_id=str(second.event_id),
            checkout=pb2.Checkout(provider="sandbox"),
        ),
        key="r",
    )
    assert waiting.event_id == str(first.event_id)
    assert waiting.change.difference.amount_minor == 150_000
    assert waiting.change.payment.payment_url
    await harness.capture_payment(
        await harness.booking(UUID(booking_id)),
        UUID(waiting.change.payment.payment_id),
        Money(150_000, "INR"),
    )
    await harness.run_until_idle()
    request = pb2.CancelBookingRequest(booking_id=booking_id, reason="cannot come")
    harness.clock.advance(timedelta(days=1))
    cancelled = await staff("CancelBooking", request, key="c")
    assert await staff("CancelBooking", request, key="c") == cancelled
    await refused(Reason.ALREADY_CANCELLED, mine("CancelBooking", request))
    assert cancelled.event_id == str(second.event_id)
    assert cancelled.status == Booking.CANCELLED
    assert cancelled.timeline[-1].actor == booking_pb2.TimelineEntry.STAFF
    assert sum(refund.amount.amount_minor for refund in cancelled.refunds) == 145_500 + 582_000
    assert cancelled.refund == cancelled.refunds[-1]
    await refused(
        Reason.ALREADY_CANCELLED,
        mine("PreviewCancellation", pb2.PreviewCancellationRequest(booking_id=booking_id)),
    )
