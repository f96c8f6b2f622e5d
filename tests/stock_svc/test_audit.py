"""The audit reports planted differences, and none for consistent stock."""

import pytest
import sqlalchemy as sa

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc import audit
from stock_svc.reservations import State
from testing.stock_harness import Sale, on_sale


async def a_busy_sale(database: Database) -> Sale:
    sale = await on_sale(database, offers={"place": "floor"}, seats={"stalls": ["A1", "A2"]})
    await sale.commit((await sale.reserve(sale.line(quantity=2), *sale.lines("A1"))).reservation_id)
    await sale.reserve(sale.line(quantity=3), *sale.lines("A2"))
    await sale.release((await sale.reserve()).reservation_id)
    return sale


async def test_consistent_stock_has_no_differences(database: Database) -> None:
    sale = await a_busy_sale(database)
    audited = await sale.assert_clean()
    assert audited.reservations == {State.COMMITTED: 1, State.ACTIVE: 1, State.RELEASED: 1}
    floor = next(pool for pool in audited.pools if pool.pool_id == sale.pools["floor"])
    assert (floor.capacity, floor.held, floor.sold) == (10, 3, 2)
    assert (floor.held_by_movements, floor.sold_by_movements) == (3, 2)
    assert (floor.held_by_reservations, floor.sold_by_reservations) == (3, 2)


async def test_a_difference_of_another_event_is_not_reported(own_database: Database) -> None:
    sale = await a_busy_sale(own_database)
    await a_busy_sale(own_database)
    broken = await a_busy_sale(own_database)
    await broken.sql(f"UPDATE pools SET held = held - 1 WHERE event_id = '{broken.event_id}'")
    await sale.assert_clean()
    assert (await broken.audit()).differences


async def test_an_audit_has_a_longer_statement_timeout_than_a_booking(database: Database) -> None:
    sale = await a_busy_sale(database)
    statement_timeout = sa.text("SELECT current_setting('statement_timeout')")
    async with database.transaction() as connection:
        await connection.execute(sa.text("SET LOCAL statement_timeout = '2s'"))
        await audit.audit(connection, event_id=sale.event_id)
        assert await connection.scalar(statement_timeout) == "30s"
    async with database.transaction() as connection:
        assert await connection.scalar(statement_timeout) != "30s"


async def test_an_unknown_event_is_not_found(database: Database) -> None:
    async with database.transaction() as connection:
        with pytest.raises(DomainError) as refused:
            await audit.audit(connection, event_id=new_id())
    assert refused.value.reason is Reason.EVENT_NOT_FOUND


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (
            "UPDATE pools SET held = held + 1 WHERE capacity = 10",
            ["held is 4, its movements give 3", "held is 4, its reservations give 3"],
        ),
        (
            "UPDATE pools SET sold = sold - 1 WHERE capacity = 10",
            ["sold is 1, its movements give 2", "sold is 1, its reservations give 2"],
        ),
        (
            "UPDATE pools SET capacity = 11 WHERE capacity = 10",
            ["capacity is 11, its movements give 10"],
        ),
        (
            "UPDATE pools SET version = 1 WHERE capacity = 10",
            ["version is 1, its movements give 6"],
        ),
        (
            "DELETE FROM movements WHERE kind = 'RELEASE'",
            [
                "held is 3, its movements give 4",
                "version is 6, its movements give 5",
                "its state gives 0 held and 0 sold, its movements 1 and 0",
            ],
        ),
        (
            "UPDATE reservations SET state = 'COMMITTED' WHERE state = 'RELEASED'",
            [
                "sold is 2, its reservations give 3",
                "its state gives 0 held and 1 sold, its movements 0 and 0",
                "the total of offer",
            ],
        ),
        (
            "UPDATE seat_claims SET state = 'FREED' WHERE state = 'SOLD'",
            ["is FREED and should be SOLD"],
        ),
        ("DELETE FROM seat_claims WHERE state = 'HELD'", ["is missing and should be HELD"]),
        (
            "UPDATE customer_totals SET quantity = quantity + 1 WHERE quantity = 3",
            ["is 4, the reservations give 3"],
        ),
        ("DELETE FROM customer_totals WHERE quantity = 3", ["is 0, the reservations give 3"]),
    ],
)
async def test_a_planted_difference_is_found(
    own_database: Database, plant: str, words: list[str]
) -> None:
    sale = await a_busy_sale(own_database)
    await sale.sql("ALTER TABLE movements DISABLE TRIGGER movements_append_only", plant)
    differences = (await sale.audit()).differences
    for expected in words:
        assert any(expected in difference for difference in differences), differences
    assert len(differences) == len(words), differences


async def test_a_seat_sold_twice_and_an_oversold_pool_are_found(own_database: Database) -> None:
    sale = await a_busy_sale(own_database)
    await sale.sql(
        "ALTER TABLE pools DROP CONSTRAINT pools_oversold_check",
        "UPDATE pools SET sold = 11 WHERE capacity = 10",
        "INSERT INTO reservation_lines SELECT line.event_id, other.reservation_id, 9, line.offer_id,"
        " line.pool_id, line.seat_id, 1 FROM reservation_lines AS line"
        " JOIN reservations AS sold USING (event_id, reservation_id)"
        " JOIN reservations AS other USING (event_id)"
        " WHERE sold.state = 'COMMITTED' AND other.state = 'ACTIVE' AND seat_id IS NOT NULL",
    )
    differences = (await sale.audit()).differences
    assert any("oversold, 3 held and 11 sold of 10" in difference for difference in differences)
    assert any("claimed by 2 live reservations" in difference for difference in differences)
