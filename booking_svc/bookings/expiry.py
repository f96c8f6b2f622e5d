"""Ends unpaid bookings and unpaid changes whose hold is over. The ledger frees their places by itself."""

import asyncio
from collections.abc import Callable

from booking_svc.bookings import modification_store, state_machine
from mesh.clock import Clock
from mesh.db.database import Database

INTERVAL_SECONDS = 1.0
_BATCH = 100


async def sweep(database: Database, clock: Clock) -> int:
    """Expires one batch. Returns how many it looked at; safe in several processes at once.

    A transaction each: a long one would keep payments waiting for its locks.
    """
    now = clock()
    async with database.reading() as connection:
        lapsed = await state_machine.lapsed(connection, now=now, limit=_BATCH)
    for booking_id in lapsed:
        async with database.transaction() as connection:
            await state_machine.expire(connection, booking_id=booking_id, now=now)
    async with database.reading() as connection:
        waiting = await modification_store.lapsed(connection, now=now, limit=_BATCH)
    for booking_id in waiting:
        async with database.transaction() as connection:
            await modification_store.expire(connection, booking_id=booking_id, now=now)
    return len(lapsed) + len(waiting)


async def run_once(database: Database, clock: Clock, on_steps_enqueued: Callable[[], None]) -> None:
    """One turn of the background loop."""
    expired = await sweep(database, clock)
    if expired:
        on_steps_enqueued()
    if expired < _BATCH:
        await asyncio.sleep(INTERVAL_SECONDS)
