"""Unmatched items: webhooks and movements that match no record, listed until staff close them."""

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
from payment_svc.tables import unmatched_items


class Kind(StrEnum):
    """What has no counterpart. MISSING_*: payment_svc has it and the provider does not list it."""

    WEBHOOK = "WEBHOOK"
    CAPTURE = "CAPTURE"
    REFUND = "REFUND"
    OTHER_AMOUNT = "OTHER_AMOUNT"
    MISSING_CAPTURE = "MISSING_CAPTURE"
    MISSING_REFUND = "MISSING_REFUND"


@dataclass(frozen=True, slots=True)
class UnmatchedItem:
    """`reference` is the provider's id of the webhook, capture or refund."""

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
    """Stores an item. False when it is stored already, open or closed."""
    inserted = await connection.execute(
        postgresql.insert(unmatched_items)
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
) -> Sequence[UnmatchedItem]:
    """The open items, oldest first."""
    statement = (
        sa.select(unmatched_items)
        .where(unmatched_items.c.close_time.is_(None))
        .order_by(unmatched_items.c.unexplained_id)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(unmatched_items.c.unexplained_id > after)
    return [_from_row(row) for row in await connection.execute(statement)]


async def count_open(connection: AsyncConnection) -> dict[str, int]:
    """The number of open items, by provider."""
    rows = await connection.execute(
        sa.select(unmatched_items.c.provider, sa.func.count())
        .where(unmatched_items.c.close_time.is_(None))
        .group_by(unmatched_items.c.provider)
    )
    return {provider: int(count) for provider, count in rows}


async def close(
    connection: AsyncConnection, *, unexplained_id: UUID, note: str, now: datetime
) -> UnmatchedItem:
    """Closes an item. A repetition keeps the first note. Raises PAYMENT_NOT_FOUND."""
    row = (
        await connection.execute(
            sa.update(unmatched_items)
            .where(unmatched_items.c.unexplained_id == unexplained_id)
            .values(
                close_time=sa.func.coalesce(unmatched_items.c.close_time, now),
                note=sa.case(
                    (unmatched_items.c.close_time.is_(None), note), else_=unmatched_items.c.note
                ),
            )
            .returning(unmatched_items)
        )
    ).one_or_none()
    if row is None:
        raise DomainError(Reason.PAYMENT_NOT_FOUND, "no unexplained item has this id")
    return _from_row(row)


def _from_row(row: sa.Row[Any]) -> UnmatchedItem:
    has_amount = row.amount_minor is not None
    return UnmatchedItem(
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
