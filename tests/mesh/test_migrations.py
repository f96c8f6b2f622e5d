"""Every service's schema goes up from each of its revisions, with rows in its tables."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import alembic.command
import psycopg
import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from mesh.database import alembic_config
from mesh.settings import SERVICES

# What each service must not lose, filled at its first revision already.
PRECIOUS = {
    "auth_svc": {"users"},
    "booking_svc": {"bookings", "events", "venues"},
    "stock_svc": {"pools", "reservations"},
    "payment_svc": {"payments"},
}


# Texts with a form of their own.
_KNOWN = {"currency_code": "INR", "password_hash": "$2b$12$" + "x" * 53, "phone": "+919876543210"}


def revisions(service: str) -> list[str]:
    script = ScriptDirectory.from_config(alembic_config(service, ""))
    return [each.revision for each in reversed(list(script.walk_revisions()))]


STEPS = [(service, revision) for service in SERVICES for revision in revisions(service)]


@pytest.mark.parametrize(("service", "revision"), STEPS)
def test_rows_of_an_earlier_revision_survive_the_way_up(
    service: str, revision: str, postgres_url: Callable[[str], str]
) -> None:
    name = f"up_{service}_{revision}"
    with psycopg.connect(
        postgres_url("postgres").replace("+psycopg", ""), autocommit=True
    ) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
    config = alembic_config(service, postgres_url(name))
    alembic.command.upgrade(config, revision)
    engine = sa.create_engine(postgres_url(name), poolclass=sa.NullPool)
    filled = fill(engine)
    assert filled.keys() >= PRECIOUS[service]
    alembic.command.upgrade(config, "head")
    with engine.connect() as connection:
        for table, key in filled.items():
            if table in PRECIOUS[service]:
                found = connection.execute(
                    sa.text(f"SELECT count(*) FROM {table} WHERE {key[0]} = :key"), {"key": key[1]}
                )
                assert found.scalar_one() == 1, table
    engine.dispose()


def fill(engine: sa.Engine) -> dict[str, tuple[str, Any]]:
    """A row in each table whose constraints let one be made up; its key by table."""
    metadata = sa.MetaData()
    metadata.reflect(engine)
    made: dict[str, dict[str, Any]] = {}
    for table in metadata.sorted_tables:
        if table.name == "alembic_version":
            continue
        with engine.connect() as connection:
            row = _row(connection, table, made)
            try:
                connection.execute(table.insert().values(row))
                connection.commit()
            except sa.exc.DBAPIError:
                continue
        made[table.name] = row
    return {
        name: (key, row[key])
        for name, row in made.items()
        if (key := next(iter(metadata.tables[name].primary_key.columns)).name) in row
    }


def _row(
    connection: sa.Connection, table: sa.Table, made: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    choices = _choices(connection, table.name)
    row: dict[str, Any] = {}
    for column in table.columns:
        if column.server_default is not None or column.identity or column.computed:
            continue
        for foreign in column.foreign_keys:
            there = made.get(foreign.column.table.name, {})
            if foreign.column.name in there:
                row[column.name] = there[foreign.column.name]
        if column.name in row or (column.nullable and column.name not in choices):
            continue
        row[column.name] = choices.get(column.name) or _value(column.type, column.name)
    return row


def _choices(connection: sa.Connection, table: str) -> dict[str, str]:
    """The first value of each column that a CHECK gives a list for."""
    definitions = connection.execute(
        sa.text(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid = CAST(:table AS regclass) AND contype = 'c'"
        ),
        {"table": table},
    ).scalars()
    found: dict[str, str] = {}
    for definition in definitions:
        if match := re.match(r"CHECK \(\((\w+) = ANY \(ARRAY\['([^']+)'::text", definition):
            found[match[1]] = match[2]
    return found


def _value(kind: sa.types.TypeEngine[Any], name: str) -> Any:
    if isinstance(kind, sa.Uuid):
        return uuid4()
    if isinstance(kind, sa.DateTime):
        # An end is after its beginning.
        return datetime(2031 if "end" in name or "expire" in name else 2030, 1, 1, tzinfo=UTC)
    if isinstance(kind, sa.Boolean):
        return True
    if isinstance(kind, sa.Integer):
        return 10 if name == "capacity" else 1
    if isinstance(kind, sa.LargeBinary):
        return bytes(32)
    if isinstance(kind, sa.JSON):
        return {}
    if isinstance(kind, sa.ARRAY):
        return []
    if name in _KNOWN:
        return _KNOWN[name]
    return "UTC" if "zone" in name else f"a{uuid4().hex[:8]}"
