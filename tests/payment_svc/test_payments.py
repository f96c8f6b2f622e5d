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
from payment_svc.providers.base import (
    Captured,
    Order,
    ProviderError,
    RefundOrder,
    RefundProcessed,
    Session,
    Voided,
)
from payment_svc.providers.sandbox import NAME, bank
from payment_svc.providers.sandbox.ledger import Kind
from payment_svc.providers.sandbox.provider import SandboxProvider
from payment_svc.webhooks import Outcome
from testing.payment_harness import GATEWAY_URL, NOW, PRICE, SandboxHarness, an_order


async def test_a_payment_is_opened_with_the_page_where_it_is_paid(harness: SandboxHarness) -> None:
    payment = await harness.open()
    assert payment.status is Status.CREATED
    assert payment.payment_url == f"{GATEWAY_URL}/sandbox/pay/{payment.payment_id}"
    assert payment.provider_reference is not None
    assert payment.refunded == Money(0, "INR")


async def test_opening_twice_returns_the_same_payment(harness: SandboxHarness) -> None:
    order = an_order()
    opened = await asyncio.gather(*(harness.calls.open(order) for _ in range(5)))
    assert set(opened) == {await harness.calls.open(order)}
    assert await harness.count(tables.sandbox_payments) == 1


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
async def test_a_payment_id_cannot_be_used_with_other_terms(
    harness: SandboxHarness, change: dict[str, object]
) -> None:
    order = an_order()
    await harness.calls.open(order)
    with pytest.raises(DomainError) as refusal:
        await harness.calls.open(replace(order, **change))  # type: ignore[arg-type]
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID
    assert refusal.value.metadata == {"status": "CREATED"}
    assert (await harness.calls.open(order)).order == order


async def test_an_unknown_provider_is_refused_before_anything_is_stored(
    harness: SandboxHarness,
) -> None:
    with pytest.raises(DomainError) as refusal:
        await harness.open(provider="nobody")
    assert refusal.value.reason is Reason.PROVIDER_NOT_FOUND
    assert await harness.count(tables.payments) == 0


async def test_an_amount_of_zero_is_refused(harness: SandboxHarness) -> None:
    with pytest.raises(DomainError) as refusal:
        await harness.open(amount=Money(0, "INR"))
    assert refusal.value.reason is Reason.VALIDATION_FAILED


async def test_a_customer_sees_only_their_own_payments(harness: SandboxHarness) -> None:
    payment = await harness.open()

    async def find(owner: UUID | None) -> Payment:
        async with harness.database.transaction() as connection:
            return await payments.find(connection, payment_id=payment.payment_id, owner=owner)

    assert await find(None) == payment
    assert await find(payment.order.customer_id) == payment
    with pytest.raises(DomainError) as refusal:
        await find(new_id())
    assert refusal.value.reason is Reason.PAYMENT_NOT_FOUND


async def test_paying_captures_with_exactly_one_event(harness: SandboxHarness) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    assert (await harness.find(payment)).status is Status.CREATED
    assert await harness.deliver() == [Outcome.APPLIED]
    paid = await harness.find(payment)
    assert (paid.status, paid.method, paid.refunded) == (Status.CAPTURED, "card", Money(0, "INR"))

    assert await harness.deliver() == [Outcome.DUPLICATE]
    assert await harness.find(payment) == paid
    (event,) = await harness.events()
    assert event.payment_id == str(payment.payment_id)
    assert event.booking_id == str(payment.order.booking_id)
    assert event.captured.amount.amount_minor == PRICE.amount_minor
    assert event.captured.amount.currency_code == PRICE.currency_code
    assert event.captured.method == "card"


