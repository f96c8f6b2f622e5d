"""Razorpay's objects and events as payment_svc's reports.

A payment is a Payment Link. Each attempt to pay the link is a payment of Razorpay, whose id is
that of its authorisation and capture. Refunds carry our ids in their notes.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from payment_svc.providers.amounts import RAZORPAY
from payment_svc.providers.base import (
    Authorized,
    Captured,
    Disputed,
    DisputeStatus,
    Failed,
    ProviderReport,
    RefundOrder,
    RefundPending,
    RefundProcessed,
    RefundRefused,
    RefundReport,
    Voided,
    WebhookEvent,
)
from payment_svc.providers.fields import count_in, is_attempt, money, text, text_or, time, uuid_in

CAPTURED = frozenset({"captured", "refunded"})
"""States of a payment whose money was captured, refunded or not."""

_DISPUTES = {"won": DisputeStatus.WON, "lost": DisputeStatus.LOST}
# Phases in which the bank only asks: no money moves.
_INQUIRY_PHASES = frozenset({"retrieval", "fraud"})


def read(event: dict[str, Any], event_id: str) -> WebhookEvent:
    """A webhook's event."""
    event_type = text(event["event"])
    reader = _READERS.get(event_type)
    if reader is None:
        return WebhookEvent(event_id, event_type, None)
    entities = {name: part["entity"] for name, part in event["payload"].items()}
    return WebhookEvent(event_id, event_type, reader(entities, time(event["created_at"])))


def payment_report(
    payment: dict[str, Any], payment_id: UUID | None, link: str | None, *, at: datetime
) -> ProviderReport | None:
    """An attempt to pay, in its state at the time `at`. None while it is pending.

    A payment's own time is that of the attempt and does not change with its state.
    """
    if payment["status"] in CAPTURED:
        return captured(payment, payment_id, link)
    if payment["status"] == "authorized":
        return Authorized(
            payment_id or _payment_id(payment),
            link or _link_of(payment),
            at,
            text(payment["method"]),
            text(payment["id"]),
        )
    if payment["status"] == "failed":
        return Failed(
            payment_id or _payment_id(payment),
            link or _link_of(payment),
            at,
            text_or(payment.get("error_reason") or payment.get("error_code"), "payment_failed"),
            text(payment["id"]),
        )
    return None


def captured(payment: dict[str, Any], payment_id: UUID | None, link: str | None) -> Captured:
    """A payment whose money was captured."""
    # `fee` includes the tax on it.
    fee = payment.get("fee")
    return Captured(
        payment_id or _payment_id(payment),
        link or _link_of(payment),
        time(payment["created_at"]),
        text(payment["id"]),
        money(payment["amount"], payment["currency"], RAZORPAY),
        text(payment["method"]),
        money(fee, payment["currency"], RAZORPAY) if fee else None,
    )


def is_refund(refund: dict[str, Any], order: RefundOrder) -> bool:
    """Whether Razorpay's refund makes another attempt at the order superfluous."""
    is_processed = refund.get("status") == "processed"
    return is_attempt(refund.get("notes"), order, is_processed=is_processed)


def refund_report(refund: dict[str, Any]) -> RefundReport:
    """The state of a refund."""
    notes = refund.get("notes")
    payment_id, refund_id = uuid_in(notes, "payment_id"), uuid_in(notes, "refund_id")
    at, reference = time(refund["created_at"]), text(refund["id"])
    amount = money(refund["amount"], refund["currency"], RAZORPAY)
    paid = text(refund["payment_id"])
    if refund["status"] == "processed":
        return RefundProcessed(payment_id, None, at, refund_id, reference, amount, paid)
    if refund["status"] == "failed":
        return RefundRefused(
            payment_id,
            None,
            at,
            refund_id,
            count_in(notes, "refusals"),
            "refund_failed",
            reference,
            paid,
            amount,
        )
    return RefundPending(payment_id, None, at, refund_id, reference, amount, paid)


def _payment_id(payment: dict[str, Any]) -> UUID | None:
    return uuid_in(payment.get("notes"), "payment_id")


def _link_of(payment: dict[str, Any]) -> str | None:
    """The link of a payment, whose description is `#` and the link's id without its prefix."""
    description = payment.get("description")
    if isinstance(description, str) and description.startswith("#"):
        return text(f"plink_{description[1:]}")
    return None


def _payment(entities: dict[str, Any], at: datetime) -> ProviderReport | None:
    return payment_report(entities["payment"], None, None, at=at)


def _link_paid(entities: dict[str, Any], _: datetime) -> ProviderReport:
    link = entities["payment_link"]
    return captured(entities["payment"], UUID(text(link["reference_id"])), text(link["id"]))


def _link_closed(entities: dict[str, Any], at: datetime) -> ProviderReport:
    link = entities["payment_link"]
    return Voided(UUID(text(link["reference_id"])), text(link["id"]), at)


def _refund(entities: dict[str, Any], _: datetime) -> ProviderReport | None:
    return refund_report(entities["refund"])


def _dispute(entities: dict[str, Any], at: datetime) -> ProviderReport:
    dispute = entities["dispute"]
    return Disputed(
        None,
        None,
        at,
        text(dispute["id"]),
        text(dispute["payment_id"]),
        money(dispute["amount"], dispute["currency"], RAZORPAY),
        text_or(dispute.get("reason_code"), "unknown"),
        _dispute_status(dispute),
    )


def _dispute_status(dispute: dict[str, Any]) -> DisputeStatus:
    """The state; `closed` ends it without a decision: the deducted amount tells whose money it is."""
    status = dispute["status"]
    if dispute.get("phase") in _INQUIRY_PHASES and status not in _DISPUTES:
        return DisputeStatus.INQUIRY_CLOSED if status == "closed" else DisputeStatus.INQUIRY
    if status == "closed":
        return DisputeStatus.LOST if dispute.get("amount_deducted") else DisputeStatus.WON
    return _DISPUTES.get(status, DisputeStatus.OPEN)


_READERS: dict[str, Callable[[dict[str, Any], datetime], ProviderReport | None]] = {
    "payment.authorized": _payment,
    "payment.captured": _payment,
    "payment.failed": _payment,
    "payment_link.paid": _link_paid,
    "payment_link.cancelled": _link_closed,
    "payment_link.expired": _link_closed,
    "refund.created": _refund,
    "refund.processed": _refund,
    "refund.failed": _refund,
    "payment.dispute.created": _dispute,
    "payment.dispute.under_review": _dispute,
    "payment.dispute.won": _dispute,
    "payment.dispute.lost": _dispute,
    "payment.dispute.closed": _dispute,
}
