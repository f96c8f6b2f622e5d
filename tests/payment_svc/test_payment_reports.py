"""What providers report, in every order and any number: one end, and no wrong money kept."""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from mesh.ids import new_id
from mesh.money import Money
from payment_svc import payment_reports, payments, tables
from payment_svc.captures import Verdict
from payment_svc.payment_reports import Outcome
from payment_svc.payments import Payment, Status
from payment_svc.providers.base import Authorized, Captured, ProviderReport, RefundProcessed
from payment_svc.providers.sandbox import NAME
from payment_svc.refunds import Status as RefundStatus
from testing.locks import somebody_waits
from testing.payment_harness import NOW, PRICE, Desk, a_capture, a_failure, an_order

REFERENCE = "cs_1"
NOTHING = Money(0, "INR")


def an_authorisation(payment: Payment, *, at: float) -> Authorized:
    return Authorized(
        payment.payment_id, payment.provider_reference, NOW + timedelta(seconds=at), "upi"
    )


async def end_of(desk: Desk, payment: Payment, reports: Sequence[ProviderReport]) -> Any:
    """The state that the reports lead to. It is rolled back, so that the next order can start."""
    connection = await desk.database._engine.connect()
    try:
        for report in reports:
            await payment_reports.apply_report(connection, provider=NAME, report=report, now=NOW)
        end = await payments.find(connection, payment_id=payment.payment_id, owner=None)
        taken = await connection.execute(
            sa.select(
                tables.captures.c.verdict,
                tables.captures.c.amount_minor,
                tables.captures.c.refunding_minor,
                tables.captures.c.refunded_minor,
            ).order_by(tables.captures.c.amount_minor, tables.captures.c.verdict)
        )
        refunds = await connection.execute(
            sa.select(tables.refunds.c.amount_minor, tables.refunds.c.status).order_by(
                tables.refunds.c.amount_minor, tables.refunds.c.status
            )
        )
        events = await connection.execute(
            sa.select(tables.outbox.c.event_type)
            .where(tables.outbox.c.event_type != "failed")
            .order_by(tables.outbox.c.event_type)
        )
        facts = (end.status, end.method, end.failure_code, end.observed_time, end.refunded)
        return facts, taken.all(), refunds.all(), events.scalars().all()
    finally:
        await connection.rollback()
        await connection.close()


async def ends_of_all_orders(
    desk: Desk, payment: Payment, reports: Sequence[ProviderReport]
) -> list[Any]:
    """The distinct ends over all orders of the reports, each also replayed from its start."""
    ends = []
    for order in itertools.permutations(reports):
        for sequence in (order, order * 2):
            end = await end_of(desk, payment, sequence)
            if end not in ends:
                ends.append(end)
    return ends


async def test_of_two_captures_at_once_one_pays_and_the_other_goes_back(desk: Desk) -> None:
    payment = await desk.open()
    async with desk.database.transaction() as connection:
        is_it = tables.payments.c.payment_id == payment.payment_id
        await connection.execute(sa.select(tables.payments).where(is_it).with_for_update())
        both = [
            asyncio.create_task(desk.apply_report(a_capture(payment, reference)))
            for reference in ("ch_1", "ch_2")
        ]
        await somebody_waits(desk.database, how_many=2)
    await asyncio.gather(*both)
    assert set(await desk.verdicts(payment)) == {Verdict.ACCEPTED, Verdict.SECOND}
    # Promised, and not yet made.
    assert await desk.count(tables.refunds) == 1


async def test_before_capture_all_orders_end_the_same(desk: Desk) -> None:
    payment = await desk.open()
    reports = [
        an_authorisation(payment, at=1),
        a_failure(payment, "first", at=2),
        an_authorisation(payment, at=2),
        a_failure(payment, "last", at=3),
    ]
    (end,) = await ends_of_all_orders(desk, payment, reports)
    assert end[0] == (Status.FAILED, None, "last", NOW + timedelta(seconds=3), NOTHING)


async def test_around_capture_all_orders_end_the_same(desk: Desk) -> None:
    """Also with money taken twice and money that does not fit."""
    payment = await desk.open()
    reports = [
        an_authorisation(payment, at=1),
        a_failure(payment, at=2),
        a_capture(payment, "ch_1", at=3),
        a_capture(payment, "ch_2", at=3),
        a_capture(payment, "ch_3", at=4, amount=Money(1, "INR")),
    ]
    (end,) = await ends_of_all_orders(desk, payment, reports)
    facts, taken, refunds, events = end
    assert facts == (Status.CAPTURED, "card", None, NOW + timedelta(seconds=3), NOTHING)
    price = PRICE.amount_minor
    assert taken == [
        (Verdict.MISMATCHED, 1, 1, 0),
        (Verdict.ACCEPTED, price, 0, 0),
        (Verdict.SECOND, price, price, 0),
    ]
    assert refunds == [(1, RefundStatus.PENDING), (price, RefundStatus.PENDING)]
    assert events == ["captured"]


async def test_after_capture_all_orders_end_the_same(desk: Desk) -> None:
    payment = await desk.open_paid()
    first = await desk.request_refund(payment, Money(50_000, "INR"))
    rest = await desk.request_refund(payment)
    reports: list[ProviderReport] = [
        RefundProcessed(
            payment.payment_id,
            payment.provider_reference,
            NOW,
            refund.refund_id,
            f"re_{refund.refund_id}",
            refund.amount,
        )
        for refund in (first, rest)
    ]
    reports += [a_failure(payment, at=9), an_authorisation(payment, at=9)]
    (end,) = await ends_of_all_orders(desk, payment, reports)
    facts, taken, refunds, events = end
    assert facts == (Status.REFUNDED, "card", None, NOW, PRICE)
    assert taken == [(Verdict.ACCEPTED, 150_000, 150_000, 150_000)]
    assert [status for _, status in refunds] == [RefundStatus.PROCESSED] * 2
    assert events == ["captured", "refund_processed", "refund_processed"]


