"""Places that come back are kept for the waiting list, and nobody else gets them."""

import asyncio
from collections.abc import Awaitable

import pytest

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc import stock
from stock_svc.stock_update import TargetStock
from testing.stock_harness import HOLD, LAPSED, NOW, Sale, on_sale


async def is_sold_out(work: Awaitable[object]) -> bool:
    [outcome] = await asyncio.gather(work, return_exceptions=True)
    if not isinstance(outcome, BaseException):
        return False
    assert isinstance(outcome, DomainError), outcome
    assert outcome.reason is Reason.SOLD_OUT
    return True


async def a_sold_out_sale(database: Database) -> tuple[Sale, list[object]]:
    """An event with 4 places, each sold to another customer, whose returns are kept."""
    sale = await on_sale(database, pools={"floor": 4})
    sold = [await sale.reserve() for _ in range(4)]
    for reservation in sold:
        await sale.commit(reservation.reservation_id)
    await sale.keep(1, "floor")
    return sale, [reservation.reservation_id for reservation in sold]


async def test_returned_places_are_for_the_waiting_list_only(database: Database) -> None:
    sale, sold = await a_sold_out_sale(database)
    await sale.return_sold(sold[0])  # type: ignore[arg-type]
    await sale.return_sold(sold[1])  # type: ignore[arg-type]
    assert await sale.kept() == (0, 2)
    assert await is_sold_out(sale.reserve())
    await sale.reserve(sale.line(quantity=2), for_waiting_list=True)
    assert await sale.kept() == (0, 0)
    await sale.assert_clean()


async def test_released_expired_and_restocked_places_are_kept(database: Database) -> None:
    sale = await on_sale(database, pools={"floor": 2})
    first, _ = await sale.reserve(), await sale.reserve()
    await sale.keep(1, "floor")
    await sale.release(first.reservation_id)
    assert await sale.kept() == (0, 1)
    # Lapsed, not yet expired: counted as kept, and reserved by nobody else.
    assert await sale.kept(now=LAPSED) == (0, 2)
    assert await is_sold_out(sale.reserve(now=LAPSED))
    await sale.restock(3)
    # The refused request has expired the hold.
    assert await sale.kept(now=LAPSED) == (0, 5)
    await sale.reserve(sale.line(quantity=5), now=LAPSED, for_waiting_list=True)
    await sale.assert_clean()


async def test_what_was_free_before_stays_open_to_all(database: Database) -> None:
    sale = await on_sale(database, pools={"floor": 5})
    held = await sale.reserve(sale.line(quantity=2))
    await sale.keep(1, "floor")
    assert await sale.kept() == (3, 0)
    await sale.release(held.reservation_id)
    assert await sale.kept() == (3, 2)
    assert await is_sold_out(sale.reserve(sale.line(quantity=4)))
    await sale.reserve(sale.line(quantity=2))
    assert await sale.kept() == (1, 2)
    # The waiting list takes kept places first, then open ones.
    await sale.reserve(sale.line(quantity=2), for_waiting_list=True)
    assert await sale.kept() == (1, 0)
    taken = await sale.reserve(for_waiting_list=True)
    assert await sale.kept() == (0, 0)
    await sale.release(taken.reservation_id)
    assert await sale.kept() == (0, 1)
    assert await is_sold_out(sale.reserve())
    await sale.assert_clean()


async def test_an_older_call_changes_nothing(database: Database) -> None:
    sale, sold = await a_sold_out_sale(database)
    await sale.return_sold(sold[0])  # type: ignore[arg-type]
    await sale.keep(3, "floor")
    for version in (1, 2, 3):
        await sale.keep(version)
        await sale.keep(version, "floor", opened=["floor"])
        assert await sale.kept() == (0, 1)
    availability = await sale.keep(4)
    assert [(pool.available, pool.kept) for pool in availability.pools] == [(1, 0)]
    await sale.reserve()
    await sale.assert_clean()


async def test_opened_places_are_open_and_what_comes_later_is_kept(database: Database) -> None:
    sale, sold = await a_sold_out_sale(database)
    await sale.return_sold(sold[0])  # type: ignore[arg-type]
    await sale.keep(2, "floor", opened=["floor"])
    assert await sale.kept() == (1, 0)
    await sale.return_sold(sold[1])  # type: ignore[arg-type]
    assert await sale.kept() == (1, 1)
    await sale.reserve()
    assert await is_sold_out(sale.reserve())
    await sale.assert_clean()


