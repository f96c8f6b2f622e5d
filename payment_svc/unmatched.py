"""What nobody can explain: for people to look at, each thing once, until they close it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from payment_svc.tables import unexplained


class Kind(StrEnum):
    """What it is that fits nothing of ours, or of the provider's."""

    WEBHOOK = "WEBHOOK"
    CAPTURE = "CAPTURE"
    REFUND = "REFUND"
    OTHER_AMOUNT = "OTHER_AMOUNT"
    MISSING_CAPTURE = "MISSING_CAPTURE"
    MISSING_REFUND = "MISSING_REFUND"


@dataclass(frozen=True, slots=True)
class Unmatched:
    """`reference` is the provider's id of it: of a webhook, of a capture, of a refund."""

    unexplained_id: UUID
    provider: str
    kind: Kind
    reference: str
    payment_id: UUID | None
    amount: Money | None
    create_time: datetime
    close_time: datetime | None
    note: str


async def record(
    connection: AsyncConnection,
    *,
    provider: str,
    kind: Kind,
    reference: str,
    payment_id: UUID | None,
    amount: Money | None,
    now: datetime,
) -> bool:
    """Keeps a thing for people. False when it is there already, closed or not."""
    inserted = await connection.execute(
        postgresql.insert(unexplained)
        .values(
            unexplained_id=new_id(),
            provider=provider,
            kind=kind,
            reference=reference,
            payment_id=payment_id,
            amount_minor=None if amount is None else amount.amount_minor,
            currency_code=None if amount is None else amount.currency_code,
            create_time=now,
        )
        .on_conflict_do_nothing(index_elements=["provider", "kind", "reference"])
    )
    return inserted.rowcount == 1


async def list_open(
    connection: AsyncConnection, *, after: UUID | None, limit: int
) -> Sequence[Unmatched]:
    """What is open, oldest first."""
    statement = (
        sa.select(unexplained)
        .where(unexplained.c.close_time.is_(None))
        .order_by(unexplained.c.unexplained_id)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(unexplained.c.unexplained_id > after)
    return [_from_row(row) for row in await connection.execute(statement)]


async def count_open(connection: AsyncConnection) -> dict[str, int]:
    """How much is open, by provider."""
    found = await connection.execute(
        sa.select(unexplained.c.provider, sa.func.count())
        .where(unexplained.c.close_time.is_(None))
        .group_by(unexplained.c.provider)
    )
    return {provider: int(count) for provider, count in found}


async def close(
    connection: AsyncConnection, *, unexplained_id: UUID, note: str, now: datetime
) -> Unmatched:
    """People know what it was. Repeating it keeps the first note. Raises PAYMENT_NOT_FOUND."""
    row = (
        await connection.execute(
            sa.update(unexplained)
            .where(unexplained.c.unexplained_id == unexplained_id)
            .values(
                close_time=sa.func.coalesce(unexplained.c.close_time, now),
                note=sa.case((unexplained.c.close_time.is_(None), note), else_=unexplained.c.note),
            )
            .returning(unexplained)
        )
    ).one_or_none()
    if row is None:
        raise DomainError(Reason.PAYMENT_NOT_FOUND, "there is nothing unexplained with this id")
    return _from_row(row)


def _from_row(row: sa.Row[Any]) -> Unmatched:
    has_amount = row.amount_minor is not None
    return Unmatched(
        unexplained_id=row.unexplained_id,
        provider=row.provider,
        kind=Kind(row.kind),
        reference=row.reference,
        payment_id=row.payment_id,
        amount=Money(row.amount_minor, row.currency_code) if has_amount else None,
        create_time=row.create_time,
        close_time=row.close_time,
        note=row.note,
    )
