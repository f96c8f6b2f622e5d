"""Refunds: never more than was captured, each carried out once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from mesh.db.jobs import Wakeup
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from payment_svc import captures, refunds, tables
from payment_svc.captures import Verdict
from payment_svc.payments import Payment, Status
from payment_svc.provider_calls import ProviderCalls
from payment_svc.providers.base import (
    ProviderError,
    RefundOrder,
    RefundProcessed,
    RefundRefused,
)
from payment_svc.providers.sandbox import NAME
from payment_svc.providers.sandbox.ledger import Kind
from testing.payment_harness import NOW, PRICE, Desk, a_key


def inr(amount_minor: int) -> Money:
    return Money(amount_minor, "INR")


async def given_back(desk: Desk) -> list[int]:
    """What the sandbox's ledger says went back, refund by refund."""
    return [entry.amount.amount_minor for entry in await desk.ledger() if entry.kind is Kind.REFUND]


async def test_a_refund_of_everything(desk: Desk) -> None:
    payment = await desk.open_paid()
    refund = await desk.request_refund(payment)
    assert (refund.status, refund.amount) == (refunds.Status.PENDING, PRICE)
    assert refund.reason == "customer_request"
    assert (await desk.find(payment)).status is Status.CAPTURED

    assert await desk.cashier.refund_due() == 1
    assert (await desk.find_refund(refund)).status is refunds.Status.PROCESSED
    after = await desk.find(payment)
    assert (after.status, after.refunded) == (Status.REFUNDED, PRICE)
    # The webhook tells the same once more.
    await desk.deliver()
    assert await desk.find(payment) == after
    assert await given_back(desk) == [PRICE.amount_minor]
    *_, event = await desk.events()
    assert await desk.event_kinds() == ["captured", "refund_processed"]
    assert event.refund_processed.refund_id == str(refund.refund_id)
    assert event.refund_processed.amount.amount_minor == PRICE.amount_minor


async def test_refunds_of_parts_up_to_the_whole(desk: Desk) -> None:
    payment = await desk.open_paid()
    for part, status in [
        (inr(100_000), Status.PARTIALLY_REFUNDED),
        (inr(49_999), Status.PARTIALLY_REFUNDED),
        (None, Status.REFUNDED),
    ]:
        await desk.request_refund(payment, part, reason="half of us came")
        await desk.cashier.refund_due()
        assert (await desk.find(payment)).status is status
    assert await given_back(desk) == [100_000, 49_999, 1]
    assert (await desk.find(payment)).refunded == PRICE


async def test_more_than_is_left_is_refused_with_the_figures(desk: Desk) -> None:
    payment = await desk.open_paid()
    await desk.request_refund(payment, inr(100_000))
    with pytest.raises(DomainError) as refusal:
        await desk.request_refund(payment, inr(50_001))
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID
    assert refusal.value.metadata == {
        "status": "CAPTURED",
        "captured": "150000",
        "refunded": "100000",
        "requested": "50001",
    }
    await desk.request_refund(payment, inr(50_000))
    with pytest.raises(DomainError) as refusal:
        await desk.request_refund(payment)
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID
    assert await desk.count(tables.refunds) == 2


async def test_an_unpaid_payment_has_nothing_to_give_back(desk: Desk) -> None:
    payment = await desk.open()
    with pytest.raises(DomainError) as refusal:
        await desk.request_refund(payment)
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID
    assert refusal.value.metadata == {"status": "CREATED"}


@pytest.mark.parametrize(
    ("amount", "field"),
    [(Money(0, "INR"), "amount.amount_minor"), (Money(1, "EUR"), "amount.currency_code")],
)
async def test_an_amount_that_cannot_be_is_refused(desk: Desk, amount: Money, field: str) -> None:
    payment = await desk.open_paid()
    with pytest.raises(DomainError) as refusal:
        await desk.request_refund(payment, amount)
    assert [violation.field for violation in refusal.value.violations] == [field]


async def test_one_key_is_one_refund(desk: Desk) -> None:
    payment = await desk.open_paid()
    first = await desk.request_refund(payment, inr(100), key=a_key())
    assert await desk.request_refund(payment, inr(100), key=a_key()) == first
    await desk.cashier.refund_due()
    again = await desk.request_refund(payment, inr(100), key=a_key())
    assert (again.refund_id, again.status) == (first.refund_id, refunds.Status.PROCESSED)
    with pytest.raises(DomainError) as refusal:
        await desk.request_refund(payment, inr(200), key=a_key(content="else"))
    assert refusal.value.reason is Reason.IDEMPOTENCY_KEY_REUSED
    # Somebody else's key of the same name is another key.
    other = await desk.request_refund(payment, inr(100), key=a_key(owner="else"))
    assert other.refund_id != first.refund_id


