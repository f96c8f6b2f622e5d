"""WatchAvailability: snapshot, changes, resumption, slow watchers, and shared updates."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue import availability_stream
from booking_svc.catalogue.availability_stream import Kind
from booking_svc.catalogue.events import Event
from boxoffice.catalogue.v1.event_service_pb2 import AvailabilityUpdate, SeatAvailability
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from testing.booking_harness import BookingHarness
from testing.stock_changes import Feed, a_feed
from tests.booking_svc.catalogue.test_availability import a_seated_event


@pytest.fixture
async def feed(harness: BookingHarness) -> AsyncIterator[Feed]:
    async with a_feed(harness) as running:
        yield running


class Watcher:
    """A client: the payloads it has received, and the availability that follows from them."""

    def __init__(self, feed: Feed, event: Event, after_version: int | None = None) -> None:
        self._stream = feed.streams.stream(event_id=event.event_id, after_version=after_version)
        self.payloads: list[bytes] = []
        self.version = after_version or 0
        self.offers: dict[str, int] = {}
        self.seats: dict[str, str] = {}

    async def take(self) -> AvailabilityUpdate:
        async with asyncio.timeout(60):
            payload = await anext(self._stream)
        self.payloads.append(payload)
        update = AvailabilityUpdate.FromString(payload)
        if update.kind == AvailabilityUpdate.SNAPSHOT:
            self.offers, self.seats = {}, {}
        self.version = update.version
        self.offers |= {offer.offer_id: offer.available for offer in update.offers}
        states = SeatAvailability.State
        self.seats |= {seat.seat_id: states.Name(seat.state) for seat in update.seats}
        return update

    async def until(self, available: int) -> None:
        while set(self.offers.values()) != {available}:
            await self.take()

    async def leave(self) -> None:
        await self._stream.aclose()


def kind(update: AvailabilityUpdate) -> str:
    return AvailabilityUpdate.Kind.Name(update.kind)


async def test_a_snapshot_and_then_changes_with_their_versions(
    harness: BookingHarness, feed: Feed
) -> None:
    event, seats = await a_seated_event(harness)
    watcher = Watcher(feed, event)
    first = await watcher.take()
    assert (kind(first), len(first.seats), len(first.offers)) == ("SNAPSHOT", 4, 2)
    await harness.place(event, items=[RequestedItem(None, 1, seats[0])])
    change = await watcher.take()
    assert (kind(change), len(change.seats), len(change.offers)) == ("CHANGE", 1, 1)
    assert change.version > first.version
    assert watcher.seats[str(seats[0])] == "HELD"
    assert watcher.seats[str(seats[1])] == "AVAILABLE"
    await watcher.leave()


async def test_all_watchers_are_sent_the_same_bytes(harness: BookingHarness, feed: Feed) -> None:
    event = await harness.an_event()
    watchers = [Watcher(feed, event) for _ in range(100)]
    for watcher in watchers:
        await watcher.take()
    await harness.place(event, quantity=10)
    await asyncio.gather(*(watcher.until(0) for watcher in watchers))
    for sent in zip(*(watcher.payloads for watcher in watchers), strict=True):
        assert len({id(payload) for payload in sent}) == 1
    assert len(feed.updates) == len(watchers[0].payloads)
    assert feed.stock.reads == 1
    for watcher in watchers:
        await watcher.leave()


async def test_a_watcher_that_reconnects_receives_the_missed_changes(
    harness: BookingHarness, feed: Feed
) -> None:
    event = await harness.an_event()
    staying, leaving = Watcher(feed, event), Watcher(feed, event)
    await staying.take()
    await leaving.take()
    await leaving.leave()
    for expected in (9, 8):
        await harness.place(event)
        await staying.until(expected)
    resumed = Watcher(feed, event, after_version=leaving.version)
    assert [kind(await resumed.take()), kind(await resumed.take())] == ["CHANGE", "CHANGE"]
    assert (resumed.offers, resumed.version) == (staying.offers, staying.version)
    current = Watcher(feed, event, after_version=staying.version)
    assert kind(await current.take()) == "HEARTBEAT"
    unknown = Watcher(feed, event, after_version=staying.version + 1000)
    assert kind(await unknown.take()) == "SNAPSHOT"


async def test_a_slow_watcher_gets_a_fresh_snapshot(
    harness: BookingHarness, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer is bounded; a watcher behind its oldest update gets a snapshot."""
    monkeypatch.setattr(availability_stream, "_MAX_UPDATES", 3)
    event = await harness.an_event()
    fast, slow = Watcher(feed, event), Watcher(feed, event)
    await fast.take()
    await slow.take()
    for expected in range(9, 3, -1):
        await harness.place(event)
        await fast.until(expected)
    assert kind(await slow.take()) == "SNAPSHOT"
    assert slow.offers == fast.offers
    assert slow.version == fast.version


async def test_watchers_stay_current_when_the_ledgers_stream_breaks(
    harness: BookingHarness, feed: Feed
) -> None:
    event = await harness.an_event()
    watcher = Watcher(feed, event)
    await watcher.take()
    for expected in (9, 8, 7):
        feed.connection.cut()
        await harness.place(event)
        await watcher.until(expected)


async def test_without_changes_heartbeats_are_sent(
    harness: BookingHarness, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability_stream, "HEARTBEAT_SECONDS", 0.01)
    event = await harness.an_event()
    watcher = Watcher(feed, event)
    kinds = [kind(await watcher.take()) for _ in range(3)]
    assert kinds == ["SNAPSHOT", "HEARTBEAT", "HEARTBEAT"]


async def test_an_unknown_event_cannot_be_watched(feed: Feed) -> None:
    stream: Any = feed.streams.stream(event_id=new_id(), after_version=None)
    with pytest.raises(DomainError) as refusal:
        await anext(stream)
    assert refusal.value.reason is Reason.EVENT_NOT_FOUND


async def test_a_stopping_process_ends_its_streams(harness: BookingHarness, feed: Feed) -> None:
    event = await harness.an_event()
    watcher = Watcher(feed, event)
    await watcher.take()
    running = asyncio.create_task(feed.streams.run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(StopAsyncIteration):
        await watcher.take()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_an_event_without_watchers_is_dropped(harness: BookingHarness, feed: Feed) -> None:
    event = await harness.an_event()
    watcher = Watcher(feed, event)
    await watcher.take()
    assert feed.streams.event_count == 1
    await watcher.leave()
    assert feed.streams.event_count == 0


def test_the_kinds_are_those_of_the_contract() -> None:
    assert {"KIND_UNSPECIFIED", *Kind} == set(AvailabilityUpdate.Kind.keys())
