"""Races on real connections. The control shows that a race is real without its guard."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import timedelta
from uuid import UUID

import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc import expiry
from stock_svc.reservations import Reservation
from stock_svc.states import State
from stock_svc.sweeper import sweep
from stock_svc.tables import pools, reservations, seat_claims
from tests.stock_svc.sale import LAPSED, NOW, Sale, on_sale

CONNECTIONS = 16
BUYERS = 50
PLACES = 10


@pytest_asyncio.fixture
async def database(
    new_database: Callable[[str], str],
) -> AsyncIterator[Database]:
    async with Database.open(new_database("stock_svc"), pool_size=CONNECTIONS) as opened:
        yield opened


async def rush(attempts: Iterable[Awaitable[object]]) -> list[object]:
    """Runs all at once, as many as there are connections.

    Returns what each got: a result, or the reason of its refusal.
    """
    connections = asyncio.Semaphore(CONNECTIONS)

    async def connected(attempt: Awaitable[object]) -> object:
        async with connections:
            return await attempt

    results = await asyncio.gather(*map(connected, attempts), return_exceptions=True)
    outcomes: list[object] = []
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, DomainError):
            raise result
        outcomes.append(result.reason if isinstance(result, DomainError) else result)
    return outcomes


def won(outcomes: list[object]) -> list[Reservation]:
    return [outcome for outcome in outcomes if isinstance(outcome, Reservation)]


async def naive_claim(sale: Sale) -> bool:
    """The copy without the guard: looks first, takes then."""
    is_floor = (pools.c.event_id == sale.event_id) & (pools.c.pool_id == sale.pools["floor"])
    async with sale.database.transaction() as connection:
        free = await connection.scalar(sa.select(pools.c.capacity - pools.c.held).where(is_floor))
        if free is None or free < 1:
            return False
        await connection.execute(sa.update(pools).where(is_floor).values(held=pools.c.held + 1))
        return True


async def naive_seat_claim(sale: Sale, reservation_id: UUID) -> bool:
    """The same for a seat."""
    seat_id = sale.seats["A1"]
    async with sale.database.transaction() as connection:
        taken = await connection.scalar(
            sa.select(sa.func.count()).where(seat_claims.c.seat_id == seat_id)
        )
        if taken:
            return False
        await connection.execute(
            sa.insert(seat_claims).values(
                event_id=sale.event_id, reservation_id=reservation_id, seat_id=seat_id, state="HELD"
            )
        )
        return True


async def test_the_race_is_real_without_the_guard(database: Database) -> None:
    """Control: the same rush oversells when check and claim are separate statements."""
    sale = await on_sale(database, pools={"floor": PLACES})
    await sale.sql("ALTER TABLE pools DROP CONSTRAINT pools_oversold_check")
    assert (await rush(naive_claim(sale) for _ in range(BUYERS))).count(True) > PLACES


async def test_fifty_buyers_ten_places(database: Database) -> None:
    for _ in range(5):
        sale = await on_sale(database, pools={"floor": PLACES})
        outcomes = await rush(sale.reserve() for _ in range(BUYERS))
        assert len(won(outcomes)) == PLACES
        assert outcomes.count(Reason.SOLD_OUT) == BUYERS - PLACES
        assert await sale.counters() == (PLACES, 0)
        await sale.assert_clean()


async def test_the_seat_race_is_real_without_the_guard(database: Database) -> None:
    """Control: two reservations get one seat when nothing but the check keeps them apart."""
    sale = await on_sale(
        database, pools={"floor": BUYERS}, offers={"place": "floor"}, seats={"stalls": ["A1"]}
    )
    made = [await sale.reserve() for _ in range(BUYERS)]
    await sale.sql("DROP INDEX seat_claims_live_idx")
    claims = await rush(naive_seat_claim(sale, each.reservation_id) for each in made)
    assert claims.count(True) > 1


async def test_fifty_buyers_ten_seats(database: Database) -> None:
    names = [f"A{n}" for n in range(PLACES)]
    sale = await on_sale(database, seats={"stalls": names})
    outcomes = await rush(sale.reserve(*sale.lines(names[n % PLACES])) for n in range(BUYERS))
    assert len(won(outcomes)) == PLACES
    assert outcomes.count(Reason.SEAT_UNAVAILABLE) == BUYERS - PLACES
    assert set((await sale.seat_states()).values()) == {"HELD"}
    await sale.assert_clean()


async def test_pairs_of_seats_in_any_order_do_not_deadlock(database: Database) -> None:
    """Everybody wants two of three seats: one gets them, and nobody waits for ever."""
    sale = await on_sale(database, seats={"stalls": ["A1", "A2", "A3"]})
    pairs = itertools.islice(itertools.cycle(itertools.permutations(["A1", "A2", "A3"], 2)), 30)
    outcomes = await rush(sale.reserve(*sale.lines(*pair)) for pair in pairs)
    assert len(won(outcomes)) == 1
    assert outcomes.count(Reason.SEAT_UNAVAILABLE) == 29
    await sale.assert_clean()


async def test_a_customer_with_many_tabs_stays_within_the_limit(database: Database) -> None:
    sale = await on_sale(database, pools={"floor": 100}, per_customer_limit=4)
    customer_id = new_id()
    outcomes = await rush(sale.reserve(customer_id=customer_id) for _ in range(20))
    assert len(won(outcomes)) == 4
    assert outcomes.count(Reason.PURCHASE_LIMIT_EXCEEDED) == 16
    await sale.assert_clean()


async def test_duplicates_at_once_are_one_reservation(database: Database) -> None:
    sale = await on_sale(database)
    customer_id = new_id()
    outcomes = await rush(
        sale.reserve(customer_id=customer_id, request_key="key") for _ in range(20)
    )
    assert len({each.reservation_id for each in won(outcomes)}) == 1
    assert len(won(outcomes)) == 20
    assert await sale.counters() == (1, 0)
    await sale.assert_clean()


async def test_duplicates_after_the_hold_has_lapsed_are_one_reservation(
    database: Database,
) -> None:
    sale = await on_sale(database, pools={"floor": 1})
    customer_id = new_id()
    lapsed = await sale.reserve(customer_id=customer_id, request_key="key")
    outcomes = await rush(
        sale.reserve(customer_id=customer_id, request_key="key", now=LAPSED) for _ in range(10)
    )
    assert len({each.reservation_id for each in won(outcomes)}) == 1
    assert len(won(outcomes)) == 10
    assert (await sale.get(lapsed.reservation_id)).state is State.EXPIRED
    await sale.assert_clean()


async def test_lapsed_holds_are_sold_again_in_a_rush_during_sweeps(database: Database) -> None:
    """A full pool of lapsed holds is free at once for as many buyers, whoever expires them."""
    sale = await on_sale(database, pools={"floor": PLACES})
    for _ in range(PLACES):
        await sale.reserve()
    sweeps = [sweep(database, now=LAPSED) for _ in range(2)]
    buyers = [sale.reserve(now=LAPSED) for _ in range(BUYERS)]
    outcomes = await rush([sweeps[0], *buyers[:25], sweeps[1], *buyers[25:]])
    assert len(won(outcomes)) == PLACES
    assert await sale.counters() == (PLACES, 0)
    audited = await sale.assert_clean()
    assert audited.reservations == {State.ACTIVE: PLACES, State.EXPIRED: PLACES}


async def test_of_expiry_and_commit_exactly_one_wins(database: Database) -> None:
    """The commit's clock is a moment behind the sweeper's and the next buyer's."""
    sale = await on_sale(database, pools={"floor": 100})
    just_before = LAPSED - timedelta(milliseconds=1)
    for turn in range(20):
        made = await sale.reserve()
        racers = [
            sale.commit(made.reservation_id, now=just_before),
            sweep(database, now=LAPSED),
            sale.release(made.reservation_id, now=just_before),
        ]
        await rush(racers[turn % 3 :] + racers[: turn % 3])
        assert (await sale.get(made.reservation_id)).state is not State.ACTIVE
    audited = await sale.assert_clean()
    assert sum(audited.reservations.values()) == 20
    assert (await sale.counters())[0] == 0


