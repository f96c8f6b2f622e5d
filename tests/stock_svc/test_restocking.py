"""Restock, update, block and unblock seats, remove."""

import pytest
import sqlalchemy as sa

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc import restocking, stock
from stock_svc.reservations import Line
from stock_svc.stock import Offer, Pool, Seat
from stock_svc.stock_update import TargetStock
from stock_svc.tables import movements
from testing.stock_harness import LAPSED, NOW, Sale, on_sale


async def refused(work: object) -> DomainError:
    with pytest.raises(DomainError) as error:
        await work  # type: ignore[misc]
    return error.value


def fields(error: DomainError) -> list[str]:
    return [violation.field for violation in error.violations]


async def test_restocked_places_can_be_reserved(database: Database) -> None:
    sale = await on_sale(database)
    await sale.reserve(sale.line(quantity=10))
    availability = await sale.restock(5)
    assert [(pool.capacity, pool.available) for pool in availability.pools] == [(15, 5)]
    await sale.reserve(sale.line(quantity=5))
    await sale.assert_clean()


async def test_restocking_a_seated_or_unknown_pool_or_too_many_places_is_refused(
    database: Database,
) -> None:
    sale = await on_sale(database, offers={"place": "floor"}, seats={"stalls": ["A1"]})
    assert (await refused(sale.restock(1, "stalls"))).reason is Reason.VALIDATION_FAILED
    assert fields(await refused(sale.restock(9_999_991))) == ["quantity"]
    async with database.transaction() as connection:
        for event_id, reason in (
            (sale.event_id, Reason.POOL_NOT_FOUND),
            (new_id(), Reason.EVENT_NOT_FOUND),
        ):
            error = await refused(
                restocking.restock(
                    connection, event_id=event_id, pool_id=new_id(), quantity=1, now=NOW
                )
            )
            assert error.reason is reason
    await sale.assert_clean()


async def test_blocked_seats_cannot_be_reserved(database: Database) -> None:
    sale = await on_sale(database, seats={"stalls": ["A1", "A2", "A3"]})
    for _ in range(2):
        changed = await sale.block("A1", "A2")
        assert [seat.state for seat in changed] == ["BLOCKED"] * 2
    assert await sale.available("stalls") == 1
    error = await refused(sale.reserve(*sale.lines("A1")))
    assert error.reason is Reason.SEAT_UNAVAILABLE
    assert error.metadata["seat_ids"] == str(sale.seats["A1"])
    error = await refused(sale.reserve(*sale.lines("A1", "A2", "A3")))
    assert error.reason is Reason.SEAT_UNAVAILABLE
    await sale.reserve(*sale.lines("A3"))
    for _ in range(2):
        await sale.unblock("A1", "A3")
    await sale.reserve(*sale.lines("A1"))
    assert await sale.seat_states() == {"A1": "HELD", "A2": "BLOCKED", "A3": "HELD"}
    await sale.assert_clean()


async def test_a_held_seat_is_not_blocked_until_its_hold_lapses(database: Database) -> None:
    sale = await on_sale(database, seats={"stalls": ["A1", "A2"]})
    await sale.reserve(*sale.lines("A1"))
    error = await refused(sale.block("A1", "A2"))
    assert error.reason is Reason.SEAT_UNAVAILABLE
    assert error.metadata == {"seat_ids": str(sale.seats["A1"])}
    assert await sale.seat_states() == {"A1": "HELD", "A2": "AVAILABLE"}
    await sale.block("A1", now=LAPSED)
    assert await sale.seat_states() == {"A1": "BLOCKED", "A2": "AVAILABLE"}
    await sale.assert_clean()


async def test_a_seat_of_another_event_is_not_blocked(database: Database) -> None:
    sale = await on_sale(database, seats={"stalls": ["A1"]})
    other = await on_sale(database, seats={"stalls": ["A1"]})
    async with database.transaction() as connection:
        error = await refused(
            restocking.block(
                connection, event_id=sale.event_id, seat_ids=other.seats.values(), now=NOW
            )
        )
    assert error.reason is Reason.SEAT_NOT_FOUND


async def test_an_update_adds_pools_offers_and_seats(database: Database) -> None:
    sale = await on_sale(database)
    floor, balcony, stalls = sale.pools["floor"], new_id(), new_id()
    high, low, seats = new_id(), new_id(), [new_id() for _ in range(3)]
    target = TargetStock(
        pools=[Pool(floor, 12), Pool(balcony, 4), Pool(stalls, 3)],
        offers=[
            Offer(high, balcony, 2),
            Offer(low, stalls, 2),
            Offer(sale.offers["place"], floor, 3),
        ],
        add_seats=[Seat(seat_id, low) for seat_id in seats],
    )
    for _ in range(2):
        availability = await sale.update(target)
        assert {p.pool_id: p.capacity for p in availability.pools} == {
            floor: 12,
            balcony: 4,
            stalls: 3,
        }
        assert availability.version == 4
    await sale.reserve(Line(low, 1, seats[0]))
    error = await refused(sale.reserve(sale.line(quantity=4)))
    assert error.reason is Reason.PURCHASE_LIMIT_EXCEEDED
    await sale.assert_clean()


