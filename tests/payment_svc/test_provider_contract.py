"""What every provider must do: one suite, over Stripe and over Razorpay.

What only one of them has is in test_stripe.py and test_razorpay.py.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.money import Money
from payment_svc import declines, disputes, refunds
from payment_svc.ledger import Account
from payment_svc.payments import Status
from payment_svc.providers.base import Captured, DisputeStatus, MovementKind, RefundProcessed
from payment_svc.refunds import Status as RefundStatus
from payment_svc.tables import payments, webhook_inbox
from payment_svc.webhooks import Outcome
from testing.provider_harness import (
    OLD_SECRET,
    SHORT_CALL_SECONDS,
    ProviderHarness,
    razorpay_harness,
    reference,
    stripe_harness,
)
from testing.providers.server import Fault, StandIn

AnyHarness = ProviderHarness[StandIn]


@pytest.fixture(params=[stripe_harness, razorpay_harness], ids=["stripe", "razorpay"])
async def harness(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[AnyHarness]:
    async with request.param(database) as harness:
        yield harness


async def test_a_payment_is_opened_paid_and_refunded_in_two_parts(harness: AnyHarness) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    await harness.deliver()
    paid = await harness.find(payment)
    assert paid.status is Status.CAPTURED
    assert paid.provider_reference == payment.provider_reference

    refund = await harness.refund(paid, Money(50_000, "INR"))
    assert refund.status is RefundStatus.PROCESSED
    assert (await harness.find(payment)).status is Status.PARTIALLY_REFUNDED
    await harness.refund(paid)
    assert (await harness.find(payment)).status is Status.REFUNDED
    await harness.deliver()
    name = str(payment.payment_id)
    assert [(entry.kind, entry.payment, entry.amount) for entry in harness.stand_in.ledger] == [
        ("CAPTURE", name, 150_000),
        ("REFUND", name, 50_000),
        ("REFUND", name, 100_000),
    ]
    assert [kind for kind in await harness.event_kinds() if kind != "refund_updated"] == [
        "captured",
        "refund_processed",
        "refund_processed",
    ]


async def test_the_answer_of_a_check_that_found_the_payment_paid_is_kept(
    harness: AnyHarness,
) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    for _ in range(2):
        assert (await harness.calls.check(payment)).status is Status.CAPTURED
    async with harness.database.reading() as connection:
        kept = (await connection.execute(sa.select(webhook_inbox))).one()
    assert (kept.payment_id, kept.event_type) == (payment.payment_id, "answer.Captured")
    paid = await harness.find(payment)
    assert str(paid.provider_reference) in kept.payload.decode() or "captured" in str(kept.payload)


async def test_the_customers_contact_goes_to_the_page_once(harness: AnyHarness) -> None:
    order = harness.order(email="mira@example.com", phone="+919876543210")
    harness.stand_in.fail_next(harness.stand_in.opening_path, Fault.ERROR_AFTER)
    with pytest.raises(DomainError):
        await harness.calls.open(order)
    # The repetition sends what was stored, whatever the customer has changed meanwhile.
    await harness.calls.open(replace(order, email="other@example.com"))
    bodies = [request.body for request in harness.stand_in.called(harness.stand_in.opening_path)]
    assert all("mira@example.com" in str(body) for body in bodies)
    async with harness.database.reading() as connection:
        stored = (await connection.execute(sa.select(payments))).one()
    assert (stored.customer_email, stored.customer_phone) == (None, None)


async def test_a_payment_can_be_paid_after_a_declined_attempt(
    harness: AnyHarness,
) -> None:
    payment = await harness.open()
    await harness.pay(payment, declined="insufficient_funds")
    await harness.deliver()
    failed = await harness.find(payment)
    assert (failed.status, failed.failure_code) == (Status.FAILED, "insufficient_funds")
    await harness.pay(payment)
    await harness.deliver()
    assert (await harness.find(payment)).status is Status.CAPTURED


async def test_each_declined_attempt_is_reported_once(harness: AnyHarness) -> None:
    """By its webhook, twice, and by checks at later times."""
    payment = await harness.open()
    for code in ("insufficient_funds", "lost_card"):
        await harness.pay(payment, declined=code)
        await harness.calls.check(payment)
        await harness.deliver()
        harness.clock.advance(60)
        await harness.calls.check(payment)
        await harness.deliver()
    async with harness.database.reading() as connection:
        attempts = await declines.of_payment(connection, payment_id=payment.payment_id)
    assert [attempt.failure_code for attempt in attempts] == ["insufficient_funds", "lost_card"]
    assert await harness.event_kinds() == ["failed", "failed"]
    await harness.pay(payment)
    await harness.deliver()
    assert (await harness.find(payment)).status is Status.CAPTURED
    # A late report of an attempt changes nothing.
    await harness.calls.check(payment)
    assert await harness.event_kinds() == ["failed", "failed", "captured"]


async def test_a_refund_between_two_steps_of_kwd_is_rounded_up(harness: AnyHarness) -> None:
    payment = await harness.open_paid(amount=Money(15_000, "KWD"))
    refund = await harness.request_refund(payment, Money(14_555, "KWD"))
    assert refund.amount == Money(14_560, "KWD")


@pytest.mark.parametrize("fault", list(Fault))
async def test_faults_while_opening_and_refunding_move_money_once(
    harness: AnyHarness, fault: Fault
) -> None:
    calls = harness.short_calls if fault is Fault.TIMEOUT_AFTER else harness.calls
    order = harness.order()
    harness.stand_in.fail_next(harness.stand_in.opening_path, fault)
    with pytest.raises(DomainError) as refusal:
        await calls.open(order)
    assert refusal.value.reason is Reason.PAYMENT_GATEWAY_ERROR
    payment = await harness.calls.open(order)
    assert len(harness.stand_in.opened) == 1
    await harness.pay(payment)
    await harness.deliver()
    harness.stand_in.fail_next("/refund", fault, fault)
    refund = await harness.request_refund(payment)
    for _ in range(2):
        await calls.refund_due()
        harness.clock.advance(301)
    await harness.complete_refunds()
    assert (await harness.find_refund(refund)).status is RefundStatus.PROCESSED
    assert harness.moves() == ["CAPTURE", "REFUND"]


async def test_a_call_that_hangs_times_out_and_its_repetition_opens_one_payment(
    harness: AnyHarness,
) -> None:
    impatient = harness.calls_to(harness.provider, call_seconds=SHORT_CALL_SECONDS)
    order = harness.order()
    harness.stand_in.fail_next(harness.stand_in.opening_path, Fault.TIMEOUT_AFTER)
    with pytest.raises(DomainError) as refusal:
        await impatient.open(order)
    assert refusal.value.metadata["code"] == "timeout"
    await harness.calls.open(order)
    assert len(harness.stand_in.opened) == 1


async def test_a_key_that_the_provider_deleted_does_not_refund_twice(harness: AnyHarness) -> None:
    """Stripe keeps keys for a day. A retry therefore looks for an earlier refund first."""
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment)
    harness.stand_in.fail_next("/refund", Fault.ERROR_AFTER)
    await harness.calls.refund_due()
    harness.stand_in.forget_keys()
    await harness.complete_refunds()
    assert (await harness.find_refund(refund)).status is RefundStatus.PROCESSED
    assert harness.moves() == ["CAPTURE", "REFUND"]


@pytest.mark.parametrize("succeeds", [True, False])
@pytest.mark.parametrize("has_webhook", [True, False])
async def test_a_refund_that_the_provider_completes_later(
    harness: AnyHarness, succeeds: bool, has_webhook: bool
) -> None:
    payment = await harness.open_paid()
    harness.stand_in.has_slow_refunds = True
    refund = await harness.request_refund(payment)
    await harness.calls.refund_due()
    assert (await harness.find_refund(refund)).status is RefundStatus.PENDING
    harness.stand_in.has_slow_refunds = False
    harness.stand_in.finish_refunds(succeed=succeeds)
    if has_webhook:
        await harness.deliver()
    await harness.complete_refunds()
    assert (await harness.find_refund(refund)).status is RefundStatus.PROCESSED
    assert harness.moves() == ["CAPTURE", "REFUND"]
    assert len(harness.stand_in.refunds) == (1 if succeeds else 2)


async def test_the_provider_decides_between_a_void_and_a_customer_who_pays(
    harness: AnyHarness,
) -> None:
    voided, paid = await harness.open(), await harness.open()
    await harness.pay(paid)
    assert (await harness.calls.void(voided.payment_id)).status is Status.VOIDED
    assert (await harness.calls.void(voided.payment_id)).status is Status.VOIDED
    assert (await harness.calls.void(paid.payment_id)).status is Status.CAPTURED
    with pytest.raises(ValueError, match=harness.stand_in.closed_status):
        await harness.pay(voided)


async def test_a_payment_whose_opening_had_no_answer_is_closed(harness: AnyHarness) -> None:
    order = harness.order()
    harness.stand_in.fail_next(harness.stand_in.opening_path, Fault.ERROR_AFTER)
    with pytest.raises(DomainError):
        await harness.calls.open(order)
    assert (await harness.calls.void(order.payment_id)).status is Status.VOIDED
    (opened,) = harness.stand_in.opened.values()
    assert opened["status"] == harness.stand_in.closed_status


async def test_without_webhooks_a_check_finds_the_state(harness: AnyHarness) -> None:
    paid, refused, closed = [await harness.open() for _ in range(3)]
    await harness.pay(paid)
    await harness.pay(refused, declined="lost_card")
    harness.stand_in.opened[reference(closed)]["status"] = "expired"
    checked = [await harness.calls.check(payment) for payment in (paid, refused, closed)]
    assert [payment.status for payment in checked] == [
        Status.CAPTURED,
        Status.FAILED,
        Status.VOIDED,
    ]


async def test_a_refund_in_the_providers_dashboard_is_entered_once(harness: AnyHarness) -> None:
    payment = await harness.open_paid()
    harness.stand_in.refund_in_dashboard(reference(payment), 100_000)
    await harness.deliver()
    after = await harness.find(payment)
    assert (after.status, after.refunded) == (Status.PARTIALLY_REFUNDED, Money(100_000, "INR"))
    # Its webhook again, and the list of movements.
    again = await harness.deliver()
    assert set(again) <= {Outcome.DUPLICATE}
    now = datetime.now(UTC)
    for movement in await harness.provider.movements(
        since=now - timedelta(hours=1), until=now + timedelta(hours=1)
    ):
        await harness.apply_reports(movement.report)
    assert await harness.find(payment) == after
    assert (await harness.balances())[Account.EVENT, "INR"] == -50_000
    with pytest.raises(DomainError) as refusal:
        await harness.request_refund(payment, Money(50_001, "INR"))
    assert refusal.value.metadata["refundable"] == "50000"
    await harness.refund(payment)
    assert [entry.amount for entry in harness.stand_in.ledger] == [150_000, 100_000, 50_000]


async def test_a_refund_that_the_dashboard_has_overtaken_is_not_tried_for_ever(
    harness: AnyHarness,
) -> None:
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment, Money(145_500, "INR"))
    harness.stand_in.refund_in_dashboard(reference(payment), 100_000)
    # The provider refuses it: the webhook is on its way.
    assert await harness.calls.refund_due() == 1
    assert (await harness.find_refund(refund)).due_time is None
    await harness.deliver()
    assert (await harness.find_refund(refund)).status is RefundStatus.CANCELLED
    # What is left of the promise is refunded.
    await harness.complete_refunds()
    assert (await harness.find(payment)).status is Status.REFUNDED
    assert [entry.amount for entry in harness.stand_in.ledger] == [150_000, 100_000, 50_000]


async def test_a_completed_refund_that_comes_back_is_reversed(harness: AnyHarness) -> None:
    payment = await harness.open_paid()
    refund = await harness.refund(payment)
    await harness.deliver()
    harness.stand_in.return_refunds()
    await harness.deliver()
    failed = await harness.find_refund(refund)
    assert (failed.status, failed.due_time) == (RefundStatus.FAILED, None)
    after = await harness.find(payment)
    assert (after.status, after.refunded) == (Status.CAPTURED, Money(0, "INR"))
    balances = await harness.balances()
    assert balances[Account.EVENT, "INR"] == -150_000
    assert sum(balances.values()) == 0
    # It is still owed: nobody can promise the money twice.
    with pytest.raises(DomainError):
        await harness.request_refund(payment, Money(1, "INR"))
    # An outdated report of its success changes nothing.
    assert failed.failed_references
    await harness.apply_reports(
        RefundProcessed(
            payment.payment_id,
            None,
            harness.clock(),
            refund.refund_id,
            failed.failed_references[0],
            refund.amount,
        )
    )
    assert await harness.find_refund(refund) == failed
    async with harness.database.transaction() as connection:
        assert await refunds.list_failed(connection, after=None, limit=10) == [failed]
        await refunds.retry(connection, refund_id=refund.refund_id, now=harness.clock())
    await harness.complete_refunds()
    assert (await harness.find_refund(refund)).status is RefundStatus.PROCESSED
    assert (await harness.find(payment)).status is Status.REFUNDED
    assert len(harness.stand_in.refunds) == 2
    assert (await harness.balances())[Account.EVENT, "INR"] == 0


async def test_an_inquiry_takes_no_money_and_is_not_told(harness: AnyHarness) -> None:
    payment = await harness.open_paid()
    for is_closed, status in [(False, DisputeStatus.INQUIRY), (True, DisputeStatus.INQUIRY_CLOSED)]:
        harness.stand_in.inquire(reference(payment), is_closed=is_closed)
        await harness.deliver()
        async with harness.database.transaction() as connection:
            (inquiry,) = await disputes.of_payment(connection, payment_id=payment.payment_id)
        assert inquiry.status is status
    assert await harness.event_kinds() == ["captured"]
    # It escalates: a dispute opens.
    harness.stand_in.dispute(reference(payment), reason="general")
    await harness.deliver()
    *_, event = await harness.events()
    assert event.disputed.disputed.amount_minor == 150_000


async def test_disputed_money_is_not_refunded(harness: AnyHarness) -> None:
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment, Money(50_000, "INR"))
    harness.stand_in.dispute(reference(payment), reason="general")
    await harness.deliver()
    assert (await harness.find_refund(refund)).status is RefundStatus.CANCELLED
    await harness.complete_refunds()
    with pytest.raises(DomainError) as refusal:
        await harness.request_refund(payment)
    assert refusal.value.metadata["refundable"] == "0"
    harness.stand_in.dispute(reference(payment), reason="general", end="won")
    await harness.deliver()
    await harness.refund(payment)
    assert harness.moves() == ["CAPTURE", "REFUND"]


@pytest.mark.parametrize("end", [DisputeStatus.WON, DisputeStatus.LOST])
async def test_disputes_are_recorded_until_they_are_decided(
    harness: AnyHarness, end: DisputeStatus
) -> None:
    payment = await harness.open_paid()
    harness.stand_in.dispute(reference(payment), reason="goods_not_received")
    assert (await harness.deliver())[-1] is Outcome.APPLIED
    harness.stand_in.dispute(reference(payment), reason="goods_not_received", end=end.lower())
    await harness.deliver()
    async with harness.database.transaction() as connection:
        (dispute,) = await disputes.of_payment(connection, payment_id=payment.payment_id)
    assert (dispute.status, dispute.amount) == (end, payment.amount)
    assert dispute.reason == "goods_not_received"
    assert (await harness.find(payment)).status is Status.CAPTURED


async def test_all_movements_are_listed(harness: AnyHarness) -> None:
    payments = [await harness.open_paid() for _ in range(3)]
    await harness.refund(payments[0])
    now = datetime.now(UTC)
    movements = await harness.provider.movements(
        since=now - timedelta(hours=1), until=now + timedelta(hours=1)
    )
    ledger = {(entry.kind, entry.reference, entry.amount) for entry in harness.stand_in.ledger}
    assert {
        (movement.kind, movement.reference, movement.amount.amount_minor) for movement in movements
    } == ledger
    assert sorted(movement.kind for movement in movements) == [MovementKind.CAPTURE] * 3 + [
        MovementKind.REFUND
    ]
    captures = [movement.report for movement in movements if isinstance(movement.report, Captured)]
    assert {capture.fee for capture in captures} == {Money(3_000, "INR")}
    # Each identifies its payment, by our id or by the provider's.
    ids = {payment.payment_id for payment in payments}
    ids_of_provider = {payment.provider_reference for payment in payments}
    identified = {capture.payment_id or capture.session_reference for capture in captures}
    assert len(identified & (ids | ids_of_provider)) == 3


async def test_only_webhooks_that_the_provider_signed_are_received(harness: AnyHarness) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    event_id, body = harness.stand_in.events[0]
    signed = harness.stand_in.headers_for(event_id, body)
    again = json.dumps(json.loads(body)).encode()
    flipped = bytes([body[0] ^ 1]) + body[1:]
    invalid: list[tuple[bytes, dict[str, str]]] = [
        (body, {}),
        (body, {"other": "header"}),
        (body, dict.fromkeys(signed, "")),
        (body, harness.stand_in.headers_for(event_id, body, secret="another merchant's")),
        (again, signed),
        (flipped, signed),
        (body + b" ", signed),
    ]
    for content, headers in invalid:
        with pytest.raises(DomainError) as refusal:
            await harness.receive(event_id, content, headers)
        assert refusal.value.reason is Reason.WEBHOOK_SIGNATURE_INVALID
    assert (await harness.find(payment)).status is Status.CREATED
    # During a rotation the old secret is valid, too.
    old = harness.stand_in.headers_for(event_id, body, secret=OLD_SECRET)
    assert await harness.receive(event_id, body, old) is Outcome.APPLIED
    assert await harness.receive(event_id, body) is Outcome.DUPLICATE


async def test_a_refund_without_an_answer_waits_for_staff_after_three_days(
    harness: AnyHarness,
) -> None:
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment)
    for _ in range(16):
        harness.clock.advance(5 * 3600)
        harness.stand_in.fail_next("refund", Fault.ERROR)
        # A circuit breaker of its own: it would stop the calls.
        await harness.calls_to(harness.provider).refund_due()
    given_up = await harness.find_refund(refund)
    assert (given_up.status, given_up.failure_code, given_up.due_time) == (
        RefundStatus.FAILED,
        "no_answer",
        None,
    )
    async with harness.database.transaction() as connection:
        assert await refunds.list_failed(connection, after=None, limit=2) == [given_up]
        await refunds.retry(connection, refund_id=refund.refund_id, now=harness.clock())
    harness.stand_in.faults.clear()
    assert await harness.calls_to(harness.provider).refund_due() == 1
    assert (await harness.find_refund(refund)).status is RefundStatus.PROCESSED
    assert harness.moves() == ["CAPTURE", "REFUND"]


async def test_an_accepted_refund_is_given_up_after_thirty_days(harness: AnyHarness) -> None:
    payment = await harness.open_paid()
    harness.stand_in.has_slow_refunds = True
    refund = await harness.request_refund(payment)
    for days, status in ((29, RefundStatus.PENDING), (1, RefundStatus.FAILED)):
        harness.clock.advance(days * 24 * 3600)
        await harness.calls.refund_due()
        assert (await harness.find_refund(refund)).status is status
    # It may still be made.
    harness.stand_in.finish_refunds(succeed=True)
    await harness.deliver()
    assert (await harness.find_refund(refund)).status is RefundStatus.PROCESSED
