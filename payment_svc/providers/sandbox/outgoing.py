"""The sandbox's queue of webhooks on their way: durable, so that a kill loses none."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from payment_svc.pacing import backoff
from payment_svc.tables import sandbox_webhooks

# Longer than one delivery may take: nobody else sends the webhook meanwhile.
_LEASE = timedelta(seconds=15)
_FIRST_RETRY_SECONDS = 0.5
_GIVE_UP_AFTER = timedelta(days=3)


@dataclass(frozen=True, slots=True)
class OutgoingWebhook:
    """A webhook to be sent now, for the `attempt`-th time."""

    event_id: str
    payment_id: UUID | None
    body: bytes
    attempt: int
    create_time: datetime


async def enqueue(
    connection: AsyncConnection, *, event_id: str, payment_id: UUID, body: bytes, now: datetime
) -> None:
    """Queues a webhook in the transaction of what it tells about."""
    await connection.execute(
        sa.insert(sandbox_webhooks).values(
            event_id=event_id, payment_id=payment_id, body=body, due_time=now, create_time=now
        )
    )


async def lease_due(
    connection: AsyncConnection, *, now: datetime, limit: int
) -> Sequence[OutgoingWebhook]:
    """Takes webhooks whose time has come; they come back when nobody settles them."""
    due = (
        sa.select(sandbox_webhooks.c.event_id)
        .where(sandbox_webhooks.c.due_time <= now)
        .order_by(sandbox_webhooks.c.due_time)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    rows = await connection.execute(
        sa.update(sandbox_webhooks)
        .where(sandbox_webhooks.c.event_id == due.c.event_id)
        .values(attempts=sandbox_webhooks.c.attempts + 1, due_time=now + _LEASE)
        .returning(
            sandbox_webhooks.c.event_id,
            sandbox_webhooks.c.payment_id,
            sandbox_webhooks.c.body,
            sandbox_webhooks.c.attempts,
            sandbox_webhooks.c.create_time,
        )
    )
    return [
        OutgoingWebhook(row.event_id, row.payment_id, row.body, row.attempts, row.create_time)
        for row in rows
    ]


async def hold_back(
    connection: AsyncConnection, *, event_id: str, until: datetime | None, answer: str
) -> None:
    """Sends a webhook later, or never, without having tried."""
    await connection.execute(
        sa.update(sandbox_webhooks)
        .where(sandbox_webhooks.c.event_id == event_id)
        .values(due_time=until, last_answer=answer)
    )


async def settle(
    connection: AsyncConnection,
    *,
    webhook: OutgoingWebhook,
    is_delivered: bool,
    answer: str,
    now: datetime,
) -> None:
    """Keeps what a try came to: delivered, or due again later, for at most three days."""
    due_time = None
    if not is_delivered and now - webhook.create_time < _GIVE_UP_AFTER:
        due_time = now + backoff(webhook.attempt, first_seconds=_FIRST_RETRY_SECONDS)
    await connection.execute(
        sa.update(sandbox_webhooks)
        .where(sandbox_webhooks.c.event_id == webhook.event_id)
        # Another process may have delivered it after this one's lease ran out.
        .where(sandbox_webhooks.c.deliver_time.is_(None))
        .values(deliver_time=now if is_delivered else None, due_time=due_time, last_answer=answer)
    )
