"""The migrations create the tables of tables.py, whose CHECKs have every state and kind."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from stock_svc.ledger import Kind
from stock_svc.reservations import State
from stock_svc.tables import metadata


def test_the_migrations_create_the_tables_of_tables_py(new_database: Callable[[str], str]) -> None:
    engine = sa.create_engine(new_database("stock_svc"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        migrated = described(connection)
        metadata.drop_all(connection)
        metadata.create_all(connection)
        # Alembic compares neither CHECK constraints nor the predicates of indexes.
        assert described(connection) == migrated
    engine.dispose()


def test_the_database_knows_every_state_and_kind(new_database: Callable[[str], str]) -> None:
    engine = sa.create_engine(new_database("stock_svc"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        texts = described(connection)
    engine.dispose()
    assert all(f"'{state}'" in texts["reservations_state_check"] for state in State)
    assert all(f"'{kind}'" in texts["movements_kind_check"] for kind in Kind)


# Not part of the ledger: no booking reads them.
WITHOUT_EVENT = {"outbox", "idempotency_records"}


def test_every_key_begins_with_the_event() -> None:
    for table in metadata.tables.values():
        if table.name in WITHOUT_EVENT:
            continue
        assert next(iter(table.primary_key)).name == "event_id", table.name
        for index in table.indexes:
            assert index.columns.keys()[0] == "event_id", index.name


def described(connection: sa.Connection) -> dict[str, Any]:
    """CHECK constraints and indexes by name, as PostgreSQL writes them."""
    inspector = sa.inspect(connection)
    checks = {
        str(check["name"]): check["sqltext"]
        for table in metadata.tables
        for check in inspector.get_check_constraints(table)
    }
    indexes = connection.execute(
        sa.text("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'")
    )
    index_texts = {
        row.indexname: row.indexdef for row in indexes if "alembic_version" not in row.indexname
    }
    return checks | index_texts
