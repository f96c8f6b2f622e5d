"""Watching what is left of an event, by thousands at once.

All watchers of an event share its ticks: what has changed since the tick before, merged
and serialised once. A watcher is a place in that row and nothing else, so a slow one costs
no memory; whoever has fallen behind its beginning gets a fresh snapshot.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from booking_svc.catalogue.availability import AvailabilityCache, Level
from booking_svc.clients.ports import StockChange
from mesh.errors import DomainError, Reason
from mesh.observability import metrics

HEARTBEAT_SECONDS = 15.0
"""Longest silence, below the idle times of what is between us and a browser."""

# Changes are merged for so long before they are sent: longer, the more watchers there are.
_LEAST_INTERVAL_SECONDS = 0.05
_INTERVAL_SECONDS_PER_WATCHER = 0.0001
_MOST_INTERVAL_SECONDS = 0.4

_MAX_TICKS = 64
_MAX_TICK_BYTES = 512 * 1024
_RETRY_SECONDS = 1.0
# Offers may change without the ledger's notice, in another process.
CHECK_SECONDS = 5.0

_WATCHERS = metrics.gauge("availability_watchers", "Streams of availability that are open.")


class Kind(StrEnum):
    SNAPSHOT = "SNAPSHOT"
    CHANGE = "CHANGE"
    HEARTBEAT = "HEARTBEAT"


@dataclass(frozen=True, slots=True)
class Update:
    """What a watcher is sent: all that is left, what has changed, or that nothing has."""

    kind: Kind
    event_id: UUID
    version: int
    offers: Mapping[UUID, int]
    seats: Mapping[UUID, str]


Encode = Callable[[Update], bytes]


@dataclass(frozen=True, slots=True)
class _Tick:
    number: int
    before: int
    after: int
    payload: bytes


class _Show:
    """An event that is watched."""

    def __init__(self, event_id: UUID, encode: Encode) -> None:
        self.event_id = event_id
        self.watchers = 0
        self.level: Level | None = None
        self.number = 0
        self.failure: DomainError | None = None
        self.is_closed = False
        self.changed = asyncio.Event()
        self._encode = encode
        self._version = 0
        self._offers: dict[UUID, int] = {}
        self._dirty_seats: dict[UUID, str] = {}
        self._ticks: deque[_Tick] = deque()
        self._tick_bytes = 0
        # Snapshot and heartbeat, with the tick that they were made after.
        self._kept: dict[Kind, tuple[int, bytes]] = {}
        self._due: asyncio.TimerHandle | None = None

    @property
    def offers(self) -> Mapping[UUID, int]:
        return self._offers

    def adopt(self, level: Level) -> None:
        """Goes on with what a new look has seen: from a snapshot, if it differs."""
        old = self.level
        if old is None or (old.version, old.offers()) != (level.version, level.offers()):
            self.begin(level)
        else:
            self.level = level

    def begin(self, level: Level) -> None:
        """Everything may have changed: all watchers get a snapshot."""
        self._cancel_tick()
        self.level = level
        self._version = level.version
        self._offers = level.offers()
        self._dirty_seats = {}
        self._ticks.clear()
        self._tick_bytes = 0
        self.number += 1
        self._wake()

    def change(self, change: StockChange) -> None:
        """Something has changed: a tick will tell, a moment later."""
        for seat_id, state in change.seats.items():
            if state is not None:
                self._dirty_seats[seat_id] = state
        if self._due is None:
            interval = _LEAST_INTERVAL_SECONDS + self.watchers * _INTERVAL_SECONDS_PER_WATCHER
            self._due = asyncio.get_running_loop().call_later(
                min(interval, _MOST_INTERVAL_SECONDS), self._tick
            )

    def end(self, failure: DomainError | None = None) -> None:
        """Ends all streams; with an error if there is one."""
        self._cancel_tick()
        self.failure = failure
        self.is_closed = True
        self._wake()

    def missed(self, number: int) -> list[bytes] | None:
        """The ticks after one, oldest first; None when they are not all there any more."""
        if number == self.number:
            return []
        if not self._ticks or self._ticks[0].number > number + 1:
            return None
        return [tick.payload for tick in self._ticks if tick.number > number]

    def number_of(self, version: int) -> int | None:
        """The tick up to which a watcher knows who has seen a version."""
        if version == self._version:
            return self.number
        for tick in self._ticks:
            if tick.before <= version < tick.after:
                return tick.number - 1
        return None

    def message(self, kind: Kind) -> bytes:
        """A snapshot or a heartbeat of now; made once for all who get it."""
        number, payload = self._kept.get(kind, (-1, b""))
        if number == self.number or self.level is None:
            return payload
        if kind is Kind.SNAPSHOT:
            # The seats are as of now: what is not told yet must not come after them.
            self._flush()
            seats = self.level.seats or {}
            update = Update(kind, self.event_id, self._version, self._offers, seats)
        else:
            update = Update(kind, self.event_id, self._version, {}, {})
        payload = self._encode(update)
        self._kept[kind] = (self.number, payload)
        return payload

    def _tick(self) -> None:
        self._due = None
        self._flush()

    def _flush(self) -> None:
        """Makes a tick of what has changed since the last one."""
        self._cancel_tick()
        if self.level is None:
            return
        offers = self.level.offers()
        changed = {key: left for key, left in offers.items() if self._offers.get(key) != left}
        version = self.level.version
        if version == self._version and not changed and not self._dirty_seats:
            return
        update = Update(Kind.CHANGE, self.event_id, version, changed, self._dirty_seats)
        self.number += 1
        tick = _Tick(self.number, self._version, version, self._encode(update))
        self._offers, self._dirty_seats, self._version = offers, {}, version
        self._ticks.append(tick)
        self._tick_bytes += len(tick.payload)
        while len(self._ticks) > _MAX_TICKS or self._tick_bytes > _MAX_TICK_BYTES:
            self._tick_bytes -= len(self._ticks.popleft().payload)
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def _cancel_tick(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None


class Watch:
    """All events that are watched in this process."""

    def __init__(self, *, availability: AvailabilityCache, encode: Encode) -> None:
        self._availability = availability
        self._encode = encode
        self._shows: dict[UUID, _Show] = {}
        self._refreshing: dict[UUID, asyncio.Task[None]] = {}
        # What was seen of these has been forgotten since.
        self._stale: set[UUID] = set()
        self._is_closed = False

    async def stream(
        self, *, event_id: UUID, after_version: int | None
    ) -> AsyncGenerator[bytes, None]:
        """A snapshot, then changes; only changes for whoever has seen a recent version.

        Ends when the process stops. Raises EVENT_NOT_FOUND, also when the event is removed.
        """
        level = await self._availability.level(event_id=event_id, with_seats=True)
        show = self._join(event_id, level)
        try:
            known = None if after_version is None else show.number_of(after_version)
            if known == show.number:
                # Nothing is new; that the stream is open must be seen all the same.
                yield show.message(Kind.HEARTBEAT)
            while not show.is_closed:
                changed = show.changed
                missed = None if known is None else show.missed(known)
                if missed is None:
                    payload = show.message(Kind.SNAPSHOT)
                    known = show.number
                    yield payload
                    continue
                if missed:
                    known = show.number
                    for payload in missed:
                        yield payload
                    continue
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    yield show.message(Kind.HEARTBEAT)
            if show.failure is not None:
                raise show.failure
        finally:
            self._leave(show)

    @property
    def shows(self) -> int:
        """Events that are watched."""
        return len(self._shows)

    async def check(self) -> None:
        """One turn of the background loop: looks whether other offers are watched now."""
        await asyncio.sleep(CHECK_SECONDS)
        for event_id, show in tuple(self._shows.items()):
            before = set(show.offers)
            try:
                level = await self._availability.level(event_id=event_id, with_seats=True)
            except DomainError:
                self._refresh(event_id)
                continue
            if set(level.offers()) != before:
                show.begin(level)

    async def run(self) -> None:
        """Checks until cancelled, and then lets the watchers go, so that the process can stop."""
        try:
            while True:
                await self.check()
        finally:
            self._is_closed = True
            for show in tuple(self._shows.values()):
                show.end()
            for task in tuple(self._refreshing.values()):
                task.cancel()

    def _join(self, event_id: UUID, level: Level) -> _Show:
        show = self._shows.get(event_id)
        if show is None:
            show = self._shows[event_id] = _Show(event_id, self._encode)
            show.begin(level)
            self._availability.listen(event_id, lambda change: self._heard(event_id, change))
        if self._is_closed:
            show.end()
        show.watchers += 1
        _WATCHERS.inc()
        return show

    def _leave(self, show: _Show) -> None:
        show.watchers -= 1
        _WATCHERS.dec()
        if show.watchers == 0 and self._shows.get(show.event_id) is show:
            del self._shows[show.event_id]
            self._availability.listen(show.event_id, None)
            show.end()

    def _heard(self, event_id: UUID, change: StockChange | None) -> None:
        if change is None or None in change.seats.values():
            self._refresh(event_id)
        elif event_id not in self._refreshing:
            self._shows[event_id].change(change)

    def _refresh(self, event_id: UUID) -> None:
        """Looks anew, until it succeeds, and goes on with what it sees."""
        self._stale.add(event_id)
        if event_id in self._refreshing or self._is_closed:
            return
        task = asyncio.create_task(self._look(event_id))
        self._refreshing[event_id] = task
        task.add_done_callback(lambda _: self._refreshing.pop(event_id, None))

    async def _look(self, event_id: UUID) -> None:
        while (show := self._shows.get(event_id)) is not None and event_id in self._stale:
            self._stale.discard(event_id)
            try:
                level = await self._availability.level(event_id=event_id, with_seats=True)
            except DomainError as error:
                if error.reason is Reason.EVENT_NOT_FOUND:
                    show.end(error)
                    return
                self._stale.add(event_id)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                show.adopt(level)
        self._stale.discard(event_id)
