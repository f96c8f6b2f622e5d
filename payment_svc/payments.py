"""Payments: their states, the moves between them, and their rows.

payment_reports.py decides on moves; refunds are in refunds.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.jobs import Backoff, JobQueue
from mesh.db.pipeline import Query, run_together
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.money import Money
from payment_svc.providers.base import Order, Session
from payment_svc.tables import captures, payments


class Status(StrEnum):
    CREATED = "CREATED"
    AUTHORIZED = "AUTHORIZED"
    CAPTURED = "CAPTURED"
    PARTIALLY_REFUNDED = "PARTIALLY_REFUNDED"
    REFUNDED = "REFUNDED"
    FAILED = "FAILED"
    VOIDED = "VOIDED"


MOVES: dict[Status, frozenset[Status]] = {
    Status.CREATED: frozenset({Status.AUTHORIZED, Status.CAPTURED, Status.FAILED, Status.VOIDED}),
    Status.AUTHORIZED: frozenset({Status.CAPTURED, Status.FAILED, Status.VOIDED}),
    # A customer can try again on the same page.
    Status.FAILED: frozenset({Status.AUTHORIZED, Status.CAPTURED, Status.VOIDED}),
    Status.CAPTURED: frozenset({Status.PARTIALLY_REFUNDED, Status.REFUNDED}),
    # A completed refund can come back.
    Status.PARTIALLY_REFUNDED: frozenset({Status.REFUNDED, Status.CAPTURED}),
    Status.REFUNDED: frozenset({Status.PARTIALLY_REFUNDED, Status.CAPTURED}),
    Status.VOIDED: frozenset(),
}

# A customer needs about so long on the provider's page.
_FIRST_CHECK = timedelta(seconds=30)
# A payment whose webhook is lost is known as paid within the longest pause.
_PAUSES = Backoff(first_seconds=30, max_seconds=300)
_CHECKS = JobQueue(payments, due_time=payments.c.check_time, attempts=payments.c.checks)

PAID = frozenset({Status.CAPTURED, Status.PARTIALLY_REFUNDED, Status.REFUNDED})
OPEN = frozenset({Status.CREATED, Status.AUTHORIZED, Status.FAILED})
"""States that a provider can still change: the reconciler checks these payments."""


@dataclass(frozen=True, slots=True)
class Payment:
    """Money for one booking, through one provider. `order` has the terms of the request.

    `payment_url` is None until the payment is opened, and empty for an embedded payment.
    """

    order: Order
    status: Status
    refunded: Money
    provider_reference: str | None
    payment_url: str | None
    method: str | None
    failure_code: str | None
    observed_time: datetime | None
    authorization_reference: str | None
    create_time: datetime
    update_time: datetime
    client_secret: str | None = field(default=None, repr=False)

    @property
    def payment_id(self) -> UUID:
        return self.order.payment_id

    @property
    def amount(self) -> Money:
        return self.order.amount


async def create(connection: AsyncConnection, *, order: Order, now: datetime) -> Payment:
    """Stores a payment, CREATED. A repetition returns the payment in its present state.

    Raises VALIDATION_FAILED for an amount that is not positive, PAYMENT_STATE_INVALID when the
    payment_id has other terms.
    """
    if order.amount.amount_minor <= 0:
        raise invalid(FieldViolation("amount.amount_minor", "must be more than 0"))
    inserted = (
        await connection.execute(
            postgresql.insert(payments)
            .values(
                payment_id=order.payment_id,
                booking_id=order.booking_id,
                event_id=order.event_id,
                customer_id=order.customer_id,
                provider=order.provider,
                status=Status.CREATED,
                amount_minor=order.amount.amount_minor,
                currency_code=order.amount.currency_code,
                description=order.description,
                success_url=order.success_url,
                cancel_url=order.cancel_url,
                embedded=order.is_embedded,
                customer_email=order.email or None,
                customer_phone=order.phone or None,
                expire_time=order.expire_time,
                create_time=now,
                update_time=now,
            )
            .on_conflict_do_nothing(index_elements=[payments.c.payment_id])
            .returning(payments)
        )
    ).one_or_none()
    if inserted is not None:
        return _from_row(inserted)
    payment = await find(connection, payment_id=order.payment_id, owner=None)
    if payment.order != order:
        raise DomainError(
            Reason.PAYMENT_STATE_INVALID,
            "`payment_id` was used with other terms",
            status=payment.status,
        )
    return payment


async def find(connection: AsyncConnection, *, payment_id: UUID, owner: UUID | None) -> Payment:
    """A payment, of the owner if one is given. Raises PAYMENT_NOT_FOUND."""
    payment = await _select(connection, _FIND, payment_id)
    if owner not in (None, payment.order.customer_id):
        raise _not_found(payment_id)
    return payment


async def find_id(
    connection: AsyncConnection,
    *,
    provider: str,
    session_reference: str | None,
    capture_reference: str | None,
) -> UUID | None:
    """The payment with one of the provider's ids, if any."""
    if session_reference is not None:
        payment_ids = await connection.execute(
            sa.select(payments.c.payment_id)
            .where(payments.c.provider == provider)
            .where(payments.c.provider_reference == session_reference)
        )
    elif capture_reference is not None:
        payment_ids = await connection.execute(
            sa.select(captures.c.payment_id)
            .where(captures.c.provider == provider)
            .where(captures.c.provider_reference == capture_reference)
        )
    else:
        return None
    return payment_ids.scalar_one_or_none()


