"""With every webhook lost, asking alone brings each payment to its end."""

from datetime import timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from mesh.db.jobs import Wakeup
from mesh.errors import DomainError
from mesh.ids import new_id
from mesh.money import Money
from payment_svc import comparison, ledger, tables, unmatched
from payment_svc.ledger import Account
from payment_svc.payments import Payment, Status
from payment_svc.providers.sandbox import NAME, bank
from payment_svc.reconciler import Reconciler
from payment_svc.refunds import Status as RefundStatus
from testing.payment_harness import NOW, PRICE, Desk, a_capture


@pytest.fixture
def reconciler(desk: Desk) -> Reconciler:
    return Reconciler(desk.database, desk.cashier, {NAME: desk.provider}, desk.clock, Wakeup())


async def run(desk: Desk, reconciler: Reconciler, *, minutes: int) -> None:
    """Lets time pass, a few seconds at a time, without a single webhook."""
    for _ in range(minutes * 6):
        desk.clock.advance(10)
        while await reconciler.check_due():
            pass
        await desk.cashier.refund_due()


@pytest.mark.parametrize("paid_after_minutes", [0, 1, 14, 55])
async def test_what_is_paid_is_known_within_fifteen_minutes(
    desk: Desk, reconciler: Reconciler, paid_after_minutes: int
) -> None:
    paid, refused = await desk.open(), await desk.open()
    await run(desk, reconciler, minutes=paid_after_minutes)
    await desk.pay(paid)
    await desk.decline(refused)
    await run(desk, reconciler, minutes=6)
    assert (await desk.find(paid)).status is Status.CAPTURED
    assert (await desk.find(refused)).status is Status.FAILED
    assert sorted(map(str, await desk.event_kinds())) == ["captured", "failed"]


async def test_what_is_final_is_not_asked_for_again(desk: Desk, reconciler: Reconciler) -> None:
    paid, voided = await desk.open_paid(), await desk.open()
    await desk.cashier.void(voided.payment_id)
    desk.clock.advance(3600)
    assert await reconciler.check_due() == 0
    assert {(await desk.find(one)).status for one in (paid, voided)} == {
        Status.CAPTURED,
        Status.VOIDED,
    }


async def test_a_payment_is_asked_for_by_one_process_at_a_time(
    desk: Desk, reconciler: Reconciler
) -> None:
    await desk.open()
    desk.clock.advance(31)
    other = Reconciler(desk.database, desk.cashier, {NAME: desk.provider}, desk.clock, Wakeup())
    assert (await reconciler.check_due(), await other.check_due()) == (1, 0)


async def test_movements_that_we_never_heard_of_have_their_effect(
    desk: Desk, reconciler: Reconciler
) -> None:
    """Also those that a check would not find: of payments that were final already."""
    payment, twice = await desk.open(), await desk.open_paid()
    await desk.pay(payment)
    await desk.take(twice, PRICE)
    assert await reconciler.compare(
        NAME, since=NOW - timedelta(minutes=20), until=NOW + timedelta(seconds=1)
    )
    assert (await desk.find(payment)).status is Status.CAPTURED
    assert len(await desk.verdicts(twice)) == 2
    await desk.cashier.refund_due()
    since, until = NOW - timedelta(minutes=20), NOW + timedelta(minutes=1)
    assert await reconciler.compare(NAME, since=since, until=until) == 0


