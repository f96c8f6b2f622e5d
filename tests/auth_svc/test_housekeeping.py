"""Housekeeping deletes expired rows and no others."""

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from auth_svc import housekeeping, password_reset, profile, sessions
from auth_svc.housekeeping import (
    EVENT_RETENTION,
    IDEMPOTENCY_RETENTION,
    RESET_RETENTION,
    SESSION_RETENTION,
)
from auth_svc.tables import (
    idempotency_records,
    login_throttles,
    outbox,
    password_resets,
    refresh_tokens,
)
from auth_svc.tables import sessions as sessions_table
from auth_svc.throttle import FORGET_AFTER
from mesh.db.database import Database
from mesh.ids import new_id
from tests.auth_svc.conftest import ACCESS_LIFETIME, NOW, Accounts, a_sign_up, rows, signed_in

SECOND = timedelta(seconds=1)


async def sweep(database: Database, *, now: datetime) -> int:
    return await housekeeping.sweep(database, access_lifetime=ACCESS_LIFETIME, now=now)


async def test_sessions_are_deleted_a_day_after_their_end(
    accounts: Accounts, database: Database
) -> None:
    ended, alive = await signed_in(accounts), await signed_in(accounts)
    await accounts.refresh(refresh_token=ended.refresh_token, now=NOW)
    first = min(row.session_id for row in await rows(database, sessions_table))
    async with database.transaction() as connection:
        await sessions.end_one(
            connection,
            user_id=ended.user.user_id,
            session_id=first,
            access_lifetime=ACCESS_LIFETIME,
            now=NOW,
        )
    await sweep(database, now=NOW + SESSION_RETENTION)
    assert len(await rows(database, sessions_table)) == 2
    await sweep(database, now=NOW + SESSION_RETENTION + SECOND)
    [remaining] = await rows(database, sessions_table)
    assert remaining.session_id != first
    assert {row.session_id for row in await rows(database, refresh_tokens)} == {
        remaining.session_id
    }
    await accounts.refresh(refresh_token=alive.refresh_token, now=NOW + SESSION_RETENTION)
    await sweep(database, now=NOW + sessions.MAX_AGE + SESSION_RETENTION + SECOND)
    assert await rows(database, sessions_table) == []


async def test_reset_tokens_login_counts_and_idempotency_records_expire(
    accounts: Accounts, database: Database
) -> None:
    await accounts.register(**a_sign_up())
    await accounts.ask_for_reset("mira@example.com", now=NOW)
    await accounts.answer_resets(now=NOW)
    async with database.transaction() as connection:
        await connection.execute(
            sa.insert(idempotency_records).values(
                scope="s", key="k", fingerprint=b"f", resource_id=new_id(), create_time=NOW
            )
        )
    await accounts.throttle.admit("mira", now=NOW)
    ends = {
        password_resets: NOW + password_reset.LIFETIME + RESET_RETENTION,
        login_throttles: NOW + FORGET_AFTER,
        idempotency_records: NOW + IDEMPOTENCY_RETENTION,
    }
    for table, end in sorted(ends.items(), key=lambda pair: pair[1]):
        await sweep(database, now=end)
        assert len(await rows(database, table)) == 1, table
        await sweep(database, now=end + SECOND)
        assert await rows(database, table) == [], table


async def test_events_are_deleted_when_tokens_expired_or_newer_events_exist(
    accounts: Accounts, database: Database
) -> None:
    mira = (await signed_in(accounts)).user
    noor = await accounts.register(**a_sign_up(email="noor@example.com"))
    async with database.transaction() as connection:
        for name in ("Mira R.", "Mira S."):
            await profile.update_profile(
                connection, user_id=mira.user_id, full_name=name, phone=None, address=None, now=NOW
            )
        await sessions.end_all(
            connection, user_id=mira.user_id, access_lifetime=ACCESS_LIFETIME, now=NOW
        )

    async def kinds() -> list[str]:
        return sorted(row.event_type for row in await rows(database, outbox))

    await sweep(database, now=NOW + ACCESS_LIFETIME + timedelta(hours=1))
    assert await kinds() == ["access_revoked"] + ["user_changed"] * 4
    await sweep(database, now=NOW + EVENT_RETENTION)
    assert await kinds() == ["user_changed"] * 4
    await sweep(database, now=NOW + 10 * EVENT_RETENTION)
    payloads = {row.aggregate_id: row.payload for row in await rows(database, outbox)}
    assert payloads.keys() == {mira.user_id, noor.user_id}
    assert b"Mira S." in payloads[mira.user_id]


@pytest.mark.parametrize("batch", [1, 2])
async def test_more_rows_than_a_batch_are_deleted(
    accounts: Accounts, database: Database, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "_BATCH", batch)
    for _ in range(5):
        await signed_in(accounts)
    end = NOW + sessions.MAX_AGE + SESSION_RETENTION + SECOND
    assert await sweep(database, now=end) == 10
    assert await rows(database, refresh_tokens) == []
