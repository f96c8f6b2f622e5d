"""Signatures of webhooks, always over the raw bytes, by one of several secrets.

Stripe's form is `t=<unix time>,v1=<hex HMAC>`: the HMAC-SHA-256 is over `<t>.<raw body>`,
so that neither can be changed and an old webhook cannot be replayed. Source: Stripe's
documentation, "Verify webhook signatures". Razorpay's is the hex HMAC of the body alone.
"""

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta

from mesh.errors import DomainError, Reason

TOLERANCE = timedelta(seconds=300)

_MAX_HEADER_LENGTH = 1024


def sign(body: bytes, *, secret: str, now: datetime) -> str:
    """The header's value for a body sent now."""
    timestamp = str(int(now.timestamp()))
    return f"t={timestamp},v1={_digest(body, secret, timestamp)}"


def verify(body: bytes, header: str | None, *, secrets: Sequence[str], now: datetime) -> None:
    """Raises WEBHOOK_SIGNATURE_INVALID unless one of the secrets signed the body just now."""
    if header is None or len(header) > _MAX_HEADER_LENGTH:
        raise _invalid()
    pairs = [part.strip().split("=", 1) for part in header.split(",")]
    timestamps = [pair[1] for pair in pairs if pair[0] == "t" and len(pair) == 2]
    given = [pair[1].encode() for pair in pairs if pair[0] == "v1" and len(pair) == 2]
    if len(timestamps) != 1 or not _is_recent(timestamps[0], now):
        raise _invalid()
    expected = [_digest(body, secret, timestamps[0]).encode() for secret in secrets]
    # No early exit: how long it takes tells nothing about which one matched.
    matches = [hmac.compare_digest(one, other) for one in given for other in expected]
    if not any(matches):
        raise _invalid()


def verify_plain(body: bytes, header: str | None, *, secrets: Sequence[str]) -> None:
    """Raises WEBHOOK_SIGNATURE_INVALID unless one of the secrets signed the body, at any time."""
    if header is None or len(header) > _MAX_HEADER_LENGTH:
        raise _invalid()
    given = header.encode()
    matches = [hmac.compare_digest(given, plain(body, secret=one).encode()) for one in secrets]
    if not any(matches):
        raise _invalid()


def plain(body: bytes, *, secret: str) -> str:
    """The hex HMAC-SHA-256 of a body."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _is_recent(timestamp: str, now: datetime) -> bool:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        return False
    return abs(int(now.timestamp()) - int(timestamp)) <= TOLERANCE.total_seconds()


def _digest(body: bytes, secret: str, timestamp: str) -> str:
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _invalid() -> DomainError:
    return DomainError(Reason.WEBHOOK_SIGNATURE_INVALID, "the webhook's signature does not hold")
