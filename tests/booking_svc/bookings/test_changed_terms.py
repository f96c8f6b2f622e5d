"""Placing prices a booking by an event from the memory of its process, which may be out of date.

Each change is made by another process, so that the first one remembers the event as it was. Every
race is also run without the change, as its control: then the remembered event is good enough.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from booking_svc import tables as service_tables
from booking_svc.bookings.bookings import Status
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue import venues
from booking_svc.catalogue.event_memory import EventMemory
from booking_svc.catalogue.event_update import EventChange, OfferChange
from booking_svc.catalogue.events import Event
from booking_svc.catalogue.events import Status as EventStatus
from booking_svc.catalogue.venues import Row, Seat, SeatTerms
from booking_svc.clients import ports
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from testing.booking_harness import HOLD, BookingHarness, an_offer

Change = Callable[[BookingHarness, Event], Awaitable[object]]


async def set_status(harness: BookingHarness, event: Event, to: EventStatus) -> None:
    await harness.another_process().commands.set_status(event_id=event.event_id, to=to)


async def update(harness: BookingHarness, event: Event, change: EventChange) -> Event:
    commands = harness.another_process().commands
    changed, _ = await commands.update(event_id=event.event_id, change=change, etag=None)
    return changed


async def reprice(harness: BookingHarness, event: Event) -> None:
    await harness.another_process().reprice(event, Money(200_000, "INR"))


async def pause(harness: BookingHarness, event: Event) -> None:
    await set_status(harness, event, EventStatus.PAUSED)


async def cancel(harness: BookingHarness, event: Event) -> None:
    await set_status(harness, event, EventStatus.CANCELLED)


async def end_sale(harness: BookingHarness, event: Event) -> None:
    await update(harness, event, EventChange(sale_end_time=harness.clock() - timedelta(seconds=1)))


async def remembered(harness: BookingHarness, **changes: Any) -> Event:
    """An event with 10 places that the process has sold one of, and so remembers."""
    event = await harness.an_event(**changes)
    await harness.place(event, checkout=None)
    assert harness.deps.batch_writer.remembered(event.event_id, ()) is not None
    return event


def refusal_of(outcome: object) -> tuple[Reason, str | None]:
    assert isinstance(outcome, DomainError)
    return outcome.reason, outcome.metadata.get("status")


class DuringReserve:
    """A client of stock_svc during whose `reserve` the event changes: after it was priced."""

    def __init__(self, stock: ports.Stock, change: Callable[[], Awaitable[object]]) -> None:
        self._stock = stock
        self._change = change

    def __getattr__(self, method: str) -> Any:
        return getattr(self._stock, method)

    async def reserve(self, **arguments: Any) -> ports.Reservation:
        reservation = await self._stock.reserve(**arguments)
        await self._change()
        return reservation


def change_during_reserve(harness: BookingHarness, change: Callable[[], Awaitable[object]]) -> None:
    stock: Any = DuringReserve(harness.stock, change)
    harness.deps = replace(harness.deps, stock=stock)


@pytest.mark.parametrize(
    ("change", "status"),
    [(pause, "PAUSED"), (cancel, "CANCELLED"), (end_sale, "ENDED")],
    ids=["paused", "cancelled", "ended"],
)
@pytest.mark.parametrize("is_during_the_call", [False, True], ids=["before", "during"])
async def test_an_event_that_was_closed_is_not_sold(
    harness: BookingHarness, change: Change, status: str, is_during_the_call: bool
) -> None:
    event = await remembered(harness)
    if is_during_the_call:
        change_during_reserve(harness, lambda: change(harness, event))
    else:
        await change(harness, event)
    with pytest.raises(DomainError) as refused:
        await harness.place(event, checkout=None)
    assert refusal_of(refused.value) == (Reason.SALE_NOT_ACTIVE, status)
    # What was reserved for it is free again.
    assert await harness.available(event) == 9
    assert len(await harness.all_bookings(event)) == 1
    assert await harness.audit(event) == ()


@pytest.mark.parametrize("is_during_the_call", [False, True], ids=["before", "during"])
async def test_an_event_with_a_new_price_is_sold_at_the_new_price(
    harness: BookingHarness, is_during_the_call: bool
) -> None:
    event = await remembered(harness)
    if is_during_the_call:
        change_during_reserve(harness, lambda: reprice(harness, event))
    else:
        await reprice(harness, event)
    booking = await harness.place(event, quantity=2)
    assert booking.total == Money(400_000, "INR")
    assert harness.payments.opened == {booking.payment.payment_id: booking.total}  # type: ignore[union-attr]
    assert await harness.available(event) == 7
    assert await harness.audit(event) == ()


async def test_an_event_that_has_not_changed_is_sold_without_a_look_up(
    harness: BookingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same calls without a change do not read the event."""
    event = await remembered(harness)

    async def no_look_up(*_: object) -> None:
        raise AssertionError("the event was read")

    monkeypatch.setattr(harness.deps.batch_writer, "look_up", no_look_up)
    booking = await harness.place(event, quantity=2)
    assert booking.total == Money(300_000, "INR")


