"""What is left of events, kept in memory and fed by the ledger's stream of changes.

One per process. The first look at an event asks the ledger; from then on the stream
tells what changed, so that no number of lookers costs the ledger anything. While the
stream is away nothing is kept: each look asks the ledger, once a second at most.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Availability, PoolAvailability, Stock, StockChange
from mesh.deadlines import deadline_in

_log = logging.getLogger(__name__)

MAX_EVENTS = 2_000
MAX_SEATS = 400_000
"""Of all events in memory; those that were not asked for the longest are dropped first."""

# The stream tells all that changes. This bounds how long a fault in that could go unseen.
_TRUSTED_SECONDS = 60.0
# Without the stream a look is this old at most, and the ledger is asked no more often.
_UNFED_SECONDS = 1.0
# An offer may be added to a pool that stays as it is, of which the stream says nothing.
_OFFERS_SECONDS = 1.0
_LOOK_SECONDS = 2.0

Read = Callable[[UUID], Awaitable[Event]]
"""Reads an event of the catalogue. Raises EVENT_NOT_FOUND."""

OpenStream = Callable[[], AsyncIterator[Sequence[StockChange]]]
"""Opens the stream from now on; its first batch is empty."""


@dataclass(slots=True)
class Level:
    """What is known of one event's stock. `seats` is None until they were asked for."""

    event: Event
    pools: dict[UUID, PoolAvailability]
    seats: dict[UUID, str] | None
    read_at: float
    offers_at: float
    # An answer made of it, and of what: many ask for the same.
    answer: tuple[object, bytes] = (None, b"")

    @property
    def version(self) -> int:
        """Grows with every movement of the event."""
        return sum(pool.version for pool in self.pools.values())

    def availability(self) -> Availability:
        own = {offer.pool_id for offer in self.event.offers}
        pools = [pool for pool_id, pool in self.pools.items() if pool_id in own]
        return Availability(
            version=self.version,
            offers=self.offers(),
            seats=self.seats or {},
            capacity=sum(pool.capacity for pool in pools),
            available=sum(pool.available for pool in pools),
            pools=self.pools,
        )

    def offers(self) -> dict[UUID, int]:
        """Places left by offer."""
        return {
            offer.offer_id: pool.available
            if (pool := self.pools.get(offer.pool_id)) is not None
            else 0
            for offer in self.event.offers
        }

    def answered(self, make: Callable[["Level"], bytes]) -> bytes:
        """What `make` makes of it, made once for each state of it."""
        state = (self.version, self.event.revision)
        if self.answer[0] != state:
            self.answer = (state, make(self))
        return self.answer[1]

    def apply(self, change: StockChange) -> bool:
        """Takes over a change unless more is known already. Says whether it did."""
        for pool in change.pools:
            known = self.pools.get(pool.pool_id)
            if known is not None and pool.version < known.version:
                return False
        for pool in change.pools:
            self.pools[pool.pool_id] = PoolAvailability(pool.capacity, pool.available, pool.version)
        if self.seats is not None:
            # A long change comes in parts of the same version.
            self.answer = (None, b"")
            for seat_id, state in change.seats.items():
                if state is None:
                    self.seats.pop(seat_id, None)
                else:
                    self.seats[seat_id] = state
        return True


Listener = Callable[[StockChange | None], None]
"""Hears of each change of an event; of None when what was known of it is known no more."""


