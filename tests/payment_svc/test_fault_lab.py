"""The sandbox as a fault lab: with every fault, money moves once and the final state is right."""

import asyncio

import httpx
import pytest

from boxoffice.payments.v1 import sandbox_service_pb2
from mesh.clock import system_clock
from mesh.db.jobs import Wakeup
from mesh.errors import DomainError, Reason
from payment_svc import tables
from payment_svc.captures import Verdict
from payment_svc.payments import Status
from payment_svc.providers.sandbox import bank, faults, signature
from payment_svc.providers.sandbox.delivery import Delivery
from payment_svc.providers.sandbox.faults import Fault, Lab
from payment_svc.providers.sandbox.provider import SandboxProvider
from payment_svc.servicers.sandbox import SandboxServicer
from testing.payment_harness import PRICE, SECRET, SandboxHarness, an_order


class Gateway:
    """Receives the sandbox's webhooks in place of the mesh's gateway."""

    def __init__(self, harness: SandboxHarness) -> None:
        self.harness = harness
        self.answers: list[int] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        try:
            await self.harness.receive(request.content, header=request.headers[signature.HEADER])
            self.answers.append(200)
        except DomainError:
            self.answers.append(401)
        return httpx.Response(self.answers[-1])


async def script(harness: SandboxHarness, payment_id: object, *scripted: Fault) -> None:
    async with harness.database.transaction() as connection:
        for fault in scripted:
            await faults.script(
                connection,
                payment_id=payment_id,  # type: ignore[arg-type]
                fault=fault,
                times=1,
                now=harness.clock(),
            )


@pytest.mark.parametrize(
    ("fault", "answers"),
    [
        (Fault.DROP, []),
        (Fault.DELAY, [200]),
        (Fault.LATE, [200]),
        (Fault.REORDER, [200]),
        (Fault.DUPLICATE, [200, 200]),
        (Fault.WRONG_SIGNATURE, [401, 200]),
    ],
)
async def test_scripted_faults_of_webhooks_occur(
    harness: SandboxHarness, fault: Fault, answers: list[int]
) -> None:
    payment = await harness.open()
    await script(harness, payment.payment_id, fault)
    await harness.pay(payment)
    gateway = Gateway(harness)
    transport = httpx.MockTransport(gateway)
    async with httpx.AsyncClient(transport=transport) as client:
        delivery = Delivery(
            harness.database,
            client,
            harness.clock,
            url="http://gateway.test",
            secret=SECRET,
            queued=Wakeup(),
            lab=Lab(),
        )
        await delivery.deliver_due()
        early = list(gateway.answers)
        harness.clock.advance(3600)
        await delivery.deliver_due()
    assert gateway.answers == answers
    if fault in {Fault.DELAY, Fault.LATE, Fault.REORDER}:
        assert early == []
    expected = Status.CREATED if fault is Fault.DROP else Status.CAPTURED
    assert (await harness.find(payment)).status is expected
    if fault is Fault.DROP:
        assert (await harness.calls.check(payment)).status is Status.CAPTURED


@pytest.mark.parametrize("fault", [Fault.ERROR_AFTER, Fault.TIMEOUT_AFTER, Fault.THROTTLE])
async def test_faults_of_calls_move_money_once(harness: SandboxHarness, fault: Fault) -> None:
    # Only a call that must time out has a short limit.
    is_hanging = fault is Fault.TIMEOUT_AFTER
    faulty = harness.calls_to(harness.provider, call_seconds=0.5) if is_hanging else harness.calls
    order = an_order()
    await script(harness, order.payment_id, fault)
    with pytest.raises(DomainError) as refusal:
        await faulty.open(order)
    assert refusal.value.reason is Reason.PAYMENT_GATEWAY_ERROR
    payment = await harness.calls.open(order)
    await harness.pay(payment)
    await harness.deliver()
    await script(harness, order.payment_id, fault)
    await harness.request_refund(payment)
    for calls in (faulty, harness.calls, harness.calls):
        await calls.refund_due()
        harness.clock.advance(301)
    assert (await harness.find(payment)).status is Status.REFUNDED
    assert [entry.kind for entry in await harness.sandbox_ledger()] == ["CAPTURE", "REFUND"]


async def test_scripted_faults_of_captures_occur(harness: SandboxHarness) -> None:
    captured_twice, disputed = await harness.open(), await harness.open()
    await script(harness, captured_twice.payment_id, Fault.PAY_TWICE)
    await script(harness, disputed.payment_id, Fault.DISPUTE)
    servicer = SandboxServicer(harness.database, harness.clock, Wakeup())
    for payment in (captured_twice, disputed):
        await servicer._complete(payment.payment_id, bank.pay)
        # The second time no fault is left.
        await servicer._complete(payment.payment_id, bank.pay)
    await harness.deliver()
    await harness.calls.refund_due()
    verdicts = await harness.verdicts(captured_twice)
    assert verdicts[Verdict.SECOND] == (PRICE, PRICE)
    assert await harness.count(tables.disputes) == 1
    assert (await harness.find(disputed)).status is Status.CAPTURED
    assert sorted(map(str, await harness.event_kinds())) == ["captured", "captured", "disputed"]


async def test_faults_occur_at_random_without_a_script(harness: SandboxHarness) -> None:
    provider = SandboxProvider(
        harness.database,
        system_clock,
        gateway_url="",
        secrets=[SECRET],
        webhook_queued=Wakeup(),
        lab=Lab({Fault.ERROR_AFTER: 0.5}),
    )
    calls = harness.calls_to(provider)
    opened = await asyncio.gather(
        *(calls.open(an_order()) for _ in range(6)), return_exceptions=True
    )
    assert {isinstance(answer, DomainError) for answer in opened} == {True, False}


def test_probabilities_are_set_by_name_of_the_fault() -> None:
    assert faults.parse(" DROP=0.3, ERROR_AFTER=1,") == {Fault.DROP: 0.3, Fault.ERROR_AFTER: 1.0}
    for text in ("DROP", "DROP=2", "RAIN=0.1", "DROP=-1"):
        with pytest.raises(ValueError, match=r".+"):
            faults.parse(text)


def test_the_contract_has_every_fault() -> None:
    names = set(sandbox_service_pb2.ScriptedFault.Kind.keys())
    assert names - {"KIND_UNSPECIFIED"} == set(Fault)
