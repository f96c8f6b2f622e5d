"""Waiting rooms in the memory of this process, from which polls are answered.

Each room is read at most twice a second, however many ask. While the database is away, answers
come from what was read last, for a minute: places in line do not change by themselves.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.queueing import waiting_rooms
from booking_svc.queueing.standing import Step, View
from booking_svc.queueing.tables import admission_steps
from mesh import tasks
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.outages import is_outage

FRESH = timedelta(seconds=0.5)
_USABLE = timedelta(minutes=1)
_MAX_ROOMS = 1_000


@dataclass(frozen=True, slots=True)
class _Known:
    view: View
    read_time: datetime


class RoomMemory:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._known: OrderedDict[UUID, _Known] = OrderedDict()
        self._reading: dict[UUID, asyncio.Task[View]] = {}

    async def get(self, event_id: UUID) -> View:
        """A room, at most half a second old. Raises WAITING_ROOM_NOT_FOUND."""
        now = self._clock()
        known = self._known.get(event_id)
        if known is not None and now - known.read_time < FRESH:
            return known.view
        return await self._read_or_known(event_id, known, now)

    def knows(self, event_id: UUID) -> bool:
        """Whether a room was read of late. Reads nothing."""
        return event_id in self._known

    def forget(self, event_id: UUID) -> None:
        """Makes the next call read a room that this process has changed."""
        self._known.pop(event_id, None)

    async def _read_or_known(self, event_id: UUID, known: _Known | None, now: datetime) -> View:
        reading = self._reading.get(event_id)
        if reading is None:
            reading = self._reading[event_id] = tasks.begin(self._read(event_id, known))
            reading.add_done_callback(lambda _: self._reading.pop(event_id, None))
        try:
            return await asyncio.shield(reading)
        except (sa.exc.SQLAlchemyError, OSError) as error:
            if known is None or now - known.read_time > _USABLE or not is_outage(error):
                raise
            return known.view

    async def _read(self, event_id: UUID, known: _Known | None) -> View:
        now = self._clock()
        # Rooms that do not exist are not remembered: made-up ids would displace the others.
        self._known.pop(event_id, None)
        old = None if known is None else known.view
        try:
            async with self._database.reading() as connection:
                view = await read(connection, event_id=event_id, now=now, old=old)
        except (sa.exc.SQLAlchemyError, OSError) as error:
            if known is not None and is_outage(error):
                self._known[event_id] = known
            raise
        self._known[event_id] = _Known(view, now)
        while len(self._known) > _MAX_ROOMS:
            self._known.popitem(last=False)
        return view


async def read(
    connection: AsyncConnection, *, event_id: UUID, now: datetime, old: View | None = None
) -> View:
    """A room with its steps; those that `old` has are not read again.

    Raises WAITING_ROOM_NOT_FOUND.
    """
    room = await waiting_rooms.get(connection, event_id=event_id)
    if old is not None and old.room.room_id != room.room_id:
        old = None
    step = admission_steps.c
    is_of_room = step.event_id == event_id
    if old is not None:
        known, ended_below = list(old.steps), old.ended_below
    else:
        ended = sa.select(sa.func.max(step.admitted)).where(is_of_room, step.expire_time <= now)
        known, ended_below = [], await connection.scalar(ended) or 0
    after = known[-1].admitted if known else ended_below
    if room.admitted > after:
        rows = await connection.execute(
            sa.select(step.admitted, step.time, step.expire_time)
            .where(is_of_room, step.admitted > after)
            .order_by(step.admitted)
        )
        known += [Step(*row) for row in rows]
    # The later a step, the later its admissions end (admission.py).
    over = sum(1 for made in known if made.expire_time <= now)
    if over:
        ended_below = known[over - 1].admitted
    draw = None if old is None or not old.room.is_drawn else old.draw
    return View.of(room, known[over:], ended_below=ended_below, now=now, draw=draw)
