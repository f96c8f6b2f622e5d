"""Opening, paying and voiding payments through the sandbox."""

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest
import sqlalchemy as sa

from mesh.db.jobs import Wakeup
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from payment_svc import payments, tables
from payment_svc.payments import Payment, Status
from payment_svc.provider_calls import ProviderCalls
from payment_svc.providers.base import (
    Captured,
    Order,
    ProviderError,
    RefundOrder,
    RefundProcessed,
    Session,
    Voided,
)
from payment_svc.providers.sandbox import NAME
from payment_svc.providers.sandbox.ledger import Kind
from payment_svc.providers.sandbox.provider import SandboxProvider
from payment_svc.webhooks import Outcome
from testing.payment_harness import GATEWAY_URL, PRICE, Desk, an_order


async def test_a_payment_is_opened_with_the_page_where_it_is_paid(desk: Desk) -> None:
    payment = await desk.open()
    assert payment.status is Status.CREATED
    assert payment.payment_url == f"{GATEWAY_URL}/sandbox/pay/{payment.payment_id}"
    assert payment.provider_reference is not None
    assert payment.refunded == Money(0, "INR")


async def test_opening_twice_returns_the_same_payment(desk: Desk) -> None:
    order = an_order()
    opened = await asyncio.gather(*(desk.cashier.open(order) for _ in range(5)))
    assert set(opened) == {await desk.cashier.open(order)}
    assert await desk.count(tables.sandbox_payments) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"amount": Money(150_001, "INR")},
        {"amount": Money(150_000, "EUR")},
        {"booking_id": new_id()},
        {"customer_id": new_id()},
        {"description": "else"},
    ],
)
async def test_an_id_means_one_payment(desk: Desk, change: dict[str, object]) -> None:
    order = an_order()
    await desk.cashier.open(order)
    with pytest.raises(DomainError) as refusal:
        await desk.cashier.open(replace(order, **change))  # type: ignore[arg-type]
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID
    assert refusal.value.metadata == {"status": "CREATED"}
    assert (await desk.cashier.open(order)).order == order


async def test_an_unknown_provider_is_refused_before_anything_is_stored(desk: Desk) -> None:
    with pytest.raises(DomainError) as refusal:
        await desk.open(provider="nobody")
    assert refusal.value.reason is Reason.PROVIDER_NOT_FOUND
    assert await desk.count(tables.payments) == 0


async def test_an_amount_of_zero_is_refused(desk: Desk) -> None:
    with pytest.raises(DomainError) as refusal:
        await desk.open(amount=Money(0, "INR"))
    assert refusal.value.reason is Reason.VALIDATION_FAILED


async def test_a_customer_sees_only_payments_of_their_own(desk: Desk) -> None:
    payment = await desk.open()

    async def find(owner: UUID | None) -> Payment:
        async with desk.database.transaction() as connection:
            return await payments.find(connection, payment_id=payment.payment_id, owner=owner)

    assert await find(None) == payment
    assert await find(payment.order.customer_id) == payment
    with pytest.raises(DomainError) as refusal:
        await find(new_id())
    assert refusal.value.reason is Reason.PAYMENT_NOT_FOUND


async def test_paying_captures_with_exactly_one_event(desk: Desk) -> None:
    payment = await desk.open()
    await desk.pay(payment)
    assert (await desk.find(payment)).status is Status.CREATED
    assert await desk.deliver() == [Outcome.APPLIED]
    paid = await desk.find(payment)
    assert (paid.status, paid.method, paid.refunded) == (Status.CAPTURED, "card", Money(0, "INR"))

    assert await desk.deliver() == [Outcome.DUPLICATE]
    assert await desk.find(payment) == paid
    (event,) = await desk.events()
    assert event.payment_id == str(payment.payment_id)
    assert event.booking_id == str(payment.order.booking_id)
    assert event.captured.amount.amount_minor == PRICE.amount_minor
    assert event.captured.amount.currency_code == PRICE.currency_code
    assert event.captured.method == "card"


async def test_a_declined_payment_can_be_paid_after_all(desk: Desk) -> None:
    payment = await desk.open()
    await desk.decline(payment)
    await desk.deliver()
    declined = await desk.find(payment)
    assert (declined.status, declined.failure_code) == (Status.FAILED, "card_declined")
    desk.clock.advance(5)
    await desk.pay(payment)
    await desk.deliver()
    paid = await desk.find(payment)
    assert (paid.status, paid.failure_code) == (Status.CAPTURED, None)
    assert await desk.event_kinds() == ["failed", "captured"]


@pytest.mark.parametrize("is_declined", [False, True])
async def test_an_unpaid_payment_is_voided_and_takes_no_more_money(
    desk: Desk, is_declined: bool
) -> None:
    payment = await desk.open()
    if is_declined:
        await desk.decline(payment)
        await desk.deliver()
    assert (await desk.cashier.void(payment.payment_id)).status is Status.VOIDED
    assert (await desk.cashier.void(payment.payment_id)).status is Status.VOIDED
    for step in (desk.pay, desk.decline):
        with pytest.raises(DomainError) as refusal:
            await step(payment)
        assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID
    assert await desk.ledger() == []


async def test_voiding_a_paid_payment_says_that_it_is_paid(desk: Desk) -> None:
    """Also before its webhook has come: the sandbox's answer counts as one."""
    payment = await desk.open()
    await desk.pay(payment)
    voided = await desk.cashier.void(payment.payment_id)
    assert voided.status is Status.CAPTURED
    assert await desk.deliver() == [Outcome.UNCHANGED]
    assert await desk.cashier.void(payment.payment_id) == voided
    assert await desk.event_kinds() == ["captured"]


