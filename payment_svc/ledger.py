"""The double-entry ledger of captures, fees, refunds and lost disputes, and its daily totals.

An entry is posted once, in the transaction of its effect: its id is derived from the capture,
refund or dispute. Triggers keep the tables append-only and each entry's sum at zero per currency.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid5

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.pipeline import Statement, columns, run_together
from mesh.money import Money
from payment_svc.payments import Payment
from payment_svc.tables import book_entries, book_lines


class Account(StrEnum):
    """The accounts between which an entry moves money.

    capture   PROVIDER +150,000   EVENT −150,000
    fee       FEES       +3,000   PROVIDER −3,000
    refund    EVENT     +50,000   PROVIDER −50,000

    A refund that comes back is posted with the signs reversed.
    """

    PROVIDER = "PROVIDER"
    EVENT = "EVENT"
    FEES = "FEES"
    # In place of EVENT for a capture that is not accepted, until it is refunded.
    SUSPENSE = "SUSPENSE"
    DISPUTED = "DISPUTED"
    # In place of PROVIDER for a refund that staff paid outside of the providers.
    ELSEWHERE = "ELSEWHERE"


class Kind(StrEnum):
    CAPTURE = "CAPTURE"
    REFUND = "REFUND"
    FEE = "FEE"
    DISPUTE = "DISPUTE"
    SETTLEMENT = "SETTLEMENT"


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One event's totals of a day in one currency, in minor units. Outgoing amounts are positive, too."""

    day: date
    event_id: UUID | None
    currency_code: str
    captured_minor: int
    refunded_minor: int
    fees_minor: int
    suspense_minor: int
    disputed_minor: int
    settled_minor: int

    @property
    def net_minor(self) -> int:
        """The change of the balance at the providers."""
        return (
            self.captured_minor
            - self.refunded_minor
            - self.fees_minor
            + self.suspense_minor
            - self.disputed_minor
        )

    @property
    def key(self) -> tuple[date, str, str]:
        """The row's position in the order of `rows`."""
        return self.day, str(self.event_id or ""), self.currency_code


async def post_capture(
    connection: AsyncConnection,
    *,
    payment: Payment,
    capture_id: UUID,
    amount: Money,
    is_accepted: bool,
    now: datetime,
) -> None:
    """Posts a capture, which counts for the event when it is accepted."""
    other = Account.EVENT if is_accepted else Account.SUSPENSE
    lines = {Account.PROVIDER: amount.amount_minor, other: -amount.amount_minor}
    await _post(connection, capture_id, Kind.CAPTURE, payment, amount.currency_code, lines, now)


async def post_fee(
    connection: AsyncConnection, *, payment: Payment, capture_id: UUID, amount: Money, now: datetime
) -> bool:
    """Posts the provider's fee of a capture. False when it was posted before."""
    lines = {Account.FEES: amount.amount_minor, Account.PROVIDER: -amount.amount_minor}
    entry_id = uuid5(capture_id, "fee")
    return await _post(connection, entry_id, Kind.FEE, payment, amount.currency_code, lines, now)


async def post_refund(
    connection: AsyncConnection,
    *,
    payment: Payment,
    refund_id: UUID,
    amount: Money,
    is_accepted: bool,
    reversals: int,
    now: datetime,
) -> None:
    """Posts a refund of a capture, once after each of its reversals."""
    other = Account.EVENT if is_accepted else Account.SUSPENSE
    lines = {other: amount.amount_minor, Account.PROVIDER: -amount.amount_minor}
    entry_id = uuid5(refund_id, f"refund {reversals}") if reversals else refund_id
    await _post(connection, entry_id, Kind.REFUND, payment, amount.currency_code, lines, now)


async def post_refund_reversal(
    connection: AsyncConnection,
    *,
    payment: Payment,
    refund_id: UUID,
    amount: Money,
    is_accepted: bool,
    reversals: int,
    now: datetime,
) -> None:
    """Posts that a refund came back, for the `reversals`-th time."""
    other = Account.EVENT if is_accepted else Account.SUSPENSE
    lines = {other: -amount.amount_minor, Account.PROVIDER: amount.amount_minor}
    entry_id = uuid5(refund_id, f"reversal {reversals}")
    await _post(connection, entry_id, Kind.REFUND, payment, amount.currency_code, lines, now)


