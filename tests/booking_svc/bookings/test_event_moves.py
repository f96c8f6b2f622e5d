"""Customers of a moved event are notified, once each, by domain events that mails and webhooks follow."""

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from booking_svc.bookings import event_moves
from booking_svc.bookings.bookings import Booking
from booking_svc.bookings.outbox import BookingEvent, EventMoved, from_payload
from booking_svc.bookings.tables import bookings
from booking_svc.catalogue import venues
from booking_svc.catalogue.event_update import EventChange
from booking_svc.catalogue.events import Event
from booking_svc.tables import outbox
from mesh.errors import DomainError, Reason
from mesh.ids import derived_id, first_id, new_id
from testing.booking_harness import SANDBOX, START, BookingHarness, an_offer
from tests.booking_svc.bookings.test_cancellation import a_confirmed, preview
from tests.booking_svc.catalogue.test_catalogue import a_row, an_auditorium

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)


async def change(harness: BookingHarness, event: Event, **changes: Any) -> Event:
    harness.clock.advance(SECOND)
    changed, _ = await harness.commands.update(
        event_id=event.event_id, change=EventChange(**changes), etag=None
    )
    return changed


async def notify(harness: BookingHarness) -> list[int]:
    """Runs the loop until no move is due. Returns the sizes of its batches."""
    batches: list[int] = []
    while True:
        async with harness.database.transaction() as connection:
            notified = await event_moves.notify_batch(connection, now=harness.clock())
        if notified is None:
            return batches
        batches.append(notified)


async def notified(harness: BookingHarness) -> list[BookingEvent]:
    """The domain events about moves, in order."""
    async with harness.database.reading() as connection:
        payloads = await connection.scalars(
            sa.select(outbox.c.payload)
            .where(outbox.c.event_type == "event_moved")
            .order_by(outbox.c.sequence)
        )
        return [from_payload(payload) for payload in payloads]


async def test_every_live_booking_is_told_with_both_schedules(harness: BookingHarness) -> None:
    event = await harness.an_event(an_offer(capacity=100), venue_name="Regal")
    confirmed = await a_confirmed(harness, event)
    live = [
        confirmed,
        await harness.place(event, checkout=None),
        await harness.place(event, checkout=SANDBOX),
    ]
    ended = await harness.place(event)
    await harness.cancel(ended.booking_id)
    start = START + 40 * DAY
    moved = await change(harness, event, start_time=start, end_time=start + timedelta(hours=2))
    move_time = harness.clock()
    harness.clock.advance(SECOND)
    await harness.place(event)
    assert await notify(harness) == [3]
    events = await notified(harness)
    assert [entry.booking_id for entry in events] == sorted(b.booking_id for b in live)
    for entry in events:
        assert isinstance(entry.change, EventMoved)
        assert (entry.change.before.start_time, entry.change.before.end_time) == (
            event.start_time,
            event.end_time,
        )
        assert (entry.change.after.start_time, entry.change.after.end_time) == (
            moved.start_time,
            moved.end_time,
        )
        assert entry.change.full_refund_until == move_time + 7 * DAY
    assert (await preview(harness, confirmed)).percent == 100


@pytest.mark.parametrize(
    ("changes", "is_move"),
    [
        ({"venue_name": "Town Hall"}, True),
        ({"end_time": START + 31 * DAY}, True),
        ({"description": "New text", "name": "New name"}, False),
        ({"venue_name": "Regal"}, False),
    ],
)
async def test_only_time_and_place_are_told(
    harness: BookingHarness, changes: dict[str, Any], is_move: bool
) -> None:
    event = await harness.an_event(venue_name="Regal")
    await a_confirmed(harness, event)
    await change(harness, event, **changes)
    assert await notify(harness) == ([1] if is_move else [])


