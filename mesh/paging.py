"""Keyset pagination: opaque, signed tokens with the sort key of a page's last row.

A token is valid for the list and the filters it was created for. The signature lets SQL use
the key without further checks.
"""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from uuid import UUID

from mesh.errors import DomainError, FieldViolation, invalid

DEFAULT_PAGE_SIZE = 20

_SIGNATURE_BYTES = 16


class _Signer:
    """The process's signing key: random until `sign_with` sets the one from the settings."""

    def __init__(self) -> None:
        self.key = secrets.token_bytes(32)

    def sign(self, content: bytes, scope: str) -> bytes:
        text = scope.encode() + b"\n" + content
        return hmac.digest(self.key, text, hashlib.sha256)[:_SIGNATURE_BYTES]


_signer = _Signer()


def sign_with(secret: str) -> None:
    """Sets the key that all replicas share. Called once, when a process starts."""
    _signer.key = hashlib.sha256(b"page tokens\n" + secret.encode()).digest()


def page_size(requested: int, *, default: int = DEFAULT_PAGE_SIZE) -> int:
    """The requested page size, or the default for 0. The contract enforces the bounds."""
    return requested or default


def to_token(*key: str, scope: str = "") -> str:
    """The token of the page after the row with this key.

    `scope` names the list and its filters, which must be the same for the next page.
    """
    content = json.dumps(key).encode()
    return base64.urlsafe_b64encode(_signer.sign(content, scope) + content).decode().rstrip("=")


def from_token(token: str, length: int, *, scope: str = "") -> tuple[str, ...] | None:
    """The key in a token; None for the first page.

    Raises VALIDATION_FAILED for a token of another list, and for a malformed or forged one.
    """
    if not token:
        return None
    try:
        signed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raise _invalid_token() from None
    signature, content = signed[:_SIGNATURE_BYTES], signed[_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _signer.sign(content, scope)):
        raise _invalid_token()
    key = json.loads(content)
    if len(key) != length:
        raise _invalid_token()
    return tuple(key)


def id_from_token(token: str) -> UUID | None:
    """`from_token` for a list that is sorted by id alone."""
    key = from_token(token, 1)
    try:
        return None if key is None else UUID(key[0])
    except ValueError:
        raise _invalid_token() from None


def _invalid_token() -> DomainError:
    return invalid(
        FieldViolation(
            "page_token", "must be a page token of this list with the same filters", "page_token"
        )
    )