async def post_settlement(
    connection: AsyncConnection,
    *,
    payment: Payment,
    refund_id: UUID,
    amount: Money,
    is_accepted: bool,
    now: datetime,
) -> None:
    """Posts a refund that staff paid outside of the provider."""
    other = Account.EVENT if is_accepted else Account.SUSPENSE
    lines = {other: amount.amount_minor, Account.ELSEWHERE: -amount.amount_minor}
    entry_id = uuid5(refund_id, "settlement")
    await _post(connection, entry_id, Kind.SETTLEMENT, payment, amount.currency_code, lines, now)


async def post_dispute_loss(
    connection: AsyncConnection, *, payment: Payment, dispute_id: UUID, amount: Money, now: datetime
) -> None:
    """Posts the amount of a lost dispute."""
    lines = {Account.DISPUTED: amount.amount_minor, Account.PROVIDER: -amount.amount_minor}
    await _post(connection, dispute_id, Kind.DISPUTE, payment, amount.currency_code, lines, now)


async def rows(
    connection: AsyncConnection,
    *,
    since: date,
    until: date,
    event_id: UUID | None,
    after: tuple[date, str, str] | None,
    limit: int,
) -> Sequence[LedgerRow]:
    """The days in [since, until], by day, event and currency, after a row's key."""
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
            sa.func.sum(
                _amount(
                    sa.and_(
                        book_lines.c.account == Account.SUSPENSE,
                        book_entries.c.kind != Kind.SETTLEMENT,
                    ),
                    -1,
                )
            ).label("suspense_minor"),
            _sum(Kind.DISPUTE, Account.DISPUTED, 1).label("disputed_minor"),
            _sum(Kind.SETTLEMENT, Account.EVENT, 1).label("settled_minor"),
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
    return [_from_row(row) for row in await connection.execute(statement)]


async def _post(
    connection: AsyncConnection,
    entry_id: UUID,
    kind: Kind,
    payment: Payment,
    currency_code: str,
    lines: Mapping[Account, int],
    now: datetime,
) -> bool:
    [inserted] = await run_together(
        connection,
        [
            Statement(
                _POST,
                (
                    entry_id,
                    kind.value,
                    payment.payment_id,
                    payment.order.event_id,
                    now.date(),
                    now,
                    currency_code,
                    *columns([(account.value, minor) for account, minor in lines.items()], 2),
                ),
            )
        ],
    )
    return inserted.count == len(lines)


_POST = """
WITH entry AS (
    INSERT INTO book_entries (entry_id, kind, payment_id, event_id, day, create_time)
    VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (entry_id) DO NOTHING RETURNING entry_id
)
INSERT INTO book_lines (entry_id, currency_code, account, amount_minor)
SELECT entry.entry_id, %s, line.*
FROM entry, unnest(%s::text[], %s::bigint[]) AS line (account, amount_minor)
"""


def _amount(condition: sa.ColumnElement[bool], sign: int) -> sa.ColumnElement[int]:
    return sa.case((condition, book_lines.c.amount_minor * sign), else_=0)


def _sum(kind: Kind, account: Account, sign: int) -> sa.ColumnElement[int]:
    return sa.func.sum(
        _amount(sa.and_(book_entries.c.kind == kind, book_lines.c.account == account), sign)
    )


def _from_row(row: sa.Row[Any]) -> LedgerRow:
    return LedgerRow(
        day=row.day,
        event_id=row.event_id,
        currency_code=row.currency_code,
        captured_minor=int(row.captured_minor),
        refunded_minor=int(row.refunded_minor),
        fees_minor=int(row.fees_minor),
        suspense_minor=int(row.suspense_minor),
        disputed_minor=int(row.disputed_minor),
        settled_minor=int(row.settled_minor),
    )
