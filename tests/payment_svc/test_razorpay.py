"""What only Razorpay has: its words, late authorisations, an SDK that blocks its thread."""

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
from testing.provider_harness import OLD_SECRET, Shop, razorpay_shop, reference
from testing.providers.razorpay import WEBHOOK_SECRET, RazorpayStandIn
from testing.providers.server import Fault

RazorpayShop = Shop[RazorpayStandIn]


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[RazorpayShop]:
    async with razorpay_shop(database) as shop:
        yield shop


async def test_what_is_sent_and_announced(shop: RazorpayShop) -> None:
    payment = await shop.open(success_url="https://shop.test/ok")
    assert payment.payment_url == f"https://rzp.test/i/{payment.provider_reference}"
    (sent,) = shop.stand_in.called("/payment_links")
    assert sent.body["reference_id"] == str(payment.payment_id)
    assert sent.body["callback_url"] == "https://shop.test/ok"
    shop.pay(payment)
    # Authorised, captured, and the link that was paid: one capture.
    assert await shop.deliver() == [Outcome.APPLIED, Outcome.APPLIED, Outcome.UNCHANGED]
    assert (await shop.desk.find(payment)).method == "upi"


async def test_money_that_is_authorised_late_is_captured(shop: RazorpayShop) -> None:
    """Razorpay: a try may fail first and be authorised hours later; nobody captures it for us."""
    payment = await shop.open()
    attempt = shop.stand_in.pay(reference(payment), declined="payment_timed_out")
    await shop.deliver()
    assert (await shop.desk.find(payment)).status is Status.FAILED
    shop.stand_in.clock = lambda: time.time() + 60
    shop.stand_in.late_authorize(attempt)
    await shop.deliver()
    authorized = await shop.desk.find(payment)
    assert authorized.status is Status.AUTHORIZED
    assert (await shop.cashier.capture(payment.payment_id)).status is Status.CAPTURED
    assert (await shop.cashier.capture(payment.payment_id)).status is Status.CAPTURED
    assert shop.moves() == ["CAPTURE"]


async def test_an_authorisation_that_is_gone_is_payment_failed(shop: RazorpayShop) -> None:
    payment = await shop.open()
    with pytest.raises(DomainError) as refusal:
        await shop.cashier.capture(payment.payment_id)
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID
    attempt = shop.stand_in.pay(reference(payment), authorized_only=True)
    await shop.deliver()
    shop.stand_in.give_up_authorization(attempt)
    with pytest.raises(DomainError) as refusal:
        await shop.cashier.capture(payment.payment_id)
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
async def test_amounts_are_written_as_razorpay_counts_them(
    shop: RazorpayShop, amount: Money, sent: int
) -> None:
    payment = await shop.open_paid(amount=amount)
    assert payment.status is Status.CAPTURED
    refund = await shop.refund(payment)
    assert (refund.status, refund.amount) == (RefundStatus.PROCESSED, amount)
    assert [entry.amount for entry in shop.stand_in.ledger] == [sent] * 2


@pytest.mark.parametrize("amount", [Money(1_505, "KWD"), Money(99, "INR")])
async def test_an_amount_that_razorpay_never_takes_is_payment_failed(
    shop: RazorpayShop, amount: Money
) -> None:
    order = shop.order(amount=amount)
    with pytest.raises(DomainError) as refusal:
        await shop.cashier.open(order)
    assert refusal.value.reason is Reason.PAYMENT_FAILED
    assert (await shop.desk.find_by_id(order.payment_id)).status is Status.FAILED
    assert shop.stand_in.opened == {}


@pytest.mark.parametrize("fault", [each for each in Fault if each is not Fault.TIMEOUT_AFTER])
async def test_trouble_leaves_no_connection_behind(shop: RazorpayShop, fault: Fault) -> None:
    """What nobody closes the collector finds, at any time, in any thread."""
    shop.stand_in.fail_next("/payment_links", fault)
    with pytest.raises(DomainError) as trouble:
        await shop.open()
    async with asyncio.timeout(60):
        while shop.stand_in.connections:
            await asyncio.sleep(0.01)
    # The error holds the answer, and with it whatever the answer still holds.
    assert trouble.value.reason is Reason.PAYMENT_GATEWAY_ERROR


async def test_the_loop_runs_on_while_razorpay_hangs(shop: RazorpayShop) -> None:
    """The SDK blocks its thread, never the event loop."""
    shop.stand_in.fail_next("/payment_links", Fault.TIMEOUT_AFTER)
    opening = asyncio.create_task(shop.open())
    turns = 0
    while not opening.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 10
    with pytest.raises(DomainError):
        await opening


async def test_without_webhooks_what_is_authorised_is_taken(shop: RazorpayShop) -> None:
    payment = await shop.open()
    shop.stand_in.pay(reference(payment), authorized_only=True)
    # In the same breath as we ask.
    assert (await shop.cashier.check(payment)).status is Status.CAPTURED


async def test_the_id_of_a_webhook_is_not_signed(shop: RazorpayShop) -> None:
    payment = await shop.open()
    shop.pay(payment)
    event_id, body = shop.stand_in.events[1]
    for signature in ("", plain(body, secret=WEBHOOK_SECRET).upper()):
        headers = {"x-razorpay-signature": signature, "x-razorpay-event-id": event_id}
        with pytest.raises(DomainError) as refusal:
            await shop.receive(event_id, body, headers)
        assert refusal.value.reason is Reason.WEBHOOK_SIGNATURE_INVALID
    assert (await shop.desk.find(payment)).status is Status.CREATED
    # A webhook without its id counts.
    old = {"x-razorpay-signature": plain(body, secret=OLD_SECRET)}
    assert await shop.receive(event_id, body, old) is Outcome.APPLIED
    assert await shop.receive(event_id, body, old) is Outcome.DUPLICATE
    # A replay under another id has no second effect.
    assert await shop.receive("evt_forged", body) is Outcome.UNCHANGED
    assert await shop.desk.event_kinds() == ["captured"]
