"""Refunds never exceed the captured amount, and each is carried out once."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from boxoffice.payments.v1 import payment_pb2
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from payment_svc import captures, refunds, tables
from payment_svc.captures import Verdict
from payment_svc.ledger import Account
from payment_svc.payments import Payment, Status
from payment_svc.provider_calls import ProviderCalls
from payment_svc.providers.base import ProviderError, RefundOrder, RefundProcessed, RefundRefused
from payment_svc.providers.sandbox import NAME
from payment_svc.providers.sandbox.ledger import Kind
from testing.payment_harness import NOW, PRICE, SandboxHarness


def inr(amount_minor: int) -> Money:
    return Money(amount_minor, "INR")


async def refunded(harness: SandboxHarness) -> list[int]:
    """The amounts of all refunds in the sandbox's ledger."""
    return [
        entry.amount.amount_minor
        for entry in await harness.sandbox_ledger()
        if entry.kind is Kind.REFUND
    ]


async def test_a_payment_is_refunded_in_full(harness: SandboxHarness) -> None:
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment)
    assert (refund.status, refund.amount) == (refunds.Status.PENDING, PRICE)
    assert refund.reason == "customer_request"
    assert (await harness.find(payment)).status is Status.CAPTURED

    assert await harness.calls.refund_due() == 1
    assert (await harness.find_refund(refund)).status is refunds.Status.PROCESSED
    after = await harness.find(payment)
    assert (after.status, after.refunded) == (Status.REFUNDED, PRICE)
    # The webhook reports the same refund once more.
    await harness.deliver()
    assert await harness.find(payment) == after
    assert await refunded(harness) == [PRICE.amount_minor]
    *_, event = await harness.events()
    assert await harness.event_kinds() == ["captured", "refund_updated", "refund_processed"]
    assert event.refund_processed.refund_id == str(refund.refund_id)
    assert event.refund_processed.amount.amount_minor == PRICE.amount_minor


async def test_partial_refunds_add_up_to_the_full_amount(harness: SandboxHarness) -> None:
    payment = await harness.open_paid()
    for part, status in [
        (inr(100_000), Status.PARTIALLY_REFUNDED),
        (inr(49_999), Status.PARTIALLY_REFUNDED),
        (None, Status.REFUNDED),
    ]:
        await harness.request_refund(payment, part, reason="half the party came")
        await harness.calls.refund_due()
        assert (await harness.find(payment)).status is status
    assert await refunded(harness) == [100_000, 49_999, 1]
    assert (await harness.find(payment)).refunded == PRICE


async def test_a_refund_of_more_than_remains_is_refused_with_the_amounts(
    harness: SandboxHarness,
) -> None:
    payment = await harness.open_paid()
    await harness.request_refund(payment, inr(100_000))
    with pytest.raises(DomainError) as refusal:
        await harness.request_refund(payment, inr(50_001))
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID
    assert refusal.value.metadata == {
        "status": "CAPTURED",
        "captured": "150000",
        "refunded": "100000",
        "disputed": "0",
        "refundable": "50000",
        "requested": "50001",
    }
    await harness.request_refund(payment, inr(50_000))
    with pytest.raises(DomainError) as refusal:
        await harness.request_refund(payment)
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID
    assert await harness.count(tables.refunds) == 2


async def test_an_unpaid_payment_cannot_be_refunded(harness: SandboxHarness) -> None:
    payment = await harness.open()
    with pytest.raises(DomainError) as refusal:
        await harness.request_refund(payment)
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID
    assert refusal.value.metadata == {"status": "CREATED"}


@pytest.mark.parametrize(
    ("amount", "field"),
    [(Money(0, "INR"), "amount.amount_minor"), (Money(1, "EUR"), "amount.currency_code")],
)
async def test_an_invalid_amount_is_refused(
    harness: SandboxHarness, amount: Money, field: str
) -> None:
    payment = await harness.open_paid()
    with pytest.raises(DomainError) as refusal:
        await harness.request_refund(payment, amount)
    assert [violation.field for violation in refusal.value.violations] == [field]