async def test_a_change_and_many_calls_at_once(harness: BookingHarness) -> None:
    """Each booking has the old or the new price; calls after the change have the new one."""
    event = await remembered(harness, offers=(an_offer(capacity=100),))
    outcomes: list[Any] = await asyncio.gather(
        *(harness.place(event, checkout=None) for _ in range(20)),
        reprice(harness, event),
        *(harness.place(event, checkout=None) for _ in range(20)),
    )
    prices = {outcome.total.amount_minor for outcome in outcomes if outcome is not None}
    assert prices <= {150_000, 200_000}
    later = await asyncio.gather(*(harness.place(event, checkout=None) for _ in range(5)))
    assert {booking.total.amount_minor for booking in later} == {200_000}
    assert await harness.available(event) == 100 - 46
    assert await harness.audit(event) == ()


async def test_a_resumed_event_is_sold_at_once(harness: BookingHarness) -> None:
    """Nothing is refused because of an event from memory."""
    event = await remembered(harness)
    await pause(harness, event)
    with pytest.raises(DomainError):
        await harness.place(event)
    await set_status(harness, event, EventStatus.ON_SALE)
    assert (await harness.place(event)).status is Status.PENDING_PAYMENT


async def test_a_new_offer_is_sold_at_once(harness: BookingHarness) -> None:
    event = await remembered(harness)
    balcony = OfferChange(name="Balcony", price=Money(5, "INR"), pool="new", capacity=3)
    changed = await update(harness, event, EventChange(offers=(balcony,)))
    [new] = [offer for offer in changed.offers if offer.name == "Balcony"]
    booking = await harness.place(event, items=[RequestedItem(new.offer_id, 1, None)])
    assert booking.total == Money(5, "INR")


async def test_a_sold_out_event_is_refused_with_the_number_that_is_left(
    harness: BookingHarness,
) -> None:
    event = await remembered(harness)
    with pytest.raises(DomainError) as refused:
        await harness.place(event, quantity=10)
    assert refused.value.reason is Reason.SOLD_OUT
    assert refused.value.metadata["available"] == "9"


async def test_a_sold_out_event_that_was_paused_is_refused_as_paused(
    harness: BookingHarness,
) -> None:
    event = await remembered(harness)
    await pause(harness, event)
    with pytest.raises(DomainError) as refused:
        await harness.place(event, quantity=10)
    assert refusal_of(refused.value) == (Reason.SALE_NOT_ACTIVE, "PAUSED")


async def test_a_deleted_event_is_not_found(harness: BookingHarness) -> None:
    event = await harness.an_event()
    with pytest.raises(DomainError):
        await harness.place(event, quantity=11)
    assert harness.deps.batch_writer.remembered(event.event_id, ()) is not None
    await harness.another_process().commands.delete(event_id=event.event_id)
    with pytest.raises(DomainError) as refused:
        await harness.place(event, checkout=None)
    assert refused.value.reason is Reason.EVENT_NOT_FOUND
    assert await harness.available(event) == 10


async def test_a_repeated_key_has_its_answer_whatever_became_of_the_event(
    harness: BookingHarness,
) -> None:
    event, customer = await remembered(harness), new_id()
    booking = await harness.place(event, key="k", customer_id=customer, checkout=None)
    again = await harness.place(event, key="k", customer_id=customer, checkout=None)
    await pause(harness, event)
    paused = await harness.place(event, key="k", customer_id=customer, checkout=None)
    assert booking.booking_id == again.booking_id == paused.booking_id
    assert await harness.available(event) == 8


async def test_a_repeated_key_whose_hold_has_ended_holds_nothing(harness: BookingHarness) -> None:
    event, customer = await remembered(harness), new_id()
    booking = await harness.place(event, key="k", customer_id=customer, checkout=None)
    await harness.cancel(booking.booking_id)
    await harness.run_until_idle()
    again = await harness.place(event, key="k", customer_id=customer, checkout=None)
    assert (again.booking_id, again.status) == (booking.booking_id, Status.CANCELLED)
    assert await harness.available(event) == 9
    assert await harness.audit(event) == ()


class NoRelease:
    """A client of stock_svc that does not reach it for releases."""

    def __init__(self, stock: ports.Stock) -> None:
        self._stock = stock

    def __getattr__(self, method: str) -> Any:
        return getattr(self._stock, method)

    async def release(self, **_: object) -> None:
        raise DomainError(Reason.DEPENDENCY_UNAVAILABLE, "stock_svc is not reachable")


async def test_a_repeated_key_has_its_answer_if_nothing_can_be_released(
    harness: BookingHarness,
) -> None:
    event, customer = await remembered(harness), new_id()
    booking = await harness.place(event, key="k", customer_id=customer, checkout=None)
    await harness.cancel(booking.booking_id)
    await harness.run_until_idle()
    stock: Any = NoRelease(harness.stock)
    deps, harness.deps = harness.deps, replace(harness.deps, stock=stock)
    again = await harness.place(event, key="k", customer_id=customer, checkout=None)
    assert again.booking_id == booking.booking_id
    # It expires like every hold.
    harness.deps = deps
    harness.clock.advance(HOLD)
    assert await harness.available(event) == 10


