"""What Razorpay's objects and events mean: Razorpay's words → payment_svc's reports.

The Payment Link is the payment's own id there; each try to pay it is a payment of Razorpay,
which is the id of its authorisation and of its capture. Refunds carry our ids in their notes.
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
    RefundProcessed,
    RefundRefused,
    Voided,
    WebhookEvent,
)
from payment_svc.providers.fields import money, text, text_or, time, uuid_in, whole_in

TAKEN = frozenset({"captured", "refunded"})
"""States of a payment whose money was taken, whatever went back since."""

_DISPUTES = {"won": DisputeStatus.WON, "lost": DisputeStatus.LOST}


def read(event: dict[str, Any], event_id: str) -> WebhookEvent:
    """A webhook's event. Raises one of reading.UNREADABLE_ERRORS."""
    event_type = text(event["event"])
    reader = _READERS.get(event_type)
    if reader is None:
        return WebhookEvent(event_id, event_type, None)
    things = {name: part["entity"] for name, part in event["payload"].items()}
    return WebhookEvent(event_id, event_type, reader(things, time(event["created_at"])))


def payment_report(
    payment: dict[str, Any], payment_id: UUID | None, link: str | None, *, at: datetime
) -> ProviderReport | None:
    """A try to pay in the state that it has `at` that time; None while it is under way.

    The time that a payment carries is that of the try: it stays when its state changes.
    """
    if payment["status"] in TAKEN:
        return captured(payment, payment_id, link)
    if payment["status"] == "authorized":
        return Authorized(
            payment_id or _ours(payment),
            link or _link_of(payment),
            at,
            text(payment["method"]),
            text(payment["id"]),
        )
    if payment["status"] == "failed":
        return Failed(
            payment_id or _ours(payment),
            link or _link_of(payment),
            at,
            text_or(payment.get("error_reason") or payment.get("error_code"), "payment_failed"),
        )
    return None


def captured(payment: dict[str, Any], payment_id: UUID | None, link: str | None) -> Captured:
    """A payment whose money was taken."""
    # `fee` holds the tax on it already.
    fee = payment.get("fee")
    return Captured(
        payment_id or _ours(payment),
        link or _link_of(payment),
        time(payment["created_at"]),
        text(payment["id"]),
        money(payment["amount"], payment["currency"], RAZORPAY),
        text(payment["method"]),
        money(fee, payment["currency"], RAZORPAY) if fee else None,
    )


def is_refund(refund: dict[str, Any], order: RefundOrder) -> bool:
    """Whether Razorpay's refund is what an order's current call would make."""
    notes = refund.get("notes")
    return uuid_in(notes, "refund_id") == order.refund_id and (
        whole_in(notes, "refusals") == order.refusals or refund.get("status") == "processed"
    )


def refund_report(refund: dict[str, Any]) -> RefundProcessed | RefundRefused | None:
    """A refund in its state; None while that is open, or for a foreign one that failed."""
    notes = refund.get("notes")
    payment_id, refund_id = uuid_in(notes, "payment_id"), uuid_in(notes, "refund_id")
    at = time(refund["created_at"])
    if refund["status"] == "processed":
        return RefundProcessed(
            payment_id,
            None,
            at,
            refund_id,
            text(refund["id"]),
            money(refund["amount"], refund["currency"], RAZORPAY),
            text(refund["payment_id"]),
        )
    if refund["status"] == "failed" and refund_id is not None:
        return RefundRefused(
            payment_id, None, at, refund_id, whole_in(notes, "refusals"), "refund_failed"
        )
    return None


def _ours(payment: dict[str, Any]) -> UUID | None:
    return uuid_in(payment.get("notes"), "payment_id")


def _link_of(payment: dict[str, Any]) -> str | None:
    """The link that a payment pays: its id without the prefix is the payment's description."""
    description = payment.get("description")
    if isinstance(description, str) and description.startswith("#"):
        return text(f"plink_{description[1:]}")
    return None


def _payment(things: dict[str, Any], at: datetime) -> ProviderReport | None:
    return payment_report(things["payment"], None, None, at=at)


def _link_paid(things: dict[str, Any], _: datetime) -> ProviderReport:
    link = things["payment_link"]
    return captured(things["payment"], UUID(text(link["reference_id"])), text(link["id"]))


def _link_over(things: dict[str, Any], at: datetime) -> ProviderReport:
    link = things["payment_link"]
    return Voided(UUID(text(link["reference_id"])), text(link["id"]), at)


def _refund(things: dict[str, Any], _: datetime) -> ProviderReport | None:
    return refund_report(things["refund"])


def _dispute(things: dict[str, Any], at: datetime) -> ProviderReport:
    dispute = things["dispute"]
    return Disputed(
        None,
        None,
        at,
        text(dispute["id"]),
        text(dispute["payment_id"]),
        money(dispute["amount"], dispute["currency"], RAZORPAY),
        text_or(dispute.get("reason_code"), "unknown"),
        _DISPUTES.get(dispute["status"], DisputeStatus.OPEN),
    )


_READERS: dict[str, Callable[[dict[str, Any], datetime], ProviderReport | None]] = {
    "payment.authorized": _payment,
    "payment.captured": _payment,
    "payment.failed": _payment,
    "payment_link.paid": _link_paid,
    "payment_link.cancelled": _link_over,
    "payment_link.expired": _link_over,
    "refund.created": _refund,
    "refund.processed": _refund,
    "refund.failed": _refund,
    "payment.dispute.created": _dispute,
    "payment.dispute.under_review": _dispute,
    "payment.dispute.won": _dispute,
    "payment.dispute.lost": _dispute,
    "payment.dispute.closed": _dispute,
}
