"""Stripe's objects and events as payment_svc's reports.

A payment is a Checkout Session, or a PaymentIntent if it is embedded. Its capture is a
PaymentIntent, of which at most one charge succeeds. Refunds carry our ids in their metadata.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from mesh.money import Money
from payment_svc.providers.amounts import STRIPE
from payment_svc.providers.base import (
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

EMBEDDED = {"flow": "embedded"}
"""Metadata of an embedded payment's intent."""

_DISPUTES = {
    "warning_needs_response": DisputeStatus.INQUIRY,
    "warning_under_review": DisputeStatus.INQUIRY,
    "warning_closed": DisputeStatus.INQUIRY_CLOSED,
    "won": DisputeStatus.WON,
    "lost": DisputeStatus.LOST,
}


def read(event: dict[str, Any]) -> WebhookEvent:
    """A webhook's event."""
    event_id, event_type = text(event["id"]), text(event["type"])
    reader = _READERS.get(event_type)
    if reader is None:
        return WebhookEvent(event_id, event_type, None)
    return WebhookEvent(
        event_id, event_type, reader(event["data"]["object"], time(event["created"]))
    )


def reports_of(session: dict[str, Any], now: datetime) -> list[ProviderReport]:
    """The state of a session, with its intent expanded, as reports."""
    paid = captured_of(session)
    if paid is not None:
        return [paid]
    reports: list[ProviderReport] = []
    intent = session.get("payment_intent")
    error = intent.get("last_payment_error") if isinstance(intent, dict) else None
    if isinstance(intent, dict) and isinstance(error, dict):
        charge = intent.get("latest_charge")
        at = charge["created"] if isinstance(charge, dict) else intent["created"]
        reports.append(_intent_failed(intent, time(at), session["id"]))
    if session["status"] == "expired":
        reports.append(Voided(uuid_in(session["metadata"], "payment_id"), session["id"], now))
    return reports


def reports_of_intent(intent: dict[str, Any], now: datetime) -> list[ProviderReport]:
    """The state of an embedded payment's intent, with its charge expanded, as reports."""
    if intent["status"] == "succeeded":
        return [intent_captured(intent, intent["id"])]
    reports: list[ProviderReport] = []
    if isinstance(intent.get("last_payment_error"), dict):
        charge = intent.get("latest_charge")
        at = charge["created"] if isinstance(charge, dict) else intent["created"]
        reports.append(_intent_failed(intent, time(at), intent["id"]))
    if intent["status"] == "canceled":
        reports.append(Voided(uuid_in(intent["metadata"], "payment_id"), intent["id"], now))
    return reports


def captured_of(session: dict[str, Any]) -> Captured | None:
    """The capture that paid a session, if any."""
    intent = session.get("payment_intent")
    if session.get("payment_status") != "paid" or not isinstance(intent, dict):
        return None
    return intent_captured(intent, session["id"])


def intent_captured(
    intent: dict[str, Any], session_reference: str | None, at: datetime | None = None
) -> Captured:
    """A PaymentIntent that succeeded."""
    charge = intent.get("latest_charge")
    details = charge if isinstance(charge, dict) else {}
    return Captured(
        uuid_in(intent["metadata"], "payment_id"),
        session_reference,
        time(details["created"]) if "created" in details else at or time(intent["created"]),
        text(intent["id"]),
        _money(intent["amount_received"], intent["currency"]),
        _method(details, intent),
        _fee(details),
    )


def charge_captured(charge: dict[str, Any]) -> Captured | None:
    """A charge that captured money; None for another one."""
    if not charge.get("captured") or charge.get("status") != "succeeded":
        return None
    return Captured(
        uuid_in(charge.get("metadata"), "payment_id"),
        None,
        time(charge["created"]),
        text(charge.get("payment_intent") or charge["id"]),
        _money(charge["amount_captured"], charge["currency"]),
        _method(charge, {}),
        _fee(charge),
    )


def is_refund(refund: dict[str, Any], order: RefundOrder) -> bool:
    """Whether Stripe's refund makes another attempt at the order superfluous."""
    is_processed = refund.get("status") == "succeeded"
    return is_attempt(refund.get("metadata"), order, is_processed=is_processed)


