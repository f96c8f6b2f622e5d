"""WatchAvailability: streams of an event's availability to thousands of watchers.

All watchers of an event share a buffer of updates, each merged and serialised once. A watcher is a
position in the buffer, so a slow one costs no memory; one behind the buffer gets a new snapshot.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from booking_svc.catalogue.availability import AvailabilityCache, EventStock
from booking_svc.catalogue.seat_states import Order, SeatOrders
from booking_svc.clients.ports import StockChange
from mesh.errors import DomainError, Reason
from mesh.observability import metrics

HEARTBEAT_SECONDS = 15.0
"""Longest time without a message, below the idle timeouts of proxies and browsers."""

# Changes are merged for this long before an update is sent; it grows with the number of watchers.
_LEAST_INTERVAL_SECONDS = 0.05
_INTERVAL_SECONDS_PER_WATCHER = 0.0001
_MOST_INTERVAL_SECONDS = 0.4

_MAX_UPDATES = 64
_MAX_UPDATE_BYTES = 512 * 1024
_RETRY_SECONDS = 1.0
# Another process may change offers without a change in the ledger.
CHECK_SECONDS = 5.0

_WATCHERS = metrics.gauge("availability_watchers", "Open streams of WatchAvailability.")


class Kind(StrEnum):
    SNAPSHOT = "SNAPSHOT"
    CHANGE = "CHANGE"
    HEARTBEAT = "HEARTBEAT"


@dataclass(frozen=True, slots=True)
class Update:
    """A message to watchers: the whole availability, its changes, or neither."""

    kind: Kind
    event_id: UUID
    version: int
    offers: Mapping[UUID, int]
    seats: Mapping[UUID, str]
    # Of the auditorium's seats, if they are to be written as a string.
    order: Order | None = None


Encode = Callable[[Update], bytes]


@dataclass(frozen=True, slots=True)
class _BufferedUpdate:
    """A serialised update that leads from one version of the stock to another."""

    number: int
    old_version: int
    new_version: int
    payload: bytes


class _WatchedEvent:
    """The shared buffer of updates of one event. `number` is that of the newest update."""

    def __init__(self, event_id: UUID, encode: Encode) -> None:
        self.event_id = event_id
        self.watchers = 0
        self.stock: EventStock | None = None
        self.number = 0
        self.failure: DomainError | None = None
        self.is_closed = False
        self.changed = asyncio.Event()
        self._encode = encode
        self._version = 0
        self._offers: dict[UUID, int] = {}
        self._changed_seats: dict[UUID, str] = {}
        self._buffer: deque[_BufferedUpdate] = deque()
        self._buffer_bytes = 0
        # The last snapshots and heartbeat, each with its order of seats and the number of the
        # update before it.
        self._cached: dict[tuple[Kind, bool], tuple[int, Order | None, bytes]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def offers(self) -> Mapping[UUID, int]:
        return self._offers

    def replace_stock(self, stock: EventStock) -> None:
        """Takes stock that was read again. Sends a snapshot if it differs."""
        old = self.stock
        if old is None or (old.version, old.offers()) != (stock.version, stock.offers()):
            self.restart(stock)
        else:
            self.stock = stock

    def restart(self, stock: EventStock) -> None:
        """Empties the buffer, so that all watchers get a snapshot of `stock`."""
        self._cancel_timer()
        self.stock = stock
        self._version = stock.version
        self._offers = stock.offers()
        self._changed_seats = {}
        self._buffer.clear()
        self._buffer_bytes = 0
        self.number += 1
        self._wake()

    def change(self, change: StockChange) -> None:
        """Merges a change into the next update, which is sent after the interval."""
        for seat_id, state in change.seats.items():
            if state is not None:
                self._changed_seats[seat_id] = state
        if self._timer is None:
            interval = _LEAST_INTERVAL_SECONDS + self.watchers * _INTERVAL_SECONDS_PER_WATCHER
            self._timer = asyncio.get_running_loop().call_later(
                min(interval, _MOST_INTERVAL_SECONDS), self._flush
            )

    def end(self, failure: DomainError | None = None) -> None:
        """Ends all streams of the event, with an error if one is given."""
        self._cancel_timer()
        self.failure = failure
        self.is_closed = True
        self._wake()

    def updates_after(self, number: int) -> list[bytes] | None:
        """The updates after a number, oldest first; None when the buffer lacks some of them."""
        if number == self.number:
            return []
        if not self._buffer or self._buffer[0].number > number + 1:
            return None
        return [update.payload for update in self._buffer if update.number > number]

    def number_of(self, version: int) -> int | None:
        """The number of the update that leads to a version; None when the buffer lacks it."""
        if version == self._version:
            return self.number
        for update in self._buffer:
            if update.old_version <= version < update.new_version:
                return update.number - 1
        return None

    def message(self, kind: Kind, order: Order | None = None) -> bytes:
        """A current snapshot or heartbeat, serialised once for all watchers.

        With an order, a snapshot has the seats as a string.
        """
        key = (kind, order is not None)
        number, known_order, payload = self._cached.get(key, (-1, None, b""))
        if (number == self.number and known_order is order) or self.stock is None:
            return payload
        if kind is Kind.SNAPSHOT:
            # The snapshot has the current seats: pending changes must not follow it.
            self._flush()
            seats = self.stock.seats or {}
            update = Update(kind, self.event_id, self._version, self._offers, seats, order)
        else:
            update = Update(kind, self.event_id, self._version, {}, {})
        payload = self._encode(update)
        self._cached[key] = (self.number, order, payload)
        return payload

    def _flush(self) -> None:
        """Buffers an update with the changes since the previous one."""
        self._cancel_timer()
        if self.stock is None:
            return
        offers = self.stock.offers()
        changed = {
            offer_id: available
            for offer_id, available in offers.items()
            if self._offers.get(offer_id) != available
        }
        version = self.stock.version
        if version == self._version and not changed and not self._changed_seats:
            return
        update = Update(Kind.CHANGE, self.event_id, version, changed, self._changed_seats)
        self.number += 1
        payload = self._encode(update)
        self._buffer.append(_BufferedUpdate(self.number, self._version, version, payload))
        self._buffer_bytes += len(payload)
        self._offers, self._changed_seats, self._version = offers, {}, version
        while len(self._buffer) > _MAX_UPDATES or self._buffer_bytes > _MAX_UPDATE_BYTES:
            self._buffer_bytes -= len(self._buffer.popleft().payload)
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class AvailabilityStreams:
    """The streams of all watched events in this process."""

    def __init__(
        self, *, availability: AvailabilityCache, orders: SeatOrders, encode: Encode
    ) -> None:
        self._availability = availability
        self._orders = orders
        self._encode = encode
        self._watched: dict[UUID, _WatchedEvent] = {}
        self._refreshing: dict[UUID, asyncio.Task[None]] = {}
        # Events whose stock must be read again.
        self._stale: set[UUID] = set()
        self._is_closed = False

    async def stream(
        self, *, event_id: UUID, after_version: int | None, as_string: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """A snapshot, then changes; only changes after a version that the buffer still has.

        With `as_string`, snapshots have the seats as a string.
        Ends when the process stops. Raises EVENT_NOT_FOUND, also when the event is deleted later.
        """
        stock = await self._availability.stock(event_id=event_id, with_seats=True)
        watched = self._join(event_id, stock)
        # An event that sells seats stays in its auditorium.
        auditorium_id = stock.event.auditorium_id
        try:
            position = None if after_version is None else watched.number_of(after_version)
            if position == watched.number:
                # The first message shows the client that the stream is open.
                yield watched.message(Kind.HEARTBEAT)
            while not watched.is_closed:
                changed = watched.changed
                updates = None if position is None else watched.updates_after(position)
                if updates is None:
                    order = None
                    if as_string:
                        # Current: a client that misses new seats gets no second snapshot.
                        order = await self._orders.of(auditorium_id, max_age_seconds=0)
                    payload = watched.message(Kind.SNAPSHOT, order)
                    position = watched.number
                    yield payload
                    continue
                if updates:
                    position = watched.number
                    for payload in updates:
                        yield payload
                    continue
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    yield watched.message(Kind.HEARTBEAT)
            if watched.failure is not None:
                raise watched.failure
        finally:
            self._leave(watched)

    @property
    def event_count(self) -> int:
        """The number of watched events."""
        return len(self._watched)

    async def check(self) -> None:
        """Waits, then sends a snapshot of each event whose set of offers has changed."""
        await asyncio.sleep(CHECK_SECONDS)
        for event_id, watched in tuple(self._watched.items()):
            old_offers = set(watched.offers)
            try:
                stock = await self._availability.stock(event_id=event_id, with_seats=True)
            except DomainError:
                self._refresh(event_id)
                continue
            if set(stock.offers()) != old_offers:
                watched.restart(stock)

    async def run(self) -> None:
        """Checks until cancelled; then ends all streams, so that the process can stop."""
        try:
            while True:
                await self.check()
        finally:
            self._is_closed = True
            for watched in tuple(self._watched.values()):
                watched.end()
            for task in tuple(self._refreshing.values()):
                task.cancel()

    def _join(self, event_id: UUID, stock: EventStock) -> _WatchedEvent:
        watched = self._watched.get(event_id)
        if watched is None:
            watched = self._watched[event_id] = _WatchedEvent(event_id, self._encode)
            watched.restart(stock)
            self._availability.set_listener(
                event_id, lambda change: self._on_change(event_id, change)
            )
        if self._is_closed:
            watched.end()
        watched.watchers += 1
        _WATCHERS.inc()
        return watched

    def _leave(self, watched: _WatchedEvent) -> None:
        watched.watchers -= 1
        _WATCHERS.dec()
        if watched.watchers == 0 and self._watched.get(watched.event_id) is watched:
            del self._watched[watched.event_id]
            self._availability.set_listener(watched.event_id, None)
            watched.end()

    def _on_change(self, event_id: UUID, change: StockChange | None) -> None:
        if change is None or None in change.seats.values():
            self._refresh(event_id)
        elif event_id not in self._refreshing:
            self._watched[event_id].change(change)

    def _refresh(self, event_id: UUID) -> None:
        """Starts to read the stock again, until a read succeeds."""
        self._stale.add(event_id)
        if event_id in self._refreshing or self._is_closed:
            return
        task = asyncio.create_task(self._read_again(event_id))
        self._refreshing[event_id] = task
        task.add_done_callback(lambda _: self._refreshing.pop(event_id, None))

    async def _read_again(self, event_id: UUID) -> None:
        while (watched := self._watched.get(event_id)) is not None and event_id in self._stale:
            self._stale.discard(event_id)
            try:
                stock = await self._availability.stock(event_id=event_id, with_seats=True)
            except DomainError as error:
                if error.reason is Reason.EVENT_NOT_FOUND:
                    watched.end(error)
                    return
                self._stale.add(event_id)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                watched.replace_stock(stock)
        self._stale.discard(event_id)
