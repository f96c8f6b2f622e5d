"""Webhooks of senders that are no payment provider: verified, stored once, put on the stream.

Their content is not read here; the stream's consumers do that.
"""

import hashlib
import hmac
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh import paging
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


@dataclass(frozen=True, slots=True)
class InboundWebhook:
    """A stored webhook. In lists `body` is empty."""

    inbound_id: UUID
    sender: str
    content_type: str
    size_bytes: int
    body: bytes
    receive_time: datetime


@dataclass(frozen=True, slots=True)
class Page:
    """Webhooks, newest first. `next_page_token` is empty on the last page."""

    webhooks: tuple[InboundWebhook, ...]
    next_page_token: str
    total_size: int


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


async def list_page(
    connection: AsyncConnection, *, sender: str, page_size: int, page_token: str
) -> Page:
    """A page of a sender's webhooks, or of all. Raises VALIDATION_FAILED for another list's token."""
    table = inbound_webhooks.c
    matching = table.sender == sender if sender else sa.true()
    after = paging.id_from_token(page_token)
    # UUIDv7 sorts by creation time.
    beyond = sa.true() if after is None else table.inbound_id < after
    rows = await connection.execute(
        _select(sa.literal(b""))
        .where(matching, beyond)
        .order_by(table.inbound_id.desc())
        .limit(page_size + 1)
    )
    listed = [InboundWebhook(*row) for row in rows]
    total = await connection.execute(
        sa.select(sa.func.count()).select_from(inbound_webhooks).where(matching)
    )
    shown = tuple(listed[:page_size])
    more = len(listed) > page_size
    return Page(
        shown, paging.to_token(str(shown[-1].inbound_id)) if more else "", total.scalar_one()
    )


async def get(connection: AsyncConnection, *, inbound_id: UUID) -> InboundWebhook:
    """Raises INBOUND_WEBHOOK_NOT_FOUND."""
    rows = await connection.execute(
        _select(inbound_webhooks.c.body).where(inbound_webhooks.c.inbound_id == inbound_id)
    )
    row = rows.one_or_none()
    if row is None:
        raise DomainError(Reason.INBOUND_WEBHOOK_NOT_FOUND, "no such inbound webhook")
    return InboundWebhook(*row)


def _select(body: sa.ColumnElement[bytes]) -> sa.Select[Any]:
    table = inbound_webhooks.c
    return sa.select(
        table.inbound_id,
        table.sender,
        table.content_type,
        sa.func.octet_length(table.body),
        body,
        table.receive_time,
    )


async def delete_old(connection: AsyncConnection, *, before: datetime) -> int:
    """Deletes webhooks received before a time. Returns their number."""
    deleted = await connection.execute(
        sa.delete(inbound_webhooks).where(inbound_webhooks.c.receive_time < before)
    )
    return deleted.rowcount
