"""Defining an event's stock, and reading its availability."""

import asyncio
from dataclasses import replace

import pytest

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc import stock
from stock_svc.reservations import SeatState
from stock_svc.stock import Offer, Pool, Seat, Stock
from testing.stock_harness import LAPSED, NOW, on_sale

POOL, OTHER_POOL, OFFER, OTHER_OFFER, SEAT, OTHER_SEAT = (new_id() for _ in range(6))


async def define(database: Database, event_id: object, defined: Stock) -> None:
    async with database.transaction() as connection:
        await stock.define(connection, event_id=event_id, stock=defined, now=NOW)  # type: ignore[arg-type]


def a_stock() -> Stock:
    return Stock(
        pools=[Pool(POOL, 100), Pool(OTHER_POOL, 2)],
        offers=[Offer(OFFER, POOL, 4), Offer(OTHER_OFFER, OTHER_POOL, 2)],
        seats=[Seat(SEAT, OTHER_OFFER), Seat(OTHER_SEAT, OTHER_OFFER)],
    )


async def test_defined_stock_is_available(database: Database) -> None:
    event_id = new_id()
    await define(database, event_id, a_stock())
    async with database.transaction() as connection:
        availability = await stock.availability(
            connection, event_id=event_id, with_seats=True, now=NOW
        )
    assert {(p.pool_id, p.capacity, p.available) for p in availability.pools} == {
        (POOL, 100, 100),
        (OTHER_POOL, 2, 2),
    }
    assert {(o.offer_id, o.available) for o in availability.offers} == {
        (OFFER, 100),
        (OTHER_OFFER, 2),
    }
    assert [seat.state for seat in availability.seats] == [SeatState.AVAILABLE] * 2


async def test_the_same_stock_again_changes_nothing(database: Database) -> None:
    event_id, defined = new_id(), a_stock()
    await define(database, event_id, defined)
    reordered = Stock(
        pools=list(reversed(defined.pools)),
        offers=list(reversed(defined.offers)),
        seats=list(reversed(defined.seats)),
    )
    await define(database, event_id, reordered)
    async with database.transaction() as connection:
        availability = await stock.availability(
            connection, event_id=event_id, with_seats=False, now=NOW
        )
    assert availability.version == 2
    assert availability.seats == ()


async def test_other_stock_for_the_event_is_refused(database: Database) -> None:
    event_id, defined = new_id(), a_stock()
    await define(database, event_id, defined)
    for other in (
        replace(defined, pools=[Pool(POOL, 101), Pool(OTHER_POOL, 2)]),
        replace(defined, offers=[Offer(OFFER, POOL, 5), Offer(OTHER_OFFER, OTHER_POOL, 2)]),
        replace(defined, seats=[Seat(SEAT, OTHER_OFFER), Seat(new_id(), OTHER_OFFER)]),
    ):
        with pytest.raises(DomainError) as refused:
            await define(database, event_id, other)
        assert refused.value.reason is Reason.STOCK_ALREADY_DEFINED


async def test_concurrent_equal_definitions_define_once(database: Database) -> None:
    event_id = new_id()
    await asyncio.gather(*(define(database, event_id, a_stock()) for _ in range(4)))
    async with database.transaction() as connection:
        availability = await stock.availability(
            connection, event_id=event_id, with_seats=False, now=NOW
        )
    assert [pool.capacity for pool in availability.pools] in ([100, 2], [2, 100])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pools": [Pool(POOL, 100), Pool(OTHER_POOL, 2), Pool(POOL, 5)]}, "pools[2].pool_id"),
        ({"offers": [Offer(OFFER, POOL, 4), Offer(OFFER, POOL, 4)]}, "offers[1].offer_id"),
        ({"offers": [Offer(OFFER, new_id(), 4)]}, "offers[0].pool_id"),
        ({"seats": [Seat(SEAT, OTHER_OFFER), Seat(SEAT, OTHER_OFFER)]}, "seats[1].seat_id"),
        ({"seats": [Seat(SEAT, new_id())]}, "seats[0].offer_id"),
        ({"seats": [Seat(SEAT, OTHER_OFFER)]}, "pools[1].capacity"),
    ],
)
async def test_contradictory_stock_is_refused_by_its_field(
    database: Database, changes: dict[str, object], field: str
) -> None:
    with pytest.raises(DomainError) as refused:
        await define(database, new_id(), replace(a_stock(), **changes))  # type: ignore[arg-type]
    assert refused.value.reason is Reason.VALIDATION_FAILED
    assert field in [violation.field for violation in refused.value.violations]


async def test_a_stadium_of_seats_is_defined_in_time(database: Database) -> None:
    sale = await on_sale(database, seats={"stadium": [str(n) for n in range(25_000)]})
    assert await sale.available("stadium") == 25_000


async def test_seat_states_and_the_version_follow_the_reservations(
    database: Database,
) -> None:
    sale = await on_sale(database, seats={"stalls": ["A1", "A2", "A3"]})
    versions = [(await sale.availability()).version]
    sold = await sale.reserve(*sale.lines("A1"))
    versions.append((await sale.availability()).version)
    await sale.commit(sold.reservation_id)
    versions.append((await sale.availability()).version)
    await sale.reserve(*sale.lines("A2"))
    assert await sale.seat_states() == {"A1": "SOLD", "A2": "HELD", "A3": "AVAILABLE"}
    assert await sale.available("stalls") == 1
    assert versions == sorted(set(versions))
    # A lapsed hold counts as free before the sweep.
    assert await sale.seat_states(now=LAPSED) == {
        "A1": "SOLD",
        "A2": "AVAILABLE",
        "A3": "AVAILABLE",
    }
    assert await sale.available("stalls", now=LAPSED) == 2


async def test_an_unknown_event_has_no_stock(database: Database) -> None:
    async with database.transaction() as connection:
        with pytest.raises(DomainError) as refused:
            await stock.availability(connection, event_id=new_id(), with_seats=False, now=NOW)
    assert refused.value.reason is Reason.EVENT_NOT_FOUND
