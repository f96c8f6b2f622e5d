"""Availability of single events, cached in memory and updated by the ledger's change stream.

One cache per process. The first read of an event asks the ledger; after that the stream updates
it. Without the stream, each event is read from the ledger, at most once per second.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from booking_svc.catalogue.events import Event, Status
from booking_svc.clients.ports import Availability, PoolAvailability, Stock, StockChange
from mesh.deadlines import deadline_in

_log = logging.getLogger(__name__)

MAX_EVENTS = 2_000
MAX_SEATS = 400_000
"""Of all cached events. The least recently used events are evicted first."""

# Limits how long an error in applying the stream could go unnoticed.
_STREAMED_SECONDS = 60.0
# Limits the age of an entry, and the reads of the ledger, without the stream.
_UNSTREAMED_SECONDS = 1.0
# An offer may be added to an unchanged pool, which the stream does not report.
_OFFERS_SECONDS = 1.0
_READ_SECONDS = 2.0

ReadEvent = Callable[[UUID], Awaitable[Event]]
"""Reads an event of the catalogue. Raises EVENT_NOT_FOUND."""

OpenStream = Callable[[], AsyncIterator[Sequence[StockChange]]]
"""Opens the stream of changes from now on. Its first batch is empty."""


@dataclass(slots=True)
class EventStock:
    """The cached stock of an event. `seats` is None until a caller needs them."""

    event: Event
    pools: dict[UUID, PoolAvailability]
    seats: dict[UUID, str] | None
    read_at: float
    offers_read_at: float
    # The last answer of each kind, and the state that it shows.
    answers: dict[str, tuple[object, bytes]] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """Grows with every movement of the event."""
        return sum(pool.version for pool in self.pools.values())

    def availability(self) -> Availability:
        sold = self.sold_pools
        pools = [pool for pool_id, pool in self.pools.items() if pool_id in sold]
        return Availability(
            version=self.version,
            offers=self.offers(),
            seats=self.seats or {},
            capacity=sum(pool.capacity for pool in pools),
            available=sum(pool.available for pool in pools),
            pools=self.pools,
        )

    def offers(self) -> dict[UUID, int]:
        """Available places by offer."""
        return {
            offer.offer_id: pool.available
            if (pool := self.pools.get(offer.pool_id)) is not None
            else 0
            for offer in self.event.offers
        }

    def serialised(self, kind: str, state: object, serialise: Callable[[], bytes]) -> bytes:
        """The result of `serialise`, computed once per version and `state`, the rest that it shows."""
        shown = (self.version, state)
        known, answer = self.answers.get(kind, (None, b""))
        if known != shown:
            answer = serialise()
            self.answers[kind] = (shown, answer)
        return answer

    def status_at(self, now: datetime) -> Status:
        """The event's status, as clients see it."""
        pools = self.pools
        available = sum(pools[pool_id].available for pool_id in self.sold_pools if pool_id in pools)
        return self.event.status_at(now, available=available)

    @property
    def sold_pools(self) -> set[UUID]:
        """The pools that have an offer."""
        return {offer.pool_id for offer in self.event.offers}

    def apply(self, change: StockChange) -> bool:
        """Applies a change. Returns False for one that is older than the cached pools."""
        for pool in change.pools:
            cached = self.pools.get(pool.pool_id)
            if cached is not None and pool.version < cached.version:
                return False
        for pool in change.pools:
            self.pools[pool.pool_id] = PoolAvailability(pool.capacity, pool.available, pool.version)
        if self.seats is not None:
            # A long change comes in several parts with the same version.
            self.answers.clear()
            for seat_id, state in change.seats.items():
                if state is None:
                    self.seats.pop(seat_id, None)
                else:
                    self.seats[seat_id] = state
        return True


Listener = Callable[[StockChange | None], None]
"""Called with each change of an event, and with None when its cached stock was dropped."""


class _Unread(list[StockChange]):
    """The changes since the start of a read, and whether the catalogue's event changed, too."""

    is_outdated = False


