"""The queue of mails, a table of the service that sends them.

A mail is written in the transaction of its cause and under a key, so that it exists
exactly when the cause does, and once. What a mail says is deleted as soon as it is
sent or given up; its key stays, so that it is not queued a second time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.ids import new_id

LEASE = timedelta(minutes=3)
"""Longer than a batch may take: nobody else sends its mails meanwhile."""

GIVE_UP_AFTER = timedelta(days=3)
"""From then on a mail that no server took is given up."""

_MAX_KEY_LENGTH = 200
_FIRST_RETRY_SECONDS = 10.0
_MAX_RETRY_SECONDS = 3600.0


class Status(StrEnum):
    QUEUED = "QUEUED"
    SENT = "SENT"
    GIVEN_UP = "GIVEN_UP"


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail to be queued.

    `key` names its cause, e.g. `booking-confirmed:<booking id>`: one mail is sent per key.
    After `expire_time` it would be of no use any more and is not sent.
    """

    to: str
    subject: str
    text: str
    html: str
    key: str
    expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class QueuedMail:
    """A mail to be sent now, for the `attempt`-th time."""

    mail_id: UUID
    key: str
    to: str
    subject: str
    text: str
    html: str
    attempt: int
    create_time: datetime
    expire_time: datetime | None


def mail_table(metadata: sa.MetaData) -> sa.Table:
    """The table of a service's mails, for its tables.py."""
    return sa.Table(
        "mails",
        metadata,
        sa.Column("mail_id", postgresql.UUID(as_uuid=True), primary_key=True),
        sa.Column("key", sa.Text, nullable=False, unique=True),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("recipient", sa.Text),
        sa.Column("subject", sa.Text),
        sa.Column("text", sa.Text),
        sa.Column("html", sa.Text),
        sa.Column("due_time", sa.DateTime(timezone=True)),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("last_answer", sa.Text),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True)),
        sa.Column("end_time", sa.DateTime(timezone=True)),
        sa.CheckConstraint("status IN ('QUEUED', 'SENT', 'GIVEN_UP')", name="status"),
        sa.CheckConstraint(f"length(key) <= {_MAX_KEY_LENGTH}", name="key_length"),
        # Personal data is kept for as long as it is needed to send the mail, and no longer.
        sa.CheckConstraint(
            "CASE status WHEN 'QUEUED' THEN num_nulls(recipient, subject, text, html, due_time) = 0"
            " AND end_time IS NULL"
            " ELSE num_nonnulls(recipient, subject, text, html, due_time) = 0"
            " AND end_time IS NOT NULL END",
            name="content_while_queued",
        ),
        sa.Index("mails_due_time_idx", "due_time", postgresql_where=sa.text("status = 'QUEUED'")),
        sa.Index("mails_end_time_idx", "end_time", postgresql_where=sa.text("status <> 'QUEUED'")),
    )


async def enqueue(
    connection: AsyncConnection, table: sa.Table, mail: Mail, *, now: datetime
) -> bool:
    """Queues a mail in the caller's transaction. False when its key was used before."""
    inserted = await connection.execute(
        postgresql.insert(table)
        .values(
            mail_id=new_id(),
            key=mail.key,
            status=Status.QUEUED,
            recipient=mail.to,
            subject=mail.subject,
            text=mail.text,
            html=mail.html,
            due_time=now,
            create_time=now,
            expire_time=mail.expire_time,
        )
        .on_conflict_do_nothing(index_elements=["key"])
    )
    return inserted.rowcount == 1


async def withdraw(connection: AsyncConnection, table: sa.Table, *, to: str, now: datetime) -> int:
    """Gives up what is queued for an address, e.g. of an erased account. Returns how many."""
    ended = await connection.execute(
        sa.update(table)
        .where(table.c.recipient == to)
        .where(table.c.status == Status.QUEUED)
        .values(_ended(Status.GIVEN_UP, "withdrawn", now))
    )
    return ended.rowcount


async def lease_due(
    connection: AsyncConnection, table: sa.Table, *, now: datetime, limit: int
) -> Sequence[QueuedMail]:
    """Takes mails whose time has come; they come back when nobody settles them."""
    due = (
        sa.select(table.c.mail_id)
        .where(table.c.status == Status.QUEUED)
        .where(table.c.due_time <= now)
        .order_by(table.c.due_time)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    rows = await connection.execute(
        sa.update(table)
        .where(table.c.mail_id == due.c.mail_id)
        .values(attempts=table.c.attempts + 1, due_time=now + LEASE)
        .returning(*table.c)
    )
    leased = [
        QueuedMail(
            row.mail_id,
            row.key,
            row.recipient,
            row.subject,
            row.text,
            row.html,
            row.attempts,
            row.create_time,
            row.expire_time,
        )
        for row in rows
    ]
    # UPDATE … RETURNING has no order of its own.
    return sorted(leased, key=lambda mail: mail.mail_id)


async def end(
    connection: AsyncConnection,
    table: sa.Table,
    *,
    mail: QueuedMail,
    status: Status,
    answer: str,
    now: datetime,
) -> None:
    """Ends a mail: sent, or given up. Nothing of what it said is kept."""
    await connection.execute(_settling(table, mail).values(_ended(status, answer, now)))


async def put_off(
    connection: AsyncConnection, table: sa.Table, *, mail: QueuedMail, answer: str, now: datetime
) -> None:
    """The server wants this mail later: doubles its pause each time, at most an hour."""
    doublings = min(mail.attempt - 1, 16)
    seconds = min(_FIRST_RETRY_SECONDS * 2**doublings, _MAX_RETRY_SECONDS)
    await connection.execute(
        _settling(table, mail).values(due_time=now + timedelta(seconds=seconds), last_answer=answer)
    )


async def put_back(
    connection: AsyncConnection, table: sa.Table, *, mail: QueuedMail, due_time: datetime
) -> None:
    """The mail was not tried, because no server was there: nothing counts against it."""
    await connection.execute(
        _settling(table, mail).values(attempts=table.c.attempts - 1, due_time=due_time)
    )


async def oldest_queued(connection: AsyncConnection, table: sa.Table) -> datetime | None:
    """Since when the mail that waits longest waits; None when none does."""
    oldest: datetime | None = await connection.scalar(
        sa.select(sa.func.min(table.c.create_time)).where(table.c.status == Status.QUEUED)
    )
    return oldest


async def forget(connection: AsyncConnection, table: sa.Table, *, before: datetime) -> int:
    """Deletes mails that ended before a time. Returns how many."""
    deleted = await connection.execute(
        sa.delete(table).where(table.c.status != Status.QUEUED).where(table.c.end_time < before)
    )
    return deleted.rowcount


def _settling(table: sa.Table, mail: QueuedMail) -> sa.Update:
    """Only for the lease that `mail` was taken under: a later one has another number."""
    return (
        sa.update(table)
        .where(table.c.mail_id == mail.mail_id)
        .where(table.c.status == Status.QUEUED)
        .where(table.c.attempts == mail.attempt)
    )


def _ended(status: Status, answer: str, now: datetime) -> dict[str, object]:
    return {
        "status": status,
        "recipient": None,
        "subject": None,
        "text": None,
        "html": None,
        "due_time": None,
        "last_answer": answer,
        "end_time": now,
    }
