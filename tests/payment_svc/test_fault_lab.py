"""The sandbox as fault lab: whatever goes wrong, money moves once and the end is right."""

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
from payment_svc.provider_calls import ProviderCalls
from payment_svc.providers.sandbox import NAME, faults, signature
from payment_svc.providers.sandbox.delivery import Delivery
from payment_svc.providers.sandbox.faults import Fault, Lab
from payment_svc.providers.sandbox.provider import SandboxProvider
from payment_svc.servicers.sandbox import SandboxServicer
from testing.payment_harness import PRICE, SECRET, Desk, an_order


class Gateway:
    """Receives what the sandbox posts, as the mesh's own gateway would."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.answers: list[int] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        try:
            await self.desk.receive(request.content, header=request.headers[signature.HEADER])
            self.answers.append(200)
        except DomainError:
            self.answers.append(401)
        return httpx.Response(self.answers[-1])


async def script(desk: Desk, payment_id: object, *wanted: Fault) -> None:
    async with desk.database.transaction() as connection:
        for fault in wanted:
            await faults.script(
                connection,
                payment_id=payment_id,  # type: ignore[arg-type]
                fault=fault,
                times=1,
                now=desk.clock(),
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
async def test_webhooks_go_wrong_as_scripted(desk: Desk, fault: Fault, answers: list[int]) -> None:
    payment = await desk.open()
    await script(desk, payment.payment_id, fault)
    await desk.pay(payment)
    gateway = Gateway(desk)
    transport = httpx.MockTransport(gateway)
    async with httpx.AsyncClient(transport=transport) as client:
        delivery = Delivery(
            desk.database,
            client,
            desk.clock,
            url="http://gateway.test",
            secret=SECRET,
            queued=Wakeup(),
            lab=Lab(),
        )
        await delivery.deliver_due()
        early = list(gateway.answers)
        desk.clock.advance(3600)
        await delivery.deliver_due()
    assert gateway.answers == answers
    if fault in {Fault.DELAY, Fault.LATE, Fault.REORDER}:
        assert early == []
    expected = Status.CREATED if fault is Fault.DROP else Status.CAPTURED
    assert (await desk.find(payment)).status is expected
    if fault is Fault.DROP:
        assert (await desk.cashier.check(payment)).status is Status.CAPTURED


@pytest.mark.parametrize("fault", [Fault.ERROR_AFTER, Fault.TIMEOUT_AFTER, Fault.THROTTLE])
async def test_calls_go_wrong_and_move_money_once(desk: Desk, fault: Fault) -> None:
    cashier = ProviderCalls(
        desk.database, {NAME: desk.provider}, desk.clock, Wakeup(), call_seconds=0.5
    )
    order = an_order()
    await script(desk, order.payment_id, fault)
    with pytest.raises(DomainError) as refusal:
        await cashier.open(order)
    assert refusal.value.reason is Reason.PAYMENT_GATEWAY_ERROR
    payment = await cashier.open(order)
    await desk.pay(payment)
    await desk.deliver()
    await script(desk, order.payment_id, fault)
    await desk.request_refund(payment)
    for _ in range(3):
        await cashier.refund_due()
        desk.clock.advance(301)
    assert (await desk.find(payment)).status is Status.REFUNDED
    assert [entry.kind for entry in await desk.ledger()] == ["CAPTURE", "REFUND"]


async def test_money_goes_wrong_as_scripted(desk: Desk) -> None:
    twice, disputed = await desk.open(), await desk.open()
    await script(desk, twice.payment_id, Fault.PAY_TWICE)
    await script(desk, disputed.payment_id, Fault.DISPUTE)
    servicer = SandboxServicer(desk.database, desk.clock, Wakeup())
    for payment in (twice, disputed):
        await servicer._complete(payment.payment_id, pays=True)
        # The second time nothing is left to go wrong.
        await servicer._complete(payment.payment_id, pays=True)
    await desk.deliver()
    await desk.cashier.refund_due()
    verdicts = await desk.verdicts(twice)
    assert verdicts[Verdict.SECOND] == (PRICE, PRICE)
    assert await desk.count(tables.disputes) == 1
    assert (await desk.find(disputed)).status is Status.CAPTURED
    assert sorted(map(str, await desk.event_kinds())) == ["captured", "captured", "disputed"]


async def test_chances_strike_without_a_script(desk: Desk) -> None:
    provider = SandboxProvider(
        desk.database,
        system_clock,
        gateway_url="",
        secrets=[SECRET],
        webhook_queued=Wakeup(),
        lab=Lab({Fault.ERROR_AFTER: 0.5}),
    )
    cashier = ProviderCalls(desk.database, {NAME: provider}, desk.clock, Wakeup())
    opened = await asyncio.gather(
        *(cashier.open(an_order()) for _ in range(6)), return_exceptions=True
    )
    assert {isinstance(one, DomainError) for one in opened} == {True, False}


def test_chances_are_written_by_name() -> None:
    assert faults.parse(" DROP=0.3, ERROR_AFTER=1,") == {Fault.DROP: 0.3, Fault.ERROR_AFTER: 1.0}
    for bad in ("DROP", "DROP=2", "RAIN=0.1", "DROP=-1"):
        with pytest.raises(ValueError, match=r".+"):
            faults.parse(bad)


def test_the_contract_knows_every_fault() -> None:
    names = set(sandbox_service_pb2.ScriptedFault.Kind.keys())
    assert names - {"KIND_UNSPECIFIED"} == set(Fault)