class AvailabilityCache:
    def __init__(self, *, stock: Stock, read_event: ReadEvent) -> None:
        self._stock = stock
        self._read_event = read_event
        self._entries: OrderedDict[UUID, EventStock] = OrderedDict()
        self._listeners: dict[UUID, Listener] = {}
        self._reads: dict[tuple[UUID, bool], asyncio.Task[EventStock]] = {}
        # Changes since the start of each running read, which its result may not contain.
        self._unread_changes: dict[UUID, list[_Unread]] = {}
        self._seat_count = 0
        self.is_streaming = False
        # Grows whenever the stream starts or ends.
        self._stream_number = 0

    async def availability(self, *, event_id: UUID, with_seats: bool) -> Availability:
        """The availability of an event. Raises EVENT_NOT_FOUND."""
        return (await self.stock(event_id=event_id, with_seats=with_seats)).availability()

    async def stock(self, *, event_id: UUID, with_seats: bool) -> EventStock:
        """The stock of an event, from the ledger if it is not cached. Raises EVENT_NOT_FOUND."""
        cached = self._entries.get(event_id)
        if cached is None or not self._is_valid(cached, with_seats):
            has_seats = cached is not None and cached.seats is not None
            return await self._read_shared(event_id, with_seats or has_seats)
        self._entries.move_to_end(event_id)
        if time.monotonic() - cached.offers_read_at > _OFFERS_SECONDS:
            cached.offers_read_at = time.monotonic()
            event = await self._read_event(event_id)
            if event != cached.event:
                cached.event = event
        return cached

    def set_listener(self, event_id: UUID, listener: Listener | None) -> None:
        """Calls `listener` for an event's changes from now on; None removes the listener."""
        if listener is None:
            self._listeners.pop(event_id, None)
        else:
            self._listeners[event_id] = listener

    def invalidate(self, event_id: UUID) -> None:
        """Drops an event from the cache, after the commit of a change in the catalogue.

        Later callers do not get the result of a read that began before.
        """
        for changes in self._unread_changes.get(event_id, ()):
            changes.is_outdated = True
        for key in ((event_id, False), (event_id, True)):
            self._reads.pop(key, None)
        cached = self._entries.pop(event_id, None)
        self._seat_count -= len(cached.seats or ()) if cached is not None else 0
        self._notify(event_id, None)

    async def follow(self, open_stream: OpenStream) -> None:
        """Applies the ledger's stream from now on. Raises when the stream breaks."""
        try:
            async for changes in open_stream():
                if not self.is_streaming:
                    # Entries from before the stream may lack changes that it does not send.
                    self.is_streaming = True
                    self._clear()
                for change in changes:
                    self._apply(change)
        finally:
            self.is_streaming = False
            self._clear()

    def unread_changes(self, event_id: UUID) -> Sequence[Sequence[StockChange]]:
        """For each running read of an event: the changes since its start."""
        return self._unread_changes.get(event_id, ())

    def _apply(self, change: StockChange) -> None:
        for changes in self._unread_changes.get(change.event_id, ()):
            changes.append(change)
        cached = self._entries.get(change.event_id)
        if cached is None:
            return
        if any(pool.removed or pool.pool_id not in cached.pools for pool in change.pools):
            # The offers of new and removed pools must be read from the catalogue.
            self.invalidate(change.event_id)
        elif cached.apply(change):
            self._notify(change.event_id, change)

    def _is_valid(self, cached: EventStock, with_seats: bool) -> bool:
        if with_seats and cached.seats is None:
            return False
        age = time.monotonic() - cached.read_at
        return age < (_STREAMED_SECONDS if self.is_streaming else _UNSTREAMED_SECONDS)

    async def _read_shared(self, event_id: UUID, with_seats: bool) -> EventStock:
        """Reads the ledger, once for all concurrent callers."""
        key = (event_id, with_seats)
        task = self._reads.get(key)
        if task is None:
            task = self._reads[key] = asyncio.create_task(self._read(event_id, with_seats))
            task.add_done_callback(lambda done: self._on_read_done(key, done))
        return await asyncio.shield(task)

    def _on_read_done(self, key: tuple[UUID, bool], done: asyncio.Task[EventStock]) -> None:
        if self._reads.get(key) is done:
            del self._reads[key]
        # All callers may be cancelled: asyncio warns about an exception that is not retrieved.
        if not done.cancelled() and (error := done.exception()) is not None:
            _log.debug("reading the ledger failed", exc_info=error)

    async def _read(self, event_id: UUID, with_seats: bool) -> EventStock:
        stream_number = self._stream_number
        changes = _Unread()
        self._unread_changes.setdefault(event_id, []).append(changes)
        try:
            with deadline_in(_READ_SECONDS):
                event = await self._read_event(event_id)
                availability = await self._stock.availability(
                    event_id=event_id, with_seats=with_seats
                )
        finally:
            # By identity: two reads may have received equal changes.
            others = [other for other in self._unread_changes[event_id] if other is not changes]
            if others:
                self._unread_changes[event_id] = others
            else:
                del self._unread_changes[event_id]
        now = time.monotonic()
        seats = dict(availability.seats) if with_seats else None
        stock = EventStock(event, dict(availability.pools), seats, now, now)
        for change in changes:
            stock.apply(change)
        has_removed_pools = any(pool.removed for change in changes for pool in change.pools)
        is_current = stream_number == self._stream_number and not changes.is_outdated
        if is_current and not has_removed_pools:
            self._store(event_id, stock)
        return stock

    def _store(self, event_id: UUID, stock: EventStock) -> None:
        old = self._entries.get(event_id)
        if old is not None and old.seats is not None and stock.seats is None:
            # Cached seats stay with the pools they were read with: with the newer pools of this
            # read, changes that the stream has yet to send would be skipped as old.
            return
        self._entries.pop(event_id, None)
        if old is not None:
            self._seat_count -= len(old.seats or ())
        self._entries[event_id] = stock
        self._seat_count += len(stock.seats or ())
        if old is not None:
            self._notify(event_id, None)
        # Watched events are not evicted.
        evictable = [key for key in self._entries if key not in self._listeners and key != event_id]
        while evictable and (len(self._entries) > MAX_EVENTS or self._seat_count > MAX_SEATS):
            self._seat_count -= len(self._entries.pop(evictable.pop(0)).seats or ())

    def _notify(self, event_id: UUID, change: StockChange | None) -> None:
        listener = self._listeners.get(event_id)
        if listener is not None:
            listener(change)

    def _clear(self) -> None:
        self._stream_number += 1
        self._entries.clear()
        self._seat_count = 0
        for listener in tuple(self._listeners.values()):
            listener(None)
