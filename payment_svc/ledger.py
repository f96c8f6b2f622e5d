"""The book: a small double-entry ledger of what was taken, given back and kept as fees.

Every entry moves money between accounts and sums to zero in each currency, which a
constraint trigger checks at commit; entries are only ever added. It is written in the
transaction of the effect, once: an entry's id is that of what it tells about.

    capture   PROVIDER +150,000   EVENT −150,000
    fee       FEES       +3,000   PROVIDER −3,000
    refund    EVENT     +50,000   PROVIDER −50,000

Money that paid nothing (taken twice, a wrong amount) stands in SUSPENSE in place of EVENT
until it is given back, and money that a dispute took in DISPUTED.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid5

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.money import Money
from payment_svc.payments import Payment
from payment_svc.tables import book_entries, book_lines


class Account(StrEnum):
    """PROVIDER: what the providers owe us. The others: for what."""

    PROVIDER = "PROVIDER"
    EVENT = "EVENT"
    FEES = "FEES"
    SUSPENSE = "SUSPENSE"
    DISPUTED = "DISPUTED"


class Kind(StrEnum):
    CAPTURE = "CAPTURE"
    REFUND = "REFUND"
    FEE = "FEE"
    DISPUTE = "DISPUTE"


@dataclass(frozen=True, slots=True)
class Row:
    """One event's day in one currency, in minor units; what went out is positive, too."""

    day: date
    event_id: UUID | None
    currency_code: str
    captured_minor: int
    refunded_minor: int
    fees_minor: int
    suspense_minor: int
    disputed_minor: int

    @property
    def net_minor(self) -> int:
        """What is left with the provider."""
        return (
            self.captured_minor
            - self.refunded_minor
            - self.fees_minor
            + self.suspense_minor
            - self.disputed_minor
        )

    @property
    def key(self) -> tuple[date, str, str]:
        """Where it stands in the order of the list."""
        return self.day, str(self.event_id or ""), self.currency_code


async def captured(
    connection: AsyncConnection,
    *,
    payment: Payment,
    capture_id: UUID,
    amount: Money,
    is_accepted: bool,
    now: datetime,
) -> None:
    """Money was taken: for the event, or for nothing that we know."""
    other = Account.EVENT if is_accepted else Account.SUSPENSE
    lines = {Account.PROVIDER: amount.amount_minor, other: -amount.amount_minor}
    await _write(connection, capture_id, Kind.CAPTURE, payment, amount.currency_code, lines, now)


async def fee(
    connection: AsyncConnection, *, payment: Payment, capture_id: UUID, amount: Money, now: datetime
) -> bool:
    """The provider keeps a part. False when that was told before."""
    lines = {Account.FEES: amount.amount_minor, Account.PROVIDER: -amount.amount_minor}
    entry_id = uuid5(capture_id, "fee")
    return await _write(connection, entry_id, Kind.FEE, payment, amount.currency_code, lines, now)


async def refunded(
    connection: AsyncConnection,
    *,
    payment: Payment,
    refund_id: UUID,
    amount: Money,
    is_accepted: bool,
    now: datetime,
) -> None:
    """Money went back: of the event, or what should not have been taken."""
    other = Account.EVENT if is_accepted else Account.SUSPENSE
    lines = {other: amount.amount_minor, Account.PROVIDER: -amount.amount_minor}
    await _write(connection, refund_id, Kind.REFUND, payment, amount.currency_code, lines, now)


async def lost(
    connection: AsyncConnection, *, payment: Payment, dispute_id: UUID, amount: Money, now: datetime
) -> None:
    """A dispute was lost: its money is gone."""
    lines = {Account.DISPUTED: amount.amount_minor, Account.PROVIDER: -amount.amount_minor}
    await _write(connection, dispute_id, Kind.DISPUTE, payment, amount.currency_code, lines, now)


async def rows(
    connection: AsyncConnection,
    *,
    since: date,
    until: date,
    event_id: UUID | None,
    after: tuple[date, str, str] | None,
    limit: int,
) -> Sequence[Row]:
    """Days in [since, until], by day, event and currency, after a row's key."""
    event_text = sa.func.coalesce(sa.cast(book_entries.c.event_id, sa.Text), "")
    key = sa.tuple_(book_entries.c.day, event_text, book_lines.c.currency_code)
    statement = (
        sa.select(
            book_entries.c.day,
            book_entries.c.event_id,
            book_lines.c.currency_code,
            _sum(Kind.CAPTURE, Account.EVENT, -1).label("captured_minor"),
            _sum(Kind.REFUND, Account.EVENT, 1).label("refunded_minor"),
            _sum(Kind.FEE, Account.FEES, 1).label("fees_minor"),
            sa.func.sum(_amount(book_lines.c.account == Account.SUSPENSE, -1)).label(
                "suspense_minor"
            ),
            _sum(Kind.DISPUTE, Account.DISPUTED, 1).label("disputed_minor"),
        )
        .join(book_lines, book_lines.c.entry_id == book_entries.c.entry_id)
        .where(book_entries.c.day.between(since, until))
        .group_by(book_entries.c.day, book_entries.c.event_id, book_lines.c.currency_code)
        .order_by(book_entries.c.day, event_text, book_lines.c.currency_code)
        .limit(limit)
    )
    if event_id is not None:
        statement = statement.where(book_entries.c.event_id == event_id)
    if after is not None:
        statement = statement.where(key > sa.tuple_(*map(sa.literal, after)))
    return [_row(row) for row in await connection.execute(statement)]


async def balances(connection: AsyncConnection) -> Mapping[tuple[Account, str], int]:
    """What stands on each account, by currency. All accounts of a currency sum to zero."""
    found = await connection.execute(
        sa.select(
            book_lines.c.account,
            book_lines.c.currency_code,
            sa.func.sum(book_lines.c.amount_minor),
        ).group_by(book_lines.c.account, book_lines.c.currency_code)
    )
    return {(Account(account), code): int(total) for account, code, total in found}


async def _write(
    connection: AsyncConnection,
    entry_id: UUID,
    kind: Kind,
    payment: Payment,
    currency_code: str,
    lines: Mapping[Account, int],
    now: datetime,
) -> bool:
    inserted = await connection.execute(
        postgresql.insert(book_entries)
        .values(
            entry_id=entry_id,
            kind=kind,
            payment_id=payment.payment_id,
            event_id=payment.order.event_id,
            day=now.date(),
            create_time=now,
        )
        .on_conflict_do_nothing(index_elements=[book_entries.c.entry_id])
    )
    if inserted.rowcount == 0:
        return False
    await connection.execute(
        sa.insert(book_lines),
        [
            {
                "entry_id": entry_id,
                "account": account,
                "amount_minor": amount_minor,
                "currency_code": currency_code,
            }
            for account, amount_minor in lines.items()
        ],
    )
    return True


def _amount(condition: sa.ColumnElement[bool], sign: int) -> sa.ColumnElement[int]:
    return sa.case((condition, book_lines.c.amount_minor * sign), else_=0)


def _sum(kind: Kind, account: Account, sign: int) -> sa.ColumnElement[int]:
    return sa.func.sum(
        _amount(sa.and_(book_entries.c.kind == kind, book_lines.c.account == account), sign)
    )


def _row(row: sa.Row[Any]) -> Row:
    return Row(
        day=row.day,
        event_id=row.event_id,
        currency_code=row.currency_code,
        captured_minor=int(row.captured_minor),
        refunded_minor=int(row.refunded_minor),
        fees_minor=int(row.fees_minor),
        suspense_minor=int(row.suspense_minor),
        disputed_minor=int(row.disputed_minor),
    )
