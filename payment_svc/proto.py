"""Conversions between domain values and messages of the contract."""

from collections.abc import Sequence
from datetime import date

from boxoffice.payments.v1 import book_service_pb2, payment_pb2, payment_service_pb2
from mesh.conversions import money_to_proto
from mesh.errors import FieldViolation, invalid
from mesh.money import AmountLimits, Money
from payment_svc.declines import DeclinedAttempt
from payment_svc.disputes import Dispute
from payment_svc.ledger import LedgerRow
from payment_svc.payments import OPEN, Payment
from payment_svc.refunds import Refund


def payment_to_proto(
    payment: Payment,
    disputes: Sequence[Dispute] = (),
    declines: Sequence[DeclinedAttempt] = (),
    refundable: Money | None = None,
) -> payment_pb2.Payment:
    message = payment_pb2.Payment(
        payment_id=str(payment.payment_id),
        booking_id=str(payment.order.booking_id),
        provider=payment.order.provider,
        status=payment_pb2.Payment.Status.Value(payment.status),
        amount=money_to_proto(payment.amount),
        refunded=money_to_proto(payment.refunded),
        method=payment.method,
        payment_url=payment.payment_url or None,
        client_secret=payment.client_secret,
        provider_reference=payment.provider_reference,
        failure_code=payment.failure_code,
        disputes=map(dispute_to_proto, disputes),
        declined_attempts=map(_decline_to_proto, declines),
        refundable=None if refundable is None else money_to_proto(refundable),
    )
    message.create_time.FromDatetime(payment.create_time)
    message.update_time.FromDatetime(payment.update_time)
    if payment.status in OPEN and payment.order.expire_time is not None:
        message.expire_time.FromDatetime(payment.order.expire_time)
    return message


def _decline_to_proto(attempt: DeclinedAttempt) -> payment_pb2.DeclinedAttempt:
    message = payment_pb2.DeclinedAttempt(
        attempt_id=str(attempt.attempt_id), failure_code=attempt.failure_code
    )
    message.decline_time.FromDatetime(attempt.decline_time)
    return message


def provider_to_proto(
    name: str, limits: AmountLimits | None, *, has_embedded: bool
) -> payment_service_pb2.PaymentProvider:
    message = payment_service_pb2.PaymentProvider(name=name, embedded=has_embedded)
    if limits is not None:
        message.limits.minimum_minor = limits.minimum_minor
        message.limits.maximum_minor = limits.maximum_minor
        message.limits.step_minor = limits.step_minor
    return message


def dispute_to_proto(dispute: Dispute) -> payment_pb2.Dispute:
    message = payment_pb2.Dispute(
        dispute_id=str(dispute.dispute_id),
        status=payment_pb2.Dispute.Status.Value(dispute.status),
        amount=money_to_proto(dispute.amount),
        reason=dispute.reason,
    )
    message.create_time.FromDatetime(dispute.create_time)
    message.update_time.FromDatetime(dispute.update_time)
    return message


def refund_to_proto(refund: Refund, *, with_note: bool = False) -> payment_pb2.Refund:
    """The refund; its note is for staff."""
    message = payment_pb2.Refund(
        refund_id=str(refund.refund_id),
        payment_id=str(refund.payment_id),
        amount=money_to_proto(refund.amount),
        status=payment_pb2.Refund.Status.Value(refund.status),
        reason=refund.reason,
        failure_code=refund.failure_code,
        note=refund.note if with_note else "",
    )
    message.create_time.FromDatetime(refund.create_time)
    if refund.due_time is not None:
        message.next_attempt_time.FromDatetime(refund.due_time)
    return message


def days_from_proto(since: str, until: str) -> tuple[date, date]:
    return _day("since_day", since, date.min), _day("until_day", until, date.max)


def _day(field: str, text: str, default: date) -> date:
    if not text:
        return default
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise invalid(FieldViolation(field, "must be a date such as 2026-03-01")) from None


def row_to_proto(row: LedgerRow) -> book_service_pb2.BookRow:
    return book_service_pb2.BookRow(
        day=row.day.isoformat(),
        event_id="" if row.event_id is None else str(row.event_id),
        currency_code=row.currency_code,
        captured_minor=row.captured_minor,
        refunded_minor=row.refunded_minor,
        fees_minor=row.fees_minor,
        suspense_minor=row.suspense_minor,
        disputed_minor=row.disputed_minor,
        settled_minor=row.settled_minor,
        net_minor=row.net_minor,
    )
