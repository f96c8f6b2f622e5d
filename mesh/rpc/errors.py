"""Converts DomainError to google.rpc.Status and back; maps reasons to gRPC and HTTP codes.

Detail types: google/rpc/error_details.proto and AIP-193.
"""

import math
from collections.abc import Sequence
from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from mesh.errors import DomainError, FieldViolation, Reason, listed
from mesh.rpc.field_names import json_name

DOMAIN = "boxoffice"

# The texts are sent three times: in the message, and with the message in the details, in base64.
# gRPC's clients may reject trailers of more than 8 KiB.
_MAX_VIOLATIONS_SIZE = 1_200

_Code = grpc.StatusCode
CODES: dict[Reason, grpc.StatusCode] = {
    Reason.VALIDATION_FAILED: _Code.INVALID_ARGUMENT,
    Reason.PASSWORD_TOO_WEAK: _Code.INVALID_ARGUMENT,
    Reason.PASSWORD_UNCHANGED: _Code.INVALID_ARGUMENT,
    Reason.CURRENT_PASSWORD_INCORRECT: _Code.INVALID_ARGUMENT,
    Reason.INVALID_CREDENTIALS: _Code.UNAUTHENTICATED,
    Reason.TOKEN_INVALID: _Code.UNAUTHENTICATED,
    Reason.TOKEN_EXPIRED: _Code.UNAUTHENTICATED,
    Reason.WEBHOOK_SIGNATURE_INVALID: _Code.UNAUTHENTICATED,
    Reason.TOKEN_REUSED: _Code.UNAUTHENTICATED,
    Reason.TOKEN_WRONG_TYPE: _Code.UNAUTHENTICATED,
    Reason.ACCOUNT_DEACTIVATED: _Code.PERMISSION_DENIED,
    Reason.EMAIL_NOT_VERIFIED: _Code.PERMISSION_DENIED,
    Reason.STAFF_REQUIRED: _Code.PERMISSION_DENIED,
    Reason.ADMIN_REQUIRED: _Code.PERMISSION_DENIED,
    Reason.INVALID_ADMIN_SECRET: _Code.PERMISSION_DENIED,
    Reason.CALLER_NOT_ALLOWED: _Code.PERMISSION_DENIED,
    Reason.ADMISSION_REQUIRED: _Code.PERMISSION_DENIED,
    Reason.QUEUE_CHALLENGE_FAILED: _Code.PERMISSION_DENIED,
    **{reason: _Code.NOT_FOUND for reason in Reason if reason.endswith("_NOT_FOUND")},
    Reason.EMAIL_ALREADY_REGISTERED: _Code.ALREADY_EXISTS,
    Reason.ALREADY_CANCELLED: _Code.ALREADY_EXISTS,
    Reason.ALREADY_CONFIRMED: _Code.ALREADY_EXISTS,
    Reason.ALREADY_WAITING: _Code.ALREADY_EXISTS,
    Reason.ALREADY_ADMITTED: _Code.ALREADY_EXISTS,
    Reason.SEAT_UNAVAILABLE: _Code.ABORTED,
    Reason.SOLD_OUT: _Code.ABORTED,
    Reason.PURCHASE_LIMIT_EXCEEDED: _Code.ABORTED,
    Reason.SALE_NOT_ACTIVE: _Code.ABORTED,
    Reason.HOLD_EXPIRED: _Code.ABORTED,
    Reason.BOOKING_STATE_INVALID: _Code.ABORTED,
    Reason.RESERVATION_STATE_INVALID: _Code.ABORTED,
    Reason.PAYMENT_STATE_INVALID: _Code.ABORTED,
    Reason.SHOWTIME_OVERLAP: _Code.ABORTED,
    Reason.CANCELLATION_CLOSED: _Code.ABORTED,
    Reason.IDEMPOTENCY_IN_PROGRESS: _Code.ABORTED,
    Reason.IDEMPOTENCY_KEY_REUSED: _Code.ABORTED,
    Reason.EVENT_STATE_INVALID: _Code.ABORTED,
    Reason.STOCK_ALREADY_DEFINED: _Code.ABORTED,
    Reason.LAST_ADMIN: _Code.ABORTED,
    Reason.EVENT_CHANGED: _Code.ABORTED,
    Reason.SLOT_CONFLICT: _Code.ABORTED,
    Reason.QUEUE_CLOSED: _Code.ABORTED,
    Reason.PRICE_CHANGED: _Code.ABORTED,
    Reason.PLACES_AVAILABLE: _Code.ABORTED,
    Reason.WAITING_LIST_STATE_INVALID: _Code.ABORTED,
    Reason.PAYMENT_FAILED: _Code.FAILED_PRECONDITION,
    Reason.RATE_LIMITED: _Code.RESOURCE_EXHAUSTED,
    Reason.LOGIN_THROTTLED: _Code.RESOURCE_EXHAUSTED,
    Reason.OVERLOADED: _Code.RESOURCE_EXHAUSTED,
    Reason.REQUEST_TOO_LARGE: _Code.INVALID_ARGUMENT,
    Reason.METHOD_NOT_ALLOWED: _Code.UNIMPLEMENTED,
    Reason.PAYMENT_GATEWAY_ERROR: _Code.UNAVAILABLE,
    Reason.DEPENDENCY_UNAVAILABLE: _Code.UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED: _Code.DEADLINE_EXCEEDED,
    Reason.INTERNAL: _Code.INTERNAL,
}

