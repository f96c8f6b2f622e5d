"""Captures of payments by providers, and how much of each is refunded or can still be.

At most one capture is accepted for a payment. All others are stored and refunded in full.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.ids import new_id
from mesh.money import Money
from payment_svc.payments import PAID, Payment, Status
from payment_svc.providers.base import Captured
from payment_svc.tables import captures, disputes


class Verdict(StrEnum):
    """Whether a capture pays its payment, or why it does not."""

    ACCEPTED = "ACCEPTED"
    MISMATCHED = "MISMATCHED"
    SECOND = "SECOND"
    AFTER_VOID = "AFTER_VOID"


@dataclass(frozen=True, slots=True)
class Capture:
    """Captured money.

    `refunding` is the amount of all its refunds, `refunded` of completed ones. `settled` was
    refunded outside of the provider. `disputed` is with the customer's bank. `refundable` is
    what is left of it, 0 or more.
    """

    capture_id: UUID
    payment_id: UUID
    provider_reference: str
    verdict: Verdict
    amount: Money
    refunding: Money
    refunded: Money
    settled: Money
    disputed: Money
    refundable: Money


def judge(payment: Payment, amount: Money) -> Verdict:
    """The verdict on a new capture of this amount."""
    if amount != payment.amount:
        return Verdict.MISMATCHED
    if payment.status in PAID:
        return Verdict.SECOND
    if payment.status is Status.VOIDED:
        return Verdict.AFTER_VOID
    return Verdict.ACCEPTED


async def record(
    connection: AsyncConnection, *, payment: Payment, report: Captured, now: datetime
) -> Capture | None:
    """Stores a capture with its verdict. None when it is stored already."""
    row = (
        await connection.execute(
            postgresql.insert(captures)
            .values(
                capture_id=new_id(),
                payment_id=payment.payment_id,
                provider=payment.order.provider,
                provider_reference=report.capture_reference,
                verdict=judge(payment, report.amount),
                amount_minor=report.amount.amount_minor,
                currency_code=report.amount.currency_code,
                method=report.method,
                create_time=now,
                event_time=report.event_time,
            )
            .on_conflict_do_nothing(
                index_elements=[captures.c.provider, captures.c.provider_reference]
            )
            .returning(captures)
        )
    ).one_or_none()
    return None if row is None else _from_row(row)


async def find(connection: AsyncConnection, *, provider: str, reference: str) -> Capture | None:
    """The capture with a provider's id, if any."""
    row = (
        await connection.execute(
            sa.select(captures)
            .where(captures.c.provider == provider)
            .where(captures.c.provider_reference == reference)
        )
    ).one_or_none()
    return None if row is None else _from_row(row)


async def find_accepted(connection: AsyncConnection, *, payment_id: UUID) -> Capture | None:
    """The capture that paid a payment, if any."""
    row = (
        await connection.execute(
            sa.select(captures)
            .where(captures.c.payment_id == payment_id)
            .where(captures.c.verdict == Verdict.ACCEPTED)
        )
    ).one_or_none()
    return None if row is None else _from_row(row)


def refundable_minor(of: Any) -> Any:
    """What can still be refunded of a capture, given as a row or as the table's columns.

    The one bound of every refund that is requested. It is negative when the bank took money
    that was already refunded.
    """
    return of.amount_minor - of.refunding_minor - of.settled_minor - of.disputed_minor


async def reserve_refund(connection: AsyncConnection, *, capture_id: UUID, amount: Money) -> bool:
    """Adds a refund's amount to the capture. False when it exceeds what can be refunded.

    Tests and adds in one statement: of two requests for the remaining amount, one succeeds.
    """
    claimed = await connection.execute(
        sa.update(captures)
        .where(captures.c.capture_id == capture_id)
        .where(refundable_minor(captures.c) >= amount.amount_minor)
        .values(refunding_minor=captures.c.refunding_minor + amount.amount_minor)
    )
    return claimed.rowcount == 1


