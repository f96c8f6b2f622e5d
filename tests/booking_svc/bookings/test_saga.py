"""Placing, paying and ending bookings, with the real ledger."""

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest

from booking_svc.bookings import bookings, step_runner
from booking_svc.bookings.bookings import PaymentStatus, RefundStatus, Status
from booking_svc.bookings.checkout import Checkout
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.bookings.state_machine import MOVES
from booking_svc.clients import ports
from mesh.clock import rfc3339
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from mesh.paging import to_token
from testing.booking_harness import (
    HOLD,
    SANDBOX,
    WINDOW,
    Crashes,
    ProcessDiedError,
    World,
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


async def test_placing_holds_the_places(world: World) -> None:
    event = await world.an_event()
    booking = await world.place(event, quantity=3, checkout=None)
    assert booking.status is Status.HELD
    assert booking.total == Money(450_000, "INR")
    assert booking.hold_expire_time == world.clock() + HOLD
    assert await world.available(event) == 7


async def test_checkout_opens_the_payment_and_extends_the_hold_once(world: World) -> None:
    event = await world.an_event()
    booking = await world.place(event, checkout=None)
    world.clock.advance(timedelta(minutes=9))
    paying = await world.checkout(booking.booking_id, owner=booking.customer_id, checkout=SANDBOX)
    assert paying.status is Status.PENDING_PAYMENT
    assert paying.hold_expire_time == world.clock() + WINDOW
    world.clock.advance(timedelta(minutes=5))
    again = await world.checkout(booking.booking_id, owner=booking.customer_id, checkout=SANDBOX)
    assert again == paying
    assert len(world.payments.opened) == 1


async def test_a_captured_payment_confirms(world: World) -> None:
    event = await world.an_event()
    booking = await world.place(event, quantity=2)
    await world.capture(booking)
    await world.settle()
    confirmed = await world.booking(booking.booking_id)
    assert statuses(confirmed) == ["HELD", "PENDING_PAYMENT", "CONFIRMED"]
    assert confirmed.confirm_time == world.clock()
    world.clock.advance(timedelta(days=1))
    await world.settle()
    assert await world.available(event) == 8
    assert await world.audit(event) == ()


async def test_a_free_booking_is_confirmed_by_checkout(world: World) -> None:
    event = await world.an_event(an_offer(price=Money(0, "INR")))
    booking = await world.place(event)
    assert booking.status is Status.CONFIRMED
    assert world.payments.opened == {}


async def test_the_same_key_has_one_booking(world: World) -> None:
    event, customer = await world.an_event(), new_id()
    first = await world.place(event, key="k", customer_id=customer)
    second = await world.place(event, key="k", customer_id=customer)
    assert first == second
    assert await world.available(event) == 9
    await refused(
        Reason.IDEMPOTENCY_KEY_REUSED, world.place(event, key="k", customer_id=customer, quantity=2)
    )
    assert await world.available(event) == 9


async def test_a_hundred_times_the_same_key_at_once(world: World) -> None:
    event, customer = await world.an_event(), new_id()
    answers = await asyncio.gather(
        *(world.place(event, key="k", customer_id=customer) for _ in range(100)),
        return_exceptions=True,
    )
    made = {answer.booking_id for answer in answers if not isinstance(answer, BaseException)}
    others = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(made) == 1
    assert all(
        isinstance(other, DomainError) and other.reason is Reason.IDEMPOTENCY_IN_PROGRESS
        for other in others
    )
    assert await world.available(event) == 9


async def test_several_processes_with_the_same_key(world: World) -> None:
    """A process does not see the other's running calls: the records decide."""
    event, customer = await world.an_event(), new_id()
    processes = [world, *(world.another_process() for _ in range(7))]
    answers = await asyncio.gather(
        *(process.place(event, key="k", customer_id=customer) for process in processes)
    )
    assert len({answer.booking_id for answer in answers}) == 1
    assert await world.available(event) == 9


@pytest.mark.parametrize("point", range(1, 5))
async def test_dying_at_any_call_of_placing(world: World, point: int) -> None:
    """Reserve and create each have a point before and after them."""
    event, customer = await world.an_event(), new_id()
    await world.die_at(point, world.place(event, key="k", customer_id=customer, quantity=4))
    booking = await world.place(event, key="k", customer_id=customer, quantity=4)
    assert booking.status is Status.PENDING_PAYMENT
    assert booking.payment is not None
    assert booking.payment.payment_url
    assert await world.available(event) == 6
    await world.capture(booking)
    await world.settle()
    assert (await world.booking(booking.booking_id)).status is Status.CONFIRMED
    assert await world.audit(event) == ()


async def test_a_hold_whose_caller_died_for_good_frees_itself(world: World) -> None:
    event = await world.an_event()
    await world.die_at(2, world.place(event, quantity=10))
    assert await world.available(event) == 0
    world.clock.advance(WINDOW)
    assert await world.available(event) == 10


@pytest.mark.parametrize("point", range(1, 3))
async def test_dying_at_any_call_of_confirming(world: World, point: int) -> None:
    event = await world.an_event()
    booking = await world.place(event)
    await world.capture(booking)
    await world.die_at(point, world.take_steps())
    world.clock.advance(timedelta(minutes=1))
    await world.settle()
    assert (await world.booking(booking.booking_id)).status is Status.CONFIRMED
    assert await world.available(event) == 9
    assert await world.audit(event) == ()


async def test_a_hold_expires(world: World) -> None:
    event = await world.an_event()
    held = await world.place(event, checkout=None)
    paying = await world.place(event)
    world.clock.advance(HOLD)
    await world.settle()
    assert (await world.booking(held.booking_id)).status is Status.EXPIRED
    assert (await world.booking(paying.booking_id)).status is Status.PENDING_PAYMENT
    world.clock.advance(WINDOW)
    await world.settle()
    assert (await world.booking(paying.booking_id)).status is Status.EXPIRED
    assert await world.available(event) == 10
    assert world.payments.voided == set(world.payments.opened)
    await refused(
        Reason.HOLD_EXPIRED,
        world.checkout(held.booking_id, checkout=SANDBOX),
    )


async def test_a_lapsed_hold_cannot_be_paid_before_it_is_swept(world: World) -> None:
    event = await world.an_event()
    held = await world.place(event, checkout=None)
    world.clock.advance(HOLD)
    await refused(
        Reason.HOLD_EXPIRED,
        world.checkout(held.booking_id, checkout=SANDBOX),
    )


async def test_a_late_payment_gets_its_places_again(world: World) -> None:
    event = await world.an_event()
    booking = await world.place(event, quantity=10)
    world.clock.advance(WINDOW)
    await world.settle()
    await world.capture(booking)
    await world.settle()
    confirmed = await world.booking(booking.booking_id)
    assert statuses(confirmed) == ["HELD", "PENDING_PAYMENT", "EXPIRED", "CONFIRMED"]
    assert confirmed.reservation_id != confirmed.booking_id
    assert await world.available(event) == 0
    assert world.payments.refunds == {}
    assert await world.audit(event) == ()


async def test_a_late_payment_whose_places_are_gone_is_refunded(world: World) -> None:
    event = await world.an_event()
    late = await world.place(event, quantity=10)
    world.clock.advance(WINDOW)
    await world.settle()
    await world.place(event, quantity=5)
    await world.capture(late)
    await world.settle()
    refunded = await world.booking(late.booking_id)
    assert refunded.status is Status.EXPIRED
    assert refunded.payment is not None
    [refund] = refunded.refunds
    assert (refund.payment_id, refund.amount) == (refunded.payment.payment_id, late.total)
    assert refund.status is RefundStatus.PENDING
    await world.process_refunds()
    refunded = await world.booking(late.booking_id)
    assert [refund.status for refund in refunded.refunds] == [RefundStatus.PROCESSED]
    assert refunded.payment is not None
    assert refunded.payment.status is PaymentStatus.REFUNDED


async def test_the_refund_is_processed_before_its_request_is_answered(world: World) -> None:
    event = await world.an_event()
    booking = await world.place(event)
    await world.cancel(booking.booking_id)
    await world.capture(booking)
    await world.take_steps()
    # payment_svc has done it, and its answer is lost. Stock is released in the meantime.
    world.payment_client.crashes = Crashes(at=2)
    with pytest.raises(ProcessDiedError):
        await world.take_steps()
    world.payment_client.crashes = world.crashes
    assert len(world.payments.refunds) == 1
    await world.process_refunds()
    world.clock.advance(timedelta(minutes=1))
    await world.settle()
    [refund] = (await world.booking(booking.booking_id)).refunds
    assert refund.status is RefundStatus.PROCESSED
    assert [amount for _, amount in world.payments.refunds.values()] == [booking.total]


async def test_a_payment_of_a_cancelled_booking_is_refunded(world: World) -> None:
    event = await world.an_event()
    booking = await world.place(event)
    await world.cancel(booking.booking_id, reason="changed my mind")
    await world.capture(booking)
    await world.settle()
    cancelled = await world.booking(booking.booking_id)
    assert cancelled.status is Status.CANCELLED
    assert len(world.payments.refunds) == 1
    assert await world.available(event) == 10


async def test_cancelling_and_paying_at_once(world: World) -> None:
    event = await world.an_event(an_offer(capacity=40))
    for _ in range(10):
        booking = await world.place(event)
        await asyncio.gather(
            world.capture(booking),
            world.cancel(booking.booking_id, reason=""),
            return_exceptions=True,
        )
        await world.settle()
        ended = await world.booking(booking.booking_id)
        refunds = ended.refunds
        assert (ended.status, len(refunds)) in ((Status.CONFIRMED, 0), (Status.CANCELLED, 1))
    assert await world.audit(event) == ()


async def test_a_refused_payment_fails_the_booking(world: World) -> None:
    event = await world.an_event()
    booking = await world.place(event)
    assert booking.payment is not None
    await world.happen(
        ports.Failed(booking.booking_id, booking.payment.payment_id, "card_declined")
    )
    await world.settle()
    failed = await world.booking(booking.booking_id)
    assert failed.status is Status.FAILED
    assert failed.timeline[-1].reason == "payment failed: card_declined"
    assert await world.available(event) == 10
    # The customer's second try on the same page went through before the page was closed.
    await world.capture(booking)
    await world.settle()
    assert (await world.booking(booking.booking_id)).status is Status.CONFIRMED
    assert await world.audit(event) == ()


@pytest.mark.parametrize(
    "amount", [Money(149_999, "INR"), Money(150_001, "INR"), Money(150_000, "USD")]
)
async def test_the_wrong_money_never_confirms(world: World, amount: Money) -> None:
    event = await world.an_event()
    booking = await world.place(event)
    await world.capture(booking, amount)
    await world.settle()
    ended = await world.booking(booking.booking_id)
    assert (ended.status, ended.confirm_time) == (Status.FAILED, None)
    assert [refund.amount for refund in ended.refunds] == [amount]
    assert [given for _, given in world.payments.refunds.values()] == [amount]
    assert await world.available(event) == 10


async def test_another_payment_of_the_booking_is_refunded(world: World) -> None:
    event = await world.an_event()
    booking = await world.place(event)
    await world.capture(booking)
    stray = new_id()
    await world.happen(ports.Captured(booking.booking_id, stray, booking.total))
    await world.settle()
    assert (await world.booking(booking.booking_id)).status is Status.CONFIRMED
    assert [payment for payment, _ in world.payments.refunds.values()] == [stray]


async def test_what_happens_twice_has_one_effect(world: World) -> None:
    event = await world.an_event()
    booking = await world.place(event)
    for _ in range(3):
        await world.capture(booking)
        await world.settle()
    assert statuses(await world.booking(booking.booking_id)).count("CONFIRMED") == 1
    assert await world.available(event) == 9


async def test_who_may_cancel_what(world: World) -> None:
    event = await world.an_event()
    booking = await world.place(event)
    await refused(
        Reason.BOOKING_NOT_FOUND,
        world.cancel(booking.booking_id, owner=new_id(), reason=""),
    )
    cancelled = await world.cancel(booking.booking_id, owner=booking.customer_id, reason="")
    assert cancelled.status is Status.CANCELLED
    await world.settle()
    assert await world.available(event) == 10
    await refused(
        Reason.ALREADY_CANCELLED,
        world.cancel(booking.booking_id, reason=""),
    )
    paid = await world.place(event)
    await world.capture(paid)
    # Paid and about to be confirmed: a moment later it can be cancelled by its policy.
    await refused(Reason.BOOKING_STATE_INVALID, world.cancel(paid.booking_id))


async def test_the_sale_must_be_open(world: World) -> None:
    opens = world.clock() + timedelta(hours=1)
    event = await world.an_event(sale_start_time=opens)
    refusal = await refused(Reason.SALE_NOT_ACTIVE, world.place(event))
    assert refusal.metadata["starts"] == rfc3339(opens)
    world.clock.now = opens
    await world.place(event)
    world.clock.now = event.sale_end_time  # type: ignore[assignment]
    await refused(Reason.SALE_NOT_ACTIVE, world.place(event))


async def test_lines_that_cannot_be(world: World) -> None:
    event = await world.an_event(an_offer(max_per_booking=4))
    offer_id = event.offers[0].offer_id
    refusal = await refused(Reason.VALIDATION_FAILED, world.place(event, quantity=5))
    assert [fault.field for fault in refusal.violations] == ["items[0].quantity"]
    two_lines = [RequestedItem(offer_id, 3, None), RequestedItem(offer_id, 2, None)]
    refusal = await refused(Reason.VALIDATION_FAILED, world.place(event, wanted=two_lines))
    assert [fault.field for fault in refusal.violations] == ["items[1].quantity"]
    await refused(
        Reason.OFFER_NOT_FOUND, world.place(event, wanted=[RequestedItem(new_id(), 1, None)])
    )
    await refused(
        Reason.SEAT_NOT_FOUND, world.place(event, wanted=[RequestedItem(None, 1, new_id())])
    )
    assert await world.available(event) == 10


async def test_an_unknown_provider_names_the_booking_and_leaves_it_held(world: World) -> None:
    event, customer = await world.an_event(), new_id()
    refusal = await refused(
        Reason.PROVIDER_NOT_FOUND,
        world.place(event, customer_id=customer, checkout=Checkout("nobody", "", "")),
    )
    booking_id = UUID(refusal.metadata["booking_id"])
    paying = await world.checkout(booking_id, owner=customer, checkout=SANDBOX)
    assert paying.payment is not None
    assert paying.payment.payment_url


async def test_bookings_are_listed_page_by_page_newest_first(world: World) -> None:
    event, customer = await world.an_event(), new_id()
    placed = [await world.place(event, customer_id=customer, checkout=None) for _ in range(5)]
    await world.place(event, checkout=None)

    async def page(token: str) -> bookings.Page:
        async with world.database.reading() as connection:
            return await bookings.list_page(
                connection, customer_id=customer, page_size=2, page_token=token
            )

    listed, token = [], ""
    for _ in range(3):
        found = await page(token)
        assert found.total_size == 5
        listed += [booking.booking_id for booking in found.bookings]
        token = found.next_page_token
    assert token == ""
    assert listed == [booking.booking_id for booking in reversed(placed)]
    await refused(Reason.VALIDATION_FAILED, page(to_token("not an id")))
    await refused(Reason.VALIDATION_FAILED, page("not a token"))


async def test_steps_that_hang_hold_up_no_other_booking(world: World) -> None:
    """payment_svc is away while bookings are given up; another one's payment came before."""
    event = await world.an_event()
    given_up = [await world.place(event) for _ in range(3)]
    paid = await world.place(event)
    voiding, back = asyncio.Event(), asyncio.Event()

    async def hang(*, payment_id: UUID) -> ports.Payment:
        voiding.set()
        await back.wait()
        return ports.Payment(payment_id, "VOIDED", "")

    world.payments.void = hang  # type: ignore[method-assign]
    running = asyncio.create_task(world.steps.run())
    try:
        async with asyncio.timeout(60):
            for booking in given_up:
                await world.cancel(booking.booking_id, reason="")
            world.deps.on_steps_enqueued()
            await voiding.wait()
            await world.capture(paid)
            world.deps.on_steps_enqueued()
            while (await world.booking(paid.booking_id)).status is not Status.CONFIRMED:
                await asyncio.sleep(0.02)
    finally:
        back.set()
        running.cancel()


async def test_more_steps_than_fit_at_once_are_taken_without_a_pause(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_runner, "_IDLE_SECONDS", 3600)
    event = await world.an_event(an_offer(capacity=40))
    for _ in range(20):
        booking = await world.place(event)
        await world.cancel(booking.booking_id, reason="")
    running = asyncio.create_task(world.steps.run())
    async with asyncio.timeout(60):
        while await world.available(event) < 40:
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
