"""Encryption of secrets in the database with keys that only the service has.

Fernet: AES-128-CBC with HMAC-SHA256. The first key encrypts, all keys decrypt. To rotate, put a
new key first: `endpoints.encrypt_with_newest_key` converts the stored secrets.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

# Every Fernet token begins with this: its version, and a time before the year 2106.
_TOKEN_PREFIX = b"gAAAAA"


class UnknownKeyError(Exception):
    """None of the keys can decrypt the secret."""


class SecretBox:
    def __init__(self, keys: Sequence[str]) -> None:
        """`keys` are texts of 32 characters or more, newest first."""
        fernets = [Fernet(_derived(key)) for key in keys]
        self._newest = fernets[0]
        self._all = MultiFernet(fernets)

    def encrypt(self, secret: bytes) -> bytes:
        return self._newest.encrypt(secret)

    def decrypt(self, stored: bytes) -> bytes:
        """The secret; a stored one that was never encrypted is returned unchanged.

        Raises UnknownKeyError.
        """
        if not stored.startswith(_TOKEN_PREFIX):
            return stored
        try:
            return self._all.decrypt(stored)
        except InvalidToken:
            raise UnknownKeyError from None

    def has_newest_key(self, stored: bytes) -> bool:
        """Whether `stored` is encrypted with the newest key."""
        try:
            self._newest.decrypt(stored)
        except InvalidToken:
            return False
        return True


def _derived(key: str) -> bytes:
    digest = hmac.digest(key.encode(), b"boxoffice webhook secrets", hashlib.sha256)
    return base64.urlsafe_b64encode(digest)
