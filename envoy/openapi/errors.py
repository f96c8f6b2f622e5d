"""Error responses of an operation: one per HTTP status, with the reasons that it can have."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from mesh.errors import DomainError, FieldViolation, Reason
from mesh.rpc.errors import http_status, to_status
from mesh.rpc.policy import Access, MethodPolicy
from openapi.comments import paragraphs

RATE_LIMIT_HEADERS = ("RateLimit", "RateLimit-Policy")

_REASON = "boxoffice.errors.v1.Reason.REASON_"

_ERROR: dict[str, Any] = {
    "type": "object",
    "description": "The format of all errors: google.rpc.Status.",
    "required": ["code", "message", "details"],
    "properties": {
        "code": {"type": "integer", "description": "The gRPC code.", "minimum": 1, "maximum": 16},
        "message": {"type": "string", "description": "A message for developers."},
        "details": {
            "type": "array",
            "description": "An ErrorInfo with the reason, optionally a BadRequest with the invalid "
            "fields and a RetryInfo with the delay before a retry.",
            "items": {
                "type": "object",
                "required": ["@type"],
                "properties": {
                    "@type": {"type": "string"},
                    "reason": {"$ref": "#/components/schemas/Reason"},
                    "domain": {"type": "string"},
                    "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                    "retryDelay": {"type": "string"},
                    "fieldViolations": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {
                                "field": {"type": "string"},
                                "description": {"type": "string"},
                                "reason": {"type": "string"},
                            },
                        },
                    },
                },
            },
        },
    },
}


def schema() -> dict[str, Any]:
    """The format of all errors, with an example."""
    return _ERROR | {"examples": [_example()]}


def reasons_schema(comments: Mapping[str, str]) -> dict[str, Any]:
    listed = (
        f"- `{reason}`: {paragraphs(comments.get(_REASON + reason, ''))}" for reason in Reason
    )
    return {
        "type": "string",
        "description": "The reason of an error.\n\n" + "\n".join(listed),
        "enum": [reason.value for reason in Reason],
    }


def responses(policy: MethodPolicy, *, has_body: bool) -> dict[str, Any]:
    """Error responses by HTTP status."""
    by_status: dict[int, list[Reason]] = defaultdict(list)
    for reason in Reason:
        if reason in policy.reasons or reason in _common(policy, has_body=has_body):
            by_status[http_status(reason)].append(reason)
    return {
        str(status): _response(status, reasons) for status, reasons in sorted(by_status.items())
    }


def _common(policy: MethodPolicy, *, has_body: bool) -> set[Reason]:
    common = {
        Reason.VALIDATION_FAILED,
        Reason.RATE_LIMITED,
        Reason.OVERLOADED,
        Reason.DEPENDENCY_UNAVAILABLE,
        Reason.DEADLINE_EXCEEDED,
        Reason.INTERNAL,
    }
    if policy.needs_token or policy.reads_token:
        common |= {Reason.TOKEN_INVALID, Reason.TOKEN_EXPIRED}
    if policy.access is Access.STAFF:
        common.add(Reason.STAFF_REQUIRED)
    if policy.access is Access.ADMIN:
        common.add(Reason.ADMIN_REQUIRED)
    if has_body:
        common.add(Reason.REQUEST_TOO_LARGE)
    return common


def _response(status: int, reasons: list[Reason]) -> dict[str, Any]:
    names: list[str] = []
    if status == 401:
        names.append("WWW-Authenticate")
    if status in (429, 503):
        names.append("Retry-After")
    if status == 429:
        names += RATE_LIMIT_HEADERS
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    return {
        "description": ", ".join(f"`{reason}`" for reason in reasons),
        **({"headers": headers} if headers else {}),
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Error"}},
        },
    }


def _example() -> Any:
    """An error with all kinds of details; Reason has the text of each reason."""
    error = DomainError(
        Reason.VALIDATION_FAILED,
        "a field is invalid",
        violations=(FieldViolation("items[0].quantity", "must be at least 1", "INT32_GTE"),),
    )
    example: Any = json_format.MessageToDict(to_status(error))
    example["details"][0].setdefault("metadata", {})
    return example