async def test_one_refund_id_is_one_refund(harness: SandboxHarness) -> None:
    payment = await harness.open_paid()
    refund_id = new_id()
    refunds_made = await asyncio.gather(
        *(harness.request_refund(payment, inr(100), refund_id=refund_id) for _ in range(8))
    )
    assert {refund.refund_id for refund in refunds_made} == {refund_id}
    assert await harness.count(tables.refunds) == 1
    assert (await harness.request_refund(payment, inr(100))).refund_id != refund_id


async def request_concurrently(
    harness: SandboxHarness, payment: Payment, request: Callable[[Money], Awaitable[Any]]
) -> int:
    """Ten concurrent requests for 40 % each. Returns the sum of the stored refunds."""
    part = inr(payment.amount.amount_minor * 2 // 5)
    answers = await asyncio.gather(*(request(part) for _ in range(10)), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            assert isinstance(answer, DomainError)
            assert answer.reason is Reason.PAYMENT_STATE_INVALID
    async with harness.database.transaction() as connection:
        total = await connection.execute(sa.select(sa.func.sum(tables.refunds.c.amount_minor)))
        return int(total.scalar_one())


async def test_concurrent_refunds_never_exceed_the_captured_amount(harness: SandboxHarness) -> None:
    payment = await harness.open_paid()
    total = await request_concurrently(
        harness, payment, lambda part: harness.request_refund(payment, part)
    )
    assert total == payment.amount.amount_minor * 4 // 5
    while await harness.calls.refund_due():
        pass
    assert sum(await refunded(harness)) == total


async def test_the_race_is_real_without_the_guard(harness: SandboxHarness) -> None:
    """Control: the same requests exceed the captured amount when a read precedes the write."""
    payment = await harness.open_paid()
    have_read = asyncio.Barrier(10)

    async def naive(part: Money) -> None:
        async with harness.database.transaction() as connection:
            capture = await captures.find_accepted(connection, payment_id=payment.payment_id)
            assert capture is not None
            await have_read.wait()
            if capture.refunding.amount_minor + part.amount_minor > capture.amount.amount_minor:
                return
            await connection.execute(
                sa.update(tables.captures).values(
                    refunding_minor=capture.refunding.amount_minor + part.amount_minor
                )
            )
            await connection.execute(
                sa.insert(tables.refunds).values(
                    refund_id=new_id(),
                    payment_id=payment.payment_id,
                    capture_id=capture.capture_id,
                    status=refunds.Status.PENDING,
                    amount_minor=part.amount_minor,
                    currency_code=part.currency_code,
                    reason="naive",
                    due_time=NOW,
                    create_time=NOW,
                    update_time=NOW,
                )
            )

    assert await request_concurrently(harness, payment, naive) > payment.amount.amount_minor


async def test_a_constraint_limits_refunds_to_the_captured_amount(harness: SandboxHarness) -> None:
    await harness.open_paid()
    with pytest.raises(sa.exc.IntegrityError, match="captures_refunding_check"):
        async with harness.database.transaction() as connection:
            await connection.execute(
                sa.update(tables.captures).values(refunding_minor=PRICE.amount_minor + 1)
            )


class ScriptedProvider:
    """A provider that answers refunds as scripted: `do` refunds, and `fail` raises."""

    def __init__(self, harness: SandboxHarness) -> None:
        self._harness = harness
        self.answers: list[str] = []
        self.keys: list[str] = []

    async def refund(self, order: RefundOrder) -> RefundProcessed | RefundRefused | None:
        self.keys.append(order.idempotency_key)
        answer = self.answers.pop(0) if self.answers else "do"
        if answer == "refuse":
            return RefundRefused.of(
                order, event_time=self._harness.clock(), failure_code="insufficient_funds"
            )
        if answer == "fail":
            raise ProviderError(NAME, "http_500")
        report = await self._harness.provider.refund(order)
        if answer == "do, then fail":
            raise ProviderError(NAME, "http_500")
        return None if answer == "accept" else report


def scripted(harness: SandboxHarness, *answers: str) -> tuple[ProviderCalls, ScriptedProvider]:
    provider: Any = ScriptedProvider(harness)
    provider.answers = list(answers)
    return harness.calls_to(provider), provider


@pytest.mark.parametrize("answer", ["fail", "do, then fail", "accept"])
async def test_a_refund_without_an_answer_is_retried_under_its_key(
    harness: SandboxHarness, answer: str
) -> None:
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment)
    calls, provider = scripted(harness, answer)
    assert await calls.refund_due() == 1
    assert (await harness.find_refund(refund)).status is refunds.Status.PENDING
    assert await calls.refund_due() == 0
    harness.clock.advance(1)
    assert await calls.refund_due() == 1
    assert (await harness.find_refund(refund)).status is refunds.Status.PROCESSED
    assert len(provider.keys) == 2
    assert len(set(provider.keys)) == 1
    assert await refunded(harness) == [PRICE.amount_minor]


async def test_a_refused_refund_is_failed_and_retried_under_a_new_key(
    harness: SandboxHarness,
) -> None:
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment)
    calls, provider = scripted(harness, "refuse", "refuse")
    for pause in (1, 2):
        assert await calls.refund_due() == 1
        assert (await harness.find_refund(refund)).status is refunds.Status.FAILED
        assert (await harness.find(payment)).status is Status.CAPTURED
        harness.clock.advance(pause - 0.1)
        assert await calls.refund_due() == 0
        harness.clock.advance(0.1)
    assert await calls.refund_due() == 1
    assert (await harness.find_refund(refund)).status is refunds.Status.PROCESSED
    assert provider.keys == [f"{refund.refund_id}:{number}" for number in range(3)]
    assert await refunded(harness) == [PRICE.amount_minor]


