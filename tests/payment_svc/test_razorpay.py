"""Razorpay, through its own SDK, against a stand-in for its API that checks what is sent."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mesh.database import Database
from mesh.errors import DomainError, Reason
from mesh.money import Money
from payment_svc import disputes, webhooks
from payment_svc.cashier import Cashier
from payment_svc.pacing import Wakeup
from payment_svc.payments import Payment, Status
from payment_svc.providers import DisputeStatus, MovementKind
from payment_svc.razorpay_provider import NAME, RazorpayProvider
from payment_svc.refunds import Refund
from payment_svc.refunds import Status as RefundStatus
from payment_svc.signatures import plain
from payment_svc.webhooks import Outcome
from tests.payment_svc.desk import Desk, an_order
from tests.stand_ins.razorpay import KEY_ID, KEY_SECRET, WEBHOOK_SECRET, RazorpayStandIn
from tests.stand_ins.server import Fault

OLD_SECRET = "the secret before"


@dataclass
class Shop:
    """payment_svc's parts with Razorpay as the provider, and Razorpay's other side."""

    desk: Desk
    razorpay: RazorpayStandIn
    provider: RazorpayProvider
    cashier: Cashier

    async def open(self, **changes: Any) -> Payment:
        return await self.cashier.open(an_order(provider=NAME, **changes))

    async def open_paid(self, **changes: Any) -> Payment:
        payment = await self.open(**changes)
        self.razorpay.pay(payment.provider_reference or "")
        await self.deliver()
        return await self.desk.find(payment)

    async def deliver(self) -> list[Outcome]:
        """Brings every event that Razorpay ever announced, again and again."""
        return [await self.receive(event_id, body) for event_id, body in self.razorpay.events]

    async def receive(self, event_id: str, body: bytes, **headers: str) -> Outcome:
        signed = headers or self.razorpay.headers_for(event_id, body)
        event = self.provider.read_webhook(body, signed, now=self.desk.clock())
        async with self.desk.database.transaction() as connection:
            return await webhooks.receive(
                connection, provider=NAME, event=event, payload=body, now=self.desk.clock()
            )

    async def refund_due(self) -> None:
        """Carries out what is due, and what becomes due after failures."""
        for _ in range(30):
            # Beyond any pause between two tries.
            self.desk.clock.advance(301)
            if not await self.cashier.refund_due():
                return
        raise AssertionError("a refund never ends")

    async def refund(self, payment: Payment, amount: Money | None = None) -> Refund:
        refund = await self.desk.request_refund(payment, amount)
        await self.refund_due()
        return await self.desk.find_refund(refund)


@pytest.fixture
def razorpay() -> Iterator[RazorpayStandIn]:
    stand_in = RazorpayStandIn()
    with stand_in.running():
        yield stand_in
    assert stand_in.complaints == []


@pytest.fixture
async def shop(database: Database, razorpay: RazorpayStandIn) -> AsyncIterator[Shop]:
    desk = Desk(database)
    # Razorpay's times are compared with ours.
    desk.clock.now = datetime.now(UTC) + timedelta(seconds=1)
    provider = RazorpayProvider(
        key_id=KEY_ID,
        key_secret=KEY_SECRET,
        webhook_secrets=[OLD_SECRET, WEBHOOK_SECRET],
        api_base=razorpay.url,
        clock=desk.clock,
        call_seconds=2,
    )
    cashier = Cashier(database, {NAME: provider}, desk.clock, Wakeup())
    try:
        yield Shop(desk, razorpay, provider, cashier)
    finally:
        await provider.close()


async def test_from_opening_to_two_partial_refunds(shop: Shop) -> None:
    payment = await shop.open(success_url="https://shop.test/ok")
    assert payment.payment_url == f"https://rzp.test/i/{payment.provider_reference}"
    (sent,) = shop.razorpay.called("/payment_links")
    assert sent.body["reference_id"] == str(payment.payment_id)
    assert sent.body["callback_url"] == "https://shop.test/ok"
    shop.razorpay.pay(payment.provider_reference or "")
    # Authorised, captured, and the link that was paid: one capture.
    assert await shop.deliver() == [Outcome.APPLIED, Outcome.APPLIED, Outcome.UNCHANGED]
    paid = await shop.desk.find(payment)
    assert (paid.status, paid.method) == (Status.CAPTURED, "upi")
    assert (await shop.refund(paid, Money(50_000, "INR"))).status is RefundStatus.PROCESSED
    assert (await shop.desk.find(payment)).status is Status.PARTIALLY_REFUNDED
    await shop.refund(paid)
    assert (await shop.desk.find(payment)).status is Status.REFUNDED
    await shop.deliver()
    name = str(payment.payment_id)
    assert [(one.kind, one.payment, one.amount) for one in shop.razorpay.ledger] == [
        ("CAPTURE", name, 150_000),
        ("REFUND", name, 50_000),
        ("REFUND", name, 100_000),
    ]
    assert await shop.desk.event_kinds() == ["captured", "refund_processed", "refund_processed"]


async def test_money_that_is_authorised_late_is_captured(shop: Shop) -> None:
    """Razorpay: a try may fail first and be authorised hours later; nobody captures it for us."""
    payment = await shop.open()
    link = payment.provider_reference or ""
    attempt = shop.razorpay.pay(link, declined="payment_timed_out")
    await shop.deliver()
    assert (await shop.desk.find(payment)).status is Status.FAILED
    shop.razorpay.clock = lambda: time.time() + 60
    shop.razorpay.late_authorize(attempt)
    await shop.deliver()
    authorized = await shop.desk.find(payment)
    assert authorized.status is Status.AUTHORIZED
    assert (await shop.cashier.capture(payment.payment_id)).status is Status.CAPTURED
    assert (await shop.cashier.capture(payment.payment_id)).status is Status.CAPTURED
    assert [entry.kind for entry in shop.razorpay.ledger] == ["CAPTURE"]


async def test_an_authorisation_that_is_gone_is_payment_failed(shop: Shop) -> None:
    payment = await shop.open()
    with pytest.raises(DomainError) as refusal:
        await shop.cashier.capture(payment.payment_id)
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID
    attempt = shop.razorpay.pay(payment.provider_reference or "", authorized_only=True)
    await shop.deliver()
    shop.razorpay.give_up_authorization(attempt)
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
    shop: Shop, amount: Money, sent: int
) -> None:
    payment = await shop.open_paid(amount=amount)
    assert payment.status is Status.CAPTURED
    refund = await shop.refund(payment)
    assert (refund.status, refund.amount) == (RefundStatus.PROCESSED, amount)
    assert [entry.amount for entry in shop.razorpay.ledger] == [sent] * 2


@pytest.mark.parametrize("amount", [Money(1_505, "KWD"), Money(99, "INR")])
async def test_an_amount_that_razorpay_never_takes_is_payment_failed(
    shop: Shop, amount: Money
) -> None:
    with pytest.raises(DomainError) as refusal:
        await shop.open(amount=amount)
    assert refusal.value.reason is Reason.PAYMENT_FAILED
    assert shop.razorpay.links == {}


@pytest.mark.parametrize("fault", list(Fault))
async def test_trouble_while_opening_and_refunding_moves_money_once(
    shop: Shop, fault: Fault
) -> None:
    order = an_order(provider=NAME)
    shop.razorpay.fail_next("/payment_links", fault)
    with pytest.raises(DomainError) as refusal:
        await shop.cashier.open(order)
    assert refusal.value.reason is Reason.PAYMENT_GATEWAY_ERROR
    payment = await shop.cashier.open(order)
    assert len(shop.razorpay.links) == 1
    shop.razorpay.pay(payment.provider_reference or "")
    await shop.deliver()
    shop.razorpay.fail_next("/refund", fault, fault)
    assert (await shop.refund(payment)).status is RefundStatus.PROCESSED
    assert [entry.kind for entry in shop.razorpay.ledger] == ["CAPTURE", "REFUND"]


@pytest.mark.parametrize("fault", [each for each in Fault if each is not Fault.TIMEOUT_AFTER])
async def test_trouble_leaves_no_connection_behind(shop: Shop, fault: Fault) -> None:
    """What nobody closes the collector finds, at any time, in any thread."""
    shop.razorpay.fail_next("/payment_links", fault)
    with pytest.raises(DomainError) as trouble:
        await shop.open()
    async with asyncio.timeout(10):
        while shop.razorpay.connections:
            await asyncio.sleep(0.01)
    # The error holds the answer, and with it whatever the answer still holds.
    assert trouble.value.reason is Reason.PAYMENT_GATEWAY_ERROR


async def test_the_loop_runs_on_while_razorpay_hangs(shop: Shop) -> None:
    """The SDK blocks its thread, never the event loop."""
    shop.razorpay.fail_next("/payment_links", Fault.TIMEOUT_AFTER)
    opening = asyncio.create_task(shop.open())
    turns = 0
    while not opening.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 10
    with pytest.raises(DomainError):
        await opening


@pytest.mark.parametrize("end", ["processed", "failed"])
@pytest.mark.parametrize("is_told", [True, False])
async def test_a_refund_that_takes_its_time(shop: Shop, end: str, is_told: bool) -> None:
    payment = await shop.open_paid()
    shop.razorpay.refund_status = "pending"
    refund = await shop.desk.request_refund(payment)
    await shop.cashier.refund_due()
    assert (await shop.desk.find_refund(refund)).status is RefundStatus.PENDING
    shop.razorpay.refund_status = "processed"
    shop.razorpay.finish_refunds(end)
    if is_told:
        await shop.deliver()
    await shop.refund_due()
    assert (await shop.desk.find_refund(refund)).status is RefundStatus.PROCESSED
    assert [entry.kind for entry in shop.razorpay.ledger] == ["CAPTURE", "REFUND"]
    assert len(shop.razorpay.refunds) == (1 if end == "processed" else 2)


async def test_razorpay_decides_between_a_void_and_a_customer(shop: Shop) -> None:
    given_up, paid = await shop.open(), await shop.open()
    shop.razorpay.pay(paid.provider_reference or "")
    assert (await shop.cashier.void(given_up.payment_id)).status is Status.VOIDED
    assert (await shop.cashier.void(given_up.payment_id)).status is Status.VOIDED
    assert (await shop.cashier.void(paid.payment_id)).status is Status.CAPTURED
    with pytest.raises(ValueError, match="cancelled"):
        shop.razorpay.pay(given_up.provider_reference or "")


async def test_a_payment_whose_opening_was_never_heard_is_closed_at_razorpay(shop: Shop) -> None:
    order = an_order(provider=NAME)
    shop.razorpay.fail_next("/payment_links", Fault.ERROR_AFTER)
    with pytest.raises(DomainError):
        await shop.cashier.open(order)
    assert (await shop.cashier.void(order.payment_id)).status is Status.VOIDED
    (link,) = shop.razorpay.links.values()
    assert link["status"] == "cancelled"


async def test_without_webhooks_asking_tells_all(shop: Shop) -> None:
    paid, refused, authorized, closed = [await shop.open() for _ in range(4)]
    shop.razorpay.pay(paid.provider_reference or "")
    shop.razorpay.pay(refused.provider_reference or "", declined="incorrect_pin")
    shop.razorpay.pay(authorized.provider_reference or "", authorized_only=True)
    shop.razorpay.links[closed.provider_reference or ""]["status"] = "expired"
    ends = [(await shop.cashier.check(one)).status for one in (paid, refused, authorized, closed)]
    # What is authorised is taken in the same breath.
    assert ends == [Status.CAPTURED, Status.FAILED, Status.CAPTURED, Status.VOIDED]


async def test_disputes_are_followed_to_their_end(shop: Shop) -> None:
    payment = await shop.open()
    attempt = shop.razorpay.pay(payment.provider_reference or "")
    shop.razorpay.dispute(attempt)
    await shop.deliver()
    shop.razorpay.dispute(attempt, "won")
    await shop.deliver()
    async with shop.desk.database.transaction() as connection:
        (dispute,) = await disputes.of_payment(connection, payment_id=payment.payment_id)
    assert (dispute.status, dispute.reason) == (DisputeStatus.WON, "goods_not_received")


async def test_all_movements_are_listed(shop: Shop) -> None:
    payments = [await shop.open_paid() for _ in range(2)]
    await shop.refund(payments[0])
    now = datetime.now(UTC)
    found = await shop.provider.movements(
        since=now - timedelta(hours=1), until=now + timedelta(hours=1)
    )
    assert sorted(one.kind for one in found) == [
        MovementKind.CAPTURE,
        MovementKind.CAPTURE,
        MovementKind.REFUND,
    ]


async def test_only_what_razorpay_signed_counts(shop: Shop) -> None:
    payment = await shop.open()
    shop.razorpay.pay(payment.provider_reference or "")
    event_id, body = shop.razorpay.events[1]
    signature = plain(body, secret=WEBHOOK_SECRET)
    again = json.dumps(json.loads(body)).encode()
    bad = [
        (body, {"x-razorpay-signature": ""}),
        (body, {"x-razorpay-event-id": event_id}),
        (body, {"x-razorpay-signature": plain(body, secret="another's")}),
        (body, {"x-razorpay-signature": signature.upper()}),
        (again, {"x-razorpay-signature": signature}),
        (body + b" ", {"x-razorpay-signature": signature}),
    ]
    for content, headers in bad:
        with pytest.raises(DomainError) as refusal:
            await shop.receive(event_id, content, **headers)
        assert refusal.value.reason is Reason.WEBHOOK_SIGNATURE_INVALID
    assert (await shop.desk.find(payment)).status is Status.CREATED
    # A secret that is being replaced still counts, and a webhook without its id.
    old = {"x-razorpay-signature": plain(body, secret=OLD_SECRET)}
    assert await shop.receive(event_id, body, **old) is Outcome.APPLIED
    assert await shop.receive(event_id, body, **old) is Outcome.DUPLICATE
    # The id is not signed: a replay under another id has no second effect.
    assert await shop.receive("evt_forged", body) is Outcome.UNCHANGED
    assert await shop.desk.event_kinds() == ["captured"]
