"""The refusal of an event without enough places names other events that have them."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from booking_svc.catalogue.events import Event, StaffStatus
from booking_svc.catalogue.tables import events, stock_levels
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from testing.booking_harness import START, BookingHarness, a_new_event, an_offer
from tests.booking_svc.bookings.test_cancellation import a_confirmed

DAY = timedelta(days=1)
PRODUCTION = new_id()


async def a_slot(harness: BookingHarness, day: int, **changes: Any) -> Event:
    start = START + day * DAY
    return await harness.an_event(
        name=f"day {day}",
        production_id=changes.pop("production_id", PRODUCTION),
        start_time=start,
        end_time=start + timedelta(hours=1),
        **changes,
    )


async def refused(harness: BookingHarness, event: Event, quantity: int = 1) -> DomainError:
    with pytest.raises(DomainError) as refusal:
        await harness.place(event, quantity=quantity)
    return refusal.value


def days(refusal: DomainError, made: dict[str, Event]) -> list[str]:
    listed = json.loads(refusal.metadata["alternatives"])
    return [made[entry["eventId"]].name for entry in listed]


async def test_a_full_slot_names_the_next_slots_with_places(harness: BookingHarness) -> None:
    slots = [await a_slot(harness, day) for day in (3, 10, 11, 12, 13, 14, 15, 16)]
    made = {str(slot.event_id): slot for slot in slots}
    requested = slots[1]
    await harness.place(requested, quantity=10)
    cancelled, full = slots[3], slots[4]
    async with harness.database.transaction() as connection:
        await connection.execute(
            sa.update(events)
            .where(events.c.event_id == cancelled.event_id)
            .values(status=StaffStatus.CANCELLED, current_status="CANCELLED")
        )
        await connection.execute(
            sa.update(stock_levels)
            .where(stock_levels.c.event_id == full.event_id)
            .values(available=0)
        )
    await a_slot(harness, 11, production_id=new_id())
    refusal = await refused(harness, requested)
    assert refusal.reason is Reason.SLOT_CONFLICT
    assert days(refusal, made) == ["day 11", "day 14", "day 15", "day 16", "day 3"]
    first = json.loads(refusal.metadata["alternatives"])[0]
    assert (first["startTime"], first["available"]) == ("2030-06-12T12:00:00Z", 10)


async def test_too_few_places_are_sold_out_and_name_events_with_enough(
    harness: BookingHarness,
) -> None:
    requested, small, large = [await a_slot(harness, day) for day in (10, 11, 12)]
    await harness.place(requested, quantity=9)
    async with harness.database.transaction() as connection:
        await connection.execute(
            sa.update(stock_levels)
            .where(stock_levels.c.event_id == small.event_id)
            .values(available=1)
        )
    refusal = await refused(harness, requested, quantity=2)
    assert refusal.reason is Reason.SOLD_OUT
    assert days(refusal, {str(slot.event_id): slot for slot in (small, large)}) == ["day 12"]


async def test_a_move_to_a_full_or_missing_slot_names_the_next_slots(
    harness: BookingHarness,
) -> None:
    slots = [await a_slot(harness, day) for day in (3, 10, 11)]
    dearer = await a_slot(harness, 12, offers=(an_offer(price=Money(200_000, "INR")),))
    made = {str(slot.event_id): slot for slot in [*slots, dearer]}
    booking = await a_confirmed(harness, slots[0])
    for full in (slots[1], dearer):
        await harness.place(full, quantity=10)
    missing = replace(slots[1], event_id=new_id())
    for event, others in (
        (slots[1], ["day 11", "day 12", "day 3"]),
        (dearer, ["day 10", "day 11", "day 3"]),
        (missing, ["day 10", "day 11", "day 12"]),
    ):
        # The stored answer of the key is the same.
        for _ in range(2):
            with pytest.raises(DomainError) as refusal:
                await harness.reschedule(booking, event, key=event.name)
            assert refusal.value.reason is Reason.SLOT_CONFLICT
            assert sorted(days(refusal.value, made)) == others
    after = await harness.booking(booking.booking_id)
    assert (after.event_id, after.change) == (slots[0].event_id, None)


async def test_an_event_without_a_production_has_no_alternatives(harness: BookingHarness) -> None:
    event = await harness.an_event(offers=a_new_event().offers)
    await harness.place(event, quantity=10)
    refusal = await refused(harness, event)
    assert refusal.reason is Reason.SOLD_OUT
    assert "alternatives" not in refusal.metadata
