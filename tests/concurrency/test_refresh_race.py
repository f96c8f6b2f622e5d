"""Concurrent refreshes of one session, on real connections. The control lacks the guard."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest_asyncio
import sqlalchemy as sa

from auth_svc import sessions
from auth_svc.accounts import Role, User, insert_user
from auth_svc.tables import refresh_tokens
from mesh.db.database import Database
from mesh.ids import new_id
from testing.databases import open_patiently
from testing.waiting import wait_for_blocked
from tests.auth_svc.conftest import NOW

TABS = 8
KEY = b"key of the race"
WEEK = timedelta(days=7)


@pytest_asyncio.fixture
async def database(new_database: Callable[[str], str]) -> AsyncIterator[Database]:
    async with open_patiently(new_database("auth_svc"), pool_size=TABS) as opened:
        yield opened


async def a_session(database: Database) -> str:
    """The refresh token of a new session of a new user."""
    user_id = new_id()
    user = User(
        user_id, f"{user_id}@example.com", "Mira Rao", "", "", Role.CUSTOMER, True, NOW, NOW
    )
    async with database.transaction() as connection:
        await insert_user(connection, user=user, password_hash="$2b$04$none")
        begun = await sessions.start(connection, user_id=user_id, idle_lifetime=WEEK, now=NOW)
    return begun.refresh_token


async def refresh(database: Database, token: str) -> str | None:
    """The successor, or None when the session was ended instead."""
    async with database.transaction() as connection:
        rotated = await sessions.rotate(
            connection,
            refresh_token=token,
            key=KEY,
            idle_lifetime=WEEK,
            access_lifetime=WEEK,
            limit_per_minute=sessions.REFRESHES_PER_MINUTE,
            now=NOW,
        )
    return None if rotated is None else rotated.refresh_token


async def naive_refresh(database: Database, token: str) -> str | None:
    """A copy without the guard: checks and replaces the token without a lock."""
    has_hash = refresh_tokens.c.token_hash == sessions.hash_of(token)
    async with database.transaction() as connection:
        row = (await connection.execute(sa.select(refresh_tokens).where(has_hash))).one()
        if row.use_time is not None:
            return None
        successor = secrets.token_urlsafe(32)
        await connection.execute(sa.update(refresh_tokens).where(has_hash).values(use_time=NOW))
        await connection.execute(
            sa.insert(refresh_tokens).values(
                token_hash=sessions.hash_of(successor),
                session_id=row.session_id,
                create_time=NOW,
                expire_time=NOW + WEEK,
            )
        )
    return successor


async def refresh_concurrently(
    refreshing: Callable[[Database, str], Awaitable[str | None]],
    database: Database,
    token: str,
) -> set[str | None]:
    """The distinct results of all tabs that refresh at the same time."""
    return set(await asyncio.gather(*(refreshing(database, token) for _ in range(TABS))))


async def test_the_race_is_real_without_the_guard(database: Database) -> None:
    """Control: without the lock, tabs get different successors or are signed out."""
    async with database.transaction() as connection:
        await connection.execute(sa.text("DROP INDEX refresh_tokens_unused_idx"))
    assert len(await refresh_concurrently(naive_refresh, database, await a_session(database))) > 1


async def test_all_tabs_get_the_same_successor(database: Database) -> None:
    for _ in range(10):
        token = await a_session(database)
        # Three times in a row: a successor works like the first token.
        for _ in range(3):
            [successor] = await refresh_concurrently(refresh, database, token)
            assert successor is not None
            token = successor


async def test_a_refresh_waits_for_the_end_of_its_session(database: Database) -> None:
    """A refresh during the transaction that ends the session waits, and then fails."""
    token = await a_session(database)
    async with database.transaction() as ending:
        await ending.execute(sa.text("UPDATE sessions SET revoke_time = now()"))
        waiting = asyncio.create_task(refresh(database, token))
        await wait_for_blocked(database)
    [outcome] = await asyncio.gather(waiting, return_exceptions=True)
    assert "sign in again" in str(outcome)