async def test_a_key_that_was_used_for_another_event_holds_nothing(
    harness: BookingHarness,
) -> None:
    first, second, customer = await remembered(harness), await remembered(harness), new_id()
    await harness.place(first, key="k", customer_id=customer, checkout=None)
    with pytest.raises(DomainError) as refused:
        await harness.place(second, key="k", customer_id=customer, checkout=None)
    assert refused.value.reason is Reason.IDEMPOTENCY_KEY_REUSED
    assert await harness.available(second) == 9


async def test_a_key_that_was_used_with_another_checkout_keeps_its_places(
    harness: BookingHarness,
) -> None:
    event, customer = await remembered(harness), new_id()
    booking = await harness.place(event, key="k", customer_id=customer, checkout=None)
    with pytest.raises(DomainError) as refused:
        await harness.place(event, key="k", customer_id=customer)
    assert refused.value.reason is Reason.IDEMPOTENCY_KEY_REUSED
    assert await harness.available(event) == 8
    assert (await harness.checkout(booking.booking_id)).status is Status.PENDING_PAYMENT


async def test_seats_are_sold_from_memory_and_new_ones_are_found(harness: BookingHarness) -> None:
    def row(label: str, *seats: Seat) -> Row:
        return Row(label, seats)

    def a_seat(number: int, seat_type: str = "REGULAR", price_modifier: int = 0) -> Seat:
        return Seat(new_id(), str(number), seat_type, None, None, price_modifier=price_modifier)

    async with harness.database.transaction() as connection:
        venue = await venues.create_venue(
            connection, name="Hall", time_zone="Asia/Kolkata", address="", now=harness.clock()
        )
        auditorium = await venues.create_auditorium(
            connection,
            venue_id=venue.venue_id,
            name="One",
            rows=(
                row("A", a_seat(1), a_seat(2, price_modifier=5_000)),
                row("B", a_seat(1, "PREMIUM", price_modifier=-10), a_seat(2, "PREMIUM")),
            ),
            now=harness.clock(),
        )
    seats = [seat.seat_id for row in auditorium.rows for seat in row.seats]
    event = await harness.an_event(
        an_offer(seat_type="REGULAR", capacity=None, pool="a"),
        an_offer(name="Best", seat_type="PREMIUM", capacity=None, pool="b", price=Money(9, "INR")),
        auditorium_id=auditorium.auditorium_id,
    )

    async def place(seat_id: UUID) -> int:
        booking = await harness.place(event, items=[RequestedItem(None, 1, seat_id)], checkout=None)
        return booking.total.amount_minor

    # The first is priced by what the database has, the others by the memory. No price is below 0.
    for seat_id, price in zip(seats, (150_000, 155_000, 0, 9), strict=True):
        assert await place(seat_id) == price
        assert harness.deps.batch_writer.remembered(event.event_id, seats) is not None
    with pytest.raises(DomainError) as refused:
        await place(new_id())
    assert refused.value.reason is Reason.SEAT_NOT_FOUND
    async with harness.database.transaction() as connection:
        await venues.add_seats(
            connection,
            auditorium_id=auditorium.auditorium_id,
            rows=(row("C", new := a_seat(1)),),
            now=harness.clock(),
        )
    await update(harness, event, EventChange(add_seat_ids=(new.seat_id,)))
    assert await place(new.seat_id) == 150_000


REGULAR = SeatTerms("REGULAR")


async def test_memory_is_bounded(harness: BookingHarness) -> None:
    event = await harness.an_event()
    memory = EventMemory(most_events=2, most_seats=3)
    ids = [new_id() for _ in range(3)]
    for event_id in ids:
        memory.remember(event_id, replace(event, event_id=event_id))
    assert [memory.event(event_id) is None for event_id in ids] == [True, False, False]
    seat, halls = new_id(), [new_id() for _ in range(3)]
    for hall in halls[:2]:
        memory.remember_seats(hall, {seat.bytes: REGULAR, new_id().bytes: REGULAR})
    memory.remember_seats(halls[2], {new_id().bytes: REGULAR for _ in range(4)})
    known = [
        memory.seat_terms(replace(event, auditorium_id=hall), [seat]) is not None for hall in halls
    ]
    assert known == [False, True, False]


async def test_an_event_is_counted_once_in_the_outbox(harness: BookingHarness) -> None:
    """A booking of which nothing was inserted has no domain event."""
    event, customer = await remembered(harness), new_id()
    for _ in range(2):
        await harness.place(event, key="k", customer_id=customer, checkout=None)
    counted = sa.select(sa.func.count()).select_from(service_tables.outbox)
    async with harness.database.reading() as connection:
        assert await connection.scalar(counted) == 2
