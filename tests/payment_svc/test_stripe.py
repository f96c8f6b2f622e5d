"""Stripe, through its own SDK, against a stand-in for its API that checks what is sent."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe as sdk

from mesh.clock import system_clock
from mesh.database import Database
from mesh.errors import DomainError, Reason
from mesh.money import Money
from payment_svc import disputes, refunds, webhooks
from payment_svc.cashier import Cashier
from payment_svc.pacing import Wakeup
from payment_svc.payments import Payment, Status
from payment_svc.providers import DisputeStatus, MovementKind
from payment_svc.refunds import Refund
from payment_svc.refunds import Status as RefundStatus
from payment_svc.stripe_provider import NAME, StripeProvider
from payment_svc.webhooks import Outcome
from tests.payment_svc.desk import Desk, a_key, an_order
from tests.stand_ins.server import Fault
from tests.stand_ins.stripe import SECRET_KEY, WEBHOOK_SECRET, StripeStandIn

OLD_SECRET = "whsec_old"


@dataclass
class Shop:
    """payment_svc's parts with Stripe as the provider, and Stripe's other side."""

    desk: Desk
    stripe: StripeStandIn
    provider: StripeProvider
    cashier: Cashier

    async def open(self, **changes: Any) -> Payment:
        return await self.cashier.open(an_order(provider=NAME, **changes))

    async def open_paid(self, **changes: Any) -> Payment:
        payment = await self.open(**changes)
        self.stripe.pay(payment.provider_reference or "")
        await self.deliver()
        return await self.desk.find(payment)

    async def deliver(self) -> list[Outcome]:
        """Brings every event that Stripe ever announced, again and again."""
        return [await self.receive(event_id, body) for event_id, body in self.stripe.events]

    async def receive(self, event_id: str, body: bytes, **headers: str) -> Outcome:
        signed = headers or self.stripe.headers_for(event_id, body)
        event = self.provider.read_webhook(body, signed, now=system_clock())
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
def stripe() -> Iterator[StripeStandIn]:
    stand_in = StripeStandIn()
    with stand_in.running():
        yield stand_in
    assert stand_in.complaints == []


@pytest.fixture
async def shop(database: Database, stripe: StripeStandIn) -> AsyncIterator[Shop]:
    desk = Desk(database)
    provider = StripeProvider(
        secret_key=SECRET_KEY,
        webhook_secrets=[OLD_SECRET, WEBHOOK_SECRET],
        api_base=stripe.url,
        return_url="http://gateway.test",
        clock=desk.clock,
    )
    async with AsyncExitStack() as closing:
        closing.push_async_callback(provider.close)
        yield Shop(
            desk, stripe, provider, Cashier(database, {NAME: provider}, desk.clock, Wakeup())
        )


async def test_from_opening_to_two_partial_refunds(shop: Shop) -> None:
    payment = await shop.open(description="2 × North Stand", success_url="https://shop.test/ok")
    assert payment.payment_url == f"https://checkout.stripe.test/{payment.provider_reference}"
    (sent,) = shop.stripe.called("/checkout/sessions")
    assert sent.headers["idempotency-key"] == f"{payment.payment_id}:open"
    assert sent.body["line_items[0][price_data][unit_amount]"] == "150000"
    assert sent.body["line_items[0][price_data][currency]"] == "inr"
    assert sent.body["success_url"] == "https://shop.test/ok"
    shop.stripe.pay(payment.provider_reference or "")
    assert await shop.deliver() == [Outcome.APPLIED, Outcome.UNKNOWN_TYPE]
    paid = await shop.desk.find(payment)
    assert (paid.status, paid.method) == (Status.CAPTURED, "card")
    assert paid.provider_reference == payment.provider_reference

    refund = await shop.refund(paid, Money(50_000, "INR"))
    assert refund.status is RefundStatus.PROCESSED
    assert (await shop.desk.find(payment)).status is Status.PARTIALLY_REFUNDED
    await shop.refund(paid)
    assert (await shop.desk.find(payment)).status is Status.REFUNDED
    await shop.deliver()
    name = str(payment.payment_id)
    capture, *refunds = shop.stripe.ledger
    assert (capture.kind, capture.payment, capture.amount) == ("CAPTURE", name, 150_000)
    assert [(one.kind, one.amount) for one in refunds] == [("REFUND", 50_000), ("REFUND", 100_000)]
    assert await shop.desk.event_kinds() == ["captured", "refund_processed", "refund_processed"]


async def test_an_attempt_that_is_declined_can_be_followed_by_one_that_pays(shop: Shop) -> None:
    payment = await shop.open()
    shop.stripe.pay(payment.provider_reference or "", declined="insufficient_funds")
    await shop.deliver()
    failed = await shop.desk.find(payment)
    assert (failed.status, failed.failure_code) == (Status.FAILED, "insufficient_funds")
    shop.stripe.pay(payment.provider_reference or "")
    await shop.deliver()
    assert (await shop.desk.find(payment)).status is Status.CAPTURED


@pytest.mark.parametrize(
    ("amount", "sent"),
    [
        (Money(1_500, "JPY"), "1500"),
        (Money(150_000, "INR"), "150000"),
        (Money(1_500, "KWD"), "1500"),
        (Money(1_999, "EUR"), "1999"),
        (Money(1_500, "ISK"), "150000"),
        (Money(1_500, "UGX"), "150000"),
        (Money(150_000, "MGA"), "1500"),
    ],
)
async def test_amounts_are_written_as_stripe_counts_them(
    shop: Shop, amount: Money, sent: str
) -> None:
    payment = await shop.open_paid(amount=amount)
    (opened,) = shop.stripe.called("/checkout/sessions")
    assert opened.body["line_items[0][price_data][unit_amount]"] == sent
    assert payment.status is Status.CAPTURED
    refund = await shop.refund(payment)
    assert (refund.status, refund.amount) == (RefundStatus.PROCESSED, amount)
    assert [entry.amount for entry in shop.stripe.ledger] == [int(sent)] * 2


@pytest.mark.parametrize("amount", [Money(1_505, "KWD"), Money(150, "MGA"), Money(10, "EUR")])
async def test_an_amount_that_stripe_never_takes_is_payment_failed(
    shop: Shop, amount: Money
) -> None:
    order = an_order(provider=NAME, amount=amount)
    with pytest.raises(DomainError) as refusal:
        await shop.cashier.open(order)
    assert refusal.value.reason is Reason.PAYMENT_FAILED
    assert (await shop.desk.find_by_id(order.payment_id)).status is Status.FAILED
    assert shop.stripe.sessions == {}


async def test_a_refund_between_two_steps_of_kwd_is_rounded_up(shop: Shop) -> None:
    payment = await shop.open_paid(amount=Money(15_000, "KWD"))
    async with shop.desk.database.transaction() as connection:
        refund = await refunds.request(
            connection,
            payment_id=payment.payment_id,
            amount=Money(14_555, "KWD"),
            reason="",
            key=a_key(),
            now=shop.desk.clock(),
            step_minor=shop.cashier.step_minor,
        )
    assert refund.amount == Money(14_560, "KWD")


@pytest.mark.parametrize(
    "fault", [Fault.ERROR, Fault.ERROR_AFTER, Fault.THROTTLE, Fault.GARBAGE_AFTER]
)
async def test_trouble_while_opening_and_refunding_moves_money_once(
    shop: Shop, fault: Fault
) -> None:
    order = an_order(provider=NAME)
    shop.stripe.fail_next("/checkout/sessions", fault)
    with pytest.raises(DomainError) as refusal:
        await shop.cashier.open(order)
    assert refusal.value.reason is Reason.PAYMENT_GATEWAY_ERROR
    payment = await shop.cashier.open(order)
    assert len(shop.stripe.sessions) == 1
    shop.stripe.pay(payment.provider_reference or "")
    await shop.deliver()
    shop.stripe.fail_next("/refunds", fault, fault)
    assert (await shop.refund(payment)).status is RefundStatus.PROCESSED
    assert [entry.kind for entry in shop.stripe.ledger] == ["CAPTURE", "REFUND"]


async def test_a_hanging_stripe_is_given_up_and_done_once(shop: Shop) -> None:
    cashier = Cashier(
        shop.desk.database, {NAME: shop.provider}, shop.desk.clock, Wakeup(), call_seconds=0.5
    )
    order = an_order(provider=NAME)
    shop.stripe.fail_next("/checkout/sessions", Fault.TIMEOUT_AFTER)
    with pytest.raises(DomainError) as refusal:
        await cashier.open(order)
    assert refusal.value.metadata["code"] == "timeout"
    await cashier.open(order)
    assert len(shop.stripe.sessions) == 1


async def test_a_key_that_stripe_forgot_does_not_refund_twice(shop: Shop) -> None:
    """Stripe keeps keys for a day: after an outage that is longer, we look first."""
    payment = await shop.open_paid()
    refund = await shop.desk.request_refund(payment)
    shop.stripe.fail_next("/refunds", Fault.ERROR_AFTER)
    await shop.cashier.refund_due()
    shop.stripe._keys.clear()
    await shop.refund_due()
    assert (await shop.desk.find_refund(refund)).status is RefundStatus.PROCESSED
    assert [entry.kind for entry in shop.stripe.ledger] == ["CAPTURE", "REFUND"]


@pytest.mark.parametrize("end", ["succeeded", "failed"])
@pytest.mark.parametrize("is_told", [True, False])
async def test_a_refund_that_takes_its_time(shop: Shop, end: str, is_told: bool) -> None:
    payment = await shop.open_paid()
    shop.stripe.refund_status = "pending"
    refund = await shop.desk.request_refund(payment)
    await shop.cashier.refund_due()
    assert (await shop.desk.find_refund(refund)).status is RefundStatus.PENDING
    shop.stripe.refund_status = "succeeded"
    shop.stripe.finish_refunds(end)
    if is_told:
        await shop.deliver()
    await shop.refund_due()
    assert (await shop.desk.find_refund(refund)).status is RefundStatus.PROCESSED
    assert [entry.kind for entry in shop.stripe.ledger] == ["CAPTURE", "REFUND"]
    assert len(shop.stripe.refunds) == (1 if end == "succeeded" else 2)


async def test_stripe_decides_between_a_void_and_a_customer(shop: Shop) -> None:
    given_up, paid = await shop.open(), await shop.open()
    shop.stripe.pay(paid.provider_reference or "")
    assert (await shop.cashier.void(given_up.payment_id)).status is Status.VOIDED
    assert (await shop.cashier.void(paid.payment_id)).status is Status.CAPTURED
    with pytest.raises(ValueError, match="expired"):
        shop.stripe.pay(given_up.provider_reference or "")


async def test_a_payment_whose_opening_was_never_heard_is_closed_at_stripe(shop: Shop) -> None:
    order = an_order(provider=NAME)
    shop.stripe.fail_next("/checkout/sessions", Fault.ERROR_AFTER)
    with pytest.raises(DomainError):
        await shop.cashier.open(order)
    assert (await shop.cashier.void(order.payment_id)).status is Status.VOIDED
    (session,) = shop.stripe.sessions.values()
    assert session["status"] == "expired"


async def test_without_webhooks_asking_tells_all(shop: Shop) -> None:
    paid, refused, closed = [await shop.open() for _ in range(3)]
    shop.stripe.pay(paid.provider_reference or "")
    shop.stripe.pay(refused.provider_reference or "", declined="lost_card")
    shop.stripe.sessions[closed.provider_reference or ""]["status"] = "expired"
    ends = [(await shop.cashier.check(one)).status for one in (paid, refused, closed)]
    assert ends == [Status.CAPTURED, Status.FAILED, Status.VOIDED]


async def test_what_happens_past_us_is_seen(shop: Shop) -> None:
    payment = await shop.open_paid()
    session = payment.provider_reference or ""
    shop.stripe.refund_in_dashboard(session, 100)
    shop.stripe.dispute(session)
    outcomes = await shop.deliver()
    assert outcomes[-2:] == [Outcome.UNEXPLAINED, Outcome.APPLIED]
    shop.stripe.dispute(session, "lost")
    await shop.deliver()
    async with shop.desk.database.transaction() as connection:
        (dispute,) = await disputes.of_payment(connection, payment_id=payment.payment_id)
    assert (dispute.status, dispute.amount) == (DisputeStatus.LOST, payment.amount)
    assert (await shop.desk.find(payment)).status is Status.CAPTURED


async def test_all_movements_are_listed_over_all_pages(shop: Shop) -> None:
    payments = [await shop.open_paid() for _ in range(3)]
    await shop.refund(payments[0])
    now = datetime.now(UTC)
    found = await shop.provider.movements(
        since=now - timedelta(hours=1), until=now + timedelta(hours=1)
    )
    captures = [one for one in found if one.kind is MovementKind.CAPTURE]
    assert {one.report.payment_id for one in captures} == {one.payment_id for one in payments}
    assert {one.report.fee for one in captures} == {Money(3_000, "INR")}  # type: ignore[union-attr]
    assert [one.amount for one in found if one.kind is MovementKind.REFUND] == [payments[0].amount]


def signed(body: bytes, *, secret: str = WEBHOOK_SECRET, age: int = 0) -> dict[str, str]:
    at = int(system_clock().timestamp()) - age
    header = sdk.WebhookSignature.generate_signature_header(body.decode("latin-1"), secret, at)
    return {"stripe-signature": header}


async def test_only_what_stripe_signed_just_now_counts(shop: Shop) -> None:
    payment = await shop.open()
    shop.stripe.pay(payment.provider_reference or "")
    event_id, body = shop.stripe.events[0]
    again = json.dumps(json.loads(body)).encode()
    flipped = bytes([body[0] ^ 1]) + body[1:]
    bad: list[tuple[bytes, dict[str, str]]] = [
        (body, {"stripe-signature": ""}),
        (body, {"other": "header"}),
        (body, signed(body, age=301)),
        (body, signed(body, secret="whsec_of_another_shop")),
        (again, signed(body)),
        (flipped, signed(body)),
    ]
    for content, headers in bad:
        with pytest.raises(DomainError) as refusal:
            await shop.receive(event_id, content, **headers)
        assert refusal.value.reason is Reason.WEBHOOK_SIGNATURE_INVALID
    assert (await shop.desk.find(payment)).status is Status.CREATED
    # A secret that is being replaced still counts.
    assert await shop.receive(event_id, body, **signed(body, secret=OLD_SECRET)) is Outcome.APPLIED
    assert await shop.receive(event_id, body, **signed(body, age=299)) is Outcome.DUPLICATE


@pytest.mark.parametrize("change", [{"amount_received": 149_999}, {"currency": "usd"}])
async def test_another_amount_or_currency_does_not_pay(shop: Shop, change: dict[str, Any]) -> None:
    payment = await shop.open()
    shop.stripe.pay(payment.provider_reference or "")
    event_id, body = shop.stripe.events[0]
    event = json.loads(body)
    event["data"]["object"] |= change
    changed = json.dumps(event).encode()
    assert await shop.receive(event_id, changed, **signed(changed)) is Outcome.APPLIED
    failed = await shop.desk.find(payment)
    assert (failed.status, failed.failure_code) == (Status.FAILED, "amount_mismatch")
