"""The on-sale report from the rows of a sale, on a real database."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa

from booking_svc.bookings.bookings import Status
from booking_svc.queueing import durations, on_sale_report, on_sale_report_proto
from booking_svc.queueing.draw import Draw
from booking_svc.queueing.durations import JOIN, PLACE, POLL
from booking_svc.queueing.on_sale_report import OnSaleReport
from booking_svc.queueing.tables import queue_arrivals, waiting_rooms
from booking_svc.queueing.waiting_list_entries import State
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from testing.booking_harness import BookingHarness, an_offer
from testing.queue_harness import QueueHarness, an_event_with_room
from testing.waiting_list_harness import WaitingListHarness


@pytest.fixture
def queueing(harness: BookingHarness) -> QueueHarness:
    return QueueHarness.of(harness)


async def report_of(
    harness: BookingHarness,
    event_id: UUID,
    *,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
) -> OnSaleReport:
    async with harness.database.reading() as connection:
        return await on_sale_report.read(
            connection,
            event_id=event_id,
            start_time=start_time,
            end_time=end_time,
            now=harness.clock.now,
        )


def total(report: OnSaleReport, name: str) -> int:
    return sum(interval.counts.get(name, 0) for interval in report.intervals)


async def test_a_sale_from_the_first_visitor_to_the_waiting_list(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_event_with_room(harness, queueing, capacity=8, per_minute=60)
    listing = WaitingListHarness(harness)
    harness.clock.now = event.sale_start_time - timedelta(minutes=10)
    customers = [new_id() for _ in range(12)]
    tickets = {}
    for customer in customers:
        tickets[customer] = await queueing.join(event, customer)
        harness.clock.advance(timedelta(seconds=7))
    assert (await queueing.join(event, customers[0])).ticket.number == 0
    await queueing.open_sale(event)
    await queueing.advance(timedelta(seconds=6))
    admitted = [c for c in customers if (await queueing.poll(tickets[c], c)).token]
    assert len(admitted) == 6

    # Four of six buy two places each; the fifth is refused, the sixth books nothing.
    for customer in admitted[:4]:
        token = (await queueing.poll(tickets[customer], customer)).token or ""
        booking = await harness.place(
            event, customer_id=customer, quantity=2, admission_token=token
        )
        await harness.capture(booking)
    await harness.run_until_idle()
    token = (await queueing.poll(tickets[admitted[4]], admitted[4])).token or ""
    with pytest.raises(DomainError) as refusal:
        await harness.place(event, customer_id=admitted[4], quantity=2, admission_token=token)
    assert refusal.value.reason is Reason.SOLD_OUT
    await queueing.store_reports()
    await listing.join(event, customer_id=customers[-1])
    report = await report_of(harness, event.event_id)

    visitors = report.visitors
    assert visitors is not None
    assert (visitors.joined, visitors.participants, visitors.admitted) == (12, 12, 6)
    assert (visitors.claimed, visitors.booked, visitors.bought) == (6, 4, 4)
    assert report.bookings == {Status.CONFIRMED: 4}
    [pool] = report.pools
    assert (pool.sold, pool.held) == (8, 0)
    money = report.money
    assert money.confirmed_minor == money.captured_minor > 0
    assert (money.refunded_minor, money.rescheduled, report.open_steps) == (0, 0, 0)
    assert report.refusals == {"SOLD_OUT": 1}
    assert report.waiting_list == {State.WAITING: 1}
    calls = {call: sum(histogram.values()) for call, histogram in report.histograms.items()}
    assert calls == {JOIN: 13, POLL: 12 + 5, PLACE: 5}

    # The intervals add up to the totals, also where they are long.
    for shown in (
        report,
        await report_of(harness, event.event_id, start_time=datetime(2020, 1, 1, tzinfo=UTC)),
    ):
        assert total(shown, "joined") == 12
        assert (total(shown, "admitted"), total(shown, "claimed")) == (6, 6)
        assert (total(shown, "bookings_placed"), total(shown, "bookings_confirmed")) == (4, 4)
        assert (total(shown, "places_sold"), total(shown, "waiting_list_joined")) == (8, 1)
        assert len(shown.intervals) <= 240
    assert report.interval == timedelta(seconds=10)
    starts = [interval.start_time for interval in report.intervals]
    assert starts == [starts[0] + number * report.interval for number in range(len(starts))]

    # Each admission stands at the place that the published draw gives it.
    room = await queueing.queues.room(event_id=event.event_id, to_staff=True)
    draw = Draw(room.secret or b"", event.event_id, 12)
    assert len(report.admissions) == 6
    assert all(draw.place_of(number) == place for number, place in report.admissions)
    message = on_sale_report_proto.report(report)
    assert (message.bookings.confirmed, message.visitors.bought) == (4, 4)
    assert message.waiting_list.waiting == 1


async def test_arrivals_are_exact_in_all_processes(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    """They are written with the tickets: whatever a process loses, the sum is `issued`."""
    event = await an_event_with_room(harness, queueing)
    harness.clock.now = event.sale_start_time - timedelta(minutes=10)
    other = QueueHarness(harness.database, harness.clock)
    for number in range(6):
        # Those that join together share a batch.
        process = queueing if number % 2 else other
        await asyncio.gather(*(process.join(event) for _ in range(3)))
        harness.clock.advance(timedelta(seconds=4))
    async with harness.database.reading() as connection:
        arrival = queue_arrivals.c
        rows = await connection.execute(sa.select(arrival.time, arrival.count))
        slots = {row[0]: row[1] for row in rows}
        issued = await connection.scalar(
            sa.select(waiting_rooms.c.issued).where(waiting_rooms.c.event_id == event.event_id)
        )
    assert sum(slots.values()) == issued == 18
    assert len(slots) == 3
    assert all(durations.slot_of(time) == time for time in slots)


async def test_counts_of_processes_are_added(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_event_with_room(harness, queueing)
    harness.clock.now = event.sale_start_time - timedelta(minutes=10)
    other = QueueHarness(harness.database, harness.clock)
    for process in (queueing, other, other):
        position = await process.join(event)
        forged = position.ticket_id[:-4] + ("AAAA" if position.ticket_id[-4:] != "AAAA" else "BBBB")
        with pytest.raises(DomainError):
            await process.queues.position(ticket_id=forged, user_id=None)
        await process.store_reports()
    report = await report_of(harness, event.event_id)
    assert report.refusals == {"TICKET_FORGED": 3}
    assert {call: sum(counts.values()) for call, counts in report.histograms.items()} == {JOIN: 3}


async def test_tickets_for_made_up_events_are_not_counted(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_event_with_room(harness, queueing)
    harness.clock.now = event.sale_start_time - timedelta(minutes=10)
    ticket = (await queueing.join(event)).ticket_id
    for forged in ("", "x", "A" * len(ticket), ticket[:8] + "zzzz" + ticket[12:]):
        with pytest.raises(DomainError):
            await queueing.queues.position(ticket_id=forged, user_id=None)
    # Not even in memory, which anybody could fill otherwise.
    assert not queueing.refusals.take()


async def test_a_ticket_of_another_account_is_counted(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_event_with_room(harness, queueing)
    harness.clock.now = event.sale_start_time - timedelta(minutes=10)
    ticket = await queueing.join(event, new_id())
    with pytest.raises(DomainError):
        await queueing.poll(ticket, new_id())
    await queueing.store_reports()
    assert (await report_of(harness, event.event_id)).refusals == {"TICKET_OF_OTHER_USER": 1}


async def test_an_event_without_a_room(harness: BookingHarness) -> None:
    event = await harness.an_event(an_offer(capacity=10))
    booking = await harness.place(event, quantity=3, checkout=None)
    report = await report_of(harness, event.event_id)
    assert report.visitors is None
    assert report.bookings == {Status.HELD: 1}
    assert [(pool.sold, pool.held) for pool in report.pools] == [(0, 3)]
    assert total(report, "bookings_placed") == 1
    await harness.cancel(booking.booking_id)
    assert (await report_of(harness, event.event_id)).bookings == {Status.CANCELLED: 1}


async def test_an_unknown_event(harness: BookingHarness) -> None:
    with pytest.raises(DomainError) as refusal:
        await report_of(harness, new_id())
    assert refusal.value.reason is Reason.EVENT_NOT_FOUND


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (datetime(1, 1, 1, tzinfo=UTC), None),
        (None, datetime(9999, 12, 31, tzinfo=UTC)),
        (datetime(9999, 12, 30, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)),
        (datetime(1, 1, 1, tzinfo=UTC), datetime(1, 1, 2, tzinfo=UTC)),
    ],
)
async def test_extreme_bounds(
    harness: BookingHarness, start: datetime | None, end: datetime | None
) -> None:
    event = await harness.an_event(an_offer())
    report = await report_of(harness, event.event_id, start_time=start, end_time=end)
    assert 1 <= len(report.intervals) <= 240


def test_buckets_bound_their_durations() -> None:
    for milliseconds in (0.0, 0.4, 1.0, 1.01, 3.7, 16.0, 250.0, 4_000.0, 30_000.0):
        bucket = durations.bucket_of(milliseconds / 1000)
        assert milliseconds <= durations.upper_bound(bucket) * 1.000_001
        if bucket:
            assert milliseconds > durations.upper_bound(bucket - 1)
    assert durations.bucket_of(1e9) == durations.LAST_BUCKET


def test_percentiles() -> None:
    assert durations.percentile({}, 50) == 0
    histogram = Counter({0: 90, 4: 9, 10: 1})
    assert durations.percentile(histogram, 50) == 1
    assert durations.percentile(histogram, 95) == 4
    assert durations.percentile(histogram, 100) == 32
