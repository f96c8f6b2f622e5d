"""Races on real connections. The control shows that a race is real without its guard."""

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import timedelta
from uuid import UUID

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.database import Database
from mesh.db.pipeline import Statement, run_together
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc import expiry, statements
from stock_svc.expiry import sweep
from stock_svc.reservations import Line, Reservation, State
from stock_svc.tables import pools, reservations, seat_claims
from stock_svc.transitions import Move, Order
from testing.databases import open_patiently
from testing.locks import somebody_waits
from testing.stock_harness import HOLD, LAPSED, NOW, Sale, move_one, on_sale

CONNECTIONS = 16
BUYERS = 50
PLACES = 10
SEATS = [f"A{n}" for n in range(PLACES)]


@pytest.fixture(scope="session")
def runs(is_long: bool) -> int:
    return 200 if is_long else 4


@pytest_asyncio.fixture
async def database(
    new_database: Callable[[str], str],
) -> AsyncIterator[Database]:
    async with open_patiently(new_database("stock_svc"), pool_size=CONNECTIONS) as opened:
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


class Crowd:
    """Lets nobody act on what they saw before as many have looked as there are connections.

    So that a race does not depend on who happens to be fast.
    """

    def __init__(self) -> None:
        self._looked = 0
        self._all = asyncio.Event()

    async def has_looked(self) -> None:
        self._looked += 1
        if self._looked >= CONNECTIONS:
            self._all.set()
        await self._all.wait()


async def naive_claim(sale: Sale, crowd: Crowd) -> bool:
    """The copy without the guard: looks first, takes then."""
    is_floor = (pools.c.event_id == sale.event_id) & (pools.c.pool_id == sale.pools["floor"])
    async with sale.database.transaction() as connection:
        free = await connection.scalar(sa.select(pools.c.capacity - pools.c.held).where(is_floor))
        if free is None or free < 1:
            return False
        await crowd.has_looked()
        await connection.execute(sa.update(pools).where(is_floor).values(held=pools.c.held + 1))
        return True


async def naive_seat_claim(sale: Sale, reservation_id: UUID, crowd: Crowd) -> bool:
    """The same for a seat."""
    seat_id = sale.seats["A1"]
    async with sale.database.transaction() as connection:
        taken = await connection.scalar(
            sa.select(sa.func.count()).where(seat_claims.c.seat_id == seat_id)
        )
        if taken:
            return False
        await crowd.has_looked()
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
    crowd = Crowd()
    assert (await rush(naive_claim(sale, crowd) for _ in range(BUYERS))).count(True) > PLACES


@pytest.mark.timeout(1200)
async def test_fifty_buyers_ten_places(database: Database, runs: int) -> None:
    for _ in range(runs):
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
    crowd = Crowd()
    claims = await rush(naive_seat_claim(sale, each.reservation_id, crowd) for each in made)
    assert claims.count(True) > 1


@pytest.mark.timeout(1200)
async def test_fifty_buyers_ten_seats(database: Database, runs: int) -> None:
    for _ in range(runs):
        sale = await on_sale(database, seats={"stalls": SEATS})
        outcomes = await rush(sale.reserve(*sale.lines(SEATS[n % PLACES])) for n in range(BUYERS))
        assert len(won(outcomes)) == PLACES
        assert outcomes.count(Reason.SEAT_UNAVAILABLE) == BUYERS - PLACES
        assert set((await sale.seat_states()).values()) == {"HELD"}
        await sale.assert_clean()


async def guarded_claim(sale: Sale, statement: str, crowd: Crowd) -> bool:
    """Looks first, takes then, by a statement of the ledger or by a copy of it."""
    async with sale.database.transaction() as connection:
        if await free_places(connection, sale) < 1:
            return False
        await crowd.has_looked()
        pool = [[sale.event_id], [sale.pools["floor"]]]
        change = Statement(statement, [*pool, [0], [1], [0], [1]])
        [changed] = await run_together(connection, [change])
        return changed.count == 1


async def free_places(connection: AsyncConnection, sale: Sale) -> int:
    free = await connection.scalar(
        sa.select(pools.c.capacity - pools.c.held - pools.c.sold)
        .where(pools.c.event_id == sale.event_id)
        .where(pools.c.pool_id == sale.pools["floor"])
    )
    return int(free or 0)


def without_guard(statement: str) -> str:
    """The test's own copy of the statement that changes pools."""
    guard = statement[statement.index("  AND pools.held") :]
    assert "<= pools.capacity" in guard
    return statement.replace(guard, "")


@pytest.mark.timeout(1200)
async def test_the_guard_of_the_statement_keeps_the_pool_whole(
    database: Database, runs: int
) -> None:
    """The same look and the same statement; only the copy without its guard oversells."""
    for _ in range(runs):
        control, sale = [await on_sale(database, pools={"floor": PLACES}) for _ in range(2)]
        await sale.sql("ALTER TABLE pools DROP CONSTRAINT IF EXISTS pools_oversold_check")
        copy = without_guard(statements.CHANGE_POOLS)
        crowd = Crowd()
        oversold = await rush(guarded_claim(control, copy, crowd) for _ in range(BUYERS))
        assert oversold.count(True) > PLACES
        crowd = Crowd()
        exact = await rush(
            guarded_claim(sale, statements.CHANGE_POOLS, crowd) for _ in range(BUYERS)
        )
        assert exact.count(True) == PLACES


