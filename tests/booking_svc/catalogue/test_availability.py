"""The availability cache equals the ledger once it has caught up, and reads it once."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
import sqlalchemy as sa

from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue import event_listing, events, stock_projection
from booking_svc.catalogue.availability import AvailabilityCache
from booking_svc.catalogue.event_listing import Filters, ListedEvent, Totals
from booking_svc.catalogue.events import Event, Status
from booking_svc.catalogue.tables import events as events_table
from booking_svc.clients.ports import PoolChange, StockChange
from mesh.db.outbox import OutboxReader
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc import tables as stock_tables
from testing.booking_harness import BookingHarness, an_offer, stock_stub
from testing.stock_changes import Connection, CountedStock, Feed, a_feed
from tests.booking_svc.catalogue.test_catalogue import an_auditorium


@pytest.fixture
async def feed(harness: BookingHarness) -> AsyncIterator[Feed]:
    async with a_feed(harness) as running:
        yield running


async def a_seated_event(harness: BookingHarness) -> tuple[Event, list[UUID]]:
    auditorium = await an_auditorium(harness)
    event = await harness.an_event(
        an_offer(name="Regular", pool="r", capacity=None, seat_type="REGULAR"),
        an_offer(name="Premium", pool="p", capacity=None, seat_type="PREMIUM"),
        auditorium_id=auditorium.auditorium_id,
    )
    return event, [seat.seat_id for row in auditorium.rows for seat in row.seats]


async def test_concurrent_reads_read_the_ledger_once(harness: BookingHarness, feed: Feed) -> None:
    event = await harness.an_event()
    availability_of = await asyncio.gather(
        *(
            feed.availability.availability(event_id=event.event_id, with_seats=True)
            for _ in range(50)
        )
    )
    assert {availability.available for availability in availability_of} == {10}
    await harness.place(event, quantity=3)
    await feed.caught_up(event)
    assert feed.stock.reads == 1


async def test_seats_and_offers_follow_the_ledger(harness: BookingHarness, feed: Feed) -> None:
    event, seats = await a_seated_event(harness)
    first = await feed.availability.availability(event_id=event.event_id, with_seats=True)
    assert set(first.seats.values()) == {"AVAILABLE"}
    booking = await harness.place(
        event, items=[RequestedItem(None, 1, seats[0]), RequestedItem(None, 1, seats[3])]
    )
    await feed.caught_up(event)
    held = await feed.availability.availability(event_id=event.event_id, with_seats=True)
    assert held.seats[seats[0]] == held.seats[seats[3]] == "HELD"
    assert held.available == 2
    await harness.capture(booking)
    await harness.run_until_idle()
    await feed.caught_up(event)
    sold = await feed.availability.availability(event_id=event.event_id, with_seats=True)
    assert sold.seats[seats[0]] == "SOLD"
    assert feed.stock.reads == 1


async def test_a_change_during_the_first_read_is_not_lost(
    harness: BookingHarness, feed: Feed
) -> None:
    """The cache reads the ledger, then a booking's change arrives, then the read ends."""
    event = await harness.an_event()
    gate, reached = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        reached.set()
        await gate.wait()

    feed.stock.gate = wait
    read = asyncio.create_task(
        feed.availability.availability(event_id=event.event_id, with_seats=False)
    )
    await reached.wait()
    await harness.place(event, quantity=4)
    async with asyncio.timeout(60):
        # The change of the event's creation may arrive in this time, too.
        while not any(
            pool.available == 6
            for changes in feed.availability.unread_changes(event.event_id)
            for change in changes
            for pool in change.pools
        ):
            await asyncio.sleep(0.005)
    gate.set()
    assert (await read).available == 6


async def test_a_read_that_began_before_a_change_of_the_event_is_not_kept(
    harness: BookingHarness, feed: Feed
) -> None:
    event = await harness.an_event()
    gate, reached = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        reached.set()
        await gate.wait()

    async def name() -> str:
        stock = await feed.availability.stock(event_id=event.event_id, with_seats=False)
        return stock.event.name

    feed.stock.gate = wait
    early = asyncio.create_task(name())
    await reached.wait()
    feed.stock.gate = None
    async with harness.database.transaction() as connection:
        await connection.execute(
            sa.update(events_table)
            .where(events_table.c.event_id == event.event_id)
            .values(name="Another Name")
        )
    feed.availability.invalidate(event.event_id)
    assert await name() == "Another Name"
    gate.set()
    assert await early == event.name
    assert await name() == "Another Name"


