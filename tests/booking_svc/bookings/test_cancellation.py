"""Cancellation of confirmed bookings: what the policy grants, and the steps that follow."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from booking_svc.bookings import cancellation, refunds
from booking_svc.bookings.bookings import (
    Actor,
    Booking,
    By,
    PaymentStatus,
    RefundStatus,
    Status,
)
from booking_svc.bookings.cancellation import StaffRefund
from booking_svc.bookings.outbox import Cancelled
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue.cancellation_policy import (
    STANDARD_TIERS,
    STANDARD_WINDOW,
    Preview,
    Tiered,
    terms,
)
from booking_svc.catalogue.event_commands import EventCommands
from booking_svc.catalogue.event_update import EventChange
from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Disputed, DisputeStatus, Refunded, RefundUpdated
from mesh.clock import rfc3339
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from testing.booking_harness import START, BookingHarness, an_offer
from tests.booking_svc.bookings.test_outbox import outbox_events

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
STAFF = By(Actor.STAFF, new_id())


async def refused(reason: Reason, call: Any) -> DomainError:
    with pytest.raises(DomainError) as refusal:
        await call
    assert refusal.value.reason is reason
    return refusal.value


async def a_confirmed(harness: BookingHarness, event: Event, **options: Any) -> Booking:
    booking = await harness.place(event, **options)
    await harness.capture(booking)
    await harness.run_until_idle()
    booking = await harness.booking(booking.booking_id)
    assert booking.status is Status.CONFIRMED
    return booking


async def preview(harness: BookingHarness, booking: Booking) -> Preview:
    async with harness.database.reading() as connection:
        return await cancellation.preview(
            connection, booking_id=booking.booking_id, owner=None, now=harness.clock()
        )


# Clocks go back in Berlin on 2030-10-27 and forward in New York on 2030-03-10; in Kolkata,
# Apia and Honolulu never. The deadline is an instant, independent of time zones.
STARTS = [
    datetime(2030, 11, 2, 20, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2030, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    datetime(2030, 3, 14, 20, tzinfo=ZoneInfo("America/New_York")),
    datetime(2030, 4, 7, 12, tzinfo=ZoneInfo("Australia/Lord_Howe")),
    datetime(2030, 7, 1, 20, tzinfo=ZoneInfo("Asia/Kolkata")),
    datetime(2030, 1, 1, 0, tzinfo=ZoneInfo("Pacific/Apia")),
    datetime(2030, 1, 1, 0, tzinfo=ZoneInfo("Pacific/Honolulu")),
]
TABLE = [
    (timedelta(days=400), 97),
    (14 * DAY + SECOND, 97),
    (14 * DAY, 50),
    (14 * DAY - SECOND, 50),
    (7 * DAY + SECOND, 50),
    (7 * DAY, 50),
    (7 * DAY - SECOND, 0),
    (timedelta(hours=48) + SECOND, 0),
    (timedelta(hours=48), 0),
    (timedelta(hours=48) - SECOND, None),
    (timedelta(0), None),
    (-DAY, None),
]


@pytest.mark.parametrize(("before", "percent"), TABLE, ids=str)
def test_the_tiers_by_the_time_left(before: timedelta, percent: int | None) -> None:
    for start in STARTS:
        # In UTC: subtracting in a zone would be in local time.
        now = start.astimezone(UTC) - before
        granted = terms(STANDARD_TIERS, start_time=start.astimezone(UTC), confirm_time=now, now=now)
        assert granted.is_open is (percent is not None), start
        assert granted.percent == (percent or 0), start
        last = start.astimezone(UTC) - {97: 14 * DAY, 50: 7 * DAY}.get(percent or 0, 2 * DAY)
        assert granted.deadline == last, start


@pytest.mark.parametrize(
    ("after", "is_open"),
    [
        (timedelta(0), True),
        (timedelta(hours=24) - SECOND, True),
        (timedelta(hours=24), True),
        (timedelta(hours=24) + SECOND, False),
    ],
    ids=str,
)
def test_the_purchase_window(after: timedelta, is_open: bool) -> None:
    granted = terms(STANDARD_WINDOW, start_time=None, confirm_time=START, now=START + after)
    assert (granted.is_open, granted.percent) == (is_open, 100 if is_open else 0)
    assert granted.deadline == START + timedelta(hours=24)


def test_terms_without_a_start_or_without_tiers() -> None:
    undated = terms(STANDARD_TIERS, start_time=None, confirm_time=START, now=START)
    assert (undated.is_open, undated.percent, undated.deadline) == (True, 97, None)
    none = terms(Tiered(()), start_time=START, confirm_time=START, now=START - DAY)
    assert (none.is_open, none.deadline) == (False, None)


@pytest.mark.parametrize(
    ("before", "refund"), [(14 * DAY + SECOND, 291_000), (14 * DAY, 150_000), (7 * DAY - SECOND, 0)]
)
async def test_cancelling_refunds_what_the_preview_shows(
    harness: BookingHarness, before: timedelta, refund: int
) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event, quantity=2)
    assert event.start_time is not None
    harness.clock.now = event.start_time - before
    shown = await preview(harness, booking)
    assert shown.amount == Money(refund, "INR")
    assert shown.refundable is (refund > 0)
    cancelled = await harness.cancel(booking.booking_id, reason="changed my mind")
    assert cancelled.status is Status.CANCELLED
    assert [item.amount.amount_minor for item in cancelled.refunds] == ([refund] if refund else [])
    await harness.run_until_idle()
    assert await harness.available(event) == 10
    assert await harness.audit(event) == ()
    assert booking.payment is not None
    assert harness.payments.refunded_minor(booking.payment.payment_id) == refund
    if refund:
        # payment_svc uses the refund id that the customer sees.
        assert set(harness.payments.refunds) == {cancelled.refunds[0].refund_id}
        await harness.process_refunds()
    ended = await harness.booking(booking.booking_id)
    assert all(item.status is RefundStatus.PROCESSED for item in ended.refunds)
    assert ended.payment is not None
    assert ended.payment.status is PaymentStatus.CAPTURED
    last = next(entry for entry in ended.timeline if entry.status is Status.CANCELLED)
    assert (last.actor, last.reason) == (Actor.CUSTOMER, "changed my mind")
    changes = [event.change for event in await outbox_events(harness, 3)]
    money = Money(refund, "INR") if refund else None
    assert changes[2] == Cancelled(Actor.CUSTOMER, "changed my mind", money)


async def test_too_late_is_refused_with_the_deadline(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event)
    assert event.start_time is not None
    closed = event.start_time - timedelta(hours=48)
    harness.clock.now = closed + SECOND
    refusal = await refused(Reason.CANCELLATION_CLOSED, harness.cancel(booking.booking_id))
    assert refusal.metadata["deadline"] == rfc3339(closed)
    shown = await preview(harness, booking)
    assert (shown.refundable, shown.percent, shown.deadline) == (False, 0, closed)
    # Staff can cancel until the event ends.
    assert event.end_time is not None
    harness.clock.now = event.end_time
    refusal = await refused(
        Reason.CANCELLATION_CLOSED, harness.cancel(booking.booking_id, by=STAFF)
    )
    assert refusal.metadata["deadline"] == rfc3339(event.end_time)
    await harness.run_until_idle()
    assert (await harness.booking(booking.booking_id)).status is Status.CONFIRMED
    assert await harness.available(event) == 9


async def test_an_undated_event_can_be_cancelled_within_a_day(harness: BookingHarness) -> None:
    event = await harness.an_event(start_time=None, end_time=None)
    booking = await a_confirmed(harness, event)
    harness.clock.advance(timedelta(hours=24))
    staff = By(Actor.STAFF, new_id())
    cancelled = await harness.cancel(booking.booking_id, by=staff)
    assert [refund.amount for refund in cancelled.refunds] == [booking.total]
    assert cancelled.timeline[-1].actor is Actor.STAFF


async def test_a_booking_has_the_policy_of_the_time_of_booking(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event)
    assert booking.cancellation_policy == STANDARD_TIERS


async def test_what_cannot_be_cancelled(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event)
    await refused(Reason.BOOKING_NOT_FOUND, harness.cancel(booking.booking_id, owner=new_id()))
    await harness.cancel(booking.booking_id)
    await refused(Reason.ALREADY_CANCELLED, harness.cancel(booking.booking_id))
    await refused(Reason.ALREADY_CANCELLED, preview(harness, booking))
    idle = await harness.place(event)
    shown = await preview(harness, idle)
    assert (shown.refundable, shown.amount.amount_minor) == (False, 0)
    harness.clock.advance(timedelta(hours=1))
    await harness.run_until_idle()
    await refused(Reason.BOOKING_STATE_INVALID, harness.cancel(idle.booking_id))
    await refused(Reason.BOOKING_STATE_INVALID, preview(harness, idle))


async def test_the_same_key_again_returns_the_first_answer(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event)
    first = await harness.cancel(booking.booking_id, key="k", reason="changed my mind")
    assert await harness.cancel(booking.booking_id, key="k", reason="changed my mind") == first
    await refused(Reason.IDEMPOTENCY_KEY_REUSED, harness.cancel(booking.booking_id, key="k"))
    await refused(Reason.ALREADY_CANCELLED, harness.cancel(booking.booking_id, key="other"))
    assert len((await harness.booking(booking.booking_id)).refunds) == 1


async def test_a_hundred_concurrent_cancellations_with_the_same_key(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event)
    answers = await asyncio.gather(
        *(harness.cancel(booking.booking_id, key="k") for _ in range(100)), return_exceptions=True
    )
    reasons = {a.reason for a in answers if isinstance(a, DomainError)}
    assert reasons <= {Reason.IDEMPOTENCY_IN_PROGRESS}
    assert sum(isinstance(answer, Booking) for answer in answers) >= 1
    assert len((await harness.booking(booking.booking_id)).refunds) == 1


@pytest.mark.parametrize("point", range(1, 6))
async def test_dying_at_any_call_of_cancelling(harness: BookingHarness, point: int) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event, quantity=4)
    await harness.cancel(booking.booking_id)
    await harness.die_at(point, harness.run_steps())
    for _ in range(3):
        harness.clock.advance(timedelta(minutes=1))
        await harness.run_until_idle()
    assert await harness.available(event) == 10
    assert booking.payment is not None
    assert harness.payments.refunded_minor(booking.payment.payment_id) == 582_000
    assert await harness.audit(event) == ()


async def test_after_a_refund_by_staff_only_the_rest_is_refunded(harness: BookingHarness) -> None:
    """booking_svc does not know of that refund when the booking is cancelled."""
    event = await harness.an_event()
    booking = await a_confirmed(harness, event)
    assert booking.payment is not None
    by_staff = new_id()
    harness.payments.refunds[by_staff] = (booking.payment.payment_id, Money(100_000, "INR"))
    await harness.cancel(booking.booking_id)
    await harness.deliver(
        Refunded(booking.booking_id, booking.payment.payment_id, by_staff, Money(100_000, "INR"))
    )
    await harness.run_until_idle()
    await harness.process_refunds()
    ended = await harness.booking(booking.booking_id)
    assert sorted(refund.amount.amount_minor for refund in ended.refunds) == [50_000, 100_000]
    assert ended.payment is not None
    assert ended.payment.status is PaymentStatus.REFUNDED


async def test_the_organiser_cancels_all_bookings_of_an_event(harness: BookingHarness) -> None:
    event = await harness.an_event(an_offer(capacity=40))
    other = await harness.an_event()
    untouched = await a_confirmed(harness, other)
    confirmed = [await a_confirmed(harness, event, quantity=2) for _ in range(3)]
    held = await harness.place(event, checkout=None)
    paying = await harness.place(event)
    paid = await harness.place(event)
    await harness.capture(paid)
    free = await harness.place(event)
    await harness.cancel(free.booking_id)
    assert event.start_time is not None
    harness.clock.now = event.start_time - timedelta(hours=1)
    batches: list[cancellation.Progress] = []
    while not batches or batches[-1].remaining:
        async with harness.database.transaction() as connection:
            batches.append(
                await cancellation.cancel_for_event(
                    connection,
                    event_id=event.event_id,
                    reason="the band is ill",
                    limit=4,
                    now=harness.clock(),
                )
            )
    assert [batch.cancelled for batch in batches] == [4, 2]
    await harness.run_until_idle()
    for booking in (*confirmed, held, paying, paid):
        ended = await harness.booking(booking.booking_id)
        assert ended.status is Status.CANCELLED
        last = next(entry for entry in ended.timeline if entry.status is Status.CANCELLED)
        assert (last.actor, last.reason) == (Actor.ORGANISER, "the band is ill")
    for booking in (*confirmed, paid):
        assert booking.payment is not None
        assert (
            harness.payments.refunded_minor(booking.payment.payment_id)
            == booking.total.amount_minor
        )
    assert await harness.available(event) == 40
    assert await harness.audit(event) == ()
    assert (await harness.booking(untouched.booking_id)).status is Status.CONFIRMED


@pytest.mark.parametrize(
    ("staff_refund", "refund"),
    [
        (None, 0),
        (StaffRefund(0, None), 0),
        (StaffRefund(60, None), 90_000),
        (StaffRefund(100, None), 150_000),
        (StaffRefund(None, Money(12_345, "INR")), 12_345),
    ],
)
async def test_staff_cancel_until_the_event_ends_with_a_refund_of_their_choice(
    harness: BookingHarness, staff_refund: StaffRefund | None, refund: int
) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event)
    assert event.end_time is not None
    harness.clock.now = event.end_time - SECOND
    ended = await harness.cancel(
        booking.booking_id, by=STAFF, reason="illness", staff_refund=staff_refund
    )
    assert ended.status is Status.CANCELLED
    assert ended.timeline[-1].reason == "illness"
    assert [r.amount.amount_minor for r in ended.refunds] == ([refund] if refund else [])
    await harness.run_until_idle()
    assert await harness.net_payments(booking) == 150_000 - refund
    assert await harness.available(event) == 10
    assert await harness.audit(event) == ()


async def test_staff_cannot_refund_more_than_is_left(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event)
    for amount, field in [
        (Money(150_001, "INR"), "refund_amount.amount_minor"),
        (Money(-1, "INR"), "refund_amount.amount_minor"),
        (Money(1, "EUR"), "refund_amount.currency_code"),
    ]:
        refusal = await refused(
            Reason.VALIDATION_FAILED,
            harness.cancel(booking.booking_id, by=STAFF, staff_refund=StaffRefund(None, amount)),
        )
        assert [violation.field for violation in refusal.violations] == [field]
    assert (await harness.booking(booking.booking_id)).status is Status.CONFIRMED


async def taken(harness: BookingHarness, booking: Booking, how: str, minor: int) -> None:
    """Money of a booking's payment that others return or take."""
    assert booking.payment is not None
    payment_id, amount = booking.payment.payment_id, Money(minor, "INR")
    ids = (booking.booking_id, payment_id)
    if how == "dispute":
        await harness.deliver(Disputed(*ids, amount, "fraudulent", DisputeStatus.LOST, amount))
        return
    refund_id = new_id()
    harness.payments.refunds[refund_id] = (payment_id, amount)
    if how == "requested":
        await harness.deliver(RefundUpdated(*ids, refund_id, amount, "PENDING", "goodwill"))
    else:
        await harness.deliver(Refunded(*ids, refund_id, amount))


