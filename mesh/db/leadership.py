"""Loops that run in one process at a time: sweepers, housekeeping, reconcilers.

Work that is leased row by row (`FOR UPDATE SKIP LOCKED`) needs none of this: all replicas
share it. The lock is a session's, so it is free as soon as its holder dies. Somebody who
lost it without noticing finds out within seconds; a loop must be merely wasteful, never
wrong, when two run for so long.
"""

import asyncio
import logging
import zlib
from collections.abc import Awaitable, Callable

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.database import Database
from mesh.observability import metrics
from mesh.tasks import forever

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 2.0
# The first half of the lock's key, so that no other advisory lock is met.
_LOCK_CLASS = 0x6C656164  # "lead"

_LEADS = metrics.gauge("loop_leads", "1 in the process that runs a loop for all.", "loop")


async def forever_alone(
    database: Database,
    name: str,
    turn: Callable[[], Awaitable[None]],
    *,
    retry_seconds: float = 1.0,
) -> None:
    """`tasks.forever` in one process of the service at a time. Runs until cancelled."""
    leads = _LEADS.labels(name)
    while True:
        try:
            async with database.session() as session:
                while not await _take(session, name):
                    await asyncio.sleep(_RETRY_SECONDS)
                _log.info("leading", extra={"loop": name})
                with leads.track_inprogress():
                    await _while_held(session, forever(name, turn, retry_seconds=retry_seconds))
        except (OSError, sa.exc.SQLAlchemyError) as error:
            _log.warning(
                "lost the lead of a loop", extra={"loop": name, "error": type(error).__name__}
            )
        await asyncio.sleep(_RETRY_SECONDS)


async def _take(session: AsyncConnection, name: str) -> bool:
    taken = await session.execute(
        sa.text("SELECT pg_try_advisory_lock(:class, :name)"),
        {"class": _LOCK_CLASS, "name": zlib.crc32(name.encode()) - 2**31},
    )
    return bool(taken.scalar_one())


async def _while_held(session: AsyncConnection, loop: Awaitable[None]) -> None:
    """Runs a loop until the session, and so its lock, is gone."""
    running = asyncio.ensure_future(loop)
    try:
        while not running.done():
            await asyncio.wait({running}, timeout=_LOOK_SECONDS)
            await session.execute(sa.text("SELECT 1"))
    finally:
        running.cancel()
        await asyncio.wait({running})