class ManualStream:
    """A stream that sends the changes that a test passes to it."""

    def __init__(self) -> None:
        self._changes: asyncio.Queue[StockChange] = asyncio.Queue()
        self._applied = 0

    async def open(self) -> AsyncIterator[Sequence[StockChange]]:
        yield ()
        while True:
            yield [await self._changes.get()]
            self._applied += 1

    async def send(self, *changes: StockChange) -> None:
        expected = self._applied + len(changes)
        for change in changes:
            self._changes.put_nowait(change)
        async with asyncio.timeout(60):
            while self._applied < expected:
                await asyncio.sleep(0)


@asynccontextmanager
async def following(availability: AvailabilityCache) -> AsyncIterator[ManualStream]:
    stream = ManualStream()
    task = asyncio.create_task(availability.follow(stream.open))
    async with asyncio.timeout(60):
        while not availability.is_streaming:
            await asyncio.sleep(0)
    yield stream
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def hold_two(
    harness: BookingHarness, event: Event, seats: Sequence[UUID]
) -> list[StockChange]:
    """Holds two seats of one pool. Returns the changes that the stream sends for them."""
    changes = []
    for seat_id in seats:
        before = await harness.stock.availability(event_id=event.event_id, with_seats=False)
        await harness.place(event, items=[RequestedItem(None, 1, seat_id)])
        after = await harness.stock.availability(event_id=event.event_id, with_seats=False)
        [(pool_id, pool)] = after.pools.items() - before.pools.items()
        pool_change = PoolChange(pool_id, pool.capacity, pool.available, pool.version, False)
        changes.append(StockChange(event.event_id, (pool_change,), {seat_id: "HELD"}))
    return changes


async def test_a_read_without_seats_does_not_hide_later_changes_of_seats(
    harness: BookingHarness,
) -> None:
    event, seats = await a_seated_event(harness)
    reader = OutboxReader(harness.ledger, stock_tables.outbox)
    availability = Feed(harness, Connection(reader)).availability
    async with following(availability) as stream:
        cached = await availability.stock(event_id=event.event_id, with_seats=True)
        changes = await hold_two(harness, event, seats[:2])
        # The entry has expired, and the next read is without seats.
        cached.read_at -= 3600
        await availability.availability(event_id=event.event_id, with_seats=False)
        await stream.send(*changes)
        current = await availability.availability(event_id=event.event_id, with_seats=True)
    assert [current.seats[seat_id] for seat_id in seats[:3]] == ["HELD", "HELD", "AVAILABLE"]


async def test_a_slow_read_without_seats_does_not_hide_them_either(harness: BookingHarness) -> None:
    event, seats = await a_seated_event(harness)
    gate, reached = asyncio.Event(), asyncio.Event()

    async def read(_: UUID) -> Event:
        if not reached.is_set():
            reached.set()
            await gate.wait()
        return event

    availability = AvailabilityCache(stock=harness.stock, read_event=read)
    async with following(availability) as stream:
        slow = asyncio.create_task(
            availability.availability(event_id=event.event_id, with_seats=False)
        )
        await reached.wait()
        await availability.availability(event_id=event.event_id, with_seats=True)
        changes = await hold_two(harness, event, seats[:2])
        gate.set()
        await slow
        await stream.send(*changes)
        current = await availability.availability(event_id=event.event_id, with_seats=True)
    assert [current.seats[seat_id] for seat_id in seats[:3]] == ["HELD", "HELD", "AVAILABLE"]