@pytest.mark.parametrize("how", ["refunded", "requested", "dispute"])
async def test_money_that_was_returned_or_taken_is_not_promised(
    harness: BookingHarness, how: str
) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event, quantity=2)
    await taken(harness, booking, how, 150_000)
    # The other place is still paid: nothing is left for the removed one.
    kept = [RequestedItem(event.offers[0].offer_id, 1, None)]
    changed = await harness.update(booking, items=kept)
    assert changed.total == Money(150_000, "INR")
    assert sum(refund.amount.amount_minor for refund in changed.refunds) <= 150_000
    shown = await preview(harness, booking)
    assert (shown.amount, shown.percent) == (Money(145_500, "INR"), 97)
    await taken(harness, booking, "refunded", 100_000)
    assert (await preview(harness, booking)).amount == Money(50_000, "INR")
    await taken(harness, booking, "refunded", 50_000)
    shown = await preview(harness, booking)
    assert (shown.refundable, shown.amount) == (False, Money(0, "INR"))
    ended = await harness.cancel(booking.booking_id)
    assert ended.status is Status.CANCELLED
    assert len(ended.refunds) == (2 if how == "dispute" else 3)
    await harness.run_until_idle()
    assert await harness.available(event) == 10


async def test_a_refund_that_comes_back_is_still_owed(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event)
    ended = await harness.cancel(booking.booking_id, by=STAFF, staff_refund=StaffRefund(100, None))
    (refund,) = ended.refunds
    await harness.run_until_idle()
    await harness.process_refunds()
    for status, payment_status in [
        ("FAILED", PaymentStatus.CAPTURED),
        ("SETTLED_ELSEWHERE", PaymentStatus.CAPTURED),
    ]:
        await harness.deliver(
            RefundUpdated(
                booking.booking_id,
                refund.payment_id,
                refund.refund_id,
                refund.amount,
                status,
                refund.reason,
            )
        )
        after = await harness.booking(booking.booking_id)
        assert [r.status for r in after.refunds] == [status]
        assert after.payment is not None
        assert after.payment.status is payment_status
    async with harness.database.reading() as connection:
        left = await refunds.refundable(connection, booking=after)
    assert left == Money(0, "INR")


