"""Reading the JSON of providers: every value is checked before it is used.

A value that does not fit raises one of the errors in _UNREADABLE_ERRORS.
"""

import hashlib
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from mesh.money import Money
from payment_svc.providers.amounts import Units
from payment_svc.providers.base import RefundOrder, WebhookEvent

UNREADABLE = "unreadable"
"""Event type of a webhook with a valid signature whose body cannot be read."""

_UNREADABLE_ERRORS = (
    AttributeError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
)

_MAX_AMOUNT = 10**15
_MAX_TEXT_LENGTH = 255


def read_event(body: bytes, read: Callable[[Any], WebhookEvent]) -> WebhookEvent:
    """Reads a webhook's JSON. One that cannot be read is kept under its hash, without a report."""
    try:
        return read(json.loads(body))
    except _UNREADABLE_ERRORS:
        return WebhookEvent(hashlib.sha256(body).hexdigest(), UNREADABLE, None)


def text(value: object) -> str:
    """A text that the database can store."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT_LENGTH or "\0" in value:
        raise ValueError("not a text that can be stored")
    return value


def text_or(value: object, default: str) -> str:
    """A text that the database can store; the default for a missing or empty one."""
    return default if value is None or value == "" else text(value)


def money(amount: object, currency: object, units: Units) -> Money:
    """An amount in a provider's units, more than zero."""
    if type(amount) is not int or not 0 < amount <= _MAX_AMOUNT:
        raise ValueError("not an amount")
    code = text(currency)
    if re.fullmatch("[A-Z]{3}", code) is None:
        raise ValueError("not a currency")
    return units.from_provider(amount, code)


def time(value: object) -> datetime:
    """A Unix time in seconds."""
    if type(value) is not int or not 0 < value < 2**40:
        raise ValueError("not a time")
    return datetime.fromtimestamp(value, UTC)


def uuid_in(notes: Any, name: str) -> UUID | None:
    """One of our ids in the notes that a provider stores for us, None when it is missing."""
    value = notes.get(name) if isinstance(notes, dict) else None
    return None if value is None else UUID(text(value))


def count_in(notes: Any, name: str) -> int:
    """A count in the notes, 0 when it is missing."""
    value = notes.get(name) if isinstance(notes, dict) else None
    return 0 if value is None else int(text(str(value)))


def is_attempt(notes: Any, order: RefundOrder, *, is_processed: bool) -> bool:
    """Whether the provider's refund with these notes makes a new attempt superfluous.

    It does when it is this attempt, or any earlier one that was processed.
    """
    return uuid_in(notes, "refund_id") == order.refund_id and (
        is_processed or count_in(notes, "refusals") == order.refusals
    )