async def test_a_lapsed_seat_goes_to_its_buyer_or_to_the_next(database: Database) -> None:
    names = [f"A{n}" for n in range(20)]
    sale = await on_sale(database, seats={"stalls": names})
    just_before = LAPSED - timedelta(milliseconds=1)
    for name in names:
        made = await sale.reserve(*sale.lines(name))
        committed, reserved = await rush(
            [
                sale.commit(made.reservation_id, now=just_before),
                sale.reserve(*sale.lines(name), now=LAPSED),
            ]
        )
        assert isinstance(committed, Reservation) != isinstance(reserved, Reservation)
    await sale.assert_clean()


async def test_overlapping_pools_in_opposite_order_do_not_deadlock(database: Database) -> None:
    """Reserve, sell, release, clear lapsed holds away and sweep, all over the same pools."""
    sale = await on_sale(
        database,
        pools={"one": 20, "two": 20, "three": 20},
        offers={"first": "one", "second": "two", "third": "three"},
    )
    orders = list(itertools.permutations(["first", "second", "third"]))

    async def buyer(n: int) -> None:
        order = orders[n % len(orders)][: 2 + n % 2]
        made = await sale.reserve(
            *(sale.line(offer, 2) for offer in order),
            now=NOW + timedelta(seconds=n),
            hold=timedelta(seconds=5),
        )
        if n % 3 == 0:
            await sale.release(made.reservation_id, now=NOW + timedelta(seconds=n))
        elif n % 7 == 0:
            await sale.commit(made.reservation_id, now=NOW + timedelta(seconds=n))

    async def sweeper(n: int) -> None:
        await sweep(database, now=NOW + timedelta(seconds=n * 15))

    work = [buyer(n) for n in range(120)]
    for n in range(8):
        work.insert(n * 15, sweeper(n))
    outcomes = await rush(work)
    assert set(outcomes) <= {None, Reason.SOLD_OUT, Reason.HOLD_EXPIRED}
    await sweep(database, now=NOW + timedelta(hours=1))
    audited = await sale.assert_clean()
    assert all(pool.held == 0 for pool in audited.pools)


