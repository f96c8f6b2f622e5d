"""What the database must keep and may not tell: sealed with keys that only the service has.

Fernet: AES-128-CBC with an HMAC-SHA256. The first key seals, all of them open, so that a
key is replaced by putting a new one before it; `endpoints.reseal` brings over what there is.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

# Every token begins so: its version, and a time before the year 2106.
_SEALED = b"gAAAAA"


class UnknownKeyError(Exception):
    """It was sealed with a key that is not among ours."""


class SecretBox:
    def __init__(self, keys: Sequence[str]) -> None:
        """`keys`: any texts of 32 characters or more, the newest first."""
        fernets = [Fernet(_derived(key)) for key in keys]
        self._newest = fernets[0]
        self._all = MultiFernet(fernets)

    def seal(self, secret: bytes) -> bytes:
        return self._newest.encrypt(secret)

    def open(self, sealed: bytes) -> bytes:
        """Also what was never sealed, as it is. Raises UnknownKeyError."""
        if not sealed.startswith(_SEALED):
            return sealed
        try:
            return self._all.decrypt(sealed)
        except InvalidToken:
            raise UnknownKeyError from None

    def is_newest(self, sealed: bytes) -> bool:
        """Whether the newest key has sealed it."""
        try:
            self._newest.decrypt(sealed)
        except InvalidToken:
            return False
        return True


def _derived(key: str) -> bytes:
    digest = hmac.digest(key.encode(), b"boxoffice webhook secrets", hashlib.sha256)
    return base64.urlsafe_b64encode(digest)