async def lock(connection: AsyncConnection, *, payment_id: UUID) -> Payment:
    """The payment, locked until the transaction ends. Raises PAYMENT_NOT_FOUND.

    Every change of a payment, a capture or a refund takes this lock first.
    """
    return await _select(connection, _LOCK, payment_id)


async def _select(connection: AsyncConnection, query: Query, payment_id: UUID) -> Payment:
    [result] = await run_together(connection, [query.statement(payment_id=payment_id)])
    for row in query.rows(result):
        return _from_row(row)
    raise _not_found(payment_id)


def _not_found(payment_id: UUID) -> DomainError:
    return DomainError(Reason.PAYMENT_NOT_FOUND, "no such payment", payment_id=payment_id)


_OF_ID = sa.select(payments).where(payments.c.payment_id == sa.bindparam("payment_id"))
# NO KEY UPDATE: inserts of captures and refunds do not wait for their foreign key.
_FIND, _LOCK = Query(_OF_ID), Query(_OF_ID.with_for_update(key_share=True))


async def attach_session(
    connection: AsyncConnection, *, payment_id: UUID, session: Session, now: datetime
) -> Payment:
    """Stores the provider's session. A webhook may have stored its id before."""
    row = (
        await connection.execute(
            sa.update(payments)
            .where(payments.c.payment_id == payment_id)
            .where(payments.c.payment_url.is_(None))
            .values(
                provider_reference=session.reference,
                payment_url=session.payment_url,
                client_secret=sa.case((payments.c.status.in_(OPEN), session.client_secret)),
                customer_email=None,
                customer_phone=None,
                check_time=sa.case((payments.c.status.in_(OPEN), now + _FIRST_CHECK)),
                update_time=now,
            )
            .returning(payments)
        )
    ).one_or_none()
    if row is not None:
        return _from_row(row)
    return await find(connection, payment_id=payment_id, owner=None)


async def has_reference(
    connection: AsyncConnection, *, payment: Payment, reference: str | None
) -> bool:
    """Whether a provider's id can be this payment's: the stored one, or one not stored yet."""
    if reference is None:
        return True
    if payment.provider_reference is not None:
        return payment.provider_reference == reference
    other = await find_id(
        connection,
        provider=payment.order.provider,
        session_reference=reference,
        capture_reference=None,
    )
    return other is None


