"""What a provider's report does to a payment: the one transition function.

Webhooks and the provider's answers both come here, in any order and any number; the
state goes forward only and ends the same.
"""

import logging
from datetime import datetime
from enum import StrEnum
from typing import Any, assert_never

from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, Reason
from payment_svc import captures, disputes, ledger, outbox, payments, refunds
from payment_svc.captures import Capture, Verdict
from payment_svc.payments import Payment, Status
from payment_svc.providers.base import (
    Authorized,
    Captured,
    Disputed,
    Failed,
    ProviderReport,
    RefundProcessed,
    RefundRefused,
    Voided,
)

AMOUNT_MISMATCH = "amount_mismatch"
"""Failure code of a payment for which another amount or currency was taken."""

_log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """What a report did. UNMATCHED is for staff to examine: it matches no payment."""

    APPLIED = "APPLIED"
    UNCHANGED = "UNCHANGED"
    # The stored value is older than the name.
    UNMATCHED = "UNEXPLAINED"


async def apply_report(
    connection: AsyncConnection, *, provider: str, report: ProviderReport, now: datetime
) -> Outcome:
    """Applies a report. Repeating it, or an older one, changes nothing."""
    payment = await _payment_of(connection, provider, report)
    if payment is None:
        _log.error(
            "a provider reports on a payment that is not ours",
            extra={"provider": provider, "payment_id": str(report.payment_id)},
        )
        return Outcome.UNMATCHED
    match report:
        case Authorized():
            changed = await _authorized(connection, payment, report, now)
        case Failed():
            changed = await _failed(connection, payment, report, report.failure_code, now)
        case Captured():
            return await _captured(connection, payment, report, now)
        case Voided():
            changed = await _voided(connection, payment, now)
        case Disputed():
            changed = await disputes.record(connection, payment=payment, report=report, now=now)
        case RefundProcessed() | RefundRefused():
            return await _refund(connection, payment, report, now)
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
    known = await payments.knows(connection, payment=payment, reference=report.session_reference)
    return payment if known else None


async def _authorized(
    connection: AsyncConnection, payment: Payment, report: Authorized, now: datetime
) -> bool:
    seen = payment.observed_time
    # At the same instant an authorisation outweighs a failure, whichever arrives first.
    if seen is not None and report.event_time < seen:
        return False
    facts = _facts(report, method=report.method, failure_code=None)
    if report.authorization_reference is not None:
        # Somebody has to take it: at once, not when the next check would come.
        facts |= {"authorization_reference": report.authorization_reference, "check_time": now}
    return await _proceed(connection, payment, Status.AUTHORIZED, facts, now)


async def _failed(
    connection: AsyncConnection,
    payment: Payment,
    report: ProviderReport,
    failure_code: str,
    now: datetime,
) -> bool:
    seen = payment.observed_time
    if seen is not None and report.event_time <= seen:
        return False
    facts = _facts(report, method=None, failure_code=failure_code)
    changed = await _proceed(connection, payment, Status.FAILED, facts, now)
    if changed and payment.status is not Status.FAILED:
        await outbox.failed(connection, payment, failure_code=failure_code, now=now)
    return changed


async def _proceed(
    connection: AsyncConnection, payment: Payment, to: Status, facts: dict[str, Any], now: datetime
) -> bool:
    """A move before any money was taken, or newer facts about the state it is in."""
    payment_id = payment.payment_id
    if payment.status is to:
        await payments.refresh(connection, payment_id=payment_id, status=to, now=now, **facts)
        return True
    moved = await payments.move(connection, payment_id=payment_id, to=to, now=now, **facts)
    return moved is not None


def _facts(
    report: ProviderReport, *, method: str | None, failure_code: str | None
) -> dict[str, Any]:
    facts = {
        "method": method,
        "failure_code": failure_code,
        "observed_time": report.event_time,
    }
    if report.session_reference is not None:
        facts["provider_reference"] = report.session_reference
    return facts


async def _voided(connection: AsyncConnection, payment: Payment, now: datetime) -> bool:
    moved = await payments.move(
        connection, payment_id=payment.payment_id, to=Status.VOIDED, now=now
    )
    return moved is not None


async def _captured(
    connection: AsyncConnection, payment: Payment, report: Captured, now: datetime
) -> Outcome:
    capture = await captures.record(connection, payment=payment, report=report, now=now)
    if capture is None:
        return await _fee(connection, payment, report, now)
    await ledger.captured(
        connection,
        payment=payment,
        capture_id=capture.capture_id,
        amount=capture.amount,
        is_accepted=capture.verdict is Verdict.ACCEPTED,
        now=now,
    )
    if report.fee is not None:
        await ledger.fee(
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
                **_facts(report, method=report.method, failure_code=None),
            )
            if paid is None:
                raise RuntimeError(f"an accepted capture found {payment.status}")
            await outbox.captured(connection, paid, method=report.method, now=now)
        case Verdict.MISMATCHED:
            await _give_back(connection, payment, capture, now)
            await _failed(connection, payment, report, AMOUNT_MISMATCH, now)
        case Verdict.SECOND | Verdict.AFTER_VOID:
            await _give_back(connection, payment, capture, now)
        case _:
            assert_never(capture.verdict)
    return Outcome.APPLIED


async def _fee(
    connection: AsyncConnection, payment: Payment, report: Captured, now: datetime
) -> Outcome:
    """A capture that is known: a provider may tell its fee later than the capture."""
    if report.fee is None:
        return Outcome.UNCHANGED
    capture = await captures.find(
        connection, provider=payment.order.provider, reference=report.capture_reference
    )
    if capture.payment_id != payment.payment_id:
        return Outcome.UNMATCHED
    is_new = await ledger.fee(
        connection, payment=payment, capture_id=capture.capture_id, amount=report.fee, now=now
    )
    return Outcome.APPLIED if is_new else Outcome.UNCHANGED


async def _give_back(
    connection: AsyncConnection, payment: Payment, capture: Capture, now: datetime
) -> None:
    """Money that should not have been taken: people hear of it, the customer gets it back."""
    _log.error(
        "money was taken that the payment does not explain; it goes back in full",
        extra={
            "payment_id": str(payment.payment_id),
            "capture_id": str(capture.capture_id),
            "verdict": capture.verdict,
            "expected": str(payment.amount),
            "taken": str(capture.amount),
        },
    )
    await refunds.refund_capture(connection, capture=capture, now=now)


async def _refund(
    connection: AsyncConnection,
    payment: Payment,
    report: RefundProcessed | RefundRefused,
    now: datetime,
) -> Outcome:
    refund = None
    if report.refund_id is not None:
        refund = await refunds.find_of_payment(
            connection, payment_id=payment.payment_id, refund_id=report.refund_id
        )
    if refund is None or (isinstance(report, RefundProcessed) and report.amount != refund.amount):
        _log.error(
            "a provider gave money back that was not asked for",
            extra={"payment_id": str(payment.payment_id), "refund_id": str(report.refund_id)},
        )
        return Outcome.UNMATCHED
    if isinstance(report, RefundProcessed):
        changed = await refunds.settle(connection, payment=payment, report=report, now=now)
    else:
        changed = await refunds.refuse(connection, report=report, now=now)
    return Outcome.APPLIED if changed else Outcome.UNCHANGED
