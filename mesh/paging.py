"""Keyset pages: opaque tokens that say after which row the next page begins."""

import base64
import binascii
import json
from uuid import UUID

from mesh.errors import DomainError, FieldViolation, invalid

DEFAULT_PAGE_SIZE = 20


def page_size(requested: int, *, default: int = DEFAULT_PAGE_SIZE) -> int:
    """The size asked for; bounds are the contract's."""
    return requested or default


def to_token(*key: str) -> str:
    """The token of the page after the row with this key."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def from_token(token: str, length: int) -> tuple[str, ...] | None:
    """The key in a token; None for the first page. Raises VALIDATION_FAILED for a foreign token."""
    if not token:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError):
        key = None
    if not isinstance(key, list) or len(key) != length or not all(isinstance(k, str) for k in key):
        raise _foreign()
    return tuple(key)


def id_from_token(token: str) -> UUID | None:
    """The id in the token of a list that is sorted by ids alone; None for the first page.

    Raises VALIDATION_FAILED for a foreign token.
    """
    key = from_token(token, 1)
    try:
        return None if key is None else UUID(key[0])
    except ValueError:
        raise _foreign() from None


def _foreign() -> DomainError:
    return invalid(FieldViolation("page_token", "not a token of this list"))
