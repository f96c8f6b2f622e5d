"""The seats of an event as a string: a letter for each seat of the auditorium, in map order."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import pytest

from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue import seat_states, venues
from booking_svc.catalogue.events import Event
from booking_svc.catalogue.seat_states import SeatOrders
from booking_svc.catalogue.venues import Row
from boxoffice.catalogue.v1.event_service_pb2 import AvailabilityUpdate
from mesh.ids import new_id
from stock_svc import restocking
from testing.booking_harness import START, BookingHarness
from testing.stock_changes import Feed, a_feed
from tests.booking_svc.catalogue.test_availability import a_seated_event
from tests.booking_svc.catalogue.test_availability_stream import kind
from tests.booking_svc.catalogue.test_catalogue import a_row

# Longer than any test.
AGE = 1_000_000.0


@pytest.fixture
async def feed(harness: BookingHarness) -> AsyncIterator[Feed]:
    async with a_feed(harness) as running:
        yield running


async def add_row(harness: BookingHarness, event: Event, row: Row, days: int = 1) -> None:
    assert event.auditorium_id is not None
    async with harness.database.transaction() as connection:
        await venues.add_seats(
            connection,
            auditorium_id=event.auditorium_id,
            rows=(row,),
            now=START + timedelta(days=days),
        )


async def order_of_map(harness: BookingHarness, event: Event) -> list[UUID]:
    assert event.auditorium_id is not None
    async with harness.database.reading() as connection:
        auditorium = await venues.get_auditorium(connection, auditorium_id=event.auditorium_id)
    return [seat.seat_id for row in auditorium.rows for seat in row.seats]


async def test_each_state_has_a_letter(harness: BookingHarness) -> None:
    event, seats = await a_seated_event(harness)
    # In the middle of the map, and not sold by the event.
    await add_row(harness, event, a_row("A", "3"))
    held, sold, blocked = seats[0], seats[2], seats[3]
    await harness.place(event, items=[RequestedItem(None, 1, held)], checkout=None)
    booking = await harness.place(event, items=[RequestedItem(None, 1, sold)])
    await harness.capture(booking)
    await harness.run_until_idle()
    async with harness.ledger.transaction() as connection:
        await restocking.block(
            connection, event_id=event.event_id, seat_ids=[blocked], now=harness.clock()
        )
    order = await SeatOrders(harness.database).of(event.auditorium_id, max_age_seconds=AGE)
    assert list(order) == await order_of_map(harness, event)
    stock = await harness.stock.availability(event_id=event.event_id, with_seats=True)
    assert seat_states.written(order, stock.seats) == "HA-SB"
    assert seat_states.LETTERS.keys() == set(stock.seats.values())


async def test_the_order_is_read_again_only_when_the_auditorium_has_changed(
    harness: BookingHarness,
) -> None:
    event, seats = await a_seated_event(harness)
    orders = SeatOrders(harness.database)
    first = await asyncio.gather(
        *(orders.of(event.auditorium_id, max_age_seconds=0) for _ in range(20))
    )
    assert {id(order) for order in first} == {id(first[0])}
    assert list(first[0]) == seats
    await add_row(harness, event, a_row("C", "1"))
    assert await orders.of(event.auditorium_id, max_age_seconds=AGE) is first[0]
    current = await orders.of(event.auditorium_id, max_age_seconds=0)
    assert list(current) == await order_of_map(harness, event)
    assert len(current) == 5
    assert await orders.of(None, max_age_seconds=0) == ()


async def test_the_memory_is_bounded(harness: BookingHarness) -> None:
    (first, _), (second, _) = await a_seated_event(harness), await a_seated_event(harness)
    orders = SeatOrders(harness.database, most_seats=4)
    known = await orders.of(first.auditorium_id, max_age_seconds=AGE)
    await orders.of(second.auditorium_id, max_age_seconds=AGE)
    again = await orders.of(first.auditorium_id, max_age_seconds=AGE)
    assert again == known
    assert again is not known


async def test_snapshots_of_a_stream_are_strings_and_changes_are_lists(
    harness: BookingHarness, feed: Feed
) -> None:
    event, seats = await a_seated_event(harness)

    async def take(stream: AsyncIterator[bytes]) -> AvailabilityUpdate:
        async with asyncio.timeout(60):
            return AvailabilityUpdate.FromString(await anext(stream))

    def watch(*, as_string: bool) -> AsyncIterator[bytes]:
        return feed.streams.stream(event_id=event.event_id, after_version=None, as_string=as_string)

    strings, lists = watch(as_string=True), watch(as_string=False)
    snapshot, listed = await take(strings), await take(lists)
    assert (kind(snapshot), snapshot.seat_states, len(snapshot.seats)) == ("SNAPSHOT", "AAAA", 0)
    assert (kind(listed), listed.HasField("seat_states"), len(listed.seats)) == (
        "SNAPSHOT",
        False,
        4,
    )
    await harness.place(event, items=[RequestedItem(None, 1, seats[1])])
    change = await take(strings)
    assert change == await take(lists)
    assert (kind(change), [seat.seat_id for seat in change.seats]) == ("CHANGE", [str(seats[1])])
    # One that comes later sees seats that were added since.
    await add_row(harness, event, a_row("A", "3"))
    assert (await take(watch(as_string=True))).seat_states == "AH-AA"
    assert len((await take(watch(as_string=False))).seats) == 4


def test_an_unknown_seat_is_not_on_sale() -> None:
    order = [new_id(), new_id()]
    assert seat_states.written(order, {order[1]: "SOLD"}) == "-S"
    assert seat_states.written((), {order[1]: "SOLD"}) == ""
