"""What the staff may make of an event, and that SQL follows the clock as Python does."""

from datetime import datetime, timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa

from booking_svc.catalogue import event_status, events
from booking_svc.catalogue.event_status import MOVES
from booking_svc.catalogue.events import Event, StaffStatus, Status
from booking_svc.catalogue.tables import events as events_table
from mesh.errors import DomainError, Reason
from testing.booking_harness import START, BookingHarness

DAY = timedelta(days=1)
OPENS, CLOSES = START - DAY, START + DAY

# What must be true of an event in each status: what was said, at which time, what is left.
EXAMPLES: dict[Status, tuple[StaffStatus, datetime, int]] = {
    Status.DRAFT: (StaffStatus.DRAFT, START, 1),
    Status.UPCOMING: (StaffStatus.OPEN, OPENS - DAY, 1),
    Status.ON_SALE: (StaffStatus.OPEN, START, 1),
    Status.SOLD_OUT: (StaffStatus.OPEN, START, 0),
    Status.PAUSED: (StaffStatus.PAUSED, START, 1),
    Status.ENDED: (StaffStatus.OPEN, CLOSES, 1),
    Status.CANCELLED: (StaffStatus.CANCELLED, START, 1),
}


async def in_status(harness: BookingHarness, status: Status) -> tuple[Event, datetime, int]:
    """An event in a status, with the time and the stock at which it is."""
    staff_status, now, available = EXAMPLES[status]
    event = await harness.an_event(sale_start_time=OPENS, sale_end_time=CLOSES)
    async with harness.database.transaction() as connection:
        await connection.execute(
            sa.update(events_table)
            .where(events_table.c.event_id == event.event_id)
            .values(status=staff_status, is_sold_out=available == 0)
        )
        event = await events.get(connection, event_id=event.event_id)
    assert event.status_at(now, available=available) is status
    return event, now, available


async def listed_status(harness: BookingHarness, event_id: UUID) -> tuple[Status, datetime | None]:
    async with harness.database.reading() as connection:
        row = (
            await connection.execute(
                sa.select(events_table.c.current_status, events_table.c.next_transition_time).where(
                    events_table.c.event_id == event_id
                )
            )
        ).one()
    return Status(row.current_status), row.next_transition_time


def test_every_status_has_its_moves_and_its_example() -> None:
    assert MOVES.keys() == EXAMPLES.keys() == set(Status)


@pytest.mark.parametrize("before", Status)
async def test_the_staff_may_do_what_is_listed_and_nothing_else(
    harness: BookingHarness, before: Status
) -> None:
    for to in Status:
        event, now, available = await in_status(harness, before)

        async def say(
            event: Event = event, to: Status = to, now: datetime = now, available: int = available
        ) -> Event:
            async with harness.database.transaction() as connection:
                return await event_status.set_status(
                    connection, event_id=event.event_id, to=to, available=available, now=now
                )

        if to is before:
            assert await say() == event
        elif to in MOVES[before]:
            changed = await say()
            assert changed.staff_status is MOVES[before][to]
            assert changed.revision == event.revision + 1
            assert await listed_status(harness, event.event_id) == (
                changed.status_at(now, available=available),
                changed.next_transition_after(now),
            )
        else:
            with pytest.raises(DomainError) as refusal:
                await say()
            assert refusal.value.reason is Reason.EVENT_STATE_INVALID
            assert refusal.value.metadata == {
                "status": before,
                "allowed": ",".join(sorted(MOVES[before])),
            }


@pytest.mark.parametrize("staff_status", StaffStatus)
@pytest.mark.parametrize("closes", [CLOSES, None])
@pytest.mark.parametrize("available", [0, 1])
async def test_the_database_follows_the_clock_as_the_event_does(
    harness: BookingHarness, staff_status: StaffStatus, closes: datetime | None, available: int
) -> None:
    event = await harness.an_event(
        sale_start_time=OPENS, sale_end_time=closes, start_time=None, end_time=None
    )
    tick = timedelta(microseconds=1)
    for now in (OPENS - tick, OPENS, START, CLOSES - tick, CLOSES):
        async with harness.database.transaction() as connection:
            is_it = events_table.c.event_id == event.event_id
            await connection.execute(
                sa.update(events_table)
                .where(is_it)
                .values(status=staff_status, is_sold_out=available == 0, next_transition_time=now)
            )
            assert await event_status.apply_due_transitions(connection, now=now) == 1
            event = await events.get(connection, event_id=event.event_id)
        expected = (event.status_at(now, available=available), event.next_transition_after(now))
        assert await listed_status(harness, event.event_id) == expected