async def test_an_exchange_takes_only_what_the_customer_gives_up(database: Database) -> None:
    sale = await on_sale(database, pools={"floor": 6}, offers={"adult": "floor", "child": "floor"})
    own = await sale.reserve(sale.line("adult", 3))
    await sale.commit(own.reservation_id)
    others = [await sale.reserve(sale.line("adult")) for _ in range(3)]
    await sale.keep(1, "floor")
    await sale.release(others[0].reservation_id)
    assert await is_sold_out(sale.exchange(own.reservation_id, sale.line("child", 4)))
    same = await sale.exchange(own.reservation_id, sale.line("child", 3))
    assert await sale.kept() == (0, 1)
    fewer = await sale.exchange(same.reservation_id, sale.line("child", 1))
    assert await sale.kept() == (0, 3)
    # What was given up is kept now.
    assert await is_sold_out(sale.exchange(fewer.reservation_id, sale.line("child", 2)))
    await sale.keep(2, "floor", opened=["floor"])
    await sale.exchange(fewer.reservation_id, sale.line("child", 2))
    assert await sale.kept() == (2, 0)
    await sale.assert_clean()


async def test_seats_that_come_back_are_kept(database: Database) -> None:
    sale = await on_sale(database, seats={"stalls": ["A1", "A2"]})
    first = await sale.reserve(*sale.lines("A1"))
    second = await sale.reserve(*sale.lines("A2"))
    await sale.keep(1, "stalls")
    await sale.release(first.reservation_id)
    assert await is_sold_out(sale.reserve(*sale.lines("A1")))
    # To change a seat for one that is kept is no purchase.
    await sale.exchange(second.reservation_id, *sale.lines("A1"))
    await sale.reserve(*sale.lines("A2"), for_waiting_list=True)
    await sale.assert_clean()


async def test_a_smaller_capacity_closes_open_places(database: Database) -> None:
    sale = await on_sale(database, pools={"floor": 5})
    held = await sale.reserve(sale.line(quantity=2))
    await sale.keep(1, "floor")
    await sale.update(TargetStock(pools=[stock.Pool(sale.pools["floor"], 3)]))
    assert await sale.kept() == (1, 0)
    await sale.update(TargetStock(pools=[stock.Pool(sale.pools["floor"], 9)]))
    await sale.release(held.reservation_id)
    assert await sale.kept() == (1, 8)
    await sale.assert_clean()


async def test_unknown_pools_are_ignored_and_unknown_events_refused(database: Database) -> None:
    sale = await on_sale(database)
    unknown = Sale(database, sale.event_id, {"gone": new_id()}, {}, {}, sale.stock)
    await unknown.keep(1, "gone")
    assert await sale.kept() == (10, 0)
    nowhere = Sale(database, new_id(), sale.pools, {}, {}, sale.stock)
    with pytest.raises(DomainError) as error:
        await nowhere.keep(1, "floor")
    assert error.value.reason is Reason.EVENT_NOT_FOUND


async def test_a_burst_gets_none_of_the_kept_places(database: Database) -> None:
    sale = await on_sale(database, pools={"floor": 30})
    held = [await sale.reserve(sale.line(quantity=5)) for _ in range(4)]
    await sale.keep(1, "floor")

    async def buy(for_waiting_list: bool) -> bool:
        return not await is_sold_out(
            sale.reserve(now=NOW + HOLD / 2, for_waiting_list=for_waiting_list)
        )

    async with asyncio.TaskGroup() as group:
        for reservation in held:
            group.create_task(sale.release(reservation.reservation_id))
        bought = [group.create_task(buy(False)) for _ in range(40)]
        listed = [group.create_task(buy(True)) for _ in range(10)]
    assert sum(task.result() for task in listed) == 10
    # 10 were free at first; the list's requests may have taken some before others came back.
    assert 0 < sum(task.result() for task in bought) <= 10
    available, kept = await sale.kept()
    assert available + kept == 30 - 10 - sum(task.result() for task in bought)
    await sale.assert_clean()
