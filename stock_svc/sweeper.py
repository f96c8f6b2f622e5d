"""The sweeper: expires lapsed holds so that the counters and the ledger say so.

Nothing waits for it, since lapsed holds count as free. One replica does it for all.
"""

import asyncio
import logging
from datetime import datetime

from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.leadership import forever_alone
from stock_svc import expiry

_log = logging.getLogger(__name__)

# One transaction's share, so that its locks are short.
_BATCH = 200
_EVENTS_AT_ONCE = 100


class Sweeper:
    """Sweeps every `pause_seconds`, for as long as the process runs."""

    def __init__(self, database: Database, *, clock: Clock, pause_seconds: float) -> None:
        self._database = database
        self._clock = clock
        self._pause_seconds = pause_seconds

    async def run(self) -> None:
        await forever_alone(self._database, "stock sweeper", self._turn)

    async def _turn(self) -> None:
        expired = await sweep(self._database, now=self._clock())
        if expired:
            _log.info("expired lapsed holds", extra={"reservations": expired})
        await asyncio.sleep(self._pause_seconds)


async def sweep(database: Database, *, now: datetime) -> int:
    """Expires all that has lapsed by now. Returns how many reservations."""
    total = 0
    while True:
        async with database.reading() as connection:
            event_ids = await expiry.events_with_lapsed(connection, limit=_EVENTS_AT_ONCE, now=now)
        expired = 0
        for event_id in event_ids:
            async with database.transaction() as connection:
                expired += await expiry.expire(connection, event_id=event_id, limit=_BATCH, now=now)
        total += expired
        # Nothing left, or what is left is in other transactions' hands.
        if expired == 0:
            return total