@pytest.mark.parametrize(
    "amount",
    [
        Money(149_999, "INR"),
        Money(150_001, "INR"),
        Money(150_000, "EUR"),
        Money(1_500, "INR"),
        Money(15_000_000, "JPY"),
    ],
)
async def test_another_amount_or_currency_never_pays(
    desk: Desk, amount: Money, caplog: pytest.LogCaptureFixture
) -> None:
    payment = await desk.open()
    await desk.take(payment, amount)
    with caplog.at_level(logging.ERROR):
        await desk.deliver()
    assert [record.__dict__["verdict"] for record in caplog.records] == ["MISMATCHED"]
    after = await desk.find(payment)
    assert (after.status, after.failure_code) == (Status.FAILED, "amount_mismatch")
    assert await desk.verdicts(payment) == {
        Verdict.MISMATCHED: (amount, Money(0, amount.currency_code))
    }
    assert await desk.event_kinds() == ["failed"]


async def test_money_that_does_not_fit_goes_back_in_full(desk: Desk) -> None:
    payment = await desk.open()
    wrong = Money(150_001, "INR")
    await desk.take(payment, wrong)
    await desk.deliver()
    assert await desk.cashier.refund_due() == 1
    assert await desk.verdicts(payment) == {Verdict.MISMATCHED: (wrong, wrong)}
    assert [(entry.kind, entry.amount) for entry in await desk.ledger()] == [
        ("CAPTURE", wrong),
        ("REFUND", wrong),
    ]
    # Followers hear that it failed; money that never paid is no refund of theirs.
    await desk.deliver()
    assert await desk.event_kinds() == ["failed"]
    # Its booking gives it up, though the provider calls it paid.
    assert (await desk.cashier.void(payment.payment_id)).status is Status.VOIDED


async def test_a_second_capture_goes_back_and_the_first_stays(desk: Desk) -> None:
    payment = await desk.open_paid()
    await desk.take(payment, PRICE)
    await desk.deliver()
    assert await desk.cashier.refund_due() == 1
    assert await desk.cashier.refund_due() == 0
    await desk.deliver()
    assert (await desk.find(payment)).status is Status.CAPTURED
    assert await desk.verdicts(payment) == {
        Verdict.ACCEPTED: (PRICE, NOTHING),
        Verdict.SECOND: (PRICE, PRICE),
    }
    assert [entry.kind for entry in await desk.ledger()] == ["CAPTURE", "CAPTURE", "REFUND"]
    assert await desk.event_kinds() == ["captured"]


async def test_money_taken_after_a_void_goes_back(desk: Desk) -> None:
    payment = await desk.open()
    await desk.cashier.void(payment.payment_id)
    assert await desk.apply_report(a_capture(payment)) == [Outcome.APPLIED]
    assert (await desk.find(payment)).status is Status.VOIDED
    assert (await desk.verdicts(payment)).keys() == {Verdict.AFTER_VOID}
    assert await desk.count(tables.refunds) == 1
    assert await desk.event_kinds() == []


async def test_a_report_must_fit_its_payment(desk: Desk) -> None:
    """Another booking's payment, an unknown one, another provider's: nothing changes."""
    payment, other = await desk.open(), await desk.open()
    foreign = Captured(
        payment.payment_id, other.provider_reference, NOW, "ch_1", payment.amount, "card"
    )
    unknown = Captured(new_id(), REFERENCE, NOW, "ch_2", payment.amount, "card")
    assert await desk.apply_report(foreign, unknown) == [Outcome.UNMATCHED] * 2
    async with desk.database.transaction() as connection:
        assert (
            await payment_reports.apply_report(
                connection, provider="stripe", report=a_capture(payment), now=NOW
            )
            is Outcome.UNMATCHED
        )
    assert await desk.find(payment) == payment
    assert await desk.find(other) == other
    assert await desk.count(tables.captures) == 0


async def test_a_payment_whose_provider_id_is_not_known_yet_takes_no_others(desk: Desk) -> None:
    other = await desk.open()
    async with desk.database.transaction() as connection:
        payment = await payments.create(connection, order=an_order(), now=NOW)
    foreign = Captured(
        payment.payment_id, other.provider_reference, NOW, "ch_1", payment.amount, "card"
    )
    assert await desk.apply_report(foreign) == [Outcome.UNMATCHED]
    assert await desk.find(payment) == payment


async def test_a_refund_that_nobody_asked_for_is_unexplained(desk: Desk) -> None:
    payment = await desk.open_paid()
    refund = await desk.request_refund(payment, Money(100, "INR"))

    def processed(refund_id: Any, amount: Money) -> RefundProcessed:
        return RefundProcessed(
            payment.payment_id, payment.provider_reference, NOW, refund_id, "re_1", amount
        )

    assert (
        await desk.apply_report(
            processed(new_id(), Money(100, "INR")),
            processed(refund.refund_id, Money(99, "INR")),
            processed(refund.refund_id, Money(100, "EUR")),
        )
        == [Outcome.UNMATCHED] * 3
    )
    assert await desk.find(payment) == payment
    assert (await desk.find_refund(refund)).status is RefundStatus.PENDING
