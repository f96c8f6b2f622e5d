"""Names of fields in error messages, written as the client writes them.

Errors carry the contract's names, with the fields that a text mentions in backticks, until the
service that answers the gateway replaces them (mesh/rpc/interceptor.py).
"""

import re
from collections.abc import Callable

from mesh.errors import DomainError, FieldViolation, listed

REST_HEADER = "x-envoy-original-method"
"""Set by the gateway's transcoder on calls that came over REST. The gateway removes a client's."""

BODY = "body"
"""The name over REST of the field that is the body."""

_NAME = r"[a-z][a-z0-9_]*(?:\[[\w-]+\])?"
MARKED = re.compile(rf"`({_NAME}(?:\.{_NAME})*)`")
"""A field that a text mentions, e.g. `offers[0].seat_type`."""


def json_name(path: str) -> str:
    """A field's name or path in ProtoJSON, e.g. `offers[0].seatType` of `offers[0].seat_type`."""
    return re.sub("_(.)", lambda letter: letter[1].upper(), path)


def for_client(error: DomainError, body_field: str, *, is_rest: bool) -> DomainError:
    """The error with names as in REST, where the body is `body_field`, or in gRPC, unmarked."""

    def in_rest(path: str) -> str:
        if body_field and path == body_field:
            return BODY
        return json_name(path.removeprefix(f"{body_field}."))

    def in_grpc(path: str) -> str:
        return path

    return _renamed(error, in_rest if is_rest else in_grpc)


def _renamed(error: DomainError, name: Callable[[str], str]) -> DomainError:
    def text(marked: str) -> str:
        return MARKED.sub(lambda field: name(field[1]), marked)

    violations = tuple(
        FieldViolation(name(violation.field), text(violation.description), violation.rule)
        for violation in error.violations
    )
    is_listed = error.message == listed(error.violations)
    return DomainError(
        error.reason,
        listed(violations) if is_listed else text(error.message),
        violations=violations,
        retry_after_seconds=error.retry_after_seconds,
        **error.metadata,
    )
