"""Removes personal data and secrets from logs and bug reports.

The contract marks fields that must not be shown with `debug_redact = true`. Error texts come
from drivers, which quote values: parts that match a pattern of such data are replaced.
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
    # PostgreSQL quotes the row or the key that violates a constraint.
    r"|(?P<key>(?<=\)=\()[^)]*(?=\)))"
    r"|(?P<row>(?<=Failing row contains )\(.*\))"
)


def text(given: str) -> str:
    """Replaces mail addresses, tokens, credentials in URLs and values quoted by PostgreSQL."""
    return _SENSITIVE.sub(REDACTED, given)


def shown(message: Message) -> dict[str, Any]:
    """A message's fields for a log line: shortened, without those marked `debug_redact`."""
    hidden = _hidden(message.DESCRIPTOR)
    fields: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name in hidden:
            fields[field.name] = REDACTED
        elif _is_repeated(value):
            fields[field.name] = [_shown_value(field, item) for item in list(value)[:_MAX_ITEMS]]
        else:
            fields[field.name] = _shown_value(field, value)
    return fields


def _is_repeated(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes | Message)


def _shown_value(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Message):
        return shown(value)
    if isinstance(value, bytes):
        # Bytes (a webhook's body, a provider's answer) may contain anything.
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
