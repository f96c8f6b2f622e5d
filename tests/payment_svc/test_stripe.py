"""What only Stripe has: its own terms, its units, the time in its signatures."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.money import Money
from payment_svc.payments import Status
from payment_svc.providers.stripe.provider import StripeProvider
from payment_svc.refunds import Status as RefundStatus
from payment_svc.webhooks import Outcome
from testing.provider_harness import ProviderHarness, stripe_harness
from testing.providers.stripe import StripeStandIn

StripeHarness = ProviderHarness[StripeStandIn]


@pytest.fixture
async def harness(database: Database) -> AsyncIterator[StripeHarness]:
    async with stripe_harness(database) as harness:
        yield harness


async def test_a_payment_is_a_checkout_session(harness: StripeHarness) -> None:
    payment = await harness.open(description="2 × North Stand", success_url="https://shop.test/ok")
    assert payment.payment_url == f"https://checkout.stripe.test/{payment.provider_reference}"
    (sent,) = harness.stand_in.called("/checkout/sessions")
    assert sent.headers["idempotency-key"] == f"{payment.payment_id}:open"
    assert sent.body["line_items[0][price_data][unit_amount]"] == "150000"
    assert sent.body["line_items[0][price_data][currency]"] == "inr"
    assert sent.body["success_url"] == "https://shop.test/ok"
    await harness.pay(payment)
    assert await harness.deliver() == [Outcome.APPLIED, Outcome.UNKNOWN_TYPE]
    assert (await harness.find(payment)).method == "card"


async def test_an_embedded_payment_is_an_intent_that_a_webhook_or_a_check_finds_paid(
    harness: StripeHarness,
) -> None:
    order = harness.order(is_embedded=True)
    payment, again = await harness.calls.open(order), await harness.calls.open(order)
    assert payment == again
    assert (payment.payment_url, payment.client_secret) == (
        "",
        f"{payment.provider_reference}_secret_stand_in",
    )
    (sent,) = harness.stand_in.called("/payment_intents")
    assert (sent.body["amount"], sent.body["currency"]) == ("150000", "inr")
    await harness.pay(payment, declined="insufficient_funds")
    await harness.deliver()
    assert (await harness.find(payment)).status is Status.FAILED
    await harness.pay(payment)
    assert (await harness.calls.check(payment)).status is Status.CAPTURED
    assert Outcome.APPLIED not in await harness.deliver()
    assert (await harness.find(payment)).client_secret is None
    by_webhook = await harness.calls.open(harness.order(is_embedded=True))
    await harness.pay(by_webhook)
    assert Outcome.APPLIED in await harness.deliver()
    paid = await harness.find(by_webhook)
    assert paid.status is Status.CAPTURED
    assert (await harness.refund(paid)).status is RefundStatus.PROCESSED
    assert harness.stand_in.violations == []


async def test_a_voided_embedded_payment_cannot_be_paid(harness: StripeHarness) -> None:
    payment = await harness.open(is_embedded=True)
    assert (await harness.calls.void(payment.payment_id)).status is Status.VOIDED
    assert harness.stand_in.intents[str(payment.provider_reference)]["status"] == "canceled"
    await harness.deliver()
    assert (await harness.find(payment)).status is Status.VOIDED
    # Paid before it could be voided.
    paid = await harness.open(is_embedded=True)
    await harness.pay(paid)
    assert (await harness.calls.void(paid.payment_id)).status is Status.CAPTURED


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
async def test_amounts_are_in_stripes_units(
    harness: StripeHarness, amount: Money, sent: str
) -> None:
    payment = await harness.open_paid(amount=amount)
    (opened,) = harness.stand_in.called("/checkout/sessions")
    assert opened.body["line_items[0][price_data][unit_amount]"] == sent
    assert payment.status is Status.CAPTURED
    refund = await harness.refund(payment)
    assert (refund.status, refund.amount) == (RefundStatus.PROCESSED, amount)
    assert [entry.amount for entry in harness.stand_in.ledger] == [int(sent)] * 2


@pytest.mark.parametrize("amount", [Money(1_505, "KWD"), Money(150, "MGA"), Money(10, "EUR")])
async def test_an_amount_that_stripe_rejects_is_payment_failed(
    harness: StripeHarness, amount: Money
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


async def test_an_account_that_stripe_rejects_is_a_final_refusal(harness: StripeHarness) -> None:
    provider = StripeProvider(
        secret_key="sk_of_a_closed_account",
        webhook_secrets=[],
        api_base=harness.stand_in.url,
        return_url="http://gateway.test",
        clock=harness.clock,
    )
    try:
        with pytest.raises(DomainError) as refusal:
            await harness.calls_to(provider).open(harness.order())
    finally:
        await provider.close()
    assert refusal.value.reason is Reason.PAYMENT_FAILED


async def test_only_a_webhook_signed_in_the_last_five_minutes_is_received(
    harness: StripeHarness,
) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    event_id, body = harness.stand_in.events[0]
    harness.stand_in.clock = lambda: time.time() - 301
    with pytest.raises(DomainError) as refusal:
        await harness.receive(event_id, body)
    assert refusal.value.reason is Reason.WEBHOOK_SIGNATURE_INVALID
    assert (await harness.find(payment)).status is Status.CREATED
    harness.stand_in.clock = lambda: time.time() - 299
    assert await harness.receive(event_id, body) is Outcome.APPLIED


@pytest.mark.parametrize("change", [{"amount_received": 149_999}, {"currency": "usd"}])
async def test_another_amount_or_currency_does_not_pay(
    harness: StripeHarness, change: dict[str, Any]
) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    event_id, body = harness.stand_in.events[0]
    event = json.loads(body)
    event["data"]["object"] |= change
    assert await harness.receive(event_id, json.dumps(event).encode()) is Outcome.APPLIED
    failed = await harness.find(payment)
    assert (failed.status, failed.failure_code) == (Status.FAILED, "amount_mismatch")
