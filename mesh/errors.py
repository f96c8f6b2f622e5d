"""Errors that a caller can act on. Domain functions raise DomainError.

mesh/rpc/errors.py converts it to google.rpc.Status. Any other exception is a bug and reaches
the client as INTERNAL.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

# gRPC's clients may reject trailers of more than 8 KiB, and a refusal has other texts, too.
_MAX_FAILURES_SIZE = 1_500


class Reason(StrEnum):
    """The values of boxoffice.errors.v1.Reason without their prefix; a test compares the two."""

    VALIDATION_FAILED = "VALIDATION_FAILED"
    PASSWORD_TOO_WEAK = "PASSWORD_TOO_WEAK"
    PASSWORD_UNCHANGED = "PASSWORD_UNCHANGED"
    CURRENT_PASSWORD_INCORRECT = "CURRENT_PASSWORD_INCORRECT"

    INVALID_CREDENTIALS = "INVALID_CREDENTIALS"
    TOKEN_INVALID = "TOKEN_INVALID"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"
    WEBHOOK_SIGNATURE_INVALID = "WEBHOOK_SIGNATURE_INVALID"
    TOKEN_REUSED = "TOKEN_REUSED"
    TOKEN_WRONG_TYPE = "TOKEN_WRONG_TYPE"

    ACCOUNT_DEACTIVATED = "ACCOUNT_DEACTIVATED"
    STAFF_REQUIRED = "STAFF_REQUIRED"
    ADMIN_REQUIRED = "ADMIN_REQUIRED"
    INVALID_ADMIN_SECRET = "INVALID_ADMIN_SECRET"
    EMAIL_NOT_VERIFIED = "EMAIL_NOT_VERIFIED"
    CALLER_NOT_ALLOWED = "CALLER_NOT_ALLOWED"
    ADMISSION_REQUIRED = "ADMISSION_REQUIRED"
    QUEUE_CHALLENGE_FAILED = "QUEUE_CHALLENGE_FAILED"

    USER_NOT_FOUND = "USER_NOT_FOUND"
    VENUE_NOT_FOUND = "VENUE_NOT_FOUND"
    PRODUCTION_NOT_FOUND = "PRODUCTION_NOT_FOUND"
    AUDITORIUM_NOT_FOUND = "AUDITORIUM_NOT_FOUND"
    EVENT_NOT_FOUND = "EVENT_NOT_FOUND"
    OFFER_NOT_FOUND = "OFFER_NOT_FOUND"
    SEAT_NOT_FOUND = "SEAT_NOT_FOUND"
    BOOKING_NOT_FOUND = "BOOKING_NOT_FOUND"
    POOL_NOT_FOUND = "POOL_NOT_FOUND"
    RESERVATION_NOT_FOUND = "RESERVATION_NOT_FOUND"
    PAYMENT_NOT_FOUND = "PAYMENT_NOT_FOUND"
    REFUND_NOT_FOUND = "REFUND_NOT_FOUND"
    PROVIDER_NOT_FOUND = "PROVIDER_NOT_FOUND"
    ROUTE_NOT_FOUND = "ROUTE_NOT_FOUND"
    SESSION_NOT_FOUND = "SESSION_NOT_FOUND"
    WEBHOOK_ENDPOINT_NOT_FOUND = "WEBHOOK_ENDPOINT_NOT_FOUND"
    WEBHOOK_DELIVERY_NOT_FOUND = "WEBHOOK_DELIVERY_NOT_FOUND"
    API_KEY_NOT_FOUND = "API_KEY_NOT_FOUND"
    INBOUND_WEBHOOK_NOT_FOUND = "INBOUND_WEBHOOK_NOT_FOUND"
    WAITING_LIST_ENTRY_NOT_FOUND = "WAITING_LIST_ENTRY_NOT_FOUND"
    WAITING_ROOM_NOT_FOUND = "WAITING_ROOM_NOT_FOUND"
    QUEUE_TICKET_NOT_FOUND = "QUEUE_TICKET_NOT_FOUND"

    EMAIL_ALREADY_REGISTERED = "EMAIL_ALREADY_REGISTERED"
    ALREADY_CANCELLED = "ALREADY_CANCELLED"
    ALREADY_CONFIRMED = "ALREADY_CONFIRMED"
    ALREADY_WAITING = "ALREADY_WAITING"
    ALREADY_ADMITTED = "ALREADY_ADMITTED"

    SEAT_UNAVAILABLE = "SEAT_UNAVAILABLE"
    SOLD_OUT = "SOLD_OUT"
    PURCHASE_LIMIT_EXCEEDED = "PURCHASE_LIMIT_EXCEEDED"
    SALE_NOT_ACTIVE = "SALE_NOT_ACTIVE"
    HOLD_EXPIRED = "HOLD_EXPIRED"
    BOOKING_STATE_INVALID = "BOOKING_STATE_INVALID"
    RESERVATION_STATE_INVALID = "RESERVATION_STATE_INVALID"
    PAYMENT_STATE_INVALID = "PAYMENT_STATE_INVALID"
    SHOWTIME_OVERLAP = "SHOWTIME_OVERLAP"
    CANCELLATION_CLOSED = "CANCELLATION_CLOSED"
    IDEMPOTENCY_IN_PROGRESS = "IDEMPOTENCY_IN_PROGRESS"
    IDEMPOTENCY_KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"
    EVENT_STATE_INVALID = "EVENT_STATE_INVALID"
    STOCK_ALREADY_DEFINED = "STOCK_ALREADY_DEFINED"
    LAST_ADMIN = "LAST_ADMIN"
    EVENT_CHANGED = "EVENT_CHANGED"
    SLOT_CONFLICT = "SLOT_CONFLICT"
    QUEUE_CLOSED = "QUEUE_CLOSED"
    PRICE_CHANGED = "PRICE_CHANGED"
    PLACES_AVAILABLE = "PLACES_AVAILABLE"
    WAITING_LIST_STATE_INVALID = "WAITING_LIST_STATE_INVALID"

    PAYMENT_FAILED = "PAYMENT_FAILED"

    RATE_LIMITED = "RATE_LIMITED"
    LOGIN_THROTTLED = "LOGIN_THROTTLED"
    OVERLOADED = "OVERLOADED"
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"

    PAYMENT_GATEWAY_ERROR = "PAYMENT_GATEWAY_ERROR"
    DEPENDENCY_UNAVAILABLE = "DEPENDENCY_UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field by its path in the request, e.g. `items[0].quantity`, and what is wrong with it.

    Names are those of the proto. The description puts other fields in backticks, e.g.
    "must be after `start_time`"; mesh/rpc/field_names.py writes them for the client. `rule` is the
    id of the contract's rule, e.g. `string.uuid`, empty for a rule of the domain.
    """

    field: str
    description: str
    rule: str = ""