async def test_after_an_event_moved_bookings_are_refunded_in_full(harness: BookingHarness) -> None:
    event = await harness.an_event()
    before, later = await a_confirmed(harness, event), await a_confirmed(harness, event)
    assert event.start_time is not None
    # In the 0 % tier, the event moves to a closer day: cancelling would be closed.
    harness.clock.now = event.start_time - 5 * DAY
    commands = EventCommands(
        database=harness.database,
        writes=harness.writes,
        stock=harness.stock,
        payments=harness.deps.payments,
        clock=harness.clock,
    )
    await commands.update(
        event_id=event.event_id, change=EventChange(description="new text"), etag=None
    )
    assert (await preview(harness, before)).percent == 0
    start = harness.clock.now + timedelta(hours=30)
    await commands.update(
        event_id=event.event_id,
        change=EventChange(start_time=start, end_time=start + timedelta(hours=3)),
        etag=None,
    )
    harness.clock.advance(SECOND)
    after = await a_confirmed(harness, event)
    shown = await preview(harness, before)
    assert (shown.amount, shown.percent, shown.deadline) == (Money(150_000, "INR"), 100, start)
    ended = await harness.cancel(before.booking_id)
    assert ended.refunds[-1].amount == Money(150_000, "INR")
    # Who booked after the move knows the new date.
    await refused(Reason.CANCELLATION_CLOSED, harness.cancel(after.booking_id))
    harness.clock.now = start + SECOND
    await refused(Reason.CANCELLATION_CLOSED, harness.cancel(later.booking_id))


async def test_the_window_after_a_move_is_seven_days(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await a_confirmed(harness, event)
    assert event.start_time is not None
    harness.clock.now = event.start_time - 10 * DAY
    commands = EventCommands(
        database=harness.database,
        writes=harness.writes,
        stock=harness.stock,
        payments=harness.deps.payments,
        clock=harness.clock,
    )
    await commands.update(
        event_id=event.event_id, change=EventChange(venue_name="Town Hall"), etag=None
    )
    harness.clock.advance(7 * DAY)
    assert (await preview(harness, booking)).percent == 100
    harness.clock.advance(SECOND)
    assert (await preview(harness, booking)).percent == 0
