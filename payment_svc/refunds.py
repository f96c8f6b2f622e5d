"""Refunds: stored when requested, then carried out in the background until completed.

Refunds that the provider made by itself are stored, too. A refund that keeps failing waits for
staff. The calls to the provider are in provider_calls.py.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid5

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.jobs import Backoff, JobQueue
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id
from mesh.money import Money
from payment_svc import captures, ledger, outbox, payments
from payment_svc.captures import Capture, Verdict
from payment_svc.payments import Payment
from payment_svc.providers.amounts import up_to_step
from payment_svc.providers.base import (
    RefundOrder,
    RefundPending,
    RefundProcessed,
    RefundRefused,
    RefundReport,
)
from payment_svc.tables import captures as captures_table
from payment_svc.tables import payments as payments_table
from payment_svc.tables import refunds

DEFAULT_REASON = "customer_request"
AT_PROVIDER = "refunded_at_provider"
"""Reason of a refund that was made in the provider's dashboard."""

StepMinor = Callable[[Payment], int]
"""The smallest amount, in minor units, that the provider of a payment can move."""

# Longer than a call to a provider may take.
_LEASE = timedelta(seconds=15)
# A refund that is rejected or has no answer is given up at this age: it needs staff.
_MAX_AGE = timedelta(days=3)
# Some banks complete a refund after weeks.
_MAX_COMPLETION = timedelta(days=30)
_QUEUE = JobQueue(refunds, pauses=Backoff(first_seconds=1, max_seconds=300), max_age=_MAX_AGE)

oldest_due = _QUEUE.oldest_due
"""When the oldest refund that is not processed was requested."""

_log = logging.getLogger(__name__)


class Status(StrEnum):
    PENDING = "PENDING"
    PROCESSED = "PROCESSED"
    FAILED = "FAILED"
    SETTLED_ELSEWHERE = "SETTLED_ELSEWHERE"
    CANCELLED = "CANCELLED"


MOVES: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.PROCESSED, Status.FAILED, Status.CANCELLED}),
    # It came back from the customer's bank.
    Status.PROCESSED: frozenset({Status.FAILED}),
    Status.FAILED: frozenset({Status.PROCESSED, Status.SETTLED_ELSEWHERE, Status.CANCELLED}),
    # An attempt without an answer had succeeded.
    Status.SETTLED_ELSEWHERE: frozenset({Status.PROCESSED}),
    Status.CANCELLED: frozenset({Status.PROCESSED}),
}


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund of a payment, in part or in full.

    `due_time`, of the next attempt, is None when no more follow. `provider_reference` is the
    provider's id of the completed refund, `failed_references` are those of failed attempts.
    """

    refund_id: UUID
    payment_id: UUID
    capture_id: UUID
    amount: Money
    status: Status
    reason: str
    create_time: datetime
    due_time: datetime | None
    provider_reference: str | None
    failure_code: str | None
    failed_references: Sequence[str]
    refusals: int
    reversals: int
    note: str


@dataclass(frozen=True, slots=True)
class DueRefund:
    """A refund that is due now, and the number of this attempt."""

    provider: str
    order: RefundOrder
    attempt: int
    lease_end: datetime
    create_time: datetime


async def request(
    connection: AsyncConnection,
    *,
    payment_id: UUID,
    amount: Money | None,
    reason: str,
    refund_id: UUID | None,
    step_minor: StepMinor,
    now: datetime,
) -> Refund:
    """Stores a refund of a paid payment; without an amount, of everything that remains.

    An amount between two steps of the provider is rounded up. A refund_id that is stored
    already returns its refund. Raises PAYMENT_NOT_FOUND, VALIDATION_FAILED, or
    PAYMENT_STATE_INVALID when nothing was captured or the amount exceeds what remains.
    """
    payment = await payments.lock(connection, payment_id=payment_id)
    if refund_id is not None:
        stored = await find_of_payment(connection, payment_id=payment_id, refund_id=refund_id)
        if stored is not None:
            return stored
    if amount is not None:
        _check_amount(amount, payment)
    capture = await captures.find_accepted(connection, payment_id=payment_id)
    if capture is None:
        raise DomainError(
            Reason.PAYMENT_STATE_INVALID,
            "nothing was captured that could be refunded",
            status=payment.status,
        )
    amount = capture.refundable if amount is None else up_to_step(amount, step_minor(payment))
    if amount.amount_minor == 0 or not await captures.reserve_refund(
        connection, capture_id=capture.capture_id, amount=amount
    ):
        raise DomainError(
            Reason.PAYMENT_STATE_INVALID,
            "`amount` exceeds what can still be refunded",
            status=payment.status,
            captured=capture.amount.amount_minor,
            refunded=capture.refunding.amount_minor + capture.settled.amount_minor,
            disputed=capture.disputed.amount_minor,
            refundable=capture.refundable.amount_minor,
            requested=amount.amount_minor,
        )
    refund = await _insert(
        connection, refund_id or new_id(), capture, amount, reason or DEFAULT_REASON, now
    )
    if refund_id is None:
        # booking_svc knows its own requests.
        await _publish(connection, payment, refund, now)
    return refund


async def refund_capture(connection: AsyncConnection, *, capture: Capture, now: datetime) -> Refund:
    """Stores a refund of a whole capture that does not pay its payment."""
    if not await captures.reserve_refund(
        connection, capture_id=capture.capture_id, amount=capture.amount
    ):
        raise RuntimeError(f"capture {capture.capture_id} has a refund already")
    reason = f"capture_{capture.verdict.lower()}"
    return await _insert(connection, new_id(), capture, capture.amount, reason, now)


async def find(connection: AsyncConnection, *, refund_id: UUID, owner: UUID | None) -> Refund:
    """A refund, of the owner's payment if one is given. Raises REFUND_NOT_FOUND."""
    statement = (
        sa.select(refunds)
        .join(payments_table, payments_table.c.payment_id == refunds.c.payment_id)
        .where(refunds.c.refund_id == refund_id)
    )
    if owner is not None:
        statement = statement.where(payments_table.c.customer_id == owner)
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise DomainError(Reason.REFUND_NOT_FOUND, "no such refund", refund_id=refund_id)
    return _from_row(row)