async def test_a_lower_limit_applies_to_later_requests_only(database: Database) -> None:
    sale = await on_sale(database, per_customer_limit=5)
    made = await sale.reserve(sale.line(quantity=5))
    await sale.update(TargetStock(offers=[Offer(sale.offers["place"], sale.pools["floor"], 3)]))
    await sale.exchange(made.reservation_id, sale.line(quantity=2))
    await sale.reserve(customer_id=made.customer_id)
    error = await refused(sale.reserve(customer_id=made.customer_id))
    assert error.reason is Reason.PURCHASE_LIMIT_EXCEEDED
    await sale.assert_clean()


async def test_an_update_adds_and_removes_seats(database: Database) -> None:
    sale = await on_sale(database, seats={"stalls": ["A1", "A2", "A3"]})
    await sale.block("A3")
    new = new_id()
    target = TargetStock(
        pools=[Pool(sale.pools["stalls"], 2)],
        add_seats=[Seat(new, sale.offers["stalls"])],
        remove_seat_ids=[sale.seats["A2"], sale.seats["A3"], new_id()],
    )
    for _ in range(2):
        availability = await sale.update(target)
        assert [(pool.capacity, pool.available) for pool in availability.pools] == [(2, 2)]
    error = await refused(sale.reserve(*sale.lines("A2")))
    assert error.reason is Reason.SEAT_NOT_FOUND
    await sale.assert_clean()


async def test_an_impossible_update_is_refused_by_its_field(database: Database) -> None:
    sale = await on_sale(
        database, pools={"floor": 10}, offers={"place": "floor"}, seats={"stalls": ["A1", "A2"]}
    )
    await sale.reserve(sale.line(quantity=4), *sale.lines("A1"))
    floor, stalls = sale.pools["floor"], sale.pools["stalls"]
    place, seated, unknown = sale.offers["place"], sale.offers["stalls"], new_id()
    a1 = sale.seats["A1"]
    cases = [
        (TargetStock(pools=[Pool(floor, 3)]), "pools[0].capacity"),
        (TargetStock(pools=[Pool(stalls, 3)]), "pools[0].capacity"),
        (TargetStock(pools=[Pool(floor, 9), Pool(floor, 9)]), "pools[1].pool_id"),
        (TargetStock(offers=[Offer(place, stalls, 1)]), "offers[0].pool_id"),
        (TargetStock(offers=[Offer(unknown, new_id(), 1)]), "offers[0].pool_id"),
        (TargetStock(add_seats=[Seat(new_id(), unknown)]), "add_seats[0].offer_id"),
        (TargetStock(add_seats=[Seat(new_id(), place)]), "add_seats[0].offer_id"),
        (TargetStock(remove_seat_ids=[sale.seats["A2"], a1]), "remove_seat_ids[1]"),
        (TargetStock(add_seats=[Seat(a1, seated)], remove_seat_ids=[a1]), "remove_seat_ids[0]"),
    ]
    for target, field in cases:
        error = await refused(sale.update(target))
        assert (error.reason, fields(error)) == (Reason.VALIDATION_FAILED, [field])
    assert "at least 4" in (await refused(sale.update(cases[0][0]))).message
    availability = await sale.update(
        TargetStock(pools=[Pool(floor, 3)], remove_seat_ids=[]), now=LAPSED
    )
    assert next(p for p in availability.pools if p.pool_id == floor).capacity == 3
    nowhere = Sale(database, new_id(), {}, {}, {}, sale.stock)
    assert (await refused(nowhere.update(TargetStock()))).reason is Reason.EVENT_NOT_FOUND
    await sale.assert_clean()


async def test_the_stock_of_an_event_without_sales_is_removed(database: Database) -> None:
    sale = await on_sale(database, offers={"place": "floor"}, seats={"stalls": ["A1"]})
    await sale.release((await sale.reserve()).reservation_id)
    await sale.reserve(*sale.lines("A1"))
    for _ in range(2):
        await sale.remove(now=LAPSED)
    assert (await refused(sale.availability())).reason is Reason.EVENT_NOT_FOUND
    assert (await refused(sale.reserve())).reason is Reason.EVENT_NOT_FOUND
    async with database.transaction() as connection:
        sums = await connection.execute(
            sa.select(
                sa.func.sum(movements.c.capacity_delta),
                sa.func.sum(movements.c.held_delta),
                sa.func.sum(movements.c.sold_delta),
            ).where(movements.c.event_id == sale.event_id)
        )
        assert sums.one() == (0, 0, 0)
        again = stock.define(connection, event_id=sale.event_id, stock=sale.stock, now=NOW)
        assert (await refused(again)).reason is Reason.STOCK_ALREADY_DEFINED
    await Sale(database, new_id(), {}, {}, {}, sale.stock).remove()


async def test_the_stock_of_an_event_with_sales_is_not_removed(database: Database) -> None:
    sale = await on_sale(database)
    made = await sale.reserve()
    assert (await refused(sale.remove())).reason is Reason.EVENT_STATE_INVALID
    await sale.commit(made.reservation_id)
    assert (await refused(sale.remove())).reason is Reason.EVENT_STATE_INVALID
    await sale.return_sold(made.reservation_id)
    assert (await refused(sale.remove())).reason is Reason.EVENT_STATE_INVALID
    assert await sale.available() == 10
    await sale.assert_clean()
