"""Venues, auditoriums and new events, and the violations of new events."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import alembic.command
import pytest

from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue import events, venues
from booking_svc.catalogue.venues import Auditorium, Row, Seat
from mesh.db.migrations import alembic_config
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from testing.booking_harness import START, BookingHarness, a_new_event, an_offer


def a_row(label: str, *numbers: str, seat_type: str = "REGULAR") -> Row:
    return Row(label, tuple(Seat(new_id(), number, seat_type, None, None) for number in numbers))


async def an_auditorium(harness: BookingHarness) -> Auditorium:
    async with harness.database.transaction() as connection:
        venue = await venues.create_venue(
            connection, name="Regal", time_zone="Asia/Kolkata", address="", now=START
        )
        return await venues.create_auditorium(
            connection,
            venue_id=venue.venue_id,
            name="Screen 1",
            rows=(a_row("A", "1", "2"), a_row("B", "1", "2", seat_type="PREMIUM")),
            now=START,
        )


async def violated_fields(harness: BookingHarness, **changes: Any) -> set[str]:
    with pytest.raises(DomainError) as refusal:
        await harness.an_event(**changes)
    assert refusal.value.reason is Reason.VALIDATION_FAILED
    return {violation.field for violation in refusal.value.violations}


async def test_the_migrations_create_the_tables_of_the_code(harness: BookingHarness) -> None:
    await asyncio.to_thread(
        alembic.command.check, alembic_config("booking_svc", harness.database.url)
    )


async def test_an_auditorium_reads_back_as_created(harness: BookingHarness) -> None:
    made = await an_auditorium(harness)
    async with harness.database.transaction() as connection:
        read = await venues.get_auditorium(connection, auditorium_id=made.auditorium_id)
    assert read == made


async def test_every_duplicate_row_and_seat_is_named(harness: BookingHarness) -> None:
    async with harness.database.transaction() as connection:
        venue = await venues.create_venue(
            connection, name="Regal", time_zone="Asia/Kolkata", address="", now=START
        )
        with pytest.raises(DomainError) as refusal:
            await venues.create_auditorium(
                connection,
                venue_id=venue.venue_id,
                name="Screen 1",
                rows=(
                    a_row("A", "1", "1"),
                    a_row("A", "2"),
                    replace(a_row("A", "1"), section="North"),
                ),
                now=START,
            )
    assert [violation.field for violation in refusal.value.violations] == [
        "rows[0].label",
        "rows[1].label",
        "rows[0].seats[0].number",
        "rows[0].seats[1].number",
    ]


async def test_an_event_reads_back_as_created(harness: BookingHarness) -> None:
    made = await harness.an_event()
    async with harness.database.transaction() as connection:
        assert await events.get(connection, event_id=made.event_id) == made


async def test_offers_that_share_a_pool_share_its_places(harness: BookingHarness) -> None:
    event = await harness.an_event(
        an_offer(name="Standard", capacity=10),
        an_offer(name="Early bird", capacity=None, price=Money(100_000, "INR")),
    )
    assert event.total_capacity == 10
    await harness.place(
        event,
        items=[
            RequestedItem(event.offers[0].offer_id, 3, None),
            RequestedItem(event.offers[1].offer_id, 4, None),
        ],
    )
    availability = await harness.stock.availability(event_id=event.event_id, with_seats=False)
    assert set(availability.offers.values()) == {3}


async def test_seats_are_sold_by_the_offer_of_their_type(harness: BookingHarness) -> None:
    auditorium = await an_auditorium(harness)
    event = await harness.an_event(
        an_offer(name="Regular", pool="r", capacity=None, seat_type="REGULAR"),
        an_offer(
            name="Premium",
            pool="p",
            capacity=None,
            seat_type="PREMIUM",
            price=Money(250_000, "INR"),
        ),
        auditorium_id=auditorium.auditorium_id,
        time_zone="",
    )
    assert (event.total_capacity, event.venue_name, event.time_zone) == (4, "Regal", "Asia/Kolkata")
    front, back = auditorium.rows[0].seats[0].seat_id, auditorium.rows[1].seats[0].seat_id
    booking = await harness.place(
        event, items=[RequestedItem(None, 1, front), RequestedItem(None, 1, back)]
    )
    assert booking.total == Money(400_000, "INR")

    async def reason_of(*seats: UUID) -> Reason:
        with pytest.raises(DomainError) as refusal:
            await harness.place(event, items=[RequestedItem(None, 1, seat) for seat in seats])
        return refusal.value.reason

    free = auditorium.rows[0].seats[1].seat_id
    assert await reason_of(front, free) is Reason.SEAT_UNAVAILABLE
    assert await reason_of(free, free) is Reason.VALIDATION_FAILED
    assert await harness.available(event) == 2


async def test_violations_of_a_new_event_name_their_fields(harness: BookingHarness) -> None:
    day = timedelta(days=1)
    start = a_new_event().start_time
    assert start is not None
    assert await violated_fields(harness, end_time=start) == {"event.end_time"}
    assert await violated_fields(harness, sale_start_time=start + day) == {"event.sale_start_time"}
    assert await violated_fields(harness, time_zone="Mars/Olympus") == {"event.time_zone"}
    assert await violated_fields(harness, currency_code="USD") == {
        "event.offers[0].price.currency_code"
    }
    assert await violated_fields(harness, offers=(an_offer(capacity=None),)) == {
        "event.offers[0].capacity"
    }
    assert await violated_fields(harness, offers=(an_offer(), an_offer())) == {
        "event.offers[1].capacity"
    }
    assert await violated_fields(
        harness, offers=(an_offer(capacity=None, seat_type="REGULAR"),)
    ) == {"event.auditorium_id"}
    auditorium = await an_auditorium(harness)
    wheelchair = an_offer(capacity=None, seat_type="WHEELCHAIR")
    assert await violated_fields(
        harness, offers=(wheelchair,), auditorium_id=auditorium.auditorium_id
    ) == {"event.offers[0].seat_type"}
    with pytest.raises(DomainError) as refusal:
        await harness.an_event(auditorium_id=new_id())
    assert refusal.value.reason is Reason.AUDITORIUM_NOT_FOUND


async def test_an_auditorium_has_one_event_at_a_time(harness: BookingHarness) -> None:
    """Fifty concurrent creations: a database constraint decides, not a query before it."""
    auditorium = await an_auditorium(harness)
    answers = await asyncio.gather(
        *(
            harness.an_event(
                an_offer(capacity=None, seat_type="REGULAR"),
                auditorium_id=auditorium.auditorium_id,
            )
            for _ in range(50)
        ),
        return_exceptions=True,
    )
    refusals = [answer for answer in answers if isinstance(answer, DomainError)]
    assert len(refusals) == 49
    assert {refusal.reason for refusal in refusals} == {Reason.SHOWTIME_OVERLAP}


@pytest.mark.parametrize(
    ("hours", "available", "expected"),
    [(-1, 5, "UPCOMING"), (0, 5, "ON_SALE"), (0, 0, "SOLD_OUT"), (720, 5, "ENDED")],
)
async def test_the_status_follows_the_clock_and_the_stock(
    harness: BookingHarness, hours: int, available: int, expected: str
) -> None:
    event = await harness.an_event(sale_start_time=START)
    now = START + timedelta(hours=hours)
    assert event.status_at(now, available=available) == expected