async def find_of_payment(
    connection: AsyncConnection, *, payment_id: UUID, refund_id: UUID
) -> Refund | None:
    """A refund of this payment, if there is one."""
    return await _find(connection, payment_id, refunds.c.refund_id == refund_id)


async def find_reported(
    connection: AsyncConnection, *, payment_id: UUID, report: RefundReport
) -> Refund | None:
    """The refund of a payment that a report is about, by our id or the provider's."""
    if report.refund_id is not None:
        known = await find_of_payment(connection, payment_id=payment_id, refund_id=report.refund_id)
        if known is not None:
            return known
    reference = report.refund_reference
    if reference is None:
        return None
    is_of_provider = sa.or_(
        refunds.c.provider_reference == reference,
        sa.literal(reference) == sa.any_(refunds.c.failed_references),
    )
    return await _find(connection, payment_id, is_of_provider)


async def enter(
    connection: AsyncConnection, *, payment: Payment, report: RefundReport, now: datetime
) -> Refund | None:
    """Stores a refund that the provider reports and that nobody requested here, PENDING.

    Refunds that are not made yet and exceed what is left then are cancelled. None when the
    report fits no capture. The payment is locked.
    """
    amount, reference = report.amount, report.refund_reference
    if amount is None or reference is None:
        return None
    if report.capture_reference is not None:
        capture = await captures.find(
            connection, provider=payment.order.provider, reference=report.capture_reference
        )
    else:
        capture = await captures.find_accepted(connection, payment_id=payment.payment_id)
    if (
        capture is None
        or capture.payment_id != payment.payment_id
        or capture.amount.currency_code != amount.currency_code
        or capture.refunded.amount_minor + amount.amount_minor > capture.amount.amount_minor
    ):
        return None
    refund_id = uuid5(capture.capture_id, reference)
    if isinstance(report, RefundRefused):
        # Stored, so that an outdated report of its success has no effect.
        return await _insert(
            connection,
            refund_id,
            capture,
            amount,
            AT_PROVIDER,
            now,
            status=Status.CANCELLED,
            due_time=None,
            failed_references=[reference],
        )
    cancelled = await _make_room(connection, payment, capture.capture_id, amount.amount_minor, now)
    capture = await captures.get(connection, capture_id=capture.capture_id)
    if capture.refunding.amount_minor + amount.amount_minor > capture.amount.amount_minor:
        return None
    await captures.enter_refund(connection, capture_id=capture.capture_id, amount=amount)
    refund = await _insert(
        connection,
        refund_id,
        capture,
        amount,
        AT_PROVIDER,
        now,
        due_time=None,
        provider_reference=reference,
    )
    if isinstance(report, RefundPending):
        await _publish(connection, payment, refund, now)
    await _request_rest(connection, payment, capture.capture_id, cancelled, now)
    return refund


