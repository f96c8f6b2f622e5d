"""What processes note in memory and store now and then: refusals by cause, durations of calls,
finished admissions, and how PlaceBooking went.

A process that dies loses a few seconds of it: refusals and calls that are not counted, and
admissions that count as active until their end.
"""

import asyncio
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from booking_svc.queueing import admission
from booking_svc.queueing.durations import Durations, slot_of
from booking_svc.queueing.gate import Gate, Refusals
from booking_svc.queueing.steering import SalesMonitor
from booking_svc.queueing.tables import queue_durations, queue_refusals, waiting_rooms
from mesh.clock import Clock
from mesh.db.database import Database

_SECONDS = 2.0


async def run_once(
    database: Database,
    clock: Clock,
    gate: Gate,
    refusals: Refusals,
    durations: Durations,
    monitor: SalesMonitor,
) -> None:
    """One turn of the background loop."""
    await store_finished(database, clock, gate)
    await store_refusals(database, refusals)
    await store_durations(database, clock, durations)
    await monitor.store(database)
    await asyncio.sleep(_SECONDS)


async def store_finished(database: Database, clock: Clock, gate: Gate) -> None:
    """Notes which admitted customers have placed a booking: the next can be admitted."""
    holders: list[tuple[UUID, UUID]] = gate.take_finished()
    if holders:
        async with database.transaction() as connection:
            await admission.finish(connection, holders=holders, now=clock())


async def store_refusals(database: Database, refusals: Refusals) -> None:
    """Adds the refusals since the last call to the counts in the database."""
    counts = refusals.take()
    if not counts:
        return
    rows = postgresql.insert(queue_refusals)
    try:
        async with database.transaction() as connection:
            rooms = set(await connection.scalars(sa.select(waiting_rooms.c.event_id)))
            values = [
                {"event_id": event_id, "cause": cause, "count": count}
                for (event_id, cause), count in sorted(counts.items())
                if event_id in rooms
            ]
            if values:
                await connection.execute(
                    rows.on_conflict_do_update(
                        index_elements=["event_id", "cause"],
                        set_={"count": queue_refusals.c.count + rows.excluded["count"]},
                    ),
                    values,
                )
    except sa.exc.SQLAlchemyError:
        refusals.put_back(counts)
        raise


async def store_durations(database: Database, clock: Clock, durations: Durations) -> None:
    """Adds the calls since the last call to the histograms of the present slot."""
    counts = durations.take()
    if not counts:
        return
    rows = postgresql.insert(queue_durations)
    time = slot_of(clock())
    try:
        async with database.transaction() as connection:
            rooms = set(await connection.scalars(sa.select(waiting_rooms.c.event_id)))
            values = [
                {"event_id": event_id, "call": call, "time": time, "bucket": bucket, "count": count}
                for (event_id, call, bucket), count in sorted(counts.items())
                if event_id in rooms
            ]
            if values:
                await connection.execute(
                    rows.on_conflict_do_update(
                        index_elements=["event_id", "call", "time", "bucket"],
                        set_={"count": queue_durations.c.count + rows.excluded["count"]},
                    ),
                    values,
                )
    except sa.exc.SQLAlchemyError:
        durations.put_back(counts)
        raise
