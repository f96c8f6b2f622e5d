"""The migrations and tables.py describe the same database."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from auth_svc.tables import metadata


def test_the_migrations_create_the_tables_of_the_code(new_database: Callable[[str], str]) -> None:
    engine = sa.create_engine(new_database("auth_svc"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        migrated = checks(connection)
        metadata.drop_all(connection)
        metadata.create_all(connection)
        # Alembic does not compare CHECK constraints.
        assert checks(connection) == migrated
    engine.dispose()


def checks(connection: sa.Connection) -> dict[str, Any]:
    inspector = sa.inspect(connection)
    return {
        str(check["name"]): check["sqltext"]
        for table in metadata.tables
        for check in inspector.get_check_constraints(table)
    }
