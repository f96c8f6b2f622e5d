"""What happens to bookings, as mails and webhooks follow it."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import outbox, tables
from booking_svc.bookings.bookings import Actor
from booking_svc.bookings.outbox import (
    BookingEvent,
    BookingEvents,
    Cancelled,
    Change,
    Completed,
    Confirmed,
    Expired,
    Failed,
    Held,
    Refunded,
    Rescheduled,
    Updated,
)
from booking_svc.clients import ports
from booking_svc.tables import event_cursors
from mesh.db.consumer import EventConsumer
from mesh.db.outbox import OutboxReader
from mesh.ids import new_id
from mesh.money import Money
from testing.booking_harness import WINDOW, BookingHarness


async def happened(harness: BookingHarness, count: int) -> list[BookingEvent]:
    """The first `count` events of the outbox."""
    events = BookingEvents(OutboxReader(harness.database, tables.outbox))
    found: list[BookingEvent] = []
    async with asyncio.timeout(60), aclosing(events.open("")) as batches:  # type: ignore[type-var]
        async for _, batch in batches:
            found += batch
            if len(found) >= count:
                break
    return found


async def test_each_move_is_told_once_in_its_order(harness: BookingHarness) -> None:
    event = await harness.an_event()
    paid, left, refused = [await harness.place(event) for _ in range(3)]
    for _ in range(2):
        await harness.capture(paid)
        await harness.run_until_idle()
    assert refused.payment is not None
    await harness.deliver(
        ports.Failed(refused.booking_id, refused.payment.payment_id, "card_declined")
    )
    await harness.cancel(left.booking_id, reason="changed my mind")
    idle = await harness.place(event, checkout=None)
    harness.clock.advance(WINDOW)
    await harness.run_until_idle()
    told = await happened(harness, 8)
    by_booking: dict[UUID, list[Change]] = {}
    for each in told:
        by_booking.setdefault(each.booking_id, []).append(each.change)
    assert by_booking == {
        paid.booking_id: [Held(), Confirmed("payment captured")],
        left.booking_id: [Held(), Cancelled(Actor.CUSTOMER, "changed my mind", None)],
        refused.booking_id: [Held(), Failed("payment failed: card_declined")],
        idle.booking_id: [Held(), Expired("not paid in time")],
    }
    assert len({each.key for each in told}) == len(told)
    assert {each.event_id for each in told} == {event.event_id}
    assert {each.total for each in told} == {paid.total}


async def test_a_consumer_inside_the_service_has_each_effect_once(harness: BookingHarness) -> None:
    event = await harness.an_event()
    placed = [await harness.place(event) for _ in range(3)]
    seen: list[UUID] = []

    async def apply(
        connection: AsyncConnection, events: Sequence[BookingEvent], now: datetime
    ) -> None:
        seen.extend(each.booking_id for each in events)

    def consumer() -> EventConsumer[BookingEvent]:
        return EventConsumer(
            stream="bookings for this test",
            database=harness.database,
            cursors=event_cursors,
            clock=harness.clock,
            open_stream=BookingEvents(OutboxReader(harness.database, tables.outbox)).open,
            apply=apply,
        )

    for number in (3, 4):
        running = asyncio.create_task(consumer().run())
        async with asyncio.timeout(60):
            while len(seen) < number:
                await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        if number == 3:
            placed.append(await harness.place(event))
    assert seen == [booking.booking_id for booking in placed]


@pytest.mark.parametrize(
    "change",
    [
        Held(),
        Confirmed("payment captured"),
        Cancelled(Actor.ORGANISER, "the band is ill", Money(1, "JPY")),
        Expired("not paid in time"),
        Failed("payment failed: card_declined"),
        Rescheduled(new_id(), Money(2, "INR"), None),
        Rescheduled(new_id(), Money(2, "INR"), Money(1, "INR")),
        Updated(Money(2, "INR"), Money(1, "INR")),
        Refunded(new_id(), Money(3, "KWD")),
        Completed(),
    ],
    ids=lambda change: type(change).__name__,
)
async def test_what_is_written_is_read_back(harness: BookingHarness, change: Change) -> None:
    booking = await harness.place(await harness.an_event())
    now = harness.clock()
    async with harness.database.transaction() as connection:
        await outbox.append(connection, booking=booking, change=change, now=now)
    [_, event] = await happened(harness, 2)
    assert (event.change, event.time, event.customer_id) == (change, now, booking.customer_id)
