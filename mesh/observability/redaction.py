"""Keeps personal data and secrets out of logs and reports.

A message's fields are classified in the contract: `debug_redact = true` marks what must
never be shown. Texts of errors come from drivers, which quote what they were given: what
looks like a person's data or a secret is cut out.
"""

import re
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

REDACTED = "…"

_MAX_ITEMS = 20
_MAX_TEXT = 200

_SENSITIVE = re.compile(
    r"(?P<email>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)"
    r"|(?P<token>eyJ[\w-]+\.[\w-]+\.[\w-]*)"
    r"|(?P<bearer>(?i:bearer)\s+[\w.~+/-]+=*)"
    r"|(?P<userinfo>(?<=://)[^/@\s]+(?=@))"
    # PostgreSQL repeats the row or the key that it refuses.
    r"|(?P<key>(?<=\)=\()[^)]*(?=\)))"
    r"|(?P<row>(?<=Failing row contains )\(.*\))"
)


def text(given: str) -> str:
    """A text without addresses, tokens, credentials in URLs, and values that PostgreSQL quotes."""
    return _SENSITIVE.sub(REDACTED, given)


def shown(message: Message) -> dict[str, Any]:
    """A message's fields as they may be logged: short, and without what the contract hides."""
    hidden = _hidden(message.DESCRIPTOR)
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name in hidden:
            found[field.name] = REDACTED
        elif _is_many(value):
            found[field.name] = [_one(field, each) for each in list(value)[:_MAX_ITEMS]]
        else:
            found[field.name] = _one(field, value)
    return found


def _is_many(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes | Message)


def _one(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Message):
        return shown(value)
    if isinstance(value, bytes):
        # A webhook's body, an opaque answer: nobody classified what is in it.
        return f"{len(value)} bytes"
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if field.enum_type is not None and isinstance(value, int):
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    return value


@cache
def _hidden(message: Descriptor) -> frozenset[str]:
    return frozenset(field.name for field in message.fields if field.GetOptions().debug_redact)
