"""The contract's rules on fields, enforced once for all requests."""

from collections.abc import Iterator
from typing import Any

import protovalidate
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from mesh.errors import FieldViolation, invalid


def validate(request: Message) -> None:
    """Raises VALIDATION_FAILED that names every field which breaks its rule."""
    violations = protovalidate.collect_violations(request)
    if violations:
        raise invalid(
            *(
                FieldViolation(_path(violation.proto.field), _message(violation.proto.message))
                for violation in violations
            )
        )


def refuse_nul(request: Message) -> None:
    """Raises VALIDATION_FAILED that names every text with a U+0000: PostgreSQL holds none."""
    fields = list(_with_nul(request))
    if fields:
        raise invalid(*(FieldViolation(field, "must not contain U+0000") for field in fields))


def _with_nul(message: Message, prefix: str = "") -> Iterator[str]:
    for field, value in message.ListFields():
        path = prefix + field.name
        if field.type == FieldDescriptor.TYPE_STRING:
            yield from (place for place, text in _elements(field, value, path) if "\0" in text)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            # No request has a map.
            for place, one in _elements(field, value, path):
                yield from _with_nul(one, f"{place}.")


def _elements(field: FieldDescriptor, value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not field.is_repeated:
        yield path, value
    else:
        for number, one in enumerate(value):
            yield f"{path}[{number}]", one


def _message(text: str) -> str:
    # An enum that was left out: nobody who reads the answer knows what 0 is.
    return "value is required" if text == "must not be in list [0]" else text


def _path(field: Any) -> str:
    """`items[0].quantity` from protovalidate's FieldPath; empty for the whole request."""
    path = ""
    for element in field.elements if field is not None else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path
