"""Without any webhook, checks and comparisons bring each payment to its final state."""

from datetime import timedelta

import pytest

from mesh.db.jobs import Wakeup
from mesh.errors import DomainError
from mesh.ids import new_id
from mesh.money import Money
from payment_svc import comparison, unmatched
from payment_svc.payments import Status
from payment_svc.providers.sandbox import NAME, bank
from payment_svc.reconciler import Reconciler
from payment_svc.refunds import Status as RefundStatus
from testing.payment_harness import NOW, PRICE, SandboxHarness, a_capture


def a_reconciler(harness: SandboxHarness) -> Reconciler:
    return Reconciler(
        harness.database, harness.calls, {NAME: harness.provider}, harness.clock, Wakeup()
    )


@pytest.fixture
def reconciler(harness: SandboxHarness) -> Reconciler:
    return a_reconciler(harness)


async def run(harness: SandboxHarness, reconciler: Reconciler, *, minutes: int) -> None:
    """Advances the clock in steps of ten seconds. No webhook is delivered."""
    for _ in range(minutes * 6):
        harness.clock.advance(10)
        while await reconciler.check_due():
            pass
        await harness.calls.refund_due()


@pytest.mark.parametrize("paid_after_minutes", [0, 1, 14, 55])
async def test_a_paid_payment_is_captured_within_fifteen_minutes(
    harness: SandboxHarness, reconciler: Reconciler, paid_after_minutes: int
) -> None:
    paid, refused = await harness.open(), await harness.open()
    await run(harness, reconciler, minutes=paid_after_minutes)
    await harness.pay(paid)
    await harness.decline(refused)
    await run(harness, reconciler, minutes=6)
    assert (await harness.find(paid)).status is Status.CAPTURED
    assert (await harness.find(refused)).status is Status.FAILED
    assert sorted(map(str, await harness.event_kinds())) == ["captured", "failed"]


async def test_a_final_payment_is_not_checked_again(
    harness: SandboxHarness, reconciler: Reconciler
) -> None:
    paid, voided = await harness.open_paid(), await harness.open()
    await harness.calls.void(voided.payment_id)
    harness.clock.advance(3600)
    assert await reconciler.check_due() == 0
    assert {(await harness.find(payment)).status for payment in (paid, voided)} == {
        Status.CAPTURED,
        Status.VOIDED,
    }


async def test_a_payment_is_checked_by_one_process_at_a_time(
    harness: SandboxHarness, reconciler: Reconciler
) -> None:
    await harness.open()
    harness.clock.advance(31)
    other = a_reconciler(harness)
    assert (await reconciler.check_due(), await other.check_due()) == (1, 0)


async def test_unrecorded_movements_are_applied(
    harness: SandboxHarness, reconciler: Reconciler
) -> None:
    """Also those of payments in a final state, which checks do not find."""
    payment, twice = await harness.open(), await harness.open_paid()
    await harness.pay(payment)
    await harness.capture(twice, PRICE)
    assert await reconciler.compare(
        NAME, since=NOW - timedelta(minutes=20), until=NOW + timedelta(seconds=1)
    )
    assert (await harness.find(payment)).status is Status.CAPTURED
    assert len(await harness.verdicts(twice)) == 2
    await harness.calls.refund_due()
    since, until = NOW - timedelta(minutes=20), NOW + timedelta(minutes=1)
    assert await reconciler.compare(NAME, since=since, until=until) == 0


async def test_an_unmatched_movement_is_listed_once(
    harness: SandboxHarness, reconciler: Reconciler
) -> None:
    stray = Money(777, "INR")
    async with harness.database.transaction() as connection:
        session = await bank.open_session(
            connection,
            payment_id=new_id(),
            amount=stray,
            description="another shop's",
            success_url="",
            cancel_url="",
            now=NOW,
        )
        await bank.capture(connection, session=session, amount=stray, now=NOW)
    for _ in range(2):
        await reconciler.compare(NAME, since=NOW, until=NOW + timedelta(seconds=1))
    await harness.deliver()
    async with harness.database.transaction() as connection:
        listed = await unmatched.list_open(connection, after=None, limit=10)
        assert {(item.kind, item.payment_id, item.amount) for item in listed} == {
            (unmatched.Kind.CAPTURE, session.payment_id, stray),
            (unmatched.Kind.WEBHOOK, session.payment_id, stray),
        }
        assert len(listed) == 2
        closed = await unmatched.close(
            connection, unexplained_id=listed[0].unexplained_id, note="a test", now=NOW
        )
        again = await unmatched.close(
            connection, unexplained_id=listed[0].unexplained_id, note="other", now=NOW
        )
        assert again == closed
        assert await unmatched.count_open(connection) == {NAME: 1}
        with pytest.raises(DomainError):
            await unmatched.close(connection, unexplained_id=new_id(), note="x", now=NOW)


async def test_a_day_is_compared_once_with_its_totals(
    harness: SandboxHarness, reconciler: Reconciler
) -> None:
    payment = await harness.open_paid()
    refund = await harness.request_refund(payment, Money(50_000, "INR"))
    await harness.calls.refund_due()
    assert (await harness.find_refund(refund)).status is RefundStatus.PROCESSED
    # A recorded capture that the provider does not list.
    unlisted = await harness.open()
    await harness.apply_reports(a_capture(unlisted, "ch_ghost"))
    for _ in range(2):
        await reconciler.compare_day(NAME, NOW.date())
    async with harness.database.transaction() as connection:
        totals = await comparison.totals(connection, since=NOW.date(), until=NOW.date(), limit=9)
        listed = await unmatched.list_open(connection, after=None, limit=10)
    assert [(total.kind, total.provider_total, total.our_total) for total in totals] == [
        ("CAPTURE", PRICE, Money(300_000, "INR")),
        ("REFUND", Money(50_000, "INR"), Money(50_000, "INR")),
    ]
    assert [(item.kind, item.reference) for item in listed] == [
        (unmatched.Kind.MISSING_CAPTURE, "ch_ghost")
    ]
