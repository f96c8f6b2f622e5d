"""The ledger's change stream without gRPC, for booking_svc's tests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

from booking_svc.catalogue import events, proto, sold_out
from booking_svc.catalogue.availability import AvailabilityCache
from booking_svc.catalogue.availability_stream import AvailabilityStreams, Update
from booking_svc.catalogue.events import Event
from booking_svc.catalogue.seat_states import SeatOrders
from booking_svc.clients.ports import Availability, PoolChange, StockChange
from booking_svc.clients.stock import StockChanges, StockClient
from booking_svc.tables import event_cursors
from boxoffice.stock.v1.stock_change_service_pb2 import StreamChangesRequest, StreamChangesResponse
from mesh.db.consumer import EventConsumer
from mesh.db.outbox import OutboxReader
from stock_svc import tables as stock_tables
from stock_svc.servicers.stock_changes import StockChangeServicer
from testing.booking_harness import BookingHarness, stock_stub


class Connection:
    """The stub that booking_svc calls. `cut` breaks the connection."""

    def __init__(self, reader: OutboxReader) -> None:
        self._servicer = StockChangeServicer(reader)
        self._cut = asyncio.Event()

    def cut(self) -> None:
        self._cut.set()
        self._cut = asyncio.Event()

    async def StreamChanges(
        self, request: StreamChangesRequest, *, wait_for_ready: bool
    ) -> AsyncIterator[StreamChangesResponse]:
        cut = asyncio.create_task(self._cut.wait())
        stream = self._servicer.StreamChanges(request, None)  # type: ignore[arg-type]
        following: asyncio.Future[StreamChangesResponse] | None = None
        try:
            while True:
                following = asyncio.ensure_future(anext(stream))
                await asyncio.wait({following, cut}, return_when=asyncio.FIRST_COMPLETED)
                if cut.done():
                    raise ConnectionError("the connection was cut")
                yield await following
        finally:
            cut.cancel()
            if following is not None:
                # It may be reading: its connection must be returned before the database closes.
                following.cancel()
                await asyncio.wait({following})


class CountedStock(StockClient):
    """Counts the reads of the ledger. `gate` delays a read after it has read."""

    reads = 0
    gate: Callable[[], Awaitable[None]] | None = None

    async def availability(self, *, event_id: UUID, with_seats: bool) -> Availability:
        self.reads += 1
        availability = await super().availability(event_id=event_id, with_seats=with_seats)
        if self.gate is not None:
            await self.gate()
        return availability


class Feed:
    """The cache, streams and consumer of stock changes of one booking_svc process."""

    def __init__(self, harness: BookingHarness, connection: Connection) -> None:
        self.harness = harness
        self.connection = connection
        self.stock = CountedStock(stock_stub(harness.ledger, harness.clock))
        self.availability = AvailabilityCache(stock=self.stock, read_event=self._read)
        self.updates: list[Update] = []
        self.orders = SeatOrders(harness.database)
        self.streams = AvailabilityStreams(
            availability=self.availability, orders=self.orders, encode=self._encode
        )
        self._changes = StockChanges(connection)  # type: ignore[arg-type]
        self.consumer = EventConsumer(
            stream="stock_svc",
            database=harness.database,
            cursors=event_cursors,
            clock=harness.clock,
            open_stream=self._changes.open,
            apply=sold_out.apply,
        )

    async def follow(self) -> None:
        """Follows the stream as tasks.forever does, without its pause."""
        while True:
            with suppress(ConnectionError):
                await self.availability.follow(self._changes.open_now)

    async def caught_up(self, event: Event) -> None:
        """Waits until the cache equals the ledger."""
        async with asyncio.timeout(60):
            while True:
                expected = await self.harness.stock.availability(
                    event_id=event.event_id, with_seats=True
                )
                cached = await self.availability.availability(
                    event_id=event.event_id, with_seats=True
                )
                if (cached.version, cached.offers, cached.seats) == (
                    expected.version,
                    expected.offers,
                    expected.seats,
                ):
                    return
                await asyncio.sleep(0.01)

    @staticmethod
    def a_change(event_id: UUID, pool_id: UUID, *, available: int, version: int) -> StockChange:
        """A change of a pool of 10 places."""
        return StockChange(event_id, (PoolChange(pool_id, 10, available, version, False),), {})

    async def _read(self, event_id: UUID) -> Event:
        async with self.harness.database.reading() as connection:
            return await events.get(connection, event_id=event_id)

    def _encode(self, update: Update) -> bytes:
        self.updates.append(update)
        return proto.availability_update(update)


@asynccontextmanager
async def a_feed(harness: BookingHarness) -> AsyncIterator[Feed]:
    """A feed that follows the ledger."""
    reader = OutboxReader(harness.ledger, stock_tables.outbox)
    feed = Feed(harness, Connection(reader))
    running: list[asyncio.Task[Any]] = [
        asyncio.create_task(reader.listen()),
        asyncio.create_task(feed.follow()),
    ]
    try:
        async with asyncio.timeout(60):
            while not feed.availability.is_streaming:
                await asyncio.sleep(0.005)
        yield feed
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