async def test_a_declined_payment_can_be_paid_afterwards(harness: SandboxHarness) -> None:
    payment = await harness.open()
    await harness.decline(payment)
    await harness.deliver()
    declined = await harness.find(payment)
    assert (declined.status, declined.failure_code) == (Status.FAILED, "card_declined")
    harness.clock.advance(5)
    await harness.pay(payment)
    await harness.deliver()
    paid = await harness.find(payment)
    assert (paid.status, paid.failure_code) == (Status.CAPTURED, None)
    assert await harness.event_kinds() == ["failed", "captured"]


@pytest.mark.parametrize("is_declined", [False, True])
async def test_a_voided_payment_cannot_be_paid(harness: SandboxHarness, is_declined: bool) -> None:
    payment = await harness.open()
    if is_declined:
        await harness.decline(payment)
        await harness.deliver()
    assert (await harness.calls.void(payment.payment_id)).status is Status.VOIDED
    assert (await harness.calls.void(payment.payment_id)).status is Status.VOIDED
    for step in (harness.pay, harness.decline):
        with pytest.raises(DomainError) as refusal:
            await step(payment)
        assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID
    assert await harness.sandbox_ledger() == []


async def test_an_abandoned_page_is_closed_for_good(harness: SandboxHarness) -> None:
    payment = await harness.open()
    async with harness.database.transaction() as connection:
        for _ in range(2):
            left = await bank.abandon(connection, payment_id=payment.payment_id, now=NOW)
            assert left.state is bank.State.VOIDED
    await harness.deliver()
    assert (await harness.find(payment)).status is Status.VOIDED
    assert await harness.event_kinds() == ["voided"]
    with pytest.raises(DomainError) as refusal:
        await harness.pay(payment)
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID


async def test_voiding_a_paid_payment_returns_it_as_captured(harness: SandboxHarness) -> None:
    """Also before its webhook is received: the sandbox's answer reports the capture."""
    payment = await harness.open()
    await harness.pay(payment)
    voided = await harness.calls.void(payment.payment_id)
    assert voided.status is Status.CAPTURED
    assert await harness.deliver() == [Outcome.UNCHANGED]
    assert await harness.calls.void(payment.payment_id) == voided
    assert await harness.event_kinds() == ["captured"]


async def test_voiding_an_unknown_payment_is_refused(harness: SandboxHarness) -> None:
    with pytest.raises(DomainError) as refusal:
        await harness.calls.void(new_id())
    assert refusal.value.reason is Reason.PAYMENT_NOT_FOUND


async def test_a_concurrent_void_and_payment_have_one_winner(harness: SandboxHarness) -> None:
    """Twenty rounds. The sandbox's ledger agrees each time."""
    wins = {Status.CAPTURED: 0, Status.VOIDED: 0}
    for number in range(20):
        payment = await harness.open()
        steps = [harness.pay(payment), harness.calls.void(payment.payment_id)]
        steps = steps if number % 2 else steps[::-1]
        await asyncio.gather(*steps, return_exceptions=True)
        await harness.deliver()
        status = (await harness.find(payment)).status
        wins[status] += 1
        captures = [
            entry
            for entry in await harness.sandbox_ledger()
            if entry.payment_id == payment.payment_id
        ]
        assert len(captures) == (1 if status is Status.CAPTURED else 0)
    assert sum(wins.values()) == 20


async def test_without_the_lock_void_and_payment_both_win(harness: SandboxHarness) -> None:
    """Control: both succeed when the state is read first and written afterwards."""
    payment = await harness.open()
    async with harness.database.transaction() as connection:
        await connection.execute(
            sa.text("ALTER TABLE sandbox_payments DROP CONSTRAINT sandbox_payments_paid_check")
        )
    have_read = asyncio.Barrier(2)

    async def claim(**values: object) -> bool:
        table = tables.sandbox_payments
        async with harness.database.transaction() as connection:
            state = (await connection.execute(sa.select(table.c.state))).scalar_one()
            await have_read.wait()
            if state == "OPEN":
                await connection.execute(sa.update(table).values(**values))
            return bool(state == "OPEN")

    both = await asyncio.gather(
        claim(state="PAID", captured_minor=payment.amount.amount_minor), claim(state="VOIDED")
    )
    assert all(both)


