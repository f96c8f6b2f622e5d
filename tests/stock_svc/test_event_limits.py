"""The purchase limit of an event, over all its offers and pools."""

import asyncio
import json
from uuid import UUID

import pytest
import sqlalchemy as sa

from mesh.db.database import Database, constraint_of
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc import batches, stock, stock_update
from stock_svc.reservations import Line
from stock_svc.reserve import reserve_all
from stock_svc.stock_update import TargetStock
from testing.stock_harness import LAPSED, NOW, Sale, on_sale, refusal_of
from testing.waiting import wait_for_blocked

LIMIT = 3


async def two_pools(database: Database, *, limit: int | None = LIMIT) -> Sale:
    return await on_sale(
        database,
        pools={"floor": 50, "balcony": 50},
        offers={"adult": "floor", "child": "floor", "high": "balcony"},
        seats={"stalls": ["A1", "A2"]},
        event_limit=limit,
    )


async def refused(sale: Sale, customer_id: UUID, *lines: Line) -> dict[str, str]:
    with pytest.raises(DomainError) as error:
        await sale.reserve(*lines, customer_id=customer_id)
    reason, metadata = refusal_of(error.value)
    assert reason is Reason.PURCHASE_LIMIT_EXCEEDED
    return metadata


async def test_the_limit_counts_over_offers_pools_and_seats(database: Database) -> None:
    sale, customer_id = await two_pools(database), new_id()
    await sale.reserve(sale.line("adult"), *sale.lines("A1"), customer_id=customer_id)
    metadata = await refused(sale, customer_id, sale.line("high", 2))
    [failed] = json.loads(metadata.pop("failures"))
    assert (failed["eventId"], failed["limit"]) == (str(sale.event_id), 3)
    # Only the refusal by an offer's limit has offer_id.
    assert metadata == {
        "event_id": str(sale.event_id),
        "limit": "3",
        "owned": "2",
        "requested": "2",
    }
    await sale.reserve(sale.line("high"), customer_id=customer_id)
    for line in (sale.line("adult"), sale.line("child"), sale.line("high"), *sale.lines("A2")):
        assert (await refused(sale, customer_id, line))["owned"] == "3"
    await sale.reserve(sale.line("adult", LIMIT))
    await sale.assert_clean()


async def test_each_event_has_its_own_count(database: Database) -> None:
    first, second, customer_id = await two_pools(database), await two_pools(database), new_id()
    await first.reserve(first.line("adult", LIMIT), customer_id=customer_id)
    await second.reserve(second.line("adult", LIMIT), customer_id=customer_id)
    free = await two_pools(database, limit=None)
    await free.reserve(free.line("adult", 40), customer_id=customer_id)


async def test_held_and_sold_places_count_and_freed_places_do_not(database: Database) -> None:
    sale, customer_id = await two_pools(database), new_id()
    sold = await sale.reserve(sale.line("adult", 2), customer_id=customer_id)
    await sale.commit(sold.reservation_id)
    held = await sale.reserve(sale.line("high"), customer_id=customer_id)
    await refused(sale, customer_id, sale.line("child"))
    await sale.release(held.reservation_id)
    await sale.reserve(sale.line("child"), customer_id=customer_id)
    await sale.return_sold(sold.reservation_id)
    await sale.reserve(sale.line("high", 2), customer_id=customer_id)
    await refused(sale, customer_id, sale.line("high"))
    # All holds have lapsed; none was swept.
    await sale.reserve(sale.line("adult", LIMIT), customer_id=customer_id, now=LAPSED)
    await sale.assert_clean()


async def test_a_batch_counts_the_requests_that_it_has_accepted(database: Database) -> None:
    sale, customer_id = await two_pools(database), new_id()
    requests = [
        sale.request(sale.line(offer, quantity), customer_id=buyer_id)
        for buyer_id, offer, quantity in (
            (customer_id, "adult", 2),
            (customer_id, "high", 2),
            (new_id(), "high", 3),
            (customer_id, "child", 1),
            (customer_id, "adult", 1),
        )
    ]
    async with database.transaction() as connection:
        outcomes = await reserve_all(connection, requests, NOW)
    reasons = [o.reason if isinstance(o, DomainError) else None for o in outcomes]
    limit = Reason.PURCHASE_LIMIT_EXCEEDED
    assert reasons == [None, limit, None, None, limit]
    await sale.assert_clean()