async def test_a_repeated_refusal_does_not_change_the_key_of_the_next_attempt(
    harness: SandboxHarness,
) -> None:
    """Otherwise an attempt in progress and the next one would be two refunds at the provider."""
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment)

    def refused(refusals: int) -> RefundRefused:
        return RefundRefused(
            payment.payment_id, payment.provider_reference, NOW, refund.refund_id, refusals, "no"
        )

    await harness.apply_reports(refused(0), refused(1), refused(0))
    harness.clock.advance(10)
    calls, provider = scripted(harness)
    await calls.refund_due()
    assert provider.keys == [f"{refund.refund_id}:2"]


async def test_a_refund_that_is_rejected_for_three_days_waits_for_staff(
    harness: SandboxHarness,
) -> None:
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment)
    calls, provider = scripted(harness, *["refuse"] * 1000)
    for _ in range(1000):
        if not await calls.refund_due():
            break
        harness.clock.advance(301)
    failed = await harness.find_refund(refund)
    assert (failed.status, failed.due_time) == (refunds.Status.FAILED, None)
    assert timedelta(days=3) <= harness.clock() - NOW < timedelta(days=3, minutes=20)
    async with harness.database.transaction() as connection:
        assert await refunds.oldest_failed(connection) is not None
    # Staff try it once more.
    provider.answers.clear()
    async with harness.database.transaction() as connection:
        await refunds.retry(connection, refund_id=refund.refund_id, now=harness.clock())
    await calls.refund_due()
    assert (await harness.find_refund(refund)).status is refunds.Status.PROCESSED


