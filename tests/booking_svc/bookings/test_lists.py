"""Lists of bookings: their filters, and the indexes that they use."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from booking_svc.bookings import bookings, customers, tables
from booking_svc.bookings.bookings import Booking, Filter, Status
from booking_svc.clients.ports import Contact
from booking_svc.notifications import contacts
from mesh.ids import new_id
from testing.booking_harness import START, BookingHarness

MIRA, TARO, MIRANDA = new_id(), new_id(), new_id()
NAMES = {
    MIRA: ("mira.rao@example.com", "Mira Rao"),
    TARO: ("taro@example.jp", "山田太郎"),
    MIRANDA: ("m@other.example", "Miranda Österberg"),
}


async def listed(harness: BookingHarness, matches: Filter) -> list[UUID]:
    async with harness.database.reading() as connection:
        page = await bookings.list_page(connection, matches=matches, page_size=20, page_token="")
    assert page.total_size == len(page.bookings)
    return [booking.booking_id for booking in page.bookings]


async def three(harness: BookingHarness) -> list[Booking]:
    """A booking of each customer, an hour apart, the second of another event."""
    async with harness.database.transaction() as connection:
        for user_id, (email, name) in NAMES.items():
            contact = Contact(user_id, email, name)
            await contacts.store(connection, contact=contact, now=harness.clock())
    placed = []
    events = [await harness.an_event(), await harness.an_event()]
    for number, customer in enumerate(NAMES):
        placed.append(await harness.place(events[number % 2], customer_id=customer, checkout=None))
        harness.clock.advance(timedelta(minutes=1))
    await harness.cancel(placed[2].booking_id)
    return placed


async def test_every_filter_selects_and_all_together(harness: BookingHarness) -> None:
    first, second, third = await three(harness)
    for matches, expected in (
        (Filter(), [third, second, first]),
        (Filter(customer_id=MIRA), [first]),
        (Filter(event_id=first.event_id), [third, first]),
        (Filter(status=Status.CANCELLED), [third]),
        (Filter(created_after=second.create_time), [third, second]),
        (Filter(created_before=second.create_time), [first]),
        (Filter(query="mira"), [third, first]),
        (Filter(query="RAO mir"), [first]),
        (Filter(query="mira.rao@example.com"), [first]),
        (Filter(query="osterberg"), [third]),
        (Filter(query="太郎"), [second]),
        (Filter(query="example miranda"), [third]),
        (Filter(query="nobody"), []),
        (Filter(query="' | & :*"), []),
        (Filter(query=str(second.booking_id)), [second]),
        (Filter(query=f" {str(second.booking_id).upper()[:-3]}"), [second]),
        (
            Filter(MIRA, first.event_id, Status.HELD, first.create_time, second.create_time, "rao"),
            [first],
        ),
    ):
        ids = [booking.booking_id for booking in expected]
        assert await listed(harness, matches) == ids, matches


def _of(matches: Filter) -> sa.Select[Any]:
    return sa.select(tables.bookings.c.booking_id).where(matches.condition())


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (_of(Filter(customer_id=MIRA)), "bookings_customer_id_booking_id_idx"),
        (_of(Filter(event_id=MIRA)), "bookings_event_id_booking_id_idx"),
        (_of(Filter(created_after=START)), "bookings_create_time_idx"),
        # Several indexes have the id.
        (_of(Filter(query="01a22cb0-ec47")), "Index Cond: ((booking_id >= "),
        (customers.named("mira rao"), "contacts_search_idx"),
    ],
)
async def test_the_conditions_can_use_an_index(
    harness: BookingHarness, statement: sa.Select[Any], expected: str
) -> None:
    async with harness.database.transaction() as connection:
        # Of small tables the planner would read all rows, or all of an index.
        for kind in ("seqscan", "indexscan", "indexonlyscan"):
            await connection.execute(sa.text(f"SET LOCAL enable_{kind} = off"))
        text = statement.compile(dialect=connection.dialect)
        plan: Any = await connection.exec_driver_sql(f"EXPLAIN {text}", text.params)
        lines = "\n".join(row[0] for row in plan)
    assert expected in lines, lines