async def test_voiding_an_unknown_payment_is_refused(desk: Desk) -> None:
    with pytest.raises(DomainError) as refusal:
        await desk.cashier.void(new_id())
    assert refusal.value.reason is Reason.PAYMENT_NOT_FOUND


async def test_of_void_and_payment_exactly_one_wins(desk: Desk) -> None:
    """Twenty rounds on connections of their own; the sandbox's ledger agrees each time."""
    wins = {Status.CAPTURED: 0, Status.VOIDED: 0}
    for number in range(20):
        payment = await desk.open()
        steps = [desk.pay(payment), desk.cashier.void(payment.payment_id)]
        steps = steps if number % 2 else steps[::-1]
        await asyncio.gather(*steps, return_exceptions=True)
        await desk.deliver()
        status = (await desk.find(payment)).status
        wins[status] += 1
        taken = [entry for entry in await desk.ledger() if entry.payment_id == payment.payment_id]
        assert len(taken) == (1 if status is Status.CAPTURED else 0)
    assert sum(wins.values()) == 20


async def test_without_the_lock_void_and_payment_both_win(desk: Desk) -> None:
    """Control: the race is real when the state is read first and written afterwards."""
    payment = await desk.open()
    async with desk.database.transaction() as connection:
        await connection.execute(
            sa.text("ALTER TABLE sandbox_payments DROP CONSTRAINT sandbox_payments_paid_check")
        )
    have_read = asyncio.Barrier(2)

    async def claim(**values: object) -> bool:
        table = tables.sandbox_payments
        async with desk.database.transaction() as connection:
            state = (await connection.execute(sa.select(table.c.state))).scalar_one()
            await have_read.wait()
            if state == "OPEN":
                await connection.execute(sa.update(table).values(**values))
            return bool(state == "OPEN")

    both = await asyncio.gather(
        claim(state="PAID", captured_minor=payment.amount.amount_minor), claim(state="VOIDED")
    )
    assert all(both)


class Failing(SandboxProvider):
    """A provider whose answers get lost, after or before it has done what was asked."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(
            desk.database, desk.clock, gateway_url="", secrets=[], webhook_queued=Wakeup()
        )
        self._desk = desk
        self.is_done_first = True

    async def create_session(self, order: Order) -> Session:
        if self.is_done_first:
            await self._desk.provider.create_session(order)
        raise ProviderError(NAME, "http_500")

    async def void(self, order: Order, reference: str | None) -> Voided | Captured:
        raise ProviderError(NAME, "http_500")

    async def refund(self, order: RefundOrder) -> RefundProcessed:
        if self.is_done_first:
            await self._desk.provider.refund(order)
        raise ProviderError(NAME, "http_500")


@pytest.mark.parametrize("is_done_first", [False, True])
async def test_a_provider_in_trouble_leaves_a_payment_that_a_retry_completes(
    desk: Desk, is_done_first: bool
) -> None:
    failing = Failing(desk)
    failing.is_done_first = is_done_first
    order = an_order()
    with pytest.raises(DomainError) as refusal:
        await ProviderCalls(desk.database, {NAME: failing}, desk.clock, Wakeup()).open(order)
    assert refusal.value.reason is Reason.PAYMENT_GATEWAY_ERROR
    assert refusal.value.metadata == {"provider": NAME, "code": "http_500"}

    payment = await desk.cashier.open(order)
    assert payment.payment_url is not None
    assert await desk.count(tables.sandbox_payments) == 1


async def test_a_webhook_may_come_before_the_providers_answer_is_stored(desk: Desk) -> None:
    order = an_order()
    async with desk.database.transaction() as connection:
        await payments.create(connection, order=order, now=desk.clock())
    session = await desk.provider.create_session(order)
    early = await desk.find_by_id(order.payment_id)
    await desk.pay(early)
    assert await desk.deliver() == [Outcome.APPLIED]
    payment = await desk.cashier.open(order)
    assert payment.status is Status.CAPTURED
    assert payment.provider_reference == session.reference
    assert payment.payment_url == session.payment_url


async def test_a_payment_voided_while_it_is_opened_takes_no_money(desk: Desk) -> None:
    order = an_order()
    async with desk.database.transaction() as connection:
        await payments.create(connection, order=order, now=desk.clock())

    class VoidsMeanwhile(Failing):
        async def create_session(self, order: Order) -> Session:
            assert (await desk.cashier.void(order.payment_id)).status is Status.VOIDED
            return await desk.provider.create_session(order)

        async def void(self, order: Order, reference: str | None) -> Voided | Captured:
            return await desk.provider.void(order, reference)

    meanwhile = ProviderCalls(desk.database, {NAME: VoidsMeanwhile(desk)}, desk.clock, Wakeup())
    payment = await meanwhile.open(order)
    assert payment.status is Status.VOIDED
    with pytest.raises(DomainError) as refusal:
        await desk.pay(payment)
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID


async def test_paying_twice_takes_money_once(desk: Desk) -> None:
    payment = await desk.open()
    await asyncio.gather(*(desk.pay(payment) for _ in range(5)))
    await desk.decline(payment)
    await desk.deliver()
    assert [(entry.kind, entry.amount) for entry in await desk.ledger()] == [(Kind.CAPTURE, PRICE)]
    assert await desk.event_kinds() == ["captured"]