async def test_an_exchange_counts_without_the_old_reservation(database: Database) -> None:
    sale, customer_id = await two_pools(database), new_id()
    old = await sale.reserve(sale.line("adult", LIMIT), customer_id=customer_id)
    await sale.commit(old.reservation_id)
    with pytest.raises(DomainError) as error:
        await sale.exchange(old.reservation_id, sale.line("high", LIMIT + 1))
    assert error.value.reason is Reason.PURCHASE_LIMIT_EXCEEDED
    assert error.value.metadata["owned"] == "0"
    assert await sale.counters("floor") == (0, LIMIT)
    new = await sale.exchange(old.reservation_id, sale.line("high", 2), sale.line("child"))
    assert new.state == "COMMITTED"
    await refused(sale, customer_id, sale.line("adult"))
    await sale.assert_clean()


async def test_a_limit_that_is_set_later_counts_earlier_purchases(database: Database) -> None:
    sale, customer_id = await two_pools(database, limit=None), new_id()
    kept = await sale.reserve(sale.line("adult", 2), sale.line("high", 3), customer_id=customer_id)
    await sale.update(TargetStock(per_customer_limit=4))
    assert (await refused(sale, customer_id, sale.line("child")))["owned"] == "5"
    # A customer above the limit keeps the places.
    await sale.commit(kept.reservation_id)
    await sale.update(TargetStock())
    await refused(sale, customer_id, sale.line("child"))
    await sale.update(TargetStock(per_customer_limit=6))
    await sale.reserve(sale.line("child"), customer_id=customer_id)
    await refused(sale, customer_id, sale.line("child"))
    await sale.update(TargetStock(per_customer_limit=0))
    await sale.reserve(sale.line("child", 20), customer_id=customer_id)
    await sale.assert_clean()


async def test_a_definition_with_another_limit_is_refused(database: Database) -> None:
    sale = await two_pools(database)
    async with database.transaction() as connection:
        await stock.define(connection, event_id=sale.event_id, stock=sale.stock, now=NOW)
    other = stock.Stock(sale.stock.pools, sale.stock.offers, sale.stock.seats, LIMIT + 1)
    with pytest.raises(DomainError) as error:
        async with database.transaction() as connection:
            await stock.define(connection, event_id=sale.event_id, stock=other, now=NOW)
    assert error.value.reason is Reason.STOCK_ALREADY_DEFINED


async def test_the_trigger_refuses_totals_above_the_limit(database: Database) -> None:
    sale, customer_id = await two_pools(database), new_id()
    await sale.reserve(sale.line("adult", LIMIT), customer_id=customer_id)
    for statement in (
        "INSERT INTO customer_totals VALUES (:event, :high, :customer, 1, 100, 3)",
        "UPDATE customer_totals SET quantity = 4 WHERE customer_id = :customer",
    ):
        with pytest.raises(sa.exc.IntegrityError) as error:
            async with database.transaction() as connection:
                await connection.execute(
                    sa.text(statement),
                    {
                        "event": sale.event_id,
                        "high": sale.offers["high"],
                        "customer": customer_id,
                    },
                )
        assert constraint_of(error.value) == "customer_totals_event_limit"


async def test_a_limit_that_is_set_while_a_request_waits_applies_to_it(database: Database) -> None:
    """The waiting batch has locked one pool only: it is repeated and locks all pools."""
    sale, customer_id = await two_pools(database, limit=None), new_id()
    await sale.reserve(sale.line("high", LIMIT), customer_id=customer_id)
    together = batches.coalesced_reserve(database, lambda: NOW)
    async with database.transaction() as changing:
        target = TargetStock(per_customer_limit=LIMIT)
        await stock_update.update(changing, event_id=sale.event_id, target=target, now=NOW)
        request = sale.request(sale.line("adult"), customer_id=customer_id)
        buyer = asyncio.create_task(together.submit(request))
        await wait_for_blocked(database)
    with pytest.raises(DomainError) as error:
        await buyer
    assert error.value.reason is Reason.PURCHASE_LIMIT_EXCEEDED
    await sale.assert_clean()
