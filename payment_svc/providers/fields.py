"""Reading what providers send: each value is checked before it is believed.

A value that does not fit raises ValueError, TypeError, KeyError or AttributeError, which
UNREADABLE_ERRORS names together.
"""

import hashlib
import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from mesh.money import Money
from payment_svc.providers.amounts import Units
from payment_svc.providers.base import WebhookEvent

UNREADABLE = "unreadable"
"""Type of a webhook that is signed rightly and says nothing that can be read."""

UNREADABLE_ERRORS = (
    AttributeError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
)

MAX_AMOUNT_MINOR = 10**15
_MAX_TEXT_LENGTH = 255


def unreadable(body: bytes) -> WebhookEvent:
    """Sent again it would say the same: it is kept for people, under its hash."""
    return WebhookEvent(hashlib.sha256(body).hexdigest(), UNREADABLE, None)


def text(value: object) -> str:
    """A text that can be kept."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT_LENGTH or "\0" in value:
        raise ValueError("not a text that can be kept")
    return value


def text_or(value: object, otherwise: str) -> str:
    """A text that can be kept, or another one when there is none."""
    return otherwise if value is None or value == "" else text(value)


def money(amount: object, currency: object, units: Units) -> Money:
    """An amount as a provider writes it, more than zero."""
    if type(amount) is not int or not 0 < amount <= MAX_AMOUNT_MINOR:
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
    """An id of ours among the notes that a provider keeps for us; None without one."""
    value = notes.get(name) if isinstance(notes, dict) else None
    return None if value is None else UUID(text(value))


def whole_in(notes: Any, name: str) -> int:
    """A count of ours among the notes; 0 without one."""
    value = notes.get(name) if isinstance(notes, dict) else None
    return 0 if value is None else int(text(str(value)))
