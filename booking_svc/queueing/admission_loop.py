"""The loop that holds draws and admits visitors; one process of the service at a time runs it."""

import asyncio
from collections.abc import Callable, Sequence

from booking_svc.queueing import admission, joining, steering, waiting_rooms
from booking_svc.queueing.waiting_rooms import Room
from mesh.clock import Clock
from mesh.db.database import Database, on_commit
from mesh.observability import metrics

TURN_SECONDS = 1.0
_CLEAN_UP_TURNS = 60

_DRAWS = metrics.counter("queue_draws", "Draws of waiting rooms.")
_ADMITTED = metrics.counter("queue_admitted", "Places that waiting rooms have admitted.")


class AdmissionLoop:
    def __init__(self, database: Database, clock: Clock, *, keys: Sequence[str]) -> None:
        self._database = database
        self._clock = clock
        self._keys = keys
        self._steered = clock()
        self._turns = 0

    async def run_once(self) -> None:
        """One turn of the background loop."""
        await self.turn()
        self._turns += 1
        if self._turns % _CLEAN_UP_TURNS == 0:
            async with self._database.transaction() as connection:
                await joining.delete_old_proofs(connection, now=self._clock())
        await asyncio.sleep(TURN_SECONDS)

    async def turn(self) -> None:
        """Draws what is due and admits whose turn it is, room by room, each in a transaction."""
        async with self._database.reading() as connection:
            rooms = await waiting_rooms.at_work(connection, now=self._clock())
        steers = (self._clock() - self._steered).total_seconds() >= steering.INTERVAL_SECONDS
        sales = None
        if steers:
            self._steered = self._clock()
            async with self._database.transaction() as connection:
                sales = await steering.take_sales(connection)
        for room in rooms:
            if not room.is_drawn:
                await self._draw(room)
            elif room.is_selling(self._clock()) and room.admitted < room.issued:
                await self._admit(room, sales)

    async def _draw(self, room: Room) -> None:
        async with self._database.transaction() as connection:
            drawn = await waiting_rooms.hold_draw(
                connection, room=room, keys=self._keys, now=self._clock()
            )
            if drawn:
                on_commit(connection, _DRAWS.inc)

    async def _admit(self, room: Room, sales: steering.Sales | None) -> None:
        now = self._clock()
        async with self._database.transaction() as connection:
            activity = await admission.activity(connection, room=room, now=now)
            if sales is not None and room.terms.per_minute is None:
                target = steering.next_target(
                    room.active_target,
                    active=activity.active + activity.unclaimed_recent,
                    sales=sales,
                )
                if target != room.active_target:
                    await admission.set_active_target(
                        connection, event_id=room.event_id, target=target
                    )
            to = admission.planned(room, activity, now)
            if to.admitted == room.admitted:
                return
            if await admission.advance(connection, room=room, to=to, now=now):
                on_commit(connection, _counting(to.admitted - room.admitted))


def _counting(admitted: int) -> Callable[[], None]:
    return lambda: _ADMITTED.inc(admitted)