async def test_an_event_moves_to_another_auditorium(harness: BookingHarness) -> None:
    old = await an_auditorium(harness)
    async with harness.database.transaction() as connection:
        new = await venues.create_auditorium(
            connection, venue_id=old.venue_id, name="Screen 2", rows=(a_row("A", "1"),), now=START
        )
        hall = await venues.create_venue(
            connection, name="Hall", time_zone="Asia/Kolkata", address="", now=START
        )
        other = await venues.create_auditorium(
            connection, venue_id=hall.venue_id, name="Main", rows=(a_row("A", "1"),), now=START
        )
    event = await harness.an_event(auditorium_id=old.auditorium_id)
    booking = await a_confirmed(harness, event)
    moved = await change(harness, event, auditorium_id=new.auditorium_id)
    assert (moved.auditorium_id, moved.venue_name) == (new.auditorium_id, "Regal")
    assert await notify(harness) == [1]
    [entry] = await notified(harness)
    assert isinstance(entry.change, EventMoved)
    assert (entry.change.before.auditorium_name, entry.change.after.auditorium_name) == (
        "Screen 1",
        "Screen 2",
    )
    assert (await preview(harness, booking)).percent == 100
    elsewhere = await change(harness, event, auditorium_id=other.auditorium_id)
    assert (elsewhere.venue_id, elsewhere.venue_name) == (hall.venue_id, "Hall")
    with pytest.raises(DomainError) as refused:
        await change(harness, event, auditorium_id=new_id())
    assert refused.value.reason is Reason.AUDITORIUM_NOT_FOUND
    # The seats of an auditorium belong to it.
    seated = await harness.an_event(
        an_offer(capacity=None, seat_type="REGULAR"), auditorium_id=old.auditorium_id
    )
    with pytest.raises(DomainError) as refused:
        await change(harness, seated, auditorium_id=new.auditorium_id)
    assert [violation.field for violation in refused.value.violations] == ["event.auditorium_id"]


async def test_a_booking_that_was_being_placed_is_told_later_and_others_once(
    harness: BookingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_moves, "BATCH", 2)
    event = await harness.an_event()
    booked = [await a_confirmed(harness, event) for _ in range(3)]
    late = await harness.place(event, checkout=None)
    await hide(harness, late, event)
    # The ids of the harness have the machine's time: as if they were placed right before the move.
    monkeypatch.setattr(event_moves, "first_id", lambda _: first_id(START - 20_000 * DAY))
    await change(harness, event, venue_name="Town Hall")
    assert await notify(harness) == [2, 1]
    async with harness.database.transaction() as connection:
        await connection.execute(
            sa.update(bookings)
            .where(bookings.c.booking_id == late.booking_id)
            .values(event_id=event.event_id)
        )
    harness.clock.advance(event_moves.SECOND_PASS)
    assert sum(await notify(harness)) == 4
    events = await notified(harness)
    assert {entry.booking_id for entry in events} == {b.booking_id for b in (*booked, late)}
    # Consumers act once for each key.
    assert (len(events), len({entry.key for entry in events})) == (7, 4)


async def hide(harness: BookingHarness, booking: Booking, event: Event) -> None:
    """Makes a booking invisible, as if it was not committed yet."""
    other = await harness.an_event()
    async with harness.database.transaction() as connection:
        await connection.execute(
            sa.update(bookings)
            .where(bookings.c.booking_id == booking.booking_id)
            .values(event_id=other.event_id)
        )


async def test_who_reschedules_to_a_moved_event_knows_its_date(harness: BookingHarness) -> None:
    production_id = await harness.a_production()
    first = await harness.an_event(production_id=production_id)
    second = await harness.an_event(production_id=production_id)
    booking = await a_confirmed(harness, first)
    await change(harness, second, venue_name="Town Hall")
    harness.clock.advance(SECOND)
    await harness.reschedule(booking, second, checkout=None)
    await harness.run_until_idle()
    moved = await harness.booking(booking.booking_id)
    assert moved.event_id == second.event_id
    assert (await preview(harness, moved)).percent == 97
    await change(harness, second, venue_name="Regal")
    assert (await preview(harness, moved)).percent == 100


def test_derived_ids_are_ordered_by_the_time_of_their_base() -> None:
    base, first, second = new_id(), new_id(), new_id()
    assert derived_id(base, of=first) == derived_id(base, of=first)
    assert derived_id(base, of=first) != derived_id(base, of=second)
    assert derived_id(base, of=first).bytes[:8] == base.bytes[:8]
    assert derived_id(base, of=first).version == first_id(START).version == 7
    assert first_id(START) < first_id(START + timedelta(milliseconds=1))
