"""Loops that run in one process of a service at a time, elected by a session advisory lock.

PostgreSQL frees the lock when its holder dies. A holder that lost it unnoticed stops within
seconds, so two leaders may overlap: a loop must tolerate that.
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
_CHECK_SECONDS = 5.0
# First half of the lock's key, so that it does not collide with other advisory locks.
_LOCK_CLASS = 0x6C656164  # "lead"

_LEADS = metrics.gauge("loop_leads", "1 in the process that leads a loop.", "loop")


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
                "lost the leadership of a loop", extra={"loop": name, "error": type(error).__name__}
            )
        await asyncio.sleep(_RETRY_SECONDS)


async def _take(session: AsyncConnection, name: str) -> bool:
    taken = await session.execute(
        sa.text("SELECT pg_try_advisory_lock(:class, :name)"),
        {"class": _LOCK_CLASS, "name": zlib.crc32(name.encode()) - 2**31},
    )
    return bool(taken.scalar_one())


async def _while_held(session: AsyncConnection, loop: Awaitable[None]) -> None:
    """Runs a loop until its session, which holds the lock, ends."""
    running = asyncio.ensure_future(loop)
    try:
        while not running.done():
            await asyncio.wait({running}, timeout=_CHECK_SECONDS)
            await session.execute(sa.text("SELECT 1"))
    finally:
        running.cancel()
        await asyncio.wait({running})
