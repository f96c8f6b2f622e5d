"""Audits one event after the other, for ever, so that a difference is found by us first.

What an audit is, audit.py says. One replica does it for all.
"""

import asyncio
import logging
from uuid import UUID

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.observability import metrics
from stock_svc import audit

_log = logging.getLogger(__name__)

# A few events at a time and a pause: an audit reads all rows of its event.
_BATCH = 20
_PAUSE_SECONDS = 15.0
_FIRST = UUID(int=0)

_AUDITED = metrics.counter("stock_audits", "Events whose stock was recomputed.")
_DIFFERENCES = metrics.gauge(
    "stock_audit_differences", "Differences that the last round of audits found."
)


class Auditor:
    """Goes round all events. `turn` audits some of them and pauses."""

    def __init__(self, database: Database, *, pause_seconds: float = _PAUSE_SECONDS) -> None:
        self._database = database
        self._pause_seconds = pause_seconds
        self._after = _FIRST
        self._found = 0

    async def turn(self) -> None:
        async with self._database.reading() as connection:
            event_ids = await audit.event_ids(connection, after=self._after, limit=_BATCH)
        for event_id in event_ids:
            self._found += len(await self._differences(event_id))
            self._after = event_id
        if self._found:
            _DIFFERENCES.set(self._found)
        if len(event_ids) < _BATCH:
            # The round is over: what it did not find any more is gone.
            _DIFFERENCES.set(self._found)
            self._after, self._found = _FIRST, 0
        await asyncio.sleep(self._pause_seconds)

    async def _differences(self, event_id: UUID) -> tuple[str, ...]:
        try:
            async with self._database.snapshot() as connection:
                found = (await audit.audit(connection, event_id=event_id)).differences
        except DomainError as gone:
            if gone.reason is not Reason.EVENT_NOT_FOUND:
                raise
            return ()
        _AUDITED.inc()
        if found:
            _log.error(
                "the stock of an event does not add up",
                extra={"event_id": str(event_id), "differences": len(found)},
            )
        return found
