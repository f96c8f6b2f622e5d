"""How many places customers hold or own: several customers and events at once."""

from mesh.db.database import Database
from mesh.db.pipeline import FORCE_INDEX_SCANS, run_together
from mesh.ids import new_id
from stock_svc import customer_totals, statements
from stock_svc.customer_totals import Total
from testing.stock_harness import on_sale


async def test_totals_are_of_each_pair_of_event_and_customer(database: Database) -> None:
    sale = await on_sale(database, offers={"adult": "floor", "child": "floor"})
    other = await on_sale(database)
    mira, ravi, nobody = new_id(), new_id(), new_id()
    held = await sale.reserve(sale.line("adult", 2), sale.line("child"), customer_id=mira)
    await sale.commit(held.reservation_id)
    await sale.reserve(sale.line("adult", 3), customer_id=ravi)
    await other.reserve(other.line(quantity=4), customer_id=mira)
    released = await other.reserve(other.line(), customer_id=ravi)
    await other.release(released.reservation_id)
    keys = [
        (sale.event_id, ravi),
        (sale.event_id, mira),
        (other.event_id, mira),
        (other.event_id, ravi),
        (sale.event_id, nobody),
        (new_id(), mira),
        (sale.event_id, ravi),
    ]
    async with database.transaction() as connection:
        totals = await customer_totals.totals(connection, keys=keys)
    assert sorted(totals, key=lambda total: (total.number, total.quantity)) == [
        Total(0, sale.offers["adult"], 3),
        Total(1, sale.offers["child"], 1),
        Total(1, sale.offers["adult"], 2),
        Total(2, other.offers["place"], 4),
        Total(6, sale.offers["adult"], 3),
    ]


async def test_totals_are_looked_up_by_key_however_small_the_tables_were(
    database: Database,
) -> None:
    sql = statements.CUSTOMER_TOTALS
    for number in range(sql.count("%s")):
        sql = sql.replace("%s", f"${number + 1}", 1)
    async with database.transaction() as connection:
        await run_together(connection, [FORCE_INDEX_SCANS])
        for statement in (
            "SET LOCAL plan_cache_mode = force_generic_plan",
            f"PREPARE totals (int[], uuid[], uuid[]) AS {sql}",
        ):
            await connection.exec_driver_sql(statement)
        plan = await connection.exec_driver_sql("EXPLAIN EXECUTE totals ('{}', '{}', '{}')")
        lines = [line for (line,) in plan]
        await connection.exec_driver_sql("DEALLOCATE totals")
    [condition] = [line for line in lines if "Index Cond" in line and "customer_id" in line]
    assert "offer_id = offers.offer_id" in condition
    assert "event_id = requested.event_id" in condition
    assert not [line for line in lines if "Seq Scan" in line], "\n".join(lines)