async def test_a_buyer_waits_for_a_place_that_is_just_being_freed(database: Database) -> None:
    """The sweeper has taken the hold but not yet touched the pool: no reason to refuse."""
    sale = await on_sale(database, pools={"floor": 1})
    lapsed = await sale.reserve()
    async with database.transaction() as sweeping:
        await lock(sweeping, reservations, reservation_id=lapsed.reservation_id)
        buyer = asyncio.create_task(sale.reserve(now=LAPSED))
        await somebody_waits(database)
        assert await expiry.expire(sweeping, event_id=sale.event_id, limit=9, now=LAPSED) == 1
    assert (await buyer).state is State.ACTIVE
    await sale.assert_clean()


async def test_who_clears_the_way_locks_no_later_pool_before_an_earlier_one(
    database: Database,
) -> None:
    """Else a buyer who has the earlier pool and wants the later one would deadlock with it."""
    sale = await on_sale(
        database, pools={"one": 1, "two": 1}, offers={"first": "one", "second": "two"}
    )
    earlier, later = sale.pools["one"], sale.pools["two"]
    assert earlier < later
    lapsed = await sale.reserve(sale.line("second"))
    async with database.transaction() as other:
        async with database.transaction() as sweeping:
            await lock(sweeping, reservations, reservation_id=lapsed.reservation_id)
            both = [sale.line("first"), sale.line("second")]
            buyer = asyncio.create_task(sale.reserve(*both, now=LAPSED))
            # It has found the later pool short and wants to clear the lapsed hold away.
            await somebody_waits(database)
            await lock(other, pools, pool_id=earlier)
        await somebody_waits(database)
        await lock(other, pools, pool_id=later)
    assert (await buyer).state is State.ACTIVE
    await sale.assert_clean()


async def lock(connection: AsyncConnection, table: sa.Table, **key: UUID) -> None:
    """Locks a row, or raises when somebody has it."""
    wanted = sa.select(table).filter_by(**key).with_for_update(nowait=True)
    assert len((await connection.execute(wanted)).all()) == 1


async def somebody_waits(database: Database) -> None:
    """Returns when a transaction waits for a lock of another."""
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(10):
        while True:
            async with database.transaction() as connection:
                if await connection.scalar(waiting):
                    return
            await asyncio.sleep(0.005)