async def test_a_refused_request_does_not_use_up_its_key(desk: Desk) -> None:
    payment = await desk.open()
    with pytest.raises(DomainError):
        await desk.request_refund(payment, key=a_key())
    await desk.pay(payment)
    await desk.deliver()
    assert (await desk.request_refund(payment, key=a_key())).amount == PRICE


async def test_one_key_at_the_same_time_is_one_refund(desk: Desk) -> None:
    payment = await desk.open_paid()
    made = await asyncio.gather(
        *(desk.request_refund(payment, inr(100), key=a_key()) for _ in range(8))
    )
    assert len(set(made)) == 1
    assert await desk.count(tables.refunds) == 1


async def rush(desk: Desk, payment: Payment, request: Callable[[Money], Awaitable[Any]]) -> int:
    """Ten requests at once for 40 % each. Returns the money promised."""
    part = inr(payment.amount.amount_minor * 2 // 5)
    answers = await asyncio.gather(*(request(part) for _ in range(10)), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            assert isinstance(answer, DomainError)
            assert answer.reason is Reason.PAYMENT_STATE_INVALID
    async with desk.database.transaction() as connection:
        promised = await connection.execute(sa.select(sa.func.sum(tables.refunds.c.amount_minor)))
        return int(promised.scalar_one())


async def test_concurrent_refunds_never_exceed_what_was_captured(desk: Desk) -> None:
    payment = await desk.open_paid()
    promised = await rush(desk, payment, lambda part: desk.request_refund(payment, part))
    assert promised == payment.amount.amount_minor * 4 // 5
    while await desk.cashier.refund_due():
        pass
    assert sum(await given_back(desk)) == promised


async def test_the_race_is_real_without_the_guard(desk: Desk) -> None:
    """Control: the same rush promises too much when reading and writing are apart."""
    payment = await desk.open_paid()
    have_read = asyncio.Barrier(10)

    async def naive(part: Money) -> None:
        async with desk.database.transaction() as connection:
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

    assert await rush(desk, payment, naive) > payment.amount.amount_minor


async def test_the_database_itself_refuses_to_promise_too_much(desk: Desk) -> None:
    await desk.open_paid()
    with pytest.raises(sa.exc.IntegrityError, match="captures_refunding_check"):
        async with desk.database.transaction() as connection:
            await connection.execute(
                sa.update(tables.captures).values(refunding_minor=PRICE.amount_minor + 1)
            )


class Troubled:
    """A provider that answers refunds as it is told, and does them or not."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.answers: list[str] = []
        self.keys: list[str] = []

    async def refund(self, order: RefundOrder) -> RefundProcessed | RefundRefused | None:
        self.keys.append(order.idempotency_key)
        answer = self.answers.pop(0) if self.answers else "do"
        if answer == "refuse":
            return RefundRefused(
                order.payment_id,
                order.session_reference,
                self._desk.clock(),
                order.refund_id,
                order.refusals,
                "insufficient_funds",
            )
        if answer == "fail":
            raise ProviderError(NAME, "http_500")
        done = await self._desk.provider.refund(order)
        if answer == "do, then fail":
            raise ProviderError(NAME, "http_500")
        return None if answer == "accept" else done


def troubled(desk: Desk, *answers: str) -> tuple[ProviderCalls, Troubled]:
    provider: Any = Troubled(desk)
    provider.answers = list(answers)
    return ProviderCalls(desk.database, {NAME: provider}, desk.clock, Wakeup()), provider


@pytest.mark.parametrize("answer", ["fail", "do, then fail", "accept"])
async def test_a_refund_without_an_answer_is_tried_again_under_its_key(
    desk: Desk, answer: str
) -> None:
    payment = await desk.open_paid()
    refund = await desk.request_refund(payment)
    cashier, provider = troubled(desk, answer)
    assert await cashier.refund_due() == 1
    assert (await desk.find_refund(refund)).status is refunds.Status.PENDING
    assert await cashier.refund_due() == 0
    desk.clock.advance(1)
    assert await cashier.refund_due() == 1
    assert (await desk.find_refund(refund)).status is refunds.Status.PROCESSED
    assert len(provider.keys) == 2
    assert len(set(provider.keys)) == 1
    assert await given_back(desk) == [PRICE.amount_minor]


async def test_a_refused_refund_has_failed_and_is_tried_under_a_new_key(desk: Desk) -> None:
    payment = await desk.open_paid()
    refund = await desk.request_refund(payment)
    cashier, provider = troubled(desk, "refuse", "refuse")
    for pause in (1, 2):
        assert await cashier.refund_due() == 1
        assert (await desk.find_refund(refund)).status is refunds.Status.FAILED
        assert (await desk.find(payment)).status is Status.CAPTURED
        desk.clock.advance(pause - 0.1)
        assert await cashier.refund_due() == 0
        desk.clock.advance(0.1)
    assert await cashier.refund_due() == 1
    assert (await desk.find_refund(refund)).status is refunds.Status.PROCESSED
    assert provider.keys == [f"{refund.refund_id}:{number}" for number in range(3)]
    assert await given_back(desk) == [PRICE.amount_minor]


async def test_a_repeated_refusal_does_not_change_the_key_of_the_next_call(desk: Desk) -> None:
    """Else a call on its way and the next one would be two refunds to the provider."""
    payment = await desk.open_paid()
    refund = await desk.request_refund(payment)

    def refused(refusals: int) -> RefundRefused:
        return RefundRefused(
            payment.payment_id, payment.provider_reference, NOW, refund.refund_id, refusals, "no"
        )

    await desk.apply_report(refused(0), refused(1), refused(0))
    desk.clock.advance(10)
    cashier, provider = troubled(desk)
    await cashier.refund_due()
    assert provider.keys == [f"{refund.refund_id}:2"]


async def test_a_refusal_after_the_money_went_back_changes_nothing(desk: Desk) -> None:
    payment = await desk.open_paid()
    refund = await desk.request_refund(payment)
    await desk.cashier.refund_due()
    await desk.apply_report(
        RefundRefused(
            payment.payment_id, payment.provider_reference, NOW, refund.refund_id, 0, "no"
        )
    )
    assert (await desk.find_refund(refund)).status is refunds.Status.PROCESSED


async def test_two_processes_do_not_take_the_same_refund(desk: Desk) -> None:
    payment = await desk.open_paid()
    for _ in range(6):
        await desk.request_refund(payment, inr(1))
    async with (
        desk.database.transaction() as one,
        desk.database.transaction() as other,
    ):
        first = await refunds.lease_due(one, now=desk.clock(), limit=4)
        second = await refunds.lease_due(other, now=desk.clock(), limit=4)
    taken = [due.order.refund_id for due in (*first, *second)]
    assert len(taken) == len(set(taken)) == 6


async def test_a_process_that_dies_with_a_refund_loses_nothing(desk: Desk) -> None:
    """It dies after the provider has done it and before that is stored."""
    payment = await desk.open_paid()
    refund = await desk.request_refund(payment)
    async with desk.database.transaction() as connection:
        (due,) = await refunds.lease_due(connection, now=desk.clock(), limit=1)
    await desk.provider.refund(due.order)
    assert await desk.cashier.refund_due() == 0
    desk.clock.advance(15)
    assert await desk.cashier.refund_due() == 1
    assert (await desk.find_refund(refund)).status is refunds.Status.PROCESSED
    assert await given_back(desk) == [PRICE.amount_minor]


async def test_the_sandbox_gives_back_no_more_than_it_took(desk: Desk) -> None:
    payment = await desk.open_paid()

    async def refund(amount_minor: int, key: int) -> RefundProcessed | RefundRefused:
        return await desk.provider.refund(
            RefundOrder(new_id(), payment.payment_id, None, "ch_1", inr(amount_minor), refusals=key)
        )

    answers = [await refund(100_000, 0), await refund(50_001, 1), await refund(50_000, 2)]
    assert [type(answer) for answer in answers] == [
        RefundProcessed,
        RefundRefused,
        RefundProcessed,
    ]
    assert await given_back(desk) == [100_000, 50_000]


async def test_a_customer_sees_only_refunds_of_their_own(desk: Desk) -> None:
    payment = await desk.open_paid()
    refund = await desk.request_refund(payment)
    async with desk.database.transaction() as connection:
        found = await refunds.find(
            connection, refund_id=refund.refund_id, owner=payment.order.customer_id
        )
        assert found == refund
        with pytest.raises(DomainError) as refusal:
            await refunds.find(connection, refund_id=refund.refund_id, owner=new_id())
    assert refusal.value.reason is Reason.REFUND_NOT_FOUND


async def test_what_was_promised_and_given_back_stands_on_the_capture(desk: Desk) -> None:
    payment = await desk.open_paid()
    await desk.request_refund(payment, inr(1_000))
    assert await desk.verdicts(payment) == {Verdict.ACCEPTED: (PRICE, inr(0))}
    await desk.cashier.refund_due()
    assert await desk.verdicts(payment) == {Verdict.ACCEPTED: (PRICE, inr(1_000))}
