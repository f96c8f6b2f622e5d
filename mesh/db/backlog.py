"""Measures the age of the oldest entry of each queue, for alerts on backlogs.

The age shows a backlog independently of the throughput: it is 0 for an empty queue.
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
"""The time since which the oldest entry waits; None for an empty queue."""

_INTERVAL_SECONDS = 10.0

_AGE = metrics.gauge(
    "backlog_age_seconds", "Age of a queue's oldest entry; 0 when the queue is empty.", "queue"
)


async def watch(database: Database, clock: Clock, queues: Mapping[str, OldestSince]) -> None:
    """Updates the ages every 10 s, in one process of the service. Runs until cancelled."""
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
        # The next leader reports the ages. A stale value of this process would keep an alert firing.
        _AGE.clear()
        raise
