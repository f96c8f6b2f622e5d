"""Enforces the contract's rules on fields, for all requests."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import protovalidate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.errors import DomainError, FieldViolation, invalid
from mesh.rpc import text_fields

_M = TypeVar("_M", bound=Message)
_ALSO: dict[str, "_Also"] = {}
_STEP = re.compile(r"(\w+)(?:\[(\d+)\])?")

PATTERNS = {
    r"^[A-Z]{3}$": "must be a three-letter ISO 4217 code such as INR",
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$": "must be a day such as 2026-03-01",
    r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$": "must be a BCP 47 language tag such as hi or pt-BR",
    r"^[A-Za-z][A-Za-z0-9+.-]*://[^\s\p{Cc}/?#@\\]*([/?#][^\s\p{Cc}]*)?$": (
        "must be an absolute URL such as https://shop.example/paid, without user name, password "
        "and white space"
    ),
    r"^[a-z]{1,32}$": "must consist of 1–32 lower-case letters",
    r"^[a-z][a-z0-9-]{0,31}$": (
        "must consist of 1–32 lower-case letters, digits and hyphens, and begin with a letter"
    ),
    r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(:[1-9][0-9]{0,3})?$": (
        "must be a seat's UUID, or an offer's UUID, a colon and a quantity of 1–9999"
    ),
    r"\S": "must have a character other than spaces",
}
"""What each `pattern` of the contract asks for. A client never reads the pattern itself."""


def validate(request: Message, *, is_internal: bool = False) -> None:
    """Raises VALIDATION_FAILED that names every field that violates a rule.

    Removes white space around names first. Texts of internal calls are not checked again.
    """
    violations = () if is_internal else text_fields.normalise(request)
    violations += tuple(
        FieldViolation(
            _path(violation.proto.field), _description(violation), violation.proto.rule_id
        )
        for violation in protovalidate.collect_violations(request)
    )
    if violations:
        if also := _ALSO.get(request.DESCRIPTOR.full_name):
            violations += tuple(also.beside(violations, request))
        raise invalid(*violations)


def name_also(
    kind: type[_M],
    violations: Callable[[_M], Iterable[FieldViolation]],
    *,
    of_valid_fields: bool = False,
) -> None:
    """Adds violations of rules of the domain to those of the contract's rules, for a message.

    With `of_valid_fields` the domain sees the request without the fields that violate the contract,
    and what it says about these fields, or about their parts, is left out.
    The domain itself refuses a request that violates its rules alone. Called when a service starts.
    """
    _ALSO[kind.DESCRIPTOR.full_name] = _Also(violations, of_valid_fields)


@dataclass(frozen=True, slots=True)
class _Also:
    violations: Callable[[Any], Iterable[FieldViolation]]
    of_valid_fields: bool

    def beside(self, named: Sequence[FieldViolation], request: Message) -> Iterable[FieldViolation]:
        """The domain's violations of a request that the contract's rules refuse already."""
        if not self.of_valid_fields:
            return self.violations(request)
        paths = [violation.field for violation in named]
        valid = type(request).FromString(request.SerializeToString())
        for path in paths:
            _clear(valid, path)
        try:
            violations = tuple(self.violations(valid))
        except DomainError as refusal:
            violations = refusal.violations
        except (ValueError, OverflowError):
            # A value that `refuse_unstorable` refuses, which has not run yet.
            violations = ()
        return [
            violation
            for violation in violations
            if not any(
                _is_part(violation.field, path) or _is_part(path, violation.field) for path in paths
            )
        ]


def _clear(message: Any, path: str) -> None:
    """Clears a field, e.g. `items[0].quantity`; of a list of values all of them."""
    steps = _STEP.findall(path)
    for name, index in steps[:-1]:
        if index:
            elements = getattr(message, name)
            if int(index) >= len(elements):
                return
            message = elements[int(index)]
        elif message.HasField(name):
            message = getattr(message, name)
        else:
            return
    for name, _ in steps[-1:]:
        message.ClearField(name)


def _is_part(path: str, whole: str) -> bool:
    """Whether a path names a field or something in it."""
    return path == whole or path.startswith((f"{whole}.", f"{whole}["))


def refuse_unstorable(request: Message, sent: bytes) -> None:
    """Raises VALIDATION_FAILED for text with U+0000, which PostgreSQL rejects, and for times
    outside the years 1 to 9999.

    `sent` is the serialised request. Without zero bytes and time fields it is not searched.
    """
    if b"\0" in sent or _has_times(request.DESCRIPTOR):
        violations = tuple(_unstorable(request))
        if violations:
            raise invalid(*violations)


@cache
def _has_times(descriptor: Descriptor, above: frozenset[str] = frozenset()) -> bool:
    if descriptor.full_name in _TIMES:
        return True
    above |= {descriptor.full_name}
    return any(
        field.message_type.full_name not in above and _has_times(field.message_type, above)
        for field in descriptor.fields
        if field.message_type is not None
    )


def _unstorable(message: Message, prefix: str = "") -> Iterator[FieldViolation]:
    for field, value in message.ListFields():
        path = prefix + field.name
        if field.type == FieldDescriptor.TYPE_STRING:
            for element_path, text in _elements(field, value, path):
                if "\0" in text:
                    yield FieldViolation(element_path, "must not contain U+0000", "string.storable")
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            # No request has a map.
            for element_path, element in _elements(field, value, path):
                yield from (
                    _out_of_range(element, element_path)
                    if isinstance(element, _TIME_TYPES)
                    else _unstorable(element, f"{element_path}.")
                )


def _out_of_range(value: Timestamp | Duration, path: str) -> Iterator[FieldViolation]:
    try:
        value.ToDatetime() if isinstance(value, Timestamp) else value.ToTimedelta()
    except (ValueError, OverflowError):
        yield FieldViolation(path, "is out of range", "time.range")


_TIME_TYPES = (Timestamp, Duration)
_TIMES = {kind.DESCRIPTOR.full_name for kind in _TIME_TYPES}


def _elements(field: FieldDescriptor, value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not field.is_repeated:
        yield path, value
    else:
        for number, element in enumerate(value):
            yield f"{path}[{number}]", element


def _description(violation: protovalidate.Violation) -> str:
    if violation.proto.rule_id == "string.pattern":
        return PATTERNS.get(violation.rule_value, "has a form that is not allowed")
    text = violation.proto.message
    # An enum that was left out: the client has not sent the number 0.
    return "value is required" if text == "must not be in list [0]" else text


def _path(field: Any) -> str:
    """`items[0].quantity` from protovalidate's FieldPath; empty for the whole request."""
    path = ""
    for element in field.elements if field is not None else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path