async def test_what_nobody_can_explain_is_listed_once(desk: Desk, reconciler: Reconciler) -> None:
    stray = Money(777, "INR")
    async with desk.database.transaction() as connection:
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
    await desk.deliver()
    async with desk.database.transaction() as connection:
        listed = await unmatched.list_open(connection, after=None, limit=10)
        assert {(one.kind, one.payment_id, one.amount) for one in listed} == {
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


async def test_a_day_is_compared_as_a_whole(desk: Desk, reconciler: Reconciler) -> None:
    payment = await desk.open_paid()
    refund = await desk.request_refund(payment, Money(50_000, "INR"))
    await desk.cashier.refund_due()
    assert (await desk.find_refund(refund)).status is RefundStatus.PROCESSED
    # Money that we believe in and the provider does not know.
    ghost = await desk.open()
    await desk.apply_report(a_capture(ghost, "ch_ghost"))
    for _ in range(2):
        await reconciler.compare_day(NAME, NOW.date())
    async with desk.database.transaction() as connection:
        totals = await comparison.totals(connection, since=NOW.date(), until=NOW.date(), limit=9)
        listed = await unmatched.list_open(connection, after=None, limit=10)
    assert [(one.kind, one.provider_total, one.our_total) for one in totals] == [
        ("CAPTURE", PRICE, Money(300_000, "INR")),
        ("REFUND", Money(50_000, "INR"), Money(50_000, "INR")),
    ]
    assert [(one.kind, one.reference) for one in listed] == [
        (unmatched.Kind.MISSING_CAPTURE, "ch_ghost")
    ]


async def balances(desk: Desk) -> dict[tuple[Account, str], int]:
    async with desk.database.transaction() as connection:
        return dict(await ledger.balances(connection))


async def test_the_book_is_balanced_and_says_what_the_ledger_says(desk: Desk) -> None:
    event_id = new_id()
    payment = await desk.open_paid(event_id=event_id)
    await desk.take(payment, Money(999, "INR"))
    await desk.deliver()
    assert await balances(desk) == {
        (Account.PROVIDER, "INR"): 150_999,
        (Account.EVENT, "INR"): -150_000,
        (Account.SUSPENSE, "INR"): -999,
    }
    await desk.request_refund(payment, Money(50_000, "INR"))
    await desk.cashier.refund_due()
    await desk.deliver()
    assert await balances(desk) == {
        (Account.PROVIDER, "INR"): 100_000,
        (Account.EVENT, "INR"): -100_000,
        (Account.SUSPENSE, "INR"): 0,
    }
    async with desk.database.transaction() as connection:
        (row,) = await ledger.rows(
            connection,
            since=NOW.date(),
            until=NOW.date(),
            event_id=event_id,
            after=None,
            limit=10,
        )
        assert not await ledger.rows(
            connection,
            since=NOW.date(),
            until=NOW.date(),
            event_id=event_id,
            after=row.key,
            limit=10,
        )
    assert (row.captured_minor, row.refunded_minor, row.suspense_minor, row.net_minor) == (
        150_000,
        50_000,
        0,
        100_000,
    )


async def write(desk: Desk, payment: Payment, lines: dict[Account, int]) -> None:
    async with desk.database.transaction() as connection:
        await ledger._write(
            connection, new_id(), ledger.Kind.CAPTURE, payment, "INR", lines, desk.clock()
        )


async def test_an_entry_that_is_not_balanced_does_not_commit(desk: Desk) -> None:
    payment = await desk.open()
    bad: list[dict[Account, int]] = [
        {Account.PROVIDER: 1},
        {Account.PROVIDER: 2, Account.EVENT: -1},
    ]
    for lines in bad:
        with pytest.raises(IntegrityError, match="not balanced"):
            await write(desk, payment, lines)
    await write(desk, payment, {Account.PROVIDER: 1, Account.EVENT: -1})


async def test_the_book_is_append_only(desk: Desk) -> None:
    await desk.open_paid()
    for statement in (
        sa.update(tables.book_lines).values(amount_minor=1),
        sa.delete(tables.book_entries),
        sa.text("TRUNCATE book_lines"),
    ):
        with pytest.raises(DBAPIError, match="append-only"):
            async with desk.database.transaction() as connection:
                await connection.execute(statement)


async def test_a_stated_event_is_part_of_what_was_asked_for(desk: Desk) -> None:
    event_id: UUID = new_id()
    payment = await desk.open(event_id=event_id)
    assert (await desk.find(payment)).order.event_id == event_id
