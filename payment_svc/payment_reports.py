"""Applies provider reports to payments: the one place where a report changes a state.

Webhooks and answers of providers are applied alike. Any order and number of the same reports
leads to the same state.
"""

import logging
from datetime import datetime
from enum import StrEnum
from typing import Any, assert_never

from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, Reason
from payment_svc import captures, declines, disputes, ledger, outbox, payments, refunds
from payment_svc.captures import Capture, Verdict
from payment_svc.payments import OPEN, Payment, Status
from payment_svc.providers.base import (
    Authorized,
    Captured,
    Disputed,
    Failed,
    ProviderReport,
    RefundPending,
    RefundProcessed,
    RefundRefused,
    RefundReport,
    Voided,
)

AMOUNT_MISMATCH = "amount_mismatch"
"""Failure code of a payment that was captured with another amount or currency."""

_log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """The effect of a report. UNMATCHED: it fits no payment or refund."""

    APPLIED = "APPLIED"
    UNCHANGED = "UNCHANGED"
    # The stored value predates the name.
    UNMATCHED = "UNEXPLAINED"


async def apply_report(
    connection: AsyncConnection, *, provider: str, report: ProviderReport, now: datetime
) -> Outcome:
    """Applies a report. A repeated or an outdated one has no effect."""
    payment = await _payment_of(connection, provider, report)
    if payment is None:
        _log.error(
            "a provider report matches no payment",
            extra={"provider": provider, "payment_id": str(report.payment_id)},
        )
        return Outcome.UNMATCHED
    match report:
        case Authorized():
            changed = await _apply_authorization(connection, payment, report, now)
        case Failed():
            changed = await _apply_decline(connection, payment, report, now)
        case Captured():
            return await _apply_capture(connection, payment, report, now)
        case Voided():
            changed = await _apply_void(connection, payment, now)
        case Disputed():
            changed = await disputes.record(connection, payment=payment, report=report, now=now)
        case RefundPending() | RefundProcessed() | RefundRefused():
            return await _apply_refund(connection, payment, report, now)
        case _:
            raise TypeError(f"no transition for {type(report).__name__}")
    return Outcome.APPLIED if changed else Outcome.UNCHANGED


async def _payment_of(
    connection: AsyncConnection, provider: str, report: ProviderReport
) -> Payment | None:
    payment_id = report.payment_id or await payments.find_id(
        connection,
        provider=provider,
        session_reference=report.session_reference,
        capture_reference=getattr(report, "capture_reference", None),
    )
    if payment_id is None:
        return None
    try:
        payment = await payments.lock(connection, payment_id=payment_id)
    except DomainError as error:
        if error.reason is Reason.PAYMENT_NOT_FOUND:
            return None
        raise
    if payment.order.provider != provider:
        return None
    if not await payments.has_reference(
        connection, payment=payment, reference=report.session_reference
    ):
        return None
    return payment


async def _apply_authorization(
    connection: AsyncConnection, payment: Payment, report: Authorized, now: datetime
) -> bool:
    latest = payment.observed_time
    # At the same time an authorisation wins over a failure, in any order of arrival.
    if latest is not None and report.event_time < latest:
        return False
    values = _values(report, method=report.method, failure_code=None)
    if report.authorization_reference is not None:
        # The check captures it: due now instead of after the usual pause.
        values |= {"authorization_reference": report.authorization_reference, "check_time": now}
    return await _move_unpaid(connection, payment, Status.AUTHORIZED, values, now)


async def _apply_decline(
    connection: AsyncConnection, payment: Payment, report: Failed, now: datetime
) -> bool:
    """Stores a declined attempt. The payment can be paid again until it is voided."""
    if payment.status not in OPEN:
        return False
    attempt_id = await declines.record(connection, payment=payment, report=report, now=now)
    if attempt_id is not None:
        await outbox.declined(
            connection,
            payment,
            attempt_id=attempt_id,
            failure_code=report.failure_code,
            now=now,
        )
    changed = await _apply_failure(connection, payment, report, report.failure_code, now)
    return changed or attempt_id is not None


async def _apply_failure(
    connection: AsyncConnection,
    payment: Payment,
    report: ProviderReport,
    failure_code: str,
    now: datetime,
) -> bool:
    latest = payment.observed_time
    if latest is not None and report.event_time <= latest:
        return False
    values = _values(report, method=None, failure_code=failure_code)
    return await _move_unpaid(connection, payment, Status.FAILED, values, now)


async def _move_unpaid(
    connection: AsyncConnection, payment: Payment, to: Status, values: dict[str, Any], now: datetime
) -> bool:
    """Moves an unpaid payment, or updates the values of its present state."""
    payment_id = payment.payment_id
    if payment.status is to:
        await payments.refresh(connection, payment_id=payment_id, status=to, now=now, **values)
        return True
    moved = await payments.move(connection, payment_id=payment_id, to=to, now=now, **values)
    return moved is not None


