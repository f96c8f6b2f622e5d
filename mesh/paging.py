"""Keyset pages: opaque, signed tokens that say after which row the next page begins.

A token is worth nothing in another list, nor with a made-up key: what it says reaches
a statement as the server wrote it.
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
    """The process's key. A random one until the settings' is known: tokens die with it."""

    def __init__(self) -> None:
        self.key = secrets.token_bytes(32)

    def sign(self, content: bytes, scope: str) -> bytes:
        text = scope.encode() + b"\n" + content
        return hmac.digest(self.key, text, hashlib.sha256)[:_SIGNATURE_BYTES]


_signer = _Signer()


def sign_with(secret: str) -> None:
    """Sets the key that all replicas share; called once, at a process's start."""
    _signer.key = hashlib.sha256(b"page tokens\n" + secret.encode()).digest()


def page_size(requested: int, *, default: int = DEFAULT_PAGE_SIZE) -> int:
    """The size asked for; bounds are the contract's."""
    return requested or default


def to_token(*key: str, scope: str = "") -> str:
    """The token of the page after the row with this key.

    `scope` names what else must be the same for the next page: the list and its filters.
    """
    content = json.dumps(key).encode()
    return base64.urlsafe_b64encode(_signer.sign(content, scope) + content).decode().rstrip("=")


def from_token(token: str, length: int, *, scope: str = "") -> tuple[str, ...] | None:
    """The key in a token; None for the first page. Raises VALIDATION_FAILED for a foreign token."""
    if not token:
        return None
    try:
        signed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raise _foreign() from None
    signature, content = signed[:_SIGNATURE_BYTES], signed[_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _signer.sign(content, scope)):
        raise _foreign()
    key = json.loads(content)
    if len(key) != length:
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
