"""How long the oldest thing of a queue has been waiting: what an operator is woken for.

A queue that is empty, or whose oldest is young, is well, however much goes through it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial

from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.leadership import forever_alone
from mesh.observability import metrics

OldestSince = Callable[[AsyncConnection], Awaitable[datetime | None]]
"""Since when the oldest waits; None when nothing does."""

_INTERVAL_SECONDS = 10.0

_AGE = metrics.gauge(
    "backlog_age_seconds", "How long the oldest thing of a queue waits; 0 when none does.", "queue"
)


async def watch(database: Database, clock: Clock, queues: Mapping[str, OldestSince]) -> None:
    """Keeps the ages true, in one process for all. Runs until cancelled."""
    await forever_alone(database, "backlog", partial(_turn, database, clock, queues))


async def _turn(database: Database, clock: Clock, queues: Mapping[str, OldestSince]) -> None:
    try:
        for queue, oldest_since in queues.items():
            async with database.reading() as connection:
                since = await oldest_since(connection)
            age = 0.0 if since is None else (clock() - since).total_seconds()
            _AGE.labels(queue).set(max(0.0, age))
        await asyncio.sleep(_INTERVAL_SECONDS)
    except asyncio.CancelledError:
        # The next leader's are the true ones; an old number that stays would alarm for ever.
        _AGE.clear()
        raise
