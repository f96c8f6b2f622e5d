"""Changes of items and event: what is exchanged, refunded, and paid in addition."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from booking_svc.bookings import cancellation
from booking_svc.bookings.bookings import Actor, Booking, By, Status
from booking_svc.bookings.cancellation import StaffRefund
from booking_svc.bookings.outbox import Rescheduled, Updated
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Failed
from mesh.errors import Reason
from mesh.ids import new_id
from mesh.money import Money
from testing.booking_harness import HOLD, START, WINDOW, BookingHarness, an_offer
from tests.booking_svc.bookings.test_cancellation import DAY, a_confirmed, refused
from tests.booking_svc.bookings.test_outbox import outbox_events

STAFF = By(Actor.STAFF, new_id())


def places(event: Event, quantity: int) -> list[RequestedItem]:
    return [RequestedItem(event.offers[0].offer_id, quantity, None)]


async def two_nights(
    harness: BookingHarness, price: int = 150_000, *, first_price: int = 150_000, **changes: Any
) -> tuple[Event, Event]:
    production = new_id()
    first = await harness.an_event(
        an_offer(price=Money(first_price, "INR")), production_id=production
    )
    second = await harness.an_event(
        an_offer(price=Money(price, "INR")),
        production_id=production,
        start_time=START + timedelta(days=40),
        end_time=START + timedelta(days=40, hours=3),
        **changes,
    )
    return first, second


def net(harness: BookingHarness, booking: Booking) -> int:
    """The captured minus the refunded amount; the booking is the only one that is paid."""
    returned = sum(amount.amount_minor for _, amount in harness.payments.refunds.values())
    return sum(amount.amount_minor for amount in harness.payments.paid.values()) - returned


async def pay_difference(harness: BookingHarness, booking: Booking) -> None:
    change = (await harness.booking(booking.booking_id)).change
    assert change is not None
    await harness.capture_payment(booking, change.payment_id, change.difference)


async def test_a_held_booking_gets_other_items(harness: BookingHarness) -> None:
    event = await harness.an_event(an_offer(), an_offer(name="Balcony", pool="balcony"))
    held = await harness.place(event, checkout=None, quantity=2)
    harness.clock.advance(timedelta(minutes=2))
    balcony = RequestedItem(event.offers[1].offer_id, 3, None)
    changed = await harness.update(held, items=[balcony])
    assert changed.status is Status.HELD
    assert changed.total == Money(450_000, "INR")
    assert changed.hold_expire_time == held.hold_expire_time
    available = (await harness.stock.availability(event_id=event.event_id, with_seats=False)).offers
    assert [available[offer.offer_id] for offer in event.offers] == [10, 7]
    paying = await harness.checkout(held.booking_id)
    await harness.capture(paying)
    await harness.run_until_idle()
    assert (await harness.booking(held.booking_id)).status is Status.CONFIRMED
    assert await harness.audit(event) == ()


async def test_more_places_than_available_change_nothing(harness: BookingHarness) -> None:
    event = await harness.an_event(an_offer(capacity=5))
    held = await harness.place(event, checkout=None, quantity=2)
    await harness.place(event, checkout=None, quantity=2)
    await refused(Reason.SOLD_OUT, harness.update(held, items=places(event, 4)))
    assert (await harness.booking(held.booking_id)).items == held.items
    # Its own places count as available.
    changed = await harness.update(held, items=places(event, 3))
    assert changed.items[0].quantity == 3
    assert await harness.available(event) == 0
    harness.clock.advance(HOLD)
    await harness.run_until_idle()
    assert await harness.available(event) == 5
    await refused(Reason.BOOKING_STATE_INVALID, harness.update(held, items=places(event, 1)))


@pytest.mark.parametrize(("days", "refund"), [(20, 291_000), (10, 150_000), (5, 0)])
async def test_removed_items_of_a_confirmed_booking_are_refunded_by_the_policy(
    harness: BookingHarness, days: int, refund: int
) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event, quantity=3)
    assert event.start_time is not None
    harness.clock.now = event.start_time - days * DAY
    async with harness.database.reading() as connection:
        shown = await cancellation.preview(
            connection,
            booking_id=booking.booking_id,
            owner=None,
            now=harness.clock(),
            keep=places(event, 1),
        )
    assert shown.amount == Money(refund, "INR")
    changed = await harness.update(booking, items=places(event, 1))
    assert (changed.status, changed.total) == (Status.CONFIRMED, Money(150_000, "INR"))
    await harness.run_until_idle()
    assert await harness.available(event) == 9
    assert net(harness, booking) == 450_000 - refund
    change = (await outbox_events(harness, 3))[2].change
    assert change == Updated(Money(450_000, "INR"), Money(refund, "INR") if refund else None)
    # The rest is cancelled by the same policy, with its own price.
    harness.clock.now = START
    await harness.cancel(booking.booking_id)
    await harness.run_until_idle()
    assert net(harness, booking) == 450_000 - refund - 145_500
    assert await harness.available(event) == 10
    assert await harness.audit(event) == ()


async def test_what_cannot_be_changed(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event, quantity=2)
    await refused(Reason.BOOKING_NOT_FOUND, harness.update(booking, owner=new_id(), note="x"))
    await refused(Reason.BOOKING_STATE_INVALID, harness.update(booking, items=places(event, 3)))
    paying = await harness.place(event)
    await refused(Reason.BOOKING_STATE_INVALID, harness.update(paying, items=places(event, 3)))
    assert event.start_time is not None
    harness.clock.now = event.start_time - timedelta(hours=1)
    await refused(Reason.CANCELLATION_CLOSED, harness.update(booking, note="late"))
    noted = await harness.update(booking, note="late", attendees=["Asha Rao"], by=STAFF)
    assert (noted.note, noted.attendees) == ("late", ("Asha Rao",))
    fewer = await harness.update(booking, items=places(event, 1), by=STAFF)
    assert (fewer.total, fewer.refunds) == (Money(150_000, "INR"), ())


async def test_staff_decide_the_refund_of_a_change(harness: BookingHarness) -> None:
    first, second = await two_nights(harness, price=100_000)
    booking = await a_confirmed(harness, first, quantity=2)
    assert first.start_time is not None
    harness.clock.now = first.start_time - DAY
    fewer = await harness.update(
        booking, items=places(first, 1), by=STAFF, staff_refund=StaffRefund(80, None)
    )
    assert fewer.refunds[-1].amount == Money(120_000, "INR")
    too_much = StaffRefund(None, Money(80_001, "INR"))
    refusal = await refused(
        Reason.VALIDATION_FAILED,
        harness.reschedule(booking, second, by=STAFF, staff_refund=too_much),
    )
    assert [violation.field for violation in refusal.violations] == ["refund_amount.amount_minor"]
    all_left = StaffRefund(None, Money(80_000, "INR"))
    moved = await harness.reschedule(booking, second, by=STAFF, staff_refund=all_left)
    assert moved.refunds[-1].amount == Money(80_000, "INR")
    await harness.run_until_idle()
    assert net(harness, booking) == 100_000


async def test_names_of_attendees(harness: BookingHarness) -> None:
    event = await harness.an_event()
    paying = await harness.place(event, quantity=2)
    assert paying.status is Status.PENDING_PAYMENT
    named = await harness.update(paying, attendees=["Asha Rao", "Ravi Rao"])
    assert named.attendees == ("Asha Rao", "Ravi Rao")
    refusal = await refused(
        Reason.VALIDATION_FAILED, harness.update(paying, attendees=["A", "B", "C"])
    )
    assert [violation.field for violation in refusal.violations] == ["attendees"]
    await refused(Reason.BOOKING_STATE_INVALID, harness.update(paying, note="x", attendees=["A"]))
    await harness.capture(paying)
    await harness.run_until_idle()
    # After the cut-off of the policy, until the event starts.
    assert event.start_time is not None
    harness.clock.now = event.start_time - timedelta(seconds=1)
    corrected = await harness.update(paying, attendees=["Asha Rao", "Ravi Das"])
    assert corrected.attendees == ("Asha Rao", "Ravi Das")
    fewer = await harness.update(paying, items=places(event, 1), by=STAFF)
    assert fewer.attendees == ("Asha Rao",)
    assert (await harness.update(paying, attendees=[])).attendees == ()
    harness.clock.now = event.start_time
    await refused(Reason.CANCELLATION_CLOSED, harness.update(paying, attendees=["Late"]))
    assert (await harness.update(paying, attendees=["Late"], by=STAFF)).attendees == ("Late",)


async def test_the_same_key_changes_once(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event, quantity=3)
    first = await harness.update(booking, items=places(event, 2), key="k")
    assert await harness.update(booking, items=places(event, 2), key="k") == first
    await refused(
        Reason.IDEMPOTENCY_KEY_REUSED, harness.update(booking, items=places(event, 1), key="k")
    )
    assert len((await harness.booking(booking.booking_id)).refunds) == 1


@pytest.mark.parametrize(("days", "refund"), [(20, 97_000), (10, 50_000), (5, 0)])
async def test_a_cheaper_event_is_refunded_by_the_policy(
    harness: BookingHarness, days: int, refund: int
) -> None:
    first, second = await two_nights(harness, price=100_000)
    booking = await a_confirmed(harness, first, quantity=2)
    assert first.start_time is not None
    harness.clock.now = first.start_time - days * DAY
    moved = await harness.reschedule(booking, second, checkout=None)
    assert (moved.event_id, moved.total) == (second.event_id, Money(200_000, "INR"))
    await harness.run_until_idle()
    assert net(harness, booking) == 300_000 - refund
    assert (await harness.available(first), await harness.available(second)) == (10, 8)
    change = (await outbox_events(harness, 3))[2].change
    money = Money(refund, "INR") if refund else None
    assert change == Rescheduled(first.event_id, booking.total, money)
    assert moved.cancellation_policy == booking.cancellation_policy
    assert [*await harness.audit(first), *await harness.audit(second)] == []


async def test_from_a_free_event_to_a_paid_one_needs_a_provider(harness: BookingHarness) -> None:
    first, second = await two_nights(harness, price=100_000, first_price=0)
    booking = await harness.place(first)
    assert booking.status is Status.CONFIRMED
    await refused(Reason.VALIDATION_FAILED, harness.reschedule(booking, second, checkout=None))
    waiting = await harness.reschedule(booking, second)
    assert waiting.change is not None
    assert waiting.change.difference == Money(100_000, "INR")


async def test_a_dearer_event_is_paid_first(harness: BookingHarness) -> None:
    first, second = await two_nights(harness, price=200_000)
    booking = await a_confirmed(harness, first, quantity=2)
    # Without `checkout`: the provider of the booking's payment.
    waiting = await harness.reschedule(booking, second, checkout=None)
    assert waiting.event_id == first.event_id
    assert waiting.change is not None
    assert waiting.change.difference == Money(100_000, "INR")
    assert waiting.change.payment_url
    assert (await harness.available(first), await harness.available(second)) == (8, 8)
    await refused(Reason.BOOKING_STATE_INVALID, harness.reschedule(booking, second))
    for _ in range(2):
        await harness.capture_payment(booking, waiting.change.payment_id, waiting.change.difference)
        await harness.run_until_idle()
    moved = await harness.booking(booking.booking_id)
    assert (moved.event_id, moved.total, moved.change) == (
        second.event_id,
        Money(400_000, "INR"),
        None,
    )
    assert (await harness.available(first), await harness.available(second)) == (10, 8)
    # The booking was paid with two payments; both are refunded.
    harness.clock.advance(timedelta(days=30))
    await harness.cancel(booking.booking_id)
    await harness.run_until_idle()
    assert net(harness, booking) == 200_000
    assert sorted(amount.amount_minor for _, amount in harness.payments.refunds.values()) == [
        100_000,
        100_000,
    ]
    assert [*await harness.audit(first), *await harness.audit(second)] == []


@pytest.mark.parametrize("how", ["expires", "declined", "fails", "late", "wrong", "cancelled"])
async def test_an_unpaid_difference_leaves_the_booking_as_it_is(
    harness: BookingHarness, how: str
) -> None:
    first, second = await two_nights(harness, price=200_000)
    booking = await a_confirmed(harness, first)
    waiting = await harness.reschedule(booking, second)
    assert waiting.change is not None
    payment_id, difference = waiting.change.payment_id, waiting.change.difference
    kept = Status.CONFIRMED
    if how in ("declined", "fails"):
        is_final = how == "fails"
        await harness.deliver(
            Failed(booking.booking_id, payment_id, "card_declined", is_final=is_final)
        )
        assert ((await harness.booking(booking.booking_id)).change is None) is is_final
    elif how == "wrong":
        await harness.capture_payment(booking, payment_id, Money(49_999, "INR"))
    elif how == "cancelled":
        await harness.cancel(booking.booking_id)
        kept = Status.CANCELLED
    harness.clock.advance(WINDOW)
    await harness.run_until_idle()
    if how == "late":
        await harness.capture_payment(booking, payment_id, difference)
    await harness.run_until_idle()
    after = await harness.booking(booking.booking_id)
    assert (after.status, after.event_id, after.total) == (kept, first.event_id, booking.total)
    assert after.change is None
    assert net(harness, booking) == (4_500 if kept is Status.CANCELLED else 150_000)
    assert await harness.available(second) == 10
    assert [*await harness.audit(first), *await harness.audit(second)] == []


async def test_the_same_key_pays_a_difference_after_outages(harness: BookingHarness) -> None:
    first, second = await two_nights(harness, price=200_000)
    booking = await a_confirmed(harness, first)
    harness.payments.failures = [Reason.PAYMENT_GATEWAY_ERROR, Reason.DEPENDENCY_UNAVAILABLE]
    for reason in list(harness.payments.failures):
        await refused(reason, harness.reschedule(booking, second, key="k"))
        # Nothing is held for a customer who does not try again.
        await harness.run_until_idle()
        assert (await harness.booking(booking.booking_id)).change is None
        assert await harness.available(second) == 10
    waiting = await harness.reschedule(booking, second, key="k")
    assert await harness.reschedule(booking, second, key="k") == waiting
    assert await harness.available(second) == 9
    assert waiting.change is not None
    await harness.capture_payment(booking, waiting.change.payment_id, waiting.change.difference)
    await harness.run_until_idle()
    assert (await harness.booking(booking.booking_id)).event_id == second.event_id
    assert net(harness, booking) == 200_000
    assert [*await harness.audit(first), *await harness.audit(second)] == []


async def test_a_refused_difference_is_final_for_its_key(harness: BookingHarness) -> None:
    first, second = await two_nights(harness, price=200_000)
    booking = await a_confirmed(harness, first)
    harness.payments.failures = [Reason.PAYMENT_FAILED]
    for _ in range(2):
        await refused(Reason.PAYMENT_FAILED, harness.reschedule(booking, second, key="k"))
    assert (await harness.reschedule(booking, second, key="another")).change is not None


async def test_a_sold_out_event_leaves_the_booking_as_it_is(harness: BookingHarness) -> None:
    first, second = await two_nights(harness)
    booking = await a_confirmed(harness, first, quantity=4)
    await harness.place(second, quantity=7)
    await refused(Reason.SOLD_OUT, harness.reschedule(booking, second, key="k"))
    await refused(Reason.SOLD_OUT, harness.reschedule(booking, second, key="k"))
    after = await harness.booking(booking.booking_id)
    assert (after.event_id, after.status) == (first.event_id, Status.CONFIRMED)
    assert (await harness.available(first), await harness.available(second)) == (6, 3)


async def test_a_later_event_does_not_improve_the_refund(harness: BookingHarness) -> None:
    first, second = await two_nights(harness)
    booking = await a_confirmed(harness, first)
    assert first.start_time is not None
    harness.clock.now = first.start_time - 10 * DAY
    moved = await harness.reschedule(booking, second)
    assert moved.max_refund_percent == 50
    await harness.cancel(booking.booking_id)
    await harness.run_until_idle()
    assert net(harness, booking) == 75_000


async def test_events_that_a_booking_cannot_be_rescheduled_to(harness: BookingHarness) -> None:
    first, second = await two_nights(harness)
    other = await harness.an_event(production_id=new_id())
    booking = await a_confirmed(harness, first)
    await refused(Reason.VALIDATION_FAILED, harness.reschedule(booking, other))
    await refused(Reason.VALIDATION_FAILED, harness.reschedule(booking, first))
    held = await harness.place(first, checkout=None)
    refusal = await refused(Reason.BOOKING_STATE_INVALID, harness.reschedule(held, second))
    assert "cancel it at no cost" in refusal.message
    assert first.start_time is not None
    harness.clock.now = first.start_time - timedelta(hours=1)
    await refused(Reason.CANCELLATION_CLOSED, harness.reschedule(booking, second))
    moved = await harness.reschedule(booking, second, by=STAFF)
    assert (moved.event_id, moved.max_refund_percent) == (second.event_id, 0)


async def test_concurrent_reschedules_of_one_booking(harness: BookingHarness) -> None:
    first, second = await two_nights(harness)
    booking = await a_confirmed(harness, first)
    answers = await asyncio.gather(
        *(harness.reschedule(booking, second) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(answer, Booking) for answer in answers) >= 1
    await harness.run_until_idle()
    assert (await harness.available(first), await harness.available(second)) == (10, 9)
    assert [*await harness.audit(first), *await harness.audit(second)] == []


# Each call of another service has a crash point before it and one after it. A lower price is
# exchanged at once and refunded by a step; a higher one is held and charged, then exchanged by a
# step.
@pytest.mark.parametrize("step_point", [1, 2])
@pytest.mark.parametrize(
    ("price", "point"),
    [*((100_000, point) for point in (1, 2)), *((200_000, point) for point in (1, 2, 3, 4))],
)
async def test_dying_at_any_call_of_rescheduling(
    harness: BookingHarness, price: int, point: int, step_point: int
) -> None:
    first, second = await two_nights(harness, price=price)
    booking = await a_confirmed(harness, first)
    await harness.die_at(point, harness.reschedule(booking, second, key="k"))
    await harness.reschedule(booking, second, key="k")
    if price > 150_000:
        await pay_difference(harness, booking)
    await harness.die_at(step_point, harness.run_steps())
    for _ in range(3):
        harness.clock.advance(timedelta(minutes=1))
        await harness.run_until_idle()
    moved = await harness.booking(booking.booking_id)
    assert (moved.event_id, moved.total) == (second.event_id, Money(price, "INR"))
    # Of a lower price the policy refunds 97 %.
    assert net(harness, booking) == (price if price > 150_000 else 101_500)
    assert (await harness.available(first), await harness.available(second)) == (10, 9)
    assert [*await harness.audit(first), *await harness.audit(second)] == []


async def test_a_difference_captured_after_the_hold_is_refunded(
    harness: BookingHarness,
) -> None:
    first, second = await two_nights(harness, price=200_000)
    booking = await a_confirmed(harness, first)
    await harness.reschedule(booking, second)
    harness.clock.advance(WINDOW + timedelta(minutes=45))
    await pay_difference(harness, booking)
    await harness.run_until_idle()
    stayed = await harness.booking(booking.booking_id)
    assert (stayed.event_id, stayed.change) == (first.event_id, None)
    assert net(harness, booking) == 150_000
    assert await harness.cancel(booking.booking_id)


async def test_an_exchange_is_finished_however_late(harness: BookingHarness) -> None:
    """No process ran for longer than the change was valid."""
    first, second = await two_nights(harness)
    booking = await a_confirmed(harness, first)
    await harness.die_at(1, harness.reschedule(booking, second))
    harness.clock.advance(timedelta(days=1))
    await harness.run_until_idle()
    assert (await harness.booking(booking.booking_id)).event_id == second.event_id
    assert (await harness.available(first), await harness.available(second)) == (10, 9)
