"""Races on real connections. The controls show that without its guard a race oversells."""

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
from testing.stock_harness import HOLD, LAPSED, NOW, Sale, move_one, on_sale
from testing.waiting import wait_for_blocked

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


async def run_concurrently(attempts: Iterable[Awaitable[object]]) -> list[object]:
    """Runs all concurrently, CONNECTIONS at a time.

    Returns the result of each, or the reason of its refusal.
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


def accepted(outcomes: list[object]) -> list[Reservation]:
    return [outcome for outcome in outcomes if isinstance(outcome, Reservation)]


class ReadBarrier:
    """Makes readers wait until CONNECTIONS of them have read; later ones do not wait.

    With it a race does not depend on the speed of the machine.
    """

    def __init__(self) -> None:
        self._readers = 0
        self._is_open = asyncio.Event()

    async def wait(self) -> None:
        self._readers += 1
        if self._readers >= CONNECTIONS:
            self._is_open.set()
        await self._is_open.wait()


async def naive_claim(sale: Sale, barrier: ReadBarrier) -> bool:
    """The copy without the guard: reads first, writes then."""
    is_floor = (pools.c.event_id == sale.event_id) & (pools.c.pool_id == sale.pools["floor"])
    async with sale.database.transaction() as connection:
        free = await connection.scalar(sa.select(pools.c.capacity - pools.c.held).where(is_floor))
        if free is None or free < 1:
            return False
        await barrier.wait()
        await connection.execute(sa.update(pools).where(is_floor).values(held=pools.c.held + 1))
        return True


async def naive_seat_claim(sale: Sale, reservation_id: UUID, barrier: ReadBarrier) -> bool:
    """The same for a seat."""
    seat_id = sale.seats["A1"]
    async with sale.database.transaction() as connection:
        taken = await connection.scalar(
            sa.select(sa.func.count()).where(seat_claims.c.seat_id == seat_id)
        )
        if taken:
            return False
        await barrier.wait()
        await connection.execute(
            sa.insert(seat_claims).values(
                event_id=sale.event_id, reservation_id=reservation_id, seat_id=seat_id, state="HELD"
            )
        )
        return True


async def test_the_race_is_real_without_the_guard(database: Database) -> None:
    """Control: a burst oversells when check and claim are separate statements."""
    sale = await on_sale(database, pools={"floor": PLACES})
    await sale.sql("ALTER TABLE pools DROP CONSTRAINT pools_oversold_check")
    barrier = ReadBarrier()
    assert (await run_concurrently(naive_claim(sale, barrier) for _ in range(BUYERS))).count(
        True
    ) > PLACES


@pytest.mark.timeout(1200)
async def test_fifty_buyers_get_ten_places_once(database: Database, runs: int) -> None:
    for _ in range(runs):
        sale = await on_sale(database, pools={"floor": PLACES})
        outcomes = await run_concurrently(sale.reserve() for _ in range(BUYERS))
        assert len(accepted(outcomes)) == PLACES
        assert outcomes.count(Reason.SOLD_OUT) == BUYERS - PLACES
        assert await sale.counters() == (PLACES, 0)
        await sale.assert_clean()


async def test_the_seat_race_is_real_without_the_guard(database: Database) -> None:
    """Control: two reservations get one seat when check and claim are separate statements."""
    sale = await on_sale(
        database, pools={"floor": BUYERS}, offers={"place": "floor"}, seats={"stalls": ["A1"]}
    )
    made = [await sale.reserve() for _ in range(BUYERS)]
    await sale.sql("DROP INDEX seat_claims_live_idx")
    barrier = ReadBarrier()
    claims = await run_concurrently(
        naive_seat_claim(sale, reservation.reservation_id, barrier) for reservation in made
    )
    assert claims.count(True) > 1


@pytest.mark.timeout(1200)
async def test_fifty_buyers_get_ten_seats_once(database: Database, runs: int) -> None:
    for _ in range(runs):
        sale = await on_sale(database, seats={"stalls": SEATS})
        outcomes = await run_concurrently(
            sale.reserve(*sale.lines(SEATS[n % PLACES])) for n in range(BUYERS)
        )
        assert len(accepted(outcomes)) == PLACES
        assert outcomes.count(Reason.SEAT_UNAVAILABLE) == BUYERS - PLACES
        assert set((await sale.seat_states()).values()) == {"HELD"}
        await sale.assert_clean()


async def guarded_claim(sale: Sale, statement: str, barrier: ReadBarrier) -> bool:
    """Reads first, writes then with a statement of the ledger or a copy of it."""
    async with sale.database.transaction() as connection:
        if await free_places(connection, sale) < 1:
            return False
        await barrier.wait()
        pool = [[sale.event_id], [sale.pools["floor"]]]
        change = Statement(statement, [*pool, [0], [1], [0], [0], [1]])
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
async def test_the_condition_of_the_statement_prevents_overselling(
    database: Database, runs: int
) -> None:
    """With the same reads, only the copy of the statement without its condition oversells."""
    for _ in range(runs):
        control, sale = [await on_sale(database, pools={"floor": PLACES}) for _ in range(2)]
        await sale.sql("ALTER TABLE pools DROP CONSTRAINT IF EXISTS pools_oversold_check")
        copy = without_guard(statements.CHANGE_POOLS)
        barrier = ReadBarrier()
        oversold = await run_concurrently(
            guarded_claim(control, copy, barrier) for _ in range(BUYERS)
        )
        assert oversold.count(True) > PLACES
        barrier = ReadBarrier()
        exact = await run_concurrently(
            guarded_claim(sale, statements.CHANGE_POOLS, barrier) for _ in range(BUYERS)
        )
        assert exact.count(True) == PLACES


@pytest_asyncio.fixture
async def processes(
    new_database: Callable[[str], str],
) -> AsyncIterator[tuple[Database, list[asyncio.subprocess.Process]]]:
    """A database and four processes of testing.buyers that use it."""
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
    """The outcomes of one buyer per list of lines, all concurrent in that process."""
    assert process.stdin is not None
    assert process.stdout is not None
    requests = [
        [[str(line.offer_id), line.seat_id and str(line.seat_id)] for line in request]
        for request in lines
    ]
    order = {"event_id": str(sale.event_id), "requests": requests, "now": NOW.isoformat()}
    process.stdin.write(json.dumps(order).encode() + b"\n")
    return list(json.loads(await process.stdout.readline()))


@pytest.mark.timeout(1200)
async def test_four_processes_sell_ten_places_once(
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
        assert (outcomes.count("accepted"), outcomes.count("SOLD_OUT")) == (PLACES, BUYERS - PLACES)
        assert await sale.counters() == (PLACES, 0)
        await sale.assert_clean()


@pytest.mark.timeout(1200)
async def test_four_processes_sell_ten_seats_once(
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
        assert outcomes.count("accepted") == PLACES
        assert outcomes.count("SEAT_UNAVAILABLE") == BUYERS - PLACES
        await sale.assert_clean()


async def test_pairs_of_seats_in_any_order_do_not_deadlock(database: Database) -> None:
    """All request two of three seats: one gets them, and no request waits forever."""
    sale = await on_sale(database, seats={"stalls": ["A1", "A2", "A3"]})
    pairs = itertools.islice(itertools.cycle(itertools.permutations(["A1", "A2", "A3"], 2)), 30)
    outcomes = await run_concurrently(sale.reserve(*sale.lines(*pair)) for pair in pairs)
    assert len(accepted(outcomes)) == 1
    assert outcomes.count(Reason.SEAT_UNAVAILABLE) == 29
    await sale.assert_clean()


async def test_a_customer_with_many_tabs_stays_within_the_limit(database: Database) -> None:
    sale = await on_sale(database, pools={"floor": 100}, per_customer_limit=4)
    customer_id = new_id()
    outcomes = await run_concurrently(sale.reserve(customer_id=customer_id) for _ in range(20))
    assert len(accepted(outcomes)) == 4
    assert outcomes.count(Reason.PURCHASE_LIMIT_EXCEEDED) == 16
    await sale.assert_clean()


@pytest.mark.timeout(1200)
async def test_a_customer_stays_within_the_events_limit_over_all_pools(
    database: Database, runs: int
) -> None:
    """Tabs that use different pools share locks only because the event has a limit."""
    names = [f"pool {n}" for n in range(5)]
    for _ in range(runs):
        sale = await on_sale(
            database,
            pools=dict.fromkeys(names, 100),
            offers=dict(zip(names, names, strict=True)),
            event_limit=4,
        )
        customer_id = new_id()
        outcomes = await run_concurrently(
            sale.reserve(sale.line(names[n % 5]), customer_id=customer_id) for n in range(20)
        )
        assert len(accepted(outcomes)) == 4
        assert outcomes.count(Reason.PURCHASE_LIMIT_EXCEEDED) == 16
        await sale.assert_clean()


async def test_concurrent_duplicates_are_one_reservation(database: Database) -> None:
    sale = await on_sale(database)
    customer_id = new_id()
    outcomes = await run_concurrently(
        sale.reserve(customer_id=customer_id, request_key="key") for _ in range(20)
    )
    assert len({reservation.reservation_id for reservation in accepted(outcomes)}) == 1
    assert len(accepted(outcomes)) == 20
    assert await sale.counters() == (1, 0)
    await sale.assert_clean()


async def test_concurrent_duplicates_of_a_lapsed_hold_are_one_reservation(
    database: Database,
) -> None:
    sale = await on_sale(database, pools={"floor": 1})
    customer_id = new_id()
    lapsed = await sale.reserve(customer_id=customer_id, request_key="key")
    outcomes = await run_concurrently(
        sale.reserve(customer_id=customer_id, request_key="key", now=LAPSED) for _ in range(10)
    )
    assert len({reservation.reservation_id for reservation in accepted(outcomes)}) == 1
    assert len(accepted(outcomes)) == 10
    assert (await sale.get(lapsed.reservation_id)).state is State.EXPIRED
    await sale.assert_clean()


async def test_places_of_lapsed_holds_are_sold_once_during_sweeps(database: Database) -> None:
    """A full pool of lapsed holds is free at once, for requests before and after a sweep."""
    sale = await on_sale(database, pools={"floor": PLACES})
    for _ in range(PLACES):
        await sale.reserve()
    sweeps = [sweep(database, now=LAPSED) for _ in range(2)]
    buyers = [sale.reserve(now=LAPSED) for _ in range(BUYERS)]
    outcomes = await run_concurrently([sweeps[0], *buyers[:25], sweeps[1], *buyers[25:]])
    assert len(accepted(outcomes)) == PLACES
    assert await sale.counters() == (PLACES, 0)
    audited = await sale.assert_clean()
    assert audited.reservations == {State.ACTIVE: PLACES, State.EXPIRED: PLACES}


async def test_of_concurrent_expiry_commit_and_release_exactly_one_succeeds(
    database: Database,
) -> None:
    """The clock of commit and release is 1 ms behind the clock of the sweep."""
    sale = await on_sale(database, pools={"floor": 100})
    just_before = LAPSED - timedelta(milliseconds=1)
    for turn in range(20):
        made = await sale.reserve()
        racers = [
            sale.commit(made.reservation_id, now=just_before),
            sweep(database, now=LAPSED),
            sale.release(made.reservation_id, now=just_before),
        ]
        await run_concurrently(racers[turn % 3 :] + racers[: turn % 3])
        assert (await sale.get(made.reservation_id)).state is not State.ACTIVE
    audited = await sale.assert_clean()
    assert sum(audited.reservations.values()) == 20
    assert (await sale.counters())[0] == 0


async def test_of_a_commit_and_a_reserve_of_a_lapsing_seat_exactly_one_succeeds(
    database: Database,
) -> None:
    names = [f"A{n}" for n in range(20)]
    sale = await on_sale(database, seats={"stalls": names})
    just_before = LAPSED - timedelta(milliseconds=1)
    for name in names:
        made = await sale.reserve(*sale.lines(name))
        committed, reserved = await run_concurrently(
            [
                sale.commit(made.reservation_id, now=just_before),
                sale.reserve(*sale.lines(name), now=LAPSED),
            ]
        )
        assert isinstance(committed, Reservation) != isinstance(reserved, Reservation)
    await sale.assert_clean()


async def test_overlapping_pools_in_opposite_order_do_not_deadlock(database: Database) -> None:
    """Reserve, commit, release, clear and sweep use the same pools."""
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
    outcomes = await run_concurrently(work)
    assert set(outcomes) <= {None, Reason.SOLD_OUT, Reason.HOLD_EXPIRED}
    await sweep(database, now=NOW + timedelta(hours=1))
    audited = await sale.assert_clean()
    assert all(pool.held == 0 for pool in audited.pools)


async def test_a_request_waits_for_a_lapsed_hold_that_a_sweep_has_locked(
    database: Database,
) -> None:
    """The sweep has locked the hold but not freed its place yet: the request is not refused."""
    sale = await on_sale(database, pools={"floor": 1})
    lapsed = await sale.reserve()
    async with database.transaction() as sweeping:
        await lock(sweeping, reservations, reservation_id=lapsed.reservation_id)
        buyer = asyncio.create_task(sale.reserve(now=LAPSED))
        await wait_for_blocked(database)
        assert await expiry.expire(sweeping, event_id=sale.event_id, limit=9, now=LAPSED) == 1
    assert (await buyer).state is State.ACTIVE
    await sale.assert_clean()


async def test_a_hold_that_is_extended_while_a_request_waits_for_it_does_not_expire(
    database: Database,
) -> None:
    """The hold had lapsed when the request read it, but not any more when it had the lock."""
    sale = await on_sale(database, pools={"floor": 1})
    made = await sale.reserve()
    async with database.transaction() as extending:
        order = Order(Move.EXTEND, sale.event_id, made.reservation_id, LAPSED + HOLD)
        await move_one(extending, order, now=LAPSED - timedelta(milliseconds=1))
        buyer = asyncio.create_task(sale.reserve(now=LAPSED))
        await wait_for_blocked(database)
    with pytest.raises(DomainError) as refused:
        await buyer
    assert refused.value.reason is Reason.SOLD_OUT
    assert (await sale.commit(made.reservation_id, now=LAPSED)).state is State.COMMITTED
    await sale.assert_clean()


async def test_clearing_lapsed_holds_locks_pools_in_sorted_order(
    database: Database,
) -> None:
    """Else it would deadlock with a transaction that locks the earlier pool, then the later one."""
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
            # The request waits for the lapsed hold, which it must expire.
            await wait_for_blocked(database)
            await lock(other, pools, pool_id=earlier)
        await wait_for_blocked(database)
        await lock(other, pools, pool_id=later)
    assert (await buyer).state is State.ACTIVE
    await sale.assert_clean()


async def lock(connection: AsyncConnection, table: sa.Table, **key: UUID) -> None:
    """Locks a row; raises when another transaction has locked it."""
    statement = sa.select(table).filter_by(**key).with_for_update(nowait=True)
    assert len((await connection.execute(statement)).all()) == 1


async def test_exchanges_in_opposite_directions_do_not_deadlock(database: Database) -> None:
    """Reservations of two nearly full events move to the other event, as places become free."""
    left, right = await on_sale(database), await on_sale(database)
    moves = []
    for here, there in ((left, right), (right, left)):
        for _ in range(9):
            made = await here.reserve()
            await here.commit(made.reservation_id)
            moves.append(here.exchange(made.reservation_id, there.line(), to=there))
    outcomes = await run_concurrently(moves[n // 2 + 9 * (n % 2)] for n in range(18))
    assert len(accepted(outcomes)) + outcomes.count(Reason.SOLD_OUT) == 18
    sold = [(await sale.counters())[1] for sale in (left, right)]
    assert sum(sold) == 18
    await left.assert_clean()
    await right.assert_clean()


async def test_of_concurrent_exchanges_of_one_reservation_exactly_one_succeeds(
    database: Database,
) -> None:
    sale = await on_sale(database, pools={"floor": 100})
    for _ in range(10):
        await sale.reserve()  # So that places freed twice would show in the counters.
    for _ in range(10):
        made = await sale.reserve()
        outcomes = await run_concurrently(sale.exchange(made.reservation_id) for _ in range(4))
        assert len(accepted(outcomes)) == 1
        assert outcomes.count(Reason.RESERVATION_STATE_INVALID) == 3
    assert await sale.counters() == (20, 0)
    await sale.assert_clean()
