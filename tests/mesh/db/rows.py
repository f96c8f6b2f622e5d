"""Generates rows that satisfy a schema's constraints, so that migrations run on non-empty tables.

Values that tables require beyond types, keys and lists of values are in `_REQUIRED`.
"""

import hashlib
import re
from datetime import UTC, date, datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

Row = dict[str, Any]

_BODY = b"a body"
_TIME = datetime(2030, 1, 1, tzinfo=UTC)
# Rows by table; columns that a revision does not have are omitted.
_REQUIRED: dict[str, list[Row]] = {
    "bookings": [
        {
            "payment_id": uuid4,
            "payment_status": "CAPTURED",
            "refund_id": uuid4,
            "refund_minor": 1,
            "note": "a note",
        }
    ],
    "booking_changes": [{"difference_minor": 1, "payment_id": uuid4}],
    "book_lines": [
        {"account": "PROVIDER", "amount_minor": 1},
        {"account": "EVENT", "amount_minor": -1},
    ],
    "captures": [{"refunding_minor": 0, "refunded_minor": 0}],
    # Without it sort_time is infinity, which Python cannot represent.
    "events": [{"start_time": _TIME}],
    "inbound_webhooks": [{"sha256": hashlib.sha256(_BODY).digest(), "body": _BODY}],
    "mails": [
        {"recipient": "a@example.com", "subject": "a", "text": "a", "html": "a"}
        | {"due_time": _TIME}
    ],
    "payments": [{"refunded_minor": 0, "amount_minor": 10}],
    "refunds": [{"due_time": _TIME}],
    "sandbox_payments": [{"captured_minor": 0, "refunded_minor": 0}],
    "webhook_deliveries": [{"due_time": _TIME}],
    "webhook_inbox": [{"sha256": hashlib.sha256(_BODY).digest(), "payload": _BODY}],
}
_CHOICES = "choices"
_TEXTS = {"currency_code": "INR", "password_hash": "$2b$12$" + "x" * 53, "phone": "+919876543210"}


def reflected(engine: sa.Engine) -> sa.MetaData:
    """The tables of the current schema, without Alembic's."""
    metadata = sa.MetaData()
    with engine.connect() as connection:
        metadata.reflect(connection)
        metadata.remove(metadata.tables["alembic_version"])
        for table in metadata.tables.values():
            table.info[_CHOICES] = _choices(connection, table.name)
    return metadata


def generated(metadata: sa.MetaData) -> list[tuple[sa.Table, Row]]:
    """New rows for all tables, at least one per table; referenced tables come first."""
    first: dict[str, Row] = {}
    rows = []
    for table in metadata.sorted_tables:
        choices = table.info[_CHOICES]
        for required in _REQUIRED.get(table.name, [{}]):
            row = _row(table, first, choices, required)
            first.setdefault(table.name, row)
            rows.append((table, row))
    return rows


def key(table: sa.Table, row: Row) -> sa.ColumnElement[bool]:
    """The condition that selects the row: its primary key, or else its UUIDs."""
    columns = [column for column in table.primary_key if column.name in row] or [
        table.c[name] for name in row if isinstance(table.c[name].type, sa.Uuid)
    ]
    return sa.and_(*(column == row[column.name] for column in columns))


def _row(table: sa.Table, first: dict[str, Row], choices: dict[str, str], required: Row) -> Row:
    row: Row = {}
    for column in table.columns:
        if column.identity or column.computed:
            continue
        name = column.name
        for foreign in column.foreign_keys:
            referenced = first.get(foreign.column.table.name, {})
            if foreign.column.name in referenced:
                row[name] = referenced[foreign.column.name]
        if name in required:
            row[name] = required[name]() if callable(required[name]) else required[name]
        elif name in row or column.server_default is not None:
            continue
        elif name in choices:
            row[name] = choices[name]
        elif not column.nullable:
            row[name] = _value(column.type, name)
    return row


def _choices(connection: sa.Connection, table: str) -> dict[str, str]:
    """The first allowed value of each column whose CHECK is a list of values."""
    definitions = connection.execute(
        sa.text(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid = CAST(:table AS regclass) AND contype = 'c'"
        ),
        {"table": table},
    ).scalars()
    choices: dict[str, str] = {}
    for definition in definitions:
        if match := re.match(r"CHECK \(\((\w+) = ANY \(ARRAY\['([^']+)'::text", definition):
            choices[match[1]] = match[2]
    return choices


def _value(kind: sa.types.TypeEngine[Any], name: str) -> Any:
    by_type: dict[type[Any], Any] = {
        sa.Uuid: uuid4(),
        # End times must be later than start times.
        sa.DateTime: _TIME.replace(year=2031) if "end" in name or "expire" in name else _TIME,
        sa.Date: date(2030, 1, 1),
        sa.Boolean: True,
        sa.Integer: 10 if name == "capacity" else 1,
        sa.Float: 1.0,
        sa.LargeBinary: uuid4().bytes * 2,
        sa.JSON: {},
        sa.ARRAY: [],
    }
    for type_, value in by_type.items():
        if isinstance(kind, type_):
            return value
    if name in _TEXTS:
        return _TEXTS[name]
    return "UTC" if "zone" in name else f"a{uuid4().hex[:8]}"
