"""Deliveries of messages to endpoints: their queue, and the log of their attempts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.webhooks.payload import WebhookMessage
from booking_svc.webhooks.tables import webhook_deliveries, webhook_endpoints, webhook_messages
from mesh.db.jobs import JobQueue
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id
from mesh.paging import id_from_token, to_token

PAUSES = (
    timedelta(seconds=5),
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=20),
)
"""After each failed attempt: eleven attempts in three days."""

LEASE = timedelta(seconds=60)
"""Longer than an attempt may take."""

RETENTION = timedelta(days=30)
_LOGGED_ATTEMPTS = 20
_FORGET_BATCH = 1000


class Status(StrEnum):
    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"


_QUEUE = JobQueue(
    webhook_deliveries,
    is_pending=webhook_deliveries.c.status == Status.PENDING,
    pauses=PAUSES,
    group=webhook_deliveries.c.endpoint_id,
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt. `status_code` is 0 without an answer, and `error` is the reason."""

    time: datetime
    status_code: int
    error: str
    duration_ms: int

    @property
    def is_delivered(self) -> bool:
        return 200 <= self.status_code < 300


@dataclass(frozen=True, slots=True)
class Delivery:
    delivery_id: UUID
    message_id: UUID
    event_type: str
    status: Status
    attempt_count: int
    attempts: tuple[Attempt, ...]
    due_time: datetime | None
    create_time: datetime
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class Leased:
    """A message to be sent now, for the `attempt`-th time since it was last enqueued."""

    delivery_id: UUID
    endpoint_id: UUID
    message_id: UUID
    url: str
    is_enabled: bool
    body: bytes
    attempt: int
    lease_end: datetime


@dataclass(frozen=True, slots=True)
class Page:
    deliveries: tuple[Delivery, ...]
    next_page_token: str
    total_size: int


async def enqueue(
    connection: AsyncConnection,
    *,
    message_id: UUID,
    event_type: str,
    body: bytes,
    endpoint_ids: Sequence[UUID],
    now: datetime,
) -> None:
    """Enqueues a message to endpoints, once to each. Repeating it changes nothing."""
    await connection.execute(
        postgresql.insert(webhook_messages)
        .values(message_id=message_id, event_type=event_type, body=body, create_time=now)
        .on_conflict_do_nothing()
    )
    await connection.execute(
        postgresql.insert(webhook_deliveries)
        .values(
            [
                {
                    "delivery_id": new_id(),
                    "endpoint_id": endpoint_id,
                    "message_id": message_id,
                    "status": Status.PENDING,
                    "due_time": now,
                    "create_time": now,
                }
                for endpoint_id in endpoint_ids
            ]
        )
        .on_conflict_do_nothing()
    )


async def lease_due(
    connection: AsyncConnection,
    *,
    now: datetime,
    limit: int,
    per_endpoint: int,
    busy: Sequence[UUID],
) -> Sequence[Leased]:
    """Leases due messages, at most `per_endpoint` of each endpoint and none of the busy ones."""
    table = webhook_deliveries.c
    rows = await _QUEUE.lease_where(
        connection,
        now=now,
        until=now + LEASE,
        limit=limit,
        per_group=per_endpoint,
        busy_groups=busy,
        joined_on=[
            table.message_id == webhook_messages.c.message_id,
            table.endpoint_id == webhook_endpoints.c.endpoint_id,
        ],
        returning=[
            table.delivery_id,
            table.endpoint_id,
            table.message_id,
            webhook_endpoints.c.url,
            webhook_endpoints.c.is_enabled,
            webhook_messages.c.body,
            table.attempts,
            table.due_time,
        ],
    )
    return [Leased(*tuple(row)) for row in rows]


async def record_attempt(
    connection: AsyncConnection,
    *,
    leased: Leased,
    attempt: Attempt,
    is_final: bool,
    jitter: float,
    now: datetime,
) -> Status:
    """Records an attempt: the message is delivered, due again later, or failed.

    `is_final`: there is no further attempt. `jitter`, 0-1, lengthens the pause before the next
    one by up to a tenth. Changes nothing after the lease was lost.
    """
    retry_time = None
    if not attempt.is_delivered and not is_final:
        retry_time = _QUEUE.retry_time(leased.attempt, now=now, jitter=jitter)
    if attempt.is_delivered:
        status = Status.DELIVERED
    else:
        status = Status.FAILED if retry_time is None else Status.PENDING
    table = webhook_deliveries.c
    entry = sa.func.jsonb_build_array(
        sa.func.jsonb_build_object(
            *("time", attempt.time.isoformat()),
            *("status_code", attempt.status_code),
            *("error", attempt.error),
            *("duration_ms", attempt.duration_ms),
        )
    )
    await _QUEUE.reschedule(
        connection,
        leased.delivery_id,
        due_time=retry_time,
        lease_end=leased.lease_end,
        status=status,
        end_time=now if retry_time is None else None,
        attempt_count=table.attempt_count + 1,
        log=sa.func.jsonb_path_query_array(
            entry.concat(table.log), sa.literal_column(f"'$[0 to {_LOGGED_ATTEMPTS - 1}]'")
        ),
    )
    return status


