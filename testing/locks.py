"""Waits until transactions block each other, for tests of races."""

import asyncio

import sqlalchemy as sa

from mesh.db.database import Database

_SECONDS = 30


async def somebody_waits(database: Database, *, how_many: int = 1) -> None:
    """Returns when `how_many` transactions of this database wait for a lock."""
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(_SECONDS):
        while True:
            async with database.transaction() as connection:
                if (await connection.execute(waiting)).scalar_one() >= how_many:
                    return
            await asyncio.sleep(0.005)
