"""The movements: one per change, in order, append-only; and the guards of ledger.post."""

import pytest
import sqlalchemy as sa

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.paths import ROOT
from stock_svc import ledger
from stock_svc.expiry import sweep
from stock_svc.ledger import Entry, Kind, Movement, MovementPage, PoolShortageError
from testing.stock_harness import LAPSED, NOW, Sale, on_sale


async def page(sale: Sale, *, before: int | None = None, page_size: int = 100) -> MovementPage:
    async with sale.database.transaction() as connection:
        return await ledger.list_movements(
            connection, event_id=sale.event_id, before=before, page_size=page_size
        )


async def test_every_change_has_a_movement(database: Database) -> None:
    sale = await on_sale(database, offers={"adult": "floor", "child": "floor"})
    sold = await sale.reserve(sale.line("adult", 2), sale.line("child", 1))
    await sale.commit(sold.reservation_id)
    freed = await sale.reserve(sale.line("adult", 4))
    await sale.release(freed.reservation_id)
    lapsed = await sale.reserve(sale.line("child", 5))
    await sweep(database, now=LAPSED)
    listed = (await page(sale)).movements
    assert [
        (m.kind, m.capacity_delta, m.held_delta, m.sold_delta, m.reservation_id, m.create_time)
        for m in reversed(listed)
    ] == [
        (Kind.DEFINE, 10, 0, 0, None, NOW),
        (Kind.RESERVE, 0, 3, 0, sold.reservation_id, NOW),
        (Kind.COMMIT, 0, -3, 3, sold.reservation_id, NOW),
        (Kind.RESERVE, 0, 4, 0, freed.reservation_id, NOW),
        (Kind.RELEASE, 0, -4, 0, freed.reservation_id, NOW),
        (Kind.RESERVE, 0, 5, 0, lapsed.reservation_id, NOW),
        (Kind.EXPIRE, 0, -5, 0, lapsed.reservation_id, LAPSED),
    ]


async def test_pages_list_each_movement_once_newest_first(database: Database) -> None:
    sale = await on_sale(database)
    for _ in range(4):
        await sale.reserve()
    await (await on_sale(database)).reserve()  # not of this event
    whole = await page(sale)
    assert (len(whole.movements), whole.total_size, whole.next_before) == (5, 5, None)
    assert [m.movement_id for m in whole.movements] == sorted(
        (m.movement_id for m in whole.movements), reverse=True
    )
    read: list[Movement] = []
    before = None
    while True:
        part = await page(sale, before=before, page_size=2)
        assert part.total_size == 5
        read += part.movements
        before = part.next_before
        if before is None:
            break
    assert tuple(read) == whole.movements


async def test_an_unknown_event_has_no_ledger(database: Database) -> None:
    async with database.transaction() as connection:
        with pytest.raises(DomainError) as refused:
            await ledger.list_movements(connection, event_id=new_id(), before=None, page_size=1)
    assert refused.value.reason is Reason.EVENT_NOT_FOUND


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE movements SET held_delta = 0",
        "DELETE FROM movements",
        "TRUNCATE movements",
        "INSERT INTO movements (event_id, movement_id, pool_id, kind, capacity_delta, held_delta,"
        " sold_delta, create_time) SELECT event_id, 1, pool_id, kind, 0, 0, 0, now() FROM movements",
    ],
)
async def test_movements_are_append_only(database: Database, statement: str) -> None:
    sale = await on_sale(database)
    before = await page(sale)
    with pytest.raises(sa.exc.DBAPIError):
        await sale.sql(statement)
    assert await page(sale) == before


@pytest.mark.parametrize(
    ("statement", "files"),
    [
        ("statements.CHANGE_POOLS", ["stock_svc/ledger.py"]),
        ("statements.INSERT_MOVEMENTS", ["stock_svc/ledger.py"]),
        ("statements.SET_OPEN_PLACES", ["stock_svc/ledger.py"]),
        ("outbox.insertion(", ["stock_svc/ledger.py"]),
        ("outbox.append(", []),
        ("update(pools)", []),
        # Pools are inserted empty: their capacity comes with a movement.
        ("insert(pools)", ["stock_svc/stock.py"]),
        ("insert(movements)", []),
    ],
)
def test_only_the_ledger_changes_counters_and_writes_movements_and_events(
    statement: str, files: list[str]
) -> None:
    sources = (ROOT / "stock_svc").rglob("*.py")
    assert files == [
        str(source.relative_to(ROOT)) for source in sources if statement in source.read_text()
    ]


@pytest.mark.parametrize(
    "change", [{"held": 11}, {"held": -1}, {"sold": -1}, {"held": 6, "sold": 5}, {"capacity": -11}]
)
async def test_entries_beyond_the_counters_of_a_pool_are_refused(
    database: Database, change: dict[str, int]
) -> None:
    sale = await on_sale(database)
    with pytest.raises(PoolShortageError):
        async with database.transaction() as connection:
            await ledger.post(
                connection,
                entries=[Entry(sale.event_id, sale.pools["floor"], Kind.RESTOCK, **change)],  # type: ignore[arg-type]
                now=NOW,
            )
    assert (await page(sale)).total_size == 1