class AvailabilityCache:
    def __init__(self, *, stock: Stock, read: Read) -> None:
        self._stock = stock
        self._read = read
        self._levels: OrderedDict[UUID, Level] = OrderedDict()
        self._listeners: dict[UUID, Listener] = {}
        self._looks: dict[tuple[UUID, bool], asyncio.Task[Level]] = {}
        # Changes of events that are being looked at: a look may not have seen them.
        self._meanwhile: dict[UUID, list[list[StockChange]]] = {}
        self._seats = 0
        self.is_fed = False
        # Counts beginnings and ends of the stream.
        self._feeds = 0

    async def availability(self, *, event_id: UUID, with_seats: bool) -> Availability:
        """What is left of an event. Raises EVENT_NOT_FOUND."""
        return (await self.level(event_id=event_id, with_seats=with_seats)).availability()

    async def level(self, *, event_id: UUID, with_seats: bool) -> Level:
        """What is known of an event; asks the ledger if it must. Raises EVENT_NOT_FOUND."""
        known = self._levels.get(event_id)
        if known is None or not self._is_good(known, with_seats):
            has_seats = known is not None and known.seats is not None
            return await self._look(event_id, with_seats or has_seats)
        self._levels.move_to_end(event_id)
        if time.monotonic() - known.offers_at > _OFFERS_SECONDS:
            known.offers_at = time.monotonic()
            known.event = await self._read(event_id)
        return known

    def listen(self, event_id: UUID, listener: Listener | None) -> None:
        """Tells a listener of an event's changes from now on; None ends it."""
        if listener is None:
            self._listeners.pop(event_id, None)
        else:
            self._listeners[event_id] = listener

    def forget(self, event_id: UUID) -> None:
        """The catalogue has changed an event: the next look at it shall be new."""
        known = self._levels.pop(event_id, None)
        self._seats -= len(known.seats or ()) if known is not None else 0
        self._tell(event_id, None)

    async def follow(self, open_stream: OpenStream) -> None:
        """Follows the ledger's stream from now on; raises when it breaks."""
        try:
            async for changes in open_stream():
                if not self.is_fed:
                    # What was looked at before may be older than the stream.
                    self.is_fed = True
                    self._forget_all()
                for change in changes:
                    self._take(change)
        finally:
            self.is_fed = False
            self._forget_all()

    def meanwhile(self, event_id: UUID) -> Sequence[Sequence[StockChange]]:
        """The changes since each look at an event began that has not ended."""
        return self._meanwhile.get(event_id, ())

    def _take(self, change: StockChange) -> None:
        for changes in self._meanwhile.get(change.event_id, ()):
            changes.append(change)
        known = self._levels.get(change.event_id)
        if known is None:
            return
        if any(pool.removed or pool.pool_id not in known.pools for pool in change.pools):
            # Other pools mean other offers, and those are in the catalogue.
            self.forget(change.event_id)
        elif known.apply(change):
            self._tell(change.event_id, change)

    def _is_good(self, known: Level, with_seats: bool) -> bool:
        if with_seats and known.seats is None:
            return False
        age = time.monotonic() - known.read_at
        return age < (_TRUSTED_SECONDS if self.is_fed else _UNFED_SECONDS)

    async def _look(self, event_id: UUID, with_seats: bool) -> Level:
        """Asks the ledger, once for all who look at the same time."""
        key = (event_id, with_seats)
        task = self._looks.get(key)
        if task is None:
            task = self._looks[key] = asyncio.create_task(self._ask(event_id, with_seats))
            task.add_done_callback(lambda done: self._looked(key, done))
        return await asyncio.shield(task)

    def _looked(self, key: tuple[UUID, bool], done: asyncio.Task[Level]) -> None:
        self._looks.pop(key, None)
        # Those who wait may be gone: fetch the error, or asyncio complains about it.
        if not done.cancelled() and (error := done.exception()) is not None:
            _log.debug("a look into the ledger failed", exc_info=error)

    async def _ask(self, event_id: UUID, with_seats: bool) -> Level:
        feed = self._feeds
        changes: list[StockChange] = []
        self._meanwhile.setdefault(event_id, []).append(changes)
        try:
            with deadline_in(_LOOK_SECONDS):
                event = await self._read(event_id)
                left = await self._stock.availability(event_id=event_id, with_seats=with_seats)
        finally:
            others = self._meanwhile[event_id]
            others.remove(changes)
            if not others:
                del self._meanwhile[event_id]
        now = time.monotonic()
        seats = dict(left.seats) if with_seats else None
        level = Level(event, dict(left.pools), seats, now, now)
        for change in changes:
            level.apply(change)
        if feed == self._feeds and not any(pool.removed for c in changes for pool in c.pools):
            self._keep(event_id, level)
        return level

    def _keep(self, event_id: UUID, level: Level) -> None:
        old = self._levels.get(event_id)
        if old is not None and old.seats is not None and level.seats is None:
            # Those seats go on with their own pools: a change that the stream has still to tell
            # is older than the pools of this look, and would be taken for known.
            return
        self._levels.pop(event_id, None)
        if old is not None:
            self._seats -= len(old.seats or ())
        self._levels[event_id] = level
        self._seats += len(level.seats or ())
        if old is not None:
            self._tell(event_id, None)
        # What is watched stays.
        spare = [key for key in self._levels if key not in self._listeners and key != event_id]
        while spare and (len(self._levels) > MAX_EVENTS or self._seats > MAX_SEATS):
            self._seats -= len(self._levels.pop(spare.pop(0)).seats or ())

    def _tell(self, event_id: UUID, change: StockChange | None) -> None:
        listener = self._listeners.get(event_id)
        if listener is not None:
            listener(change)

    def _forget_all(self) -> None:
        self._feeds += 1
        self._levels.clear()
        self._seats = 0
        for listener in tuple(self._listeners.values()):
            listener(None)