async def get(connection: AsyncConnection, *, endpoint_id: UUID, delivery_id: UUID) -> Delivery:
    """Raises WEBHOOK_DELIVERY_NOT_FOUND."""
    rows = await connection.execute(
        _select(endpoint_id).where(webhook_deliveries.c.delivery_id == delivery_id)
    )
    row = rows.one_or_none()
    if row is None:
        raise DomainError(
            Reason.WEBHOOK_DELIVERY_NOT_FOUND, "no such delivery", delivery_id=delivery_id
        )
    return _delivery(row)


async def list_page(
    connection: AsyncConnection,
    *,
    endpoint_id: UUID,
    status: Status | None,
    page_size: int,
    page_token: str,
) -> Page:
    """A page of an endpoint's deliveries, newest first."""
    table = webhook_deliveries.c
    matching = table.endpoint_id == endpoint_id
    if status is not None:
        matching &= table.status == status
    query = _select(endpoint_id).where(matching).order_by(table.delivery_id.desc())
    after = id_from_token(page_token)
    if after is not None:
        query = query.where(table.delivery_id < after)
    rows = (await connection.execute(query.limit(page_size + 1))).all()
    count = await connection.execute(
        sa.select(sa.func.count()).select_from(webhook_deliveries).where(matching)
    )
    shown = rows[:page_size]
    return Page(
        tuple(map(_delivery, shown)),
        to_token(str(shown[-1].delivery_id)) if len(rows) > page_size else "",
        count.scalar_one(),
    )


async def resend(
    connection: AsyncConnection, *, endpoint_id: UUID, delivery_id: UUID, now: datetime
) -> Delivery:
    """Enqueues a message again, with all its attempts. The endpoint must be locked.

    Raises WEBHOOK_DELIVERY_NOT_FOUND, or VALIDATION_FAILED for a disabled endpoint.
    """
    await get(connection, endpoint_id=endpoint_id, delivery_id=delivery_id)
    await _refuse_disabled(connection, endpoint_id)
    await connection.execute(
        sa.update(webhook_deliveries)
        .where(webhook_deliveries.c.delivery_id == delivery_id)
        .values(status=Status.PENDING, attempts=0, due_time=now, end_time=None)
    )
    return await get(connection, endpoint_id=endpoint_id, delivery_id=delivery_id)


async def send_test(
    connection: AsyncConnection, *, endpoint_id: UUID, message: WebhookMessage, now: datetime
) -> Delivery:
    """Enqueues a message to one endpoint, whatever it subscribes to. The endpoint must be locked.

    Raises VALIDATION_FAILED for a disabled endpoint.
    """
    await _refuse_disabled(connection, endpoint_id)
    await enqueue(
        connection,
        message_id=message.message_id,
        event_type=message.event_type,
        body=message.body,
        endpoint_ids=[endpoint_id],
        now=now,
    )
    rows = await connection.execute(
        _select(endpoint_id).where(webhook_deliveries.c.message_id == message.message_id)
    )
    return _delivery(rows.one())


async def _refuse_disabled(connection: AsyncConnection, endpoint_id: UUID) -> None:
    is_enabled = await connection.execute(
        sa.select(webhook_endpoints.c.is_enabled).where(
            webhook_endpoints.c.endpoint_id == endpoint_id
        )
    )
    if not is_enabled.scalar_one():
        raise invalid(FieldViolation("webhook_endpoint_id", "the endpoint is disabled"))


async def forget(connection: AsyncConnection, *, now: datetime) -> int:
    """Deletes a batch of deliveries that ended before RETENTION, and of messages without any.

    Returns the number of deliveries.
    """
    table = webhook_deliveries.c
    old = sa.select(table.delivery_id).where(table.end_time < now - RETENTION).limit(_FORGET_BATCH)
    deleted = await connection.execute(
        sa.delete(webhook_deliveries).where(table.delivery_id.in_(old))
    )
    messages = webhook_messages.c
    unused = (
        sa.select(messages.message_id)
        .where(messages.create_time < now - RETENTION)
        .where(~sa.exists().where(table.message_id == messages.message_id))
        .limit(_FORGET_BATCH)
    )
    await connection.execute(sa.delete(webhook_messages).where(messages.message_id.in_(unused)))
    return deleted.rowcount


def _select(endpoint_id: UUID) -> sa.Select[Any]:
    return (
        sa.select(webhook_deliveries, webhook_messages.c.event_type)
        .join(webhook_messages, webhook_messages.c.message_id == webhook_deliveries.c.message_id)
        .where(webhook_deliveries.c.endpoint_id == endpoint_id)
    )


def _delivery(row: sa.Row[Any]) -> Delivery:
    return Delivery(
        row.delivery_id,
        row.message_id,
        row.event_type,
        Status(row.status),
        row.attempt_count,
        tuple(
            Attempt(
                datetime.fromisoformat(entry["time"]),
                entry["status_code"],
                entry["error"],
                entry["duration_ms"],
            )
            for entry in row.log
        ),
        row.due_time,
        row.create_time,
        row.end_time,
    )