async def test_a_failed_refund_is_settled_elsewhere_once(harness: SandboxHarness) -> None:
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment)

    async def settle(note: str) -> refunds.Refund:
        async with harness.database.transaction() as connection:
            return await refunds.settle(
                connection, refund_id=refund.refund_id, note=note, now=harness.clock()
            )

    with pytest.raises(DomainError) as refusal:
        await settle("too early")
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID
    calls, _ = scripted(harness, "refuse")
    await calls.refund_due()
    settled = await settle("bank transfer")
    assert (settled.status, settled.note) == (refunds.Status.SETTLED_ELSEWHERE, "bank transfer")
    assert (await settle("again")).note == "bank transfer"
    harness.clock.advance(301)
    assert await calls.refund_due() == 0
    assert await harness.balances() == {
        (Account.PROVIDER, "INR"): 150_000,
        (Account.EVENT, "INR"): 0,
        (Account.ELSEWHERE, "INR"): -150_000,
    }
    with pytest.raises(DomainError):
        await harness.request_refund(payment)
    with pytest.raises(DomainError):
        async with harness.database.transaction() as connection:
            await refunds.retry(connection, refund_id=refund.refund_id, now=harness.clock())
    assert (await harness.events())[-1].refund_updated.refund.status == (
        payment_pb2.Refund.SETTLED_ELSEWHERE
    )


async def test_a_refusal_after_completion_changes_nothing(harness: SandboxHarness) -> None:
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment)
    await harness.calls.refund_due()
    await harness.apply_reports(
        RefundRefused(
            payment.payment_id, payment.provider_reference, NOW, refund.refund_id, 0, "no"
        )
    )
    assert (await harness.find_refund(refund)).status is refunds.Status.PROCESSED


async def test_two_processes_do_not_lease_the_same_refund(harness: SandboxHarness) -> None:
    payment = await harness.open_paid()
    for _ in range(6):
        await harness.request_refund(payment, inr(1))
    async with (
        harness.database.transaction() as connection,
        harness.database.transaction() as other,
    ):
        first = await refunds.lease_due(connection, now=harness.clock(), limit=4)
        second = await refunds.lease_due(other, now=harness.clock(), limit=4)
    leased = [due.order.refund_id for due in (*first, *second)]
    assert len(leased) == len(set(leased)) == 6


async def test_a_refund_survives_the_death_of_its_process(harness: SandboxHarness) -> None:
    """It dies after the provider has refunded and before the answer is stored."""
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment)
    async with harness.database.transaction() as connection:
        (due,) = await refunds.lease_due(connection, now=harness.clock(), limit=1)
    await harness.provider.refund(due.order)
    assert await harness.calls.refund_due() == 0
    harness.clock.advance(15)
    assert await harness.calls.refund_due() == 1
    assert (await harness.find_refund(refund)).status is refunds.Status.PROCESSED
    assert await refunded(harness) == [PRICE.amount_minor]


async def test_the_sandbox_refunds_no_more_than_it_captured(harness: SandboxHarness) -> None:
    payment = await harness.open_paid()

    async def refund(amount_minor: int, key: int) -> RefundProcessed | RefundRefused:
        return await harness.provider.refund(
            RefundOrder(new_id(), payment.payment_id, None, "ch_1", inr(amount_minor), refusals=key)
        )

    answers = [await refund(100_000, 0), await refund(50_001, 1), await refund(50_000, 2)]
    assert [type(answer) for answer in answers] == [
        RefundProcessed,
        RefundRefused,
        RefundProcessed,
    ]
    assert await refunded(harness) == [100_000, 50_000]


async def test_a_customer_sees_only_their_own_refunds(harness: SandboxHarness) -> None:
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment)
    async with harness.database.transaction() as connection:
        own = await refunds.find(
            connection, refund_id=refund.refund_id, owner=payment.order.customer_id
        )
        assert own == refund
        with pytest.raises(DomainError) as refusal:
            await refunds.find(connection, refund_id=refund.refund_id, owner=new_id())
    assert refusal.value.reason is Reason.REFUND_NOT_FOUND


async def test_a_capture_counts_its_completed_refunds(
    harness: SandboxHarness,
) -> None:
    payment = await harness.open_paid()
    await harness.request_refund(payment, inr(1_000))
    assert await harness.verdicts(payment) == {Verdict.ACCEPTED: (PRICE, inr(0))}
    await harness.calls.refund_due()
    assert await harness.verdicts(payment) == {Verdict.ACCEPTED: (PRICE, inr(1_000))}
