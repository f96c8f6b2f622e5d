"""The sandbox's queue of webhooks that are to be sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.jobs import Backoff, JobQueue
from payment_svc.tables import sandbox_webhooks

# Longer than one delivery may take.
_LEASE = timedelta(seconds=15)
_QUEUE = JobQueue(
    sandbox_webhooks,
    pauses=Backoff(first_seconds=0.5, max_seconds=300),
    max_age=timedelta(days=3),
)


@dataclass(frozen=True, slots=True)
class OutgoingWebhook:
    """A webhook to be sent now, for the `attempt`-th time."""

    event_id: str
    payment_id: UUID | None
    body: bytes
    attempt: int
    create_time: datetime
    lease_end: datetime


async def enqueue(
    connection: AsyncConnection, *, event_id: str, payment_id: UUID, body: bytes, now: datetime
) -> None:
    """Enqueues a webhook in the transaction of its cause."""
    await connection.execute(
        sa.insert(sandbox_webhooks).values(
            event_id=event_id, payment_id=payment_id, body=body, due_time=now, create_time=now
        )
    )


async def lease_due(
    connection: AsyncConnection, *, now: datetime, limit: int
) -> Sequence[OutgoingWebhook]:
    """Leases due webhooks to this process."""
    rows = await _QUEUE.lease(connection, now=now, until=now + _LEASE, limit=limit)
    return [
        OutgoingWebhook(
            row.event_id, row.payment_id, row.body, row.attempts, row.create_time, row.due_time
        )
        for row in rows
    ]


async def hold_back(
    connection: AsyncConnection, *, webhook: OutgoingWebhook, until: datetime | None, answer: str
) -> None:
    """Sends a webhook later, or never, without an attempt."""
    await _QUEUE.reschedule(
        connection,
        webhook.event_id,
        due_time=until,
        lease_end=webhook.lease_end,
        last_answer=answer,
    )


async def record_attempt(
    connection: AsyncConnection,
    *,
    webhook: OutgoingWebhook,
    is_delivered: bool,
    answer: str,
    now: datetime,
) -> None:
    """Records an attempt. A webhook that was not delivered is due again, for up to three days."""
    retry_time = _QUEUE.retry_time(webhook.attempt, now=now, age=now - webhook.create_time)
    await _QUEUE.reschedule(
        connection,
        webhook.event_id,
        due_time=None if is_delivered else retry_time,
        lease_end=webhook.lease_end,
        deliver_time=now if is_delivered else None,
        last_answer=answer,
    )