async def lease_checks(
    connection: AsyncConnection, *, providers: Sequence[str], now: datetime, limit: int
) -> Sequence[Payment]:
    """Takes open payments whose check is due, until their next check after a growing pause."""
    rows = await _CHECKS.lease_where(
        connection,
        now=now,
        until=sa.literal(now) + _PAUSES.after_column(payments.c.checks + 1),
        limit=limit,
        where=[payments.c.provider.in_(providers)],
    )
    return [_from_row(row) for row in rows]


async def move(
    connection: AsyncConnection,
    *,
    payment_id: UUID,
    to: Status,
    now: datetime,
    **values: Any,
) -> Payment | None:
    """Moves a payment along MOVES and sets values. None when MOVES does not allow it."""
    row = (
        await connection.execute(
            sa.update(payments)
            .where(payments.c.payment_id == payment_id)
            .where(payments.c.status.in_(_before(to)))
            .values(status=to, update_time=now, **{**_until_final(to), **values})
            .returning(payments)
        )
    ).one_or_none()
    return None if row is None else _from_row(row)


async def refresh(
    connection: AsyncConnection, *, payment_id: UUID, status: Status, now: datetime, **values: Any
) -> None:
    """Sets newer values of a payment that stays in its state."""
    await connection.execute(
        sa.update(payments)
        .where(payments.c.payment_id == payment_id)
        .where(payments.c.status == status)
        .values(update_time=now, **values)
    )


async def record_refund(
    connection: AsyncConnection, *, payment_id: UUID, amount: Money, now: datetime
) -> Payment:
    """Counts a completed refund: PARTIALLY_REFUNDED, or REFUNDED when nothing remains."""
    return await _add_refunded(connection, payment_id, amount.amount_minor, now)


async def revert_refund(
    connection: AsyncConnection, *, payment_id: UUID, amount: Money, now: datetime
) -> Payment:
    """A completed refund came back: PARTIALLY_REFUNDED, or CAPTURED when none remains."""
    return await _add_refunded(connection, payment_id, -amount.amount_minor, now)


async def _add_refunded(
    connection: AsyncConnection, payment_id: UUID, minor: int, now: datetime
) -> Payment:
    refunded = payments.c.refunded_minor + minor
    row = (
        await connection.execute(
            sa.update(payments)
            .where(payments.c.payment_id == payment_id)
            .where(payments.c.status.in_(PAID))
            .where(refunded.between(0, payments.c.amount_minor))
            .values(
                refunded_minor=refunded,
                status=sa.case(
                    (refunded == payments.c.amount_minor, Status.REFUNDED.value),
                    (refunded == 0, Status.CAPTURED.value),
                    else_=Status.PARTIALLY_REFUNDED.value,
                ),
                update_time=now,
            )
            .returning(payments)
        )
    ).one()
    return _from_row(row)


def _until_final(status: Status) -> dict[str, Any]:
    if status in OPEN:
        return {}
    return dict.fromkeys(("check_time", "client_secret", "customer_email", "customer_phone"))


def _before(status: Status) -> Iterable[Status]:
    return [earlier for earlier, moves in MOVES.items() if status in moves]


def _from_row(row: Any) -> Payment:
    return Payment(
        order=Order(
            payment_id=row.payment_id,
            booking_id=row.booking_id,
            customer_id=row.customer_id,
            provider=row.provider,
            amount=Money(row.amount_minor, row.currency_code),
            description=row.description,
            success_url=row.success_url,
            cancel_url=row.cancel_url,
            event_id=row.event_id,
            is_embedded=row.embedded,
            email=row.customer_email or "",
            phone=row.customer_phone or "",
            expire_time=row.expire_time,
        ),
        status=Status(row.status),
        refunded=Money(row.refunded_minor, row.currency_code),
        provider_reference=row.provider_reference,
        payment_url=row.payment_url,
        client_secret=row.client_secret,
        method=row.method,
        failure_code=row.failure_code,
        observed_time=row.observed_time,
        authorization_reference=row.authorization_reference,
        create_time=row.create_time,
        update_time=row.update_time,
    )
