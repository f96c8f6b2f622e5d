"""Signatures of webhooks: HMAC-SHA-256 over the raw bytes, by one of several secrets.

Stripe's form is `t=<Unix time>,v1=<hex HMAC of "<t>.<body>">` (Stripe's documentation, "Verify
webhook signatures"). Razorpay's is the hex HMAC of the body.
"""

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta

from mesh.errors import DomainError, Reason

TOLERANCE = timedelta(seconds=300)

_MAX_HEADER_LENGTH = 1024


def sign(body: bytes, *, secret: str, now: datetime) -> str:
    """The value of the signature header, in Stripe's form."""
    timestamp = str(int(now.timestamp()))
    return f"t={timestamp},v1={_timed(body, secret, timestamp)}"


def verify(body: bytes, header: str | None, *, secrets: Sequence[str], now: datetime) -> None:
    """Checks a header in Stripe's form, made less than TOLERANCE ago.

    Raises WEBHOOK_SIGNATURE_INVALID.
    """
    if header is None or len(header) > _MAX_HEADER_LENGTH:
        raise _invalid()
    pairs = [part.strip().split("=", 1) for part in header.split(",")]
    timestamps = [pair[1] for pair in pairs if pair[0] == "t" and len(pair) == 2]
    given = [pair[1] for pair in pairs if pair[0] == "v1" and len(pair) == 2]
    if len(timestamps) != 1 or not _is_recent(timestamps[0], now):
        raise _invalid()
    _verify_any(given, [_timed(body, secret, timestamps[0]) for secret in secrets])


def verify_plain(body: bytes, header: str | None, *, secrets: Sequence[str]) -> None:
    """Checks a header that is the hex HMAC of the body. Raises WEBHOOK_SIGNATURE_INVALID."""
    if header is None or len(header) > _MAX_HEADER_LENGTH:
        raise _invalid()
    _verify_any([header], [plain(body, secret=secret) for secret in secrets])


def plain(body: bytes, *, secret: str) -> str:
    """The hex HMAC-SHA-256 of a body."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _timed(body: bytes, secret: str, timestamp: str) -> str:
    return plain(timestamp.encode() + b"." + body, secret=secret)


def _verify_any(given: Sequence[str], expected: Sequence[str]) -> None:
    # Compares all pairs: the duration does not depend on which one matches.
    matches = [
        hmac.compare_digest(signature.encode(), valid.encode())
        for signature in given
        for valid in expected
    ]
    if not any(matches):
        raise _invalid()


def _is_recent(timestamp: str, now: datetime) -> bool:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        return False
    return abs(int(now.timestamp()) - int(timestamp)) <= TOLERANCE.total_seconds()


def _invalid() -> DomainError:
    return DomainError(Reason.WEBHOOK_SIGNATURE_INVALID, "the webhook's signature is invalid")