@dataclass(frozen=True, slots=True)
class FailedItem:
    """An item of a request that cannot be had, by its place in the list from 0, and why.

    `details` has names as clients read them, e.g. `offerId`.
    """

    number: int
    reason: Reason
    details: Mapping[str, object]


class DomainError(Exception):
    """A refused request: its reason, a message, and data that a client needs to act.

    `metadata` keys are snake_case here and lowerCamelCase on the wire; values become text.
    `retry_after_seconds` is the delay after which a retry can succeed.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_seconds: float | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = violations
        self.retry_after_seconds = retry_after_seconds
        self.metadata = {key: str(value) for key, value in metadata.items()}

    def __repr__(self) -> str:
        return f"DomainError({self.reason}, {self.message!r}, {self.metadata})"


def invalid(*violations: FieldViolation) -> DomainError:
    """VALIDATION_FAILED that names every field at fault."""
    return DomainError(Reason.VALIDATION_FAILED, listed(violations), violations=violations)


def listed(violations: Iterable[FieldViolation]) -> str:
    """The message of an error that consists of violations."""
    return "; ".join(f"{violation.field}: {violation.description}" for violation in violations)


def failures(failed: Sequence[FailedItem]) -> dict[str, Any]:
    """Metadata of an error about items: `failures` as JSON, `more_failures` if not all fit."""
    entries = [
        json.dumps(
            {"item": item.number, "reason": item.reason, **item.details},
            default=str,
            separators=(",", ":"),
        )
        for item in failed
    ]
    size = count = 0
    while count < len(entries) and (size := size + len(entries[count]) + 1) <= _MAX_FAILURES_SIZE:
        count += 1
    metadata: dict[str, Any] = {"failures": f"[{','.join(entries[:count])}]"}
    if count < len(entries):
        metadata["more_failures"] = len(entries) - count
    return metadata