async def test_two_reads_at_once_both_get_the_changes_during_them(harness: BookingHarness) -> None:
    event, seats = await a_seated_event(harness)
    gate, reached = asyncio.Event(), asyncio.Event()
    stock = CountedStock(stock_stub(harness.ledger, harness.clock))

    async def wait() -> None:
        stock.gate = None
        reached.set()
        await gate.wait()

    async def read(_: UUID) -> Event:
        return event

    stock.gate = wait
    availability = AvailabilityCache(stock=stock, read_event=read)
    async with following(availability) as stream:
        slow = asyncio.create_task(
            availability.availability(event_id=event.event_id, with_seats=True)
        )
        await reached.wait()
        await availability.availability(event_id=event.event_id, with_seats=False)
        await stream.send(*await hold_two(harness, event, seats[:2]))
        gate.set()
        current = await slow
    assert [current.seats[seat_id] for seat_id in seats[:3]] == ["HELD", "HELD", "AVAILABLE"]


async def test_an_older_change_is_not_applied(harness: BookingHarness, feed: Feed) -> None:
    event = await harness.an_event()
    await feed.availability.availability(event_id=event.event_id, with_seats=True)
    await harness.place(event, quantity=1)
    await feed.caught_up(event)
    stock = await feed.availability.stock(event_id=event.event_id, with_seats=True)
    version = stock.version
    [pool_id] = stock.pools
    old = feed.a_change(event.event_id, pool_id, available=10, version=0)
    assert not stock.apply(old)
    assert (stock.version, stock.availability().available) == (version, 9)


async def test_after_a_lost_stream_the_ledger_is_read_again(
    harness: BookingHarness, feed: Feed
) -> None:
    event = await harness.an_event()
    await feed.availability.availability(event_id=event.event_id, with_seats=True)
    for _ in range(3):
        feed.connection.cut()
        await harness.place(event)
        await feed.caught_up(event)
    assert feed.stock.reads > 1


async def test_without_the_stream_the_ledger_is_read_once_per_second(
    harness: BookingHarness,
) -> None:
    feed = Feed(harness, Connection(OutboxReader(harness.ledger, stock_tables.outbox)))
    event = await harness.an_event()
    for _ in range(20):
        await feed.availability.availability(event_id=event.event_id, with_seats=True)
    assert feed.stock.reads == 1


async def test_an_unknown_event_has_no_availability(feed: Feed) -> None:
    with pytest.raises(DomainError) as refusal:
        await feed.availability.availability(event_id=new_id(), with_seats=True)
    assert refusal.value.reason is Reason.EVENT_NOT_FOUND


async def test_lists_follow_the_stock(harness: BookingHarness, feed: Feed) -> None:
    """Stored levels update the availability of lists, and ON_SALE ⇄ SOLD_OUT."""
    event = await harness.an_event()
    await harness.an_event(name="another")
    consumer = asyncio.create_task(feed.consumer.run())

    async def listed(status: Status, available: int) -> ListedEvent:
        async with asyncio.timeout(60):
            while True:
                async with harness.database.reading() as connection:
                    page = await event_listing.list_page(
                        connection,
                        filters=Filters(status=status, query="monsoon"),
                        page_size=10,
                        page_token="",
                        totals=Totals(),
                        now=harness.clock(),
                    )
                if [listed.availability.available for listed in page.events] == [available]:
                    return page.events[0]
                await asyncio.sleep(0.01)

    try:
        assert (await listed(Status.ON_SALE, 10)).event == event
        booking = await harness.place(event, quantity=10)
        await listed(Status.SOLD_OUT, 0)
        await harness.cancel(booking.booking_id)
        await harness.run_until_idle()
        await listed(Status.ON_SALE, 10)
    finally:
        consumer.cancel()
        await asyncio.gather(consumer, return_exceptions=True)


async def test_levels_of_unknown_events_and_old_levels_are_skipped(harness: BookingHarness) -> None:
    event = await harness.an_event()
    [pool_id] = {offer.pool_id for offer in event.offers}
    changes = [
        Feed.a_change(event.event_id, pool_id, available=4, version=7),
        Feed.a_change(event.event_id, pool_id, available=3, version=8),
        Feed.a_change(new_id(), new_id(), available=3, version=8),
    ]
    for batch in (changes, [Feed.a_change(event.event_id, pool_id, available=9, version=5)]):
        async with harness.database.transaction() as connection:
            await stock_projection.apply(connection, batch, harness.clock())
    async with harness.database.reading() as connection:
        availability_of = await stock_projection.availability_of(connection, events=[event])
        assert await events.get(connection, event_id=event.event_id) == event
    assert availability_of[event.event_id].available == 3
