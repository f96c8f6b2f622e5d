"""The contract's rules on fields, enforced once for all requests."""

from typing import Any

import protovalidate
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