async def enter_refund(connection: AsyncConnection, *, capture_id: UUID, amount: Money) -> None:
    """Adds the amount of a refund that the provider made. A dispute does not limit it."""
    await _add(connection, capture_id, refunding_minor=amount.amount_minor)


async def drop_refund(connection: AsyncConnection, *, capture_id: UUID, amount: Money) -> None:
    """Subtracts the amount of a refund that will not be made."""
    await _add(connection, capture_id, refunding_minor=-amount.amount_minor)


async def settle_refund(connection: AsyncConnection, *, capture_id: UUID, amount: Money) -> Verdict:
    """Counts a refund as paid outside of the provider. Returns the capture's verdict."""
    minor = amount.amount_minor
    return await _add(connection, capture_id, refunding_minor=-minor, settled_minor=minor)


async def revert_refunded(
    connection: AsyncConnection, *, capture_id: UUID, amount: Money
) -> Verdict:
    """A completed refund came back: it counts as requested. Returns the capture's verdict."""
    return await _add(connection, capture_id, refunded_minor=-amount.amount_minor)


async def set_disputed(
    connection: AsyncConnection, *, provider: str, reference: str, taken: Sequence[str]
) -> Capture | None:
    """Sums up a capture's disputes in the states `taken`. None when there is no such capture."""
    disputed = (
        sa.select(sa.cast(sa.func.coalesce(sa.func.sum(disputes.c.amount_minor), 0), sa.BigInteger))
        .where(disputes.c.provider == provider)
        .where(disputes.c.capture_reference == reference)
        .where(disputes.c.currency_code == captures.c.currency_code)
        .where(disputes.c.status.in_(taken))
        .scalar_subquery()
    )
    row = (
        await connection.execute(
            sa.update(captures)
            .where(captures.c.provider == provider)
            .where(captures.c.provider_reference == reference)
            .values(disputed_minor=sa.func.least(captures.c.amount_minor, disputed))
            .returning(captures)
        )
    ).one_or_none()
    return None if row is None else _from_row(row)


async def get(connection: AsyncConnection, *, capture_id: UUID) -> Capture:
    row = (
        await connection.execute(sa.select(captures).where(captures.c.capture_id == capture_id))
    ).one()
    return _from_row(row)


async def record_refunded(
    connection: AsyncConnection, *, capture_id: UUID, amount: Money
) -> Verdict:
    """Counts a completed refund. Returns the capture's verdict."""
    row = (
        await connection.execute(
            sa.update(captures)
            .where(captures.c.capture_id == capture_id)
            .where(captures.c.refunded_minor + amount.amount_minor <= captures.c.refunding_minor)
            .values(refunded_minor=captures.c.refunded_minor + amount.amount_minor)
            .returning(captures.c.verdict)
        )
    ).one()
    return Verdict(row.verdict)


async def _add(connection: AsyncConnection, capture_id: UUID, **amounts: int) -> Verdict:
    """Adds amounts to counters of a capture, whose payment is locked."""
    row = (
        await connection.execute(
            sa.update(captures)
            .where(captures.c.capture_id == capture_id)
            .values({name: captures.c[name] + minor for name, minor in amounts.items()})
            .returning(captures.c.verdict)
        )
    ).one()
    return Verdict(row.verdict)


def _from_row(row: sa.Row[Any]) -> Capture:
    return Capture(
        capture_id=row.capture_id,
        payment_id=row.payment_id,
        provider_reference=row.provider_reference,
        verdict=Verdict(row.verdict),
        amount=Money(row.amount_minor, row.currency_code),
        refunding=Money(row.refunding_minor, row.currency_code),
        refunded=Money(row.refunded_minor, row.currency_code),
        settled=Money(row.settled_minor, row.currency_code),
        disputed=Money(row.disputed_minor, row.currency_code),
        refundable=Money(max(0, refundable_minor(row)), row.currency_code),
    )
