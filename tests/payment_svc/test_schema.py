"""The migrations, tables.py, the domain's states and the contract agree."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from boxoffice.payments.v1 import payment_pb2, sandbox_service_pb2
from mesh.db.database import Database
from payment_svc import captures, ledger, payments, refunds, unmatched, webhooks
from payment_svc.providers.base import DisputeStatus
from payment_svc.providers.sandbox import bank
from payment_svc.providers.sandbox import ledger as sandbox_ledger
from payment_svc.tables import metadata
from testing.payment_harness import SandboxHarness


def test_the_migrations_create_the_tables(new_database: Callable[[str], str]) -> None:
    engine = sa.create_engine(new_database("payment_svc"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        migrated = constraints(connection)
        # The ledger's trigger refuses to delete rows, not to drop the table.
        metadata.drop_all(connection)
        metadata.create_all(connection)
        # Alembic compares neither CHECK constraints nor the conditions of indexes.
        assert constraints(connection) == migrated
    engine.dispose()


def constraints(connection: sa.Connection) -> dict[str, str]:
    rows = connection.execute(
        sa.text(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
            # Not the triggers among them: tables.py has none.
            " WHERE connamespace = 'public'::regnamespace AND contype <> 't'"
            " UNION ALL SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
        )
    )
    # Without Alembic's own table, which create_all does not make.
    return {name: text for name, text in rows if not name.startswith("alembic_version")}


@pytest.mark.parametrize(
    ("states", "constraint"),
    [
        (payments.Status, "payments_status_check"),
        (refunds.Status, "refunds_status_check"),
        (captures.Verdict, "captures_verdict_check"),
        (bank.State, "sandbox_payments_state_check"),
        (sandbox_ledger.Kind, "sandbox_ledger_kind_check"),
        (DisputeStatus, "disputes_status_check"),
        (ledger.Kind, "book_entries_kind_check"),
        (ledger.Account, "book_lines_account_check"),
        (unmatched.Kind, "unexplained_kind_check"),
        (set(webhooks.Outcome) - {webhooks.Outcome.DUPLICATE}, "webhook_inbox_outcome_check"),
    ],
)
async def test_the_constraints_have_every_state(
    database: Database, states: Any, constraint: str
) -> None:
    async with database.transaction() as connection:
        text = (
            await connection.execute(
                sa.text(
                    "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = :name"
                ),
                {"name": constraint},
            )
        ).scalar_one()
    assert {part for part in text.split("'") if part.isupper() and part.isidentifier()} == {
        str(state) for state in states
    }


def test_the_contract_has_every_state() -> None:
    def names(enum: Any) -> set[str]:
        return {name for name, number in enum.items() if number != 0}

    assert names(payment_pb2.Payment.Status) == {*payments.Status}
    assert names(payment_pb2.Refund.Status) == {*refunds.Status}
    assert names(sandbox_service_pb2.LedgerEntry.Kind) == {*sandbox_ledger.Kind}


def test_every_state_has_its_moves() -> None:
    assert payments.MOVES.keys() == set(payments.Status)
    assert bank.MOVES.keys() == set(bank.State)
    # A paid payment stays paid.
    for status in payments.PAID:
        assert payments.MOVES[status] <= payments.PAID


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE sandbox_ledger SET amount_minor = 1",
        "DELETE FROM sandbox_ledger",
        "TRUNCATE sandbox_ledger",
    ],
)
async def test_the_sandboxs_ledger_is_append_only(harness: SandboxHarness, change: str) -> None:
    await harness.open_paid()
    before = await harness.sandbox_ledger()
    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
        async with harness.database.transaction() as connection:
            await connection.execute(sa.text(change))
    assert await harness.sandbox_ledger() == before
