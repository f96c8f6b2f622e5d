"""Concurrent placing: bookings are written in batches, each with its own outcome."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import sqlalchemy as sa

from booking_svc import tables as service_tables
from booking_svc.bookings import state_machine
from booking_svc.bookings.batch_writer import BatchWriter, Insertion
from booking_svc.bookings.bookings import Actor, Booking, By, Item, PaymentStatus, Status
from booking_svc.catalogue.events import Event
from booking_svc.tables import idempotency_records
from mesh.db import idempotent
from mesh.db.idempotent import Key
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from mesh.rpc import call
from testing.booking_harness import HOLD, START, BookingHarness, an_offer

BATCH = 40
FEW = 10


async def transactions(harness: BookingHarness) -> int:
    """The number of transactions that inserted bookings."""
    counted = sa.select(sa.func.count(service_tables.outbox.c.transaction_id.distinct()))
    async with harness.database.reading() as connection:
        return int((await connection.execute(counted)).scalar_one())


def a_booking(harness: BookingHarness, event: Event, *, provider: str | None = None) -> Booking:
    offer = event.offers[0]
    return state_machine.placed(
        booking_id=new_id(),
        event=event,
        customer_id=new_id(),
        items=(Item(offer.offer_id, None, 1, offer.price),),
        hold_expire_time=harness.clock() + HOLD,
        provider=provider,
        now=harness.clock(),
    )


def key_of(booking: Booking, key: str = "k") -> Key:
    return Key(f"PlaceBooking:{booking.customer_id}", key, b"")


async def insert(writer: BatchWriter, booking: Booking, key: str = "k") -> bool:
    insertion = await writer.insert(
        key_of(booking, key),
        booking,
        By(Actor.CUSTOMER, booking.customer_id),
        None,
        is_mail_wanted=False,
    )
    return insertion is Insertion.INSERTED


async def test_concurrent_bookings_are_written_in_few_transactions(harness: BookingHarness) -> None:
    event = await harness.an_event()
    writer = BatchWriter(harness.database, harness.clock)
    bookings = [a_booking(harness, event) for _ in range(BATCH)]
    assert all(await asyncio.gather(*(insert(writer, booking) for booking in bookings)))
    # At most two batches are in flight; the others queue and form the next ones.
    assert await transactions(harness) <= 4
    assert {booking.booking_id for booking in await harness.all_bookings(event)} == {
        booking.booking_id for booking in bookings
    }


async def test_each_of_several_concurrent_calls_has_its_own_outcome(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event(an_offer(capacity=2))
    missing = replace(event, event_id=new_id())
    outcomes = await asyncio.gather(
        *(harness.place(event if n % 2 else missing, checkout=None) for n in range(FEW)),
        return_exceptions=True,
    )
    reasons = [outcome.reason for outcome in outcomes if isinstance(outcome, DomainError)]
    assert reasons.count(Reason.EVENT_NOT_FOUND) == FEW / 2
    assert reasons.count(Reason.SOLD_OUT) == FEW / 2 - 2
    assert sum(isinstance(outcome, Booking) for outcome in outcomes) == 2
    assert await harness.audit(event) == ()


async def test_batches_of_two_processes_with_the_same_keys(harness: BookingHarness) -> None:
    """Each process has its own batches; for each key one of them inserts the booking."""
    event, customer = await harness.an_event(), new_id()
    other = harness.another_process()

    async def place(process: BookingHarness, key: str) -> UUID:
        booking = await process.place(event, key=key, customer_id=customer, checkout=None)
        return booking.booking_id

    keys = [str(number) for number in range(FEW // 2)]
    both = [place(process, key) for key in keys for process in (harness, other)]
    made = await asyncio.gather(*both)
    assert made[::2] == made[1::2]
    assert len(set(made)) == len(keys)
    assert await harness.available(event) == 10 - len(keys)


async def test_a_booking_that_the_database_refuses_fails_alone(harness: BookingHarness) -> None:
    event = await harness.an_event()
    nowhere = replace(event, event_id=new_id())
    writer = BatchWriter(harness.database, harness.clock)
    bookings = [a_booking(harness, nowhere if n == 7 else event) for n in range(BATCH)]
    outcomes = await asyncio.gather(
        *(insert(writer, booking) for booking in bookings), return_exceptions=True
    )
    [refusal] = [outcome for outcome in outcomes if isinstance(outcome, DomainError)]
    assert refusal.reason is Reason.INTERNAL
    assert outcomes.count(True) == BATCH - 1
    assert (await harness.booking(bookings[-1].booking_id)).items == bookings[-1].items


async def test_a_key_that_is_used_writes_nothing(harness: BookingHarness) -> None:
    event = await harness.an_event()
    writer = BatchWriter(harness.database, harness.clock)
    first = a_booking(harness, event)
    second, third = (
        replace(first, booking_id=new, reservation_id=new) for new in (new_id(), new_id())
    )
    assert await insert(writer, first)
    is_first = await asyncio.gather(insert(writer, second), insert(writer, third, "other"))
    assert tuple(is_first) == (False, True)
    known = {booking.booking_id for booking in await harness.all_bookings(event)}
    assert known == {first.booking_id, third.booking_id}


async def test_each_event_of_a_batch_has_the_origin_of_its_own_call(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    writer = BatchWriter(harness.database, harness.clock)

    async def place(number: int) -> UUID:
        call.begin(request_id=f"request-{number}", idempotency_key=None)
        booking = a_booking(harness, event)
        await insert(writer, booking)
        return booking.booking_id

    made = await asyncio.gather(*map(place, range(BATCH)))
    async with harness.database.reading() as connection:
        rows = await connection.execute(
            sa.select(service_tables.outbox.c.aggregate_id, service_tables.outbox.c.origin)
        )
        origins = {row.aggregate_id: row.origin.partition(" ")[0] for row in rows}
    assert origins == {booking_id: f"request-{number}" for number, booking_id in enumerate(made)}


async def answer_of(harness: BookingHarness, key: Key) -> bytes | None:
    async with harness.database.reading() as connection:
        record = await idempotent.find(connection, idempotency_records, key)
    return None if record is None else record.response


async def test_a_payment_url_and_its_answer_are_written_unless_the_payment_was_replaced(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    writer = BatchWriter(harness.database, harness.clock)
    kept, lost = (a_booking(harness, event, provider="sandbox") for _ in range(2))
    assert all(await asyncio.gather(insert(writer, kept), insert(writer, lost)))
    assert lost.payment is not None
    other = replace(lost, payment=replace(lost.payment, payment_id=new_id()))
    opened = [
        state_machine.payment_opened(booking, "https://pay.example", START)
        for booking in (kept, other)
    ]
    is_written: Sequence[bool] = await asyncio.gather(
        *(writer.write(key_of(t.after), t, b"opened") for t in opened)
    )
    assert list(is_written) == [True, False]
    assert await harness.booking(kept.booking_id) == opened[0].after
    assert await harness.booking(lost.booking_id) == lost
    assert await answer_of(harness, key_of(kept)) == b"opened"
    assert await answer_of(harness, key_of(lost)) is None


async def test_a_payment_captured_before_its_url_is_stored_stays_captured(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    writer = BatchWriter(harness.database, harness.clock)
    booking = a_booking(harness, event, provider="sandbox")
    assert await insert(writer, booking)
    await harness.capture(booking)
    opened = state_machine.payment_opened(booking, "https://pay.example", START)
    assert not await writer.write(key_of(booking), opened, b"opened")
    payment = (await harness.booking(booking.booking_id)).payment
    assert payment is not None
    assert payment.status is PaymentStatus.CAPTURED


async def test_a_free_booking_and_its_answer_are_written_while_it_is_held(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event(an_offer(price=Money(0, "INR")))
    writer = BatchWriter(harness.database, harness.clock)
    held, gone = (a_booking(harness, event) for _ in range(2))
    assert all(await asyncio.gather(insert(writer, held), insert(writer, gone)))
    await harness.cancel(gone.booking_id)
    by = By(Actor.CUSTOMER, held.customer_id)
    confirmed = [
        state_machine.moved(booking, to=Status.CONFIRMED, reason="free", by=by, now=harness.clock())
        for booking in (held, gone)
    ]
    is_written: Sequence[bool] = await asyncio.gather(
        *(writer.write(key_of(t.after), t, b"confirmed") for t in confirmed)
    )
    assert list(is_written) == [True, False]
    assert await harness.booking(held.booking_id) == confirmed[0].after
    assert (await harness.booking(gone.booking_id)).status is Status.CANCELLED
    assert await answer_of(harness, key_of(held)) == b"confirmed"
    assert await answer_of(harness, key_of(gone)) is None
    async with harness.database.reading() as connection:
        types = await connection.scalars(
            sa.select(service_tables.outbox.c.event_type).order_by(service_tables.outbox.c.sequence)
        )
        assert types.all() == ["held", "held", "cancelled", "confirmed"]