async def fit(
    connection: AsyncConnection, *, payment: Payment, capture_id: UUID, now: datetime
) -> None:
    """Cancels refunds that are not made yet and exceed what disputes have left of a capture."""
    cancelled = await _make_room(connection, payment, capture_id, 0, now)
    await _request_rest(connection, payment, capture_id, cancelled, now)


async def list_failed(
    connection: AsyncConnection, *, after: UUID | None, limit: int
) -> Sequence[Refund]:
    """Refunds that wait for staff, oldest first."""
    statement = (
        sa.select(refunds).where(_WAITS_FOR_STAFF).order_by(refunds.c.refund_id).limit(limit)
    )
    if after is not None:
        statement = statement.where(refunds.c.refund_id > after)
    return [_from_row(row) for row in await connection.execute(statement)]


async def oldest_failed(connection: AsyncConnection) -> datetime | None:
    """Since when the oldest refund waits for staff; None without one."""
    oldest: datetime | None = await connection.scalar(
        sa.select(sa.func.min(refunds.c.update_time)).where(_WAITS_FOR_STAFF)
    )
    return oldest


async def retry(connection: AsyncConnection, *, refund_id: UUID, now: datetime) -> Refund:
    """Makes a FAILED refund due. One that is PENDING or PROCESSED does not change.

    Raises REFUND_NOT_FOUND, or PAYMENT_STATE_INVALID for one that was settled or cancelled.
    """
    _, refund = await _locked(connection, refund_id)
    if refund.status in (Status.PENDING, Status.PROCESSED):
        return refund
    if refund.status is not Status.FAILED:
        raise _state_invalid(refund, "attempted again")
    return await _set(connection, refund, due_time=now, update_time=now)


async def settle(
    connection: AsyncConnection, *, refund_id: UUID, note: str, now: datetime
) -> Refund:
    """FAILED → SETTLED_ELSEWHERE, with its ledger entry. A repetition keeps the first note.

    Raises REFUND_NOT_FOUND, or PAYMENT_STATE_INVALID for one that is not FAILED.
    """
    payment, refund = await _locked(connection, refund_id)
    if refund.status is Status.SETTLED_ELSEWHERE:
        return refund
    if refund.status is not Status.FAILED:
        raise _state_invalid(refund, "settled elsewhere")
    verdict = await captures.settle_refund(
        connection, capture_id=refund.capture_id, amount=refund.amount
    )
    await ledger.post_settlement(
        connection,
        payment=payment,
        refund_id=refund_id,
        amount=refund.amount,
        is_accepted=verdict is Verdict.ACCEPTED,
        now=now,
    )
    refund = await _set(
        connection,
        refund,
        status=Status.SETTLED_ELSEWHERE,
        note=note,
        due_time=None,
        update_time=now,
    )
    await _publish(connection, payment, refund, now)
    return refund


async def lease_due(
    connection: AsyncConnection, *, now: datetime, limit: int
) -> Sequence[DueRefund]:
    """Leases due refunds to this process."""
    rows = await _QUEUE.lease_where(
        connection,
        now=now,
        until=now + _LEASE,
        limit=limit,
        joined_on=[
            refunds.c.capture_id == captures_table.c.capture_id,
            refunds.c.payment_id == payments_table.c.payment_id,
        ],
        returning=[
            *refunds.c,
            captures_table.c.provider_reference.label("capture_reference"),
            payments_table.c.provider,
            payments_table.c.provider_reference.label("session_reference"),
        ],
    )
    return [
        DueRefund(
            provider=row.provider,
            order=RefundOrder(
                refund_id=row.refund_id,
                payment_id=row.payment_id,
                session_reference=row.session_reference,
                capture_reference=row.capture_reference,
                amount=Money(row.amount_minor, row.currency_code),
                refusals=row.refusals,
                attempt=row.attempts,
            ),
            attempt=row.attempts,
            lease_end=row.due_time,
            create_time=row.create_time,
        )
        for row in rows
    ]