@pytest_asyncio.fixture
async def processes(
    new_database: Callable[[str], str],
) -> AsyncIterator[tuple[Database, list[asyncio.subprocess.Process]]]:
    """A database and four processes that buy from it when they are told to."""
    url = new_database("stock_svc")
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "testing.buyers", url,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(4)
    ]  # fmt: skip
    async with open_patiently(url) as opened:
        yield opened, started
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
        assert await process.wait() == 0


async def buy(
    process: asyncio.subprocess.Process, lines: list[list[Line]], sale: Sale
) -> list[str]:
    """What became of one buyer for each of the lines, all at once in that process."""
    assert process.stdin is not None
    assert process.stdout is not None
    wishes = [
        [[str(line.offer_id), line.seat_id and str(line.seat_id)] for line in one] for one in lines
    ]
    order = {"event_id": str(sale.event_id), "wishes": wishes, "now": NOW.isoformat()}
    process.stdin.write(json.dumps(order).encode() + b"\n")
    return list(json.loads(await process.stdout.readline()))


@pytest.mark.timeout(1200)
async def test_four_processes_sell_ten_places(
    processes: tuple[Database, list[asyncio.subprocess.Process]], runs: int
) -> None:
    database, workers = processes
    for _ in range(runs):
        sale = await on_sale(database, pools={"floor": PLACES})
        buyers = [[sale.line()] for _ in range(BUYERS)]
        parts = await asyncio.gather(
            *(buy(worker, buyers[n::4], sale) for n, worker in enumerate(workers))
        )
        outcomes = [outcome for part in parts for outcome in part]
        assert (outcomes.count("won"), outcomes.count("SOLD_OUT")) == (PLACES, BUYERS - PLACES)
        assert await sale.counters() == (PLACES, 0)
        await sale.assert_clean()


@pytest.mark.timeout(1200)
async def test_four_processes_sell_ten_seats(
    processes: tuple[Database, list[asyncio.subprocess.Process]], runs: int
) -> None:
    database, workers = processes
    for _ in range(runs):
        sale = await on_sale(database, seats={"stalls": SEATS})
        buyers = [sale.lines(SEATS[n % PLACES]) for n in range(BUYERS)]
        parts = await asyncio.gather(
            *(buy(worker, buyers[n::4], sale) for n, worker in enumerate(workers))
        )
        outcomes = [outcome for part in parts for outcome in part]
        assert outcomes.count("won") == PLACES
        assert outcomes.count("SEAT_UNAVAILABLE") == BUYERS - PLACES
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


@pytest.mark.timeout(1200)
async def test_a_customer_stays_within_the_events_limit_over_all_pools(
    database: Database, runs: int
) -> None:
    """No two of the tabs want the same pool's lock, but for the event's limit."""
    names = [f"pool {n}" for n in range(5)]
    for _ in range(runs):
        sale = await on_sale(
            database,
            pools=dict.fromkeys(names, 100),
            offers=dict(zip(names, names, strict=True)),
            event_limit=4,
        )
        customer_id = new_id()
        outcomes = await rush(
            sale.reserve(sale.line(names[n % 5]), customer_id=customer_id) for n in range(20)
        )
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


async def test_a_hold_that_is_extended_while_a_buyer_waits_does_not_expire(
    database: Database,
) -> None:
    """It had lapsed when the buyer read it; under its lock it has not."""
    sale = await on_sale(database, pools={"floor": 1})
    made = await sale.reserve()
    async with database.transaction() as extending:
        order = Order(Move.EXTEND, sale.event_id, made.reservation_id, LAPSED + HOLD)
        await move_one(extending, order, now=LAPSED - timedelta(milliseconds=1))
        buyer = asyncio.create_task(sale.reserve(now=LAPSED))
        await somebody_waits(database)
    with pytest.raises(DomainError) as refused:
        await buyer
    assert refused.value.reason is Reason.SOLD_OUT
    assert (await sale.commit(made.reservation_id, now=LAPSED)).state is State.COMMITTED
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


async def test_exchanges_in_opposite_directions_do_not_deadlock(database: Database) -> None:
    """Everybody moves to the other of two full events, as places come free."""
    one, two = await on_sale(database), await on_sale(database)
    moves = []
    for here, there in ((one, two), (two, one)):
        for _ in range(9):
            made = await here.reserve()
            await here.commit(made.reservation_id)
            moves.append(here.exchange(made.reservation_id, there.line(), to=there))
    outcomes = await rush(moves[n // 2 + 9 * (n % 2)] for n in range(18))
    assert len(won(outcomes)) + outcomes.count(Reason.SOLD_OUT) == 18
    sold = [(await sale.counters())[1] for sale in (one, two)]
    assert sum(sold) == 18
    await one.assert_clean()
    await two.assert_clean()


async def test_of_exchanges_of_one_reservation_exactly_one_wins(database: Database) -> None:
    sale = await on_sale(database, pools={"floor": 100})
    for _ in range(10):
        await sale.reserve()  # What would be given back twice belongs to somebody.
    for _ in range(10):
        made = await sale.reserve()
        outcomes = await rush(sale.exchange(made.reservation_id) for _ in range(4))
        assert len(won(outcomes)) == 1
        assert outcomes.count(Reason.RESERVATION_STATE_INVALID) == 3
    assert await sale.counters() == (20, 0)
    await sale.assert_clean()
