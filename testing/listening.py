"""Waiting until a reader of an outbox is told of what commits."""

import asyncio

import sqlalchemy as sa

from mesh.db.database import Database

# Then its connection has said so, and waits.
_LISTENERS = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND query LIKE 'LISTEN%' AND state = 'idle'"
)


async def is_listening(database: Database) -> None:
    """Returns when a process listens on a channel of this database."""
    async with asyncio.timeout(60), database.reading() as connection:
        while not await connection.scalar(_LISTENERS):
            await asyncio.sleep(0.01)
