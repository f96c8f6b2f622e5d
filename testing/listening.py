"""Waits until an outbox reader listens for notifications."""

import asyncio

import sqlalchemy as sa

from mesh.db.database import Database

# An idle connection whose last statement was LISTEN.
_LISTENERS = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND query LIKE 'LISTEN%' AND state = 'idle'"
)


async def is_listening(database: Database) -> None:
    """Returns when a connection of this database listens on a channel."""
    async with asyncio.timeout(60), database.reading() as connection:
        while not await connection.scalar(_LISTENERS):
            await asyncio.sleep(0.01)
