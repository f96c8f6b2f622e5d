"""Declined, replaced, closed and refused payments: the places stay until the hold ends, or not."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa

from booking_svc import tables as service_tables
from booking_svc.bookings import proto, tables
from booking_svc.bookings.bookings import Actor, Booking, PaymentStatus, Status
from booking_svc.bookings.payment_pages import Checkout
from booking_svc.bookings.pricing import RequestedItem, ShownPrice
from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Captured, Contact, Failed, Voided
from booking_svc.notifications import contacts
from mesh.errors import Reason
from mesh.ids import new_id
from mesh.money import Money
from testing.booking_harness import SANDBOX, STRIPE, WINDOW, BookingHarness, an_offer
from tests.booking_svc.bookings.test_cancellation import a_confirmed, refused
from tests.booking_svc.bookings.test_event_cancellation import progress
from tests.booking_svc.bookings.test_modification import net, two_nights

SHOP = Checkout("sandbox", "https://shop.test/thanks", "https://shop.test/back")


def payment_of(booking: Booking) -> UUID:
    assert booking.payment is not None
    return booking.payment.payment_id


def declined(booking: Booking, payment_id: UUID | None = None) -> Failed:
    return Failed(
        booking.booking_id, payment_id or payment_of(booking), "card_declined", attempt_id=new_id()
    )


async def a_declined(harness: BookingHarness, event: Event) -> Booking:
    """A booking of all 10 places whose payment was declined once."""
    booking = await harness.place(event, quantity=10)
    await harness.deliver(declined(booking))
    await harness.run_until_idle()
    return await harness.booking(booking.booking_id)


async def test_a_declined_attempt_is_noted_and_the_places_stay(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await harness.place(event, quantity=10)
    attempt = declined(booking)
    for _ in range(2):
        await harness.deliver(attempt)
        await harness.run_until_idle()
    waiting = await harness.booking(booking.booking_id)
    assert waiting.status is Status.PENDING_PAYMENT
    assert waiting.payment is not None
    assert waiting.payment.status is PaymentStatus.FAILED
    assert waiting.payment.payment_url == booking.payment.payment_url  # type: ignore[union-attr]
    notes = [(entry.reason, entry.failure_code) for entry in waiting.timeline]
    assert notes[-1] == ("payment declined: card_declined", "card_declined")
    assert len(notes) == 3
    assert await harness.available(event) == 0
    # The second attempt on the same page.
    await harness.capture(booking)
    await harness.run_until_idle()
    assert (await harness.booking(booking.booking_id)).status is Status.CONFIRMED
    assert harness.payments.voided == set()
    assert await harness.audit(event) == ()


@pytest.mark.parametrize("is_declined", [True, False])
async def test_the_end_of_the_window_depends_on_a_decline(
    harness: BookingHarness, is_declined: bool
) -> None:
    event = await harness.an_event()
    booking = await harness.place(event, quantity=10)
    if is_declined:
        await harness.deliver(declined(booking))
        # Another page afterwards does not forget it.
        await harness.checkout(booking.booking_id, checkout=STRIPE)
    harness.clock.advance(WINDOW - timedelta(seconds=1))
    await harness.run_until_idle()
    assert (await harness.booking(booking.booking_id)).status is Status.PENDING_PAYMENT
    harness.clock.advance(timedelta(seconds=1))
    await harness.run_until_idle()
    ended = await harness.booking(booking.booking_id)
    assert ended.status is (Status.FAILED if is_declined else Status.EXPIRED)
    assert await harness.available(event) == 10
    assert payment_of(ended) in harness.payments.voided


@pytest.mark.parametrize(
    "second", [STRIPE, SHOP, Checkout("sandbox", "https://shop.test/other", "")]
)
async def test_another_provider_or_address_opens_a_page_and_closes_the_first(
    harness: BookingHarness, second: Checkout
) -> None:
    event = await harness.an_event()
    booking = await a_declined(harness, event)
    first = payment_of(booking)
    again = await harness.checkout(booking.booking_id, checkout=second)
    assert payment_of(again) != first
    assert again.payment is not None
    assert (again.payment.provider, again.payment.status) == (second.provider, "CREATED")
    assert again.payment.payment_url
    assert again.hold_expire_time == booking.hold_expire_time
    await harness.run_until_idle()
    assert harness.payments.voided == {first}
    # A repetition returns the same page, also without the addresses.
    for checkout in (second, Checkout(second.provider, "", "")):
        repeated = await harness.checkout(booking.booking_id, checkout=checkout)
        assert payment_of(repeated) == payment_of(again)
    await harness.capture(again)
    await harness.run_until_idle()
    assert (await harness.booking(booking.booking_id)).status is Status.CONFIRMED
    assert harness.payments.refunds == {}


@pytest.mark.parametrize("order", ["first", "second", "both", "both reversed"])
async def test_of_two_pages_one_payment_wins_and_the_other_is_refunded(
    harness: BookingHarness, order: str
) -> None:
    """The customer pays on the first page before its void."""
    event = await harness.an_event()
    booking = await a_declined(harness, event)
    first = payment_of(booking)
    second = payment_of(await harness.checkout(booking.booking_id, checkout=STRIPE))
    paid = {
        "first": [first],
        "second": [second],
        "both": [first, second],
        "both reversed": [second, first],
    }[order]
    for payment_id in paid:
        harness.payments.paid[payment_id] = booking.total
    for payment_id in paid:
        await harness.deliver(Captured(booking.booking_id, payment_id, booking.total))
    await harness.run_until_idle()
    ended = await harness.booking(booking.booking_id)
    assert (ended.status, payment_of(ended)) == (Status.CONFIRMED, paid[0])
    assert [refund.payment_id for refund in ended.refunds] == paid[1:]
    assert net(harness, booking) == booking.total.amount_minor
    assert harness.payments.voided == {first, second} - set(paid)
    if len(paid) == 2:
        assert ended.timeline[-1].reason != "a payment did not match the booking; refunded"
    assert await harness.audit(event) == ()


async def test_a_closed_page_is_replaced_by_the_next_checkout(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await harness.place(event, quantity=10)
    first = payment_of(booking)
    harness.payments.voided.add(first)
    # Also before the event arrives, with addresses.
    await harness.deliver(Voided(booking.booking_id, first))
    closed = await harness.booking(booking.booking_id)
    assert (closed.status, closed.payment and closed.payment.status) == (
        Status.PENDING_PAYMENT,
        PaymentStatus.VOIDED,
    )
    assert closed.timeline[-1].reason == "payment page closed"
    again = await harness.checkout(booking.booking_id)
    assert payment_of(again) != first
    await harness.capture(again)
    await harness.run_until_idle()
    assert (await harness.booking(booking.booking_id)).status is Status.CONFIRMED


async def test_a_final_refusal_releases_the_places_at_once(harness: BookingHarness) -> None:
    event = await harness.an_event()
    harness.payments.refusing.add("stripe")
    customer = new_id()
    place = {"quantity": 10, "checkout": STRIPE, "key": "k", "customer_id": customer}
    refusal = await refused(Reason.PAYMENT_FAILED, harness.place(event, **place))  # type: ignore[arg-type]
    await harness.run_until_idle()
    booking = await harness.booking(UUID(refusal.metadata["booking_id"]))
    assert booking.status is Status.FAILED
    assert booking.timeline[-1].reason == "payment refused: account_closed"
    assert await harness.available(event) == 10
    # The same key does not answer 201 with a booking that has ended.
    await refused(Reason.PAYMENT_FAILED, harness.place(event, **place))  # type: ignore[arg-type]


async def stored(harness: BookingHarness) -> int:
    async with harness.database.reading() as connection:
        counted = await connection.scalar(sa.select(sa.func.count()).select_from(tables.bookings))
    return counted or 0


async def test_what_cannot_be_paid_is_refused_before_anything_is_held(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event(
        an_offer(price=Money(99_999_999, "INR"), capacity=100_000, max_per_booking=100_000)
    )
    paypal = Checkout("paypal", "", "")
    refusal = await refused(Reason.PROVIDER_NOT_FOUND, harness.place(event, checkout=paypal))
    assert refusal.metadata["providers"] == "sandbox,stripe"
    refusal = await refused(
        Reason.PAYMENT_FAILED, harness.place(event, quantity=2, checkout=STRIPE)
    )
    assert "50 to 99999999" in refusal.message
    # Nobody accepts so much: refused without checkout, too.
    await refused(Reason.PAYMENT_FAILED, harness.place(event, quantity=20_000, checkout=None))
    assert (await stored(harness), await harness.available(event)) == (0, 100_000)
    held = await harness.place(event, quantity=2, checkout=None)
    for checkout, reason in ((paypal, Reason.PROVIDER_NOT_FOUND), (STRIPE, Reason.PAYMENT_FAILED)):
        await refused(reason, harness.checkout(held.booking_id, checkout=checkout))
        assert (await harness.booking(held.booking_id)).status is Status.HELD
    more = [RequestedItem(event.offers[0].offer_id, 20_000, None)]
    await refused(Reason.PAYMENT_FAILED, harness.update(held, items=more))
    # Without payment_svc, places can be held.
    harness.payments.is_away = True
    assert (await harness.place(event, checkout=None)).status is Status.HELD


async def test_an_unknown_provider_does_not_replace_the_page(harness: BookingHarness) -> None:
    booking = await harness.place(await harness.an_event())
    paypal = Checkout("paypal", "", "")
    await refused(Reason.PROVIDER_NOT_FOUND, harness.checkout(booking.booking_id, checkout=paypal))
    assert payment_of(await harness.booking(booking.booking_id)) == payment_of(booking)


@pytest.mark.parametrize("paid", ["same page", "other page", "first page", "both"])
async def test_a_declined_difference_can_be_paid_again(harness: BookingHarness, paid: str) -> None:
    first, second = await two_nights(harness, price=200_000)
    booking = await a_confirmed(harness, first)
    waiting = await harness.reschedule(booking, second)
    assert waiting.change is not None
    pages = [waiting.change.payment_id]
    await harness.deliver(declined(booking, pages[0]))
    noted = await harness.booking(booking.booking_id)
    assert (noted.status, noted.change) == (Status.CONFIRMED, waiting.change)
    assert noted.timeline[-1].failure_code == "card_declined"
    if paid != "same page":
        again = await harness.checkout(booking.booking_id, checkout=STRIPE)
        assert again.change is not None
        assert again.change.payment_url
        assert again.change.provider == "stripe"
        pages.append(again.change.payment_id)
        repeated = await harness.checkout(booking.booking_id, checkout=STRIPE)
        assert repeated.change == again.change
    chosen = {
        "same page": pages,
        "other page": pages[1:],
        "first page": pages[:1],
        "both": pages,
    }[paid]
    for page in chosen:
        await harness.capture_payment(booking, page, waiting.change.difference)
    await harness.run_until_idle()
    moved = await harness.booking(booking.booking_id)
    assert (moved.event_id, moved.status, moved.change) == (
        second.event_id,
        Status.CONFIRMED,
        None,
    )
    assert net(harness, booking) == 200_000
    assert [*await harness.audit(first), *await harness.audit(second)] == []


async def test_the_difference_must_be_payable_before_places_are_held(
    harness: BookingHarness,
) -> None:
    first, second = await two_nights(harness, price=150_010)
    booking = await a_confirmed(harness, first)
    await refused(Reason.PAYMENT_FAILED, harness.reschedule(booking, second, checkout=STRIPE))
    assert await harness.available(second) == 10
    assert (await harness.booking(booking.booking_id)).change is None


async def test_a_price_that_was_not_shown_is_refused(harness: BookingHarness) -> None:
    event = await harness.an_event()
    for shown in (ShownPrice(Money(150_001, "INR")), ShownPrice(None, "7")):
        refusal = await refused(Reason.PRICE_CHANGED, harness.place(event, shown=shown))
        assert refusal.metadata == {
            "total": "150000",
            "currency_code": "INR",
            "etag": event.etag,
        }
    assert (await stored(harness), await harness.available(event)) == (0, 10)
    exact = ShownPrice(Money(150_000, "INR"), f'W/"{event.etag}"')
    held = await harness.place(event, checkout=None, shown=exact)
    two = [RequestedItem(event.offers[0].offer_id, 2, None)]
    await refused(Reason.PRICE_CHANGED, harness.update(held, items=two, shown=exact))
    assert (await harness.booking(held.booking_id)).items == held.items
    shown = ShownPrice(Money(300_000, "INR"), event.etag)
    assert (await harness.update(held, items=two, shown=shown)).total.amount_minor == 300_000


@pytest.mark.parametrize("checkout", [None, SANDBOX])
async def test_a_key_answers_hold_expired_after_the_hold(
    harness: BookingHarness, checkout: Checkout | None
) -> None:
    event = await harness.an_event()
    customer = new_id()

    async def place() -> Booking:
        return await harness.place(event, checkout=checkout, key="k", customer_id=customer)

    booking = await place()
    assert (await place()).booking_id == booking.booking_id
    harness.clock.advance(WINDOW)
    # Before and after the sweeper.
    await refused(Reason.HOLD_EXPIRED, place())
    await harness.run_until_idle()
    await refused(Reason.HOLD_EXPIRED, place())


async def test_a_refund_id_can_be_read_when_it_is_answered(harness: BookingHarness) -> None:
    booking = await a_confirmed(harness, await harness.an_event())
    cancelled = await harness.cancel(booking.booking_id)
    assert cancelled.refunds
    assert harness.payments.refunds.keys() == {refund.refund_id for refund in cancelled.refunds}
    await harness.run_until_idle()
    assert len(harness.payments.refunds) == 1


@pytest.mark.parametrize("order", ["step first", "batch first", "expired first"])
async def test_who_pays_a_cancelled_event_is_cancelled_by_the_organiser(
    harness: BookingHarness, order: str
) -> None:
    event = await harness.an_event()
    booking = await harness.place(event)
    if order == "expired first":
        harness.clock.advance(WINDOW)
        await harness.run_until_idle()
    await harness.cancel_event(event, "Monsoon")
    await harness.capture(booking)
    if order == "batch first":
        await harness.cancel_batch()
    await harness.run_steps()
    await harness.cancel_batch()
    await harness.run_until_idle()
    await harness.process_refunds()
    ended = await harness.booking(booking.booking_id)
    moved = next(entry for entry in ended.timeline if entry.status is Status.CANCELLED)
    assert (ended.status, moved.actor) == (Status.CANCELLED, Actor.ORGANISER)
    assert "Monsoon" in {entry.reason for entry in ended.timeline}
    assert [refund.amount for refund in ended.refunds] == [booking.total]
    assert net(harness, booking) == 0
    counted = await progress(harness, event)
    assert (counted.bookings_found, counted.bookings_cancelled) == (1, 1)
    # The organiser's mail is written from this event, with the refund.
    async with harness.database.reading() as connection:
        kinds = (
            await connection.scalars(
                sa.select(service_tables.outbox.c.event_type).order_by(
                    service_tables.outbox.c.sequence
                )
            )
        ).all()
    assert kinds.count("cancelled") == 1


async def test_a_checkout_without_a_provider_uses_the_default_or_that_of_the_open_payment(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    any_provider = Checkout("", "", "")
    booking = await harness.place(event, checkout=any_provider)
    assert booking.payment is not None
    assert booking.payment.provider == "sandbox"
    await harness.checkout(booking.booking_id, checkout=STRIPE)
    again = await harness.checkout(booking.booking_id, checkout=any_provider)
    assert again.payment is not None
    assert again.payment.provider == "stripe"
    harness.deps = replace(harness.deps, default_provider="")
    refusal = await refused(Reason.VALIDATION_FAILED, harness.place(event, checkout=any_provider))
    assert [violation.field for violation in refusal.violations] == ["provider"]


async def test_an_embedded_payment_has_a_secret_while_it_can_be_paid(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    embedded = replace(SANDBOX, is_embedded=True)
    booking = await harness.place(event, checkout=embedded)
    again = await harness.checkout(booking.booking_id, checkout=embedded)
    assert booking.payment == again.payment
    assert booking.payment is not None
    message = proto.booking(booking).payment
    assert message.client_secret == f"secret of {booking.payment.payment_id}"
    assert (message.payment_url, message.HasField("expire_time")) == ("", True)
    # Another flow replaces the payment.
    hosted = await harness.checkout(booking.booking_id, checkout=SANDBOX)
    assert payment_of(hosted) != payment_of(booking)
    assert not proto.booking(hosted).payment.HasField("client_secret")
    embedded_again = await harness.checkout(booking.booking_id, checkout=embedded)
    await harness.capture(embedded_again)
    await harness.run_until_idle()
    paid = await harness.booking(booking.booking_id)
    assert paid.status is Status.CONFIRMED
    payment = proto.booking(paid).payment
    assert (payment.HasField("client_secret"), payment.HasField("expire_time")) == (False, False)
    refusal = await refused(
        Reason.VALIDATION_FAILED,
        harness.place(event, checkout=replace(STRIPE, is_embedded=True)),
    )
    assert [violation.field for violation in refusal.violations] == ["flow"]


async def test_an_embedded_payment_of_a_price_difference(harness: BookingHarness) -> None:
    first, second = await two_nights(harness, 200_000)
    booking = await a_confirmed(harness, first)
    waiting = await harness.reschedule(booking, second, checkout=replace(SANDBOX, is_embedded=True))
    assert waiting.change is not None
    payment = proto.booking(waiting).change.payment
    assert payment.client_secret == f"secret of {waiting.change.payment_id}"
    assert payment.HasField("expire_time")


async def test_the_contact_of_the_customer_goes_to_the_payment(harness: BookingHarness) -> None:
    event, customer = await harness.an_event(), new_id()
    contact = Contact(customer, "mira@example.com", "Mira Rao", "+919876543210")
    async with harness.database.transaction() as connection:
        await contacts.store(connection, contact=contact, now=harness.clock())
    booking = await harness.place(event, customer_id=customer)
    assert harness.payments.contacts[payment_of(booking)] == contact