def _values(
    report: ProviderReport, *, method: str | None, failure_code: str | None
) -> dict[str, Any]:
    values = {
        "method": method,
        "failure_code": failure_code,
        "observed_time": report.event_time,
    }
    if report.session_reference is not None:
        values["provider_reference"] = report.session_reference
    return values


async def _apply_void(connection: AsyncConnection, payment: Payment, now: datetime) -> bool:
    moved = await payments.move(
        connection, payment_id=payment.payment_id, to=Status.VOIDED, now=now
    )
    if moved is not None:
        await outbox.voided(connection, moved, now=now)
    return moved is not None


async def _apply_capture(
    connection: AsyncConnection, payment: Payment, report: Captured, now: datetime
) -> Outcome:
    capture = await captures.record(connection, payment=payment, report=report, now=now)
    if capture is None:
        return await _apply_fee(connection, payment, report, now)
    await ledger.post_capture(
        connection,
        payment=payment,
        capture_id=capture.capture_id,
        amount=capture.amount,
        is_accepted=capture.verdict is Verdict.ACCEPTED,
        now=now,
    )
    if report.fee is not None:
        await ledger.post_fee(
            connection,
            payment=payment,
            capture_id=capture.capture_id,
            amount=report.fee,
            now=now,
        )
    match capture.verdict:
        case Verdict.ACCEPTED:
            paid = await payments.move(
                connection,
                payment_id=payment.payment_id,
                to=Status.CAPTURED,
                now=now,
                **_values(report, method=report.method, failure_code=None),
            )
            if paid is None:
                raise RuntimeError(f"a capture was accepted for a payment in {payment.status}")
            await outbox.captured(connection, paid, method=report.method, now=now)
        case Verdict.MISMATCHED:
            await _refund_capture(connection, payment, capture, now)
            if await _apply_failure(connection, payment, report, AMOUNT_MISMATCH, now):
                await outbox.failed(connection, payment, failure_code=AMOUNT_MISMATCH, now=now)
        case Verdict.SECOND | Verdict.AFTER_VOID:
            await _refund_capture(connection, payment, capture, now)
        case _:
            assert_never(capture.verdict)
    return Outcome.APPLIED


async def _apply_fee(
    connection: AsyncConnection, payment: Payment, report: Captured, now: datetime
) -> Outcome:
    """Posts the fee of a stored capture: a provider may report it later than the capture."""
    if report.fee is None:
        return Outcome.UNCHANGED
    capture = await captures.find(
        connection, provider=payment.order.provider, reference=report.capture_reference
    )
    if capture is None or capture.payment_id != payment.payment_id:
        return Outcome.UNMATCHED
    is_new = await ledger.post_fee(
        connection, payment=payment, capture_id=capture.capture_id, amount=report.fee, now=now
    )
    return Outcome.APPLIED if is_new else Outcome.UNCHANGED


async def _refund_capture(
    connection: AsyncConnection, payment: Payment, capture: Capture, now: datetime
) -> None:
    """Refunds a capture that does not pay the payment, and logs an error."""
    _log.error(
        "a capture does not pay its payment and is refunded in full",
        extra={
            "payment_id": str(payment.payment_id),
            "capture_id": str(capture.capture_id),
            "verdict": capture.verdict,
            "expected": str(payment.amount),
            "captured": str(capture.amount),
        },
    )
    await refunds.refund_capture(connection, capture=capture, now=now)


async def _apply_refund(
    connection: AsyncConnection, payment: Payment, report: RefundReport, now: datetime
) -> Outcome:
    refund = await refunds.find_reported(connection, payment_id=payment.payment_id, report=report)
    is_new = refund is None
    if refund is None:
        # Made in the provider's dashboard, or before the database was restored from a backup.
        refund = await refunds.enter(connection, payment=payment, report=report, now=now)
    if refund is None or (isinstance(report, RefundProcessed) and report.amount != refund.amount):
        _log.error(
            "a provider reports a refund that fits no capture or has another amount",
            extra={"payment_id": str(payment.payment_id), "refund_id": str(report.refund_id)},
        )
        return Outcome.UNMATCHED
    match report:
        case RefundProcessed():
            changed = await refunds.complete(
                connection, payment=payment, refund=refund, report=report, now=now
            )
        case RefundRefused():
            changed = await refunds.record_refusal(
                connection, payment=payment, refund=refund, report=report, now=now
            )
        case RefundPending():
            changed = False
    return Outcome.APPLIED if changed or is_new else Outcome.UNCHANGED
