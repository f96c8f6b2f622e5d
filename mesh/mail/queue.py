"""The queue of mails, in a table of the service that sends them.

A mail is enqueued in the transaction of its cause, once per key. Its content is deleted when
it has been sent or has failed; its key is kept, so that it is not enqueued again.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.jobs import Backoff, JobQueue
from mesh.ids import new_id

LEASE = timedelta(minutes=3)
"""Longer than a batch may take."""

_PAUSES = Backoff(first_seconds=10, max_seconds=3600)
_MAX_AGE = timedelta(days=3)
_MAX_KEY_LENGTH = 200


class Status(StrEnum):
    QUEUED = "QUEUED"
    SENT = "SENT"
    GIVEN_UP = "GIVEN_UP"


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail to be enqueued.

    `key` names its cause, e.g. `booking-confirmed:<booking id>`: one mail is sent per key.
    It is not sent after `expire_time`.
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
    lease_end: datetime


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
        # Personal data is deleted when it is no longer needed to send the mail.
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
    """Enqueues a mail in the caller's transaction. False when its key was used before."""
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
    """Ends the queued mails to an address, e.g. of an erased account. Returns how many."""
    withdrawn = await connection.execute(
        sa.update(table)
        .where(table.c.recipient == to)
        .where(table.c.status == Status.QUEUED)
        .values(ended(Status.GIVEN_UP, "withdrawn", now))
    )
    return withdrawn.rowcount


async def lease_due(
    connection: AsyncConnection, table: sa.Table, *, now: datetime, limit: int
) -> Sequence[QueuedMail]:
    """Leases due mails to this process."""
    rows = await jobs(table).lease(connection, now=now, until=now + LEASE, limit=limit)
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
            row.due_time,
        )
        for row in rows
    ]
    return sorted(leased, key=lambda mail: mail.mail_id)


async def delete_ended(connection: AsyncConnection, table: sa.Table, *, before: datetime) -> int:
    """Deletes mails that ended before a time, with their keys. Returns how many."""
    deleted = await connection.execute(
        sa.delete(table).where(table.c.status != Status.QUEUED).where(table.c.end_time < before)
    )
    return deleted.rowcount


@functools.cache
def jobs(table: sa.Table) -> JobQueue:
    """The mails of a table as jobs, which die after three days."""
    is_queued = table.c.status == Status.QUEUED
    return JobQueue(table, is_pending=is_queued, pauses=_PAUSES, max_age=_MAX_AGE)


def ended(status: Status, answer: str, now: datetime) -> dict[str, Any]:
    """The values of a mail that has ended: without its content."""
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
