"""Concurrent holds, releases and commits on one pool are linearizable."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

import pytest
import pytest_asyncio
import sqlalchemy as sa

from mesh.db.database import Database
from mesh.errors import DomainError
from mesh.ids import new_id
from stock_svc import batches
from stock_svc.tables import pools
from testing.databases import open_patiently
from testing.linearizability import Call, is_linearizable
from testing.stock_harness import NOW, Sale, on_sale

CLIENTS = 5
CALLS = 6
PLACES = 3

# The free places, and each reservation with its places and state.
State = tuple[int, tuple[tuple[UUID, int, str], ...]]


def free(places: int) -> State:
    """A pool without reservations."""
    return places, ()


def step(state: State, call: Call) -> tuple[object, State]:
    """The answer to a call, and the state after it."""
    available, listed = state
    reservations = {key: (quantity, status) for key, quantity, status in listed}
    reservation_id = call.arguments[0]
    quantity, status = reservations.get(reservation_id, (0, "UNKNOWN"))
    answer: object
    match call.name, status:
        case "hold", _:
            requested = call.arguments[1]
            if requested > available:
                return ("SOLD_OUT", available), state
            available -= requested
            reservations[reservation_id] = (requested, "ACTIVE")
            answer = "ACTIVE"
        case "release", "ACTIVE":
            available += quantity
            reservations[reservation_id] = (quantity, "RELEASED")
            answer = True
        case "release", "COMMITTED":
            return "RESERVATION_STATE_INVALID", state
        case "release", _:
            return False, state
        case "commit", "ACTIVE" | "COMMITTED":
            reservations[reservation_id] = (quantity, "COMMITTED")
            answer = "COMMITTED"
        case "commit", "UNKNOWN":
            return "RESERVATION_NOT_FOUND", state
        case _:
            return "RESERVATION_STATE_INVALID", state
    return answer, (available, tuple(sorted((k, *held) for k, held in reservations.items())))


class Recorder:
    def __init__(self) -> None:
        self._moments = itertools.count()
        self.history: list[Call] = []

    async def call(self, name: str, *arguments: object, work: Awaitable[object]) -> None:
        began = next(self._moments)
        answer: object
        try:
            answer = await work
        except DomainError as refusal:
            answer = str(refusal.reason)
            if "available" in refusal.metadata:
                answer = (answer, int(refusal.metadata["available"]))
        self.history.append(Call(name, arguments, answer, began, next(self._moments)))


@pytest_asyncio.fixture
async def database(new_database: Callable[[str], str]) -> AsyncIterator[Database]:
    async with open_patiently(new_database("stock_svc")) as opened:
        yield opened


async def record(sale: Sale, chance: random.Random) -> list[Call]:
    """The history of clients that reserve, and release and commit reservations of any client."""
    recorder = Recorder()
    coalescer = batches.coalesced_reserve(sale.database, lambda: NOW)
    known = [new_id()]

    async def hold(reservation_id: UUID, quantity: int) -> object:
        request = sale.request(sale.line(quantity=quantity), reservation_id=reservation_id)
        return str((await coalescer.submit(request)).state)

    async def commit(reservation_id: UUID) -> object:
        return str((await sale.commit(reservation_id)).state)

    async def client() -> None:
        for _ in range(CALLS):
            reservation_id = chance.choice(known)
            match chance.choice(["hold", "hold", "release", "release", "commit"]):
                case "hold":
                    reservation_id, quantity = new_id(), chance.randint(1, 2)
                    known.append(reservation_id)
                    work = hold(reservation_id, quantity)
                    await recorder.call("hold", reservation_id, quantity, work=work)
                case "release":
                    work = sale.release(reservation_id)
                    await recorder.call("release", reservation_id, work=work)
                case _:
                    await recorder.call("commit", reservation_id, work=commit(reservation_id))

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return recorder.history


@pytest.mark.timeout(1800)
async def test_histories_are_linearizable(database: Database, is_long: bool) -> None:
    overlapping = 0
    for seed in range(500 if is_long else 15):
        sale = await on_sale(database, pools={"floor": PLACES})
        history = await record(sale, random.Random(seed))
        assert len(history) == CLIENTS * CALLS
        assert is_linearizable(history, free(PLACES), step), f"seed {seed}: {history}"
        overlapping += sum(a.began < b.began < a.ended for a in history for b in history)
        await sale.assert_clean()
    assert overlapping > 0


async def test_the_checker_rejects_the_history_of_an_oversold_pool(database: Database) -> None:
    """Control: holds that read first and write then make a history that is not linearizable."""
    sale = await on_sale(database, pools={"floor": 1})
    await sale.sql("ALTER TABLE pools DROP CONSTRAINT pools_oversold_check")
    is_floor = (pools.c.event_id == sale.event_id) & (pools.c.pool_id == sale.pools["floor"])
    both_have_read = asyncio.Barrier(2)

    async def hold() -> object:
        async with database.transaction() as connection:
            free_places = sa.select(pools.c.capacity - pools.c.held).where(is_floor)
            assert await connection.scalar(free_places) == 1
            await both_have_read.wait()
            await connection.execute(sa.update(pools).where(is_floor).values(held=pools.c.held + 1))
        return "ACTIVE"

    recorder = Recorder()
    await asyncio.gather(*(recorder.call("hold", new_id(), 1, work=hold()) for _ in range(2)))
    assert not is_linearizable(recorder.history, free(1), step)


def test_the_checker_respects_the_order_of_calls_that_do_not_overlap() -> None:
    first, second = new_id(), new_id()
    held, refused = ("hold", (first, 1), "ACTIVE"), ("hold", (second, 1), ("SOLD_OUT", 0))
    assert is_linearizable([Call(*held, 0, 1), Call(*refused, 2, 3)], free(1), step)
    assert not is_linearizable([Call(*refused, 0, 1), Call(*held, 2, 3)], free(1), step)
    assert is_linearizable([Call(*refused, 0, 2), Call(*held, 1, 3)], free(1), step)