async def postpone(
    connection: AsyncConnection, *, due: DueRefund, is_accepted: bool, now: datetime
) -> None:
    """Makes a refund due again later: the provider gave no answer, or accepted it.

    A refund that had no answer for _MAX_AGE, or was not completed for _MAX_COMPLETION, becomes
    FAILED and waits for staff. It may have been made: a later report still completes it.
    """
    if now - due.create_time >= (_MAX_COMPLETION if is_accepted else _MAX_AGE):
        await _give_up(connection, due, "not_completed" if is_accepted else "no_answer", now)
        return
    await _QUEUE.reschedule(
        connection,
        due.order.refund_id,
        due_time=_QUEUE.retry_time(due.attempt, now=now),
        lease_end=due.lease_end,
        update_time=now,
    )


async def _give_up(
    connection: AsyncConnection, due: DueRefund, failure_code: str, now: datetime
) -> None:
    payment, refund = await _locked(connection, due.order.refund_id)
    if refund.due_time != due.lease_end:
        # Ended, or leased again meanwhile.
        return
    failed = await _set(
        connection,
        refund,
        status=Status.FAILED,
        failure_code=failure_code,
        due_time=None,
        update_time=now,
    )
    _log_failure(failed)
    if refund.status is not Status.FAILED:
        await _publish(connection, payment, failed, now)


async def complete(
    connection: AsyncConnection,
    *,
    payment: Payment,
    refund: Refund,
    report: RefundProcessed,
    now: datetime,
) -> bool:
    """→ PROCESSED, with its ledger entry and event. The payment is locked.

    False when it is PROCESSED already, or when this attempt is known to have failed since.
    """
    if refund.status is Status.PROCESSED or report.refund_reference in refund.failed_references:
        return False
    cancelled: Refund | None = None
    if refund.status in (Status.SETTLED_ELSEWHERE, Status.CANCELLED):
        _log.error(
            "a refund was made after it was settled or cancelled",
            extra={"refund_id": str(refund.refund_id), "status": refund.status},
        )
        cancelled = await _make_room(
            connection, payment, refund.capture_id, refund.amount.amount_minor, now
        )
        await captures.enter_refund(connection, capture_id=refund.capture_id, amount=refund.amount)
    await _set(
        connection,
        refund,
        status=Status.PROCESSED,
        provider_reference=report.refund_reference,
        event_time=report.event_time,
        failure_code=None,
        due_time=None,
        update_time=now,
    )
    verdict = await captures.record_refunded(
        connection, capture_id=refund.capture_id, amount=report.amount
    )
    await ledger.post_refund(
        connection,
        payment=payment,
        refund_id=refund.refund_id,
        amount=report.amount,
        is_accepted=verdict is Verdict.ACCEPTED,
        reversals=refund.reversals,
        now=now,
    )
    # The refund of another capture changes neither the payment nor the booking.
    if verdict is Verdict.ACCEPTED:
        refunded = await payments.record_refund(
            connection, payment_id=payment.payment_id, amount=report.amount, now=now
        )
        await outbox.refund_processed(
            connection, refunded, refund_id=refund.refund_id, amount=report.amount, now=now
        )
    await _request_rest(connection, payment, refund.capture_id, cancelled, now)
    return True


async def record_refusal(
    connection: AsyncConnection,
    *,
    payment: Payment,
    refund: Refund,
    report: RefundRefused,
    now: datetime,
) -> bool:
    """PENDING → FAILED, or PROCESSED → FAILED when the money came back. The payment is locked.

    A rejected refund is retried under a new key after a growing pause, unless the rejection is
    final or the refund is too old. One that came back waits for staff.
    """
    reference = report.refund_reference
    if reference is not None and reference in refund.failed_references:
        return False
    is_of_provider = reference is not None and reference == refund.provider_reference
    if refund.status is Status.PROCESSED:
        if is_of_provider:
            await _revert(connection, payment, refund, report, now)
        return is_of_provider
    if is_of_provider:
        # Made in the dashboard, and failed before it was completed: nobody promised it here.
        await _cancel(connection, payment, refund, now, failed_reference=reference)
        return True
    # A repeated refusal must not change the key of an attempt that is in progress.
    if refund.status not in (Status.PENDING, Status.FAILED) or refund.refusals != report.refusals:
        return False
    due_time = None
    if not report.is_final:
        due_time = _QUEUE.retry_time(report.refusals + 1, now=now, age=now - refund.create_time)
    refused = await _set(
        connection,
        refund,
        status=Status.FAILED,
        refusals=report.refusals + 1,
        failure_code=report.failure_code,
        failed_references=_with(refund.failed_references, reference),
        due_time=due_time,
        update_time=now,
    )
    if due_time is None:
        _log_failure(refused)
    if refund.status is not Status.FAILED:
        await _publish(connection, payment, refused, now)
    return True


