"""The sandbox's ledger: the money that it moved. Append-only; tests compare with it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.money import Money
from payment_svc.tables import sandbox_ledger

_MAX_OF_SESSION = 200
_MAX_BETWEEN = 100_000


class Kind(StrEnum):
    """CAPTURE moves money from the customer to the merchant, REFUND back."""

    CAPTURE = "CAPTURE"
    REFUND = "REFUND"


@dataclass(frozen=True, slots=True)
class Entry:
    entry_id: int
    payment_id: UUID
    kind: Kind
    reference: str
    amount: Money
    create_time: datetime
    refund_id: UUID | None


async def append(
    connection: AsyncConnection,
    *,
    session_id: str,
    payment_id: UUID,
    kind: Kind,
    reference: str,
    amount: Money,
    idempotency_key: str | None,
    now: datetime,
) -> Entry | None:
    """Appends an entry. None when the idempotency key has one."""
    row = (
        await connection.execute(
            postgresql.insert(sandbox_ledger)
            .values(
                session_id=session_id,
                payment_id=payment_id,
                kind=kind,
                reference=reference,
                idempotency_key=idempotency_key,
                amount_minor=amount.amount_minor,
                currency_code=amount.currency_code,
                create_time=now,
            )
            .on_conflict_do_nothing(index_elements=[sandbox_ledger.c.idempotency_key])
            .returning(sandbox_ledger)
        )
    ).one_or_none()
    return None if row is None else _from_row(row)


async def find_by_key(connection: AsyncConnection, *, idempotency_key: str) -> Entry | None:
    """The entry of a merchant's idempotency key, if any."""
    row = (
        await connection.execute(
            sa.select(sandbox_ledger).where(sandbox_ledger.c.idempotency_key == idempotency_key)
        )
    ).one_or_none()
    return None if row is None else _from_row(row)


async def find_capture(connection: AsyncConnection, *, session_id: str) -> Entry | None:
    """The first capture of a session, if any."""
    row = (
        await connection.execute(
            sa.select(sandbox_ledger)
            .where(sandbox_ledger.c.session_id == session_id)
            .where(sandbox_ledger.c.kind == Kind.CAPTURE)
            .order_by(sandbox_ledger.c.entry_id)
            .limit(1)
        )
    ).one_or_none()
    return None if row is None else _from_row(row)


async def of_session(connection: AsyncConnection, *, session_id: str) -> Sequence[Entry]:
    """The entries of a session, oldest first."""
    rows = await connection.execute(
        sa.select(sandbox_ledger)
        .where(sandbox_ledger.c.session_id == session_id)
        .order_by(sandbox_ledger.c.entry_id)
        .limit(_MAX_OF_SESSION)
    )
    return [_from_row(row) for row in rows]


async def list_between(
    connection: AsyncConnection, *, since: datetime, until: datetime
) -> Sequence[Entry]:
    """The entries of [since, until), oldest first."""
    rows = await connection.execute(
        sa.select(sandbox_ledger)
        .where(sandbox_ledger.c.create_time >= since)
        .where(sandbox_ledger.c.create_time < until)
        .order_by(sandbox_ledger.c.entry_id)
        .limit(_MAX_BETWEEN)
    )
    return [_from_row(row) for row in rows]


async def list_entries(connection: AsyncConnection, *, after: int, limit: int) -> Sequence[Entry]:
    """Entries after an id, oldest first."""
    rows = await connection.execute(
        sa.select(sandbox_ledger)
        .where(sandbox_ledger.c.entry_id > after)
        .order_by(sandbox_ledger.c.entry_id)
        .limit(limit)
    )
    return [_from_row(row) for row in rows]


def _from_row(row: sa.Row[Any]) -> Entry:
    return Entry(
        entry_id=row.entry_id,
        payment_id=row.payment_id,
        kind=Kind(row.kind),
        reference=row.reference,
        amount=Money(row.amount_minor, row.currency_code),
        create_time=row.create_time,
        refund_id=None if row.idempotency_key is None else _refund_id(row.idempotency_key),
    )


def _refund_id(idempotency_key: str) -> UUID | None:
    """The merchant's id of the refund: the first part of its key."""
    with suppress(ValueError):
        return UUID(idempotency_key.partition(":")[0])
    return None
