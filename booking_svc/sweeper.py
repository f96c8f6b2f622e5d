"""Ends unpaid bookings whose hold is over. The ledger frees their places by itself."""

import asyncio
from collections.abc import Callable

from booking_svc import bookings, lifecycle
from booking_svc.bookings import Status
from mesh.clock import Clock
from mesh.database import Database

INTERVAL_SECONDS = 1.0
_BATCH = 200


async def sweep(database: Database, clock: Clock) -> int:
    """Expires one batch. Returns how many; safe to run in several processes at once."""
    now = clock()
    async with database.transaction() as connection:
        lapsed = await lifecycle.lapsed(connection, now=now, limit=_BATCH)
        for booking_id in lapsed:
            booking = await bookings.get(connection, booking_id=booking_id)
            await lifecycle.end_unpaid(
                connection, booking=booking, to=Status.EXPIRED, reason="not paid in time", now=now
            )
        return len(lapsed)


async def run_once(database: Database, clock: Clock, on_owed: Callable[[], None]) -> None:
    """One turn of the background loop."""
    expired = await sweep(database, clock)
    if expired:
        on_owed()
    if expired < _BATCH:
        await asyncio.sleep(INTERVAL_SECONDS)