async def _revert(
    connection: AsyncConnection,
    payment: Payment,
    refund: Refund,
    report: RefundRefused,
    now: datetime,
) -> None:
    """PROCESSED → FAILED, with the reversal of its ledger entry."""
    reversals = refund.reversals + 1
    failed = await _set(
        connection,
        refund,
        status=Status.FAILED,
        provider_reference=None,
        event_time=None,
        failed_references=_with(refund.failed_references, report.refund_reference),
        refusals=refund.refusals + 1,
        reversals=reversals,
        failure_code=report.failure_code,
        update_time=now,
    )
    verdict = await captures.revert_refunded(
        connection, capture_id=refund.capture_id, amount=refund.amount
    )
    await ledger.post_refund_reversal(
        connection,
        payment=payment,
        refund_id=refund.refund_id,
        amount=refund.amount,
        is_accepted=verdict is Verdict.ACCEPTED,
        reversals=reversals,
        now=now,
    )
    if verdict is Verdict.ACCEPTED:
        await payments.revert_refund(
            connection, payment_id=payment.payment_id, amount=refund.amount, now=now
        )
    _log_failure(failed)
    await _publish(connection, payment, failed, now)


async def _make_room(
    connection: AsyncConnection, payment: Payment, capture_id: UUID, minor: int, now: datetime
) -> Refund | None:
    """Cancels refunds that are not made yet, newest first, until `minor` is refundable.

    Returns the last one, of which a part may still be possible.
    """
    capture = (
        await connection.execute(
            sa.select(captures_table).where(captures_table.c.capture_id == capture_id)
        )
    ).one()
    left = captures.refundable_minor(capture)
    if left >= minor:
        return None
    rows = await connection.execute(
        sa.select(refunds)
        .where(refunds.c.capture_id == capture_id)
        .where(refunds.c.status.in_([Status.PENDING, Status.FAILED]))
        # Others are made already, at the provider.
        .where(refunds.c.provider_reference.is_(None))
        .order_by(refunds.c.create_time.desc(), refunds.c.refund_id.desc())
    )
    last = None
    for refund in map(_from_row, rows.all()):
        if left >= minor:
            break
        await _cancel(connection, payment, refund, now)
        left += refund.amount.amount_minor
        last = refund
    return last


async def _request_rest(
    connection: AsyncConnection,
    payment: Payment,
    capture_id: UUID,
    cancelled: Refund | None,
    now: datetime,
) -> None:
    """Requests the part of a cancelled refund that is still refundable, as a new refund.

    A refund's amount never changes: an attempt without an answer may have had it.
    """
    if cancelled is None:
        return
    capture = await captures.get(connection, capture_id=capture_id)
    minor = min(capture.refundable.amount_minor, cancelled.amount.amount_minor)
    amount = Money(minor, cancelled.amount.currency_code)
    if minor == 0 or not await captures.reserve_refund(
        connection, capture_id=capture_id, amount=amount
    ):
        return
    rest = await _insert(connection, new_id(), capture, amount, cancelled.reason, now)
    await _publish(connection, payment, rest, now)


async def _cancel(
    connection: AsyncConnection,
    payment: Payment,
    refund: Refund,
    now: datetime,
    *,
    failed_reference: str | None = None,
) -> None:
    cancelled = await _set(
        connection,
        refund,
        status=Status.CANCELLED,
        due_time=None,
        failed_references=_with(refund.failed_references, failed_reference),
        update_time=now,
    )
    await captures.drop_refund(connection, capture_id=refund.capture_id, amount=refund.amount)
    await _publish(connection, payment, cancelled, now)


