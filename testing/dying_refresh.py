"""A process that refreshes a session, commits, and waits to be killed before it replies.

Reads lines `<database url> <refresh token> <time>`. For each it forks a process that refreshes as
auth_svc does, prints its pid after the commit and waits. Forks start faster than interpreters.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc.passwords import PasswordHasher
from auth_svc.sessions import REFRESHES_PER_MINUTE
from auth_svc.sign_in import SignIn
from auth_svc.sign_in_guard import SignInGuard
from auth_svc.throttle import LoginThrottle
from auth_svc.tokens import load_or_create_key
from mesh.db.database import Database

REFRESH_KEY = b"key of refresh tokens that outlives the process"
WEEK = timedelta(days=7)


class DyingDatabase(Database):
    """Prints the pid after a commit, and then waits to be killed."""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        async with super().transaction() as connection:
            yield connection
        print(os.getpid(), flush=True)
        signal.pause()


def a_sign_in(database: Database, keys: Path) -> SignIn:
    """A SignIn as a process with the same settings creates it."""
    key = load_or_create_key(keys)
    return SignIn(
        database=database,
        # Starts no thread: a refresh hashes no password.
        hasher=PasswordHasher(cost=4, pepper=b"x" * 32, workers=1),
        guard=SignInGuard(
            LoginThrottle(database=database, link=None, key=b"y" * 32), key=b"y" * 32
        ),
        signing_key=lambda: key,
        refresh_key=REFRESH_KEY,
        access_lifetime=timedelta(minutes=15),
        refresh_lifetime=WEEK,
        refreshes_per_minute=REFRESHES_PER_MINUTE,
    )


def die_refreshing(url: str, token: str, now: datetime, keys: Path) -> NoReturn:
    async def refresh() -> None:
        async with DyingDatabase.open(url, pool_size=1) as database:
            await a_sign_in(database, keys).refresh(refresh_token=token, now=now)

    asyncio.run(refresh())
    raise AssertionError("this process was not killed")


def main() -> None:
    keys = Path(sys.argv[1])
    for line in sys.stdin:
        url, token, now = line.split()
        pid = os.fork()
        if pid == 0:
            die_refreshing(url, token, datetime.fromisoformat(now), keys)
        _, status = os.waitpid(pid, 0)
        print("killed" if os.WIFSIGNALED(status) else "survived", flush=True)


if __name__ == "__main__":
    main()
