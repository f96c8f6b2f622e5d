"""Secrets and signatures of Standard Webhooks.

Source: the specification, "Signature scheme": HMAC-SHA256 over `<id>.<timestamp>.<body>` with the
base64-decoded secret as key; one `v1,<base64>` per secret.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime

PREFIX = "whsec_"

# The specification requires 24–64 bytes.
_SECRET_BYTES = 32


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def headers(
    body: bytes, *, webhook_id: str, signing_secrets: Sequence[str], now: datetime
) -> dict[str, str]:
    """The three headers of a message sent at `now`, signed with each of the secrets."""
    timestamp = str(int(now.timestamp()))
    signed = b".".join((webhook_id.encode(), timestamp.encode(), body))
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(_sign(signed, secret) for secret in signing_secrets),
    }


def _sign(signed: bytes, secret: str) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
