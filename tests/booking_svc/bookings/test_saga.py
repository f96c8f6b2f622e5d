"""Placing, payment and the end of bookings, with the real ledger."""

import asyncio
import json
from datetime import timedelta
from uuid import UUID

import pytest

from booking_svc.bookings import bookings, step_runner
from booking_svc.bookings.bookings import Booking, Filter, PaymentStatus, RefundStatus, Status
from booking_svc.bookings.payment_pages import Checkout
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.bookings.state_machine import MOVES
from booking_svc.clients import ports
from booking_svc.clients.stock import StockClient
from mesh.clock import rfc3339
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from mesh.paging import to_token
from testing.booking_harness import (
    HOLD,
    SANDBOX,
    WINDOW,
    BookingHarness,
    Crashes,
    ProcessDiedError,
    an_offer,
)


def statuses(booking: object) -> list[str]:
    return [entry.status for entry in booking.timeline]  # type: ignore[attr-defined]


async def refused(reason: Reason, work: object) -> DomainError:
    with pytest.raises(DomainError) as caught:
        await work  # type: ignore[misc]
    assert caught.value.reason is reason
    return caught.value


def test_every_state_has_its_moves() -> None:
    assert MOVES.keys() == set(Status)


async def test_placing_holds_the_places(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await harness.place(event, quantity=3, checkout=None)
    assert booking.status is Status.HELD
    assert booking.total == Money(450_000, "INR")
    assert booking.hold_expire_time == harness.clock() + HOLD
    assert await harness.available(event) == 7


async def test_checkout_opens_the_payment_and_extends_the_hold_once(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    booking = await harness.place(event, checkout=None)
    harness.clock.advance(timedelta(minutes=9))
    paying = await harness.checkout(booking.booking_id, owner=booking.customer_id, checkout=SANDBOX)
    assert paying.status is Status.PENDING_PAYMENT
    assert paying.hold_expire_time == harness.clock() + WINDOW
    harness.clock.advance(timedelta(minutes=5))
    again = await harness.checkout(booking.booking_id, owner=booking.customer_id, checkout=SANDBOX)
    assert again == paying
    assert len(harness.payments.opened) == 1


async def test_a_captured_payment_confirms(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await harness.place(event, quantity=2)
    await harness.capture(booking)
    await harness.run_until_idle()
    confirmed = await harness.booking(booking.booking_id)
    assert statuses(confirmed) == ["HELD", "PENDING_PAYMENT", "CONFIRMED"]
    assert confirmed.confirm_time == harness.clock()
    harness.clock.advance(timedelta(days=1))
    await harness.run_until_idle()
    assert await harness.available(event) == 8
    assert await harness.audit(event) == ()


async def test_a_free_booking_is_confirmed_by_checkout(harness: BookingHarness) -> None:
    event = await harness.an_event(an_offer(price=Money(0, "INR")))
    booking = await harness.place(event)
    assert booking.status is Status.CONFIRMED
    assert harness.payments.opened == {}


async def test_a_free_booking_whose_process_died_after_the_ledger_sold_its_places(
    harness: BookingHarness,
) -> None:
    """Nobody repeats the call: the booking expires, and the sold places are returned."""
    event = await harness.an_event(an_offer(price=Money(0, "INR")))
    booking = await harness.place(event, quantity=4, checkout=None)
    await harness.stock.commit(event_id=event.event_id, reservation_id=booking.reservation_id)
    harness.clock.advance(HOLD + timedelta(seconds=1))
    await harness.run_until_idle()
    assert (await harness.booking(booking.booking_id)).status is Status.EXPIRED
    assert (await harness.available(event), await harness.sold_places(event)) == (10, 0)
    assert await harness.audit(event) == ()


async def test_a_free_booking_that_expires_while_it_is_confirmed_stays_expired(
    harness: BookingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = await harness.an_event(an_offer(price=Money(0, "INR")))
    booking = await harness.place(event, checkout=None)
    commit = harness.stock.commit

    async def slow_commit(**reservation: UUID) -> None:
        await commit(**reservation)
        harness.clock.advance(HOLD + timedelta(seconds=1))
        await harness.run_until_idle()

    monkeypatch.setattr(harness.stock, "commit", slow_commit)
    await refused(
        Reason.HOLD_EXPIRED,
        harness.checkout(booking.booking_id, owner=booking.customer_id, checkout=SANDBOX),
    )
    assert (await harness.booking(booking.booking_id)).status is Status.EXPIRED
    assert (await harness.available(event), await harness.sold_places(event)) == (10, 0)


async def test_the_same_key_has_one_booking(harness: BookingHarness) -> None:
    event, customer = await harness.an_event(), new_id()
    first = await harness.place(event, key="k", customer_id=customer)
    second = await harness.place(event, key="k", customer_id=customer)
    assert first == second
    assert await harness.available(event) == 9
    await refused(
        Reason.IDEMPOTENCY_KEY_REUSED,
        harness.place(event, key="k", customer_id=customer, quantity=2),
    )
    assert await harness.available(event) == 9


async def test_a_hundred_concurrent_calls_with_the_same_key(harness: BookingHarness) -> None:
    event, customer = await harness.an_event(), new_id()
    answers = await asyncio.gather(
        *(harness.place(event, key="k", customer_id=customer) for _ in range(100)),
        return_exceptions=True,
    )
    made = {answer.booking_id for answer in answers if not isinstance(answer, BaseException)}
    others = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(made) == 1
    assert all(
        isinstance(other, DomainError) and other.reason is Reason.IDEMPOTENCY_IN_PROGRESS
        for other in others
    )
    assert await harness.available(event) == 9


async def test_several_processes_with_the_same_key(harness: BookingHarness) -> None:
    """A process does not see the other's running calls: the records decide."""
    event, customer = await harness.an_event(), new_id()
    processes = [harness, *(harness.another_process() for _ in range(7))]
    answers = await asyncio.gather(
        *(process.place(event, key="k", customer_id=customer) for process in processes)
    )
    assert len({answer.booking_id for answer in answers}) == 1
    assert await harness.available(event) == 9


@pytest.mark.parametrize("point", range(1, 5))
async def test_dying_at_any_call_of_placing(harness: BookingHarness, point: int) -> None:
    """Reserve and create have a crash point before and one after them."""
    event, customer = await harness.an_event(), new_id()
    await harness.die_at(point, harness.place(event, key="k", customer_id=customer, quantity=4))
    booking = await harness.place(event, key="k", customer_id=customer, quantity=4)
    assert booking.status is Status.PENDING_PAYMENT
    assert booking.payment is not None
    assert booking.payment.payment_url
    assert await harness.available(event) == 6
    await harness.capture(booking)
    await harness.run_until_idle()
    assert (await harness.booking(booking.booking_id)).status is Status.CONFIRMED
    assert await harness.audit(event) == ()


async def test_a_hold_without_a_booking_expires(harness: BookingHarness) -> None:
    event = await harness.an_event()
    await harness.die_at(2, harness.place(event, quantity=10))
    assert await harness.available(event) == 0
    harness.clock.advance(WINDOW)
    assert await harness.available(event) == 10


@pytest.mark.parametrize("point", range(1, 3))
async def test_dying_at_any_call_of_confirming(harness: BookingHarness, point: int) -> None:
    event = await harness.an_event()
    booking = await harness.place(event)
    await harness.capture(booking)
    await harness.die_at(point, harness.run_steps())
    harness.clock.advance(timedelta(minutes=1))
    await harness.run_until_idle()
    assert (await harness.booking(booking.booking_id)).status is Status.CONFIRMED
    assert await harness.available(event) == 9
    assert await harness.audit(event) == ()


async def test_a_hold_expires(harness: BookingHarness) -> None:
    event = await harness.an_event()
    held = await harness.place(event, checkout=None)
    paying = await harness.place(event)
    harness.clock.advance(HOLD)
    await harness.run_until_idle()
    assert (await harness.booking(held.booking_id)).status is Status.EXPIRED
    assert (await harness.booking(paying.booking_id)).status is Status.PENDING_PAYMENT
    harness.clock.advance(WINDOW)
    await harness.run_until_idle()
    assert (await harness.booking(paying.booking_id)).status is Status.EXPIRED
    assert await harness.available(event) == 10
    assert harness.payments.voided == set(harness.payments.opened)
    await refused(
        Reason.HOLD_EXPIRED,
        harness.checkout(held.booking_id, checkout=SANDBOX),
    )


async def test_an_expired_hold_cannot_be_checked_out_before_the_sweeper_ends_it(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    held = await harness.place(event, checkout=None)
    harness.clock.advance(HOLD)
    await refused(
        Reason.HOLD_EXPIRED,
        harness.checkout(held.booking_id, checkout=SANDBOX),
    )


async def test_a_late_payment_gets_its_places_if_they_are_available(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    booking = await harness.place(event, quantity=10)
    harness.clock.advance(WINDOW)
    await harness.run_until_idle()
    await harness.capture(booking)
    await harness.run_until_idle()
    confirmed = await harness.booking(booking.booking_id)
    assert statuses(confirmed) == ["HELD", "PENDING_PAYMENT", "EXPIRED", "CONFIRMED"]
    assert confirmed.reservation_id != confirmed.booking_id
    assert await harness.available(event) == 0
    assert harness.payments.refunds == {}
    assert await harness.audit(event) == ()


async def test_a_late_payment_without_places_is_refunded(harness: BookingHarness) -> None:
    event = await harness.an_event()
    late = await harness.place(event, quantity=10)
    harness.clock.advance(WINDOW)
    await harness.run_until_idle()
    await harness.place(event, quantity=5)
    await harness.capture(late)
    await harness.run_until_idle()
    refunded = await harness.booking(late.booking_id)
    assert refunded.status is Status.EXPIRED
    assert refunded.payment is not None
    [refund] = refunded.refunds
    assert (refund.payment_id, refund.amount) == (refunded.payment.payment_id, late.total)
    assert refund.status is RefundStatus.PENDING
    await harness.process_refunds()
    refunded = await harness.booking(late.booking_id)
    assert [refund.status for refund in refunded.refunds] == [RefundStatus.PROCESSED]
    assert refunded.payment is not None
    assert refunded.payment.status is PaymentStatus.REFUNDED


async def test_a_refund_is_processed_before_its_request_is_answered(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    booking = await harness.place(event)
    await harness.cancel(booking.booking_id)
    await harness.capture(booking)
    # A batch of confirmations leaves it, then its step enqueues the refund.
    await harness.run_steps()
    await harness.run_steps()
    # payment_svc has done it, and its answer is lost. Stock is released in the meantime.
    harness.payment_client.crashes = Crashes(at=2)
    with pytest.raises(ProcessDiedError):
        await harness.run_steps()
    harness.payment_client.crashes = harness.crashes
    assert len(harness.payments.refunds) == 1
    await harness.process_refunds()
    harness.clock.advance(timedelta(minutes=1))
    await harness.run_until_idle()
    [refund] = (await harness.booking(booking.booking_id)).refunds
    assert refund.status is RefundStatus.PROCESSED
    assert [amount for _, amount in harness.payments.refunds.values()] == [booking.total]


async def test_a_payment_of_a_cancelled_booking_is_refunded(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await harness.place(event)
    await harness.cancel(booking.booking_id, reason="changed my mind")
    await harness.capture(booking)
    await harness.run_until_idle()
    cancelled = await harness.booking(booking.booking_id)
    assert cancelled.status is Status.CANCELLED
    assert len(harness.payments.refunds) == 1
    assert await harness.available(event) == 10


async def test_cancelling_and_paying_at_once(harness: BookingHarness) -> None:
    event = await harness.an_event(an_offer(capacity=40))
    for _ in range(10):
        booking = await harness.place(event)
        await asyncio.gather(
            harness.capture(booking),
            harness.cancel(booking.booking_id, reason=""),
            return_exceptions=True,
        )
        await harness.run_until_idle()
        ended = await harness.booking(booking.booking_id)
        refunds = ended.refunds
        assert (ended.status, len(refunds)) in ((Status.CONFIRMED, 0), (Status.CANCELLED, 1))
    assert await harness.audit(event) == ()


async def test_a_payment_that_failed_for_good_fails_the_booking(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await harness.place(event)
    assert booking.payment is not None
    await harness.deliver(
        ports.Failed(
            booking.booking_id, booking.payment.payment_id, "amount_mismatch", is_final=True
        )
    )
    await harness.run_until_idle()
    failed = await harness.booking(booking.booking_id)
    assert failed.status is Status.FAILED
    assert failed.timeline[-1].reason == "payment failed: amount_mismatch"
    assert await harness.available(event) == 10
    # The customer paid on the same page before the payment was voided.
    await harness.capture(booking)
    await harness.run_until_idle()
    assert (await harness.booking(booking.booking_id)).status is Status.CONFIRMED
    assert await harness.audit(event) == ()


@pytest.mark.parametrize(
    "amount", [Money(149_999, "INR"), Money(150_001, "INR"), Money(150_000, "USD")]
)
async def test_another_amount_or_currency_never_confirms(
    harness: BookingHarness, amount: Money
) -> None:
    event = await harness.an_event()
    booking = await harness.place(event)
    await harness.capture(booking, amount)
    await harness.run_until_idle()
    ended = await harness.booking(booking.booking_id)
    assert (ended.status, ended.confirm_time) == (Status.FAILED, None)
    assert [refund.amount for refund in ended.refunds] == [amount]
    assert [refunded for _, refunded in harness.payments.refunds.values()] == [amount]
    assert await harness.available(event) == 10


async def test_another_payment_of_the_booking_is_refunded(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await harness.place(event)
    await harness.capture(booking)
    other = new_id()
    await harness.deliver(ports.Captured(booking.booking_id, other, booking.total))
    await harness.run_until_idle()
    assert (await harness.booking(booking.booking_id)).status is Status.CONFIRMED
    assert [payment for payment, _ in harness.payments.refunds.values()] == [other]


async def test_a_batch_of_payments_confirms_only_what_it_pays_for(harness: BookingHarness) -> None:
    """Payments that need a decision are in one batch with others: each has its own outcome."""
    event, gone = await harness.an_event(an_offer(capacity=20)), await harness.an_event()
    first, second, repeated, too_little, late, foreign, cancelled = [
        await harness.place(gone if number == 6 else event) for number in range(7)
    ]

    def captured(booking: Booking, amount: Money | None = None) -> ports.Captured:
        assert booking.payment is not None
        return ports.Captured(
            booking.booking_id, booking.payment.payment_id, amount or booking.total
        )

    await harness.cancel(late.booking_id)
    await harness.cancel_event(gone)
    await harness.deliver(
        captured(first),
        captured(repeated),
        captured(too_little, Money(1, "INR")),
        captured(late),
        ports.Captured(foreign.booking_id, new_id(), foreign.total),
        captured(cancelled),
        captured(repeated),
        captured(second),
    )
    await harness.run_until_idle()
    states = [
        (await harness.booking(booking.booking_id)).status
        for booking in (first, second, repeated, too_little, late, foreign, cancelled)
    ]
    assert states == [
        Status.CONFIRMED,
        Status.CONFIRMED,
        Status.CONFIRMED,
        Status.FAILED,
        Status.CANCELLED,
        Status.PENDING_PAYMENT,
        Status.CANCELLED,
    ]
    refunded = sorted(amount.amount_minor for _, amount in harness.payments.refunds.values())
    price = first.total.amount_minor
    assert refunded == [1, price, price, price]
    assert await harness.sold_places(event) == 3
    assert await harness.audit(event) == ()


async def test_a_batch_of_confirmations_that_fails_is_retried_step_by_step(
    harness: BookingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_away(*_: object, **__: object) -> None:
        raise DomainError(Reason.DEPENDENCY_UNAVAILABLE, "stock_svc is not reachable")

    event = await harness.an_event()
    placed = [await harness.place(event) for _ in range(3)]
    for booking in placed:
        await harness.capture(booking)
    with monkeypatch.context() as patch:
        patch.setattr(StockClient, "commit_all", is_away)
        assert await harness.run_steps() == 3
    harness.clock.advance(timedelta(seconds=1))
    await harness.run_until_idle()
    for booking in placed:
        confirmed = await harness.booking(booking.booking_id)
        assert confirmed.status is Status.CONFIRMED
        assert [entry.status for entry in confirmed.timeline].count(Status.CONFIRMED) == 1


async def test_an_event_that_arrives_twice_has_one_effect(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await harness.place(event)
    for _ in range(3):
        await harness.capture(booking)
        await harness.run_until_idle()
    assert statuses(await harness.booking(booking.booking_id)).count("CONFIRMED") == 1
    assert await harness.available(event) == 9


async def test_cancellation_of_unpaid_bookings(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await harness.place(event)
    await refused(
        Reason.BOOKING_NOT_FOUND,
        harness.cancel(booking.booking_id, owner=new_id(), reason=""),
    )
    cancelled = await harness.cancel(booking.booking_id, owner=booking.customer_id, reason="")
    assert cancelled.status is Status.CANCELLED
    await harness.run_until_idle()
    assert await harness.available(event) == 10
    await refused(
        Reason.ALREADY_CANCELLED,
        harness.cancel(booking.booking_id, reason=""),
    )
    paid = await harness.place(event)
    await harness.capture(paid)
    # Captured but not yet confirmed. Once confirmed, it can be cancelled by its policy.
    await refused(Reason.BOOKING_STATE_INVALID, harness.cancel(paid.booking_id))


async def test_the_sale_must_be_open(harness: BookingHarness) -> None:
    opens = harness.clock() + timedelta(hours=1)
    event = await harness.an_event(sale_start_time=opens)
    refusal = await refused(Reason.SALE_NOT_ACTIVE, harness.place(event))
    assert refusal.metadata["starts"] == rfc3339(opens)
    harness.clock.now = opens
    await harness.place(event)
    harness.clock.now = event.sale_end_time  # type: ignore[assignment]
    await refused(Reason.SALE_NOT_ACTIVE, harness.place(event))


async def test_invalid_items_are_refused(harness: BookingHarness) -> None:
    event = await harness.an_event(an_offer(max_per_booking=4))
    offer_id = event.offers[0].offer_id
    refusal = await refused(Reason.VALIDATION_FAILED, harness.place(event, quantity=5))
    assert [fault.field for fault in refusal.violations] == ["items[0].quantity"]
    two_lines = [RequestedItem(offer_id, 3, None), RequestedItem(offer_id, 2, None)]
    refusal = await refused(Reason.VALIDATION_FAILED, harness.place(event, items=two_lines))
    assert [fault.field for fault in refusal.violations] == ["items[1].quantity"]
    await refused(
        Reason.OFFER_NOT_FOUND, harness.place(event, items=[RequestedItem(new_id(), 1, None)])
    )
    await refused(
        Reason.SEAT_NOT_FOUND, harness.place(event, items=[RequestedItem(None, 1, new_id())])
    )
    unknown = [
        RequestedItem(new_id(), 1, None),
        RequestedItem(offer_id, 1, None),
        RequestedItem(None, 1, new_id()),
    ]
    refusal = await refused(Reason.OFFER_NOT_FOUND, harness.place(event, items=unknown))
    assert json.loads(refusal.metadata["failures"]) == [
        {"item": 0, "reason": "OFFER_NOT_FOUND", "offerId": str(unknown[0].offer_id)},
        {"item": 2, "reason": "SEAT_NOT_FOUND", "seatId": str(unknown[2].seat_id)},
    ]
    too_many = [*unknown, RequestedItem(offer_id, 4, None)]
    refusal = await refused(Reason.VALIDATION_FAILED, harness.place(event, items=too_many))
    assert {fault.field for fault in refusal.violations} == {
        "items[0].offer_id",
        "items[2].seat_id",
        "items[3].quantity",
    }
    assert await harness.available(event) == 10


async def test_an_unknown_provider_is_refused_before_anything_is_held(
    harness: BookingHarness,
) -> None:
    event, customer = await harness.an_event(), new_id()
    unknown = Checkout("nobody", "", "")
    await refused(Reason.PROVIDER_NOT_FOUND, harness.place(event, checkout=unknown))
    assert await harness.available(event) == 10
    # Unless payment_svc could not be asked: the booking stays, for another provider.
    harness.payments.is_away = True
    refusal = await refused(
        Reason.PROVIDER_NOT_FOUND,
        harness.place(event, customer_id=customer, checkout=unknown),
    )
    booking_id = UUID(refusal.metadata["booking_id"])
    paying = await harness.checkout(booking_id, owner=customer, checkout=SANDBOX)
    assert paying.payment is not None
    assert paying.payment.payment_url


async def test_bookings_are_listed_page_by_page_newest_first(harness: BookingHarness) -> None:
    event, customer = await harness.an_event(), new_id()
    placed = [await harness.place(event, customer_id=customer, checkout=None) for _ in range(5)]
    await harness.place(event, checkout=None)

    async def page(token: str) -> bookings.Page:
        async with harness.database.reading() as connection:
            return await bookings.list_page(
                connection, matches=Filter(customer_id=customer), page_size=2, page_token=token
            )

    listed, token = [], ""
    for _ in range(3):
        shown = await page(token)
        assert shown.total_size == 5
        listed += [booking.booking_id for booking in shown.bookings]
        token = shown.next_page_token
    assert token == ""
    assert listed == [booking.booking_id for booking in reversed(placed)]
    await refused(Reason.VALIDATION_FAILED, page("not a token"))
    # A token is valid for the filters of its list only.
    await refused(Reason.VALIDATION_FAILED, page(to_token(str(new_id()))))


async def test_steps_that_hang_do_not_delay_other_bookings(harness: BookingHarness) -> None:
    """payment_svc does not answer while bookings are cancelled and another is paid."""
    event = await harness.an_event()
    cancelled = [await harness.place(event) for _ in range(3)]
    paid = await harness.place(event)
    voiding, back = asyncio.Event(), asyncio.Event()

    async def hang(*, payment_id: UUID) -> ports.Payment:
        voiding.set()
        await back.wait()
        return ports.Payment(payment_id, "VOIDED", "")

    harness.payments.void = hang  # type: ignore[method-assign]
    running = asyncio.create_task(harness.steps.run())
    try:
        async with asyncio.timeout(60):
            for booking in cancelled:
                await harness.cancel(booking.booking_id, reason="")
            harness.deps.on_steps_enqueued()
            await voiding.wait()
            await harness.capture(paid)
            harness.deps.on_steps_enqueued()
            while (await harness.booking(paid.booking_id)).status is not Status.CONFIRMED:
                await asyncio.sleep(0.02)
    finally:
        back.set()
        running.cancel()


async def test_more_steps_than_run_at_once_are_run_without_a_pause(
    harness: BookingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_runner, "_IDLE_SECONDS", 3600)
    event = await harness.an_event(an_offer(capacity=40))
    for _ in range(20):
        booking = await harness.place(event)
        await harness.cancel(booking.booking_id, reason="")
    running = asyncio.create_task(harness.steps.run())
    async with asyncio.timeout(60):
        while await harness.available(event) < 40:
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
