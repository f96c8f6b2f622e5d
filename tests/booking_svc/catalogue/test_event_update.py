"""Changes and deletion of events, also sold ones, with the real ledger."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue import (
    event_listing,
    event_status,
    event_update,
    events,
    favourites,
    orphaned_stock,
    stock_projection,
)
from booking_svc.catalogue import tables as booking_tables
from booking_svc.catalogue.event_commands import EventCommands
from booking_svc.catalogue.event_listing import Filters
from booking_svc.catalogue.event_update import EventChange, OfferChange
from booking_svc.catalogue.events import Event, Status
from booking_svc.clients.ports import Availability
from booking_svc.clients.stock import StockClient
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from stock_svc import tables as stock_tables
from testing.booking_harness import (
    START,
    BookingHarness,
    ProcessDiedError,
    a_new_event,
    an_offer,
    stock_stub,
)
from tests.booking_svc.catalogue.test_availability import a_seated_event

DAY = timedelta(days=1)


def commands(harness: BookingHarness) -> EventCommands:
    return EventCommands(
        database=harness.database,
        writes=harness.writes,
        stock=harness.stock,
        payments=harness.payments,
        clock=harness.clock,
    )


async def change(
    harness: BookingHarness, event: Event, *, etag: str | None = None, **changes: Any
) -> tuple[Event, Availability]:
    return await commands(harness).update(
        event_id=event.event_id, change=EventChange(**changes), etag=etag
    )


async def refusal_of(harness: BookingHarness, event: Event, **changes: Any) -> DomainError:
    """The error of a refused change, which must change neither event nor stock."""
    before = await read(harness, event.event_id)
    stock = await harness.stock.availability(event_id=event.event_id, with_seats=True)
    with pytest.raises(DomainError) as refusal:
        await change(harness, event, **changes)
    assert await read(harness, event.event_id) == before
    assert await harness.stock.availability(event_id=event.event_id, with_seats=True) == stock
    return refusal.value


def fields(refusal: DomainError) -> list[str]:
    assert refusal.reason is Reason.VALIDATION_FAILED
    return [violation.field for violation in refusal.violations]


async def read(harness: BookingHarness, event_id: UUID) -> Event:
    async with harness.database.reading() as connection:
        return await events.get(connection, event_id=event_id)


async def defined(harness: BookingHarness) -> set[UUID]:
    """Events with stock in the ledger."""
    async with harness.ledger.reading() as connection:
        event_ids = await connection.scalars(
            sa.select(stock_tables.pools.c.event_id).where(stock_tables.pools.c.capacity > 0)
        )
        return set(event_ids)


async def test_only_the_sent_fields_change(harness: BookingHarness) -> None:
    event = await harness.an_event()
    production_id = await harness.a_production()
    changed, _ = await change(harness, event, name="Winter Nights", production_id=production_id)
    assert changed.revision == event.revision + 1
    assert changed == await read(harness, event.event_id)
    assert changed == replace(
        event,
        name="Winter Nights",
        production_id=changed.production_id,
        revision=changed.revision,
        update_time=changed.update_time,
    )
    cleared, _ = await change(harness, event, clear=frozenset({"production_id", "end_time"}))
    assert (cleared.production_id, cleared.end_time) == (None, None)


async def test_a_stale_etag_changes_nothing(harness: BookingHarness) -> None:
    event = await harness.an_event()
    changed, _ = await change(harness, event, etag=event.etag, name="Second")
    for etag in (event.etag, f'"{event.etag}"', "x"):
        refusal = await refusal_of(harness, event, etag=etag, name="Third")
        assert refusal.reason is Reason.EVENT_CHANGED
        assert refusal.metadata == {"etag": changed.etag}
    for etag in (f'W/"{changed.etag}"', "*"):
        await change(harness, event, etag=etag, name="Third")


async def test_the_capacity_rises_at_once_and_falls_to_the_places_held_and_sold(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    offer_id = event.offers[0].offer_id
    await harness.place(event, quantity=6)

    def places(count: int) -> tuple[OfferChange, ...]:
        return (OfferChange(offer_id=offer_id, capacity=count),)

    changed, stock = await change(harness, event, offers=places(20))
    assert (changed.offers[0].capacity, stock.capacity, stock.available) == (20, 20, 14)
    refusal = await refusal_of(harness, event, offers=places(5))
    assert fields(refusal) == ["event.offers[0].capacity"]
    assert "6" in refusal.message
    changed, stock = await change(harness, event, offers=places(6))
    assert stock.available == 0
    async with harness.database.reading() as connection:
        status = await connection.scalar(
            sa.select(booking_tables.events.c.current_status).where(
                booking_tables.events.c.event_id == event.event_id
            )
        )
        availability_of = await stock_projection.availability_of(connection, events=[changed])
    assert status == Status.SOLD_OUT
    assert availability_of[event.event_id].available == 0
    assert not await harness.audit(event)


async def test_a_new_price_applies_to_new_bookings_only(harness: BookingHarness) -> None:
    event = await harness.an_event()
    before = await harness.place(event)
    await change(
        harness,
        event,
        offers=(OfferChange(name=event.offers[0].name, price=Money(200_000, "INR")),),
    )
    event = await read(harness, event.event_id)
    after = await harness.place(event)
    assert (await harness.booking(before.booking_id)).total == Money(150_000, "INR")
    assert after.total == Money(200_000, "INR")


async def test_offers_are_added_to_existing_and_new_pools(harness: BookingHarness) -> None:
    event = await harness.an_event()
    pool = str(event.offers[0].pool_id)
    changed, stock = await change(
        harness,
        event,
        offers=(
            OfferChange(name="Late", price=Money(1, "INR"), pool=pool),
            OfferChange(name="Balcony", price=Money(2, "INR"), capacity=5),
        ),
    )
    assert [offer.name for offer in changed.offers] == ["Floor", "Late", "Balcony"]
    assert list(stock.offers.values()) == [10, 10, 5]
    assert changed == await read(harness, event.event_id)
    booking = await harness.place(
        changed, items=[RequestedItem(offer.offer_id, 2, None) for offer in changed.offers]
    )
    assert booking.total == Money(2 * (150_000 + 1 + 2), "INR")
    again, _ = await change(
        harness, event, offers=(OfferChange(name="Balcony", price=Money(2, "INR"), capacity=5),)
    )
    assert again.offers == changed.offers


async def test_a_booked_seat_is_not_removed(harness: BookingHarness) -> None:
    event, seats = await a_seated_event(harness)
    await harness.place(event, items=[RequestedItem(None, 1, seats[0])])
    refusal = await refusal_of(harness, event, remove_seat_ids=(seats[1], seats[0]))
    assert fields(refusal) == ["event.remove_seat_ids[1]"]
    _, stock = await change(harness, event, remove_seat_ids=(seats[1],))
    assert stock.capacity == 3
    with pytest.raises(DomainError) as gone:
        await harness.place(event, items=[RequestedItem(None, 1, seats[1])])
    assert gone.value.reason is Reason.SEAT_NOT_FOUND
    _, stock = await change(harness, event, add_seat_ids=(seats[1],))
    assert stock.capacity == 4
    await harness.place(event, items=[RequestedItem(None, 1, seats[1])])
    unknown = await refusal_of(harness, event, add_seat_ids=(new_id(),))
    assert fields(unknown) == ["event.add_seat_ids[0]"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"end_time": START}, "event.end_time"),
        ({"sale_end_time": START - 9 * DAY}, "event.sale_start_time"),
        ({"time_zone": "Mars/Olympus"}, "event.time_zone"),
        ({"currency_code": "USD"}, "event.currency_code"),
        ({"offers": (OfferChange(offer_id=new_id()),)}, "event.offers[0].offer_id"),
        ({"offers": (OfferChange(name="New"),)}, "event.offers[0].price"),
        (
            {"offers": (OfferChange(name="New", price=Money(1, "INR")),)},
            "event.offers[0].capacity",
        ),
        (
            {"offers": (OfferChange(name="Floor", price=Money(1, "USD")),)},
            "event.offers[0].price.currency_code",
        ),
        ({"offers": (OfferChange(name="Floor", pool="other"),)}, "event.offers[0].pool_id"),
        (
            {"offers": (OfferChange(name="Floor"), OfferChange(name="Floor"))},
            "event.offers[1].offer_id",
        ),
        ({"add_seat_ids": (new_id(),)}, "event.add_seat_ids"),
    ],
)
async def test_every_violation_names_its_field(
    harness: BookingHarness, changes: dict[str, Any], field: str
) -> None:
    event = await harness.an_event()
    assert field in fields(await refusal_of(harness, event, **changes))


async def test_a_cancelled_event_cannot_change(harness: BookingHarness) -> None:
    event = await harness.an_event()
    await commands(harness).set_status(event_id=event.event_id, to=Status.CANCELLED)
    assert (await refusal_of(harness, event, name="x")).reason is Reason.EVENT_STATE_INVALID


async def test_a_sale_that_ends_with_the_start_moves_with_it(harness: BookingHarness) -> None:
    event = await harness.an_event(end_time=None)
    later = START + 60 * DAY
    changed, _ = await change(harness, event, start_time=later)
    assert changed.sale_end_time == later
    fixed, _ = await change(harness, event, sale_end_time=later - DAY)
    moved, _ = await change(harness, fixed, start_time=later + DAY)
    assert moved.sale_end_time == later - DAY


async def test_moving_onto_another_event_changes_neither_catalogue_nor_stock(
    harness: BookingHarness,
) -> None:
    event, seats = await a_seated_event(harness)
    other = await harness.an_event(
        an_offer(name="Regular", pool="r", capacity=None, seat_type="REGULAR"),
        auditorium_id=event.auditorium_id,
        start_time=START + 40 * DAY,
        end_time=START + 40 * DAY + timedelta(hours=3),
    )
    refusal = await refusal_of(
        harness,
        other,
        start_time=event.start_time,
        end_time=event.end_time,
        remove_seat_ids=(seats[0],),
    )
    assert refusal.reason is Reason.SHOWTIME_OVERLAP


async def test_concurrent_changes_of_the_stock_are_refused_or_complete(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    answers = await asyncio.gather(
        *(
            change(harness, event, offers=(OfferChange(name="Floor", capacity=10 + n),))
            for n in range(1, 9)
        ),
        return_exceptions=True,
    )
    refusals = [answer for answer in answers if isinstance(answer, BaseException)]
    assert {refusal.reason for refusal in refusals if isinstance(refusal, DomainError)} <= {
        Reason.EVENT_CHANGED
    }
    stock = await harness.stock.availability(event_id=event.event_id, with_seats=False)
    assert (await read(harness, event.event_id)).offers[0].capacity == stock.capacity


@pytest.mark.parametrize("point", [1, 2, 3, 4])
async def test_a_change_can_be_repeated_after_a_crash_at_any_step(
    harness: BookingHarness, point: int
) -> None:
    event = await harness.an_event()
    harness.crashes.passed, harness.crashes.at = 0, point
    changes: dict[str, Any] = {
        "name": "Renamed",
        "offers": (OfferChange(name="Floor", capacity=12),),
    }
    with pytest.raises(ProcessDiedError):
        await change(harness, event, **changes)
    harness.crashes.at = None
    harness.clock.advance(timedelta(seconds=16))
    changed, stock = await change(harness, event, **changes)
    assert (changed.name, changed.offers[0].capacity, stock.capacity) == ("Renamed", 12, 12)


def encode(event: Event, _: Availability) -> bytes:
    return event.event_id.bytes


async def test_a_refused_creation_leaves_no_stock(harness: BookingHarness) -> None:
    event, _ = await a_seated_event(harness)
    taken = a_new_event(
        auditorium_id=event.auditorium_id,
        offers=(an_offer(name="Regular", capacity=None, seat_type="REGULAR"),),
    )
    with pytest.raises(DomainError) as refusal:
        await commands(harness).create(new=taken, key=None, encode=encode)
    assert refusal.value.reason is Reason.SHOWTIME_OVERLAP
    assert len(await defined(harness)) == 2
    await orphaned_stock.remove_due(harness.database, harness.stock, now=harness.clock())
    assert await defined(harness) == {event.event_id}


@pytest.mark.parametrize("point", [1, 2])
async def test_a_creation_that_crashes_leaves_no_stock(harness: BookingHarness, point: int) -> None:
    harness.crashes.passed, harness.crashes.at = 0, point
    with pytest.raises(ProcessDiedError):
        await commands(harness).create(new=a_new_event(), key=None, encode=encode)
    harness.crashes.at = None
    assert (
        await orphaned_stock.remove_due(harness.database, harness.stock, now=harness.clock()) == 0
    )
    harness.clock.advance(orphaned_stock.CREATING)
    assert (
        await orphaned_stock.remove_due(harness.database, harness.stock, now=harness.clock()) == 1
    )
    assert await defined(harness) == set()


async def test_a_creation_that_takes_too_long_is_refused(harness: BookingHarness) -> None:
    """Its stock was removed as orphaned: no event may exist without stock."""

    class SlowStock(StockClient):
        async def define(self, **stock: Any) -> None:
            await super().define(**stock)
            harness.clock.advance(orphaned_stock.CREATING)
            await orphaned_stock.remove_due(harness.database, self, now=harness.clock())

    slow = SlowStock(stock_stub(harness.ledger, harness.clock))
    slow_commands = EventCommands(
        database=harness.database,
        writes=harness.writes,
        stock=slow,
        payments=harness.payments,
        clock=harness.clock,
    )
    with pytest.raises(DomainError) as refusal:
        await slow_commands.create(new=a_new_event(), key=None, encode=encode)
    assert refusal.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert await defined(harness) == set()


async def test_a_creation_is_refused_once_the_removal_of_its_stock_has_begun(
    harness: BookingHarness,
) -> None:
    """The removal does not succeed yet: a customer holds some of the stock."""

    class HeldStock(StockClient):
        async def define(self, **stock: Any) -> None:
            await super().define(**stock)
            harness.clock.advance(orphaned_stock.CREATING)
            await orphaned_stock.remove_due(harness.database, self, now=harness.clock())

        async def remove(self, *, event_id: UUID) -> None:
            raise DomainError(Reason.EVENT_STATE_INVALID, "places are held", event_id=event_id)

    held = HeldStock(stock_stub(harness.ledger, harness.clock))
    late_commands = EventCommands(
        database=harness.database,
        writes=harness.writes,
        stock=held,
        payments=harness.payments,
        clock=harness.clock,
    )
    with pytest.raises(DomainError) as refusal:
        await late_commands.create(new=a_new_event(), key=None, encode=encode)
    assert refusal.value.reason is Reason.DEPENDENCY_UNAVAILABLE


async def test_an_event_is_deleted_with_its_stock(harness: BookingHarness) -> None:
    event = await harness.an_event()
    await commands(harness).delete(event_id=event.event_id)
    await orphaned_stock.remove_due(harness.database, harness.stock, now=harness.clock())
    assert await defined(harness) == set()
    for call in (commands(harness).delete(event_id=event.event_id), read(harness, event.event_id)):
        with pytest.raises(DomainError) as refusal:
            await call
        assert refusal.value.reason is Reason.EVENT_NOT_FOUND


async def test_an_event_that_is_over_is_hidden_and_kept_for_its_bookings(
    harness: BookingHarness,
) -> None:
    listed, event = await harness.an_event(), await harness.an_event()
    await harness.place(event)
    assert event.end_time is not None
    harness.clock.now = event.end_time
    user_id = new_id()
    async with harness.database.transaction() as connection:
        await event_status.apply_due_transitions(connection, now=harness.clock())
        await favourites.add(
            connection, user_id=user_id, event_id=event.event_id, now=harness.clock()
        )
    await commands(harness).delete(event_id=event.event_id)
    hidden = await read(harness, event.event_id)
    assert (hidden.delete_time, hidden.update_time) == (harness.clock(), harness.clock())
    async with harness.database.transaction() as connection:
        for query in ("", "monsoon"):
            page = await event_listing.list_page(
                connection,
                filters=Filters(status=Status.ENDED, query=query),
                page_size=20,
                page_token="",
                totals=event_listing.Totals(),
                now=harness.clock(),
            )
            assert [entry.event.event_id for entry in page.events] == [listed.event_id]
            assert page.total_size == 1
        marked = await favourites.list_page(
            connection, user_id=user_id, page_size=20, page_token=""
        )
        assert (marked.events, marked.total_size) == ((), 0)
    for call in (
        commands(harness).delete(event_id=event.event_id),
        commands(harness).set_status(event_id=event.event_id, to=Status.CANCELLED),
        change(harness, event, name="Renamed"),
    ):
        with pytest.raises(DomainError) as refusal:
            await call
        assert refusal.value.reason is Reason.EVENT_NOT_FOUND


async def test_an_event_to_come_with_bookings_cannot_be_deleted(harness: BookingHarness) -> None:
    event = await harness.an_event()
    booking = await harness.place(event)
    await harness.cancel(booking.booking_id)
    await harness.run_until_idle()
    with pytest.raises(DomainError) as refusal:
        await commands(harness).delete(event_id=event.event_id)
    assert refusal.value.reason is Reason.EVENT_STATE_INVALID
    assert await read(harness, event.event_id) == event


async def test_of_a_concurrent_booking_and_deletion_exactly_one_succeeds(
    harness: BookingHarness,
) -> None:
    """Either the booking and its event exist, or neither does."""
    made: list[Event] = [await harness.an_event() for _ in range(8)]

    async def both(event: Event) -> Iterable[object]:
        return await asyncio.gather(
            harness.place(event, checkout=None),
            commands(harness).delete(event_id=event.event_id),
            return_exceptions=True,
        )

    for event, (placed, deleted) in zip(
        made, await asyncio.gather(*(both(event) for event in made)), strict=True
    ):
        assert isinstance(placed, BaseException) != isinstance(deleted, BaseException), event
    harness.clock.advance(DAY)
    for _ in range(3):
        await orphaned_stock.remove_due(harness.database, harness.stock, now=harness.clock())
        harness.clock.advance(DAY)


def test_a_plan_without_changes_of_stock_does_not_call_the_ledger() -> None:
    assert not event_update.ChangePlan(None, (), (), {}, (), (), ()).changes_stock  # type: ignore[arg-type]


async def test_the_ledger_enforces_the_purchase_limit_of_an_event(harness: BookingHarness) -> None:
    offers = [an_offer(), an_offer(name="Balcony", pool="balcony")]
    event = await harness.an_event(*offers, per_customer_limit=3)
    customer_id = new_id()
    await harness.place(event, quantity=3, customer_id=customer_id)
    with pytest.raises(DomainError) as refusal:
        await harness.place(event, quantity=1, customer_id=customer_id)
    assert refusal.value.reason is Reason.PURCHASE_LIMIT_EXCEEDED
    assert refusal.value.metadata["event_id"] == str(event.event_id)
    # Other changes keep the limit.
    same, _ = await change(harness, event, name="Winter Nights")
    assert same.per_customer_limit == 3
    raised, _ = await change(harness, event, per_customer_limit=4)
    assert raised == await read(harness, event.event_id)
    await harness.place(event, quantity=1, customer_id=customer_id)
    freed, _ = await change(harness, event, per_customer_limit=0)
    assert freed.per_customer_limit is None
    await harness.place(event, quantity=2, customer_id=customer_id)
