"""Compares the movements that a provider lists with the recorded captures and refunds.

Stores the totals of compared days. Effects are the reconciler's.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID, uuid5

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.money import Money
from payment_svc.providers.base import Captured, Movement, MovementKind
from payment_svc.tables import (
    book_entries,
    captures,
    compared_days,
    payments,
    provider_days,
    refunds,
)

_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Differences:
    """Listed movements that are not recorded, or whose fee is not; and those of another amount."""

    unrecorded: Sequence[Movement]
    other_amount: Sequence[Movement]


@dataclass(frozen=True, slots=True)
class RecordedMovement:
    """A capture or a completed refund of payment_svc."""

    kind: MovementKind
    reference: str
    payment_id: UUID
    amount: Money
    has_fee: bool


async def differences(
    connection: AsyncConnection, *, provider: str, movements: Sequence[Movement]
) -> Differences:
    """How a provider's movements differ from the recorded ones."""
    recorded = await _recorded(connection, provider, movements)
    unrecorded, other_amount = [], []
    for movement in movements:
        ours = recorded.get((movement.kind, movement.reference))
        if ours is None:
            unrecorded.append(movement)
        elif ours.amount != movement.amount:
            other_amount.append(movement)
        elif _has_fee(movement) and not ours.has_fee:
            unrecorded.append(movement)
    return Differences(unrecorded, other_amount)


async def is_compared(connection: AsyncConnection, *, provider: str, day: date) -> bool:
    """Whether a day was compared before."""
    days = await connection.execute(
        sa.select(compared_days.c.day)
        .where(compared_days.c.provider == provider)
        .where(compared_days.c.day == day)
    )
    return days.one_or_none() is not None


async def close_day(
    connection: AsyncConnection,
    *,
    provider: str,
    start: datetime,
    movements: Sequence[Movement],
    now: datetime,
) -> Sequence[RecordedMovement]:
    """Stores a day's totals of both sides. Returns the movements that the provider does not list.

    `movements` covers more than the day; only those of the day are counted.
    """
    end = start + timedelta(days=1)
    listed = {(movement.kind, movement.reference) for movement in movements}
    of_day = [movement for movement in movements if start <= movement.event_time < end]
    recorded = await _recorded(connection, provider, of_day)
    missing = [
        ours
        for ours in await _recorded_between(connection, provider, start, end)
        if (ours.kind, ours.reference) not in listed
    ]
    sums: dict[str, Counter[tuple[MovementKind, str]]] = {"provider": Counter(), "our": Counter()}
    for movement in of_day:
        sums["provider"][movement.kind, movement.amount.currency_code] += (
            movement.amount.amount_minor
        )
    for ours in [*recorded.values(), *missing]:
        sums["our"][ours.kind, ours.amount.currency_code] += ours.amount.amount_minor
    await connection.execute(
        postgresql.insert(compared_days)
        .values(provider=provider, day=start.date(), compare_time=now)
        .on_conflict_do_nothing()
    )
    for kind, currency_code in sums["provider"].keys() | sums["our"].keys():
        await connection.execute(
            postgresql.insert(provider_days)
            .values(
                provider=provider,
                day=start.date(),
                kind=kind,
                currency_code=currency_code,
                provider_minor=sums["provider"][kind, currency_code],
                our_minor=sums["our"][kind, currency_code],
            )
            .on_conflict_do_nothing()
        )
    return missing


@dataclass(frozen=True, slots=True)
class DayTotal:
    """A day's total of one kind and currency, of the provider and of payment_svc."""

    provider: str
    day: date
    kind: MovementKind
    provider_total: Money
    our_total: Money


async def totals(
    connection: AsyncConnection, *, since: date, until: date, limit: int
) -> Sequence[DayTotal]:
    """The totals of the days in [since, until], newest first."""
    rows = await connection.execute(
        sa.select(provider_days)
        .where(provider_days.c.day.between(since, until))
        .order_by(
            provider_days.c.day.desc(),
            provider_days.c.provider,
            provider_days.c.kind,
            provider_days.c.currency_code,
        )
        .limit(limit)
    )
    return [
        DayTotal(
            row.provider,
            row.day,
            MovementKind(row.kind),
            Money(row.provider_minor, row.currency_code),
            Money(row.our_minor, row.currency_code),
        )
        for row in rows
    ]


def _has_fee(movement: Movement) -> bool:
    return isinstance(movement.report, Captured) and movement.report.fee is not None


async def _recorded(
    connection: AsyncConnection, provider: str, movements: Sequence[Movement]
) -> dict[tuple[MovementKind, str], RecordedMovement]:
    """The recorded ones of a provider's movements, by kind and reference."""
    recorded: dict[tuple[MovementKind, str], RecordedMovement] = {}
    for first in range(0, len(movements), _CHUNK):
        chunk = movements[first : first + _CHUNK]
        for kind in MovementKind:
            references = [movement.reference for movement in chunk if movement.kind is kind]
            if not references:
                continue
            table = captures if kind is MovementKind.CAPTURE else refunds
            condition = table.c.provider_reference == sa.any_(
                sa.cast(references, postgresql.ARRAY(sa.Text))
            )
            for ours in await _select(connection, provider, kind, condition):
                recorded[kind, ours.reference] = ours
    return recorded


async def _recorded_between(
    connection: AsyncConnection, provider: str, start: datetime, end: datetime
) -> list[RecordedMovement]:
    recorded: list[RecordedMovement] = []
    for kind in MovementKind:
        table = captures if kind is MovementKind.CAPTURE else refunds
        condition = sa.and_(table.c.event_time >= start, table.c.event_time < end)
        recorded += await _select(connection, provider, kind, condition)
    return recorded


async def _select(
    connection: AsyncConnection,
    provider: str,
    kind: MovementKind,
    condition: sa.ColumnElement[bool],
) -> list[RecordedMovement]:
    if kind is MovementKind.CAPTURE:
        result = await connection.execute(
            sa.select(captures).where(captures.c.provider == provider).where(condition)
        )
        rows = result.all()
        fees = await _with_fee(connection, [row.capture_id for row in rows])
        return [
            RecordedMovement(
                kind,
                row.provider_reference,
                row.payment_id,
                Money(row.amount_minor, row.currency_code),
                row.capture_id in fees,
            )
            for row in rows
        ]
    refunded = await connection.execute(
        sa.select(refunds)
        .join(payments, payments.c.payment_id == refunds.c.payment_id)
        .where(payments.c.provider == provider)
        .where(refunds.c.status == "PROCESSED")
        .where(condition)
    )
    return [
        RecordedMovement(
            kind,
            row.provider_reference,
            row.payment_id,
            Money(row.amount_minor, row.currency_code),
            has_fee=False,
        )
        for row in refunded
    ]


async def _with_fee(connection: AsyncConnection, capture_ids: Sequence[UUID]) -> set[UUID]:
    """The captures whose fee is in the ledger."""
    of_entry = {uuid5(capture_id, "fee"): capture_id for capture_id in capture_ids}
    entry_ids = await connection.execute(
        sa.select(book_entries.c.entry_id).where(
            book_entries.c.entry_id == sa.any_(sa.cast(list(of_entry), postgresql.ARRAY(sa.Uuid)))
        )
    )
    return {of_entry[entry_id] for entry_id in entry_ids.scalars()}
