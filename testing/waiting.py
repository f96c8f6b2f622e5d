"""Waiting for a condition, for at most a minute."""

import asyncio
from collections.abc import Callable

import sqlalchemy as sa

from mesh.db.database import Database

_SECONDS = 60

_BLOCKED = sa.text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
# An idle connection whose last statement was LISTEN.
_LISTENERS = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND query LIKE 'LISTEN%' AND state = 'idle'"
)


async def until(condition: Callable[[], bool], *, seconds: float = _SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def wait_for_blocked(database: Database, *, count: int = 1) -> None:
    """Returns when `count` transactions of this database wait for a lock."""
    await _until_counted(database, _BLOCKED, count)


async def wait_for_listener(database: Database) -> None:
    """Returns when a connection of this database listens on a channel."""
    await _until_counted(database, _LISTENERS, 1)


async def _until_counted(database: Database, query: sa.TextClause, count: int) -> None:
    async with asyncio.timeout(_SECONDS), database.reading() as connection:
        while (await connection.execute(query)).scalar_one() < count:
            await asyncio.sleep(0.005)
