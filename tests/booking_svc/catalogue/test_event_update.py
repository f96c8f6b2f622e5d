"""Changing and removing events, sold ones too, with the ledger that knows what is sold."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue import event_update, events, orphaned_stock, stock_projection
from booking_svc.catalogue import tables as booking_tables
from booking_svc.catalogue.event_commands import EventCommands
from booking_svc.catalogue.event_update import EventChange, OfferChange
from booking_svc.catalogue.events import Event, Status
from booking_svc.clients.ports import Availability
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from stock_svc import tables as stock_tables
from testing.booking_harness import (
    START,
    LedgerStock,
    ProcessDiedError,
    World,
    a_new_event,
    an_offer,
)
from tests.booking_svc.catalogue.test_availability import a_seated_event

DAY = timedelta(days=1)


def desk(world: World) -> EventCommands:
    return EventCommands(
        database=world.database, writes=world.writes, stock=world.stock, clock=world.clock
    )


async def change(
    world: World, event: Event, *, etag: str | None = None, **changes: Any
) -> tuple[Event, Availability]:
    return await desk(world).update(
        event_id=event.event_id, change=EventChange(**changes), etag=etag
    )


async def refusal_of(world: World, event: Event, **changes: Any) -> DomainError:
    """The refusal of a change, which has changed nothing."""
    before = await read(world, event.event_id)
    left = await world.stock.availability(event_id=event.event_id, with_seats=True)
    with pytest.raises(DomainError) as refusal:
        await change(world, event, **changes)
    assert await read(world, event.event_id) == before
    assert await world.stock.availability(event_id=event.event_id, with_seats=True) == left
    return refusal.value


def fields(refusal: DomainError) -> list[str]:
    assert refusal.reason is Reason.VALIDATION_FAILED
    return [violation.field for violation in refusal.violations]


async def read(world: World, event_id: UUID) -> Event:
    async with world.database.reading() as connection:
        return await events.get(connection, event_id=event_id)


async def defined(world: World) -> set[UUID]:
    """Events that the ledger has stock of."""
    async with world.ledger.reading() as connection:
        found = await connection.scalars(
            sa.select(stock_tables.pools.c.event_id).where(stock_tables.pools.c.capacity > 0)
        )
        return set(found)


async def test_what_is_sent_changes_and_nothing_else(world: World) -> None:
    event = await world.an_event()
    changed, _ = await change(world, event, name="Winter Nights", production_id=new_id())
    assert changed.revision == event.revision + 1
    assert changed == await read(world, event.event_id)
    assert changed == replace(
        event,
        name="Winter Nights",
        production_id=changed.production_id,
        revision=changed.revision,
        update_time=changed.update_time,
    )
    cleared, _ = await change(world, event, clear=frozenset({"production_id", "end_time"}))
    assert (cleared.production_id, cleared.end_time) == (None, None)


async def test_a_stale_etag_changes_nothing(world: World) -> None:
    event = await world.an_event()
    changed, _ = await change(world, event, etag=event.etag, name="Second")
    for etag in (event.etag, f'"{event.etag}"', "x"):
        refusal = await refusal_of(world, event, etag=etag, name="Third")
        assert refusal.reason is Reason.EVENT_CHANGED
        assert refusal.metadata == {"etag": changed.etag}
    for etag in (f'W/"{changed.etag}"', "*"):
        await change(world, event, etag=etag, name="Third")


async def test_the_capacity_goes_up_at_once_and_down_to_what_is_taken(world: World) -> None:
    event = await world.an_event()
    offer_id = event.offers[0].offer_id
    await world.place(event, quantity=6)

    def places(count: int) -> tuple[OfferChange, ...]:
        return (OfferChange(offer_id=offer_id, capacity=count),)

    changed, left = await change(world, event, offers=places(20))
    assert (changed.offers[0].capacity, left.capacity, left.available) == (20, 20, 14)
    refusal = await refusal_of(world, event, offers=places(5))
    assert fields(refusal) == ["event.offers[0].capacity"]
    assert "6" in refusal.message
    changed, left = await change(world, event, offers=places(6))
    assert left.available == 0
    async with world.database.reading() as connection:
        status = await connection.scalar(
            sa.select(booking_tables.events.c.current_status).where(
                booking_tables.events.c.event_id == event.event_id
            )
        )
        availability_of = await stock_projection.availability_of(connection, events=[changed])
    assert status == Status.SOLD_OUT
    assert availability_of[event.event_id].available == 0
    assert not await world.audit(event)


async def test_a_new_price_holds_for_new_bookings_only(world: World) -> None:
    event = await world.an_event()
    before = await world.place(event)
    await change(
        world,
        event,
        offers=(OfferChange(name=event.offers[0].name, price=Money(200_000, "INR")),),
    )
    event = await read(world, event.event_id)
    after = await world.place(event)
    assert (await world.booking(before.booking_id)).total == Money(150_000, "INR")
    assert after.total == Money(200_000, "INR")


async def test_offers_are_added_to_pools_old_and_new(world: World) -> None:
    event = await world.an_event()
    pool = str(event.offers[0].pool_id)
    changed, left = await change(
        world,
        event,
        offers=(
            OfferChange(name="Late", price=Money(1, "INR"), pool=pool),
            OfferChange(name="Balcony", price=Money(2, "INR"), capacity=5),
        ),
    )
    assert [offer.name for offer in changed.offers] == ["Floor", "Late", "Balcony"]
    assert list(left.offers.values()) == [10, 10, 5]
    assert changed == await read(world, event.event_id)
    booking = await world.place(
        changed, wanted=[RequestedItem(offer.offer_id, 2, None) for offer in changed.offers]
    )
    assert booking.total == Money(2 * (150_000 + 1 + 2), "INR")
    again, _ = await change(
        world, event, offers=(OfferChange(name="Balcony", price=Money(2, "INR"), capacity=5),)
    )
    assert again.offers == changed.offers


async def test_a_seat_that_somebody_has_is_not_taken_out(world: World) -> None:
    event, seats = await a_seated_event(world)
    await world.place(event, wanted=[RequestedItem(None, 1, seats[0])])
    refusal = await refusal_of(world, event, remove_seat_ids=(seats[1], seats[0]))
    assert fields(refusal) == ["event.remove_seat_ids[1]"]
    _, left = await change(world, event, remove_seat_ids=(seats[1],))
    assert left.capacity == 3
    with pytest.raises(DomainError) as gone:
        await world.place(event, wanted=[RequestedItem(None, 1, seats[1])])
    assert gone.value.reason is Reason.SEAT_NOT_FOUND
    _, left = await change(world, event, add_seat_ids=(seats[1],))
    assert left.capacity == 4
    await world.place(event, wanted=[RequestedItem(None, 1, seats[1])])
    stranger = await refusal_of(world, event, add_seat_ids=(new_id(),))
    assert fields(stranger) == ["event.add_seat_ids[0]"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"end_time": START}, "event.end_time"),
        ({"sale_end_time": START - 9 * DAY}, "event.sale_start_time"),
        ({"time_zone": "Mars/Olympus"}, "event.time_zone"),
        ({"currency_code": "USD"}, "event.currency_code"),
        ({"auditorium_id": new_id()}, "event.auditorium_id"),
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
async def test_every_fault_names_its_field(
    world: World, changes: dict[str, Any], field: str
) -> None:
    event = await world.an_event()
    assert field in fields(await refusal_of(world, event, **changes))


async def test_a_cancelled_event_does_not_change(world: World) -> None:
    event = await world.an_event()
    await desk(world).set_status(event_id=event.event_id, to=Status.CANCELLED)
    assert (await refusal_of(world, event, name="x")).reason is Reason.EVENT_STATE_INVALID


async def test_a_start_that_moves_takes_the_end_of_the_sale_along(world: World) -> None:
    event = await world.an_event(end_time=None)
    later = START + 60 * DAY
    changed, _ = await change(world, event, start_time=later)
    assert changed.sale_end_time == later
    fixed, _ = await change(world, event, sale_end_time=later - DAY)
    moved, _ = await change(world, fixed, start_time=later + DAY)
    assert moved.sale_end_time == later - DAY


async def test_moving_onto_another_event_changes_neither_catalogue_nor_stock(
    world: World,
) -> None:
    event, seats = await a_seated_event(world)
    other = await world.an_event(
        an_offer(name="Regular", pool="r", capacity=None, seat_type="REGULAR"),
        auditorium_id=event.auditorium_id,
        start_time=START + 40 * DAY,
        end_time=START + 40 * DAY + timedelta(hours=3),
    )
    refusal = await refusal_of(
        world,
        other,
        start_time=event.start_time,
        end_time=event.end_time,
        remove_seat_ids=(seats[0],),
    )
    assert refusal.reason is Reason.SHOWTIME_OVERLAP


async def test_two_changes_of_the_stock_do_not_mix(world: World) -> None:
    event = await world.an_event()
    answers = await asyncio.gather(
        *(
            change(world, event, offers=(OfferChange(name="Floor", capacity=10 + n),))
            for n in range(1, 9)
        ),
        return_exceptions=True,
    )
    refusals = [each for each in answers if isinstance(each, BaseException)]
    assert {refusal.reason for refusal in refusals if isinstance(refusal, DomainError)} <= {
        Reason.EVENT_CHANGED
    }
    left = await world.stock.availability(event_id=event.event_id, with_seats=False)
    assert (await read(world, event.event_id)).offers[0].capacity == left.capacity


@pytest.mark.parametrize("point", [1, 2, 3, 4])
async def test_wherever_a_change_dies_it_can_be_made_again(world: World, point: int) -> None:
    event = await world.an_event()
    world.crashes.passed, world.crashes.at = 0, point
    wanted: dict[str, Any] = {
        "name": "Renamed",
        "offers": (OfferChange(name="Floor", capacity=12),),
    }
    with pytest.raises(ProcessDiedError):
        await change(world, event, **wanted)
    world.crashes.at = None
    world.clock.advance(timedelta(seconds=16))
    changed, left = await change(world, event, **wanted)
    assert (changed.name, changed.offers[0].capacity, left.capacity) == ("Renamed", 12, 12)


def encode(event: Event, _: Availability) -> bytes:
    return event.event_id.bytes


async def test_a_refused_creation_leaves_no_stock(world: World) -> None:
    event, _ = await a_seated_event(world)
    taken = a_new_event(
        auditorium_id=event.auditorium_id,
        offers=(an_offer(name="Regular", capacity=None, seat_type="REGULAR"),),
    )
    with pytest.raises(DomainError) as refusal:
        await desk(world).create(new=taken, key=None, encode=encode)
    assert refusal.value.reason is Reason.SHOWTIME_OVERLAP
    assert len(await defined(world)) == 2
    await orphaned_stock.remove_due(world.database, world.stock, now=world.clock())
    assert await defined(world) == {event.event_id}


@pytest.mark.parametrize("point", [1, 2])
async def test_a_creation_that_dies_leaves_no_stock(world: World, point: int) -> None:
    world.crashes.passed, world.crashes.at = 0, point
    with pytest.raises(ProcessDiedError):
        await desk(world).create(new=a_new_event(), key=None, encode=encode)
    world.crashes.at = None
    assert await orphaned_stock.remove_due(world.database, world.stock, now=world.clock()) == 0
    world.clock.advance(orphaned_stock.CREATING)
    assert await orphaned_stock.remove_due(world.database, world.stock, now=world.clock()) == 1
    assert await defined(world) == set()


async def test_a_creation_that_comes_too_late_is_refused(world: World) -> None:
    """Its stock was taken for left behind: no event may come up without stock."""

    class SlowStock(LedgerStock):
        async def define(self, **stock: Any) -> None:
            await super().define(**stock)
            world.clock.advance(orphaned_stock.CREATING)
            await orphaned_stock.remove_due(world.database, self, now=world.clock())

    slow = SlowStock(world.ledger, world.clock, world.crashes)
    late = EventCommands(
        database=world.database, writes=world.writes, stock=slow, clock=world.clock
    )
    with pytest.raises(DomainError) as refusal:
        await late.create(new=a_new_event(), key=None, encode=encode)
    assert refusal.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert await defined(world) == set()


async def test_a_creation_is_refused_once_the_removal_of_its_stock_has_begun(world: World) -> None:
    """The removal does not succeed yet: a customer holds some of the stock."""

    class HeldStock(LedgerStock):
        async def define(self, **stock: Any) -> None:
            await super().define(**stock)
            world.clock.advance(orphaned_stock.CREATING)
            await orphaned_stock.remove_due(world.database, self, now=world.clock())

        async def remove(self, *, event_id: UUID) -> None:
            raise DomainError(Reason.EVENT_STATE_INVALID, "places are held", event_id=event_id)

    held = HeldStock(world.ledger, world.clock, world.crashes)
    late = EventCommands(
        database=world.database, writes=world.writes, stock=held, clock=world.clock
    )
    with pytest.raises(DomainError) as refusal:
        await late.create(new=a_new_event(), key=None, encode=encode)
    assert refusal.value.reason is Reason.DEPENDENCY_UNAVAILABLE


async def test_an_event_is_removed_with_its_stock(world: World) -> None:
    event = await world.an_event()
    await desk(world).delete(event_id=event.event_id)
    await orphaned_stock.remove_due(world.database, world.stock, now=world.clock())
    assert await defined(world) == set()
    for call in (desk(world).delete(event_id=event.event_id), read(world, event.event_id)):
        with pytest.raises(DomainError) as refusal:
            await call
        assert refusal.value.reason is Reason.EVENT_NOT_FOUND


async def test_an_event_with_bookings_stays(world: World) -> None:
    event = await world.an_event()
    booking = await world.place(event)
    await world.cancel(booking.booking_id)
    await world.settle()
    with pytest.raises(DomainError) as refusal:
        await desk(world).delete(event_id=event.event_id)
    assert refusal.value.reason is Reason.EVENT_STATE_INVALID
    assert await read(world, event.event_id) == event


async def test_buying_and_removing_at_once_leaves_one_of_them(world: World) -> None:
    """Either there is the booking and its event, or neither."""
    made: list[Event] = [await world.an_event() for _ in range(8)]

    async def both(event: Event) -> Iterable[object]:
        return await asyncio.gather(
            world.place(event, checkout=None),
            desk(world).delete(event_id=event.event_id),
            return_exceptions=True,
        )

    for event, (placed, deleted) in zip(
        made, await asyncio.gather(*(both(event) for event in made)), strict=True
    ):
        assert isinstance(placed, BaseException) != isinstance(deleted, BaseException), event
    world.clock.advance(DAY)
    for _ in range(3):
        await orphaned_stock.remove_due(world.database, world.stock, now=world.clock())
        world.clock.advance(DAY)


def test_a_plan_tells_nothing_to_the_ledger_when_no_stock_changes() -> None:
    assert not event_update.ChangePlan(None, (), (), {}, (), (), ()).changes_stock  # type: ignore[arg-type]


async def test_the_purchase_limit_of_an_event_is_the_ledgers(world: World) -> None:
    offers = [an_offer(), an_offer(name="Balcony", pool="balcony")]
    event = await world.an_event(*offers, per_customer_limit=3)
    customer_id = new_id()
    await world.place(event, quantity=3, customer_id=customer_id)
    with pytest.raises(DomainError) as refusal:
        await world.place(event, quantity=1, customer_id=customer_id)
    assert refusal.value.reason is Reason.PURCHASE_LIMIT_EXCEEDED
    assert refusal.value.metadata["event_id"] == str(event.event_id)
    # Other changes leave it alone.
    same, _ = await change(world, event, name="Winter Nights")
    assert same.per_customer_limit == 3
    raised, _ = await change(world, event, per_customer_limit=4)
    assert raised == await read(world, event.event_id)
    await world.place(event, quantity=1, customer_id=customer_id)
    freed, _ = await change(world, event, per_customer_limit=0)
    assert freed.per_customer_limit is None
    await world.place(event, quantity=2, customer_id=customer_id)
