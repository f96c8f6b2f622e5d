"""Provider reports in any order and number lead to one state, and wrong captures are refunded."""

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
from testing.payment_harness import NOW, PRICE, SandboxHarness, a_capture, a_failure, an_order
from testing.waiting import wait_for_blocked

REFERENCE = "cs_1"
NOTHING = Money(0, "INR")


def an_authorisation(payment: Payment, *, at: float) -> Authorized:
    return Authorized(
        payment.payment_id, payment.provider_reference, NOW + timedelta(seconds=at), "upi"
    )


async def end_of(
    harness: SandboxHarness, payment: Payment, reports: Sequence[ProviderReport]
) -> Any:
    """The state after the reports. The transaction is rolled back for the next order."""
    connection = await harness.database._engine.connect()
    try:
        for report in reports:
            await payment_reports.apply_report(connection, provider=NAME, report=report, now=NOW)
        end = await payments.find(connection, payment_id=payment.payment_id, owner=None)
        captures = await connection.execute(
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
        fields = (end.status, end.method, end.failure_code, end.observed_time, end.refunded)
        return fields, captures.all(), refunds.all(), events.scalars().all()
    finally:
        await connection.rollback()
        await connection.close()


async def ends_of_all_orders(
    harness: SandboxHarness, payment: Payment, reports: Sequence[ProviderReport]
) -> list[Any]:
    """The distinct final states of all orders of the reports, each also applied twice."""
    ends = []
    for order in itertools.permutations(reports):
        for sequence in (order, order * 2):
            end = await end_of(harness, payment, sequence)
            if end not in ends:
                ends.append(end)
    return ends


async def test_of_two_concurrent_captures_one_is_accepted_and_the_other_refunded(
    harness: SandboxHarness,
) -> None:
    payment = await harness.open()
    async with harness.database.transaction() as connection:
        row = sa.select(tables.payments).where(tables.payments.c.payment_id == payment.payment_id)
        await connection.execute(row.with_for_update())
        both = [
            asyncio.create_task(harness.apply_reports(a_capture(payment, reference)))
            for reference in ("ch_1", "ch_2")
        ]
        await wait_for_blocked(harness.database, count=2)
    await asyncio.gather(*both)
    assert set(await harness.verdicts(payment)) == {Verdict.ACCEPTED, Verdict.SECOND}
    # Stored, and not carried out.
    assert await harness.count(tables.refunds) == 1


async def test_all_orders_before_a_capture_end_in_the_same_state(harness: SandboxHarness) -> None:
    payment = await harness.open()
    reports = [
        an_authorisation(payment, at=1),
        a_failure(payment, "first", at=2),
        an_authorisation(payment, at=2),
        a_failure(payment, "last", at=3),
    ]
    (end,) = await ends_of_all_orders(harness, payment, reports)
    assert end[0] == (Status.FAILED, None, "last", NOW + timedelta(seconds=3), NOTHING)


async def test_all_orders_around_a_capture_end_in_the_same_state(harness: SandboxHarness) -> None:
    """Also with a second capture and one of another amount."""
    payment = await harness.open()
    reports = [
        an_authorisation(payment, at=1),
        a_failure(payment, at=2),
        a_capture(payment, "ch_1", at=3),
        a_capture(payment, "ch_2", at=3),
        a_capture(payment, "ch_3", at=4, amount=Money(1, "INR")),
    ]
    (end,) = await ends_of_all_orders(harness, payment, reports)
    fields, captures, refunds, events = end
    assert fields == (Status.CAPTURED, "card", None, NOW + timedelta(seconds=3), NOTHING)
    price = PRICE.amount_minor
    assert captures == [
        (Verdict.MISMATCHED, 1, 1, 0),
        (Verdict.ACCEPTED, price, 0, 0),
        (Verdict.SECOND, price, price, 0),
    ]
    assert refunds == [(1, RefundStatus.PENDING), (price, RefundStatus.PENDING)]
    assert events == ["captured"]


async def test_all_orders_after_a_capture_end_in_the_same_state(harness: SandboxHarness) -> None:
    payment = await harness.open_paid()
    first = await harness.request_refund(payment, Money(50_000, "INR"))
    rest = await harness.request_refund(payment)
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
    (end,) = await ends_of_all_orders(harness, payment, reports)
    fields, captures, refunds, events = end
    assert fields == (Status.REFUNDED, "card", None, NOW, PRICE)
    assert captures == [(Verdict.ACCEPTED, 150_000, 150_000, 150_000)]
    assert [status for _, status in refunds] == [RefundStatus.PROCESSED] * 2
    assert events == ["captured", "refund_processed", "refund_processed", *["refund_updated"] * 2]


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
async def test_a_capture_of_another_amount_or_currency_does_not_pay(
    harness: SandboxHarness, amount: Money, caplog: pytest.LogCaptureFixture
) -> None:
    payment = await harness.open()
    await harness.capture(payment, amount)
    with caplog.at_level(logging.ERROR):
        await harness.deliver()
    assert [record.__dict__["verdict"] for record in caplog.records] == ["MISMATCHED"]
    after = await harness.find(payment)
    assert (after.status, after.failure_code) == (Status.FAILED, "amount_mismatch")
    assert await harness.verdicts(payment) == {
        Verdict.MISMATCHED: (amount, Money(0, amount.currency_code))
    }
    assert await harness.event_kinds() == ["failed"]


async def test_a_capture_of_another_amount_is_refunded_in_full(harness: SandboxHarness) -> None:
    payment = await harness.open()
    wrong = Money(150_001, "INR")
    await harness.capture(payment, wrong)
    await harness.deliver()
    assert await harness.calls.refund_due() == 1
    assert await harness.verdicts(payment) == {Verdict.MISMATCHED: (wrong, wrong)}
    assert [(entry.kind, entry.amount) for entry in await harness.sandbox_ledger()] == [
        ("CAPTURE", wrong),
        ("REFUND", wrong),
    ]
    # The stream has the failure; the refund of a mismatched capture is not on it.
    await harness.deliver()
    assert await harness.event_kinds() == ["failed"]
    # It can be voided, although the provider has it as paid.
    assert (await harness.calls.void(payment.payment_id)).status is Status.VOIDED


async def test_a_second_capture_is_refunded_and_the_first_kept(harness: SandboxHarness) -> None:
    payment = await harness.open_paid()
    await harness.capture(payment, PRICE)
    await harness.deliver()
    assert await harness.calls.refund_due() == 1
    assert await harness.calls.refund_due() == 0
    await harness.deliver()
    assert (await harness.find(payment)).status is Status.CAPTURED
    assert await harness.verdicts(payment) == {
        Verdict.ACCEPTED: (PRICE, NOTHING),
        Verdict.SECOND: (PRICE, PRICE),
    }
    assert [entry.kind for entry in await harness.sandbox_ledger()] == [
        "CAPTURE",
        "CAPTURE",
        "REFUND",
    ]
    assert await harness.event_kinds() == ["captured"]


async def test_a_capture_after_a_void_is_refunded(harness: SandboxHarness) -> None:
    payment = await harness.open()
    await harness.calls.void(payment.payment_id)
    assert await harness.apply_reports(a_capture(payment)) == [Outcome.APPLIED]
    assert (await harness.find(payment)).status is Status.VOIDED
    assert (await harness.verdicts(payment)).keys() == {Verdict.AFTER_VOID}
    assert await harness.count(tables.refunds) == 1
    assert await harness.event_kinds() == ["voided"]


async def test_a_report_of_another_payment_is_unmatched(harness: SandboxHarness) -> None:
    """Of another booking, an unknown payment, another provider: nothing changes."""
    payment, other = await harness.open(), await harness.open()
    foreign = Captured(
        payment.payment_id, other.provider_reference, NOW, "ch_1", payment.amount, "card"
    )
    unknown = Captured(new_id(), REFERENCE, NOW, "ch_2", payment.amount, "card")
    assert await harness.apply_reports(foreign, unknown) == [Outcome.UNMATCHED] * 2
    async with harness.database.transaction() as connection:
        assert (
            await payment_reports.apply_report(
                connection, provider="stripe", report=a_capture(payment), now=NOW
            )
            is Outcome.UNMATCHED
        )
    assert await harness.find(payment) == payment
    assert await harness.find(other) == other
    assert await harness.count(tables.captures) == 0


async def test_a_payment_without_a_provider_reference_does_not_take_that_of_another(
    harness: SandboxHarness,
) -> None:
    other = await harness.open()
    async with harness.database.transaction() as connection:
        payment = await payments.create(connection, order=an_order(), now=NOW)
    foreign = Captured(
        payment.payment_id, other.provider_reference, NOW, "ch_1", payment.amount, "card"
    )
    assert await harness.apply_reports(foreign) == [Outcome.UNMATCHED]
    assert await harness.find(payment) == payment


async def test_a_refund_of_another_amount_or_currency_is_unmatched(
    harness: SandboxHarness,
) -> None:
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment, Money(100, "INR"))

    def processed(refund_id: Any, amount: Money) -> RefundProcessed:
        return RefundProcessed(
            payment.payment_id, payment.provider_reference, NOW, refund_id, "re_1", amount
        )

    assert (
        await harness.apply_reports(
            processed(new_id(), Money(100, "EUR")),
            processed(new_id(), Money(150_001, "INR")),
            processed(refund.refund_id, Money(99, "INR")),
            processed(refund.refund_id, Money(100, "EUR")),
        )
        == [Outcome.UNMATCHED] * 4
    )
    assert await harness.find(payment) == payment
    assert (await harness.find_refund(refund)).status is RefundStatus.PENDING
