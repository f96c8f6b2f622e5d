"""What a provider says it moved beside what we know of it: pure reading and counting."""

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
class News:
    """Movements that we had not heard of, or not all of; and those of another amount."""

    unheard: Sequence[Movement]
    other_amount: Sequence[Movement]


@dataclass(frozen=True, slots=True)
class Known:
    """A movement as we know it."""

    kind: MovementKind
    reference: str
    payment_id: UUID
    amount: Money
    has_fee: bool


async def news(
    connection: AsyncConnection, *, provider: str, movements: Sequence[Movement]
) -> News:
    """What a provider's movements tell that we did not know."""
    known = await _known(connection, provider, movements)
    unheard, other_amount = [], []
    for movement in movements:
        ours = known.get((movement.kind, movement.reference))
        if ours is None:
            unheard.append(movement)
        elif ours.amount != movement.amount:
            other_amount.append(movement)
        elif _tells_fee(movement) and not ours.has_fee:
            unheard.append(movement)
    return News(unheard, other_amount)


async def is_done(connection: AsyncConnection, *, provider: str, day: date) -> bool:
    """Whether a day was compared before."""
    found = await connection.execute(
        sa.select(compared_days.c.day)
        .where(compared_days.c.provider == provider)
        .where(compared_days.c.day == day)
    )
    return found.one_or_none() is not None


async def close_day(
    connection: AsyncConnection,
    *,
    provider: str,
    start: datetime,
    movements: Sequence[Movement],
    now: datetime,
) -> Sequence[Known]:
    """Keeps a day's totals on both sides. Returns what we know and the provider does not.

    `movements` reach beyond the day; those of the day itself are counted.
    """
    end = start + timedelta(days=1)
    theirs = {(one.kind, one.reference) for one in movements}
    of_day = [one for one in movements if start <= one.event_time < end]
    known = await _known(connection, provider, of_day)
    missing = [
        one
        for one in await _ours_between(connection, provider, start, end)
        if (one.kind, one.reference) not in theirs
    ]
    sums: dict[str, Counter[tuple[MovementKind, str]]] = {"provider": Counter(), "our": Counter()}
    for movement in of_day:
        sums["provider"][movement.kind, movement.amount.currency_code] += (
            movement.amount.amount_minor
        )
    for one in [*known.values(), *missing]:
        sums["our"][one.kind, one.amount.currency_code] += one.amount.amount_minor
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
    """A day's movements of one kind and currency, as the provider and as we count them."""

    provider: str
    day: date
    kind: MovementKind
    provider_total: Money
    our_total: Money


async def totals(
    connection: AsyncConnection, *, since: date, until: date, limit: int
) -> Sequence[DayTotal]:
    """The totals of the days in [since, until], newest first."""
    found = await connection.execute(
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
        for row in found
    ]


def _tells_fee(movement: Movement) -> bool:
    return isinstance(movement.report, Captured) and movement.report.fee is not None


async def _known(
    connection: AsyncConnection, provider: str, movements: Sequence[Movement]
) -> dict[tuple[MovementKind, str], Known]:
    found: dict[tuple[MovementKind, str], Known] = {}
    for first in range(0, len(movements), _CHUNK):
        chunk = movements[first : first + _CHUNK]
        for kind in MovementKind:
            references = [one.reference for one in chunk if one.kind is kind]
            if not references:
                continue
            table = captures if kind is MovementKind.CAPTURE else refunds
            condition = table.c.provider_reference == sa.any_(
                sa.cast(references, postgresql.ARRAY(sa.Text))
            )
            for one in await _select(connection, provider, kind, condition):
                found[kind, one.reference] = one
    return found


async def _ours_between(
    connection: AsyncConnection, provider: str, start: datetime, end: datetime
) -> list[Known]:
    found: list[Known] = []
    for kind in MovementKind:
        table = captures if kind is MovementKind.CAPTURE else refunds
        condition = sa.and_(table.c.event_time >= start, table.c.event_time < end)
        found += await _select(connection, provider, kind, condition)
    return found


async def _select(
    connection: AsyncConnection,
    provider: str,
    kind: MovementKind,
    condition: sa.ColumnElement[bool],
) -> list[Known]:
    if kind is MovementKind.CAPTURE:
        captured = await connection.execute(
            sa.select(captures).where(captures.c.provider == provider).where(condition)
        )
        rows = captured.all()
        fees = await _with_fee(connection, [row.capture_id for row in rows])
        return [
            Known(
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
        Known(
            kind,
            row.provider_reference,
            row.payment_id,
            Money(row.amount_minor, row.currency_code),
            has_fee=False,
        )
        for row in refunded
    ]


async def _with_fee(connection: AsyncConnection, capture_ids: Sequence[UUID]) -> set[UUID]:
    of_entry = {uuid5(one, "fee"): one for one in capture_ids}
    found = await connection.execute(
        sa.select(book_entries.c.entry_id).where(
            book_entries.c.entry_id == sa.any_(sa.cast(list(of_entry), postgresql.ARRAY(sa.Uuid)))
        )
    )
    return {of_entry[entry_id] for entry_id in found.scalars()}
