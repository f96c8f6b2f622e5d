"""Lapsed holds: their places are free at once, and each expires once."""

import asyncio
from datetime import timedelta

import pytest

from mesh.db.database import Database
from mesh.errors import DomainError
from mesh.ids import new_id
from stock_svc.expiry import sweep
from stock_svc.reservations import State
from testing.stock_harness import LAPSED, NOW, on_sale


async def test_places_of_a_lapsed_hold_are_sold_again_without_a_sweep(database: Database) -> None:
    sale = await on_sale(database)
    first = await sale.reserve(sale.line(quantity=6))
    second = await sale.reserve(sale.line(quantity=4))
    with pytest.raises(DomainError):
        await sale.reserve(now=LAPSED - timedelta(seconds=1))
    await sale.reserve(sale.line(quantity=10), now=LAPSED)
    for lapsed in (first, second):
        assert (await sale.get(lapsed.reservation_id)).state is State.EXPIRED
    assert await sale.counters() == (10, 0)
    await sale.assert_clean()


async def test_a_seat_of_a_lapsed_hold_is_sold_again_without_a_sweep(database: Database) -> None:
    sale = await on_sale(database, seats={"stalls": ["A1", "A2", "A3"]})
    await sale.reserve(*sale.lines("A1", "A2"))
    await sale.reserve(*sale.lines("A2", "A3"), now=LAPSED)
    assert await sale.seat_states(now=LAPSED) == {"A1": "AVAILABLE", "A2": "HELD", "A3": "HELD"}
    await sale.assert_clean()


async def test_a_lapsed_hold_does_not_count_against_the_purchase_limit(database: Database) -> None:
    sale = await on_sale(database, per_customer_limit=2)
    customer_id = new_id()
    await sale.reserve(sale.line(quantity=2), customer_id=customer_id)
    await sale.reserve(sale.line(quantity=2), customer_id=customer_id, now=LAPSED)
    await sale.assert_clean()


async def test_a_refused_request_counts_lapsed_holds_as_free_and_expires_none(
    database: Database,
) -> None:
    sale = await on_sale(database)
    lapsed = await sale.reserve(sale.line(quantity=6))
    await sale.commit((await sale.reserve(sale.line(quantity=4))).reservation_id)
    with pytest.raises(DomainError) as refused:
        await sale.reserve(sale.line(quantity=7), now=LAPSED)
    assert refused.value.metadata["available"] == "6"
    assert (await sale.get(lapsed.reservation_id)).state is State.ACTIVE
    await sale.assert_clean()


async def test_a_lapsed_hold_over_several_pools_frees_them_all(database: Database) -> None:
    sale = await on_sale(
        database, pools={"floor": 2, "balcony": 2}, offers={"low": "floor", "high": "balcony"}
    )
    await sale.reserve(sale.line("low", 2), sale.line("high", 2))
    await sale.reserve(sale.line("high", 1), now=LAPSED)
    assert await sale.counters("floor") == (0, 0)
    assert await sale.counters("balcony") == (1, 0)
    await sale.assert_clean()


async def test_the_sweep_expires_lapsed_holds_only(own_database: Database) -> None:
    sales = [await on_sale(own_database, seats={"stalls": ["A1", "A2"]}) for _ in range(3)]
    for sale in sales:
        await sale.reserve(*sale.lines("A1"))
        await sale.commit((await sale.reserve(*sale.lines("A2"))).reservation_id)
    extended = await on_sale(own_database)
    made = await extended.reserve()
    await extended.extend(made.reservation_id)
    assert await sweep(own_database, now=LAPSED - timedelta(seconds=1)) == 0
    assert await sweep(own_database, now=LAPSED) == 3
    assert await sweep(own_database, now=LAPSED) == 0
    for sale in sales:
        assert await sale.counters("stalls") == (0, 1)
        assert await sale.seat_states() == {"A1": "AVAILABLE", "A2": "SOLD"}
        audited = await sale.assert_clean()
        assert audited.reservations == {State.EXPIRED: 1, State.COMMITTED: 1}
    assert (await extended.get(made.reservation_id)).state is State.ACTIVE


async def test_concurrent_sweeps_expire_each_hold_once(own_database: Database) -> None:
    sale = await on_sale(own_database, pools={"floor": 450})
    customer_ids = [new_id() for _ in range(5)]
    for n in range(450):
        await sale.reserve(customer_id=customer_ids[n % 5], now=NOW)
    swept = await asyncio.gather(*(sweep(own_database, now=LAPSED) for _ in range(3)))
    assert sum(swept) + await sweep(own_database, now=LAPSED) == 450
    assert await sale.counters() == (0, 0)
    await sale.assert_clean()


async def test_the_sweep_skips_reservations_that_are_locked(own_database: Database) -> None:
    sale = await on_sale(own_database)
    busy = await sale.reserve()
    await sale.reserve()
    async with own_database.transaction() as connection:
        await connection.exec_driver_sql(
            "SELECT 1 FROM reservations WHERE reservation_id = %s FOR UPDATE",
            (busy.reservation_id,),
        )
        assert await sweep(own_database, now=LAPSED) == 1
    assert await sweep(own_database, now=LAPSED) == 1
    assert (await sale.assert_clean()).reservations == {State.EXPIRED: 2}
