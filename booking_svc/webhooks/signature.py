"""Secrets and signatures of Standard Webhooks.

Source: the specification, "Signature scheme": HMAC-SHA256 over `<id>.<timestamp>.<body>`
with the bytes that the secret's base64 stands for; one `v1,<base64>` per secret.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime

PREFIX = "whsec_"

# The specification asks for 24–64 bytes.
_SECRET_BYTES = 32


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def headers(
    body: bytes, *, webhook_id: str, signing_secrets: Sequence[str], now: datetime
) -> dict[str, str]:
    """The three headers of a message that is sent now, signed with every secret in force."""
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
