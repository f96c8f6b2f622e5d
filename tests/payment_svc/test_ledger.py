"""The ledger agrees with the provider, each entry balances, and nothing in it changes."""

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from mesh.ids import new_id
from mesh.money import Money
from payment_svc import ledger, tables
from payment_svc.ledger import Account
from payment_svc.payments import Payment
from testing.payment_harness import NOW, SandboxHarness


async def test_the_ledger_has_captures_and_refunds_on_their_accounts(
    harness: SandboxHarness,
) -> None:
    event_id = new_id()
    payment = await harness.open_paid(event_id=event_id)
    await harness.capture(payment, Money(999, "INR"))
    await harness.deliver()
    assert await harness.balances() == {
        (Account.PROVIDER, "INR"): 150_999,
        (Account.EVENT, "INR"): -150_000,
        (Account.SUSPENSE, "INR"): -999,
    }
    await harness.request_refund(payment, Money(50_000, "INR"))
    await harness.calls.refund_due()
    await harness.deliver()
    assert await harness.balances() == {
        (Account.PROVIDER, "INR"): 100_000,
        (Account.EVENT, "INR"): -100_000,
        (Account.SUSPENSE, "INR"): 0,
    }
    async with harness.database.transaction() as connection:
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


async def post(harness: SandboxHarness, payment: Payment, lines: dict[Account, int]) -> None:
    async with harness.database.transaction() as connection:
        await ledger._post(
            connection, new_id(), ledger.Kind.CAPTURE, payment, "INR", lines, harness.clock()
        )


async def test_an_unbalanced_entry_does_not_commit(harness: SandboxHarness) -> None:
    payment = await harness.open()
    bad: list[dict[Account, int]] = [
        {Account.PROVIDER: 1},
        {Account.PROVIDER: 2, Account.EVENT: -1},
    ]
    for lines in bad:
        with pytest.raises(IntegrityError, match="not balanced"):
            await post(harness, payment, lines)
    await post(harness, payment, {Account.PROVIDER: 1, Account.EVENT: -1})


async def test_the_ledger_is_append_only(harness: SandboxHarness) -> None:
    await harness.open_paid()
    for statement in (
        sa.update(tables.book_lines).values(amount_minor=1),
        sa.delete(tables.book_entries),
        sa.text("TRUNCATE book_lines"),
    ):
        with pytest.raises(DBAPIError, match="append-only"):
            async with harness.database.transaction() as connection:
                await connection.execute(statement)
