"""The days on which clocks change: what people mean by a time there is one instant here.

Berlin has 02:30 twice on 2030-10-27 and not at all on 2030-03-31.
"""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from booking_svc.catalogue import event_status, events
from booking_svc.catalogue.events import Status
from booking_svc.catalogue.tables import events as events_table
from testing.booking_harness import BookingHarness
from tests.booking_svc.catalogue.test_event_listing import names

BERLIN = ZoneInfo("Europe/Berlin")
HOUR = timedelta(hours=1)


def berlin(month: int, day: int, hour: int, minute: int = 0, *, fold: int = 0) -> datetime:
    return datetime(2030, month, day, hour, minute, tzinfo=BERLIN, fold=fold).astimezone(UTC)


async def status_at(harness: BookingHarness, now: datetime) -> list[Status]:
    """What the list says of all events, once the loop has turned them."""
    async with harness.database.transaction() as connection:
        await event_status.apply_due_transitions(connection, now=now)
        found = await connection.scalars(
            events_table.select().with_only_columns(events_table.c.current_status)
        )
        return [Status(each) for each in found]


@pytest.mark.parametrize(
    ("opens", "closes", "hours"),
    [
        # From midnight to six: seven hours in autumn, five in spring.
        (berlin(10, 27, 0), berlin(10, 27, 6), 7),
        (berlin(3, 31, 0), berlin(3, 31, 6), 5),
        # From the first 02:30 to the second.
        (berlin(10, 27, 2, 30), berlin(10, 27, 2, 30, fold=1), 1),
    ],
)
async def test_a_sale_lasts_as_long_as_it_does(
    harness: BookingHarness, opens: datetime, closes: datetime, hours: int
) -> None:
    harness.clock.now = opens - HOUR
    event = await harness.an_event(
        time_zone="Europe/Berlin",
        start_time=None,
        end_time=None,
        sale_start_time=opens,
        sale_end_time=closes,
    )
    assert closes - opens == hours * HOUR
    tick = timedelta(microseconds=1)
    for now, expected in (
        (opens - tick, Status.UPCOMING),
        (opens, Status.ON_SALE),
        (opens + hours * HOUR - tick, Status.ON_SALE),
        (opens + hours * HOUR, Status.ENDED),
    ):
        assert event.status_at(now, available=1) is expected
        assert await status_at(harness, now) == [expected]


async def test_lists_are_in_the_order_in_which_events_happen(harness: BookingHarness) -> None:
    """By local time the second 02:15 would come before the first 02:45."""
    harness.clock.now = berlin(10, 1, 0)
    starts = {
        "first 02:15": berlin(10, 27, 2, 15),
        "first 02:45": berlin(10, 27, 2, 45),
        "second 02:15": berlin(10, 27, 2, 15, fold=1),
        "second 02:45": berlin(10, 27, 2, 45, fold=1),
    }
    for name in ("second 02:45", "first 02:45", "second 02:15", "first 02:15"):
        await harness.an_event(
            name=name,
            time_zone="Europe/Berlin",
            start_time=starts[name],
            end_time=None,
            sale_start_time=harness.clock.now - HOUR,
        )
    assert await names(harness) == list(starts)
    assert await names(
        harness, starts_after=starts["first 02:45"], starts_before=starts["second 02:45"]
    ) == ["first 02:45", "second 02:15"]


@pytest.mark.parametrize(("month", "day", "length"), [(10, 27, 25), (3, 31, 23)])
async def test_a_day_of_the_calendar_has_all_its_events(
    harness: BookingHarness, month: int, day: int, length: int
) -> None:
    midnight = berlin(month, day, 0)
    following = (datetime(2030, month, day, tzinfo=BERLIN) + timedelta(days=1)).astimezone(UTC)
    assert following - midnight == length * HOUR
    harness.clock.now = midnight - timedelta(days=1)
    for hour in range(-1, length + 1):
        await harness.an_event(
            name=f"hour {hour}",
            time_zone="Europe/Berlin",
            start_time=midnight + hour * HOUR,
            end_time=None,
            sale_start_time=harness.clock.now - HOUR,
        )
    listed = await names(harness, starts_after=midnight, starts_before=following)
    assert listed == [f"hour {hour}" for hour in range(length)]


async def test_an_event_reads_back_in_its_instant_and_zone(harness: BookingHarness) -> None:
    harness.clock.now = berlin(10, 1, 0)
    for fold in (0, 1):
        made = await harness.an_event(
            time_zone="Europe/Berlin",
            start_time=berlin(10, 27, 2, 30, fold=fold),
            end_time=berlin(10, 27, 5),
        )
        async with harness.database.reading() as connection:
            read = await events.get(connection, event_id=made.event_id)
        assert read.start_time == berlin(10, 27, 2, 30, fold=fold)
        assert read.time_zone == "Europe/Berlin"
        # Refund deadlines are instants: 48 hours are 48 hours, whatever the clocks show.
        assert read.start_time is not None
        assert (read.start_time - timedelta(hours=48)).astimezone(BERLIN).hour == (2, 3)[fold]
