"""auth_svc is killed between the commit of a refresh and its reply.

The client retries with the same token, at another process.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from auth_svc import sessions
from auth_svc.accounts import Role, User, insert_user
from auth_svc.tables import refresh_tokens
from mesh.db.database import Database
from mesh.errors import Reason
from mesh.ids import new_id
from mesh.paths import ROOT
from testing.databases import open_patiently
from testing.dying_refresh import WEEK, a_sign_in
from tests.auth_svc.conftest import refusal_of, rows

RUNS, LONG_RUNS = 25, 1000
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest_asyncio.fixture
async def database(new_database: Callable[[str], str]) -> AsyncIterator[Database]:
    async with open_patiently(new_database("auth_svc")) as opened:
        yield opened


@asynccontextmanager
async def a_service_that_dies(keys: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "testing.dying_refresh",
        str(keys),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        assert await process.wait() == 0


async def a_session(database: Database) -> str:
    user_id = new_id()
    user = User(
        user_id, f"{user_id}@example.com", "Mira Rao", "", "", Role.CUSTOMER, True, NOW, NOW
    )
    async with database.transaction() as connection:
        await insert_user(connection, user=user, password_hash="$2b$04$none")
        begun = await sessions.start(connection, user_id=user_id, idle_lifetime=WEEK, now=NOW)
    return begun.refresh_token


@pytest.mark.timeout(1800)
async def test_killed_between_commit_and_reply(
    database: Database, tmp_path: Path, is_long: bool
) -> None:
    """Kills 25 real processes with SIGKILL, 1,000 with --long; no session is lost."""
    runs = LONG_RUNS if is_long else RUNS
    now, first = NOW, await a_session(database)
    token = first
    # The process that answers the retry shares only database and settings with the killed one.
    other = a_sign_in(database, tmp_path)
    async with a_service_that_dies(tmp_path) as service:
        assert service.stdin is not None
        assert service.stdout is not None
        for run in range(runs):
            line = f"{database.url} {token} {now.isoformat()}\n"
            service.stdin.write(line.encode())
            pid = int(await service.stdout.readline())
            os.kill(pid, signal.SIGKILL)
            assert await service.stdout.readline() == b"killed\n"
            # The refresh was committed before the kill.
            assert len(await rows(database, refresh_tokens)) == run + 2
            retried = await other.refresh(refresh_token=token, now=now + SECOND)
            repeated = await other.refresh(refresh_token=token, now=now + sessions.GRACE)
            assert retried.refresh_token == repeated.refresh_token
            assert len(await rows(database, refresh_tokens)) == run + 2
            token, now = retried.refresh_token, now + timedelta(seconds=20)
    # A used token presented later counts as stolen and ends the session.
    stolen = other.refresh(refresh_token=first, now=now)
    assert (await refusal_of(stolen)).reason is Reason.TOKEN_REUSED
    ended = other.refresh(refresh_token=token, now=now)
    assert (await refusal_of(ended)).reason is Reason.TOKEN_INVALID
