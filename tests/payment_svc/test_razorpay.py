"""What only Razorpay has: its own terms, late authorisations, an SDK that blocks its thread."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.money import Money
from payment_svc.payments import Status
from payment_svc.providers.signatures import plain
from payment_svc.refunds import Status as RefundStatus
from payment_svc.webhooks import Outcome
from testing.provider_harness import OLD_SECRET, ProviderHarness, razorpay_harness, reference
from testing.providers.razorpay import WEBHOOK_SECRET, RazorpayStandIn
from testing.providers.server import Fault
from testing.waiting import until

RazorpayHarness = ProviderHarness[RazorpayStandIn]


@pytest.fixture
async def harness(database: Database) -> AsyncIterator[RazorpayHarness]:
    async with razorpay_harness(database) as harness:
        yield harness


async def test_a_payment_is_a_payment_link(harness: RazorpayHarness) -> None:
    payment = await harness.open(success_url="https://shop.test/ok")
    assert payment.payment_url == f"https://rzp.test/i/{payment.provider_reference}"
    (sent,) = harness.stand_in.called("/payment_links")
    assert sent.body["reference_id"] == str(payment.payment_id)
    assert sent.body["callback_url"] == "https://shop.test/ok"
    await harness.pay(payment)
    # Authorised, captured, and the link that was paid: one capture.
    assert await harness.deliver() == [Outcome.APPLIED, Outcome.APPLIED, Outcome.UNCHANGED]
    assert (await harness.find(payment)).method == "upi"


async def test_an_embedded_payment_is_refused(harness: RazorpayHarness) -> None:
    with pytest.raises(DomainError) as refusal:
        await harness.open(is_embedded=True)
    assert refusal.value.reason is Reason.VALIDATION_FAILED
    assert harness.stand_in.opened == {}


async def test_a_late_authorisation_is_captured(harness: RazorpayHarness) -> None:
    """Razorpay can authorise a failed attempt hours later. It does not capture it by itself."""
    payment = await harness.open()
    attempt = harness.stand_in.pay(reference(payment), declined="payment_timed_out")
    await harness.deliver()
    assert (await harness.find(payment)).status is Status.FAILED
    harness.stand_in.clock = lambda: time.time() + 60
    harness.stand_in.late_authorize(attempt)
    await harness.deliver()
    authorized = await harness.find(payment)
    assert authorized.status is Status.AUTHORIZED
    assert (await harness.calls.capture(payment.payment_id)).status is Status.CAPTURED
    assert (await harness.calls.capture(payment.payment_id)).status is Status.CAPTURED
    assert harness.moves() == ["CAPTURE"]


async def test_an_authorisation_that_has_ended_is_payment_failed(harness: RazorpayHarness) -> None:
    payment = await harness.open()
    with pytest.raises(DomainError) as refusal:
        await harness.calls.capture(payment.payment_id)
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID
    attempt = harness.stand_in.pay(reference(payment), authorized_only=True)
    await harness.deliver()
    harness.stand_in.release_authorization(attempt)
    with pytest.raises(DomainError) as refusal:
        await harness.calls.capture(payment.payment_id)
    assert refusal.value.reason is Reason.PAYMENT_FAILED


@pytest.mark.parametrize(
    ("amount", "sent"),
    [
        (Money(1_500, "JPY"), 1500),
        (Money(150_000, "INR"), 150_000),
        (Money(1_500, "KWD"), 1500),
        (Money(1_999, "EUR"), 1999),
    ],
)
async def test_amounts_are_in_razorpays_units(
    harness: RazorpayHarness, amount: Money, sent: int
) -> None:
    payment = await harness.open_paid(amount=amount)
    assert payment.status is Status.CAPTURED
    refund = await harness.refund(payment)
    assert (refund.status, refund.amount) == (RefundStatus.PROCESSED, amount)
    assert [entry.amount for entry in harness.stand_in.ledger] == [sent] * 2


@pytest.mark.parametrize("amount", [Money(1_505, "KWD"), Money(99, "INR")])
async def test_an_amount_that_razorpay_rejects_is_payment_failed(
    harness: RazorpayHarness, amount: Money
) -> None:
    order = harness.order(amount=amount)
    with pytest.raises(DomainError) as refusal:
        await harness.calls.open(order)
    assert refusal.value.reason is Reason.PAYMENT_FAILED
    assert (await harness.find_by_id(order.payment_id)).status is Status.FAILED
    # Voiding it does not open it.
    assert (await harness.calls.void(order.payment_id)).status is Status.VOIDED
    assert harness.stand_in.opened == {}
    limits = harness.provider.limits(amount.currency_code)
    assert limits is not None
    assert not limits.accept(amount)


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.TIMEOUT_AFTER])
async def test_a_failed_call_leaves_no_connection_open(
    harness: RazorpayHarness, fault: Fault
) -> None:
    """A connection that is not closed explicitly is closed at garbage collection, in any thread."""
    harness.stand_in.fail_next("/payment_links", fault)
    with pytest.raises(DomainError) as failure:
        await harness.open()
    await until(lambda: not harness.stand_in.connections)
    # The exception keeps the response alive: nothing was closed by its deletion.
    assert failure.value.reason is Reason.PAYMENT_GATEWAY_ERROR


async def test_the_event_loop_is_not_blocked_while_razorpay_hangs(harness: RazorpayHarness) -> None:
    """The SDK blocks its thread, never the event loop."""
    harness.stand_in.fail_next("/payment_links", Fault.TIMEOUT_AFTER)
    opening = asyncio.create_task(harness.short_calls.open(harness.order()))
    turns = 0
    while not opening.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 10
    with pytest.raises(DomainError):
        await opening


async def test_without_webhooks_a_check_captures_an_authorisation(harness: RazorpayHarness) -> None:
    payment = await harness.open()
    harness.stand_in.pay(reference(payment), authorized_only=True)
    assert (await harness.calls.check(payment)).status is Status.CAPTURED


async def test_a_webhook_is_identified_by_its_content_and_not_by_its_unsigned_id_alone(
    harness: RazorpayHarness,
) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    event_id, body = harness.stand_in.events[1]
    for signature in ("", plain(body, secret=WEBHOOK_SECRET).upper()):
        headers = {"x-razorpay-signature": signature, "x-razorpay-event-id": event_id}
        with pytest.raises(DomainError) as refusal:
            await harness.receive(event_id, body, headers)
        assert refusal.value.reason is Reason.WEBHOOK_SIGNATURE_INVALID
    assert (await harness.find(payment)).status is Status.CREATED
    # A webhook without an id is received.
    old = {"x-razorpay-signature": plain(body, secret=OLD_SECRET)}
    assert await harness.receive(event_id, body, old) is Outcome.APPLIED
    assert await harness.receive(event_id, body, old) is Outcome.DUPLICATE
    # A replay under another id has no second effect.
    assert await harness.receive("evt_forged", body) is Outcome.UNCHANGED
    assert await harness.event_kinds() == ["captured"]