class FailingProvider(SandboxProvider):
    """A provider that fails, before or after it has carried out the call."""

    def __init__(self, harness: SandboxHarness) -> None:
        super().__init__(
            harness.database, harness.clock, gateway_url="", secrets=[], webhook_queued=Wakeup()
        )
        self._harness = harness
        self.is_carried_out = True

    async def create_session(self, order: Order) -> Session:
        if self.is_carried_out:
            await self._harness.provider.create_session(order)
        raise ProviderError(NAME, "http_500")

    async def void(self, order: Order, reference: str | None) -> Voided | Captured:
        raise ProviderError(NAME, "http_500")

    async def refund(self, order: RefundOrder) -> RefundProcessed:
        if self.is_carried_out:
            await self._harness.provider.refund(order)
        raise ProviderError(NAME, "http_500")


@pytest.mark.parametrize("is_carried_out", [False, True])
async def test_a_retry_completes_a_payment_after_a_failed_call(
    harness: SandboxHarness, is_carried_out: bool
) -> None:
    failing = FailingProvider(harness)
    failing.is_carried_out = is_carried_out
    order = an_order()
    with pytest.raises(DomainError) as refusal:
        await harness.calls_to(failing).open(order)
    assert refusal.value.reason is Reason.PAYMENT_GATEWAY_ERROR
    assert refusal.value.metadata == {"provider": NAME, "code": "http_500"}

    payment = await harness.calls.open(order)
    assert payment.payment_url is not None
    assert await harness.count(tables.sandbox_payments) == 1


async def test_a_webhook_before_the_providers_answer_is_stored_is_applied(
    harness: SandboxHarness,
) -> None:
    order = an_order()
    async with harness.database.transaction() as connection:
        await payments.create(connection, order=order, now=harness.clock())
    session = await harness.provider.create_session(order)
    early = await harness.find_by_id(order.payment_id)
    await harness.pay(early)
    assert await harness.deliver() == [Outcome.APPLIED]
    payment = await harness.calls.open(order)
    assert payment.status is Status.CAPTURED
    assert payment.provider_reference == session.reference
    assert payment.payment_url == session.payment_url


async def test_a_payment_voided_while_it_is_opened_cannot_be_paid(harness: SandboxHarness) -> None:
    order = an_order()
    async with harness.database.transaction() as connection:
        await payments.create(connection, order=order, now=harness.clock())

    class VoidsMeanwhile(FailingProvider):
        async def create_session(self, order: Order) -> Session:
            assert (await harness.calls.void(order.payment_id)).status is Status.VOIDED
            return await harness.provider.create_session(order)

        async def void(self, order: Order, reference: str | None) -> Voided | Captured:
            return await harness.provider.void(order, reference)

    meanwhile = harness.calls_to(VoidsMeanwhile(harness))
    payment = await meanwhile.open(order)
    assert payment.status is Status.VOIDED
    with pytest.raises(DomainError) as refusal:
        await harness.pay(payment)
    assert refusal.value.reason is Reason.PAYMENT_STATE_INVALID


async def test_paying_twice_captures_once(harness: SandboxHarness) -> None:
    payment = await harness.open()
    await asyncio.gather(*(harness.pay(payment) for _ in range(5)))
    await harness.decline(payment)
    await harness.deliver()
    assert [(entry.kind, entry.amount) for entry in await harness.sandbox_ledger()] == [
        (Kind.CAPTURE, PRICE)
    ]
    assert await harness.event_kinds() == ["captured"]


async def test_the_event_of_a_payment_is_stored(harness: SandboxHarness) -> None:
    event_id = new_id()
    payment = await harness.open(event_id=event_id)
    assert (await harness.find(payment)).order.event_id == event_id
