"""What every provider must do: one suite, over Stripe and over Razorpay.

What only one of the two has stands in test_stripe.py and test_razorpay.py.
"""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.money import Money
from payment_svc import disputes, refunds
from payment_svc.payments import Status
from payment_svc.providers.base import Captured, DisputeStatus, MovementKind
from payment_svc.refunds import Status as RefundStatus
from payment_svc.webhooks import Outcome
from testing.payment_harness import a_key
from testing.provider_harness import OLD_SECRET, Shop, razorpay_shop, reference, stripe_shop
from testing.providers.server import Fault, StandIn

AnyShop = Shop[StandIn]


@pytest.fixture(params=[stripe_shop, razorpay_shop], ids=["stripe", "razorpay"])
async def shop(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[AnyShop]:
    async with request.param(database) as shop:
        yield shop


async def test_from_opening_to_two_partial_refunds(shop: AnyShop) -> None:
    payment = await shop.open()
    shop.pay(payment)
    await shop.deliver()
    paid = await shop.desk.find(payment)
    assert paid.status is Status.CAPTURED
    assert paid.provider_reference == payment.provider_reference

    refund = await shop.refund(paid, Money(50_000, "INR"))
    assert refund.status is RefundStatus.PROCESSED
    assert (await shop.desk.find(payment)).status is Status.PARTIALLY_REFUNDED
    await shop.refund(paid)
    assert (await shop.desk.find(payment)).status is Status.REFUNDED
    await shop.deliver()
    name = str(payment.payment_id)
    assert [(one.kind, one.payment, one.amount) for one in shop.stand_in.ledger] == [
        ("CAPTURE", name, 150_000),
        ("REFUND", name, 50_000),
        ("REFUND", name, 100_000),
    ]
    assert await shop.desk.event_kinds() == ["captured", "refund_processed", "refund_processed"]


async def test_an_attempt_that_is_declined_can_be_followed_by_one_that_pays(shop: AnyShop) -> None:
    payment = await shop.open()
    shop.pay(payment, declined="insufficient_funds")
    await shop.deliver()
    failed = await shop.desk.find(payment)
    assert (failed.status, failed.failure_code) == (Status.FAILED, "insufficient_funds")
    shop.pay(payment)
    await shop.deliver()
    assert (await shop.desk.find(payment)).status is Status.CAPTURED


async def test_a_refund_between_two_steps_of_kwd_is_rounded_up(shop: AnyShop) -> None:
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


@pytest.mark.parametrize("fault", list(Fault))
async def test_trouble_while_opening_and_refunding_moves_money_once(
    shop: AnyShop, fault: Fault
) -> None:
    order = shop.order()
    shop.stand_in.fail_next(shop.stand_in.opening_path, fault)
    with pytest.raises(DomainError) as refusal:
        await shop.cashier.open(order)
    assert refusal.value.reason is Reason.PAYMENT_GATEWAY_ERROR
    payment = await shop.cashier.open(order)
    assert len(shop.stand_in.opened) == 1
    shop.pay(payment)
    await shop.deliver()
    shop.stand_in.fail_next("/refund", fault, fault)
    assert (await shop.refund(payment)).status is RefundStatus.PROCESSED
    assert shop.moves() == ["CAPTURE", "REFUND"]


async def test_a_provider_that_hangs_is_given_up_and_done_once(shop: AnyShop) -> None:
    shop = shop.giving_up_after(0.5)
    order = shop.order()
    shop.stand_in.fail_next(shop.stand_in.opening_path, Fault.TIMEOUT_AFTER)
    with pytest.raises(DomainError) as refusal:
        await shop.cashier.open(order)
    assert refusal.value.metadata["code"] == "timeout"
    await shop.cashier.open(order)
    assert len(shop.stand_in.opened) == 1


async def test_a_key_that_was_forgotten_does_not_refund_twice(shop: AnyShop) -> None:
    """Stripe keeps keys for a day: after an outage that is longer, we look first."""
    payment = await shop.open_paid()
    refund = await shop.desk.request_refund(payment)
    shop.stand_in.fail_next("/refund", Fault.ERROR_AFTER)
    await shop.cashier.refund_due()
    shop.stand_in.forget_keys()
    await shop.refund_due()
    assert (await shop.desk.find_refund(refund)).status is RefundStatus.PROCESSED
    assert shop.moves() == ["CAPTURE", "REFUND"]


@pytest.mark.parametrize("succeeds", [True, False])
@pytest.mark.parametrize("is_told", [True, False])
async def test_a_refund_that_takes_its_time(shop: AnyShop, succeeds: bool, is_told: bool) -> None:
    payment = await shop.open_paid()
    shop.stand_in.has_slow_refunds = True
    refund = await shop.desk.request_refund(payment)
    await shop.cashier.refund_due()
    assert (await shop.desk.find_refund(refund)).status is RefundStatus.PENDING
    shop.stand_in.has_slow_refunds = False
    shop.stand_in.finish_refunds(succeed=succeeds)
    if is_told:
        await shop.deliver()
    await shop.refund_due()
    assert (await shop.desk.find_refund(refund)).status is RefundStatus.PROCESSED
    assert shop.moves() == ["CAPTURE", "REFUND"]
    assert len(shop.stand_in.refunds) == (1 if succeeds else 2)


async def test_the_provider_decides_between_a_void_and_a_customer(shop: AnyShop) -> None:
    given_up, paid = await shop.open(), await shop.open()
    shop.pay(paid)
    assert (await shop.cashier.void(given_up.payment_id)).status is Status.VOIDED
    assert (await shop.cashier.void(given_up.payment_id)).status is Status.VOIDED
    assert (await shop.cashier.void(paid.payment_id)).status is Status.CAPTURED
    with pytest.raises(ValueError, match=shop.stand_in.given_up):
        shop.pay(given_up)


async def test_a_payment_whose_opening_was_never_heard_is_closed(shop: AnyShop) -> None:
    order = shop.order()
    shop.stand_in.fail_next(shop.stand_in.opening_path, Fault.ERROR_AFTER)
    with pytest.raises(DomainError):
        await shop.cashier.open(order)
    assert (await shop.cashier.void(order.payment_id)).status is Status.VOIDED
    (opened,) = shop.stand_in.opened.values()
    assert opened["status"] == shop.stand_in.given_up


async def test_without_webhooks_asking_tells_all(shop: AnyShop) -> None:
    paid, refused, closed = [await shop.open() for _ in range(3)]
    shop.pay(paid)
    shop.pay(refused, declined="lost_card")
    shop.stand_in.opened[reference(closed)]["status"] = "expired"
    ends = [(await shop.cashier.check(one)).status for one in (paid, refused, closed)]
    assert ends == [Status.CAPTURED, Status.FAILED, Status.VOIDED]


async def test_money_that_is_given_back_past_us_is_seen(shop: AnyShop) -> None:
    payment = await shop.open_paid()
    heard = len(shop.stand_in.events)
    shop.stand_in.refund_in_dashboard(reference(payment), 100)
    assert set((await shop.deliver())[heard:]) == {Outcome.UNMATCHED}
    assert (await shop.desk.find(payment)).status is Status.CAPTURED


@pytest.mark.parametrize("end", [DisputeStatus.WON, DisputeStatus.LOST])
async def test_disputes_are_followed_to_their_end(shop: AnyShop, end: DisputeStatus) -> None:
    payment = await shop.open_paid()
    shop.stand_in.dispute(reference(payment), reason="goods_not_received")
    assert (await shop.deliver())[-1] is Outcome.APPLIED
    shop.stand_in.dispute(reference(payment), reason="goods_not_received", end=end.lower())
    await shop.deliver()
    async with shop.desk.database.transaction() as connection:
        (dispute,) = await disputes.of_payment(connection, payment_id=payment.payment_id)
    assert (dispute.status, dispute.amount) == (end, payment.amount)
    assert dispute.reason == "goods_not_received"
    assert (await shop.desk.find(payment)).status is Status.CAPTURED


async def test_all_movements_are_listed(shop: AnyShop) -> None:
    payments = [await shop.open_paid() for _ in range(3)]
    await shop.refund(payments[0])
    now = datetime.now(UTC)
    found = await shop.provider.movements(
        since=now - timedelta(hours=1), until=now + timedelta(hours=1)
    )
    moved = {(one.kind, one.reference, one.amount) for one in shop.stand_in.ledger}
    assert {(one.kind, one.reference, one.amount.amount_minor) for one in found} == moved
    assert sorted(one.kind for one in found) == [MovementKind.CAPTURE] * 3 + [MovementKind.REFUND]
    told = [one.report for one in found if isinstance(one.report, Captured)]
    assert {report.fee for report in told} == {Money(3_000, "INR")}
    # Each tells its payment, by our id or by the provider's.
    ours = {one.payment_id for one in payments} | {one.provider_reference for one in payments}
    assert len({report.payment_id or report.session_reference for report in told} & ours) == 3


async def test_only_what_the_provider_signed_counts(shop: AnyShop) -> None:
    payment = await shop.open()
    shop.pay(payment)
    event_id, body = shop.stand_in.events[0]
    signed = shop.stand_in.headers_for(event_id, body)
    again = json.dumps(json.loads(body)).encode()
    flipped = bytes([body[0] ^ 1]) + body[1:]
    bad: list[tuple[bytes, dict[str, str]]] = [
        (body, {}),
        (body, {"other": "header"}),
        (body, dict.fromkeys(signed, "")),
        (body, shop.stand_in.headers_for(event_id, body, secret="another shop's")),
        (again, signed),
        (flipped, signed),
        (body + b" ", signed),
    ]
    for content, headers in bad:
        with pytest.raises(DomainError) as refusal:
            await shop.receive(event_id, content, headers)
        assert refusal.value.reason is Reason.WEBHOOK_SIGNATURE_INVALID
    assert (await shop.desk.find(payment)).status is Status.CREATED
    # A secret that is being replaced still counts.
    old = shop.stand_in.headers_for(event_id, body, secret=OLD_SECRET)
    assert await shop.receive(event_id, body, old) is Outcome.APPLIED
    assert await shop.receive(event_id, body) is Outcome.DUPLICATE
