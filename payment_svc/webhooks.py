"""The inbox of providers' webhooks: each is stored once, in the transaction of its effect.

It also has the answers of calls that changed a payment, e.g. of a poll after a lost webhook.

The caller has verified the signature. Payloads contain personal data: logs have a webhook's
id, type and hash only.
"""

import hashlib
import logging
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.ids import new_id
from payment_svc import payment_reports, unmatched
from payment_svc.providers.base import ProviderReport, WebhookEvent
from payment_svc.tables import webhook_inbox

MAX_BYTES = 512 * 1024

_log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """The effect of a webhook. A DUPLICATE is not stored again."""

    APPLIED = "APPLIED"
    UNCHANGED = "UNCHANGED"
    UNKNOWN_TYPE = "UNKNOWN_TYPE"
    # The stored value predates the name.
    UNMATCHED = "UNEXPLAINED"
    DUPLICATE = "DUPLICATE"


async def delete_old(connection: AsyncConnection, *, before: datetime, limit: int) -> int:
    """Deletes at most `limit` webhooks received before a time. Returns their number.

    A later duplicate of one has no second effect: reports move a payment forward only.
    """
    old = (
        sa.select(webhook_inbox.c.provider, webhook_inbox.c.provider_event_id)
        .where(webhook_inbox.c.receive_time < before)
        .limit(limit)
        .cte("old")
    )
    deleted = await connection.execute(
        sa.delete(webhook_inbox)
        .where(webhook_inbox.c.provider == old.c.provider)
        .where(webhook_inbox.c.provider_event_id == old.c.provider_event_id)
    )
    return deleted.rowcount


async def keep_answer(
    connection: AsyncConnection, *, provider: str, report: ProviderReport, now: datetime
) -> None:
    """Stores the answer of a call that changed a payment, as `receive` stores a webhook."""
    if report.answer is None:
        return
    await connection.execute(
        postgresql.insert(webhook_inbox).values(
            provider=provider,
            provider_event_id=f"answer_{new_id()}",
            event_type=f"answer.{type(report).__name__}",
            payment_id=report.payment_id,
            outcome=Outcome.APPLIED,
            payload=report.answer,
            sha256=hashlib.sha256(report.answer).digest(),
            receive_time=now,
        )
    )


async def receive(
    connection: AsyncConnection,
    *,
    provider: str,
    event: WebhookEvent,
    payload: bytes,
    now: datetime,
) -> Outcome:
    """Stores a verified webhook and applies its report."""
    digest = hashlib.sha256(payload).digest()
    # A concurrent delivery of the same event waits here for the first one's transaction.
    inserted = await connection.execute(
        postgresql.insert(webhook_inbox)
        .values(
            provider=provider,
            provider_event_id=event.event_id,
            event_type=event.event_type,
            payment_id=event.report.payment_id if event.report is not None else None,
            outcome=Outcome.UNKNOWN_TYPE,
            payload=payload,
            sha256=digest,
            receive_time=now,
        )
        .on_conflict_do_nothing()
    )
    if inserted.rowcount == 0:
        outcome = Outcome.DUPLICATE
    elif event.report is None:
        outcome = Outcome.UNKNOWN_TYPE
    else:
        outcome = Outcome(
            await payment_reports.apply_report(
                connection, provider=provider, report=event.report, now=now
            )
        )
        await connection.execute(
            sa.update(webhook_inbox)
            .where(webhook_inbox.c.provider == provider)
            .where(webhook_inbox.c.provider_event_id == event.event_id)
            .values(outcome=outcome)
        )
        if outcome is Outcome.UNMATCHED:
            await unmatched.record(
                connection,
                provider=provider,
                kind=unmatched.Kind.WEBHOOK,
                reference=event.event_id,
                payment_id=event.report.payment_id,
                amount=getattr(event.report, "amount", None),
                now=now,
            )
    _log.info(
        "webhook",
        extra={
            "provider": provider,
            "event_id": event.event_id,
            "event_type": event.event_type,
            "sha256": digest.hex(),
            "outcome": outcome,
        },
    )
    return outcome