COMMON_REASONS = frozenset(
    {
        Reason.VALIDATION_FAILED,
        Reason.TOKEN_INVALID,
        Reason.TOKEN_EXPIRED,
        Reason.TOKEN_WRONG_TYPE,
        Reason.STAFF_REQUIRED,
        Reason.ADMIN_REQUIRED,
        Reason.CALLER_NOT_ALLOWED,
        Reason.RATE_LIMITED,
        Reason.OVERLOADED,
        Reason.REQUEST_TOO_LARGE,
        Reason.DEPENDENCY_UNAVAILABLE,
        Reason.DEADLINE_EXCEEDED,
        Reason.INTERNAL,
    }
)
"""Reasons that any call can fail with; policies do not list them."""

# Reasons whose HTTP status differs from the one that Envoy's transcoder derives from the code.
_HTTP_OWN = {
    Reason.PAYMENT_FAILED: 402,
    Reason.METHOD_NOT_ALLOWED: 405,
    Reason.REQUEST_TOO_LARGE: 413,
}
_HTTP = {
    _Code.INVALID_ARGUMENT: 400,
    _Code.FAILED_PRECONDITION: 400,
    _Code.UNAUTHENTICATED: 401,
    _Code.PERMISSION_DENIED: 403,
    _Code.NOT_FOUND: 404,
    _Code.UNIMPLEMENTED: 404,
    _Code.ABORTED: 409,
    _Code.ALREADY_EXISTS: 409,
    _Code.RESOURCE_EXHAUSTED: 429,
    _Code.INTERNAL: 500,
    _Code.UNAVAILABLE: 503,
    _Code.DEADLINE_EXCEEDED: 504,
}


REASON_HEADER = "x-boxoffice-reason"
"""Trailing metadata with an error's reason, for the gateway's log. The gateway removes it."""


def with_wait(error: DomainError) -> DomainError:
    """The error for a client: a refusal of too many calls says when to try again."""
    seconds = error.retry_after_seconds
    if seconds is None or CODES[error.reason] is not _Code.RESOURCE_EXHAUSTED:
        return error
    return DomainError(
        error.reason,
        f"{error.message}. Try again in {math.ceil(seconds)} seconds.",
        violations=error.violations,
        retry_after_seconds=seconds,
        **error.metadata,
    )


def to_grpc(error: DomainError) -> grpc.Status:
    """The status with which a service answers: that of `to_status`, and the reason for the log."""
    answer = rpc_status.to_status(to_status(error))
    replaced: grpc.Status = answer._replace(  # type: ignore[attr-defined]  # a named tuple
        trailing_metadata=(*answer.trailing_metadata, (REASON_HEADER, error.reason.value))
    )
    return replaced


def to_status(error: DomainError) -> status_pb2.Status:
    """The google.rpc.Status of an error, with ErrorInfo, BadRequest and RetryInfo.

    Of many violations it has the first, and the message the number of the others.
    """
    violations = _fitting(error.violations)
    message, omitted = error.message, len(error.violations) - len(violations)
    if omitted and message == listed(error.violations):
        message = f"{listed(violations)}; and {omitted} more"
    status = status_pb2.Status(code=CODES[error.reason].value[0], message=message)
    _pack(
        status.details.add(),
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=DOMAIN,
            metadata={json_name(key): value for key, value in error.metadata.items()},
        ),
    )
    if violations:
        _pack(
            status.details.add(),
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=violation.field,
                        description=violation.description,
                        reason=_reason_of(violation.rule),
                    )
                    for violation in violations
                ]
            ),
        )
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_seconds * 1000))
        _pack(status.details.add(), error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _reason_of(rule: str) -> str:
    """A rule's id as BadRequest writes it, e.g. `STRING_UUID`."""
    return rule.replace(".", "_").upper()


def _fitting(violations: Sequence[FieldViolation]) -> Sequence[FieldViolation]:
    """The first violations, at least one, whose texts have _MAX_VIOLATIONS_SIZE together."""
    size = 0
    for number, violation in enumerate(violations):
        text = f"{violation.field}{violation.description}".encode()
        # The message's header writes a byte that is not printable ASCII with three.
        size += len(text) + 2 * sum(not 32 <= byte < 127 for byte in text)
        if number and size > _MAX_VIOLATIONS_SIZE:
            return violations[:number]
    return violations


def http_status(reason: Reason) -> int:
    """The HTTP status of a reason for REST clients."""
    return _HTTP_OWN.get(reason) or _HTTP[CODES[reason]]


def raise_from_rpc(error: grpc.aio.AioRpcError) -> NoReturn:
    """Raises the DomainError that the called service raised.

    Raises DEPENDENCY_UNAVAILABLE when the service is unavailable or too slow. Re-raises other
    errors without a reason of the contract: they are bugs.
    """
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    known = None if status is None else from_status(status)
    if known is not None and known.reason is not Reason.INTERNAL:
        raise known from error
    if error.code() in (_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.CANCELLED):
        raise DomainError(
            Reason.DEPENDENCY_UNAVAILABLE,
            "a service that this call needs is unavailable",
            retry_after_seconds=1,
        ) from error
    raise error


def from_status(status: status_pb2.Status) -> DomainError | None:
    """The DomainError in a google.rpc.Status; None when it has no reason of the contract."""
    info = None
    violations: tuple[FieldViolation, ...] = ()
    retry_after = None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            violations = tuple(
                FieldViolation(violation.field, violation.description, violation.reason)
                for violation in error_details_pb2.BadRequest.FromString(
                    detail.value
                ).field_violations
            )
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            retry_after = delay.ToTimedelta().total_seconds()
    if info is None or info.domain != DOMAIN or info.reason not in Reason.__members__:
        return None
    return DomainError(
        Reason(info.reason),
        status.message,
        violations=violations,
        retry_after_seconds=retry_after,
        **{_snake(key): value for key, value in info.metadata.items()},
    )


def _pack(target: any_pb2.Any, message: object) -> None:
    target.Pack(message)  # type: ignore[arg-type]


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name)
