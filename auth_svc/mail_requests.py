"""Requests for mails by anonymous callers, by e-mail address.

A request does the same work for every address: it writes a row. A loop looks up the account and
queues the mail, so neither the answer nor its time tells which addresses have accounts.
"""

from datetime import datetime, timedelta
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc.accounts import User, find_by_email_key
from auth_svc.mailing import Mailing
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.text import email_key

MIN_PAUSE = timedelta(minutes=1)
MAX_PER_HOUR = 5
"""Limit of mails of one kind to one account, whatever the number of requests."""

_BATCH = 20


class Issue(Protocol):
    """Queues the mail to an active account, if it is due."""

    async def __call__(
        self, connection: AsyncConnection, mailing: Mailing, user: User, /, *, now: datetime
    ) -> None: ...


async def record(
    connection: AsyncConnection, table: sa.Table, *, email: str, now: datetime
) -> None:
    """Records a request for this address. The same work for every address."""
    await connection.execute(
        postgresql.insert(table)
        .values(email_key=email_key(email), create_time=now)
        # A request is pending already: one mail is enough.
        .on_conflict_do_nothing()
    )


async def answer_due(
    database: Database, table: sa.Table, issue: Issue, mailing: Mailing, clock: Clock
) -> int:
    """One turn of the loop, which any number of processes may run. Returns how many it answered."""
    async with database.transaction() as connection:
        count = await answer(connection, table, issue, mailing, now=clock())
    if count:
        mailing.wake()
    return count


async def answer(
    connection: AsyncConnection, table: sa.Table, issue: Issue, mailing: Mailing, *, now: datetime
) -> int:
    """Calls `issue` for each request whose address has an active account. Returns how many requests."""
    taken = (
        sa.select(table.c.email_key)
        .order_by(table.c.create_time)
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
        .cte("taken")
    )
    deleted = await connection.execute(
        sa.delete(table).where(table.c.email_key == taken.c.email_key).returning(table.c.email_key)
    )
    keys = deleted.scalars().all()
    for key in sorted(keys):
        user = await find_by_email_key(connection, key=key)
        if user is not None and user.is_active:
            await issue(connection, mailing, user, now=now)
    return len(keys)


async def may_have_mail(
    connection: AsyncConnection, tokens: sa.Table, user: User, *, now: datetime
) -> bool:
    """Whether the limits allow another mail. `tokens` has a row for each mail that was queued."""
    last_hour = await connection.execute(
        sa.select(sa.func.count(), sa.func.max(tokens.c.create_time))
        .where(tokens.c.user_id == user.user_id)
        .where(tokens.c.create_time > now - timedelta(hours=1))
    )
    count, newest = last_hour.one()
    return count < MAX_PER_HOUR and (newest is None or now - newest >= MIN_PAUSE)
