"""Periodic deletion of expired rows, in small batches that block no other transaction."""

import asyncio
from datetime import datetime, timedelta

import sqlalchemy as sa

from auth_svc.outbox import REVOCATIONS, USER_CHANGED
from auth_svc.sign_in_guard import ADDRESS_RETENTION
from auth_svc.tables import (
    email_confirmations,
    email_verification_requests,
    idempotency_records,
    login_throttles,
    outbox,
    password_reset_requests,
    password_resets,
    refresh_tokens,
    sessions,
    sign_in_addresses,
)
from auth_svc.throttle import FORGET_AFTER
from mesh.clock import Clock
from mesh.db.database import Database

SESSION_RETENTION = timedelta(days=1)
RESET_RETENTION = timedelta(days=1)
IDEMPOTENCY_RETENTION = timedelta(days=3)
EVENT_RETENTION = timedelta(days=7)
"""A consumer that is down for less than this receives every change, not only the last one."""

_REVOCATION_MARGIN = timedelta(hours=1)
_BATCH = 1000
_INTERVAL_SECONDS = 600.0


async def run_once(database: Database, clock: Clock, *, access_lifetime: timedelta) -> None:
    """Deletes the expired rows, then waits. For a background loop."""
    await sweep(database, access_lifetime=access_lifetime, now=clock())
    await asyncio.sleep(_INTERVAL_SECONDS)


async def sweep(database: Database, *, access_lifetime: timedelta, now: datetime) -> int:
    """Deletes all expired rows. Returns how many."""
    deleted = 0
    for table, is_expired in _expired_rows(access_lifetime=access_lifetime, now=now):
        while (batch := await _delete_batch(database, table, is_expired)) > 0:
            deleted += batch
    return deleted


def _expired_rows(
    *, access_lifetime: timedelta, now: datetime
) -> list[tuple[sa.Table, sa.ColumnElement[bool]]]:
    ended = sa.func.coalesce(sessions.c.revoke_time, sessions.c.expire_time)
    session_is_expired = ended < now - SESSION_RETENTION
    # First the tokens of an expired session, then the session, once it has no token.
    token_is_expired = sa.exists().where(
        sessions.c.session_id == refresh_tokens.c.session_id, session_is_expired
    )
    has_tokens = sa.exists().where(refresh_tokens.c.session_id == sessions.c.session_id)
    newer = outbox.alias()
    is_superseded = sa.exists().where(
        newer.c.aggregate_id == outbox.c.aggregate_id,
        newer.c.event_type == USER_CHANGED,
        newer.c.sequence > outbox.c.sequence,
    )
    return [
        (refresh_tokens, token_is_expired),
        (sessions, session_is_expired & ~has_tokens),
        (password_resets, password_resets.c.expire_time < now - RESET_RETENTION),
        (password_reset_requests, password_reset_requests.c.create_time < now - RESET_RETENTION),
        (email_confirmations, email_confirmations.c.expire_time < now - RESET_RETENTION),
        (
            email_verification_requests,
            email_verification_requests.c.create_time < now - RESET_RETENTION,
        ),
        (login_throttles, login_throttles.c.update_time < now - FORGET_AFTER),
        (sign_in_addresses, sign_in_addresses.c.last_time < now - ADDRESS_RETENTION),
        (idempotency_records, idempotency_records.c.create_time < now - IDEMPOTENCY_RETENTION),
        (
            outbox,
            outbox.c.event_type.in_(REVOCATIONS)
            & (outbox.c.create_time < now - access_lifetime - _REVOCATION_MARGIN),
        ),
        # The newest one of each account stays, for new consumers of the stream.
        (
            outbox,
            (outbox.c.event_type == USER_CHANGED)
            & (outbox.c.create_time < now - EVENT_RETENTION)
            & is_superseded,
        ),
    ]


async def _delete_batch(
    database: Database, table: sa.Table, is_expired: sa.ColumnElement[bool]
) -> int:
    keys = list(table.primary_key.columns)
    batch = sa.select(*keys).where(is_expired).limit(_BATCH).with_for_update(skip_locked=True)
    async with database.transaction() as connection:
        deleted = await connection.execute(sa.delete(table).where(sa.tuple_(*keys).in_(batch)))
    return deleted.rowcount
