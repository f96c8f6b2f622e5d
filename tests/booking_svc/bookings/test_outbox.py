"""The domain events of bookings, as mails and webhooks read them."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc import tables as service_tables
from booking_svc.bookings import outbox
from booking_svc.bookings.bookings import SYSTEM, Actor, By
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


async def outbox_events(harness: BookingHarness, count: int) -> list[BookingEvent]:
    """The first `count` events of the outbox."""
    events = BookingEvents(OutboxReader(harness.database, service_tables.outbox))
    received: list[BookingEvent] = []
    async with asyncio.timeout(60), aclosing(events.open("")) as batches:  # type: ignore[type-var]
        async for _, batch in batches:
            received += batch
            if len(received) >= count:
                break
    return received


async def test_each_move_is_published_once_and_in_order(harness: BookingHarness) -> None:
    event = await harness.an_event()
    paid, cancelled, refused = [await harness.place(event) for _ in range(3)]
    for _ in range(2):
        await harness.capture(paid)
        await harness.run_until_idle()
    assert refused.payment is not None
    await harness.deliver(
        ports.Failed(refused.booking_id, refused.payment.payment_id, "card_declined")
    )
    await harness.cancel(cancelled.booking_id, reason="changed my mind")
    idle = await harness.place(event, checkout=None)
    harness.clock.advance(WINDOW)
    await harness.run_until_idle()
    published = await outbox_events(harness, 8)
    by_booking: dict[UUID, list[Change]] = {}
    for entry in published:
        by_booking.setdefault(entry.booking_id, []).append(entry.change)
    assert paid.payment is not None
    assert by_booking == {
        paid.booking_id: [Held(), Confirmed("payment captured", SYSTEM, paid.payment.payment_id)],
        cancelled.booking_id: [Held(), Cancelled(Actor.CUSTOMER, "changed my mind", None)],
        refused.booking_id: [Held(), Failed("payment declined, and not paid in time")],
        idle.booking_id: [Held(), Expired("not paid in time")],
    }
    assert len({entry.key for entry in published}) == len(published)
    assert {entry.event_id for entry in published} == {event.event_id}
    assert {entry.total for entry in published} == {paid.total}


async def test_a_consumer_inside_the_service_has_each_effect_once(harness: BookingHarness) -> None:
    event = await harness.an_event()
    placed = [await harness.place(event) for _ in range(3)]
    seen: list[UUID] = []

    async def apply(
        connection: AsyncConnection, events: Sequence[BookingEvent], now: datetime
    ) -> None:
        seen.extend(entry.booking_id for entry in events)

    def consumer() -> EventConsumer[BookingEvent]:
        return EventConsumer(
            stream="bookings for this test",
            database=harness.database,
            cursors=event_cursors,
            clock=harness.clock,
            open_stream=BookingEvents(OutboxReader(harness.database, service_tables.outbox)).open,
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
        Confirmed("payment captured", SYSTEM, new_id()),
        Confirmed("nothing to pay", By(Actor.STAFF, new_id())),
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
async def test_an_event_is_read_as_it_was_written(harness: BookingHarness, change: Change) -> None:
    booking = await harness.place(await harness.an_event())
    now = harness.clock()
    async with harness.database.transaction() as connection:
        await outbox.append(connection, booking=booking, change=change, now=now)
    [_, event] = await outbox_events(harness, 2)
    assert (event.change, event.time, event.customer_id) == (change, now, booking.customer_id)