def refund_report(refund: dict[str, Any]) -> RefundReport:
    """The state of a refund."""
    return _refund(refund, time(refund["created"]))


def _refund(refund: dict[str, Any], at: datetime) -> RefundReport:
    notes = refund.get("metadata")
    payment_id, refund_id = uuid_in(notes, "payment_id"), uuid_in(notes, "refund_id")
    reference = text(refund["id"])
    amount = _money(refund["amount"], refund["currency"])
    intent = text(refund["payment_intent"]) if refund.get("payment_intent") else None
    if refund["status"] == "succeeded":
        return RefundProcessed(payment_id, None, at, refund_id, reference, amount, intent)
    if refund["status"] in {"failed", "canceled"}:
        return RefundRefused(
            payment_id,
            None,
            at,
            refund_id,
            count_in(notes, "refusals"),
            text_or(refund.get("failure_reason"), refund["status"]),
            reference,
            intent,
            amount,
        )
    return RefundPending(payment_id, None, at, refund_id, reference, amount, intent)


def _intent_failed(intent: dict[str, Any], at: datetime, session_reference: str | None) -> Failed:
    error = intent["last_payment_error"]
    code = error.get("decline_code") or error.get("code")
    return Failed(
        uuid_in(intent["metadata"], "payment_id"),
        session_reference,
        at,
        text_or(code, "payment_failed"),
        _attempt_of(intent, error),
    )


def _attempt_of(intent: dict[str, Any], error: dict[str, Any]) -> str:
    """The id of a declined attempt: its charge, or its card when no charge was made."""
    charge = error.get("charge") or intent.get("latest_charge")
    card = error.get("payment_method")
    for made in (charge, card):
        if made:
            return text(made["id"] if isinstance(made, dict) else made)
    return text(intent["id"])


def _method(charge: dict[str, Any], intent: dict[str, Any]) -> str:
    details = charge.get("payment_method_details")
    if isinstance(details, dict):
        return text(details["type"])
    types = intent.get("payment_method_types") or ["card"]
    return text(types[0])


def _money(amount: object, currency: object) -> Money:
    # Stripe writes currencies in lower case.
    return money(amount, text(currency).upper(), STRIPE)


def _fee(charge: dict[str, Any]) -> Money | None:
    transaction = charge.get("balance_transaction")
    if not isinstance(transaction, dict) or not transaction.get("fee"):
        return None
    return _money(transaction["fee"], transaction["currency"])


def _session_expired(session: dict[str, Any], at: datetime) -> ProviderReport:
    return Voided(uuid_in(session["metadata"], "payment_id"), text(session["id"]), at)


def _intent_canceled(intent: dict[str, Any], at: datetime) -> ProviderReport | None:
    """Only of an embedded payment: the intent of a session ends with its session."""
    if EMBEDDED.items() <= intent["metadata"].items():
        return Voided(uuid_in(intent["metadata"], "payment_id"), text(intent["id"]), at)
    return None


def _dispute(dispute: dict[str, Any], at: datetime) -> ProviderReport:
    return Disputed(
        None,
        None,
        at,
        text(dispute["id"]),
        text(dispute["payment_intent"]),
        _money(dispute["amount"], dispute["currency"]),
        text_or(dispute.get("reason"), "unknown"),
        _DISPUTES.get(dispute["status"], DisputeStatus.OPEN),
    )


_READERS: dict[str, Callable[[dict[str, Any], datetime], ProviderReport | None]] = {
    "payment_intent.succeeded": lambda intent, at: intent_captured(intent, None, at),
    "payment_intent.payment_failed": lambda intent, at: _intent_failed(intent, at, None),
    "payment_intent.canceled": _intent_canceled,
    "checkout.session.expired": _session_expired,
    "refund.created": _refund,
    "refund.updated": _refund,
    "refund.failed": _refund,
    "charge.refund.updated": _refund,
    "charge.dispute.created": _dispute,
    "charge.dispute.updated": _dispute,
    "charge.dispute.funds_withdrawn": _dispute,
    "charge.dispute.closed": _dispute,
    "charge.dispute.funds_reinstated": _dispute,
}
