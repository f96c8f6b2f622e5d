"""Webhooks of senders that are no payment provider: verified, stored once, put on the stream.

Their content is not read here; the stream's consumers do that.
"""

import hashlib
import hmac
import logging
import re
from collections.abc import Mapping
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from payment_svc import outbox
from payment_svc.providers import signatures
from payment_svc.tables import inbound_webhooks

SIGNATURE_HEADER = "x-webhook-signature"
"""The hex HMAC-SHA-256 of the body, with or without the prefix `sha256=`."""

TOKEN_HEADER = "verification-token"
"""RingCentral does not sign: it sends a token that was agreed when subscribing."""

HANDSHAKE_HEADER = "validation-token"
"""Sent when a subscription is made; the answer repeats it. Source: RingCentral, "Webhooks"."""

_HANDSHAKE = re.compile(r"[\x21-\x7e]{1,256}")

_log = logging.getLogger(__name__)


def verify(body: bytes, headers: Mapping[str, str], *, secret: str) -> None:
    """Raises WEBHOOK_SIGNATURE_INVALID unless the token or the signature proves the secret."""
    token = headers.get(TOKEN_HEADER)
    if token is not None and hmac.compare_digest(token.encode(), secret.encode()):
        return
    given = headers.get(SIGNATURE_HEADER)
    signatures.verify_plain(
        body, None if given is None else given.removeprefix("sha256="), secrets=[secret]
    )


def handshake(headers: Mapping[str, str]) -> str | None:
    """The token that the answer repeats; None when the webhook is not a handshake.

    Raises WEBHOOK_SIGNATURE_INVALID for a token with other characters or of another length.
    """
    token = headers.get(HANDSHAKE_HEADER)
    if token is not None and not _HANDSHAKE.fullmatch(token):
        raise DomainError(
            Reason.WEBHOOK_SIGNATURE_INVALID,
            "the validation token must have 1 to 256 printable ASCII characters",
        )
    return token


async def receive(
    connection: AsyncConnection, *, sender: str, content_type: str, body: bytes, now: datetime
) -> bool:
    """Stores a verified webhook with its event. False when it is stored already."""
    digest = hashlib.sha256(body).digest()
    inbound_id = new_id()
    inserted = await connection.execute(
        postgresql.insert(inbound_webhooks)
        .values(
            inbound_id=inbound_id,
            sender=sender,
            sha256=digest,
            content_type=content_type[:255],
            body=body,
            receive_time=now,
        )
        .on_conflict_do_nothing(index_elements=["sender", "sha256"])
    )
    is_new = inserted.rowcount == 1
    if is_new:
        await outbox.inbound_received(
            connection,
            inbound_id=inbound_id,
            sender=sender,
            content_type=content_type[:255],
            body=body,
            now=now,
        )
    _log.info("inbound webhook", extra={"sender": sender, "sha256": digest.hex(), "is_new": is_new})
    return is_new


async def delete_old(connection: AsyncConnection, *, before: datetime) -> int:
    """Deletes webhooks received before a time. Returns their number."""
    deleted = await connection.execute(
        sa.delete(inbound_webhooks).where(inbound_webhooks.c.receive_time < before)
    )
    return deleted.rowcount