async def _publish(
    connection: AsyncConnection, payment: Payment, refund: Refund, now: datetime
) -> None:
    """Writes the domain event of a refund's state, if it concerns the booking."""
    capture = await captures.get(connection, capture_id=refund.capture_id)
    if capture.verdict is Verdict.ACCEPTED:
        await outbox.refund_updated(
            connection,
            payment,
            refund_id=refund.refund_id,
            amount=refund.amount,
            status=refund.status,
            reason=refund.reason,
            now=now,
        )


async def _locked(connection: AsyncConnection, refund_id: UUID) -> tuple[Payment, Refund]:
    """A refund and its payment, which is locked. Raises REFUND_NOT_FOUND."""
    refund = await find(connection, refund_id=refund_id, owner=None)
    payment = await payments.lock(connection, payment_id=refund.payment_id)
    return payment, await find(connection, refund_id=refund_id, owner=None)


async def _find(
    connection: AsyncConnection, payment_id: UUID, condition: sa.ColumnElement[bool]
) -> Refund | None:
    row = (
        await connection.execute(
            sa.select(refunds).where(refunds.c.payment_id == payment_id).where(condition)
        )
    ).one_or_none()
    return None if row is None else _from_row(row)


async def _set(connection: AsyncConnection, refund: Refund, **values: Any) -> Refund:
    """Writes values of a refund whose payment is locked. The state moves along MOVES only."""
    to = values.get("status", refund.status)
    if to is not refund.status and to not in MOVES[refund.status]:
        raise RuntimeError(f"a refund cannot move from {refund.status} to {to}")
    row = (
        await connection.execute(
            sa.update(refunds)
            .where(refunds.c.refund_id == refund.refund_id)
            .where(refunds.c.status == refund.status)
            .values(**values)
            .returning(refunds)
        )
    ).one()
    return _from_row(row)


def _with(references: Sequence[str], reference: str | None) -> list[str]:
    return [*references] if reference is None else [*references, reference]


def _log_failure(refund: Refund) -> None:
    _log.error(
        "a refund failed and waits for staff",
        extra={
            "refund_id": str(refund.refund_id),
            "payment_id": str(refund.payment_id),
            "code": refund.failure_code,
        },
    )


def _state_invalid(refund: Refund, what: str) -> DomainError:
    return DomainError(
        Reason.PAYMENT_STATE_INVALID,
        f"a refund that is {refund.status} cannot be {what}",
        status=refund.status,
    )


def _check_amount(amount: Money, payment: Payment) -> None:
    if amount.amount_minor <= 0:
        raise invalid(FieldViolation("amount.amount_minor", "must be more than 0"))
    if amount.currency_code != payment.amount.currency_code:
        raise invalid(
            FieldViolation(
                "amount.currency_code",
                f"must be {payment.amount.currency_code}, the currency of the payment",
            )
        )


async def _insert(
    connection: AsyncConnection,
    refund_id: UUID,
    capture: Capture,
    amount: Money,
    reason: str,
    now: datetime,
    **values: Any,
) -> Refund:
    """Inserts a refund, due now unless `values` say otherwise."""
    row = (
        await connection.execute(
            sa.insert(refunds)
            .values(
                refund_id=refund_id,
                payment_id=capture.payment_id,
                capture_id=capture.capture_id,
                amount_minor=amount.amount_minor,
                currency_code=amount.currency_code,
                reason=reason,
                create_time=now,
                update_time=now,
                **{"status": Status.PENDING, "due_time": now, **values},
            )
            .returning(refunds)
        )
    ).one()
    return _from_row(row)


def _from_row(row: sa.Row[Any]) -> Refund:
    return Refund(
        refund_id=row.refund_id,
        payment_id=row.payment_id,
        capture_id=row.capture_id,
        amount=Money(row.amount_minor, row.currency_code),
        status=Status(row.status),
        reason=row.reason,
        create_time=row.create_time,
        due_time=row.due_time,
        provider_reference=row.provider_reference,
        failure_code=row.failure_code,
        failed_references=tuple(row.failed_references),
        refusals=row.refusals,
        reversals=row.reversals,
        note=row.note,
    )


_WAITS_FOR_STAFF = sa.and_(refunds.c.status == Status.FAILED, refunds.c.due_time.is_(None))
